"""a10: the student's functions in a package of their own, and the points of five finished runs."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "tutorials" / "assignments"
sys.path[:0] = [str(PLACE), str(PLACE / "a10_your_own"), str(ROOT / "tests")]

import cut  # noqa: E402
import grade  # noqa: E402
import look  # noqa: E402
import own_run  # noqa: E402
import warm  # noqa: E402
from catalogue import ASSIGNMENTS  # noqa: E402
from submissions import reference  # noqa: E402

from alignpro_mini.lab.config import preset  # noqa: E402

# ---------------------------------------------------------------- points

# What a run leaves, as far as it is graded; the numbers are of the size that the default run has.
RESULTS = {
    "task": "quality",
    "arms": {
        "untrained_prompter": {"mean": 0.01, "difference": {"mean": 0.17, "ci95": [0.10, 0.23]}},
        "align_pro": {"mean": 1.02, "difference": {"mean": 1.18, "ci95": [1.13, 1.23]}},
    },
    "over_fixed": 0.4,
    "over_fixed_ci95": [0.35, 0.45],
    "variance_ratio_within_requests": 0.59,
    "variance_ratio_within_requests_ci95": [0.53, 0.65],
    "theory": {"attainable_gain_share": 0.977, "regularised_gap": 0.0184007, "lambda_kl_to_optimum": 0.0184007},
}


def results(seed: int) -> dict:
    found = json.loads(json.dumps(RESULTS)) | {"seed": seed}
    found["arms"]["align_pro"]["mean"] += seed / 100  # no two runs are the same
    return found


def options(seed: int) -> dict:
    config = dataclasses.replace(preset("tiny"), seed=seed, out="elsewhere", device="cpu", dtype="float32")
    return dataclasses.asdict(config)


def write(folder: Path, seed: int, name: str = "", change=lambda config, found: None) -> Path:
    place = folder / (name or f"run-{seed}")
    place.mkdir(parents=True)
    config, found = options(seed), results(seed)
    change(config, found)
    (place / "config.json").write_text(json.dumps(config))
    (place / "results.json").write_text(json.dumps(found))
    model = place / "checkpoints" / "align_pro"  # a model has a config.json, too
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    return place


@pytest.fixture
def runs(tmp_path):
    """Five finished runs, the folders of any name."""
    for seed in range(5):
        write(tmp_path, seed, name=f"{'edcba'[seed]}/mine")
    return tmp_path


def lost(folder: Path) -> dict[str, int]:
    """{check: points that it lost}; a10 always has 100 points in all."""
    report = own_run.graded(folder)
    assert report.total("max_score") == 100 and len(report.tests) == 26
    return {t["name"]: t["max_score"] - t["score"] for t in report.tests if t["score"] < t["max_score"]}


def output(folder: Path, name: str) -> str:
    return next(t["output"] for t in own_run.graded(folder).tests if t["name"].startswith(name))


FIVE = "five finished runs, default options, seeds 0 to 4"
OF_A_SEED = {own_run.NAMES[check]: points for check, points in own_run.CHECKS.items()}


def of_seed(seed: int, *checks: str) -> dict[str, int]:
    names = [own_run.NAMES[check] for check in checks] or OF_A_SEED
    return {f"seed {seed}: {name}": OF_A_SEED[name] for name in names}


def test_five_finished_runs_get_every_point(runs):
    assert lost(runs) == {}


def test_an_untrained_prompter_loses_all_but_the_theory(runs):
    """Its own numbers in place of Align-Pro's. Its gap is consistent: nothing of the theory's 2 points is lost."""
    for place in runs.rglob("results.json"):
        found = json.loads(place.read_text())
        found["arms"]["align_pro"]["difference"] = found["arms"]["untrained_prompter"]["difference"]
        found |= {"variance_ratio_within_requests_ci95": [1.0, 1.18], "over_fixed_ci95": [-0.4, -0.3]}
        found["theory"] |= {"attainable_gain_share": 0.0, "regularised_gap": 0.81, "lambda_kl_to_optimum": 0.81}
        place.write_text(json.dumps(found))
    wanted = [of_seed(seed, "gain", "fixed", "share", "variance") for seed in range(5)]
    assert lost(runs) == {name: points for each in wanted for name, points in each.items()}
    assert sum(lost(runs).values()) == 80


CHANGES = {  # one number of seed 2's run: what it costs
    "share of 0": (("theory", "attainable_gain_share"), 0.0, "share"),
    "share just too low": (("theory", "attainable_gain_share"), own_run.LEAST_SHARE - 1e-4, "share"),
    "share above the optimum's": (("theory", "attainable_gain_share"), 1.01, "share"),
    "no attainable gain": (("theory", "attainable_gain_share"), None, "share"),
    "gain overlaps the untrained one's": (("arms", "align_pro", "difference", "ci95"), [0.22, 1.2], "gain"),
    "gain from one number": (("arms", "align_pro", "difference", "ci95"), [1.2], "gain"),
    "gain turned around": (("arms", "align_pro", "difference", "ci95"), [1.2, 1.1], "gain"),
    "no untrained arm": (("arms", "untrained_prompter"), None, "gain"),
    "arms of another kind": (("arms",), "none", "gain"),
    "no better than the fixed rewrite": (("over_fixed_ci95",), [0.0, 0.1], "fixed"),
    "no fixed rewrite": (("over_fixed_ci95",), None, "fixed"),
    "variance as before": (("variance_ratio_within_requests_ci95",), [0.9, 1.0], "variance"),
    "variance not a number": (("variance_ratio_within_requests_ci95",), [float("nan")] * 2, "variance"),
    "variance of words": (("variance_ratio_within_requests_ci95",), ["0.5", "0.6"], "variance"),
    "gap without its distance": (("theory", "lambda_kl_to_optimum"), 0.018402, "theory"),
    "gap true": (("theory", "regularised_gap"), True, "theory"),
}


@pytest.mark.parametrize(("keys", "value", "check"), CHANGES.values(), ids=CHANGES)
def test_one_wrong_number_costs_its_own_points(keys, value, check, runs):
    shutil.rmtree(runs / "c")

    def change(config, found):
        for key in keys[:-1]:
            found = found[key]
        found[keys[-1]] = value

    write(runs, 2, change=change)
    assert lost(runs) == of_seed(2, check)


def test_a_missing_seed_and_an_empty_folder(runs, tmp_path_factory):
    shutil.rmtree(runs / "d")
    assert lost(runs) == {FIVE: 10} | of_seed(1)
    assert output(runs, FIVE) == "seed 1: no run of task quality"
    assert sum(lost(tmp_path_factory.mktemp("nothing")).values()) == 100


def test_the_same_seed_five_times(runs):
    """As it is: one seed of five. With other seeds written into the files: a copy."""
    for seed in range(1, 5):
        shutil.rmtree(runs / "edcba"[seed])
        write(runs, 0, name=f"again-{seed}")
    without = {name: points for seed in range(1, 5) for name, points in of_seed(seed).items()}
    assert lost(runs) == {FIVE: 10} | without
    assert "again-2" in own_run.graded(runs).notes
    for seed in range(1, 5):
        for name in ("config.json", "results.json"):
            file = runs / f"again-{seed}" / name
            file.write_text(json.dumps(json.loads(file.read_text()) | {"seed": seed}))
    assert lost(runs) == {FIVE: 10} | without
    assert "its numbers are those of seed 0: it is a copy" in output(runs, "seed 3: share")


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("results.json", '{"task": "quality", "seed": 2, "arms": {"no_', "results.json cannot be read (Unterminated"),
        ("results.json", "[1, 2]", "results.json holds no JSON object"),
        ("results.json", None, "results.json is missing: the run is not finished, go on with --resume"),
        ("results.json", b"\xff\xfe", "results.json cannot be read ("),
        ("results.json", '{"task": "quality", "seed": 3}', "seed is 2 in config.json and 3 in results.json"),
        ("config.json", "{", "config.json cannot be read ("),
    ],
    ids=["half", "list", "none", "bytes", "another seed", "config"],
)
def test_a_broken_file_is_a_failed_check_with_a_message(file, text, told, runs):
    path = runs / "c" / "mine" / file
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert lost(runs) == {FIVE: 10} | (of_seed(2) if file == "results.json" else {})
    assert told in output(runs, FIVE) and "seed 2 (mine)" in output(runs, FIVE)
    if file == "results.json":
        assert told in output(runs, "seed 2: share")


def test_other_options_are_named_and_cost_ten_points(runs):
    def change(config, found):
        config["ppo"]["iterations"] = 600
        config["theory"].pop("answers")
        config["luck"] = 7

    shutil.rmtree(runs / "a")
    write(runs, 4, change=change)
    assert lost(runs) == {FIVE: 10}
    said = "not the default options: luck is 7, not not given; ppo.iterations is 600, not 400; theory.answers is not given, not 16"
    assert output(runs, FIVE) == f"seed 4 (run-4): {said}"
    write(runs, 4, name="as-it-should-be")
    assert lost(runs) == {}, "of two runs of a seed the one with the default options counts"
    write(runs, 0, "words", lambda config, found: (config.update(task="reasoning"), found.update(task="reasoning")))
    assert lost(runs) == {} and "words" in own_run.graded(runs).notes


def test_the_report_says_whose_functions_ran(runs):
    assert "not known: no graft.json" in own_run.graded(runs).notes
    (runs / "graft.json").write_text('{"yours": ["a1", "a5"], "the package\'s own": ["a2"]}')
    for folder in (runs, runs / "a"):
        assert own_run.graded(folder).notes.endswith("functions of the student: a1, a5; of the package: a2")
    (runs / "graft.json").write_text("[")
    assert "not known: no graft.json" in own_run.graded(runs).notes


def test_the_command_prints_points_and_notes(runs, capsys, monkeypatch, tmp_path):
    out = tmp_path / "points.json"
    monkeypatch.setattr(sys, "argv", ["grade.py", "a10", str(runs), "--json", str(out)])
    grade.main()
    assert "100 / 100  Your own Align-Pro: all checks passed\nwhose functions" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert len(found["tests"]) == 26 and "no graft.json" in found["output"]


def test_the_handout_says_what_is_graded():
    text = (PLACE / "a10_your_own" / "README.md").read_text(encoding="utf-8")
    for part in (
        "## Goal",
        "## By hand",
        "## Check your work",
        "## Written question",
        "Time:",
        "--graft",
        "grade.py a10 ",
    ):
        assert part in text, part
    assert str(own_run.LEAST_SHARE) in text and "10⁻⁶" in text and "949 s" in text
    for name, points in OF_A_SEED.items():
        assert f"5 × {points}" in text, name
    assert max(map(len, text.splitlines())) <= 150
    assert "\n".join(look.table(json.loads((PLACE / "a10_your_own" / "ranges.json").read_text()))) in text


# ---------------------------------------------------------------- where a run is off


def finished(folder: Path, share: float, steps: int = 40) -> Path:
    """A folder with what look.py reads, learned reward and KL rising with the step."""
    found = results(0) | {"reward_model": {"swap_accuracy": {"wish": 0.9}}}
    found["theory"]["attainable_gain_share"] = share
    rows = [{"stage": stage, "heldout_loss": share / 4} for stage in ("frozen_lm", "prompter_sft")]
    ppo = {"stage": "align_pro", "clip_fraction": 0.0}
    rows += [ppo | {"kl_k1": 0.05 * i, "score_mean": 0.02 * i} for i in range(steps)]
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(found))
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_a_range_is_the_prediction_interval_of_one_more_run(tmp_path):
    assert look.prediction_interval([1.0, 2.0, 3.0]) == pytest.approx(
        [2 - 4.303 * (4 / 3) ** 0.5, 2 + 4.303 * (4 / 3) ** 0.5]
    )
    runs = [look.Run(finished(tmp_path / str(i), share)) for i, share in enumerate((0.8, 0.9, 0.85))]
    ranges = look.measured(runs)
    assert all(low <= read(run) <= high for run in runs for (*_, read, _), (low, high) in zip(look.ROWS, ranges))
    assert ranges[8][1] == 1.0, "no share is above 1"
    assert [line[:3] for line in look.look(runs[0], ranges)] == ["   "] * len(look.ROWS)


def test_a_number_that_is_off_says_where_to_look(tmp_path):
    ranges = json.loads((PLACE / "a10_your_own" / "ranges.json").read_text())
    run = look.Run(finished(tmp_path / "run", share=0.1))
    del run.results["reward_model"]
    told = "\n".join(look.look(run, ranges))
    assert re.search(r"^off +0.1 .*share of the attainable gain.*: a1 `whiten`", told, flags=re.MULTILINE)
    assert "missing   `reward_model.swap_accuracy.wish` in `results.json`: a4" in told


# ---------------------------------------------------------------- the package with the student's functions

# Sizes that learn nothing; every stage of train.py runs.
NANO = """--device cpu --vocab_size 300 --world.eval_requests 16 --sampling.max_new_tokens 6 --ppo.max_new_tokens 6
--oracle.max_new_tokens 6 --frozen_model.d_model 16 --frozen_model.n_layers 1 --frozen_model.n_heads 2
--prompter_model.d_model 16 --prompter_model.n_layers 1 --prompter_model.n_heads 2 --frozen_lm.steps 3
--frozen_lm.examples 60 --frozen_lm.heldout_examples 8 --prompter_sft.steps 3 --prompter_sft.examples 60
--prompter_sft.heldout_examples 8 --preferences.pairs 32 --reward_model.batch_size 8 --preferences.normalise_on 8
--ppo.iterations 1 --ppo.batch_size 8 --oracle.iterations 1 --oracle.batch_size 8 --eval.inputs 4
--eval.headroom_inputs 2 --eval.bootstrap 20 --theory.inputs 2 --theory.answers 2 --theory.more_answers 2
--theory.samples 1""".split()
GAE = cut.definition(cut.source_of("rl_math"), ["gae"])
ASSEMBLE = cut.definition(cut.source_of("rl_math"), ["assemble_rewards"])
TORCH = "from __future__ import annotations\n\nimport torch\nfrom torch import Tensor\n\n"


def train(place: Path, out: Path, *more: str) -> None:
    # The real package comes by PYTHONPATH, as it would by `pip install -e`: behind the folder of train.py.
    command = [place / "train.py", *NANO, "--out", out, *more]
    done = warm.run(command, place, {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize("seeds", ["0", pytest.param("0-1", marks=pytest.mark.slow)])
def test_sub_processes_run_the_students_functions(tmp_path, seeds):
    """An entropy of 123 is seen in the log of each run; gae, from the same file, is right; the others are the package's."""
    mine = tmp_path / "mine"
    mine.mkdir()
    visible = "def _value(): return 123.0\n\ndef entropy(logits):\n    return torch.full(logits.shape[:-1], _value())"
    written = "\n".join(reference("a1", {"rl_math.entropy": visible}))
    (mine / "a1.py").write_text(written)
    (mine / "diary.py").write_text("raise RuntimeError")
    out = tmp_path / "copy"
    out.mkdir()  # an empty folder may be there
    told = own_run.graft(mine, out)
    assert "a package that runs your 7 functions of a1" in told and "not used: diary.py" in told
    assert "a5.py is not in" in told and "the package's own functions stay (assemble_rewards, gae)" in told
    train(out, tmp_path / "runs", "--seed", seeds, "--jobs", "2")
    logs = sorted((tmp_path / "runs").glob("tiny-quality-seed*/metrics.jsonl"))
    assert len(logs) == (2 if seeds == "0-1" else 1)
    for log in logs:
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        assert {row["entropy"] for row in rows if "entropy" in row} == {123.0}
    front = (out / "alignpro_mini" / "rl_math.py").read_text()
    assert "raise NotImplementedError" in cut.definition(front, ["entropy"]) and GAE in front
    assert own_run.whose(out / "runs") == "functions of the student: a1; of the package: a2, a3, a4, a5, a6, a7, a8"


