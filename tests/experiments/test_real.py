"""Several seeds of a real model counted together, by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from alignpro_mini.experiments import real
from alignpro_mini.experiments.listing import Rated
from alignpro_mini.lab.config import preset
from alignpro_mini.lab.glossary import PARTS
from alignpro_mini.lab.listed import asked_and_answered, rated
from alignpro_mini.lab.setup import setup_of
from alignpro_mini.options import UserError
from alignpro_mini.weights.tensors import save_state, write_json
from alignpro_mini.worlds.sentences import by_sentences


def normal(mean: float, sd: float, seed: int, requests: int = 400) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, sd, (requests, 2, 2))


ALONE = [[f"{k} {i}" for i in range(400)] for k in range(2)]  # each request is a topic of its own


def seeds(oracle: float = 4.0) -> list[dict[str, np.ndarray]]:
    """Two seeds whose rewards have means of their own: plain sd 2 and 1, Align-Pro's 1 and 0.5, one above."""
    made = []
    for k, (level, sd) in enumerate(((0.0, 2.0), (10.0, 1.0))):
        plain, ours, best = normal(level, sd, k), normal(level + 1, sd / 2, k + 10), normal(level + oracle, sd, k + 20)
        made.append(
            {"no_finetuning": plain.reshape(-1, 1, 4), "align_pro": ours, "rlhf_oracle": best, "closed_form": ours[:9]}
        )
    return made


def test_the_ratio_is_that_of_the_mean_variances_and_no_seeds_level_enters():
    found = real.measured(seeds(), ALONE, 500)
    assert found["variance_ratio"] == pytest.approx((1 + 0.25) / (4 + 1), rel=0.08)
    low, high = found["variance_ratio_ci95"]
    assert low < found["variance_ratio"] < high and high - low < 0.08
    assert found["mean_gain"] == pytest.approx(1, abs=0.1)
    assert found["mean_gain_ci95"][0] < found["mean_gain"] < found["mean_gain_ci95"][1]
    assert found["gap_closed"] == pytest.approx(1 / 4, abs=0.03) and len(found["gap_closed_ci95"]) == 2
    assert found["difference_to_oracle"] == pytest.approx(-3, abs=0.1)
    assert found["difference_to_oracle_ci95"][0] < found["difference_to_oracle"] < found["difference_to_oracle_ci95"][1]


def test_the_lead_over_the_fixed_rewrite_and_the_share_of_what_the_request_decides():
    """The closed form has the first 9 requests of each seed only, and is compared on these."""
    runs = seeds()
    for run in runs:
        run["fixed_rewrite"] = run["align_pro"] - 0.5
        run["closed_form"] = run["align_pro"][:9] + 0.5
    found = real.measured(runs, ALONE, 200)
    assert found["over_fixed"] == pytest.approx(0.5) and found["over_fixed_ci95"] == pytest.approx([0.5, 0.5])
    assert found["request_share"] == pytest.approx(0.5) and found["request_share_ci95"] == pytest.approx([0.5, 0.5])
    assert found["within_ratio"] == pytest.approx(0.25, rel=0.08), "of the same spread everywhere"
    assert found["within_ratio_ci95"][0] < found["within_ratio"] < found["within_ratio_ci95"][1]
    assert real.measured(seeds(), ALONE, 200)["over_fixed"] is None


def test_rows_of_listed_requests_come_first():
    parts = [np.array(list("abcd")), np.array(list("xyz"))]
    assert (
        "".join(real.stacked(parts, 2)) == "abxycdz"
        and "".join(real.stacked([part[:2] for part in parts], 2)) == "abxy"
    )


def test_one_seed_gives_its_own_ratio():
    one = seeds()[:1]
    ours, plain = (one[0][name].var() for name in ("align_pro", "no_finetuning"))
    assert real.measured(one, ALONE[:1], 100)["variance_ratio"] == pytest.approx(ours / plain)


