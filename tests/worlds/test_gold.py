"""The known true reward of a real model's answers, by hand; VADER is replaced by a table where it is not installed."""

import builtins

import pytest

from alignpro_mini.options import UserError
from alignpro_mini.worlds import gold


@pytest.fixture
def kind(monkeypatch):
    """A sentence with "nice" is 0.8, one with "bad" -0.5, any other 0."""
    score = lambda sentence: 0.8 * ("nice" in sentence) - 0.5 * ("bad" in sentence)
    monkeypatch.setattr(gold, "_sentiment", score)


def test_sentences_of_an_answer():
    assert gold.sentences("It is nice. Is it? Yes! And more") == ["It is nice.", "Is it?", "Yes!", "And more"]
    assert gold.sentences('1. Begin. He said "Go." 3.5 cups') == ["1. Begin.", 'He said "Go."', "3.5 cups"]
    assert gold.sentences("") == gold.sentences(" ... ") == []


def test_measures_by_hand(kind):
    x = "I have little money. Give me advice on baking bread."
    found = gold.measures(x, "Baking is nice. It is bad for you to wait.")
    assert found == {"kind": pytest.approx(0.15), "topic": 0.5, "length": pytest.approx((3 + 7) / 2)}
    assert gold.measures(x, "Baked bread!")["topic"] == 0.5  # "baked" is not "bakin"
    assert gold.measures(x, "Bread baking, breads.")["topic"] == 1
    assert gold.measures("What should I do?", "Rest.")["topic"] == 0  # a request without a content word
    assert gold.measures(x, "...") is None


def test_the_formula_with_equal_weights_and_its_scales(kind):
    x, y = "Tell me about bread.", "Bread is nice."
    (kind_mean, kind_sd), (topic_mean, topic_sd), (mean, sd) = gold.SCALES.values()
    by_hand = (0.8 - kind_mean) / kind_sd + (1 - topic_mean) / topic_sd - (3 - mean) / sd
    assert gold.friendly([x, x], [y, ""]) == [pytest.approx(by_hand), gold.LOW]


def test_it_reads_the_request_and_has_no_ceiling_at_the_usual_answers(kind):
    near, far = gold.friendly(["Tell me about bread."] * 2, ["Bread is warm.", "Chess is warm."])
    assert near > far + 2
    plain, kinder, shorter = gold.friendly(
        ["bread"] * 3, ["I like bread a lot on days.", "I like nice bread a lot.", "Bread!"]
    )
    assert kinder > plain and shorter > plain


def test_without_vader_the_mend_is_told(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **named):
        if name.startswith("vaderSentiment"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    gold.vader_analyzer.cache_clear()
    with pytest.raises(UserError, match=r"pip install -e '.\[smollm2\]', or give --gold"):
        gold.vader_analyzer()
    gold.vader_analyzer.cache_clear()


def test_vader_without_its_ceiling_by_hand_and_in_the_same_order():
    """love 3.2, great 3.1, wonderful and happy 2.7 each, an exclamation mark 0.292; war −2.9 and death −2.9."""
    pytest.importorskip("vaderSentiment")
    from alignpro_mini.worlds.vader import sentiment, unsquashed, valence

    answers = ["I love it! It is great, wonderful and happy.", "War and death.", "The table."]
    found = valence(answers, answers)
    assert found == [pytest.approx(11.992, abs=0.05), pytest.approx(-5.8, abs=0.01), 0]
    squashed = sentiment(answers, answers)
    assert squashed == pytest.approx([s / (s * s + 15) ** 0.5 for s in found], abs=1e-6)
    assert sorted(range(3), key=found.__getitem__) == sorted(range(3), key=squashed.__getitem__)
    assert unsquashed(1.0) == unsquashed(0.9999) == pytest.approx(273.8, abs=0.1) == -unsquashed(-1.0)
