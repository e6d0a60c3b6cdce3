"""Over-optimisation in small: what is varied, what is measured, what is told."""

import json

import pytest
from cells import cell_config

from alignpro_mini.experiments import overoptimisation


def test_over_optimisation_end_to_end(tmp_path):
    run = overoptimisation.run_cells(
        cell_config(tmp_path, name="e", **{"eval.inputs": 8}), False, [64, 80], [0.1], [0, 1]
    )
    assert [(c["pairs"], c["mismatched"]) for c in run["cells"]] == [(64, 0), (64, 1), (80, 0), (80, 1)]
    saved = json.loads((tmp_path / "e" / "pairs-80-mismatched-0-lam-0.1" / "config.json").read_text())
    assert (saved["preferences"]["pairs"], saved["preferences"]["mismatched"]) == (80, 0.0)
    assert saved["ppo"]["kl_coef"] == 0.1
    for pairs, mismatched in ((64, 0), (64, 1), (80, 0), (80, 1)):
        checkpoints = tmp_path / "e" / f"pairs-{pairs}-mismatched-{mismatched}" / "checkpoints"
        facts = json.loads((checkpoints / "reward_model.json").read_text())
        drawn = facts["train_pairs"] + facts["heldout_pairs"] + facts["left_out"]
        again = 1.0 if mismatched else 0.0  # "mismatched 0": none that teaches to read x
        assert drawn == round(pairs * (1 + again + mismatched)), "each reward model learned from pairs of its own"
    for cell in run["cells"]:
        name = f"pairs-{cell['pairs']}-mismatched-{cell['mismatched']}"
        start, end = (
            json.loads((tmp_path / "e" / folder / "checkpoints" / "evaluation.json").read_text())
            for folder in (name, f"{name}-lam-0.1")
        )
        assert cell["gain"] == pytest.approx((end["mean"] - start["mean"]) / start["std"])
        assert cell["gold_gain"] == pytest.approx((end["gold_mean"] - start["gold_mean"]) / start["gold_std"])
        assert cell["kl"] == end["kl"] and start["kl"] == pytest.approx(0.0, abs=1e-6), "from the SFT prompter on"
    text = overoptimisation.table({"runs": [run, run]})
    assert len(text.splitlines()) == 5 and "±" in text
    overoptimisation.figure({"runs": [run]}, tmp_path / "o.png")
    assert (tmp_path / "o.png").stat().st_size > 1000
