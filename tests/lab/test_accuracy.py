"""What a reward model's held-out accuracy is compared with, and how far it can be believed, by hand."""

import numpy as np
import pytest
import torch
from doubles import Letters

from alignpro_mini.lab.accuracy import (
    accuracy_ceiling,
    accuracy_facts,
    always_longer,
    cut_at,
    swap_accuracy,
    wish_accuracy,
)
from alignpro_mini.reward import Preference, accuracy
from alignpro_mini.training import Truncated


class Worth:
    """A reward model of which only `raw` is there: the number of h in an answer; `seen` keeps what it rated."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def raw(self, prompts, completions) -> torch.Tensor:
        self.seen += completions
        return torch.tensor([float(y.count("h")) for y in completions])


def told(pairs: list[Preference], cut=lambda y: y) -> dict:
    return accuracy_facts(Worth(), pairs, cut)


def test_the_interval_resamples_prompts_and_weighs_them_by_their_pairs():
    """Two prompts, 3 pairs right and 1 wrong: a quarter of the resamples holds either prompt alone."""
    right, wrong = lambda x: Preference(x, "h", "a"), lambda x: Preference(x, "a", "h")
    assert told([right("a"), right("a"), wrong("b"), right("a")])["accuracy_ci95"] == [0.0, 1.0]
    before = torch.get_rng_state()
    pairs = [right(f"x{i // 9}") for i in range(90)] + [wrong(f"y{i}") for i in range(10)]
    low, high = told(pairs)["accuracy_ci95"]  # 10 prompts with 9 right pairs, 10 with a wrong one
    assert low < 0.9 < high and [low, high] == told(pairs)["accuracy_ci95"]
    assert torch.equal(before, torch.get_rng_state()), "the interval takes no draw from a training"
    drawn = np.random.default_rng(1).integers(0, 20, (4000, 20))  # by hand: shares of 9 right or 1 wrong a prompt
    right_of = (drawn < 10).sum(1) * 9
    want = np.quantile(right_of / (right_of + (drawn >= 10).sum(1)), (0.025, 0.975))
    assert [low, high] == pytest.approx(list(want), abs=0.02)
    alone = told([right(str(i)) if i % 2 else wrong(str(i)) for i in range(400)])["accuracy_ci95"]
    assert alone == pytest.approx([0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025], abs=0.008)
    assert told([right(x) for x in "aabbccdd"])["accuracy_ci95"] == [1.0, 1.0]
    assert told([right("a"), wrong("a")])["accuracy_ci95"] is None


def test_the_accuracy_on_answers_of_like_length_by_hand():
    """Ten pairs of like length, three right and a tie; longer by more than a tenth, all right: those do not count."""
    pair = lambda chosen, rejected: Preference("x", chosen, rejected)
    like = (
        [pair("h" + "a" * 9, "a" * 9)] * 3 + [pair("a" * 9, "h" + "a" * 9)] * 6 + [pair("ha", "ah")]
    )  # 10 and 9 letters
    other = [pair("h" + "a" * 8, "a" * 8)] * 5  # 9 and 8
    facts = told(like + other)
    assert (facts["length_matched"], facts["length_matched_pairs"]) == (pytest.approx(0.35), 10)
    assert facts["accuracy"] == pytest.approx((3 + 0.5 + 5) / 15) == accuracy(Worth(), like + other)
    facts = told(like[1:] + other)
    assert (facts["length_matched"], facts["length_matched_pairs"]) == (None, 9)
    assert facts["always_longer"] == always_longer(like[1:] + other) and facts["ceiling"] is None
    assert facts["accuracy_ci95"] is None and facts["truncated_accuracy"] is None


def test_an_answer_is_cut_where_the_lm_would_have_been():
    """Four tokens are three letters and EOS, or four letters without one."""
    for text, want in (("abc", "abc"), ("abcd", "abcd"), ("abcdefg", "abcd")):
        found = cut_at(text, Letters(), 4)
        assert found == want and isinstance(found, Truncated) == (len(text) > 3)
    sampled = Truncated("abcdefg")  # already cut when it was sampled: decoded and encoded again it may have more tokens
    assert cut_at(sampled, Letters(), 4) is sampled


def test_the_accuracy_on_truncated_answers_by_hand():
    """Whole, all three are right; cut after four letters one is right, one wrong and one a tie."""
    pairs = [Preference("x", "hhabcdef", "h"), Preference("y", "abcdehh", "h"), Preference("z", "abcdh", "abcde")]
    model, cut = Worth(), lambda y: cut_at(y, Letters(), 4)
    facts = accuracy_facts(model, pairs, cut)
    assert facts["accuracy"] == 1 and facts["truncated_accuracy"] == 0.5
    assert model.seen[6:] == ["hhab", "abcd", "abcd", "h", "h", "abcd"]
    assert [isinstance(y, Truncated) for y in model.seen] == [False] * 6 + [True] * 3 + [False] * 2 + [True]
    assert accuracy_facts(model, [Preference("x", "h", "abc")] * 12, cut)["truncated_accuracy"] is None
    assert accuracy_facts(model, [Preference("x", "h", Truncated("abcdefg"))], cut)["truncated_accuracy"] is None
    nothing = lambda y: Truncated("") if len(y) == 7 else cut(y)  # no whole sentence is left
    assert accuracy_facts(model, pairs, nothing)["truncated_accuracy"] == 0.75


def test_swap_accuracy_by_hand():
    """r = 2 if the answer is the prompt's own letter, 1 for "h": one right, one tie, one wrong; the equal pair is out."""
    worth = lambda xs, ys: [2.0 if x == y else float(y == "h") for x, y in zip(xs, ys)]
    found = swap_accuracy(worth, ["a", "b", "c", "d"], ["a", "c", "b", "d"], ["b", "d", "h", "d"])
    assert found == pytest.approx((1 + 0.5 + 0) / 3)
    assert swap_accuracy(worth, ["a"], ["b"], ["b"]) is None


