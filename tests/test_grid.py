"""The grid end to end, on models far too small to learn: what is shared, what goes on after a kill, what is left behind."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from test_end_to_end import TINY

from alignpro_mini import config as config_module
from alignpro_mini import assess, grid, load_pretrained, pipeline
from alignpro_mini.checkpoint import load_state
from alignpro_mini.cli import parse_command_line, with_options
from alignpro_mini.config import ShapeConfig, grid_part, preset
from alignpro_mini.evaluation import Arm
from alignpro_mini.tables import CELLS


@pytest.fixture(autouse=True, scope="module")
def small():
    """One thread (another order of summation is another rounding) and a second pair of models as small as the first."""
    threads, second = torch.get_num_threads(), dict(config_module.SECOND)
    torch.set_num_threads(1)
    shape = ShapeConfig(d_model=32, n_layers=1, n_heads=2)
    config_module.SECOND["tiny"] = (dataclasses.replace(shape, d_model=16), dataclasses.replace(shape, d_model=48))
    yield
    torch.set_num_threads(threads)
    config_module.SECOND.update(second)


def small_grid(out, **changes):
    few = {
        "ppo.iterations": 2,
        "oracle.iterations": 2,
        "frozen_lm.steps": 30,
        "prompter_sft.steps": 30,
        "oracle.kl_target": 0.0,
    }
    return with_options(preset("tiny"), TINY | few | {"device": "cpu", "out": str(out), "name": "g"} | changes)


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """One cell alone, then the whole grid with --resume: its folder and results."""
    out = tmp_path_factory.mktemp("grid")
    alone = grid.run_group(small_grid(out), ("P2-F2",), resume=False)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    whole = grid.run_group(small_grid(out), CELLS, resume=True)
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
        assert results["theory"]["delta1"] == pytest.approx(float(tables[0].mean() - tables[1][:, 0].mean()))
    assert [p.parent.parent.name for p in sorted(folder.rglob("listing.safetensors"))] == ["F1", "F2"]
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(whole))


def test_a_cell_is_loaded_by_the_whole_grid_and_nothing_is_done_twice(group):
    folder, alone, before, whole = group
    assert list(alone["cells"]) == ["P2-F2"] and alone["swap"] == {}
    assert alone["cells"]["P2-F2"] == whole["cells"]["P2-F2"]
    assert before and all(p.stat().st_mtime_ns == stamp for p, stamp in before.items())


def test_the_parts_have_the_sizes_they_are_said_to_have(group):
    width = lambda part, model: json.loads((group[0] / part / "checkpoints" / model / "config.json").read_text())[
        "hidden_size"
    ]  # noqa: E731
    assert [
        width("F1", "frozen_lm"),
        width("F2", "frozen_lm"),
        width("P1", "prompter_sft"),
        width("P2", "prompter_sft"),
    ] == [32, 48, 32, 16]
    assert [width(cell, "align_pro") for cell in CELLS] == [32, 32, 16, 16]


def test_the_swap_puts_the_trained_prompter_before_the_other_model(group, monkeypatch):
    seen = {}

    def spy(run, task, other, rho_sft, rho, reward):
        weights = {
            name: load_pretrained(group[0] / part / "checkpoints" / model)[0]
            for name, part, model in (
                ("other", other_part(run.config.name), "frozen_lm"),
                ("rho", run.config.name[:5], "align_pro"),
                ("sft", run.config.name[:2], "prompter_sft"),
            )
        }
        same = lambda a, b: all(
            torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
        )  # noqa: E731
        seen[run.config.name[:5]] = (
            same(other.model, weights["other"]),
            same(rho.model, weights["rho"]),
            same(rho_sft.model, weights["sft"]),
        )
        return plain["no_finetuning"]

    other_part = lambda cell: {"F1": "F2", "F2": "F1"}[cell[3:5]]  # noqa: E731
    plain = {"no_finetuning": Arm(np.zeros((24, 1, 4)), None, np.zeros((24, 1)))}
    monkeypatch.setattr(assess, "evaluate_swapped", spy)
    monkeypatch.setattr(grid, "write_json", lambda path, tree: None)
    grid.run_group(small_grid(group[0].parent), CELLS, resume=True)
    assert seen == dict.fromkeys(CELLS, (True, True, True))


def test_the_swap_is_measured_against_both(group):
    swap, cells = group[3]["swap"], group[3]["cells"]
    assert {cell: s["in_front_of"] for cell, s in swap.items()} == {
        "P1-F1": "F2",
        "P1-F2": "F1",
        "P2-F1": "F2",
        "P2-F2": "F1",
    }
    for cell, s in swap.items():
        there = cell[:3] + s["in_front_of"]
        for key, arm in (("against_no_finetuning", "no_finetuning"), ("against_its_own_prompter", "align_pro")):
            assert s[key]["mean"] == pytest.approx(s["mean"] - cells[there]["arms"][arm]["mean"], abs=1e-9)
            assert s[key]["ci95"][0] <= s[key]["mean"] <= s[key]["ci95"][1]


def test_figures_and_numbers_are_left_behind(group):
    config = small_grid(group[0].parent)  # with a name of its own
    assert [p.name for p in grid.draw([group[3]], config)] == [
        "grid-tiny.png",
        "grid-tiny-variance.png",
        "grid-tiny.json",
    ]
    assert all(p.parent == group[0] and p.stat().st_size > 1000 for p in grid.draw([group[3]], config))


def test_the_figures_hold_what_earlier_commands_left_beside_them(group, tmp_path):
    for seed in (0, 2):
        folder = tmp_path / f"grid-tiny-quality-seed{seed}"
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(group[3] | {"seed": seed, "wall_s": {"F1": 1.0}}))
    fresh = [group[3] | {"seed": seed, "wall_s": {"F1": 2.0}} for seed in (1, 2)]
    *figures, numbers = grid.draw(fresh, small_grid(tmp_path, name="grid-tiny-quality-seed1"))
    assert all(p.parent == tmp_path and p.stat().st_size > 1000 for p in figures)
    assert [(g["seed"], g["wall_s"]["F1"]) for g in json.loads(numbers.read_text())["groups"]] == [
        (0, 1.0),
        (1, 2.0),
        (2, 2.0),
    ]


def test_one_cell_again_leaves_the_others_in_the_results(group):
    again = grid.run_group(small_grid(group[0].parent), ("P1-F2",), resume=True)
    assert again == group[3]  # all cells, all swaps, and the seconds of every part


def test_cells_of_two_commands_are_swapped_too(group, tmp_path):
    """The second command finds the first one's cell: the swap test needs both."""
    first = grid.run_group(small_grid(tmp_path), ("P2-F1",), resume=False)
    second = grid.run_group(small_grid(tmp_path), ("P2-F2",), resume=True)
    assert first["swap"] == {} and set(second["swap"]) == {"P2-F1", "P2-F2"}
    for key in ("cells", "swap"):  # and both come out as in the whole grid, which was made in another order
        for cell in ("P2-F1", "P2-F2"):
            timeless = [{k: v for k, v in r[key][cell].items() if k != "wall_s"} for r in (second, group[3])]
            assert timeless[0] == timeless[1]


