"""The grid end to end, on models far too small to learn: what is shared, what --resume reuses, which files are written."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from results import PNG, make_results

from alignpro_mini.experiments import grid, grid_report
from alignpro_mini.experiments.grid import grid_part
from alignpro_mini.lab import assess, pipeline
from alignpro_mini.lab.cli import with_options
from alignpro_mini.lab.config import ShapeConfig, preset
from alignpro_mini.lab.paper import CELLS, PAPER, PAPER_CELLS
from alignpro_mini.options import UserError
from alignpro_mini.weights.pretrained import load_pretrained
from alignpro_mini.weights.tensors import load_state


@pytest.fixture(autouse=True, scope="module")
def small():
    """One thread (another order of summation is another rounding) and a second pair of models as small as the first."""
    threads, second = torch.get_num_threads(), dict(grid.SECOND)
    torch.set_num_threads(1)
    shape = ShapeConfig(d_model=32, n_layers=1, n_heads=2)
    grid.SECOND["micro"] = (dataclasses.replace(shape, d_model=16), dataclasses.replace(shape, d_model=48))
    yield
    torch.set_num_threads(threads)
    grid.SECOND.update(second)


def small_grid(out, **changes):
    few = {"ppo.iterations": 2, "oracle.iterations": 2, "frozen_lm.steps": 30, "prompter_sft.steps": 30}
    return with_options(preset("micro"), few | {"device": "cpu", "out": str(out), "name": "g"} | changes)


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """One cell alone, then the whole grid with --resume: its folder and results."""
    out = tmp_path_factory.mktemp("grid")
    alone = grid.run_group(small_grid(out), resume=False, cells=("P2-F2",))
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    whole = grid.run_group(small_grid(out), resume=True, cells=CELLS)
    return out / "g", alone, before, whole


def test_every_cell_has_its_results_and_the_cells_of_a_model_share_its_arms(group):
    folder, _, _, whole = group
    assert tuple(whole["cells"]) == CELLS
    for cell, results in whole["cells"].items():
        assert json.loads((folder / cell / "results.json").read_text()) == results
        assert (results["task"], results["n_eval"]) == ("quality", 24) and results["theory"][
            "attainable_gain_share"
        ] is not None
    arms = {cell: results["arms"] for cell, results in whole["cells"].items()}
    for name in ("no_finetuning", "rlhf_oracle"):  # the paper's bars change with the prompter; these cannot
        assert arms["P1-F1"][name] == arms["P2-F1"][name] != arms["P1-F2"][name] == arms["P2-F2"][name]
    assert len({arms[cell]["align_pro"]["mean"] for cell in CELLS}) == 4
    for cell, results in whole[
        "cells"
    ].items():  # no prompter is in Delta1: from the two tables of the cell's frozen model
        tables = [
            load_state(folder / cell[3:] / "checkpoints" / f"{name}.safetensors")[0]["r"]
            for name in ("theory_oracle", "listing")
        ]
        assert results["theory"]["delta1"] == pytest.approx(float(tables[0].mean() - tables[1][:, 0].nanmean(1).mean()))
    assert [p.parent.parent.name for p in sorted(folder.rglob("listing.safetensors"))] == ["F1", "F2"]
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(whole))


def test_a_cell_is_loaded_by_the_whole_grid_and_nothing_is_done_twice(group):
    folder, alone, before, whole = group
    assert list(alone["cells"]) == ["P2-F2"]
    assert alone["cells"]["P2-F2"] == whole["cells"]["P2-F2"]
    assert before and all(p.stat().st_mtime_ns == stamp for p, stamp in before.items())


def test_the_parts_have_the_sizes_they_are_said_to_have(group):
    width = lambda part, model: json.loads((group[0] / part / "checkpoints" / model / "config.json").read_text())[
        "hidden_size"
    ]
    assert [
        width("F1", "frozen_lm"),
        width("F2", "frozen_lm"),
        width("P1", "prompter_sft"),
        width("P2", "prompter_sft"),
    ] == [32, 48, 32, 16]
    assert [width(cell, "align_pro") for cell in CELLS] == [32, 32, 16, 16]


def test_a_cell_is_evaluated_with_its_own_prompters_and_frozen_model(group, monkeypatch):
    seen = {}

    def spy(run, world, pi_f, rho_sft, rho, reward, listing):
        cell = run.config.name
        P, F = cell.split("-")
        used = (pi_f.model, F, "frozen_lm"), (rho_sft.model, P, "prompter_sft"), (rho.model, cell, "align_pro")
        for model, part, name in used:
            kept = load_pretrained(group[0] / part / "checkpoints" / name)[0].state_dict()
            assert model.state_dict().keys() == kept.keys(), (cell, name)
            assert all(torch.equal(tensor, kept[key]) for key, tensor in model.state_dict().items()), (cell, name)
        seen[cell] = len(used)
        return {}

    monkeypatch.setattr(assess, "evaluate_prompters", spy)
    monkeypatch.setattr(assess, "conclude", lambda run, world, arms: {})
    monkeypatch.setattr(grid, "write_json", lambda path, tree: None)
    grid.run_group(small_grid(group[0].parent), resume=True, cells=CELLS)
    assert seen == dict.fromkeys(CELLS, 3)


def test_figures_and_numbers_are_left_behind(group):
    config = small_grid(group[0].parent)  # with a name of its own
    assert [p.name for p in grid.draw([group[3]], config)] == [
        "grid-micro.png",
        "grid-micro-variance.png",
        "grid-micro.json",
    ]
    assert all(p.parent == group[0] and p.stat().st_size > 1000 for p in grid.draw([group[3]], config))


def test_the_figures_hold_what_earlier_commands_left_beside_them(group, tmp_path):
    for seed in (0, 2):
        folder = tmp_path / f"grid-micro-quality-seed{seed}"
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(group[3] | {"seed": seed, "wall_s": {"F1": 1.0}}))
    fresh = [group[3] | {"seed": seed, "wall_s": {"F1": 2.0}} for seed in (1, 2)]
    *figures, numbers = grid.draw(fresh, small_grid(tmp_path, name="grid-micro-quality-seed1"))
    assert all(p.parent == tmp_path and p.stat().st_size > 1000 for p in figures)
    assert [(g["seed"], g["wall_s"]["F1"]) for g in json.loads(numbers.read_text())["groups"]] == [
        (0, 1.0),
        (1, 2.0),
        (2, 2.0),
    ]


def test_one_cell_again_leaves_the_others_in_the_results(group):
    again = grid.run_group(small_grid(group[0].parent), resume=True, cells=("P1-F2",))
    assert again == group[3]  # all cells, and the seconds of every part


def test_cells_of_two_commands_end_up_in_one_file(group, tmp_path):
    """The second command finds the first one's cell and keeps it in the results."""
    first = grid.run_group(small_grid(tmp_path), resume=False, cells=("P2-F1",))
    second = grid.run_group(small_grid(tmp_path), resume=True, cells=("P2-F2",))
    assert list(first["cells"]) == ["P2-F1"] and list(second["cells"]) == ["P2-F1", "P2-F2"]
    assert json.loads((tmp_path / "g" / "results.json").read_text()) == json.loads(json.dumps(second))
    for cell in second["cells"]:  # both come out as in the whole grid, which was made in another order
        timeless = [{k: v for k, v in r["cells"][cell].items() if k != "wall_s"} for r in (second, group[3])]
        assert timeless[0] == timeless[1]


