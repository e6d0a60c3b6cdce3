"""Rewards in one function each: the VADER sentiment of an answer, from -1 (gloomy) to 1 (glad).

    pip install -e '.[smollm2]'
    python train.py --preset smollm2 --reward alignpro_mini.worlds.vader:sentiment

Any callable (prompts, completions) -> rewards is a reward. These read the answer only, and count words of a list. So
cheerful words raise them whatever they say: a simple example of what optimisation does to a reward. They raise UserError
where the package vaderSentiment is not installed.
"""

from __future__ import annotations

from alignpro_mini.worlds.gold import sentences, vader_analyzer


def sentiment(prompts: list[str], completions: list[str]) -> list[float]:
    """The compound sentiment of each completion, in [-1, 1]."""
    return [vader_analyzer().polarity_scores(text)["compound"] for text in completions]


def unsquashed(compound: float) -> float:
    """The sum s of the words' scores that VADER squashes into [-1, 1]: compound = s / sqrt(s^2 + 15).

    The same order of answers, without a ceiling (compound has 4 decimals, so |s| is told up to 274).
    """
    bounded = max(-0.9999, min(0.9999, compound))
    return bounded * (15 / (1 - bounded**2)) ** 0.5


def valence(prompts: list[str], completions: list[str]) -> list[float]:
    """`sentiment` without its ceiling."""
    return [unsquashed(compound) for compound in sentiment(prompts, completions)]


def per_sentence(prompts: list[str], completions: list[str]) -> list[float]:
    """The mean compound sentiment of a completion's sentences, in [-1, 1]; 0 without any.

    A long text easily gets near 1 as a whole. A mean over sentences does not.
    """
    parts = [sentences(text) for text in completions]
    return [sum(sentiment([""] * len(part), part)) / max(1, len(part)) for part in parts]
