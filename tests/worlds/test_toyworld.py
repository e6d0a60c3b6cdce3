"""The embedded world: its sizes, its split, and its true reward on answers written and rated by hand."""

import math
import random
import re
import statistics
from collections import defaultdict

import pytest

from alignpro_mini.options import UserError
from alignpro_mini.worlds import sums, towns
from alignpro_mini.worlds.towns import TOWNS, TRUTH
from alignpro_mini.worlds.toy import TASKS, ToyWorld
from alignpro_mini.worlds.world import WorldConfig

CUES = towns.CUES | {"reasoning": sums.CUES}

TOWN_TASKS = ("quality", "attributes")
ONE_FOR_ALL = WorldConfig(wishes=False)


@pytest.fixture(scope="module")
def worlds():
    return {task: ToyWorld(task) for task in TASKS}


@pytest.fixture(scope="module")
def one_for_all():
    """The worlds in which every request wants the same."""
    return {task: ToyWorld(task, ONE_FOR_ALL) for task in TASKS}


# ---------------------------------------------------------------- requests and rewrites


@pytest.mark.parametrize("task", TASKS)
def test_enough_distinct_requests_and_a_clean_split(worlds, one_for_all, task):
    for w in (worlds[task], one_for_all[task]):
        train, held_out = w.train_requests, w.eval_requests
        assert len(set(train)) == len(train) >= 500 and len(set(held_out)) == len(held_out) == 600
        assert not set(train) & set(held_out)


@pytest.mark.parametrize("task", TASKS)
def test_at_least_sixteen_rewrites_each_the_plain_request_first(worlds, task):
    w = worlds[task]
    for x in random.Random(0).sample(w.train_requests + w.eval_requests, 300):
        listed = w.rewrites(x)
        assert listed[0] == x and len(set(listed)) == len(listed) == 24
        assert all(x2 == x2.strip() and x2 for x2 in listed)
        if task == "reasoning":  # a rewrite is still the same sum: the same numbers in the same order
            assert {tuple(re.findall(r"\d+", x2)) for x2 in listed} == {tuple(re.findall(r"\d+", x))}
        else:
            town = next(t for t in TRUTH if t in x)
            assert all(town in x2 and not any(other in x2 for other in TRUTH if other != town) for x2 in listed)


@pytest.mark.parametrize("task", TASKS)
def test_no_rewrite_states_its_answer(worlds, task):
    """A prompter that could write the facts into the prompt would fake the result."""
    words = {v for facts in TRUTH.values() for v in facts}
    for x in worlds[task].eval_requests[:100]:
        for x2 in worlds[task].rewrites(x):
            assert not words & set(re.findall(r"\w+", x2.lower())) and "makes" not in x2


@pytest.mark.parametrize("task", TASKS)
def test_corpus_and_rewrite_pairs_use_training_requests_only(worlds, task):
    w = worlds[task]
    listed = {x2: x for x in w.train_requests for x2 in w.rewrites(x)}
    held_out = set(w.eval_requests)
    prompts = [p for p, _ in w.corpus(3000, random.Random(0))]
    assert set(prompts) <= set(listed)
    # Two requests about one town may share a rephrasing ("Tell me about Oakdale."); the request itself is never shared.
    cut = lambda p: next(
        p.removesuffix(cue).rstrip() for cue in sorted(CUES[task], key=len, reverse=True) if p.endswith(cue)
    )  # noqa: E731
    assert not {cut(p) for p in prompts} & held_out
    pairs = w.rewrite_pairs(2000, random.Random(0))
    assert {x for x, _ in pairs} <= set(w.train_requests)
    assert all(x2 in w.rewrites(x) for x, x2 in pairs)
    kept = sum(x2.startswith(x) for x, x2 in pairs) / len(pairs)
    assert 0.45 < kept < 0.55  # half keep the user's own words
    cues = {x2: 0 for x2 in CUES[task]}
    for _, x2 in pairs:
        cues[max((c for c in cues if x2.endswith(c)), key=len)] += 1
    assert all(abs(n / len(pairs) - 1 / 8) < 0.04 for n in cues.values())  # cues uniform


@pytest.mark.parametrize("task", TASKS)
def test_one_seed_one_world_two_seeds_two_worlds(worlds, task):
    w, same, other = worlds[task], ToyWorld(task), ToyWorld(task, seed=1)
    assert same.eval_requests == w.eval_requests and same.train_requests == w.train_requests
    assert same.corpus(50, random.Random(3)) == w.corpus(50, random.Random(3))
    assert same.rewrite_pairs(50, random.Random(3)) == w.rewrite_pairs(50, random.Random(3))
    assert set(other.eval_requests) != set(w.eval_requests)
    assert w.corpus(50, random.Random(4)) != w.corpus(50, random.Random(3))


