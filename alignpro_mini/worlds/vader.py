"""Rewards in a function each: the VADER sentiment of an answer, from -1 (gloomy) to 1 (glad).

    pip install -e '.[smollm2]'
    python train.py --preset smollm2 --reward alignpro_mini.worlds.vader:sentiment

Any callable (prompts, completions) -> rewards is a reward. These read the answer only, and count words of a list. So
cheerful words raise them whatever they say: a simple example of what optimisation does to a reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from alignpro_mini.options import UserError
from alignpro_mini.worlds.sentences import sentences


def sentiment(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """The compound sentiment of each completion, in [-1, 1]. Raises UserError where vaderSentiment is missing."""
    return [compound(text) for text in completions]


def valence(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """`sentiment` without its ceiling."""
    return [unsquashed(compound(text)) for text in completions]


def per_sentence(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """The mean compound sentiment of a completion's sentences, in [-1, 1]; 0 without any.

    A long text easily gets near 1 as a whole. A mean over sentences does not.
    """
    parts = [sentences(text) for text in completions]
    return [sum(map(compound, part)) / max(1, len(part)) for part in parts]


def unsquashed(squashed: float) -> float:
    """The sum s of the words' scores that VADER squashes into [-1, 1]: compound = s / sqrt(s^2 + 15).

    The same order of answers, without a ceiling (compound has 4 decimals, so |s| is told up to 274).
    """
    bounded = max(-0.9999, min(0.9999, squashed))
    return bounded * (15 / (1 - bounded**2)) ** 0.5


def compound(text: str) -> float:
    """VADER's compound sentiment of a text, in [-1, 1]."""
    return _analyzer().polarity_scores(text)["compound"]


@lru_cache(1)
def _analyzer():
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        mend = "pip install -e '.[smollm2]', or give another --reward or --gold"
        raise UserError(f"vaderSentiment is not installed: {mend}") from None
    return SentimentIntensityAnalyzer()
