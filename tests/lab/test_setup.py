"""The embedded world and real models: the same stages, and what is refused before any training."""

import dataclasses
import inspect
import json
from dataclasses import replace

import pytest

from alignpro_mini.lab import pipeline, real
from alignpro_mini.lab.cli import with_options
from alignpro_mini.lab.config import PRESETS, preset
from alignpro_mini.lab.real import RealModels, RemoteModel
from alignpro_mini.lab.run import Run
from alignpro_mini.lab.setup import Setup, setup_of
from alignpro_mini.lab.toy import EmbeddedWorld
from alignpro_mini.options import UserError


def test_each_kind_of_run_has_its_setup():
    kind = lambda name, **options: type(setup_of(replace(preset(name), **options)))
    assert [kind(name) for name in PRESETS] == [EmbeddedWorld] * 4 + [RealModels]
    assert kind("smollm2", frozen="gpt2") is RealModels and kind("smollm2", frozen="api:m") is RemoteModel


@pytest.mark.parametrize("kind", [EmbeddedWorld, RealModels, RemoteModel])
def test_both_kinds_have_the_same_stages(kind):
    wanted = {name for name in vars(Setup) if not name.startswith("_")}
    assert len(wanted) > 10
    for name in wanted:
        ours = inspect.signature(getattr(kind, name)).parameters
        assert list(ours) == list(inspect.signature(getattr(Setup, name)).parameters), name


def test_a_model_that_nobody_has_here_trains_no_oracle():
    defaults = {"eval.oracle": False, "theory.inputs": 0, "eval.untrained_arms": False}
    for options in ({"frozen": "api:m"}, {"reward": "judge:m"}):
        assert setup_of(replace(preset("smollm2"), **options)).defaults() == defaults
    assert setup_of(preset("smollm2")).defaults() == setup_of(preset("tiny")).defaults() == {}
    with pytest.raises(UserError, match="--eval.oracle true needs the weights of the frozen model"):
        setup_of(replace(preset("smollm2"), frozen="api:m")).check()


def prepared(config):
    """The world of a configuration that has been checked."""
    setup = setup_of(config)
    setup.check()
    return setup.make_world()


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
        prepared(with_options(preset("tiny"), options))


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
    monkeypatch.setattr(real.RealModels, "_gold", lambda self: None)  # the package's own needs one more package
    there = real.load_tokenizer
    monkeypatch.setattr(real, "load_tokenizer", lambda model: there(model) if model else None)
    with pytest.raises((UserError, OSError), match=told):
        prepared(with_options(preset("smollm2"), options))


def test_a_vocabulary_that_a_failed_start_left_behind_is_not_used(tmp_path):
    few = {"out": str(tmp_path), "name": "r", "device": "cpu", "frozen_lm.steps": 1}
    config = with_options(preset("micro"), few)
    run = Run(config)
    (run.path / "tokenizer.json").write_text(json.dumps("of another run"))
    setup = setup_of(config)
    world = setup.make_world()
    tokenizer = setup.tokenizer(run, world)
    lm = pipeline.frozen_lm(run, setup, world, tokenizer)
    assert lm.model.config.vocab_size == tokenizer.vocab_size == config.vocab_size
    again = Run(dataclasses.replace(config), resume=True)
    assert setup.tokenizer(again, world).encode("Tell me") == tokenizer.encode("Tell me")