def test_a_second_start_without_resume_is_refused(group):
    with pytest.raises(FileExistsError, match="--resume"):
        grid.run_group(small_grid(group[0].parent), resume=False, cells=("P1-F1",))


def test_every_part_of_every_preset_can_be_built():
    for name in grid.SECOND:
        for part in ("F1", "F2", "P1", "P2", "reward", *CELLS):
            c = grid_part(preset(name), part)
            for shape in (c.frozen_model, c.prompter_model):
                assert (
                    pipeline.new_model(
                        dataclasses.replace(shape, n_layers=1), 300, torch.Generator(), "cpu"
                    ).config.d_model
                    == shape.d_model
                )
    with pytest.raises(UserError, match="--preset smollm2 has one"):
        grid_part(preset("smollm2"), "F1")


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("words", "cells"), [("all", CELLS), ("P2-F1", ("P2-F1",)), ("P1-F1,P2-F2", ("P1-F1", "P2-F2"))]
)
def test_cells_on_the_command_line(words, cells, monkeypatch):
    asked = []

    def run_all(program, configs, how, one):
        asked.append((program, [c.run_name for c in configs], how.resume, one.func, one.keywords))
        return [], []

    monkeypatch.setattr(grid, "run_all", run_all)
    command = ["grid", "--cells", words, "--task", "reasoning", "--seed", "0,3", "--resume"]
    monkeypatch.setattr("sys.argv", command)
    grid.main()
    program, names = ["-m", "alignpro_mini.experiments.grid"], [f"grid-tiny-reasoning-seed{i}" for i in (0, 3)]
    assert asked == [(program, names, True, grid.run_group, {"cells": list(cells)})]