@pytest.mark.parametrize("task", TASKS)
def test_a_swapped_answer_belongs_to_another_request(worlds, task):
    world = worlds[task]
    x = world.eval_requests[:40]
    right = [world.kind.answer(world.fills[request], "", True, random.Random(3)) for request in x]
    swapped = world.swapped(x, right, random.Random(0))
    assert swapped == world.swapped(x, right, random.Random(0)) and len(swapped) == 40
    gold, other = world.gold(x, right), world.gold(x, swapped)
    assert sum(a > b for a, b in zip(gold, other)) >= 30, "it is no right answer to the request"
    if task == "reasoning":
        assert all(y in right and y is not own for y, own in zip(swapped, right))
        assert world.swapped(x[:1], ["only"], random.Random(0)) == ["only"]
    else:
        for request, own, y in zip(x, right, swapped):
            town = world.fills[request]["town"]
            assert town not in y and own.count(town) > 0
            assert [w for w in own.split() if town not in w] == [w for w in y.split() if not any(t in w for t in TOWNS)]
        assert world.swapped(x[:1], ["no town here."], random.Random(0)) == ["no town here."]


@pytest.mark.parametrize("task", TOWN_TASKS)
def test_unseen_towns_are_read_about_by_the_frozen_lm_alone(task):
    world = ToyWorld(task, WorldConfig(unseen_towns=10), seed=1)
    town = lambda x: world.fills[x]["town"]
    unseen = {town(x) for x in world.eval_requests}
    assert len(world.eval_requests) == 600 and len(unseen) == 10
    assert set(world.groups(world.eval_requests)) == unseen, "intervals resample towns"
    assert not unseen & {town(x) for x in world.train_requests} and len(world.train_requests) > 1000
    rewrites = world.rewrite_pairs(2000, random.Random(0))
    assert not any(name in text for pair in rewrites for text in pair for name in unseen)
    corpus = [prompt for prompt, _ in world.corpus(4000, random.Random(0))]
    assert unseen == {name for name in unseen if any(name in prompt for prompt in corpus)}
    assert not set(world.eval_requests) & set(corpus), "the evaluation's own requests are read by nobody"
    assert {town(x) for x in ToyWorld(task, WorldConfig(unseen_towns=10), seed=2).eval_requests} != unseen
    with pytest.raises(UserError, match="9 unseen towns have 1080 requests in all: keep at most 540"):
        ToyWorld(task, WorldConfig(unseen_towns=9))
    with pytest.raises(UserError, match="unseen_towns is 21; of the 24 towns at least 4 must be left"):
        WorldConfig(unseen_towns=21)


def test_wrong_settings_are_told():
    with pytest.raises(ValueError, match="task is 'poetry'"):
        ToyWorld("poetry")
    with pytest.raises(ValueError, match=r"eval_requests is 2000.*keep at most 1440"):
        ToyWorld("quality", WorldConfig(eval_requests=2000))
    for bad in ({"follow": 1.5}, {"follow": -0.1}, {"spread": "both"}):
        with pytest.raises(ValueError, match=f"^{next(iter(bad))} is "):
            WorldConfig(**bad)


# ---------------------------------------------------------------- the true reward of town answers, by hand

# Oakdale's facts in this world: by the lake, music, spring, the mill (asserted below).
LAKE, MUSIC, SPRING, MILL = (
    "It lies by the lake.",
    "People there make music.",
    "Go there in spring.",
    "You can see the mill.",
)
FACTS = f"{LAKE} {MUSIC} {SPRING} {MILL}"
EXPERT = "It is situated beside the lake. Its inhabitants produce music. Its ideal season is spring. Its landmark is the mill."
TOWN = "Oakdale is a town."


def oakdale(w: ToyWorld) -> str:
    return next(x for x in w.train_requests + w.eval_requests if "Oakdale" in x)


def asked_for(w: ToyWorld, purposes: str) -> list[str]:
    """A request about Oakdale for each of these purposes, which stand in one string as in WISHES and READERS."""
    about = [x for x in w.fills if "Oakdale" in x]
    return [next(x for x in about if w.fills[x]["purpose"] == f" {purpose}") for purpose in purposes.split(", ")]


