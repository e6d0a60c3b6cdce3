"""A reward in one function: the VADER sentiment of an answer, from -1 (gloomy) to 1 (glad).

    pip install -e '.[smollm2]'
    python train.py --preset smollm2 --reward tutorials.vader_reward:sentiment

Any callable (prompts, completions) -> rewards is a reward. This one reads the answer only, and counts words of a list. So
cheerful words raise it whatever they say: a simple example of what optimisation does to a reward.
"""

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

analyzer = SentimentIntensityAnalyzer()


def sentiment(prompts: list[str], completions: list[str]) -> list[float]:
    """The compound sentiment of each completion, in [-1, 1]."""
    return [analyzer.polarity_scores(text)["compound"] for text in completions]