def ended(monkeypatch, capsys, *argv) -> str:
    """The one line with which the command ends for these arguments."""
    monkeypatch.setattr(grid, "run_all", lambda *given: pytest.fail("it began"))
    monkeypatch.setattr("sys.argv", ["grid", *argv])
    with pytest.raises(SystemExit) as stop:
        grid.main()
    told = capsys.readouterr().err if stop.value.code == 2 else stop.value.code
    (line,) = [line for line in told.splitlines() if line and not line.startswith("usage:")]
    return line


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--cells", "P1-F3"], "--cells: 'P1-F3' is not one of all, P1-F1, P1-F2, P2-F1, P2-F2; did you mean P1-F"),
        (["--cells", ""], "--cells: '' is not one of all"),
        (["--cells", "P1-F1,"], "--cells: '' is not one of all"),
        (
            ["--preset", "smollm2", "--data.prompts", "p", "--data.preferences", "q"],
            "--preset smollm2 has one: use tiny, small, gpt2",
        ),
        (["--ppo.clip", "0.2"], "it is called --ppo.clip_range now"),
    ],
)
def test_an_unknown_cell_is_told(argv, told, monkeypatch, capsys):
    line = ended(monkeypatch, capsys, *argv)
    assert line.startswith("alignpro_mini.experiments.grid: error: ") and told in line


@pytest.mark.parametrize("child", [False, True])
def test_only_the_parent_process_draws_the_shared_figures(group, child, tmp_path, monkeypatch, capsys):
    """The figures show all groups, so a process of --jobs must not draw them too."""
    monkeypatch.setattr(grid, "run_all", lambda program, configs, how, one: ([group[3]], []))
    monkeypatch.setattr("sys.argv", ["grid", "--out", str(tmp_path), *["--child"] * child])
    grid.main()
    figures = {"grid-micro.png", "grid-micro-variance.png", "grid-micro.json"}
    assert {p.name for p in tmp_path.iterdir()} == (set() if child else figures)
    out = capsys.readouterr().out
    assert out == "" if child else "P2-F2" in out and "figures: " in out


