"""Answers to every listed ending: kept once, shared by all runs, rated against the request."""

from dataclasses import replace

import pytest
import torch

from alignpro_mini.frozen import Answer
from alignpro_mini.lab.cli import with_options
from alignpro_mini.lab.config import TheoryConfig, preset
from alignpro_mini.lab.listed import listed_answers, rated
from alignpro_mini.options import UserError
from alignpro_mini.training import Truncated


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


def kept(config, calls: int = 99) -> list[dict]:
    return listed_answers(config, {"frozen": config.frozen}, World(), Fake(calls))


def answers(place, count: int = 4, each: int = 2, calls: int = 99) -> list[dict]:
    return kept(replace(preset("smollm2"), out=str(place), theory=TheoryConfig(inputs=count, answers=each)), calls)


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
    rows = kept(first)
    other = with_options(first, {"reward": "a:b", "name": "n", "ppo.lr": 0.1, "eval.inputs": 7, "theory.inputs": 5})
    again = kept(other, 1)
    assert again[:4] == rows and len(again) == 5
    with pytest.raises(UserError, match=r"listing-smollm2-chat-seed0 was started .*sampling.temperature was 0.7"):
        kept(with_options(first, {"sampling.temperature": 0.4}))
    with pytest.raises(UserError, match="has 2 answers to a rewrite, not 3"):
        kept(with_options(first, {"theory.answers": 3}))


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


def test_answers_are_rated_against_the_request_and_keep_their_missing_end():
    rows = [{"x": "a", "rewrites": ["a", "a b"], "y": ["1", "2", "3", "4"], "truncated": [False, True, False, False]}]

    def reward(prompts, completions):
        assert prompts == ["a"] * 4 and [isinstance(y, Truncated) for y in completions] == [False, True, False, False]
        return [float(y) for y in completions]

    assert rated(rows, reward).tolist() == [[[1.0, 2.0], [3.0, 4.0]]]
