"""Several runs: side by side, each in a process of its own, none of which outlives the command; and their table."""

import os
import signal
import time

import pytest
from doubles import ROOT
from results import arm, make_results, with_fixed
from warm import Program

from alignpro_mini.lab import sweep, tables
from alignpro_mini.lab.cli import parse_command_line

RUN = """
import json, os, pathlib, sys
last = lambda option: sys.argv[len(sys.argv) - sys.argv[::-1].index(option)]
task, seed = last("--task"), last("--seed")
print("threads", os.environ["OMP_NUM_THREADS"], *sys.argv[1:])
if seed == "1":
    sys.exit("seed 1 fails")
folder = pathlib.Path(last("--out"), f"tiny-{task}-seed{seed}")
folder.mkdir()
(folder / "results.json").write_text(json.dumps({"task": task, "seed": int(seed)}))
"""


def test_a_failed_run_is_named_and_the_others_count(tmp_path, capsys):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    argv = ["--seed=0-2", "--task", "quality", "--jobs", "2", "--out", str(tmp_path)]
    results, failed = sweep.run_side_by_side([str(script)], argv, parse_command_line(argv)[0], 2)
    assert [r["seed"] for r in results] == [0, 2] and failed == [tmp_path / "tiny-quality-seed1.log"]
    assert "seed 1 fails" in failed[0].read_text() and "tiny-quality-seed1: FAILED" in capsys.readouterr().out
    said = (tmp_path / "tiny-quality-seed2.log").read_text().split()
    # What the command was given, then what makes it one run: of an option that is given twice the last one counts.
    which = ["--task", "quality", "--seed", "2", "--jobs", "1", "--child"]
    assert said == ["threads", str(max(1, os.cpu_count() // 2)), *argv, *which]
    (config,), how = parse_command_line(said[2:])
    assert (config.run_name, how.jobs, how.child) == ("tiny-quality-seed2", 1, True)
    with pytest.raises(SystemExit, match=r"train\.py: error: 1 of 3 runs failed; see .*tiny-quality-seed1\.log"):
        sweep.exit_if_failed("train.py", parse_command_line(argv)[0], failed)
    sweep.exit_if_failed("train.py", parse_command_line(argv)[0], [])


def test_one_process_does_all_runs_unless_there_are_jobs_and_several_runs(monkeypatch):
    asked = []
    monkeypatch.setattr(sweep, "run_side_by_side", lambda *given: asked.append(given) or ([], []))
    monkeypatch.setattr("sys.argv", ["train.py", "the", "words"])
    one = lambda config, resume: {"seed": config.seed, "resume": resume}
    for argv, seeds in ((["--seed", "0-2"], [0, 1, 2]), (["--seed", "4", "--jobs", "2"], [4])):
        configs, how = parse_command_line([*argv, "--resume"])
        assert sweep.run_all(["train.py"], configs, how, one) == ([{"seed": s, "resume": True} for s in seeds], [])
    assert asked == []
    configs, how = parse_command_line(["--seed", "0-2", "--jobs", "2"])
    assert sweep.run_all(["train.py"], configs, how, one) == ([], [])
    assert asked == [(["train.py"], ["the", "words"], configs, 2)]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_what_ends_the_command_ends_its_runs(tmp_path, how):
    (tmp_path / "run.py").write_text("import os, sys, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n")
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import signal, sys\nfrom alignpro_mini.lab import sweep\nfrom alignpro_mini.lab.cli import parse_command_line\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # what a shell puts into the background ignores it
        "sweep.run_side_by_side(sys.argv[1:2], sys.argv[2:], parse_command_line(sys.argv[2:])[0], 2)\n"
    )
    out = tmp_path / "out"
    command = [parent, tmp_path / "run.py", "--seed", "0,1", "--out", out]
    process = Program(command, tmp_path, {"PYTHONPATH": str(ROOT)})
    logs = [out / f"tiny-quality-seed{seed}.log" for seed in (0, 1)]
    while not all(log.exists() and log.read_text().strip() for log in logs):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    children = [int(log.read_text()) for log in logs]
    process.send_signal(how)
    assert process.wait(300) != 0
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    argv = ["--out", str(tmp_path / "file" / "runs")]
    with pytest.raises(OSError, match="cannot be written .* choose another folder with --out"):
        sweep.run_side_by_side([str(tmp_path / "run.py")], argv, parse_command_line(argv)[0], 2)


# ---------------------------------------------------------------- the table of several runs


def runs_by_hand() -> list[dict]:
    """Four runs of quality and one of attributes, worked by hand.

    interval above 0: runs 0, 1 yes; 2 no (it covers 0); 3 yes; attributes no (it starts at 0)     3 of 5
    above the fixed:  run 0 yes; 1 covers 0; 2 below it; others have none                                       1 of 3
    the same, gold:   run 0 covers 0; 1, 2 yes                                                                  2 of 3
    best-of-n:        run 0 yes; 1 equal; others have none                                                      1 of 2
    between:          run 0 yes; 1 above the oracle; 2 below no fine-tuning; 3 has no oracle; attributes yes   2 of 4
    at or above it:   run 1                                                                                     1 of 4
    variance ratio:   0.5 yes, 0.7 yes, 1.2 no, 1.0 no, attributes not measured                                2 of 4
    its interval:     to 0.6, 0.8, 1.3, 1.1                                                                    2 of 4
    within requests:  to 1.1 in run 2, to 0.48 in the others                                                   4 of 5
    gold interval:    to 1.1 in all                                                                            0 of 5
    attainable share: run 0 0.97, 1 0.93, others not measured                              0.90: 2 of 2, 0.95: 1 of 2
    """
    near = lambda share, outside: {"theory": {"attainable_gain_share": share, "mass_outside": outside}}
    runs = [
        make_results(seed=3, oracle=None, ratio=1.0),
        make_results(seed=0, base=1.0, pro=1.5, oracle=2.0, ci=(0.4, 0.6), ratio=0.5) | near(0.97, 0.03),
        make_results(seed=1, base=1.0, pro=2.2, oracle=2.0, ci=(1.1, 1.3), ratio=0.7) | near(0.93, 0.05),
        make_results(seed=2, base=1.0, pro=0.9, oracle=2.0, ci=(-0.3, 0.1), ratio=1.2),
        make_results(seed=0, pro=1.2, ci=(0.0, 0.4), ratio=None, task="attributes"),
    ]
    with_fixed(runs[1])
    with_fixed(runs[2], (0.1, -0.02, 0.2), (0.3, 0.1, 0.5), None)
    with_fixed(runs[3], (-0.4, -0.5, -0.3), (0.2, 0.1, 0.3), (0.7, 0.5, 0.9))
    for run, mean in ((runs[1], 1.4), (runs[2], 2.2)):
        run["arms"]["best_of_n"] = arm(mean, 1.1)
    runs[3]["variance_ratio_within_requests_ci95"] = [0.2, 1.1]
    return runs


def test_sweep_counts_hand_worked():
    counts = sweep.sweep_counts(runs_by_hand())
    assert list(counts) == [
        "Align-Pro above no fine-tuning with interval above zero",
        "Align-Pro above the fixed rewrite with interval above zero",
        "the same by the gold reward",
        "above best-of-n rewrites",
        "between no fine-tuning and oracle",
        "at or above the oracle",
        "variance below no fine-tuning",
        "variance ratio's interval below 1",
        "variance ratio within requests: its interval below 1",
        "gold variance ratio's interval below 1",
        "at least 0.90 of the attainable gain",
        "at least 0.95 of the attainable gain",
    ]
    own = [(3, 5), (1, 3), (2, 3), (1, 2), (2, 4), (1, 4), (2, 4), (2, 4), (4, 5), (0, 5), (2, 2), (1, 2)]
    assert list(counts.values()) == own
    own = [(3, 4), (1, 3), (2, 3), (1, 2), (1, 3), (1, 3), (2, 4), (2, 4), (3, 4), (0, 4), (2, 2), (1, 2)]
    assert list(sweep.sweep_counts(runs_by_hand()[:4]).values()) == own
    # What no run measured is no claim: neither has a fixed rewrite; one has no oracle, the other no variance ratio.
    assert len(sweep.sweep_counts(runs_by_hand()[:1])) == 5 and len(sweep.sweep_counts(runs_by_hand()[4:])) == 5


def test_sweep_table_has_two_rows_a_seed_averages_and_the_papers_figures():
    attributes, more, quality, ratios, everything = sweep.sweep_table(runs_by_hand()).split("\n\n")
    assert "UltraFeedback" in quality and "HelpSteer" in attributes and "all tasks" in everything
    assert [line[0] for line in quality.splitlines()[3:7]] == ["0", "1", "2", "3"], "in the order of the seeds"
    assert [line[0] for line in ratios.splitlines()[2:6]] == ["0", "1", "2", "3"]
    row = lambda block, name: next(line.split() for line in block.splitlines() if line.startswith(name))
    told = "1.00 1.25 1.40 1.50 2.00 0.50 [0.40, 0.60] 0.25 [0.12, 0.38] 0.10 [-0.05, 0.25] 0.90 0.97"
    assert row(quality, "0 ")[1:] == told.split()
    told = "0.50 [0.40, 0.60] 0.42 [0.36, 0.48] 0.80 [0.70, 1.10] 0.50 0.030 0.754 0.941 0.874 120"
    assert row(ratios, "0 ")[1:] == told.split()
    # means over seeds 0 to 3; fixed, oracle and gap over 0 to 2 only: fixed 1.25, 2.1, 1.3; gaps 0.5, 1.2, -0.1
    assert row(quality, "mean")[1:] == "1.00 1.55 1.80 1.60 2.00 0.60 -0.02 0.20 0.80 0.95".split()
    assert row(ratios, "mean")[1:] == "0.85 0.42 0.80 0.53 0.040 0.754 0.941 0.874 120".split()
    assert "in the paper: gap closed 0.82, variance ratio 0.64" in ratios
    # gaps: s = 0.65064, t(2) = 4.303, half-width 4.303 * 0.65064 / sqrt(3) = 1.616
    assert row(ratios, "± 95%")[5] == "1.62"
    assert "no fine-tuning with interval above zero: 3 of 4" in ratios
    assert "no fine-tuning with interval above zero: 3 of 5" in everything
    assert (
        "fixed rewrite with interval above zero: 1 of 3" in ratios and "the same by the gold reward: 2 of 3" in ratios
    )
    assert "between no fine-tuning and oracle: 1 of 3" in ratios and "λ 0.1, the oracle's β 0.1" in quality
    assert row(attributes, "± 95%")[2:] == ["–"] * 10, "one seed has no interval"
    assert row(more, "± 95%")[2:] == ["–"] * 9


def test_what_a_reward_model_learned_of_what_its_labels_allow():
    share = sweep.accuracy_share
    assert share({"accuracy": 0.7, "ceiling": 0.9}) == pytest.approx(0.5)
    assert share({"accuracy": 0.8, "ceiling": 0.8}) == 1 and share({"accuracy": 0.5, "ceiling": 0.8}) == 0
    assert share({"accuracy": 0.4, "ceiling": 0.7}) == pytest.approx(-0.5)
    # labels that are nothing but noise allow nothing; pairs of a file have no ceiling
    for facts in (None, {}, {"accuracy": 0.6, "ceiling": 0.5}, {"accuracy": 0.6, "ceiling": None}, {"ceiling": 0.9}):
        assert share(facts) is None


def test_right_answers_are_told_beside_the_sweep_of_sums():
    runs = [make_results(task="reasoning", seed=seed) for seed in (0, 1)]
    assert "right answers" not in sweep.sweep_table(runs)
    for run, (before, after, asks) in zip(runs, ((0.3, 0.8, 0.9), (0.5, 0.9, 1.0))):
        run["arms"]["no_finetuning"]["right_rate"] = before
        run["arms"]["align_pro"] |= {"right_rate": after, "asks_for_steps": asks}
    told = sweep.sweep_table(runs)
    assert "right answers 0.400 to 0.850; rewrites that ask for steps 0.950 (means over seeds)" in told
    assert "right answers rise by 0.400 to 0.500, seed by seed" in told


def test_the_sweep_tells_the_parts_and_the_theory():
    """Attainable gains 1 and 2: noise 0.01 and 0.02 are 0.010 of both, costs 0.03 and 0.1 are 0.030 and 0.050."""
    theory = dict(delta1=1.0, delta2=-0.25, delta3=-0.5, bound_sharp=0.5, bound_paper=2.0)
    near = [
        dict(attainable_gain_share=0.96, attainable_gain=1.0, optimum_noise=0.01, unlisted_cost=0.03),
        dict(attainable_gain_share=0.99, attainable_gain=2.0, optimum_noise=0.02, unlisted_cost=0.1, delta1=2.0),
    ]
    told = sweep.sweep_table([make_results(seed=i) | {"theory": theory | n} for i, n in enumerate(near)])
    assert (
        "Δ1, Δ2, Δ3 1.50, -0.25, -0.50; bounds: sharper 0.50, the paper's (recalled) 2.00 (means); both held in 1 of 2"
        in told
    )
    assert (
        "noise in R raises the optimum by 0.010 to 0.010, rewrites not enumerated cost 0.030 to 0.050 or more" in told
    )
    parts = next(line.split() for line in told.splitlines() if line.startswith("  Align-Pro  "))
    arm = make_results()["arms"]["align_pro"]
    values = [
        arm["variance"],
        *(arm["variance_parts"][k] for k in ("between_inputs", "between_rewrites", "within")),
        arm["gold_mean"],
        arm["gold_variance"],
        arm["win_rate"],
    ]
    assert parts[1:] == [word for v in values for word in (tables.num(v), "±0.000")]  # two equal seeds
    flat = theory | dict(
        attainable_gain_share=None, attainable_gain=0.0, optimum_noise=0.0, unlisted_cost=0.0
    )  # a reward that no rewrite moves
    assert "noise in R raises the optimum by –, rewrites not enumerated cost – or more" in sweep.sweep_table(
        [make_results(seed=i) | {"theory": flat} for i in (0, 1)]
    )
    assert "Δ1" not in sweep.sweep_table([make_results()])


def test_sweep_table_of_nothing_and_of_a_task_of_ones_own():
    assert sweep.sweep_table([]) == "no runs"
    text = sweep.sweep_table([make_results(task="mine")])
    assert "task mine" in text and "0.82" not in text and "all tasks" not in text


def test_a_run_that_measured_almost_nothing_has_dashes_in_its_row():
    results = make_results(oracle=None)
    for optional in ("config", "reward_model", "headroom", "wall_s", "preset"):
        del results[optional]
    for ratio in ("variance_ratio", "variance_ratio_within_requests"):
        del results[ratio], results[f"{ratio}_ci95"]
    for a in results["arms"].values():
        a.update(dict.fromkeys(a, None), mean=a["mean"])
    rewards, ratios = (line.split() for line in sweep.sweep_table([results]).splitlines() if line.startswith("0 "))
    assert rewards == ["0", "1.00", "–", "–", "1.80", *["–"] * 9]
    assert ratios == ["0", *["–"] * 4, "0.80", "[0.70,", "1.10]", *["–"] * 6]
