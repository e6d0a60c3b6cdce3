"""The listing: answers that are kept, and what it says of rewards whose moments are known."""

import numpy as np
import pytest
import torch

from alignpro_mini.experiments import listing
from alignpro_mini.experiments.listing import Rated
from alignpro_mini.lab.config import EvalConfig
from alignpro_mini.lab.optimum import RatedRewrites
from alignpro_mini.options import UserError


def two_endings(N: int = 4) -> torch.Tensor:
    """(N, 2, 2): the plain request earns 0 or 2, the ending always 3; all requests alike."""
    return torch.tensor([[0.0, 2.0], [3.0, 3.0]], dtype=torch.float64).expand(N, 2, 2)


def test_moments_under_an_optimum_by_hand():
    r = two_endings()
    pair = r[::2], r[1::2]
    sharp = listing.at([pair], 0.01)  # all on the ending: mean 3, no variance; the plain request: mean 1, V 2
    assert sharp["mean"] == pytest.approx(3) and sharp["gain"] == pytest.approx(2)
    assert sharp["total"] == pytest.approx(0, abs=1e-9) and sharp["ratio"] == pytest.approx(0, abs=1e-9)
    blunt = listing.at([pair], 1e6)  # fifty-fifty: R is 1 or 3, V 2 or 0; V / M of R is noise: 1/4 less, twice
    assert blunt["mean"] == pytest.approx(2, abs=1e-4) and blunt["within"] == pytest.approx(1, abs=1e-4)
    assert blunt["between_rewrites"] == pytest.approx(1 - 0.25, abs=1e-4)
    assert blunt["between_inputs"] == pytest.approx(-0.25, abs=1e-4)
    # rho* ~ exp(R / lam): at lam 2 the ending has the weight e^(3/2) against e^(1/2)
    assert listing.optimum(r, 2.0).tolist() == pytest.approx([1 / (1 + torch.e), torch.e / (1 + torch.e)])


def test_the_half_that_chose_does_not_describe():
    """Each half likes another ending: what one half chooses loses in the other."""
    r = torch.zeros(4, 3, 2, dtype=torch.float64)
    r[::2, 1], r[1::2, 2] = 1.0, 1.0
    r[::2, 2], r[1::2, 1] = -1.0, -1.0
    assert listing.at([(r[::2], r[1::2])], 0.01)["gain"] == pytest.approx(-1)


def test_a_reward_learned_by_each_seed_has_an_optimum_for_each():
    """Two seeds whose rewards like opposite endings: together they like none, each prompter gains by its own."""
    g = torch.Generator().manual_seed(1)
    means = torch.tensor([0.0, 1.0, -1.0])[:, None]
    r = torch.cat([sign * means + 0.1 * torch.randn(8, 3, 4, generator=g).double() for sign in (1, -1)])
    rated = Rated(r, torch.zeros(r.shape), ["plain", "a", "b"])
    (one,), (two,) = (listing.describe(rated, (0.01,), seeds=seeds)["curve"] for seeds in (1, 2))
    assert two["gain"] * float(r.std()) == pytest.approx(1, abs=0.1) and abs(one["gain"]) < 0.3
    assert {name: p for name, p in two["endings"]} == {"a": 0.5, "b": 0.5, "plain": 0.0}


