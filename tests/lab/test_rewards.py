"""The reward of a run: the pairs that it learns from, and what of an answer is rated."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from doubles import Letters

from alignpro_mini.frozen import Answer, SamplingConfig
from alignpro_mini.lab import rewards
from alignpro_mini.lab.cli import with_options
from alignpro_mini.lab.config import PreferenceConfig, preset
from alignpro_mini.lab.run import Run
from alignpro_mini.lab.setup import setup_of
from alignpro_mini.options import UserError
from alignpro_mini.training import Truncated
from alignpro_mini.worlds.towns import TOWNS, TRUTH


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


TWO_ANSWERS = {"preferences.answers_per_request": 2}


def made_pairs(config, pi_f):
    """The preference pairs of this configuration, of the answers of `pi_f`."""
    world = setup_of(config).make_world()
    draw = torch.Generator().manual_seed(0)
    return rewards.preferences(config.preferences, config.seed, world, pi_f, Silent(), draw)


def test_preferences_are_between_answers_that_ppo_would_get(tmp_path):
    """An empty rewrite is not sent: x is sent instead, as in the other stages."""
    options = {"preferences.pairs": 200, "preferences.mismatched": 1.0, "preferences.other_wish": 0.0} | TWO_ANSWERS
    config = with_options(preset("tiny"), options | {"out": str(tmp_path)})
    pi_f = Echo()
    pairs = made_pairs(config, pi_f)
    same, mismatched = pairs[::2], pairs[1::2]  # side by side
    assert len(mismatched) == 200 and len(pi_f.asked) == 400, "mismatched pairs need no further answers"
    asked = [pair.prompt for pair in same] * 2
    assert pi_f.asked == [x if i % 2 else f"please {x}" for i, x in enumerate(asked)]
    assert not any(pair.mismatched for pair in same) and all(pair.mismatched for pair in mismatched)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.5, 20), (2.0, 80)])
def test_a_mismatched_pair_holds_an_answer_and_what_it_is_for_another_town(tmp_path, share, count):
    """The second answer is the first one's text with another town; the same noisy judge labels the pair."""
    options = {"preferences.pairs": 40, "reward_model.batch_size": 8, "preferences.mismatched": share}
    options |= {"preferences.other_wish": 0.0} | TWO_ANSWERS
    config = with_options(preset("tiny"), options | {"out": str(tmp_path), "preferences.scale": 50.0})
    world = setup_of(config).make_world()

    class Names(Echo):
        def answer(self, prompts, generator):
            return [
                Answer(f"{next(t for t in TOWNS if t in x)} is a town.", truncated=i % 2 == 1)
                for i, x in enumerate(prompts)
            ]

    found = made_pairs(config, Names())
    mismatched = [pair for pair in found if pair.mismatched]
    assert len(found) == 40 + count == 40 + len(mismatched)
    for pair in mismatched:
        town = world.fills[pair.prompt]["town"]
        assert pair.chosen == f"{town} is a town." and pair.rejected != pair.chosen, "right by the gold reward"
        assert pair.rejected.split()[0] in TOWNS and pair.certainty > 0.99
        assert type(pair.chosen) is type(pair.rejected), "a truncated text stays truncated"
    assert count == 0 or {type(pair.chosen) for pair in mismatched} == {str, Truncated}