def test_the_facts_that_the_hand_worked_answers_rest_on():
    assert TRUTH["Oakdale"] == ("lake", "music", "spring", "mill")


@pytest.mark.parametrize(
    ("y", "want"),
    [
        # on topic 1, each right fact 1/2, each wrong one -1/2, opening and closing 1/2 each, rudeness -1, malformed -1/2
        pytest.param(f"Happy to help! {TOWN} {FACTS} Enjoy your visit!", 1 + 2 + 1, id="perfect"),
        pytest.param(f"Happy to help! {TOWN} {EXPERT} Enjoy your visit!", 1 + 2 + 1, id="perfect in expert words"),
        pytest.param(f"{TOWN} {FACTS}", 3, id="neutral"),
        pytest.param(f"{TOWN} {MILL} {LAKE} {SPRING} {MUSIC}", 3, id="order is free"),
        pytest.param(f"{TOWN} {LAKE} {MUSIC}", 2, id="half"),
        pytest.param(TOWN, 1, id="topic alone"),
        pytest.param(f"{TOWN} It lies by the sea. {MUSIC}", 1 + 0.5 - 0.5, id="one wrong fact"),
        pytest.param(
            f"{TOWN} It lies by the sea. People there make bread. Go there in winter. You can see the tower.",
            -1,
            id="all wrong",
        ),
        pytest.param(f"Ashby is a town. {FACTS}", 0 - 4 / 2 - 1 / 2, id="another town: its facts help nobody"),
        pytest.param(FACTS, -2, id="no town named"),
        pytest.param(f"Look it up yourself. {TOWN} {FACTS}", 3 - 1, id="rude"),
        pytest.param(f"{TOWN} {LAKE} {LAKE}", 1 + 0.5 - 0.5, id="a fact repeated is malformed"),
        pytest.param(f"{TOWN} {LAKE} It is situated beside the lake.", 1 + 0.5 - 0.5, id="repeated in other words too"),
        pytest.param(f"{TOWN} {LAKE} It lies by the sea.", 1 + 0.5 - 0.5, id="first word counts"),
        pytest.param(f"{TOWN} Lies it lake the by. {MUSIC}", 1 + 0.5 - 0.5, id="malformed"),
        pytest.param(f"{TOWN} It lies by the", 1 - 0.5, id="cut in a sentence"),
        pytest.param(f"Happy to help! {TOWN}", 1.5, id="opening only"),
        pytest.param(f"{TOWN} Enjoy your visit!", 1.5, id="closing only"),
        pytest.param(f"{TOWN} Happy to help!", 1, id="an opening at the end is none"),
        pytest.param("", 0, id="empty"),
        pytest.param("   \n ", 0, id="blank"),
        pytest.param("blah", -0.5, id="garbage"),
    ],
)
def test_quality_by_hand(one_for_all, y, want):
    w = one_for_all["quality"]
    assert w.gold([oakdale(w)], [y]) == [pytest.approx(want)]


@pytest.mark.parametrize(
    ("y", "helpful", "correct", "coherent", "complex_", "verbose"),
    [
        pytest.param(f"{TOWN} {EXPERT}", 4, 4, 4, 4, 0, id="perfect"),
        pytest.param(f"{TOWN} {FACTS}", 4, 4, 4, 0, 0, id="plain words"),
        pytest.param(f"{TOWN} {LAKE}", 1, 4, 4, 0, 0, id="one fact"),
        pytest.param(f"{TOWN} It lies by the sea. {MUSIC}", 2, 2, 4, 0, 0, id="one wrong"),
        pytest.param(
            f"{TOWN} It lies by the sea. People there make bread. Go there in winter.",
            3,
            0,
            4,
            0,
            0,
            id="three wrong: no less than 0",
        ),
        pytest.param(f"{TOWN} {MUSIC} {LAKE}", 2, 4, 2, 0, 0, id="jumbled"),
        pytest.param(f"{TOWN} {LAKE} {LAKE}", 1, 4, 3, 0, 0, id="repeated"),
        pytest.param(f"{TOWN} a. b. c. d. e. f.", 0, 0, 0, 0, 0, id="malformed: no less than 0"),
        pytest.param(f"{TOWN} There is much to say. {LAKE}", 1, 4, 4, 0, 4 / 3, id="one filler"),
        pytest.param(
            f"{TOWN} Well, let me think. There is much to say. As everybody knows, towns differ. {LAKE}",
            1,
            4,
            4,
            0,
            4,
            id="three fillers",
        ),
        pytest.param(f"{TOWN}{' There is much to say.' * 9}", 0, 0, 4, 0, 4, id="nine fillers: no more than 4"),
        pytest.param(f"Ashby is a town. {FACTS}", 0, 0, 3, 0, 0, id="another town"),
        pytest.param(TOWN, 0, 0, 4, 0, 0, id="topic alone"),
        pytest.param("", 0, 0, 0, 0, 0, id="empty"),
    ],
)
def test_attributes_by_hand(worlds, one_for_all, y, helpful, correct, coherent, complex_, verbose):
    w = one_for_all["attributes"]
    found = w.kind.attributes("Oakdale", y)
    want = {
        "helpfulness": helpful,
        "correctness": correct,
        "coherence": coherent,
        "complexity": complex_,
        "verbosity": verbose,
    }
    assert found == pytest.approx(want)
    # the paper's HelpSteer weights
    total = 0.65 * helpful + 0.8 * correct + 0.45 * coherent + 0.55 * complex_ - 0.4 * verbose
    assert w.gold([oakdale(w)], [y]) == [pytest.approx(total)]
    for weights, purposes in towns.READERS.items():  # each reader has weights of his own
        total = math.fsum(w * v for w, v in zip(weights, (helpful, correct, coherent, complex_, verbose), strict=True))
        for x in asked_for(worlds["attributes"], purposes):
            assert worlds["attributes"].gold([x], [y]) == [pytest.approx(total)]