def test_what_is_told_of_a_reward():
    g = torch.Generator().manual_seed(0)
    means, spreads = torch.tensor([0.0, 1.0, -1.0]), torch.tensor([1.0, 0.5, 2.0])
    r = means[:, None] + spreads[:, None] * torch.randn(60, 3, 8, generator=g).double()  # requests do not differ
    truncated = torch.zeros(60, 3, 8)
    truncated[:, 2] = 1
    found = listing.describe(Rated(5 + 2 * r, truncated, ["plain", "good", "bad"]))
    sd = float(r.std())
    assert found["mean"] == pytest.approx(float(5 + 2 * r.mean())) and found["sd"] == pytest.approx(2 * sd)
    assert [e["ending"] for e in found["endings"]] == ["good", "plain", "bad"]
    assert [e["truncated"] for e in found["endings"]] == [0, 0, 1]
    good, plain, bad = found["endings"]
    assert good["gain"] == pytest.approx(1 / sd, abs=0.1) and bad["gain"] == pytest.approx(-1 / sd, abs=0.2)
    assert good["ratio"] == pytest.approx(0.25, abs=0.06) and plain["ratio"] == 1 and plain["gain"] == 0
    last = found["curve"][-1]
    assert last["lam"] == 0.01 and last["endings"][0] == ["good", 1.0]
    assert last["ratio_ci95"][0] <= last["ratio"] <= last["ratio_ci95"][1] < 0.4 and last["gain_ci95"][0] > 0
    assert found["icc"] == pytest.approx(1 / (1 + (1 + 0.25 + 4) / 3), abs=0.08)  # variance of the means, 1; of answers
    assert "good 1.00" in listing.table({"rewards": {"mine": found}})
    with pytest.raises(UserError, match="every one of 12 answers got the reward 3: there is nothing"):
        listing.describe(Rated(torch.full((2, 3, 2), 3.0), truncated[:2, :, :2], ["a", "b", "c"]))


@pytest.mark.parametrize("levels", [(0.0, 1.0), (0.1, 0.7)])  # without rounding, and with
def test_rewards_that_do_not_depend_on_the_rewrite_have_no_share_of_it(levels, monkeypatch):
    """Neither does the answer matter: the ICC would be 0 / 0, or rounding errors over rounding errors."""
    monkeypatch.setattr(listing, "RESAMPLES", 4)
    r = torch.tensor(levels, dtype=torch.float64).repeat_interleave(6)[:, None, None].expand(12, 3, 5)
    found = listing.describe(Rated(r, torch.zeros(12, 3, 5), ["a", "b", "c"]))
    assert found["icc"] == pytest.approx(0, abs=1e-9)
    assert [e["gain"] for e in found["endings"]] == pytest.approx([0, 0, 0])


def test_pooled_answers_make_one_table_for_all_requests():
    """R of an ending is its mean over requests; the halves hold every other request."""
    r = torch.arange(24, dtype=torch.float64).view(4, 3, 2)
    found = RatedRewrites(list("abcd"), [["x", "y", "z"]] * 4, r).pooled()
    assert found.r.shape == (4, 3, 4) and found.answers.unique().tolist() == [4]
    assert all(torch.equal(row, r.mean((0, 2))) for row in found.R)
    assert torch.allclose(found.V[0], r.mean(2).T.var(1)), "answers to one request are not independent"
    assert all(torch.equal(half[1].mean(1), each.mean((0, 2))) for half, each in zip(found.halves, (r[::2], r[1::2])))


def test_a_later_measurement_of_a_known_ratio():
    """Plain answers have the variance 1, those with the ending 0.25: a large evaluation measures 0.25."""
    g = torch.Generator().manual_seed(0)
    z = torch.tensor([1.0, 0.5])[:, None].double() * torch.randn(400, 2, 50, generator=g).double()
    only = torch.tensor([0.0, 1.0], dtype=torch.float64)
    draw = np.random.default_rng(0)
    many, few = ([listing.measured_again(z, only, EvalConfig(inputs=n), draw) for _ in range(200)] for n in (2000, 20))
    assert np.mean(many) == pytest.approx(0.25, abs=0.005)
    assert np.std(few) / np.std(many) == pytest.approx(10, rel=0.4), "noise falls with the root of the requests"


def test_the_prediction_interval_is_wider_than_the_listings_own_and_holds_the_noise_of_the_evaluation():
    g = torch.Generator().manual_seed(0)
    r = torch.tensor([1.0, 0.5])[:, None].double() * torch.randn(400, 2, 8, generator=g).double()
    r[:, 1] += 1.0
    rated = Rated(r, torch.zeros(400, 2, 8), ["a", "b"])
    last = lambda n: listing.describe(rated, (0.01,), EvalConfig(inputs=n))["curve"][0]
    width = lambda interval: interval[1] - interval[0]
    few, many = last(30), last(3000)
    assert width(many["ratio_ci95"]) < width(many["ratio_pi95"]) < 1.5 * width(many["ratio_ci95"])
    assert width(few["ratio_pi95"]) > 3 * width(few["ratio_ci95"]) and few["ratio_ci95"] == many["ratio_ci95"]
