"""The reward of a run: the pairs that it learns from, and what of an answer is rated."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from doubles import Letters

from alignpro_mini.frozen import Answer, SamplingConfig
from alignpro_mini.lab import rewards
from alignpro_mini.lab.cli import with_options
from alignpro_mini.lab.config import preset
from alignpro_mini.lab.run import Run
from alignpro_mini.lab.setup import setup_of
from alignpro_mini.training import Truncated
from alignpro_mini.worlds.towns import TOWNS


class Silent:
    """A prompter whose rewrite of every second request is empty."""

    def rewrite(self, requests, generator):
        return ["" if i % 2 else f"please {x}" for i, x in enumerate(requests)]


class Echo:
    def __init__(self):
        self.asked = []

    def fits(self, text):
        return True

    def answer(self, prompts, generator):
        self.asked += prompts
        return [Answer(p, truncated=False) for p in prompts]


def made_pairs(config, pi_f):
    """The preference pairs of this configuration, of the answers of `pi_f`."""
    world = setup_of(config).make_world()
    draw = torch.Generator().manual_seed(0)
    return rewards.preferences(config.preferences, config.seed, world, pi_f, Silent(), draw)


def test_preferences_are_between_answers_that_ppo_would_get(tmp_path):
    """An empty rewrite is not sent: x is sent instead, as in the other stages."""
    config = with_options(
        preset("tiny"), {"out": str(tmp_path), "preferences.pairs": 200, "preferences.mismatched": 1.0}
    )
    pi_f = Echo()
    pairs = made_pairs(config, pi_f)
    same, mismatched = pairs[:200], pairs[200:]
    assert len(mismatched) == 200 and len(pi_f.asked) == 400, "mismatched pairs need no further answers"
    asked = [pair.prompt for pair in same] * 2
    assert pi_f.asked == [x if i % 2 else f"please {x}" for i, x in enumerate(asked)]
    assert not any(pair.mismatched for pair in same) and all(pair.mismatched for pair in mismatched)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.5, 20), (2.0, 80)])
def test_a_mismatched_pair_holds_an_answer_and_what_it_is_for_another_town(tmp_path, share, count):
    """The second answer is the first one's text with another town; the same noisy judge labels the pair."""
    options = {"preferences.pairs": 40, "reward_model.batch_size": 8, "preferences.mismatched": share}
    config = with_options(preset("tiny"), options | {"out": str(tmp_path), "preferences.scale": 50.0})
    world = setup_of(config).make_world()

    class Names(Echo):
        def answer(self, prompts, generator):
            return [
                Answer(f"{next(t for t in TOWNS if t in x)} is a town.", truncated=i % 2 == 1)
                for i, x in enumerate(prompts)
            ]

    found = made_pairs(config, Names())
    assert len(found) == 40 + count
    for pair in found[40:]:
        town = world.fills[pair.prompt]["town"]
        assert pair.chosen == f"{town} is a town." and pair.rejected != pair.chosen, "right by the gold reward"
        assert pair.rejected.split()[0] in TOWNS and pair.certainty > 0.99
        assert type(pair.chosen) is type(pair.rejected), "a truncated text stays truncated"
    assert count == 0 or {type(pair.chosen) for pair in found[40:]} == {str, Truncated}


@pytest.mark.parametrize(("name", "want"), [("tiny", "ab. cdef"), ("smollm2", "ab.")])
def test_a_run_cuts_the_answers_as_it_rates_them(tmp_path, monkeypatch, name, want):
    """At the frozen LM's limit by its own tokens; a real model's answers are rated up to their last whole sentence."""

    class Seen(Exception):
        pass

    def describe(model, pairs, cut):
        raise Seen([cut("ab. cdefgh"), cut("ab. cde")])

    monkeypatch.setattr(rewards, "accuracy_facts", describe)
    monkeypatch.setattr(rewards, "new_reward_model", lambda *_: SimpleNamespace(tokenizer=None))
    monkeypatch.setattr(rewards, "split_by_prompt", lambda *_: ([], []))
    for name_ in ("preferences", "usable_pairs", "TrunkCache", "train_reward_model"):
        monkeypatch.setattr(rewards, name_, lambda *_: [])
    config = replace(preset(name), out=str(tmp_path), sampling=SamplingConfig(max_new_tokens=8))
    pi_f = SimpleNamespace(tokenizer=Letters(letters="abcdefgh. "))
    with pytest.raises(Seen) as told:
        rewards.learned_reward(Run(config), setup_of(config), None, pi_f, None)
    cut, whole = told.value.args[0]
    assert (cut, type(cut), whole, type(whole)) == (want, Truncated, "ab. cde", str)
