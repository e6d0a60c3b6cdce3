"""The listing: answers that are kept, and what it says of rewards whose moments are known."""

import numpy as np
import pytest
import torch

from alignpro_mini.experiments import listing
from alignpro_mini.experiments.listing import Rated
from alignpro_mini.lab.config import EvalConfig
from alignpro_mini.lab.optimum import pooled
from alignpro_mini.options import UserError


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(listing, "RESAMPLES", 100)


def of(r: torch.Tensor, **labels) -> Rated:
    return Rated(r, torch.zeros(r.shape), [f"ending {j}" for j in range(r.shape[1])], **labels)


def at(halves, lam: float) -> dict:
    return listing.at(halves, lam, *listing.without_reading(halves))


def two_endings(N: int = 4) -> torch.Tensor:
    """(N, 2, 2): the plain request earns 0 or 2, the ending always 3; all requests alike."""
    return torch.tensor([[0.0, 2.0], [3.0, 3.0]], dtype=torch.float64).expand(N, 2, 2)


def test_moments_under_an_optimum_by_hand():
    r = of(two_endings())
    pair = r.halves()
    sharp = at([pair], 0.01)  # all on the ending: mean 3, no variance; the plain request: mean 1, V 2
    assert sharp["mean"] == pytest.approx(3) and sharp["gain"] == pytest.approx(2)
    assert sharp["total"] == pytest.approx(0, abs=1e-9) and sharp["ratio"] == pytest.approx(0, abs=1e-9)
    blunt = at([pair], 1e6)  # fifty-fifty: R is 1 or 3, V 2 or 0; V / M of R is noise: 1/4 less, twice
    assert blunt["mean"] == pytest.approx(2, abs=1e-4) and blunt["within"] == pytest.approx(1, abs=1e-4)
    assert blunt["between_rewrites"] == pytest.approx(1 - 0.25, abs=1e-4)
    assert blunt["between_inputs"] == pytest.approx(-0.25, abs=1e-4)
    # rho* ~ exp(R / lam): at lam 2 the ending has the weight e^(3/2) against e^(1/2)
    assert listing.optimum(r, 2.0)[""].tolist() == pytest.approx([1 / (1 + torch.e), torch.e / (1 + torch.e)])


def test_the_half_that_chose_does_not_describe():
    """Each half likes another ending: what one half chooses loses in the other."""
    r = torch.zeros(4, 3, 2, dtype=torch.float64)
    r[::2, 1], r[1::2, 2] = 1.0, 1.0
    r[::2, 2], r[1::2, 1] = -1.0, -1.0
    assert at([of(r).halves()], 0.01)["gain"] == pytest.approx(-1)


def test_what_sft_teaches_more_often_has_more_weight():
    """rho* ~ share x exp(R / lam), and the units are those of answers to what SFT teaches."""
    r = of(two_endings(), shares=[0.8, 0.2])
    good = 0.2 * torch.e / (0.8 + 0.2 * torch.e)  # R is 1 or 3
    assert listing.optimum(r, 2.0)[""].tolist() == pytest.approx([1 - good, good])
    assert r.scale()["mean"] == pytest.approx(0.8 * 1 + 0.2 * 3)
    assert r.scale()["std"] ** 2 == pytest.approx(0.8 * 1 + 4 * 0.8 * 0.2)  # V of the first, and between the two
    assert listing.by_request({}, r.take([1, 0]))[0].tolist() == [0.8, 0.2]


def two_kinds(N: int = 8) -> Rated:
    """Requests of two kinds in turn: each likes its own ending, by 2, and suffers from the other's, by 1."""
    r = torch.zeros(N, 3, 4, dtype=torch.float64)
    a, b = [i for i in range(N) if i % 4 < 2], [i for i in range(N) if i % 4 >= 2]  # both in each half
    for mine, other, rows in ((1, 2, a), (2, 1, b)):
        r[rows, mine] = 2.0
        r[rows, other] = -1.0
    return of(r, kinds=["a" if i in a else "b" for i in range(N)])


