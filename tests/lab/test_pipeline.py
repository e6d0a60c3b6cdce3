"""The training stages: what is refused before any training, and what each model is given."""

import dataclasses
import json

import pytest
import torch
from micro import TINY

from alignpro_mini.frozen import Answer
from alignpro_mini.lab import pipeline
from alignpro_mini.lab.cli import with_options
from alignpro_mini.lab.config import preset
from alignpro_mini.lab.run import Run
from alignpro_mini.options import UserError
from alignpro_mini.training import Truncated
from alignpro_mini.transformer import Transformer, TransformerConfig
from alignpro_mini.worlds.towns import TOWNS


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prompter_model.n_heads": 5}, "--prompter_model: .*n_heads 5"),
        ({"frozen_model.n_kv_heads": 3}, "--frozen_model: .*n_kv_heads 3"),
        ({"reward": "no_such_module:f"}, "--reward no_such_module:f: No module"),
    ],
)
def test_what_would_fail_after_the_sft_is_told_before_it(options, told):
    with pytest.raises(UserError, match=told):
        pipeline.make_world(with_options(preset("tiny"), options).validate())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"reward_base": "nowhere"}, "nowhere"),
        ({"data.preferences": "pairs.jsonl"}, "pairs.jsonl:2: field 'rejected' is missing"),
    ],
)
def test_of_a_real_model_too(tmp_path, monkeypatch, options, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text(
        '{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "d", "chosen": "b"}\n'
    )
    monkeypatch.setattr(pipeline, "_gold", lambda config: None)  # the package's own needs one more package
    there = pipeline.load_tokenizer
    monkeypatch.setattr(pipeline, "load_tokenizer", lambda model: there(model) if model else None)
    with pytest.raises((UserError, OSError), match=told):
        pipeline.make_world(with_options(preset("smollm2"), options).validate())


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


def test_preferences_are_between_answers_that_ppo_would_get(tmp_path):
    """An empty rewrite is not sent: x is sent instead, as in the other stages."""
    config = with_options(
        preset("tiny"), {"out": str(tmp_path), "reward_model.pairs": 200, "reward_model.mismatched": 1.0}
    )
    run, world, pi_f = Run(config), pipeline.make_world(config), Echo()
    pairs = pipeline._preferences(run, world, pi_f, Silent(), torch.Generator().manual_seed(0))
    same, mismatched = pairs[:200], pairs[200:]
    assert len(mismatched) == 200 and len(pi_f.asked) == 400, "mismatched pairs need no further answers"
    asked = [pair.prompt for pair in same] * 2
    assert pi_f.asked == [x if i % 2 else f"please {x}" for i, x in enumerate(asked)]
    assert not any(pair.mismatched for pair in same) and all(pair.mismatched for pair in mismatched)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.5, 20), (2.0, 80)])
def test_a_mismatched_pair_holds_an_answer_and_what_it_is_for_another_town(tmp_path, share, count):
    """The second answer is the first one's text with another town; the same noisy judge labels the pair."""
    options = {"reward_model.pairs": 40, "reward_model.batch_size": 8, "reward_model.mismatched": share}
    config = with_options(preset("tiny"), options | {"out": str(tmp_path), "reward_model.preference_scale": 50.0})
    run, world = Run(config), pipeline.make_world(config)

    class Names(Echo):
        def answer(self, prompts, generator):
            return [
                Answer(f"{next(t for t in TOWNS if t in x)} is a town.", truncated=i % 2 == 1)
                for i, x in enumerate(prompts)
            ]

    found = pipeline._preferences(run, world, Names(), Silent(), torch.Generator().manual_seed(0))
    assert len(found) == 40 + count
    for pair in found[40:]:
        town = world.fills[pair.prompt]["town"]
        assert pair.chosen == f"{town} is a town." and pair.rejected != pair.chosen, "right by the gold reward"
        assert pair.rejected.split()[0] in TOWNS and pair.certainty > 0.99
        assert type(pair.chosen) is type(pair.rejected), "a truncated text stays truncated"
    assert count == 0 or {type(pair.chosen) for pair in found[40:]} == {str, Truncated}


def test_a_vocabulary_that_a_failed_start_left_behind_is_not_used(tmp_path):
    few = TINY | {"out": str(tmp_path), "name": "r", "device": "cpu", "frozen_lm.steps": 1}
    config = with_options(preset("tiny"), few)
    run = Run(config)
    (run.path / "tokenizer.json").write_text(json.dumps("of another run"))
    tokenizer, lm = pipeline.frozen_lm(run, pipeline.make_world(config))
    assert lm.model.config.vocab_size == tokenizer.vocab_size == config.vocab_size
    again = Run(dataclasses.replace(config), resume=True)
    assert pipeline.frozen_lm(again, pipeline.make_world(config))[0].encode("Tell me") == tokenizer.encode("Tell me")


def test_a_reward_model_may_keep_the_lower_blocks_only():
    shape = TransformerConfig(300, d_model=16, n_layers=3, n_heads=2, max_len=32)
    model = Transformer(shape, torch.Generator().manual_seed(0)).eval()
    ids = torch.randint(300, (2, 7), generator=torch.Generator().manual_seed(1))
    lower = pipeline.copy_of(model, 1, 2)
    assert lower.config.n_layers == len(lower.blocks) == 2
    assert torch.equal(lower.hidden(ids), model.norm(model.hidden(ids, stop=2)))
    assert torch.equal(pipeline.copy_of(model)(ids), model(ids))
    with pytest.raises(UserError, match="--reward_model.blocks is 4, but the model has 3: lower it"):
        pipeline.copy_of(model, 1, 4)