class Style(Echo):
    """Its first answers hold a fact and no warmth, all later ones warmth and no fact."""

    def answer(self, prompts, generator):
        bare, self.asked = not self.asked, self.asked + prompts
        towns = [next(t for t in TOWNS if t in x) for x in prompts]
        facts = [f"{t} is a town. It lies by the {TRUTH[t][0]}." for t in towns]
        warm = [f"Happy to help! {t} is a town. Enjoy your visit!" for t in towns]
        return [Answer(text, truncated=False) for text in (facts if bare else warm)]


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.3, 12), (1.0, 40)])
def test_a_pair_under_another_wish_holds_the_same_two_answers(tmp_path, share, count):
    """It is a training request for another purpose, judged by what is wanted then; nothing more is asked."""
    options = {"preferences.pairs": 40, "reward_model.batch_size": 8, "preferences.other_wish": share}
    options |= {"preferences.mismatched": 0.5, "preferences.scale": 200.0, "out": str(tmp_path)} | TWO_ANSWERS
    config = with_options(preset("tiny"), options)
    world, pi_f = setup_of(config).make_world(), Style()
    pairs = made_pairs(config, pi_f)
    assert len(pairs) == 40 + count + 20 and len(pi_f.asked) == 80
    assert sum(pair.mismatched for pair in pairs) == 20
    ranked = [pair for pair in pairs if not pair.mismatched]
    same, again = ranked[:40], ranked[40:]
    turned = 0
    for before, after in zip(same, again):  # the first ones, in their order
        assert {after.chosen, after.rejected} == {before.chosen, before.rejected}
        a, b = world.fills[before.prompt], world.fills[after.prompt]
        assert a["purpose"] != b["purpose"] and a | {"purpose": ""} == b | {"purpose": ""}
        assert world.kind.wishes[a["purpose"]] != world.kind.wishes[b["purpose"]]
        assert after.prompt in world.train_requests
        good, bad = world.gold([after.prompt] * 2, [after.chosen, after.rejected])
        assert good > bad and after.certainty > 0.99 or good == bad and after.certainty == 0.5
        turned += after.chosen == before.rejected
    assert count == 0 or turned > 0, "what is better for one purpose is worse for another"


def test_nothing_is_judged_under_another_wish_where_there_is_none(tmp_path):
    for options in ({"world.wishes": False}, {"task": "reasoning"}):
        options |= {
            "preferences.pairs": 200,
            "preferences.mismatched": 0.5,
            "preferences.other_wish": 1.0,
        } | TWO_ANSWERS
        pairs = made_pairs(with_options(preset("tiny"), options | {"out": str(tmp_path)}), Echo())
        assert len(pairs) == 300 and sum(pair.mismatched for pair in pairs) == 100
    for share in (-0.1, 1.1):
        with pytest.raises(UserError, match=f"other_wish is {share}; it is a share of the pairs"):
            PreferenceConfig(other_wish=share)


# ---------------------------------------------------------------- whether the reward reads the request


def facts_of(config, score, pi_f) -> dict:
    """What the swap tests say of a reward model, of which only `score` is there."""
    run, world = SimpleNamespace(config=config), setup_of(config).make_world()
    model = SimpleNamespace(score=score(world))
    return rewards.swap_facts(run, world, pi_f, Silent(), model, torch.Generator().manual_seed(0))


def test_a_reward_that_reads_nothing_fails_both_swap_tests_and_the_true_one_passes_them(tmp_path):
    config = with_options(preset("tiny"), {"out": str(tmp_path), "eval.inputs": 60})
    blind = facts_of(config, lambda world: lambda xs, ys: [float(len(y)) for y in ys], Style())
    assert blind["swap_accuracy"]["wish"] == 0.5 and 0.2 < blind["swap_accuracy"]["subject"] < 0.8
    assert blind["swap_ceiling"]["wish"] == 1.0
    true = facts_of(config, lambda world: world.gold, Style())
    assert true["swap_accuracy"] == true["swap_ceiling"] == blind["swap_ceiling"]
    town = lambda world: lambda xs, ys: [float(world.fills[x]["town"] in y) for x, y in zip(xs, ys)]
    assert facts_of(config, town, Style())["swap_accuracy"] == {"subject": 1.0, "wish": 0.5}, "each test sees one part"
    warm = lambda world: lambda xs, ys: [float(y.startswith("Happy") == is_warm(world, x)) for x, y in zip(xs, ys)]
    is_warm = lambda world, x: world.kind.wishes[world.fills[x]["purpose"]].warmth > 0.5
    assert facts_of(config, warm, Style())["swap_accuracy"] == {"subject": 0.5, "wish": 1.0}


@pytest.mark.parametrize("options", [{"world.wishes": False}, {"task": "reasoning"}])
def test_there_is_no_test_of_the_wish_where_nobody_wishes_anything_else(tmp_path, options):
    config = with_options(preset("tiny"), options | {"out": str(tmp_path), "eval.inputs": 20})
    pi_f = Echo()
    facts = facts_of(config, lambda world: world.gold, pi_f)
    assert list(facts["swap_accuracy"]) == list(facts["swap_ceiling"]) == ["subject"]
    assert len(pi_f.asked) == 20, "no second answer is asked for"


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