@pytest.mark.slow
def test_the_reference_grafted_gives_the_same_numbers(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    for key in ASSIGNMENTS:
        (mine / f"{key}.py").write_text("\n".join(reference(key)))
    own_run.graft(mine, tmp_path / "copy")
    for place, out in ((ROOT, "plain"), (tmp_path / "copy", "grafted")):
        train(place, tmp_path / out)
    found = [
        json.loads((tmp_path / out / "tiny-quality-seed0" / "results.json").read_text()) for out in ("plain", "grafted")
    ]
    for each in found:
        each.pop("wall_s")
    assert found[0] == found[1]


BROKEN = {
    "no function": (TORCH + ASSEMBLE, "a5.py has no gae; mend it, or graft without a5.py: then the package's own"),
    "no import": (
        TORCH + "import nothing_here\n" + GAE,
        "a5.py does not import, line 6: ModuleNotFoundError: No module",
    ),
    "no Python": (TORCH + "def gae(:", "a5.py, line 6 is not Python (invalid syntax"),
    "a stub": (
        (PLACE / "a5_credit" / "submission.py").read_text(),
        "a5.py, line 9: assemble_rewards is not written yet",
    ),
    "an exit": (TORCH + "raise SystemExit(0)\n", "a5.py does not import, line 6: SystemExit: 0"),
    "the end": (TORCH + "import os\nos._exit(3)\n", "the import ended with status 3"),
}


@pytest.mark.parametrize(
    "case",
    [*(pytest.param(c, marks=pytest.mark.slow) for c in ("no import", "an exit", "the end"))]
    + ["no function", "no Python", "a stub"],
)
def test_what_is_wrong_with_a_file_is_said_and_nothing_is_written(case, tmp_path):
    text, told = BROKEN[case]
    (tmp_path / "a5.py").write_text(text)
    with pytest.raises(SystemExit) as error:
        own_run.graft(tmp_path, tmp_path / "copy")
    assert told in str(error.value) and not (tmp_path / "copy").exists()


def test_nothing_is_lost_and_nothing_comes_of_nothing(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "kept").write_text("text")
    for out in (tmp_path, tmp_path / "kept"):
        with pytest.raises(SystemExit, match="is there and not empty"):
            own_run.graft(tmp_path / "mine", out)
    with pytest.raises(SystemExit, match="holds none of a1.py, a2.py"):
        own_run.graft(tmp_path / "mine", tmp_path / "copy")
    assert (tmp_path / "kept").read_text() == "text"