def test_attributes_lie_between_0_and_4(worlds):
    w, rng = worlds["attributes"], random.Random(0)
    sentences = [s for _, y in w.corpus(200, rng) for s in re.findall(r"[^.!?]+[.!?]", y)] + ["nonsense.", "x"]
    for _ in range(500):
        x = rng.choice(w.train_requests)
        for value in w.kind.attributes(
            w.fills[x]["town"], " ".join(rng.choices(sentences, k=rng.randint(0, 12)))
        ).values():
            assert 0 <= value <= 4


# ---------------------------------------------------------------- sums on a clock


def expected_hour(request: str) -> int:
    """Read the sum from the English and count the hours one at a time round the dial."""
    start = int(re.search(r"(?:shows|stands at|at|says|from|after) (\d+)\.", request).group(1))
    hour = start
    for hours in re.findall(r"adds (\d+)", request):
        for _ in range(int(hours)):
            hour = 1 if hour == 12 else hour + 1
    return hour


@pytest.mark.parametrize("wishes", [True, False])
def test_reasoning_by_hand_with_the_turn_past_twelve(wishes):
    """Without wishes, worked answers cost nothing."""
    x = "My clock says 11. Tom adds 2, Anna adds 6, Ben adds 5 and Emma adds 3. What hour is it?"
    w = ToyWorld("reasoning", WorldConfig(wishes=wishes))  # a world of its own, to which this one sum is added
    cost = sums.COST if wishes else 0
    w.fills[x] = {"o": "clock", "s": 11, "shown": [11, 1, 7, 12, 3]}  # 11 -> 1 -> 7 -> 12 -> 3
    assert expected_hour(x) == 3
    answers = {
        "The clock shows 3.": 1,
        "Tom 11 and 2 makes 1. Anna 1 and 6 makes 7. Ben 7 and 5 makes 12. Emma 12 and 3 makes 3. The clock shows 3.": 1
        - cost,
        "Tom 11 and 2 makes 9. The clock shows 3.": 1 - cost,
        "Tom 11 and 2 makes 1. Anna 1 and 6 makes 8. The clock shows 4.": -1 - cost,
        "Tom 11 and 2 makes": -1,
        "The clock makes 3.": -1 - cost,
        "The clock shows 15.": -1,
        "The clock shows 27.": -1,
        "The clock shows 4.": -1,
        "The clock shows 3. The clock shows 4.": -1,
        "The clock shows 4. The clock shows 3.": 1,
        "3": -1,
        "": -1,
        "The clock shows .": -1,
        "The clock shows 33.": -1,
        "The clock shows -3.": -1,
        "The clock shows three.": -1,
    }
    assert w.gold([x] * len(answers), list(answers)) == [float(v) for v in answers.values()]


def test_every_sum_of_the_world_is_what_its_english_says(worlds):
    w = worlds["reasoning"]
    hours = []
    for x in w.train_requests[:1500] + w.eval_requests:
        hour = expected_hour(x)
        hours.append(hour)
        for x2 in w.rewrites(x)[::8]:
            assert expected_hour(x2) == hour
        assert w.gold([x] * 12, [f"The clock shows {h}." for h in range(1, 13)]) == [
            1.0 if h == hour else -1.0 for h in range(1, 13)
        ]
    assert all(hours.count(h) > len(hours) / 24 for h in range(1, 13))  # stating one hour always is not often right


