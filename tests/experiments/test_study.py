"""What all studies share: the command, what it refuses in one line, what a cell does and what is left behind."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from cells import cell_config, refused, started

from alignpro_mini.experiments import budget, estimators, frontier, grid, plane, real, study
from alignpro_mini.lab.cli import chosen
from alignpro_mini.options import UserError

STUDIES = [module.STUDY for module in (budget, estimators, frontier, grid, plane)]
HUNDREDS = study.Study(
    "hundreds",
    cell=lambda config, resume, numbers: {
        "task": config.task,
        "seed": config.seed,
        "value": config.seed + round(sum(numbers)),
    },
    table=lambda content: " ".join(str(run["value"]) for run in content["runs"]),
    figures={"": lambda content, path: path.write_text(f"{len(content['runs'])} runs")},
    options=(study.Option("numbers", "100", "numbers", study.positive_numbers),),
    varies=("ppo.kl_coef",),
    ignores=("oracle",),
    check=lambda configs, numbers: study.require(min(numbers) >= 5, f"--numbers: {min(numbers):g} is too few"),
)


def run(monkeypatch, out, *argv, one=HUNDREDS):
    monkeypatch.setattr("sys.argv", ["command", "--out", str(out), *argv])
    study.main(one)


def test_a_study_leaves_each_cells_results_its_numbers_and_its_figure(tmp_path, monkeypatch, capsys):
    run(monkeypatch, tmp_path, "--seed", "0,3", "--numbers", "100,200")
    told = capsys.readouterr().out
    stem = tmp_path / "hundreds-tiny"
    assert told == f"300 303\n\nnumbers: {stem}.json\nfigure: {stem}.png\n"
    cells = [json.loads((tmp_path / f"hundreds-tiny-quality-seed{k}" / "results.json").read_text()) for k in (0, 3)]
    assert json.loads(Path(f"{stem}.json").read_text()) == {"runs": cells}
    assert cells[1] == {"task": "quality", "seed": 3, "value": 303} and Path(f"{stem}.png").read_text() == "2 runs"


def test_a_cell_with_a_name_of_its_own_keeps_everything_in_its_folder(tmp_path, monkeypatch):
    run(monkeypatch, tmp_path, "--name", "mine")
    files = {p.name for p in (tmp_path / "hundreds-mine").iterdir()}
    assert files == {"results.json", "hundreds-tiny.json", "hundreds-tiny.png"}
    assert [p.name for p in tmp_path.iterdir()] == ["hundreds-mine"]


def test_a_process_of_jobs_leaves_the_common_files_to_its_parent(tmp_path, monkeypatch, capsys):
    run(monkeypatch, tmp_path, "--child")
    assert [p.name for p in tmp_path.rglob("*.*")] == ["results.json"] and capsys.readouterr().out == ""


def test_what_failed_is_told_after_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "run_all", lambda *given: ([{"value": 7}], [tmp_path / "x.log"]))
    with pytest.raises(SystemExit, match=r"experiments\.hundreds: error: 1 of 2 runs failed; see .*x\.log"):
        run(monkeypatch, tmp_path, "--seed", "0,1")
    assert capsys.readouterr().out.startswith("7\n")


def test_of_several_steps_one_is_named(monkeypatch, capsys):
    other = study.Study("other", cell=HUNDREDS.cell, table=HUNDREDS.table)
    call = started(monkeypatch, HUNDREDS, other, module="both")
    assert call == (
        ["-m", "alignpro_mini.experiments.both"],
        ["hundreds-tiny-quality-seed0"],
        False,
        {"numbers": [100]},
    )
    call = started(monkeypatch, HUNDREDS, other, argv=["--step", "other"], module="both")
    assert call[1:] == (["other-tiny-quality-seed0"], False, {})
    line = refused(monkeypatch, capsys, HUNDREDS, other, argv=["--step", "third"], module="both")
    assert line == "alignpro_mini.experiments.both: error: --step: 'third' is not one of hundreds, other"
    line = refused(monkeypatch, capsys, HUNDREDS, other, argv=["--step", "other", "--numbers", "7"], module="both")
    assert "unknown argument --numbers" in line, "the options of the other step"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--numbers", "a"], "--numbers: 'a' is not a list of numbers above 0"),
        (["--numbers", "7,3"], "--numbers: 3 is too few"),
        (["--ppo.kl_coef", "0.2"], "--ppo.kl_coef: it is varied here; leave it out"),
        (["--oracle.lr", "1"], "--oracle.lr: this study does not read it; leave it out"),
        (["--task", "nothing"], "--task: 'nothing' is not one of quality"),
    ],
)
def test_a_wrong_command_ends_in_one_line_before_any_work(argv, told, monkeypatch, capsys):
    line = refused(monkeypatch, capsys, HUNDREDS, argv=argv)
    assert line.startswith("alignpro_mini.experiments.hundreds: error: ") and told in line


@pytest.mark.parametrize(
    ("one", "argv", "told"),
    [
        (frontier, ["--lambdas", "0.1,0"], "--lambdas: '0.1,0' is not a list of numbers above 0"),
        (frontier, ["--lambdas", ""], "--lambdas: '' is not a list of numbers above 0"),
        (frontier, ["--theory.inputs", "0"], "--theory.inputs 0"),
        (frontier, ["--ppo.kl_coef", "0"], "--ppo.kl_coef: it is varied here"),
        (
            frontier,
            ["--oracle.adaptive_kl_target", "3"],
            "--oracle.adaptive_kl_target: it is varied here; leave it out",
        ),
        (
            frontier,
            ["--preset", "smollm2", "--data.prompts", "p", "--data.preferences", "q"],
            "the optimum is known for the embedded world",
        ),
        (
            grid,
            ["--cells", "P1-F3"],
            "--cells: 'P1-F3' is not one of all, P1-F1, P1-F2, P2-F1, P2-F2; did you mean P1-F",
        ),
        (grid, ["--cells", "P1-F1,"], "--cells: '' is not one of all"),
        (grid, ["--preset", "smollm2"], "--preset smollm2 has one: use tiny, small, gpt2"),
        (estimators, ["--oracle.lr", "1"], "this study does not read it; leave it out"),
        (estimators, ["--eval.best_of_n", "1"], "this study does not read it; leave it out"),
        (estimators, ["--ppo.rewrites_per_request", "4"], "it is varied here"),
        (estimators, ["--ppo.variant", "reinforce"], "it is varied here"),
        (estimators, ["--ppo.gamma", "1"], "it is varied here"),
        (estimators, ["--variants", "RLOO, K 3"], "'RLOO, K 3' is not one of"),
        (estimators, ["--task", "all"], "one task at a time"),
        (estimators, ["--theory.inputs", "0"], "the optimum is known"),
    ],
)
def test_what_a_study_cannot_do_is_told_in_one_line(one, argv, told, monkeypatch, capsys):
    line = refused(monkeypatch, capsys, one.STUDY, argv=argv)
    assert line.startswith(f"alignpro_mini.experiments.{one.STUDY.name}: error: ") and told in line


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--preset", "tiny"], "it is about a real model: give --preset smollm2"),
        (["--theory.inputs", "3"], "--theory.inputs is 3; it takes at least 4"),
        (["--also", "nonsense"], "--also: ['nonsense'] is no module:function"),
        (["--reward", "judge:m", "--theory.inputs", "4"], "--reward judge:MODEL is not listed: each answer would be"),
        (["--seed", "0,1", "--jobs", "2"], "--jobs: here the seeds come one after the other; leave it out"),
    ],
)
def test_what_a_step_of_the_real_model_cannot_do_is_told_in_one_line(argv, told, monkeypatch, capsys):
    steps = (real.LISTING, real.SUMMARY)
    line = refused(monkeypatch, capsys, *steps, argv=["--preset", "smollm2", *argv], module="real")
    assert line.startswith("alignpro_mini.experiments.real: error: ") and told in line


def test_options_and_names_of_a_command(monkeypatch):
    words = ["--lambdas", "0.05,0.2,0.05,0.0500000001", "--task", "attributes,attributes"]
    program, names, resume, own = started(monkeypatch, frontier.STUDY, argv=words)
    assert program == ["-m", "alignpro_mini.experiments.frontier"] and not resume
    assert names == ["frontier-tiny-attributes-seed0"] and own["lambdas"] == pytest.approx([0.05, 0.2])
    _, names, resume, own = started(monkeypatch, frontier.STUDY, argv=["--seed", "0,1", "--resume", "--jobs", "2"])
    assert names == [f"frontier-tiny-quality-seed{i}" for i in (0, 1)] and resume
    assert own == {"lambdas": [0.02, 0.05, 0.1, 0.2, 0.5]}
    _, names, _, own = started(monkeypatch, grid.STUDY, argv=["--cells", "P1-F1,P2-F2"])
    assert names == ["grid-tiny-quality-seed0"] and own == {"cells": ["P1-F1", "P2-F2"]}
    steps = (real.LISTING, real.SUMMARY)
    _, names, _, own = started(monkeypatch, *steps, argv=["--preset", "smollm2"], module="real")
    assert names == ["smollm2-chat-seed0"] and own == {"also": []}, "in the folder of train.py's run"


@pytest.mark.parametrize("one", STUDIES, ids=lambda one: one.name)
def test_every_option_that_a_study_leaves_out_is_one(one):
    known = study.parse_command_line(["--preset", "tiny"])[0][0]
    for name in (*one.varies, *one.ignores):
        place = known
        for part in name.split("."):
            assert hasattr(place, part), name
            place = getattr(place, part)


def test_numbers_and_names_are_read_or_refused():
    assert study.positive_numbers("0.1,0.2,0.1", "o") == [0.1, 0.2]
    assert study.whole_number("25", "o") == 25
    for text in ("nan", "0.1,inf", "a", "0.1,", "-1"):
        with pytest.raises(UserError, match="--o: .* is not a list of numbers above 0"):
            study.positive_numbers(text, "o")
    with pytest.raises(UserError, match="--o: '1.5' is not a whole number"):
        study.whole_number("1.5", "o")
    assert study.names_of(("a", "b"))("all", "o") == ["a", "b"]
    assert chosen("RLOO, K 4; clip 0.1", estimators.NAMES, "variants", ";") == ["RLOO, K 4", "clip 0.1"]


def test_a_part_of_a_cell_lies_in_its_folder_with_its_own_options(tmp_path, capsys):
    made = study.part(cell_config(tmp_path), False, "lam-0.3", {"ppo.kl_coef": 0.3})
    assert made.path == tmp_path / "g" / "lam-0.3" and capsys.readouterr().out == "--- g: lam-0.3\n"
    saved = json.loads((made.path / "config.json").read_text())
    assert saved["ppo"]["kl_coef"] == saved["oracle"]["kl_coef"] == 0.3, "the oracle follows"


def test_a_table_of_seeds_by_hand():
    rows = {("a", 0.1): [{"x": 1.0, "y": None}, {"x": 3.0, "y": 4.0}], ("b", 10): [{"x": 5.0, "y": 6.0}]}
    columns = {"twice x": lambda row: 2 * row["x"], "y": lambda row: row["y"]}
    first, second, third = study.seed_table(("task", "λ"), rows, columns).splitlines()
    assert first.split() == ["task", "λ", "twice", "x", "y"] and third.split() == ["b", "10", "10.0", "6.00"]
    half = 12.7062 * math.sqrt(8) / math.sqrt(2)  # t(1) 12.706; 2 and 6 have the standard deviation sqrt(8)
    assert second.split() == ["a", "0.1", "4.00", f"±{half:.1f}", "4.00", "(n", "1)"]


@pytest.mark.parametrize("guarded", [True, False])
def test_what_is_measured_is_what_the_guard_would_send(guarded, tmp_path):
    """Align-Pro was trained with it, and train.py evaluates with it; the arms see the reward that PPO sees."""
    shared = study.Stages(cell_config(tmp_path, guard=guarded), False)
    reward = shared.reward = SimpleNamespace(train=lambda x, y: [1.0] * len(y), report=None)
    shared.pi_f = "the frozen model"
    evaluator = shared.evaluator(shared.run, "any", ("a", "b"), shared.run.config.eval)
    assert (evaluator.guard, evaluator.requests, evaluator.frozen) == (guarded, ["a", "b"], "the frozen model")
    assert evaluator.reward is reward.train and evaluator.gold == shared.world.gold
