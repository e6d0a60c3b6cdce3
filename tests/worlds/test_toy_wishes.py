"""Worlds in which the request decides which answer is wanted: the true reward by hand, and what one sentence can gain."""

import random
import re
from collections import Counter

import numpy as np
import pytest

from alignpro_mini.worlds import sums, towns
from alignpro_mini.worlds.towns import TOWNS, TRUTH
from alignpro_mini.worlds.toy import TASKS, ToyWorld
from alignpro_mini.worlds.world import WorldConfig

TOWN_TASKS = ("quality", "attributes")
TOWN = "Oakdale is a town."
FACTS = [wording.format(value) for (_, wording, _), value in zip(towns.WORDINGS, TRUTH["Oakdale"], strict=True)]
KIND = ("Happy to help!", "Enjoy your visit!")


@pytest.fixture(scope="module")
def worlds():
    return {task: ToyWorld(task) for task in TASKS}


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def request(w: ToyWorld, wish) -> str:
    """A request about Oakdale with this wish."""
    return next(
        x for x, fill in w.fills.items() if fill["town"] == "Oakdale" and w.kind.wishes[fill["purpose"]] == wish
    )


def quality(w: ToyWorld, wish, y: str) -> float:
    (found,) = w.gold([request(w, wish)], [y])
    return found


# ---------------------------------------------------------------- the true reward, by hand


@pytest.mark.parametrize("wish", towns.WISHES, ids=str)
@pytest.mark.parametrize(
    ("y", "on_topic", "right", "warmth", "flaws"),
    [
        pytest.param(f"{KIND[0]} {TOWN} {' '.join(FACTS)} {KIND[1]}", 1, 4, 1, 0, id="all facts, warm"),
        pytest.param(f"{TOWN} {' '.join(FACTS)}", 1, 4, 0, 0, id="all facts"),
        pytest.param(f"{KIND[0]} {TOWN} {FACTS[2]} {KIND[1]}", 1, 1, 1, 0, id="one fact, warm"),
        pytest.param(f"{TOWN} {FACTS[2]}", 1, 1, 0, 0, id="one fact"),
        pytest.param(TOWN, 1, 0, 0, 0, id="topic alone"),
        pytest.param(f"{KIND[0]} {TOWN} {FACTS[0]}", 1, 1, 0.5, 0, id="half as warm"),
        pytest.param(f"Look it up yourself. {TOWN} {FACTS[0]}", 1, 1, -1, 0, id="rude"),
        pytest.param(f"{TOWN} It lies by the sea.", 1, 0, 0, 1, id="a wrong fact is not among the right ones"),
        pytest.param(f"{TOWN} {FACTS[0]} Blah. Blah.", 1, 1, 0, 2, id="malformed"),
        pytest.param(f"Ashby is a town. {FACTS[0]}", 0, 0, 0, 2, id="another town: its fact is wrong"),
        pytest.param("", 0, 0, 0, 0, id="empty"),
    ],
)
def test_quality_under_every_wish_by_hand(worlds, wish, y, on_topic, right, warmth, flaws):
    """Half a point for each fact more or fewer than wanted and for each flaw; a point for all of the warmth."""
    facts_off, warmth_off = abs(right - wish.facts), abs(warmth - wish.warmth)
    assert quality(worlds["quality"], wish, y) == pytest.approx(on_topic - facts_off / 2 - warmth_off - flaws / 2)


@pytest.mark.parametrize("wish", towns.WISHES, ids=str)
def test_each_wish_is_granted_by_its_own_answer_alone(worlds, wish):
    """As many facts as are wanted and as much warmth: 1. Every other number of facts, and other warmth, is less."""
    warm = {0: ("", ""), 0.5: (KIND[0], ""), 1: KIND}
    rated = {
        (count, warmth): quality(worlds["quality"], wish, " ".join([opening, TOWN, *FACTS[:count], closing]).strip())
        for count in range(5)
        for warmth, (opening, closing) in warm.items()
    }
    assert rated == pytest.approx(
        {(count, warmth): 1 - abs(count - wish.facts) / 2 - abs(warmth - wish.warmth) for count, warmth in rated}
    )
    assert rated[tuple(wish)] == 1 and sum(value >= 1 for value in rated.values()) == 1