def test_a_second_start_without_resume_is_refused(group):
    with pytest.raises(FileExistsError, match="--resume"):
        grid.run_group(small_grid(group[0].parent), ("P1-F1",), resume=False)


def test_every_part_of_every_preset_can_be_built():
    for name in config_module.SECOND:
        for part in ("F1", "F2", "P1", "P2", "reward", *CELLS):
            c = grid_part(preset(name), part)
            for shape in (c.frozen_model, c.prompter_model):
                assert (
                    pipeline.new_model(
                        dataclasses.replace(shape, n_layers=1), 300, torch.Generator(), "cpu"
                    ).config.d_model
                    == shape.d_model
                )
    with pytest.raises(ValueError, match="--preset smollm2 has one"):
        grid_part(preset("smollm2"), "F1")


@pytest.mark.parametrize(
    ("words", "cells"), [("all", CELLS), ("P2-F1", ("P2-F1",)), ("P1-F1,P2-F2", ("P1-F1", "P2-F2"))]
)
def test_cells_on_the_command_line(words, cells):
    runs, how = parse_command_line(["--grid", words, "--task", "reasoning", "--seed", "0,3"])
    assert how.cells == cells and [r.run_name for r in runs] == [
        "grid-tiny-reasoning-seed0",
        "grid-tiny-reasoning-seed3",
    ]


def test_an_unknown_cell_is_told(capsys):
    with pytest.raises(SystemExit):
        parse_command_line(["--grid", "P1-F3"])
    assert "--grid: 'P1-F3' is not one of all" in capsys.readouterr().err
