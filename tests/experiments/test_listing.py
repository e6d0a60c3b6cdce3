"""The listing: answers that are kept, and what it says of rewards whose moments are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from alignpro_mini.experiments import listing
from alignpro_mini.experiments.listing import Rated
from alignpro_mini.frozen import Answer
from alignpro_mini.lab import assess
from alignpro_mini.lab.cli import with_options
from alignpro_mini.lab.config import EvalConfig, RunConfig, TheoryConfig, preset
from alignpro_mini.lab.optimum import RatedRewrites
from alignpro_mini.options import UserError
from alignpro_mini.training import Truncated


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


class Fake:
    """A frozen model that says its prompt and a random digit; the k-th call may be the last one."""

    def __init__(self, calls: int = 99) -> None:
        self.calls = calls

    def answer(self, prompts, generator):
        self.calls -= 1
        if self.calls < 0:
            raise RuntimeError("killed")
        digits = torch.randint(10, (len(prompts),), generator=generator).tolist()
        return [Answer(f"{x} {n}", n < 3) for x, n in zip(prompts, digits)]


class World:
    train_requests = ["a", "b", "c", "d", "e"]

    def rewrites(self, request):
        return [request, f"{request} please", f"{request} now"]


def answers(place, count: int = 4, each: int = 2, calls: int = 99) -> list[dict]:
    config = RunConfig(out=str(place), theory=TheoryConfig(inputs=count, answers=each))
    return assess.listed_answers(config, World(), Fake(calls))


def test_a_listing_that_was_killed_goes_on_and_ends_the_same(tmp_path):
    whole, other = answers(tmp_path), tmp_path / "other"
    with pytest.raises(RuntimeError, match="killed"):
        answers(other, calls=2)
    assert answers(other, calls=2) == whole
    assert [row["x"] for row in whole] == ["a", "b", "c", "d"] and all(len(row["y"]) == 6 for row in whole)


def test_every_request_has_draws_of_its_own(tmp_path):
    digits = [[y.split()[-1] for y in row["y"]] for row in answers(tmp_path, 5, 8)]
    assert len({tuple(d) for d in digits}) == 5


def test_the_answers_of_a_real_model_serve_every_reward_but_no_other_sampling(tmp_path):
    """What is trained differs, the reward too: the same answers. Another temperature: told, with the folder."""
    first = replace(preset("smollm2"), out=str(tmp_path), theory=TheoryConfig(inputs=4, answers=2))
    rows = assess.listed_answers(first, World(), Fake())
    other = with_options(first, {"reward": "a:b", "name": "n", "ppo.lr": 0.1, "eval.inputs": 7, "theory.inputs": 5})
    again = assess.listed_answers(other, World(), Fake(1))
    assert again[:4] == rows and len(again) == 5
    with pytest.raises(UserError, match=r"listing-smollm2-chat-seed0 was started .*sampling.temperature was 0.7"):
        assess.listed_answers(with_options(first, {"sampling.temperature": 0.4}), World(), Fake())
    with pytest.raises(UserError, match="has 2 answers to a rewrite, not 3"):
        assess.listed_answers(with_options(first, {"theory.answers": 3}), World(), Fake())


def test_answers_to_other_requests_are_refused(tmp_path, monkeypatch):
    """As after a change of the world's code, or of the file of --data.prompts: the options are the same."""
    rows = answers(tmp_path)
    monkeypatch.setattr(World, "train_requests", ["a", "b", "c", "d", "f"])
    assert answers(tmp_path, calls=0) == rows, "the first four are the same"
    for requests in (["a", "b", "d", "c", "e"], ["f", "b", "c", "d", "e"]):
        monkeypatch.setattr(World, "train_requests", requests)
        for count in (4, 5):
            with pytest.raises(UserError, match="answers.jsonl is not of these requests in their order: move"):
                answers(tmp_path, count)


def test_the_embedded_worlds_answers_serve_every_training_but_no_other_world(tmp_path):
    first = RunConfig(out=str(tmp_path), theory=TheoryConfig(inputs=4, answers=2))
    rows = assess.listed_answers(first, World(), Fake())
    trained = {"ppo.lr": 0.1, "ppo.kl_coef": 0.5, "preferences.pairs": 500, "eval.inputs": 7, "name": "n"}
    assert assess.listed_answers(with_options(first, trained), World(), Fake(0)) == rows
    assert [path.name for path in tmp_path.iterdir()] == ["listing-tiny-quality-seed0"]
    for option, value in (("world.follow", 0.2), ("frozen_lm.steps", 7), ("sampling.temperature", 0.4)):
        with pytest.raises(UserError, match=f"listing-tiny-quality-seed0 was started .*{option} was"):
            assess.listed_answers(with_options(first, {option: value}), World(), Fake())


def test_answers_are_rated_against_the_request_and_keep_their_missing_end():
    rows = [{"x": "a", "rewrites": ["a", "a b"], "y": ["1", "2", "3", "4"], "truncated": [False, True, False, False]}]

    def reward(prompts, completions):
        assert prompts == ["a"] * 4 and [isinstance(y, Truncated) for y in completions] == [False, True, False, False]
        return [float(y) for y in completions]

    assert assess.rated(rows, reward).tolist() == [[[1.0, 2.0], [3.0, 4.0]]]


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