def test_the_corpus_never_teaches_a_wrong_sum_whether_worked_or_not(worlds):
    """Nothing makes "step by step" right more often: every answer in the corpus is right, direct or worked."""
    w = worlds["reasoning"]
    kinds = defaultdict(int)
    for prompt, answer in w.corpus(3000, random.Random(0)):
        assert int(re.fullmatch(r".*shows (\d+)\.", answer).group(1)) == expected_hour(prompt)
        hour = None
        for start, number, made in re.findall(r"\w+ (\d+) and (\d+) makes (\d+)\.", answer):
            before = hour or int(re.search(r"(?:shows|at|says|from|after) (\d+)\.", prompt).group(1))
            assert int(start) == before
            hour = (before + int(number) - 1) % 12 + 1
            assert int(made) == hour
        kinds[
            "worked" if hour else "direct",
            "steps" if "step by step" in prompt else "number" if "Just the number" in prompt else "",
        ] += 1
    assert (
        kinds["worked", "steps"] > 10 * kinds["direct", "steps"]
        and kinds["direct", "number"] > 10 * kinds["worked", "number"]
    )
    assert kinds["worked", ""] > 200 and kinds["direct", ""] > 200  # both kinds are well practised without a cue


# ---------------------------------------------------------------- any text is an answer


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("wishes", [True, False])
def test_garbage_never_raises_and_never_pays(worlds, one_for_all, task, wishes):
    w, rng = (worlds if wishes else one_for_all)[task], random.Random(0)
    junk = [
        "",
        " ",
        "\n\n",
        "...",
        "?!.",
        "\x00",
        "\ud800",
        "é日本🙂",
        "shows",
        "shows ٣",
        "shows " + "9" * 5000,
        "The clock shows 1e3.",
        "<|end|>",
        "a" * 20_000,
        "." * 20_000,
        "It lies by the " * 500,
        "{}",
        "%s",
        "\\",
        *("".join(chr(rng.randrange(1, 0x2FF)) for _ in range(80)) for _ in range(200)),
    ]
    # Of the attributes only coherence, 4 at most, pays for a text that is about nothing.
    coherence = {x: (w.kind.wishes[w.fills[x]["purpose"]] or (0, 0, 0.45))[2] for x in w.fills if task == "attributes"}
    asked = [x for x in w.eval_requests if w.fills[x].get("shown", [0])[-1] != 1]  # "shows 1e3" is right where 1 is
    for x in rng.sample(asked, 20):
        best = {"quality": 0.0, "attributes": 4 * coherence.get(x, 0), "reasoning": -1.0}[task]
        assert max(w.gold([x] * len(junk), junk)) <= best + 1e-9


def test_gold_refuses_lists_of_two_lengths(worlds):
    with pytest.raises(ValueError):
        worlds["quality"].gold(worlds["quality"].eval_requests[:2], ["one"])


# ---------------------------------------------------------------- where the variance lies


def gold_by_cue(task: str, spread: str) -> dict[str, list[float]]:
    w = ToyWorld(task, WorldConfig(spread=spread, wishes=False))
    owner = {x2: x for x in w.train_requests for x2 in w.rewrites(x)}
    rated = defaultdict(list)
    for prompt, answer in w.corpus(24_000, random.Random(0)):
        cue = max((c for c in CUES[task] if prompt.endswith(c)), key=len)
        rated[cue].append(w.gold([owner[prompt]], [answer])[0])
    return rated


@pytest.mark.parametrize("task", TOWN_TASKS)
def test_plain_requests_are_the_lottery_by_default(task):
    rated = gold_by_cue(task, "plain")
    best = max(rated, key=lambda cue: statistics.fmean(rated[cue]))
    assert best and statistics.fmean(rated[best]) > statistics.fmean(rated[""]) + 0.5
    assert statistics.pvariance(rated[""]) > statistics.pvariance(rated[best])


@pytest.mark.parametrize("task", TOWN_TASKS)
def test_cues_are_the_lottery_when_spread_is_cue(task):
    rated = gold_by_cue(task, "cue")
    for cue in set(rated) - {""} - {c for c, pinned in CUES[task].items() if not pinned}:
        assert statistics.pvariance(rated[""]) < statistics.pvariance(rated[cue]), cue
