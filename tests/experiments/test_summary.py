"""Several seeds of a real model counted together, by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from alignpro_mini.experiments import summary
from alignpro_mini.lab.config import preset
from alignpro_mini.options import UserError
from alignpro_mini.weights.tensors import save_state, write_json


def normal(mean: float, sd: float, seed: int, requests: int = 400) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, sd, (requests, 2, 2))


def seeds(oracle: float = 4.0) -> list[dict[str, np.ndarray]]:
    """Two seeds whose rewards have means of their own: plain sd 2 and 1, Align-Pro's 1 and 0.5, one above."""
    made = []
    for k, (level, sd) in enumerate(((0.0, 2.0), (10.0, 1.0))):
        plain, ours, best = normal(level, sd, k), normal(level + 1, sd / 2, k + 10), normal(level + oracle, sd, k + 20)
        made.append({"no_finetuning": plain, "align_pro": ours, "rlhf_oracle": best, "closed_form": ours[:9]})
    return made


def test_the_ratio_is_that_of_the_mean_variances_and_no_seeds_level_enters():
    found = summary.measured(seeds(), 500)
    assert found["variance_ratio"] == pytest.approx((1 + 0.25) / (4 + 1), rel=0.08)
    low, high = found["variance_ratio_ci95"]
    assert low < found["variance_ratio"] < high and high - low < 0.08
    assert found["mean_gain"] == pytest.approx(1, abs=0.1)
    assert found["mean_gain_ci95"][0] < found["mean_gain"] < found["mean_gain_ci95"][1]
    assert found["gap_closed"] == pytest.approx(1 / 4, abs=0.03) and len(found["gap_closed_ci95"]) == 2
    assert found["difference_to_oracle"] == pytest.approx(-3, abs=0.1)
    assert found["difference_to_oracle_ci95"][0] < found["difference_to_oracle"] < found["difference_to_oracle_ci95"][1]


def test_one_seed_gives_its_own_ratio():
    one = seeds()[:1]
    ours, plain = (one[0][name].var() for name in ("align_pro", "no_finetuning"))
    assert summary.measured(one, 100)["variance_ratio"] == pytest.approx(ours / plain)


def test_a_share_of_an_oracle_that_gains_nothing_is_none():
    found = summary.measured(seeds(oracle=-1.0), 200)
    assert found["gap_closed"] is None and found["gap_closed_ci95"] is None
    assert (
        summary.measured([{k: v for k, v in run.items() if k != "rlhf_oracle"} for run in seeds()], 200)["gap_closed"]
        is None
    )


def test_gold_rewards_are_read_beside_the_optimised_ones(tmp_path):
    config = preset("smollm2")
    run = replace(config, out=str(tmp_path), name="run")
    for stage, arm in (("evaluation_plain", "no_finetuning"), ("evaluation", "align_pro")):
        tensors = {f"{arm}.reward": torch.ones(3, 1, 2), f"{arm}.gold": torch.full((3, 1, 2), 5.0)}
        (tmp_path / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)
        save_state(tmp_path / "run" / "checkpoints" / f"{stage}.safetensors", tensors, {})
    for kind, value in (("reward", 1), ("gold", 5)):
        found = summary.arms(run, kind)
        assert {arm: r.mean() for arm, r in found.items()} == {"no_finetuning": value, "align_pro": value}
    assert summary.arms(run, "other") == {}


def test_an_entry_of_a_file_is_set_and_the_others_stay(tmp_path):
    for name, value in (("a", 1), ("b", 2), ("a", 3)):
        summary.merge(tmp_path / "summary.json", name, {"x": value})
    assert summary.read(tmp_path / "summary.json", "") == {"a": {"x": 3}, "b": {"x": 2}}


def test_listings_of_several_seeds_lie_beside_their_runs(tmp_path):
    runs = [replace(preset("smollm2"), seed=k, out="runs", reward="m:kind") for k in range(3)]
    assert str(summary.pooled_folder(runs)) == "runs/smollm2-kind-listing"
    assert str(summary.pooled_folder(runs[:1])) == "runs/smollm2-kind-seed0"


def test_a_prediction_is_that_of_the_runs_kl_coefficient_or_names_the_option(tmp_path):
    config = replace(preset("smollm2"), out=str(tmp_path), reward="m:kind")
    place, lam = summary.pooled_folder([config]), config.ppo.kl_coef
    keys = ("gain", "gain_ci95", "ratio", "ratio_ci95", "ratio_pi95")
    curve = [{"lam": at, **{key: 10 * at for key in keys}} for at in (2 * lam, lam)]
    place.mkdir()
    listed = {"rewards": {"m:kind": {"curve": curve}}, "requests": 64, "evaluated_later": 256}
    write_json(place / "listing.json", listed)
    assert summary.prediction([config], "m:kind")["gain_sd"] == 10 * lam
    other = replace(config, ppo=replace(config.ppo, kl_coef=0.777))
    with pytest.raises(UserError, match=r"listing.json has no λ 0.777: .* with this --ppo.kl_coef"):
        summary.prediction([other], "m:kind")
    with pytest.raises(UserError, match="listing.json rated m:kind, not learned"):
        summary.prediction([config], "learned")