REQUESTS = ["long"] * 4, ["short"] * 4  # the wish of four requests, and another one
TEXTS = ["hh", "h", "hhh", "h"], ["h", "hhh", "hhh", "hhhh"]  # two answers to each


def wanted(xs, ys) -> list[float]:
    """The true reward: of a long answer its length, of a short one what it is short of 10."""
    return [float(len(y)) if x == "long" else 10.0 - len(y) for x, y in zip(xs, ys, strict=True)]


def test_wish_accuracy_by_hand():
    """Of four pairs the third is equal under both wishes: it does not count. The others are ranked six times."""
    worth = {"long": {"hh": 2, "h": 1, "hhh": 1, "hhhh": 3}, "short": {"hh": 2, "h": 1, "hhh": 0, "hhhh": 5}}
    reward = lambda xs, ys: [worth[x][y] for x, y in zip(xs, ys, strict=True)]
    # "long":  hh 2 > h 1 right; h 1 = hhh 1 half; h 1 < hhhh 3 right.  "short": 2 > 1 wrong; 1 > 0 right; 1 < 5 wrong
    assert wish_accuracy(reward, wanted, REQUESTS, TEXTS) == pytest.approx((1 + 0.5 + 1 + 0 + 1 + 0) / 6)
    assert wish_accuracy(lambda x, y: torch.tensor(reward(x, y)), wanted, REQUESTS, TEXTS) == pytest.approx(3.5 / 6)


def test_a_reward_that_does_not_read_the_wish_is_right_in_exactly_one_of_two():
    draw = np.random.default_rng(0)
    texts = tuple(["h" * n for n in draw.integers(0, 9, 200)] for _ in (0, 1))
    requests = ["long"] * 200, ["short"] * 200
    value = {"h" * n: v for n, v in enumerate(draw.normal(size=9))}
    blind = lambda xs, ys: [value[y] for y in ys]
    constant = lambda xs, ys: torch.zeros(len(ys))
    assert wish_accuracy(blind, wanted, requests, texts) == 0.5 == wish_accuracy(constant, wanted, requests, texts)
    # What only moves all answers to a request does not rank them.
    moved = lambda xs, ys: [value[y] + 100 * (x == "long") for x, y in zip(xs, ys)]
    assert wish_accuracy(moved, wanted, requests, texts) == 0.5
    assert wish_accuracy(wanted, wanted, requests, texts) == 1
    assert wish_accuracy(lambda x, y: [-5 * r for r in wanted(x, y)], wanted, requests, texts) == 0
    noisy = lambda xs, ys: [r + 3 * value[y] for r, y in zip(wanted(xs, ys), ys)]
    found = wish_accuracy(noisy, wanted, requests, texts)
    assert 0.5 < found < 1 and found == wish_accuracy(noisy, wanted, requests[::-1], texts[::-1]), "in either order"


def test_wish_accuracy_is_unknown_where_no_wish_turns_the_ranking():
    same = lambda xs, ys: [float(len(y)) for y in ys]
    assert wish_accuracy(wanted, same, REQUESTS, TEXTS) is None
    assert wish_accuracy(wanted, wanted, REQUESTS, (TEXTS[0], TEXTS[0])) is None
    # One wish for which both answers are equally good turns no ranking either.
    equal = lambda xs, ys: [float(len(y)) * (x == "long") for x, y in zip(xs, ys)]
    assert wish_accuracy(wanted, equal, REQUESTS, TEXTS) is None


def test_only_pairs_that_the_wish_turns_count():
    """The second pair has one ranking under both wishes, and the reward is wrong there."""
    requests, texts = (["long", "long"], ["short", "short"]), (["hh", "a"], ["h", "b"])
    gold = lambda xs, ys: [{"a": 5.0, "b": 1.0}.get(y, r) for y, r in zip(ys, wanted(xs, ys))]
    reward = lambda xs, ys: [{"a": 1.0, "b": 5.0}.get(y, r) for y, r in zip(ys, wanted(xs, ys))]
    assert wish_accuracy(reward, gold, requests, texts) == 1


def test_baselines_by_hand():
    pairs = [
        Preference("x", "long", "l", 0.9),
        Preference("x", "l", "long", 0.3),
        Preference("x", "ab", "cd", 0.5),
        Preference("x", "abc", "d", 0.6),
    ]
    assert always_longer(pairs) == (1 + 0 + 0.5 + 1) / 4
    assert accuracy_ceiling(pairs) == pytest.approx((0.9 + 0.7 + 0.5 + 0.6) / 4)
    assert accuracy_ceiling([*pairs, Preference("x", "a", "b")]) is None