def test_every_reader_wants_another_answer(worlds):
    """The reward of one answer is a weighted sum: three answers of which each is the best of them for one reader."""
    w = worlds["attributes"]
    expert = [wording.format(value) for (_, _, wording), value in zip(towns.WORDINGS, TRUTH["Oakdale"], strict=True)]
    answers = {
        "expert": f"{TOWN} {' '.join(expert)}",  # 4 helpful, 4 correct, 4 coherent, 4 complex
        "plain": f"{TOWN} {' '.join(FACTS)}",  # not complex
        "curt": f"{TOWN} {FACTS[0]}",  # 1 helpful, not complex
    }
    attributes = {"expert": (4, 4, 4, 4, 0), "plain": (4, 4, 4, 0, 0), "curt": (1, 4, 4, 0, 0)}
    best = []
    for weights in towns.READERS:
        rated = dict(zip(answers, w.gold([request(w, weights)] * 3, list(answers.values())), strict=True))
        for name, found in rated.items():
            assert found == pytest.approx(sum(a * b for a, b in zip(weights, attributes[name], strict=True)))
        best.append(max(rated, key=rated.get))
    assert sorted(best) == ["curt", "expert", "plain"]


def test_a_sum_of_one_step_is_there_only_where_worked_answers_cost_something(worlds):
    steps = lambda w: Counter(len(fill["moves"]) for fill in w.fills.values())
    easy, hard = steps(worlds["reasoning"]), steps(ToyWorld("reasoning", WorldConfig(wishes=False)))
    assert set(easy) == set(sums.EASY_OR_HARD) and set(hard) == set(sums.HARD) and 1 in easy and 1 not in hard
    # Equal sums count once, and of those of one step there are not many: a little fewer of them than are drawn.
    drawn = sums.EASY_OR_HARD.count(1) / len(sums.EASY_OR_HARD)
    assert drawn - 0.1 < easy[1] / easy.total() < drawn
    w = worlds["reasoning"]
    x, fill = next((x, fill) for x, fill in w.fills.items() if len(fill["moves"]) == 1)
    ((name, number),), (start, hour) = fill["moves"], fill["shown"]
    assert f" {start}. {name} adds {number}. " in x and all(f"{name} adds {number}." in x2 for x2 in w.rewrites(x))
    worked = f"{name} {start} and {number} makes {hour}. The {fill['o']} shows {hour}."
    assert w.kind.answer(fill, "Think step by step.", True, random.Random(0)) == worked
    direct = f"The {fill['o']} shows {hour}."
    assert w.gold([x] * 2, [direct, worked]) == [1, 1 - sums.COST] and sums.COST > 0
    rates = w.describe([x] * 4, [x] * 4, [direct, worked, f"The {fill['o']} shows 0.", ""])
    assert (rates["right_rate"], rates["worked_rate"]) == (0.5, 0.25), "a right answer that costs something is right"


# ---------------------------------------------------------------- requests with another wish


@pytest.mark.parametrize("task", TOWN_TASKS)
def test_another_wish_is_another_purpose_and_nothing_else(worlds, task):
    w, wish = worlds[task], lambda x: worlds[task].kind.wishes[worlds[task].fills[x]["purpose"]]
    asked = w.eval_requests[:200] + w.train_requests[:400]
    found = w.with_other_wish(asked, random.Random(0))
    assert found == w.with_other_wish(asked, random.Random(0)) != w.with_other_wish(asked, random.Random(1))
    for x, other in zip(asked, found, strict=True):
        a, b = w.fills[x], w.fills[other]
        assert wish(x) != wish(other) and {**a, "purpose": b["purpose"]} == b
        assert x.replace(a["purpose"], "") == other.replace(b["purpose"], "") != x, "in the same words"
    for mine in set(map(wish, asked)):  # every other wish comes, about equally often
        others = Counter(wish(other) for x, other in zip(asked, found) if wish(x) == mine)
        assert len(others) == len(set(w.kind.wishes.values())) - 1
        assert min(others.values()) > 0.5 * others.total() / len(others)


@pytest.mark.parametrize("task", TOWN_TASKS)
@pytest.mark.parametrize("config", [WorldConfig(), WorldConfig(unseen_towns=10)], ids=["", "unseen towns"])
def test_a_training_request_with_another_wish_is_a_training_request(task, config):
    w = ToyWorld(task, config)
    train = set(w.train_requests)
    assert set(w.with_other_wish(w.train_requests, random.Random(0))) <= train
    held_out = w.with_other_wish(w.eval_requests, random.Random(0))
    assert len(set(held_out) & set(w.eval_requests)) > 50, "a held-out one may become any"
    x = w.train_requests[0]
    w.eval_requests = [other for other in w.fills if other != x]  # no other request is left to train on
    assert w.with_other_wish([x, x], random.Random(0)) == [x, x]


def test_nobody_wishes_anything_else_where_one_answer_is_best_for_all(worlds):
    assert worlds["reasoning"].with_other_wish(worlds["reasoning"].train_requests[:3], random.Random(0)) == []
    for task in TASKS:
        w = ToyWorld(task, WorldConfig(wishes=False))
        assert w.with_other_wish(w.train_requests[:3], random.Random(0)) == []
    for task in TOWN_TASKS:
        assert worlds[task].with_other_wish([], random.Random(0)) == []


