"""VADER as a reward; and what is told where it is not installed."""

import sys
from dataclasses import replace

import pytest

from alignpro_mini.lab.config import preset
from alignpro_mini.lab.setup import setup_of
from alignpro_mini.options import UserError
from alignpro_mini.worlds import vader


@pytest.fixture
def without_vader(monkeypatch):
    """As on a machine where it is not installed."""
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    vader._analyzer.cache_clear()
    yield
    vader._analyzer.cache_clear()


def test_a_missing_package_is_told_with_the_mend_before_anything_is_trained(without_vader):
    mend = r"pip install -e '.\[smollm2\]', or give another --reward or --gold"
    with pytest.raises(UserError, match=mend):
        vader.sentiment(["Why?"], ["Because."])
    for options in ({"reward": "alignpro_mini.worlds.vader:valence"}, {}):  # without a reward the gold one judges
        with pytest.raises(UserError, match=mend):
            setup_of(replace(preset("smollm2"), **options)).make_world()


def test_vader_without_its_ceiling_by_hand_and_in_the_same_order():
    """love 3.2, great 3.1, wonderful and happy 2.7 each, an exclamation mark 0.292; war −2.9 and death −2.9."""
    pytest.importorskip("vaderSentiment")
    answers = ["I love it! It is great, wonderful and happy.", "War and death.", "The table."]
    found = vader.valence(answers, answers)
    assert found == [pytest.approx(11.992, abs=0.05), pytest.approx(-5.8, abs=0.01), 0]
    squashed = vader.sentiment(answers, answers)
    assert squashed == pytest.approx([s / (s * s + 15) ** 0.5 for s in found], abs=1e-6)
    assert sorted(range(3), key=found.__getitem__) == sorted(range(3), key=squashed.__getitem__)
    assert vader.unsquashed(1.0) == vader.unsquashed(0.9999) == pytest.approx(273.8, abs=0.1) == -vader.unsquashed(-1.0)
