"""A known true reward for a real model's answers, so that over-optimisation of a learned one shows.

    gold(x, y) = z(kind) + z(topic) - z(length)        z(m) = (m - MEAN) / SD, over the answers of a first listing

    kind     mean over the sentences of y of VADER's compound sentiment, -1 to 1
    topic    share of the content words of x that y takes up (by their first five letters)
    length   words a sentence: short sentences are easy to read

It is a stand-in for a judge, not a claim that such answers are good. Equal weights, and no ceiling that answers reach:
a sentence can always be kinder or shorter. Only `topic` reads x. An answer without any sentence gets LOW, about the
5 % quantile. Needs `pip install -e '.[smollm2]'` (vaderSentiment).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from alignpro_mini.options import UserError
from alignpro_mini.worlds.sentences import END

SCALES = {"kind": (0.333, 0.290), "topic": (0.606, 0.402), "length": (14.68, 5.81)}  # mean, standard deviation
LOW = -3.0
WORD = re.compile(r"[a-z']+")
# Words of a request that say nothing of its topic.
COMMON = set(
    "a about advice am an and are as at be begin beginner by can could did do doing does enjoy for friend from gave get"
    " give going had hard has have how i in is it its know like little me money much my need of on once only or people"
    " please say should so some take tell that the them there they thinking this time to tried up was we week what when"
    " where which who why will with would worth you your hour".split()
)


@lru_cache(1)
def vader_analyzer():
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise UserError("VADER's scores need vaderSentiment: pip install -e '.[smollm2]', or give --gold and --reward of yours") from None
    return SentimentIntensityAnalyzer()


@lru_cache(100_000)
def _sentiment(sentence: str) -> float:
    return vader_analyzer().polarity_scores(sentence)["compound"]


def sentences(text: str) -> list[str]:
    """The sentences of a text; what follows the last end is one too."""
    starts = [0, *(match.end() for match in END.finditer(text))]
    parts = (text[a:b].strip() for a, b in zip(starts, [*starts[1:], len(text)]))
    return [part for part in parts if WORD.search(part.lower())]


def measures(request: str, answer: str) -> dict[str, float] | None:
    """`kind`, `topic` and `length` of an answer before scaling; None for one without any sentence."""
    parts = sentences(answer)
    if not parts:
        return None
    said = {word[:5] for word in WORD.findall(answer.lower())}
    asked = {word[:5] for word in WORD.findall(request.lower()) if word not in COMMON}
    return {
        "kind": sum(map(_sentiment, parts)) / len(parts),
        "topic": len(asked & said) / max(1, len(asked)),
        "length": sum(len(WORD.findall(part.lower())) for part in parts) / len(parts),
    }


def friendly(requests: Sequence[str], answers: Sequence[str]) -> list[float]:
    """The gold reward of each answer, by the formula above."""
    z = lambda m, name: (m[name] - SCALES[name][0]) / SCALES[name][1]
    found = (measures(x, y) for x, y in zip(requests, answers, strict=True))
    return [z(m, "kind") + z(m, "topic") - z(m, "length") if m else LOW for m in found]