def test_without_wishes_the_purpose_is_no_part_of_the_reward():
    for task in TOWN_TASKS:
        w, rng = ToyWorld(task, WorldConfig(wishes=False)), random.Random(0)
        about = [x for x, fill in w.fills.items() if fill["town"] == "Oakdale"]
        assert len({w.fills[x]["purpose"] for x in about}) > 5
        for _ in range(50):
            y = w.kind.answer(w.fills[about[0]], rng.choice(w.cues), True, rng)
            assert len(set(w.gold(about, [y] * len(about)))) == 1


# ---------------------------------------------------------------- what the words give away


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("wishes", [True, False])
def test_no_request_says_a_part_of_a_cue(task, wishes):
    """People name the purpose or the reader, never the style: what a cue asks for, no request asks for."""
    w = ToyWorld(task, WorldConfig(wishes=wishes))
    pairs = {pair for cue in w.cues for pair in zip(words(cue), words(cue)[1:])}
    assert len(pairs) > 10
    for x in w.fills:
        for phrasing in w.rewrites(x)[:: len(w.cues)]:  # without a cue
            assert not pairs & set(zip(words(phrasing), words(phrasing)[1:])), phrasing
            assert not [cue for cue in w.cues if cue and cue.lower().rstrip(".") in phrasing.lower()]


@pytest.mark.parametrize("task", TOWN_TASKS)
def test_no_purpose_has_a_word_of_a_cue_or_of_an_answer(worlds, task):
    w = worlds[task]
    small = set("a an the for on my our".split())
    said = {word for purpose in w.kind.wishes for word in words(purpose)} - small
    assert len(said) >= len(w.kind.wishes), "no purpose is empty"
    assert not said & {word for cue in w.cues for word in words(cue)}
    answered = {word for sentence in (*towns.SENTENCES, *towns.FILLERS, *KIND) for word in words(sentence)}
    assert not said & (answered | set(map(str.lower, TOWNS)))


@pytest.mark.parametrize("task", TOWN_TASKS)
def test_the_answers_of_the_corpus_do_not_depend_on_the_purpose(worlds, task):
    """So the frozen LM cannot learn what is wanted: only a prompter that reads the request can."""
    kind, rng, seen = worlds[task].kind, random.Random(0), set()
    for i in range(400):
        fill, cue, original = rng.choice(list(worlds[task].fills.values())), rng.choice(kind.cues), rng.random() < 0.5
        answers = {kind.answer(fill | {"purpose": p}, cue, original, random.Random(i)) for p in kind.wishes}
        assert len(answers) == 1
        seen |= answers
    assert len(seen) > 200


# ---------------------------------------------------------------- what one sentence can gain


def value_of_kinds(w: ToyWorld, count: int = 400) -> np.ndarray:
    """(wishes, kinds): the mean true reward of `count` answers of the corpus to each kind of prompt, under each wish.

    A kind is one cue, behind the request's own phrasing or behind another one; the plain request comes first. All kinds
    and wishes have the same requests and the same random draws.
    """
    purposes = {}
    for purpose, wish in w.kind.wishes.items():
        purposes.setdefault(wish, purpose)
    fills = [w.fills[x] for x in random.Random(0).sample(w.train_requests, count)]
    value = np.zeros((len(purposes), 2 * len(w.cues)))
    for k, (original, cue) in enumerate([(original, cue) for original in (True, False) for cue in w.cues]):
        for i, fill in enumerate(fills):
            y = w.kind.answer(fill, cue, original, random.Random(i))
            value[:, k] += [w.kind.gold(fill | {"purpose": purpose}, y) for purpose in purposes.values()]
    return value / count


@pytest.mark.parametrize("task", TOWN_TASKS)
def test_one_sentence_for_all_takes_at_most_half_of_what_reading_the_request_can_gain(worlds, task):
    w = worlds[task]
    assert len(set(Counter(w.kind.wishes.values()).values())) == 1, "all wishes are equally frequent"
    value = value_of_kinds(w)
    plain = value[:, 0].mean()
    best, fixed = value.max(1).mean() - plain, value.mean(0).max() - plain
    assert best > 0.5 and 0 < fixed <= 0.5 * best, (fixed, best)
    assert len(set(value.argmax(1))) == len(value), "each wish has a best kind of its own"


@pytest.mark.parametrize("task", TOWN_TASKS)
def test_one_sentence_serves_all_where_nobody_wishes_anything_else(task):
    """The same measure without wishes: one cue takes it all."""
    value = value_of_kinds(ToyWorld(task, WorldConfig(wishes=False)), 200)
    assert value.shape == (1, 16) and value.max() - value[0, 0] > 0.5
