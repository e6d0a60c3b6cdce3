"""A reward in one function: the VADER sentiment of an answer, from -1 (gloomy) to 1 (glad).

    pip install -e '.[smollm2]'
    python train.py --preset smollm2 --reward tutorials.vader_reward:sentiment

Any callable (prompts, completions) -> rewards is a reward. This one reads the answer only, and counts words of a list. So
cheerful words raise it whatever they say: a simple example of what optimisation does to a reward.
"""

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from alignpro_mini.worlds.gold import sentences

analyzer = SentimentIntensityAnalyzer()


def sentiment(prompts: list[str], completions: list[str]) -> list[float]:
    """The compound sentiment of each completion, in [-1, 1]."""
    return [analyzer.polarity_scores(text)["compound"] for text in completions]


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
