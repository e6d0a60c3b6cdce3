"""Everyday requests in which people say what they need, and a rating of how well an answer serves it.

    request = a wish + a question about a topic      "I only have a minute. How do I begin with keeping bees?"
    rewrite = the request word for word + one of 29 endings

A small model answers the question and ignores the wish. So one ending does not serve all requests: which is best depends
on what was said. Each kind of wish is said in ten ways, never by the words of the ending that serves it. Held out are
topics and two ways of each kind: evaluation is on neither. SFT teaches the prompter to leave half of the requests as
they are, whatever their wish.

    kind       what is wanted, `rating` 0 to 4 before `off topic`
    hurry      about 12 words               4 - 1.5 |log2(words / 12)|
    evening    a long answer                words / 12                             (a plain answer is long already)
    list       items of a list              4/3 items
    low        warm sentences               4 x the share of sentences with VADER's compound sentiment above 0.4
    child      short sentences, plain words 4 - (words a sentence - 8) / 4 - 10 x the share of words with 9 letters or more
    worried    warnings                     4/3 x the sentences with a word of WARNINGS
    passing    an ordinary answer           4 min(1, words / 30) - |words a sentence - 14| / 4 - 2 for a list
                                            - 2 x the share of sentences that VADER finds glad or sad (beyond +-0.6)
                                            - 1 for each "!" and each warning
                                            (nothing needs to be done: people say many things that ask for nothing)

    off topic  1 less where the answer takes up no content word of the question (by its first five letters)

It is a stand-in for a person's rating, and bounded as such ratings are (HelpSteer: 0 to 4). Needs
`pip install -e '.[smollm2]'` (vaderSentiment).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from functools import lru_cache

from alignpro_mini.worlds.everyday import ENDINGS, QUESTIONS, TOPICS, UNSEEN_TOPICS, EverydayRequests
from alignpro_mini.worlds.gold import COMMON
from alignpro_mini.worlds.sentences import WORD, sentences
from alignpro_mini.worlds.vader import compound

SEEN = 8  # ways of a kind that training sees; the others are held out
WISHES: dict[str, tuple[str, ...]] = {
    kind: tuple(ways.split("|"))
    for kind, ways in {
        "hurry": "I only have a minute.|My bus leaves in a moment.|I am reading this at a red light.|I am in a hurry."
        "|My lunch break is almost over.|I have to go right away.|They are waiting for me at the door."
        "|My battery is nearly empty.|The meeting begins now.|I am already late.",
        "evening": "I have the whole evening to read.|I want to know all there is to know.|Take your time, I am in no rush."
        "|I have a long train ride ahead of me.|I want to understand it thoroughly.|I am writing a long report about it."
        "|I have read a lot about it and still want more.|My whole weekend is free for this."
        "|I have all day.|Nothing that you can tell me is too much.",
        "list": "I need something that I can tick off.|I want to pin it to the fridge.|I will put it into my planner."
        "|I like to cross things out when they are done.|I take it to the shop with me.|I want to work through it one by one."
        "|It has to fit into a table.|I will copy it into my notebook, line by line."
        "|I want boxes to tick.|It goes on the whiteboard, row by row.",
        "low": "I feel a bit low today.|I had a hard week.|Nobody believes that I can do it.|I am close to giving up."
        "|I have been crying a lot.|I have lost all confidence.|Everything went wrong this month."
        "|My friends laughed at me for it.|I feel so alone with this.|I do not trust myself any more.",
        "child": "My daughter is five and asks me.|I read this aloud to my second grade.|I am seven years old."
        "|My grandson wants to know.|I am still learning English.|I never went to school for long."
        "|It is for a picture book.|My little brother asks me this every day."
        "|I tell it to my kids at bedtime.|I teach in a kindergarten.",
        "worried": "I am afraid of doing something wrong.|I do not want any nasty surprises.|My neighbour got hurt doing it."
        "|I am the one who has to sign for it.|I want to be on the safe side.|My insurance asks me about it."
        "|I have heard bad stories.|I must not lose any money on it."
        "|My mother is worried about me.|I want to know what I am getting into.",
        "passing": "My sister asked me about it.|I saw it on television.|It came up at dinner.|I was just wondering."
        "|A colleague talked about it yesterday.|I read a book about it last year.|My uncle does it."
        "|I heard it on the radio.|It was in the newspaper.|Somebody at the gym told me about it.",
    }.items()
}
# Beside those of the everyday requests, what the wishes need.
MORE_ENDINGS = (
    "Give me a numbered list.|Write it as a checklist.|Explain it to a child of six.|Cheer me up.|Say what to look out for."
).split("|")
WARNINGS = set(
    "avoid beware careful carefully caution cautious danger dangerous dangers harm harmful hazard hazards injure injured"
    " injuries injury mistake mistakes pitfall pitfalls prevent problem problems risk risks risky safe safely safety"
    " unsafe warn warning warnings worry wrong".split()
)
ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.MULTILINE)


_KINDS = {way: kind for kind, ways in WISHES.items() for way in ways}


def split(request: str) -> tuple[str, str]:
    """The wish of a request, and its question."""
    end = request.index(".") + 1
    return request[:end], request[end + 1 :]


def kind_of(request: str) -> str:
    """The kind of wish that the request begins with. Raises KeyError for a request that is not of this world."""
    return _KINDS[split(request)[0]]


# ---------------------------------------------------------------- the rating


def rating(requests: Sequence[str], answers: Sequence[str]) -> list[float]:
    """How well each answer serves the wish of its request, 0 to 4, by the formulas at the top."""
    return [_rating(x, y) for x, y in zip(requests, answers, strict=True)]


def _rating(request: str, answer: str) -> float:
    parts = sentences(answer)
    if not parts:
        return 0.0
    said = WORD.findall(answer.lower())
    served = SERVED[kind_of(request)](answer, parts, said)
    return min(4.0, max(0.0, served - (not _on_topic(request, said))))


def _on_topic(request: str, said: Sequence[str]) -> bool:
    asked = {word[:5] for word in WORD.findall(split(request)[1].lower()) if word not in COMMON}
    return not asked or not asked.isdisjoint(word[:5] for word in said)


def _warnings(parts: Sequence[str]) -> int:
    return sum(not WARNINGS.isdisjoint(WORD.findall(part.lower())) for part in parts)


_sentiment = lru_cache(100_000)(compound)  # answers repeat sentences


def _plain(parts: Sequence[str], said: Sequence[str]) -> float:
    long_words = sum(len(word) >= 9 for word in said) / len(said)
    return 4 - max(0.0, len(said) / len(parts) - 8) / 4 - 10 * long_words


def _ordinary(answer: str, parts: Sequence[str], said: Sequence[str]) -> float:
    shape = 4 * min(1.0, len(said) / 30) - abs(len(said) / len(parts) - 14) / 4 - 2 * bool(ITEM.search(answer))
    moved = sum(abs(_sentiment(part)) > 0.6 for part in parts) / len(parts)
    return shape - 2 * moved - answer.count("!") - _warnings(parts)


SERVED = {
    "hurry": lambda answer, parts, said: 4 - 1.5 * abs(math.log2(len(said) / 12)),
    "evening": lambda answer, parts, said: len(said) / 12,
    "list": lambda answer, parts, said: 4 / 3 * len(ITEM.findall(answer)),
    "low": lambda answer, parts, said: 4 * sum(_sentiment(part) > 0.4 for part in parts) / len(parts),
    "child": lambda answer, parts, said: _plain(parts, said),
    "worried": lambda answer, parts, said: 4 / 3 * _warnings(parts),
    "passing": _ordinary,
}


# ---------------------------------------------------------------- the requests


class WishRequests(EverydayRequests):
    """A `World` of requests that begin with a wish."""

    task = "wishes"
    endings = (*ENDINGS, *MORE_ENDINGS)
    left_alone = 0.5  # a prompter should leave most requests of the kind `passing` as they are

    def _compose(self, seed: int) -> tuple[list[str], list[str]]:
        """Requests to train on; held out are other topics, with wishes in other words."""
        seen = {kind: ways[:SEEN] for kind, ways in WISHES.items()}
        unseen = {kind: ways[SEEN:] for kind, ways in WISHES.items()}
        return (
            requests_with(seen, TOPICS, random.Random(f"wishes {seed}")),
            requests_with(unseen, UNSEEN_TOPICS, random.Random(f"wishes {seed}")),
        )

    def with_other_wish(self, requests: Sequence[str], rng: random.Random) -> list[str]:
        """The same questions with wishes of another kind; where training does not see a way, one that it does not see."""

        def other(x: str) -> str:
            way, question = split(x)
            held_out = way in WISHES[kind_of(x)][SEEN:]
            kind = rng.choice([kind for kind in WISHES if kind != kind_of(x)])
            return f"{rng.choice(WISHES[kind][SEEN:] if held_out else WISHES[kind][:SEEN])} {question}"

        return [other(x) for x in requests]

    def kinds(self, requests: Sequence[str]) -> list[str]:
        """Their kinds of wish."""
        return [kind_of(x) for x in requests]

    def describe(self, requests: Sequence[str], rewrites: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
        """As everyday requests, and the share of `passing` requests that are sent as they are."""
        each = max(1, len(requests) // max(1, len(rewrites)))  # answers to a rewrite
        alone = [x == x_prime for x, x_prime in zip(requests[::each], rewrites) if kind_of(x) == "passing"]
        left = {"passing_left_alone": sum(alone) / len(alone)} if alone else {}
        return super().describe(requests, rewrites, answers) | left


def requests_with(wishes: dict[str, Sequence[str]], topics: Sequence[str], rng: random.Random) -> list[str]:
    """Every way to say a wish with every question about every topic, in random order; the kinds take turns."""
    questions = [question.format(topic) for topic in topics for question in QUESTIONS]
    by_kind = [[f"{way} {question}" for way in ways for question in questions] for ways in wishes.values()]
    for requests in by_kind:
        rng.shuffle(requests)
    return [x for turn in zip(*by_kind) for x in turn]
