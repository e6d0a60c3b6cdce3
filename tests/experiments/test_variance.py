"""When the variance falls: the prediction against known moments, and worlds in small."""

import json
import math

import numpy as np
import pytest
import torch
from cells import cell_config

from alignpro_mini import theory
from alignpro_mini.experiments import variance
from alignpro_mini.lab import optimum
from alignpro_mini.lab.optimum import Listing
from alignpro_mini.lab.statistics import variance_parts


def drawn(N=40, K=6, M=40, seed=0, noise=1.0):
    """Rated rewrites with known means and standard deviations: (listing, true means (N, K), true variances (N, K))."""
    draw = np.random.default_rng(seed)
    means, spread = draw.normal(size=(N, K)), noise * draw.uniform(0.5, 1.5, size=(N, K))
    r = means[..., None] + spread[..., None] * draw.standard_normal((N, K, M))
    log_sft = torch.full((N, K), 1 / K, dtype=torch.float64).log()
    listing = Listing(["x"] * N, [["x'"] * K] * N, torch.from_numpy(r), log_sft, log_sft)
    return listing, torch.from_numpy(means), torch.from_numpy(spread**2)


@pytest.mark.parametrize("lam", [0.3, 1.0, math.inf])
def test_the_prediction_is_the_variance_that_the_optimum_has(lam):
    listing, means, variances = drawn(N=300, M=400)
    rho = listing.rho_sft if lam == math.inf else theory.optimal_prompter(listing.rho_sft, means, lam)
    each = (rho * means).sum(1)
    want = {
        "mean": each.mean(),
        "between_inputs": each.var(),
        "between_rewrites": (rho * (means - each[:, None]) ** 2).sum(1).mean(),
        "within": (rho * variances).sum(1).mean(),
    }
    predicted = optimum.moments_at_optimum(listing.rho_sft, listing.r, lam)
    for key, value in want.items():
        assert predicted[key] == pytest.approx(float(value), abs=0.02), key
    assert predicted["total"] == pytest.approx(sum(predicted[k] for k in list(want)[1:]))


def test_the_prediction_agrees_with_the_components_of_new_answers():
    """The law of total variance against nested ANOVA on rewrites drawn from rho* and new answers to them."""
    listing, means, variances = drawn(N=400, M=200, seed=1)
    rho = theory.optimal_prompter(listing.rho_sft, means, 0.5)
    picks = torch.multinomial(rho, 8, replacement=True, generator=torch.Generator().manual_seed(0))
    noise = torch.from_numpy(np.random.default_rng(2).standard_normal((400, 8, 4)))
    new = means.gather(1, picks)[..., None] + variances.sqrt().gather(1, picks)[..., None] * noise
    told, found = optimum.moments_at_optimum(listing.rho_sft, listing.r, 0.5), variance_parts(new.numpy())
    for key, value in found.items():
        assert told[key] == pytest.approx(value, abs=0.08), key
    assert optimum.moments_of_kind(listing.r, 0)["between_rewrites"] == pytest.approx(0.0, abs=1e-9)
    assert optimum.moments_of_kind(listing.r, 0)["within"] == pytest.approx(float(variances[:, 0].mean()), abs=0.05)


def test_noise_in_R_does_not_pass_for_variance():
    """Rewrites that are all alike: with few answers the plain estimate would show a spread that is not there."""
    listing, _, _ = drawn(N=200, M=6, seed=3)
    alike = Listing(
        listing.requests, listing.rewrites, listing.r - listing.r.mean(2, keepdim=True), *(listing.log_sft,) * 2
    )
    noise = torch.from_numpy(np.random.default_rng(4).standard_normal((200, 6, 6)))
    alike = Listing(alike.requests, alike.rewrites, noise, listing.log_sft, listing.log_sft)
    told = optimum.moments_at_optimum(alike.rho_sft, alike.r, math.inf)
    assert abs(told["between_rewrites"]) < 0.02 and abs(told["between_inputs"]) < 0.03
    assert told["within"] == pytest.approx(1.0, abs=0.03)


def test_a_world_end_to_end(tmp_path):
    worlds = ["quality-plain-0.9", "attributes-cue-0.5"]
    run = variance.run_worlds(cell_config(tmp_path, name="e"), False, worlds, [0.1, 1.0])
    assert list(run["worlds"]) == worlds
    for world, found in run["worlds"].items():
        task, spread, follow = world.split("-")
        saved = json.loads((tmp_path / "e" / world / "lam-0.1" / "config.json").read_text())
        assert (saved["task"], saved["world"]["spread"], saved["world"]["follow"]) == (task, spread, float(follow))
        assert [p["lam"] for p in found["points"]] == [p["lam"] for p in found["predicted"]] == [0.1, 1.0]
    again = variance.run_worlds(cell_config(tmp_path, name="e"), True, worlds[:1], [0.1, 1.0])
    assert again == run, "the other world is loaded"
    text = variance.table({"runs": [run, run]})
    start = json.loads((tmp_path / "e" / worlds[0] / "no-finetuning" / "checkpoints" / "evaluation.json").read_text())
    assert start == run["worlds"][worlds[0]]["start"] and start["between_rewrites"] == 0 and start["kl"] == 0
    assert "predicted and measured ratio on the same side of 1" in text and "attributes-cue-0.5" in text
    variance.figure({"runs": [run, run]}, tmp_path / "v.png")
    assert (tmp_path / "v.png").stat().st_size > 1000
