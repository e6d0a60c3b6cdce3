"""Requests that begin with a wish: what is composed, what is held out, and ratings by hand."""

import random
from collections import Counter

import pytest

from alignpro_mini.worlds.everyday import TOPICS, UNSEEN_TOPICS
from alignpro_mini.worlds.files import DataConfig
from alignpro_mini.worlds.sentences import WORD
from alignpro_mini.worlds.wishes import SEEN, WISHES, WishRequests, kind_of, rating, split

QUESTION = "How do I begin with keeping bees?"


def wishes(eval_inputs: int = 512, seed: int = 0) -> WishRequests:
    return WishRequests(DataConfig(), eval_inputs, seed)


def asked(kind: str) -> str:
    return f"{WISHES[kind][0]} {QUESTION}"


# ---------------------------------------------------------------- the requests


def test_topics_and_ways_to_say_a_wish_are_held_out():
    world = wishes()
    ways = lambda requests: {split(x)[0] for x in requests}
    assert ways(world.train_requests) == {way for said in WISHES.values() for way in said[:SEEN]}
    assert ways(world.eval_requests) <= {way for said in WISHES.values() for way in said[SEEN:]}
    assert set(world.groups(world.train_requests)) == set(TOPICS)
    assert set(world.groups(world.eval_requests)) == set(UNSEEN_TOPICS)
    assert len(set(world.train_requests)) == 7 * 8 * 10 * 52 and len(set(world.eval_requests)) == 512
    assert wishes(seed=1).eval_requests != world.eval_requests == wishes().eval_requests


def test_the_kinds_take_turns():
    world = wishes()
    for requests in (world.train_requests, world.eval_requests):
        assert world.kinds(requests[:14]) == list(WISHES) * 2


def test_a_wish_is_never_said_in_the_words_of_an_ending():
    """Only words of three letters and more: "a", "I" or "it" say nothing."""
    words = lambda texts: {word for text in texts for word in WORD.findall(text.lower()) if len(word) > 2}
    common = {
        "all",
        "and",
        "for",
        "how",
        "not",
        "one",
        "that",
        "the",
        "them",
        "they",
        "tell",
        "why",
        "with",
        "will",
        "what",
    }
    common |= {"about", "every", "know", "only", "out"}
    said = words([way for ways in WISHES.values() for way in ways])
    assert said & words(WishRequests.endings) <= common
    assert all(
        len(ways) == 10 and all(way.count(".") == 1 and way.endswith(".") for way in ways) for ways in WISHES.values()
    )
    assert len({way for ways in WISHES.values() for way in ways}) == 70


def test_another_wish_is_of_another_kind_for_the_same_question():
    world = wishes()
    for requests, where in ((world.train_requests[:70], slice(SEEN)), (world.eval_requests[:70], slice(SEEN, None))):
        others = world.with_other_wish(requests, random.Random(0))
        for x, other in zip(requests, others, strict=True):
            assert split(x)[1] == split(other)[1] and kind_of(x) != kind_of(other)
            assert split(other)[0] in WISHES[kind_of(other)][where], "a training request stays one"
        assert len(Counter(world.kinds(others))) == 7


def test_the_share_of_requests_that_need_nothing_and_are_left_alone():
    world = wishes()
    x, other = asked("passing"), asked("hurry")
    found = world.describe([x, x, x, x, other, other], [x, f"{x} Be brief.", other], [""] * 6)
    assert found == {"kept_word_for_word": 1.0, "passing_left_alone": 0.5}
    assert "passing_left_alone" not in world.describe([other] * 2, [other], [""] * 2)


# ---------------------------------------------------------------- the rating

TWELVE = "Buy one hive, read about bees and ask a keeper near you."
LONG = " ".join(["Bees are kept in hives near flowers and water all year."] * 5)  # 55 words
FOURTEEN = "Bees are kept in hives near flowers and water all year in the north."
LIST = "What you need for bees:\n- a hive\n- a veil\n1. a smoker\n* gloves"


@pytest.mark.parametrize(
    ("kind", "answer", "rated"),
    [
        ("hurry", TWELVE, 4.0),
        ("hurry", f"{TWELVE} {TWELVE}", 4 - 1.5),  # twice the words
        ("hurry", "Buy bees first.", 4 - 1.5 * 2),  # a quarter
        ("hurry", LONG, 4 - 1.5 * 2.196),
        ("evening", TWELVE, 1.0),
        ("evening", LONG, 4.0),
        ("list", TWELVE, 0.0),
        ("list", "Bees:\n- a hive\n2) a veil", 8 / 3),
        ("list", LIST, 4.0),
        ("low", "You will love your bees. It is a wonderful idea! Buy a hive.", 8 / 3),
        ("low", "Bees sting.", 0.0),
        ("child", "Bees live in a box. They make honey.", 4.0),  # four words a sentence
        ("child", "Beekeeping necessitates considerable preparation.", 0.0),
        ("worried", "Avoid cold days with bees. Wear a veil. A sting is a risk.", 8 / 3),
        ("worried", "Buy a hive for bees.", 0.0),
        ("passing", LONG, 4 - 3 / 4),  # 11 words a sentence
        ("passing", f"{LONG} Never do it alone, it is a risk!", 4 - 3.5 / 4 - 1 - 1),  # 63 words, 6 sentences
        ("passing", LIST, 0.0),  # 13 words, and a list
        ("passing", f"{FOURTEEN} {FOURTEEN}", 4 * 28 / 30),
        (
            "passing",
            f"{FOURTEEN} I love this wonderful and great and happy life with bees so very much.",
            4 * 28 / 30 - 1,
        ),
        ("evening", LONG.replace("Bees", "Cats"), 55 / 12 - 1),  # off topic
        ("hurry", "", 0.0),
    ],
)
def test_ratings_by_hand(kind, answer, rated):
    if kind in ("low", "passing"):
        pytest.importorskip("vaderSentiment")
    assert rating([asked(kind)], [answer]) == [pytest.approx(rated, abs=2e-3)]


def test_the_same_answer_serves_one_wish_and_not_another():
    kinds = ("hurry", "evening", "list")
    table = {kind: [rating([asked(kind)], [y])[0] for y in (TWELVE, LONG, LIST)] for kind in kinds}
    best = {kind: max(range(3), key=row.__getitem__) for kind, row in table.items()}
    assert [best[kind] for kind in kinds] == [0, 1, 2]