def test_each_kind_has_an_optimum_of_its_own_and_the_fixed_ending_is_one_for_all():
    rated = two_kinds()
    best = listing.optimum(rated, 0)
    assert {kind: rho.tolist() for kind, rho in best.items()} == {"a": [0, 1, 0], "b": [0, 0, 1]}
    sharp = at([rated.halves()], 0.001)
    assert sharp["gain"] == pytest.approx(2) and sharp["over_fixed"] == pytest.approx(2 - 0.5)  # fixed: 2 or -1
    assert listing.by_request({"a": best["a"]}, rated)[2].tolist() == pytest.approx([1 / 3] * 3), "left to rho_sft"
    found = listing.describe(rated, (0.01,))
    assert found["curve"][0]["by_kind"] == {
        "a": [["ending 1", 1.0], ["ending 0", 0.0], ["ending 2", 0.0]],
        "b": [["ending 2", 1.0], ["ending 0", 0.0], ["ending 1", 0.0]],
    }
    assert found["fixed"]["gain"] * found["sd"] == pytest.approx(0.5)
    of_ending = {entry["ending"]: entry["by_kind"] for entry in found["endings"]}
    assert of_ending["ending 1"] == {"a": 2, "b": -1} and of_ending["ending 0"] == {"a": 0, "b": 0}


def test_whole_topics_are_drawn_again():
    rated = two_kinds()
    rated = of(rated.r + torch.arange(8.0).double()[:, None, None] / 100, kinds=rated.kinds, topics=list("aabbccdd"))
    again = rated.resampled(np.random.default_rng(1))
    assert len(again.topics) == 8 and len(set(again.topics)) < 4, "with replacement"
    for i in range(0, 8, 2):
        first = rated.topics.index(again.topics[i])
        assert again.topics[i] == again.topics[i + 1] and torch.equal(again.r[i : i + 2], rated.r[first : first + 2])
        assert again.kinds[i : i + 2] == rated.kinds[first : first + 2]


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
    sd = float(r.std(unbiased=False))
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
    found = pooled(list("abcd"), [["x", "y", "z"]] * 4, r, [""] * 4, [""] * 4)
    assert found.is_pooled and found.r.shape == (4, 3, 4) and found.answers.unique().tolist() == [4]
    assert all(torch.equal(row, r.mean((0, 2))) for row in found.R)
    assert torch.allclose(found.V[0], r.mean(2).T.var(1)), "answers to one request are not independent"
    assert all(torch.equal(half[1].mean(1), each.mean((0, 2))) for half, each in zip(found.halves, (r[::2], r[1::2])))


def test_requests_are_rated_by_those_of_their_kind():
    """Listed are five requests of kind "a" and four of "b"; "c" nobody asks for."""
    listed = list("ababababac")
    r = torch.randn(10, 3, 2, generator=torch.Generator().manual_seed(0)).double()
    found = pooled(["one", "two", "three"], [["x", "y", "z"]] * 3, r, listed, list("bab"))
    a, b = (r[[kind == other for other in listed]] for kind in "ab")
    for row, own in zip(found.R, (b, a, b)):
        assert torch.allclose(row, own.mean((0, 2)))
    assert found.answers[:, 0].tolist() == [4, 5, 4] and found.rewrites == [["x", "y", "z"]] * 3
    assert torch.allclose(found.halves[0][1].nanmean(1), a[::2].mean((0, 2)))
    with pytest.raises(UserError, match="1 requests of a kind are listed, and its optimum takes at least 4: raise"):
        pooled(["one"], [["x", "y", "z"]], r, listed, ["c"])


def test_a_later_measurement_of_a_known_ratio():
    """Plain answers have the variance 1, those with the ending 0.25: a large evaluation measures 0.25."""
    g = torch.Generator().manual_seed(0)
    z = torch.tensor([1.0, 0.5])[:, None].double() * torch.randn(400, 2, 50, generator=g).double()
    only = {"": torch.tensor([0.0, 1.0], dtype=torch.float64)}
    draw = np.random.default_rng(0)
    again = lambda n, times: [listing.measured_again(of(z), only, EvalConfig(inputs=n), 0, draw) for _ in range(times)]
    found = {n: again(n, times) for n, times in ((2000, 20), (20, 200))}
    many, few = ([values["ratio"] for values in found[n]] for n in (2000, 20))
    assert np.mean([values["within_ratio"] for values in found[2000]]) == pytest.approx(0.25, abs=0.01)
    assert np.mean([values["gain"] for values in found[2000]]) == pytest.approx(
        float(z[:, 1].mean() - z[:, 0].mean()), abs=0.05
    )
    assert np.mean(many) == pytest.approx(0.25, abs=0.01)
    assert np.std(few) / np.std(many) == pytest.approx(10, rel=0.6), "noise falls with the root of the requests"


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
