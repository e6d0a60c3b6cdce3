"""The grid end to end, on models far too small to learn: what is shared, what --resume reuses, which files are written."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from cells import cell_config
from results import PNG, make_results

from alignpro_mini.experiments import grid
from alignpro_mini.experiments.grid import grid_part
from alignpro_mini.lab import assess
from alignpro_mini.lab.config import preset
from alignpro_mini.lab.models import new_model
from alignpro_mini.lab.paper import CELLS, PAPER, PAPER_CELLS
from alignpro_mini.weights.pretrained import load_pretrained
from alignpro_mini.weights.tensors import load_state


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """One cell alone, then the whole grid with --resume: its folder and results."""
    out = tmp_path_factory.mktemp("grid")
    alone = grid.run_group(cell_config(out), resume=False, cells=("P2-F2",))
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    whole = grid.run_group(cell_config(out), resume=True, cells=CELLS)
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
    for cell, results in whole["cells"].items():
        # No prompter is in Delta1: it comes from the two tables of the cell's frozen model.
        tables = [
            load_state(folder / cell[3:] / "checkpoints" / f"{name}.safetensors")[0]["r"]
            for name in ("theory_oracle", "listing")
        ]
        assert results["theory"]["delta1"] == pytest.approx(float(tables[0].mean() - tables[1][:, 0].nanmean(1).mean()))
    assert [p.parent.parent.name for p in sorted(folder.rglob("listing.safetensors"))] == ["F1", "F2"]
    assert json.loads(json.dumps(whole)) == whole, "it can be written"


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

    def spy(run, world, pi_f, rho_sft, rho, reward, fixed, listing):
        cell = run.config.name
        P, F = cell.split("-")
        used = (pi_f.model, F, "frozen_lm"), (rho_sft.model, P, "prompter_sft"), (rho.model, cell, "align_pro")
        for model, part, name in used:
            kept = load_pretrained(group[0] / part / "checkpoints" / name)[0].state_dict()
            assert model.state_dict().keys() == kept.keys(), (cell, name)
            assert all(torch.equal(tensor, kept[key]) for key, tensor in model.state_dict().items()), (cell, name)
        own = json.loads((group[0] / F / "checkpoints" / "fixed_rewrite.json").read_text())
        assert fixed == own, "that of its frozen model"
        seen[cell] = len(used)
        return {}

    monkeypatch.setattr(assess, "evaluate_prompters", spy)
    monkeypatch.setattr(assess, "conclude", lambda run, world, arms: {})
    grid.run_group(cell_config(group[0].parent), resume=True, cells=CELLS)
    assert seen == dict.fromkeys(CELLS, 3)


def test_the_figures_hold_what_earlier_commands_left_beside_them(group, tmp_path):
    for seed in (0, 2):
        folder = tmp_path / f"grid-micro-quality-seed{seed}"
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(group[3] | {"seed": seed, "from": "before"}))
    fresh = [group[3] | {"seed": seed} for seed in (1, 2)]
    content = grid.with_earlier([cell_config(tmp_path, name="grid-micro-quality-seed1")], fresh)
    assert [(g["seed"], g.get("from")) for g in content["groups"]] == [(0, "before"), (1, None), (2, None)]
    alone = grid.with_earlier([cell_config(tmp_path, name="grid-mine")], fresh)
    assert [g["seed"] for g in alone["groups"]] == [1, 2], "a group with a --name of its own is drawn alone"


def test_one_cell_again_leaves_the_others_in_the_results(group):
    again = grid.run_group(cell_config(group[0].parent), resume=True, cells=("P1-F2",))
    assert again == group[3]  # all cells


def test_cells_of_two_commands_end_up_in_one_file(group, tmp_path):
    """The second command finds the first one's cell and keeps it in the results."""
    first = grid.run_group(cell_config(tmp_path), resume=False, cells=("P2-F1",))
    second = grid.run_group(cell_config(tmp_path), resume=True, cells=("P2-F2",))
    assert list(first["cells"]) == ["P2-F1"] and list(second["cells"]) == ["P2-F1", "P2-F2"]
    for cell in second["cells"]:  # both come out as in the whole grid, which was made in another order
        timeless = [{k: v for k, v in r["cells"][cell].items() if k != "wall_s"} for r in (second, group[3])]
        assert timeless[0] == timeless[1]


def test_a_second_start_without_resume_is_refused(group):
    with pytest.raises(FileExistsError, match="--resume"):
        grid.run_group(cell_config(group[0].parent), resume=False, cells=("P1-F1",))


def test_every_part_of_every_preset_can_be_built():
    for name in grid.SECOND:
        for part in ("F1", "F2", "P1", "P2", "reward", *CELLS):
            c = grid_part(preset(name), part)
            for shape in (c.frozen_model, c.prompter_model):
                assert (
                    new_model(dataclasses.replace(shape, n_layers=1), 300, torch.Generator(), "cpu").config.d_model
                    == shape.d_model
                )


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
    return [{"task": "quality", "seed": i, "cells": c, "preset": "tiny"} for i, c in enumerate(cells)]


def test_grid_table_averages_over_seeds_and_counts_cells_and_runs():
    text = grid.table({"groups": groups()})
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


def test_the_papers_cells_average_to_its_summary():
    for task, (name, gap, ratio) in PAPER.items():
        cells = [PAPER_CELLS[task, cell] for cell in CELLS]
        assert np.mean([(b - a) / (c - a) for a, b, c, *_ in cells]) == pytest.approx(gap, abs=0.02), name
        assert np.mean([w / v for *_, v, w, _ in cells]) == pytest.approx(ratio, abs=0.02), name


def test_grid_figures_are_drawn_for_any_part_of_the_grid(tmp_path):
    without = groups()
    for results in (c for group in without for c in group["cells"].values()):
        del results["arms"]["rlhf_oracle"]
    assert "between no fine-tuning and oracle: 0 of 0 cells" in grid.table({"groups": without})
    for i, found in enumerate((groups(), groups()[:1], without, [])):
        grid.figure({"groups": found}, tmp_path / f"{i}.png")
        grid.variance_figure({"groups": found}, tmp_path / f"v{i}.png")
        assert (tmp_path / f"{i}.png").read_bytes().startswith(PNG) and (
            tmp_path / f"v{i}.png"
        ).read_bytes().startswith(PNG)
