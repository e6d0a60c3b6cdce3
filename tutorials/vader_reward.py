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


def valence(prompts: list[str], completions: list[str]) -> list[float]:
    """What VADER squashes into [-1, 1]: compound = s / sqrt(s^2 + 15), and this is s, the sum of the words' scores.

    It puts answers into the same order as `sentiment` and has no ceiling (compound has 4 decimals, so |s| <= 274).
    """
    bounded = (max(-0.9999, min(0.9999, c)) for c in sentiment(prompts, completions))
    return [c * (15 / (1 - c * c)) ** 0.5 for c in bounded]


def per_sentence(prompts: list[str], completions: list[str]) -> list[float]:
    """The mean compound sentiment of a completion's sentences, in [-1, 1]; 0 without any.

    A long text easily gets near 1 as a whole. A mean over sentences does not.
    """
    parts = [sentences(text) for text in completions]
    return [sum(sentiment([""] * len(part), part)) / max(1, len(part)) for part in parts]