def test_a_share_of_an_oracle_that_gains_nothing_is_none():
    found = real.measured(seeds(oracle=-1.0), ALONE, 200)
    assert found["gap_closed"] is None and found["gap_closed_ci95"] is None
    assert (
        real.measured([{k: v for k, v in run.items() if k != "rlhf_oracle"} for run in seeds()], ALONE, 200)[
            "gap_closed"
        ]
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
        found = real.arms(run, kind)
        assert {arm: r.mean() for arm, r in found.items()} == {"no_finetuning": value, "align_pro": value}
    assert real.arms(run, "other") == {}


def test_what_several_seeds_leave_lies_beside_their_runs():
    runs = [replace(preset("smollm2"), seed=k, out="runs", reward="m:kind") for k in range(3)]
    assert str(real.SUMMARY.stem(runs)) == "runs/smollm2-kind-listing/summary"
    assert str(real.SUMMARY.stem(runs[:1])) == "runs/smollm2-kind-seed0/summary"


def test_a_prediction_is_that_of_the_runs_kl_coefficient_or_names_the_option(tmp_path):
    config = replace(preset("smollm2"), out=str(tmp_path), reward="m:kind")
    place, lam = tmp_path / "smollm2-kind-seed0", config.ppo.kl_coef
    keys = ["gain", "gain_ci95", "ratio", "ratio_ci95", "within_ratio", "over_fixed"]
    keys += [f"{key}_pi95" for key in ("gain", "ratio", "within_ratio", *PARTS)]
    curve = [{"lam": at, **{key: 10 * at for key in keys}} for at in (2 * lam, lam)]
    with pytest.raises(UserError, match="listing.json: no such file: take --step listing"):
        real.predicted([config])
    place.mkdir()
    listed = {"rewards": {"m:kind": {"curve": curve}}, "requests": 64, "evaluated_later": 256}
    write_json(place / "listing.json", listed)
    assert real.predicted([config])["gain_sd"] == 10 * lam
    other = replace(config, ppo=replace(config.ppo, kl_coef=0.777))
    with pytest.raises(UserError, match=r"listing.json has no λ 0.777: .* with this --ppo.kl_coef"):
        real.predicted([other])
    write_json(place / "listing.json", listed | {"rewards": {"learned": {"curve": curve}}})
    with pytest.raises(UserError, match="listing.json rated learned, not m:kind"):
        real.predicted([config])


def test_several_seeds_are_described_together_each_reward_in_its_own_units():
    r = (
        torch.tensor([[0.0, 2.0], [3.0, 3.0]], dtype=torch.float64).expand(6, 2, 2)
        + torch.arange(6.0).double()[:, None, None]
    )
    cut = torch.zeros(6, 2, 2)
    seeds = [{"learned": Rated(each, cut, ["a", "b"])} for each in (r, 100 - 7 * r)]
    pooled = real.pooled(seeds)["learned"]
    z, truncated, names = pooled.r, pooled.truncated, pooled.endings
    assert real.pooled(seeds[:1]) is seeds[0], "one seed keeps its units"
    assert z.shape == truncated.shape == (12, 2, 2) and names == ["a", "b"]
    for part in (z[:6], z[6:]):
        assert float(part.mean()) == pytest.approx(0, abs=1e-12) and float(part.std(unbiased=False)) == pytest.approx(1)
    assert torch.allclose(z[:6], -z[6:])


@pytest.mark.parametrize(("cut_option", "low"), [("sentence", 2 + 0.05 * 2 * 1), ("whole", 7)])
def test_a_real_models_answers_are_rated_up_to_their_last_whole_sentence(cut_option, low):
    """Rewards 2, 3, 4: the 5 % quantile lies a tenth of the way from 2 to 3. With --cut whole each counts all of it."""
    setup = setup_of(replace(preset("smollm2"), cut=cut_option))
    cut = [True, True, False, False]
    rows = [{"x": "a", "rewrites": ["a", "a b"], "y": ["Yes. No", "halfway", "Ab", "Ab."], "truncated": cut}]
    length = lambda prompts, completions: torch.tensor([float(len(y)) for y in completions])
    found = rated(rows, by_sentences(length, setup.lowest_reward(length, *asked_and_answered(rows))))
    assert found.flatten().tolist() == pytest.approx([7 if cut_option == "whole" else 4, low, 2, 3])
