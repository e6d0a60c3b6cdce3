"""The listing: answers that are kept, and what it says of rewards whose moments are known."""

import json
import sys

import pytest
import torch
from test_grid import (
    small,  # noqa: F401  one thread, small models
    small_grid,
)

from alignpro_mini.experiments import listing
from alignpro_mini.frozen import Answer
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.run import Run
from alignpro_mini.options import UserError
from alignpro_mini.training import Truncated


def two_endings(N: int = 4) -> torch.Tensor:
    """(N, 2, 2): the plain request earns 0 or 2, the ending always 3; all requests alike."""
    return torch.tensor([[0.0, 2.0], [3.0, 3.0]], dtype=torch.float64).expand(N, 2, 2)


def test_moments_under_an_optimum_by_hand():
    r = two_endings()
    sharp = listing.at(
        (r[::2], r[1::2]), 0.01
    )  # all on the ending: mean 3, no variance; the plain request: mean 1, V 2
    assert sharp["mean"] == pytest.approx(3) and sharp["gain"] == pytest.approx(2)
    assert sharp["total"] == pytest.approx(0, abs=1e-9) and sharp["ratio"] == pytest.approx(0, abs=1e-9)
    blunt = listing.at(
        (r[::2], r[1::2]), 1e6
    )  # fifty-fifty: R is 1 or 3, V 2 or 0; V / M of R is noise: 1/4 less, twice
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
    assert listing.at((r[::2], r[1::2]), 0.01)["gain"] == pytest.approx(-1)


def test_what_is_told_of_a_reward():
    g = torch.Generator().manual_seed(0)
    means, spreads = torch.tensor([0.0, 1.0, -1.0]), torch.tensor([1.0, 0.5, 2.0])
    r = means[:, None] + spreads[:, None] * torch.randn(60, 3, 8, generator=g).double()  # requests do not differ
    truncated = torch.zeros(60, 3, 8)
    truncated[:, 2] = 1
    found = listing.describe(5 + 2 * r, truncated, ["plain", "good", "bad"])
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
    assert "good 1.00" in listing.table("mine", found)
    with pytest.raises(UserError, match="every one of 12 answers got the reward 3: there is nothing"):
        listing.describe(torch.full((2, 3, 2), 3.0), truncated[:2, :, :2], ["a", "b", "c"])


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


def test_a_listing_that_was_killed_goes_on_and_ends_the_same(tmp_path):
    config = RunConfig(out=str(tmp_path))
    whole = listing.answered(Run(config), World(), Fake(), 4, 2)
    other = RunConfig(out=str(tmp_path / "other"))
    with pytest.raises(RuntimeError, match="killed"):
        listing.answered(Run(other), World(), Fake(2), 4, 2)
    assert listing.answered(Run(other, resume=True), World(), Fake(2), 4, 2) == whole
    assert [row["x"] for row in whole] == ["a", "b", "c", "d"] and all(len(row["y"]) == 6 for row in whole)
    with pytest.raises(UserError, match="has 2 answers to a rewrite, not 3"):
        listing.answered(Run(other, resume=True), World(), Fake(), 4, 3)


def test_every_request_has_draws_of_its_own(tmp_path):
    rows = listing.answered(Run(RunConfig(out=str(tmp_path))), World(), Fake(), 5, 8)
    digits = [[y.split()[-1] for y in row["y"]] for row in rows]
    assert len({tuple(d) for d in digits}) == 5


def test_answers_are_rated_against_the_request_and_keep_their_missing_end():
    rows = [{"x": "a", "rewrites": ["a", "a b"], "y": ["1", "2", "3", "4"], "truncated": [False, True, False, False]}]

    def reward(prompts, completions):
        assert prompts == ["a"] * 4 and [isinstance(y, Truncated) for y in completions] == [False, True, False, False]
        return [float(y) for y in completions]

    assert listing.rated(rows, reward, False).tolist() == [[[1.0, 2.0], [3.0, 4.0]]]


def test_a_real_models_answers_are_rated_up_to_their_last_whole_sentence():
    rows = [
        {
            "x": "a",
            "rewrites": ["a", "a b"],
            "y": ["Yes. No", "no", "Ab", "Ab."],
            "truncated": [True, True, False, False],
        }
    ]
    found = listing.rated(rows, lambda prompts, completions: [float(len(y)) for y in completions], True)
    low = 2 + 0.05 * 2 * 1  # rewards 2, 3, 4: the 5 % quantile lies a tenth of the way from 2 to 3
    assert found.flatten().tolist() == pytest.approx([4, low, 2, 3])


def test_the_command_from_end_to_end_and_another_reward_of_the_same_answers(tmp_path, small, monkeypatch, capsys):  # noqa: F811
    config = small_grid(tmp_path, name="l")
    first = listing.run_listing(config, False, [], count=4, each=2)
    place = tmp_path / "listing-l"
    kept = (place / "answers.jsonl").read_text()
    assert json.loads((place / "results.json").read_text()) == json.loads(json.dumps(first))
    assert list(first["rewards"]) == ["gold"] and len(first["rewards"]["gold"]["endings"]) == 24
    assert (place / "listing.png").stat().st_size > 1000 and "gold: mean" in capsys.readouterr().out
    (tmp_path / "mine.py").write_text("def length(prompts, completions):\n    return [len(y) for y in completions]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    again = listing.run_listing(config, True, ["mine:length"], count=4, each=2)
    assert (place / "answers.jsonl").read_text() == kept and list(again["rewards"]) == ["gold", "mine:length"]
    assert again["rewards"]["gold"] == first["rewards"]["gold"]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--requests", "3"], "--requests is 3; two halves take at least 4"),
        (["--answers", "1"], "--answers is 1; a variance within"),
        (["--also", "nonsense"], "--also: ['nonsense'] is no module:function"),
        (["--seed", "0-1"], "one listing at a time"),
        (["--requests", "99999"], "--requests is 99999; there are"),
    ],
)
def test_what_cannot_be_listed_is_told_in_one_line(argv, told, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["listing", *argv, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        listing.main()
    assert told in str(stopped.value) and "\n" not in str(stopped.value)