def test_what_failed_is_told_after_the_table(group, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grid, "run_all", lambda program, configs, how, one: ([group[3]], [tmp_path / "x.log"]))
    monkeypatch.setattr("sys.argv", ["grid", "--seed", "0,1", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"experiments\.grid: error: 1 of 2 runs failed; see .*x\.log"):
        grid.main()
    assert "P2-F2" in capsys.readouterr().out


# ---------------------------------------------------------------- the table and the figures


def cell(base, pro, oracle, variances, seed=0, task="quality", share=0.97) -> dict:
    run = make_results(base=base, pro=pro, oracle=oracle, seed=seed, task=task) | {
        "theory": {"attainable_gain_share": share}
    }
    for name, variance in zip(("no_finetuning", "align_pro", "rlhf_oracle"), variances):
        run["arms"][name]["variance"] = variance
    return run


def groups() -> list[dict]:
    """Two seeds of two cells; P1-F2 holds every claim on average, P2-F1 none: there seed 1 alone is between."""
    cells = [
        {"P1-F2": cell(0.0, 1.0, 2.0, (1.0, 0.4, 0.5), 0), "P2-F1": cell(0.0, 2.2, 2.0, (1.0, 1.5, 0.5), 0)},
        {"P1-F2": cell(0.0, 1.4, 2.0, (1.2, 0.4, 0.7), 1), "P2-F1": cell(0.0, 1.9, 2.0, (1.0, 0.9, 0.5), 1)},
    ]
    wall = {"F1": 3000.0, "P1-F2": 600.0}  # an hour
    return [{"task": "quality", "seed": i, "cells": c, "preset": "tiny", "wall_s": wall} for i, c in enumerate(cells)]


def test_grid_table_averages_over_seeds_and_counts_cells_and_runs():
    text = grid_report.grid_table(groups())
    rows = {line.split()[1]: line for line in text.splitlines() if line.startswith("quality")}
    assert list(rows) == ["P1-F2", "P2-F1"]
    # P1-F2: Align-Pro's mean 1.2, t(1) 12.706 * 0.2828 / sqrt(2) = 2.54; gap (0.5 + 0.7) / 2
    assert "1.20 ±2.54" in rows["P1-F2"] and "0.60 ±1.27" in rows["P1-F2"] and "(" not in rows["P1-F2"]
    assert "between no fine-tuning and oracle: 1 of 2 cells, 3 of 4 single runs (paper: 12 of 12 cells)" in text
    assert "variance below no fine-tuning: 1 of 2 cells, 3 of 4 single runs (paper: 12 of 12 cells)" in text
    assert "variance below the oracle: 1 of 2 cells, 2 of 4 single runs (paper: 10 of 12 cells)" in text
    assert "at least 0.95 of the attainable gain: 4 of 4 single runs" in text
    assert "Align-Pro above no fine-tuning with interval above zero: 4 of 4 single runs" in text
    parts = next(
        line for line in text.splitlines() if line.startswith("  Align-Pro  ")
    ).split()  # P1-F2 and P2-F1, two seeds each
    assert "task quality, all cells" in text and float(parts[1]) == pytest.approx((0.4 + 1.5 + 0.4 + 0.9) / 4)
    assert "all stages of all parts: 2.00 hours one after the other, 60 to 60 minutes a task and seed" in text
    assert "all stages" not in grid_report.grid_table([g | {"wall_s": {}} for g in groups()])


def test_the_papers_cells_average_to_its_summary():
    for task, (name, gap, ratio) in PAPER.items():
        cells = [PAPER_CELLS[task, cell] for cell in CELLS]
        assert np.mean([(b - a) / (c - a) for a, b, c, *_ in cells]) == pytest.approx(gap, abs=0.02), name
        assert np.mean([w / v for *_, v, w, _ in cells]) == pytest.approx(ratio, abs=0.02), name


def test_grid_figures_are_drawn_for_any_part_of_the_grid(tmp_path):
    without = groups()
    for results in (c for group in without for c in group["cells"].values()):
        del results["arms"]["rlhf_oracle"]
    assert "between no fine-tuning and oracle: 0 of 0 cells" in grid_report.grid_table(without)
    for i, found in enumerate((groups(), groups()[:1], without, [])):
        grid_report.grid_figure(found, tmp_path / f"{i}.png")
        grid_report.variance_figure(found, tmp_path / f"v{i}.png")
        assert (tmp_path / f"{i}.png").read_bytes().startswith(PNG) and (
            tmp_path / f"v{i}.png"
        ).read_bytes().startswith(PNG)
