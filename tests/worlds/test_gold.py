"""The known true reward of a real model's answers, by hand; VADER is replaced by a table where it is not installed."""

import pytest

from alignpro_mini.worlds import gold


@pytest.fixture
def kind(monkeypatch):
    """A sentence with "nice" is 0.8, one with "bad" -0.5, any other 0."""
    score = lambda sentence: 0.8 * ("nice" in sentence) - 0.5 * ("bad" in sentence)
    monkeypatch.setattr(gold, "_sentiment", score)


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
