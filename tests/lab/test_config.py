"""Every option: frozen, explained, checked, and refused with one helpful line when it cannot be.

The command line is made from the dataclasses, so these tests walk over all of them.
"""

import dataclasses
import json
import re
from dataclasses import replace
from functools import reduce

import pytest
import torch

from alignpro_mini.lab import cli
from alignpro_mini.lab.cli import MAIN_OPTIONS, leaves, parse_command_line, with_options
from alignpro_mini.lab.config import PRESETS, EvalConfig, RunConfig, preset
from alignpro_mini.lab.device import resolve_device
from alignpro_mini.lab.setup import setup_of
from alignpro_mini.options import UserError
from alignpro_mini.ppo import PPOConfig
from alignpro_mini.reward import RewardConfig
from alignpro_mini.sft import SFTConfig


def get(config, dotted: str):
    """The value of an option by its dotted name."""
    return reduce(getattr, dotted.split("."), config)


def parse(*argv):
    runs, _ = parse_command_line(list(argv))
    return runs


def refused(capsys, *argv) -> str:
    """The one line that a user gets; exit status 2, nothing on stdout."""
    with pytest.raises(SystemExit) as stop:
        parse_command_line(list(argv))
    out, err = capsys.readouterr()
    told = [line for line in err.strip().splitlines() if not line.startswith("usage:")]
    assert stop.value.code == 2 and out == "" and len(told) == 1, err
    assert told[0].startswith("train.py: error: ")
    return told[0]


def configs(name="tiny") -> list:
    whole = preset(name)
    return [whole] + [v for f in dataclasses.fields(whole) if dataclasses.is_dataclass(v := getattr(whole, f.name))]


# ---------------------------------------------------------------- the dataclasses


@pytest.mark.parametrize("part", configs(), ids=lambda c: type(c).__name__)
def test_nothing_can_be_changed_or_added(part):
    for field in dataclasses.fields(part):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field.name, None)
    with pytest.raises((AttributeError, TypeError)):
        part.not_an_option = 1
    with pytest.raises(AttributeError):  # slots: nor by going around the frozen dataclass
        object.__setattr__(part, "not_an_option", 1)
    with pytest.raises(TypeError, match="not_an_option"):
        type(part)(not_an_option=1)


@pytest.mark.parametrize("name", PRESETS)
def test_every_option_is_explained(name):
    for dotted, field in leaves(preset(name)).items():
        assert len(field.metadata.get("help", "")) > 5, dotted


@pytest.mark.parametrize("name", ["micro", "tiny", "small", "gpt2"])
def test_presets_are_valid_and_their_models_can_be_built(name):
    c = preset(name)
    setup_of(c).check()
    assert c.preset == name
    for shape in (c.frozen_model, c.prompter_model):
        built = shape.transformer(c.vocab_size)
        assert built.n_kv_heads > 0 and built == dataclasses.replace(
            built, **{f.name: getattr(shape, f.name) for f in dataclasses.fields(shape) if f.name != "n_kv_heads"}
        )
        assert built.vocab_size == c.vocab_size and built.n_kv_heads == (shape.n_kv_heads or shape.n_heads)
    for dotted, field in leaves(c).items():
        choices = field.metadata.get("choices")
        assert not choices or get(c, dotted) in choices, dotted
    assert json.loads(json.dumps(dataclasses.asdict(c)))["ppo"]["lr"] == c.ppo.lr


def test_presets_grow():
    width = [preset(name).frozen_model.d_model for name in ("micro", "tiny", "small", "gpt2")]
    assert width == sorted(width) and width[-1] == 768 and preset("gpt2").frozen_model.n_layers == 12
    with pytest.raises(UserError, match="preset is 'huge'.*micro, tiny, small"):
        preset("huge")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: PPOConfig(batch_size=4, num_minibatches=5), "num_minibatches is 5; a batch of 4 cannot be cut"),
        (lambda: PPOConfig(num_minibatches=0), "num_minibatches is 0"),
        (lambda: PPOConfig(temperature=0.0), "temperature is 0.0; it must be above 0"),
        (lambda: PPOConfig(gae_lambda=1.1), "gae_lambda is 1.1"),
        (lambda: PPOConfig(warmup_ratio=8), "warmup_ratio is 8"),
        (lambda: PPOConfig(kl_coef=-0.1), "kl_coef"),
        (lambda: PPOConfig(kl_coef=float("nan")), "kl_coef"),
        (lambda: PPOConfig(lr=0.0), "lr is 0"),
        (lambda: PPOConfig(lr=float("nan")), "lr is nan"),
        (lambda: PPOConfig(micro_batch_size=0), "micro_batch_size is 0"),
        (lambda: PPOConfig(answers=0), "answers"),
        (lambda: SFTConfig(lr=-1e-3), "lr is -0.001"),
        (lambda: SFTConfig(steps=0), "steps"),
        (lambda: RewardConfig(heldout_share=1.0), r"heldout_share is 1\.0.*\(0, 1\)"),
        (lambda: RewardConfig(batch_size=0), "batch_size is 0"),
        (lambda: EvalConfig(inputs=1), "inputs"),
        (lambda: EvalConfig(rewrites=1, answers=1), "no variance"),
        (lambda: EvalConfig(bootstrap=0), "bootstrap"),
        (lambda: EvalConfig(best_of_n=0), "best_of_n is 0"),
        (lambda: EvalConfig(headroom_inputs=1), "headroom_inputs"),
        (lambda: RunConfig(dtype="float16"), "dtype is 'float16'.*float32, bfloat16"),
        (lambda: RunConfig(reward="my_module"), "module:function"),
    ],
)
def test_impossible_values_stop_at_once_not_after_the_training(make, told):
    with pytest.raises(UserError, match=told):
        make()


# ---------------------------------------------------------------- options by name


def test_overriding_nested_fields_leaves_all_others_alone():
    base = preset("tiny")
    changed = with_options(base, {"ppo.lr": 1e-5, "ppo.batch_size": 64, "world.spread": "cue", "seed": 7})
    assert (changed.ppo.lr, changed.ppo.batch_size, changed.world.spread, changed.seed) == (1e-5, 64, "cue", 7)
    followed = {"oracle.lr", "oracle.batch_size"}
    for dotted in leaves(base).keys() - followed - {"ppo.lr", "ppo.batch_size", "world.spread", "seed"}:
        assert get(changed, dotted) == get(base, dotted), dotted
    assert base == preset("tiny")


def test_the_oracle_is_the_same_ppo_unless_it_is_told_otherwise():
    for name in PRESETS:
        c = preset(name)
        if not c.real_model:
            own = {"answers", "temperature", "max_new_tokens", "train_layers"}
            own |= {"iterations"} if name == "tiny" else set()  # an answer is longer than a rewrite
            for f in dataclasses.fields(c.ppo):
                assert f.name in own or getattr(c.oracle, f.name) == getattr(c.ppo, f.name), (name, f.name)
            assert c.oracle.max_new_tokens == c.sampling.max_new_tokens
            assert c.oracle.temperature == c.sampling.temperature
    asked = {"ppo.kl_coef": 0.3, "ppo.iterations": 7, "ppo.answers": 4, "ppo.temperature": 0.5, "oracle.iterations": 9}
    asked |= {"ppo.max_new_tokens": 20, "sampling.temperature": 0.8, "sampling.max_new_tokens": 30}
    c = with_options(preset("tiny"), asked)
    assert (c.oracle.kl_coef, c.oracle.iterations, c.oracle.answers) == (0.3, 9, 1)
    assert (c.oracle.temperature, c.oracle.max_new_tokens) == (0.8, 30)
    assert dataclasses.asdict(c)["oracle"]["kl_coef"] == 0.3, "config.json holds numbers"
    assert with_options(c, {"sampling.temperature": 0.0}).oracle.temperature == 0.8, "greedy sampling cannot explore"


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("ppo.lrr", "ppo.lr"),
        ("ppo.iteration", "ppo.iterations"),
        ("ppo.kl_coeff", "ppo.kl_coef"),
        ("sead", "seed"),
        ("prompter_sft.step", "prompter_sft.steps"),
        ("eval.bestof", "eval.best_of_n"),
    ],
)
def test_an_unknown_option_is_an_error_that_names_the_nearest(capsys, wrong, near):
    with pytest.raises(UserError, match=rf"unknown option --{wrong}; did you mean --{near}\?"):
        with_options(preset("tiny"), {wrong: 1})
    for argv in ([f"--{wrong}", "3"], [f"--{wrong}=3"], ["--seed", "1", f"--{wrong}", "3", "--ppo.lr", "1e-4"]):
        told = refused(capsys, *argv)
        assert f"unknown argument --{wrong}" in told and told.endswith(f"did you mean --{near}?")


def test_an_option_is_not_abbreviated_and_a_stray_word_is_refused(capsys):
    assert "unknown argument --ppo.iter" in refused(capsys, "--ppo.iter", "3")
    assert "unknown argument quality" in refused(capsys, "quality")
    assert "--ppo.lr" in refused(capsys, "--ppo.lr")  # its value is missing


def test_values_become_the_type_of_their_field(monkeypatch):
    (c,) = parse(
        "--ppo.iterations",
        "7",
        "--ppo.lr=1e-5",
        "--reward_model.epochs",
        "3",
        "--eval.oracle",
        "no",
        "--ppo.whiten_advantages=True",
        "--name",
        "x y",
        "--task",
        "reasoning",
        "--seed",
        "5",
    )
    assert (c.ppo.iterations, c.ppo.lr, c.reward_model.epochs, c.name) == (7, 1e-5, 3.0, "x y")
    assert type(c.ppo.iterations) is int and type(c.reward_model.epochs) is float
    with monkeypatch.context() as patch:  # whichever way a preset wrote its number
        written = preset("tiny")
        written = replace(written, reward_model=replace(written.reward_model, epochs=2))
        patch.setattr(cli, "preset", lambda name: written)
        (whole,) = parse("--reward_model.epochs", "0.5")
        assert whole.reward_model.epochs == 0.5
    assert c.eval.oracle is False and c.ppo.whiten_advantages is True and (c.task, c.seed) == ("reasoning", 5)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--ppo.batch_size", "many"], "--ppo.batch_size: 'many' is not a valid int"),
        (["--ppo.batch_size", "1.5"], "--ppo.batch_size: '1.5' is not a valid int"),
        (["--ppo.lr", "fast"], "--ppo.lr: 'fast' is not a valid float"),
        (["--eval.oracle", "maybe"], "--eval.oracle: 'maybe' is not a valid bool (give true or false)"),
        (["--frozen_model.family", "lama"], "'lama' is not one of llama, gpt2; did you mean llama?"),
        (["--world.spread", "both"], "--world.spread: 'both' is not one of plain, cue"),
        (["--preset", "tini"], "'tini' is not one of micro, tiny, small, gpt2, smollm2; did you mean tiny?"),
        (["--task", "qualty"], "'qualty' is not one of quality, attributes, reasoning, all; did you mean quality?"),
        (["--task", "quality,"], "--task: '' is not one of"),
        (["--seed", "x"], "--seed: 'x' is not a number, a span"),
        (["--seed", "4-0"], "--seed: '4-0' is not"),
        (["--seed", "0,,1"], "--seed: '0,,1' is not"),
        (["--seed", "-1"], "--seed: '-1' is not"),
        (["--seed", "9" * 400], "--seed: '999"),
        (["--ppo.batch_size", "9" * 400], "is not a valid int (too large)"),
        (["--seed", "0-9999999"], "--seed: '0-9999999' asks for more than 1000 seeds"),  # each would be a run
        (
            ["--ppo.batch_size", "4", "--ppo.num_minibatches", "5"],
            "--ppo.num_minibatches is 5; a batch of 4 cannot be cut into more parts",
        ),
        (
            ["--ppo.batch_size", "1"],
            "--ppo.num_minibatches is 2; a batch of 1 cannot be cut into more parts",
        ),  # the preset's minibatches, the user's batch
        (["--world.follow", "1.5"], "--world.follow is 1.5"),
        (["--eval.inputs", "601"], "--eval.inputs is 601, but --world.eval_requests keeps only 600"),
        (["--task", "chat"], "task is chat, but --preset tiny has quality, attributes, reasoning"),
        (["--data.prompts", "p.jsonl"], "--data.prompts: it is not read with --preset tiny"),
        (["--cut", "whole"], "--cut: it is not read with --preset tiny"),
        (["--data.preferences", "p"], "--data.preferences: it is not read with --preset tiny"),
        (
            ["--preset", "smollm2", "--data.prompts", "p", "--reward", "a:b", "--data.preferences", "p"],
            "--data.preferences: it is not read with --reward",
        ),
        (["--reward", "a:b", "--reward_model.lr", "1"], "--reward_model.lr: it is not read with --reward"),
        (
            ["--preset", "smollm2", "--data.prompts", "p", "--reward", "a:b", "--world.follow", "0.5"],
            "--world.follow: it is not read with --preset smollm2",
        ),
        (
            ["--preset", "smollm2", "--data.prompts", "p", "--reward", "a:b", "--vocab_size", "500"],
            "--vocab_size: it is not read with",
        ),
        (
            ["--task", "all", "--world.spread", "cue"],
            "--world.unseen_towns shape the tasks quality and attributes, not reasoning",
        ),
        (["--ppo.clip_range", "-0.5"], "--ppo.clip_range is -0.5; it must be above 0"),
        (["--ppo.max_grad_norm", "-1"], "--ppo.max_grad_norm is -1.0; it must be above 0"),
        (["--prompter_sft.max_grad_norm", "0"], "--prompter_sft.max_grad_norm is 0.0; it must be above 0"),
        (["--frozen_lm.heldout_examples", "0"], "--frozen_lm.heldout_examples is 0; it must be at least 1"),
        (["--frozen_lm.train_layers", "-1"], "--frozen_lm.train_layers is -1; it must be at least 0"),
        (["--ppo.adaptive_kl_horizon", "0"], "--ppo.adaptive_kl_horizon is 0.0; it must be above 0"),
        (
            ["--ppo.adaptive_kl_target", "5", "--ppo.adaptive_kl_horizon", "20"],
            "--ppo.adaptive_kl_horizon must be at least batch_size, 64",
        ),  # a larger share of the target would be paid back in one step: lambda below 0
        (
            ["--ppo.kl_coef", "0", "--ppo.adaptive_kl_target", "5"],
            "--ppo.kl_coef is 0; adaptive_kl_target multiplies it: start above 0",
        ),
        (["--ppo.kl_coef", "nan"], "--ppo.kl_coef is nan; it must be a finite number"),
        (["--oracle.lr", "inf"], "--oracle.lr is inf; it must be a finite number"),
        (["--preferences.scale", "-1"], "--preferences.scale is -1.0; it must be above 0"),
        (["--theory.answers", "0"], "--theory.answers is 0; it must be at least 2"),
        (["--sampling.max_new_tokens", "0"], "--sampling.max_new_tokens is 0; it must be at least 1"),
        (
            ["--ppo.max_new_tokens", "160"],
            "--ppo.max_new_tokens is 160; with the prompt it must fit --prompter_model.max_len 160",
        ),
        (
            ["--oracle.max_new_tokens", "200"],
            "--oracle.max_new_tokens is 200; with the prompt it must fit --frozen_model.max_len 160",
        ),
        (
            ["--preferences.pairs", "10"],
            "--preferences.pairs is 10; it takes at least two batches of --reward_model.batch_size 16",
        ),
        (["--preferences.normalise_on", "1"], "--preferences.normalise_on is 1; it must be at least 2"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--name", "../elsewhere"], "--name: '../elsewhere' is a path"),
        (["--name", "."], "--name: '.' is a path"),
        (["--gold", "a:b"], "--gold is for a real model: the embedded world of --preset tiny has its own"),
        (["--preset", "smollm2", "--gold", "nonsense"], "gold is 'nonsense'; write it as module:function"),
        (
            ["--preset", "smollm2", "--data.preferences", "p", "--preferences.pairs", "64"],
            "--preferences.pairs: it is about pairs of the frozen LM's answers: not read with --data.preferences",
        ),
        (["--preferences.answers_per_request", "6"], "mismatched is 0.5; each answer serves once, 0.4 at most"),
        (["--preset", "smollm2", "--theory.more_answers", "8"], "get equally many answers: raise --theory.answers"),
        (["--preset", "smollm2", "--eval.inputs", "32"], "--theory.inputs is 64, but it takes them from the 32"),
        (
            ["--preset", "smollm2", "--reward", "a:b", "--data.rewrites", "r"],
            "--data.rewrites: it is about requests of your own: only --data.prompts reads it",
        ),
        (
            ["--preset", "smollm2", "--data.prompts", "p", "--reward", "a:b", "--theory.inputs", "4"],
            "--theory.inputs: rewrites of requests from --data.prompts are not enumerated",
        ),
        (["--preset", "smollm2", "--data.prompts", "p.jsonl", "--reward", "nonsense"], "module:function"),
        (
            ["--preset", "smollm2", "--data.prompts", "p", "--reward", "a:b", "--task", "quality"],
            "its task is chat or wishes, not quality",
        ),
        (["--seed", "0-1", "--name", "mine"], "--name names one run"),
        (["--task", "quality,reasoning", "--name", "mine"], "--name names one run"),
        (["--jobs", "two"], "--jobs"),
        (["--device", "mps"], "--device mps: this code was never run on an Apple GPU: use --device cpu"),
        (["--frozen_model.n_heads", "5"], "--frozen_model: "),
        (["--oracle.answers", "4"], "--oracle.answers: it has no effect: the oracle gives one answer a prompt"),
        (["--oracle.lr", "1e-3", "--eval.oracle", "false"], "--oracle.lr: it is not read with --eval.oracle false"),
        (
            ["--ppo.adaptive_kl_horizon", "100"],
            "--ppo.adaptive_kl_horizon: it is not read without --ppo.adaptive_kl_target",
        ),
        (
            ["--ppo.adaptive_kl_target", "3", "--ppo.kl_start", "2"],
            "--ppo.kl_start: it is not read with --ppo.adaptive_kl_target, nor with --ppo.kl_coef 0",
        ),
        (
            ["--ppo.kl_coef", "0", "--ppo.kl_start", "2"],
            "--ppo.kl_start: it is not read with --ppo.adaptive_kl_target, nor with --ppo.kl_coef 0",
        ),
        (
            [
                "--oracle.adaptive_kl_horizon",
                "100",
                "--ppo.adaptive_kl_target",
                "3",
                "--oracle.adaptive_kl_target",
                "0",
            ],
            "--oracle.adaptive_kl_horizon: it is not read without --oracle.adaptive_kl_target",
        ),
        (
            ["--ppo.vf_coef", "1", "--ppo.variant", "rloo", "--ppo.rewrites_per_request", "4"],
            "--ppo.vf_coef: it is not read with --ppo.variant rloo",
        ),
        (
            ["--oracle.gae_lambda", "1", "--oracle.variant", "reinforce++"],
            "--oracle.gae_lambda: it is not read with --oracle.variant reinforce++",
        ),
        (["--ppo.variant", "rloo"], "--ppo.rewrites_per_request is 1; variant rloo compares at least 2"),
        (["--oracle.variant", "grpo"], "--oracle.rewrites_per_request is 1; variant grpo compares at least 2"),
        (
            ["--ppo.rewrites_per_request", "3"],
            "--ppo.batch_size is 64; it must be a multiple of rewrites_per_request, 3",
        ),
        (
            ["--ppo.whiten_advantages", "true", "--ppo.variant", "grpo", "--ppo.rewrites_per_request", "2"],
            "--ppo.whiten_advantages: it is not read with --ppo.variant grpo",
        ),
        (["--ppo.variant", "rlo"], "--ppo.variant: 'rlo' is not one of ppo, reinforce, reinforce++, rloo"),
        (["--ppo.variant", "rlo"], "kl-loss-k3; did you mean rloo?"),
        (["--oracle.variant", "grp"], "did you mean grpo?"),
        (["--preferences.other_wish", "1.5"], "--preferences.other_wish is 1.5; it is a share of the pairs, in 0..1"),
        (["--preferences.mismatched", "3"], "--preferences.mismatched is 3.0; each answer serves once, 0.5 at most"),
        (["--theory.answers", "8", "--theory.inputs", "0"], "--theory.answers: it is not read with --theory.inputs 0"),
        (
            ["--theory.samples", "8", "--eval.oracle", "false"],
            "--theory.samples: it is not read with --eval.oracle false",
        ),
        (
            ["--theory.answers", "8", "--ppo.kl_coef", "0"],
            "--theory.answers: it is not read with --theory.inputs 0, --ppo.kl_coef 0",
        ),
        (["--theory.answers", "8", "--ppo.adaptive_kl_target", "3"], "--ppo.adaptive_kl_target"),
        (["--sampling.top_p", "0.9", "--sampling.temperature", "0"], "--sampling.top_p: it is not read with"),
        (["--reward", "a:b", "--preferences.scale", "3"], "--preferences.scale: it is not read with --reward"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(capsys, argv, told):
    assert told in refused(capsys, *argv)


def test_an_option_is_accepted_where_it_is_read():
    """The options that the cases above refuse for having no effect, where they have one."""
    (c,) = parse("--ppo.adaptive_kl_target", "3", "--ppo.adaptive_kl_horizon", "200", "--oracle.lr", "1e-3")
    assert (c.ppo.adaptive_kl_horizon, c.oracle.lr) == (200.0, 1e-3)
    (c,) = parse("--ppo.answers", "4", "--theory.answers", "8")
    assert (c.ppo.answers, c.theory.answers) == (4, 8)


def test_smollm2_with_its_files_is_accepted():
    (c,) = parse("--preset", "smollm2", "--data.prompts", "p.jsonl", "--data.preferences", "f.jsonl.gz")
    assert c.task == "chat" and c.eval.oracle and c.run_name == "smollm2-chat-seed0"
    for frozen, name in (("api:org/big:8b", "big-8b"), ("models/mine/", "mine"), ("api:m", "m"), ("gpt2", "gpt2")):
        assert replace(c, frozen=frozen).run_name == f"smollm2-chat-{name}-seed0"
    assert c.oracle.kl_coef == c.ppo.kl_coef and c.oracle.temperature == c.sampling.temperature
    assert c.oracle.max_new_tokens == c.sampling.max_new_tokens


def test_a_variant_that_is_not_there_is_refused_wherever_it_was_set():
    config = with_options(preset("tiny"), {"ppo.variant": "rlo"})
    with pytest.raises(UserError, match="--ppo.variant is 'rlo'; it must be one of ppo, reinforce"):
        setup_of(config).check()
    config = with_options(preset("tiny"), {"ppo.variant": "grpo", "ppo.rewrites_per_request": 2})
    setup_of(config).check()
    assert config.oracle.variant == "grpo" and config.oracle.rewrites_per_request == 2, "the same PPO for both"


def test_all_tasks_and_five_seeds_are_fifteen_runs():
    runs = parse("--task", "all", "--seed", "0-4", "--ppo.lr", "1e-4")
    assert {(r.task, r.seed) for r in runs} == {
        (t, s) for t in ("quality", "attributes", "reasoning") for s in range(5)
    }
    assert len({r.run_name for r in runs}) == len(runs) == 15 and all(r.ppo.lr == 1e-4 for r in runs)


def test_seeds_may_be_a_list_and_are_counted_once():
    assert [r.seed for r in parse("--seed", "3,0-2,1")] == [3, 0, 1, 2]


def test_defaults_are_the_presets_and_overrides_sit_on_top():
    assert parse() == [preset("tiny")]
    (c,) = parse("--preset", "gpt2", "--frozen_model.n_layers", "6")
    assert c == dataclasses.replace(
        preset("gpt2"), frozen_model=dataclasses.replace(preset("gpt2").frozen_model, n_layers=6)
    )


def shown(capsys, *argv) -> tuple[str, list[str]]:
    """What --help prints, and the names of the options in it."""
    with pytest.raises(SystemExit) as stop:
        parse_command_line(list(argv))
    out, err = capsys.readouterr()
    assert stop.value.code == 0 and err == ""
    return out, re.findall(r"^  --(\S+)", out, re.MULTILINE)


@pytest.mark.parametrize("name", PRESETS)
def test_help_all_lists_every_option_with_the_presets_default(capsys, name):
    out, listed = shown(capsys, "--preset", name, "--help", "all")
    assert sorted(listed) == sorted(["resume", "jobs", *leaves(preset(name))])
    lines = out.split("\n  --")
    for dotted in leaves(preset(name)):
        (entry,) = [line for line in lines if line.startswith(f"{dotted} ")]
        default = str(get(preset(name), dotted))
        told = f"(default: {default})".replace(" ", "") in "".join(entry.split())
        assert told if default else "(default" not in entry, dotted


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["--preset", "gpt2", "--help"]], ids=" ".join)
def test_help_shows_the_main_options_only(capsys, argv):
    out, listed = shown(capsys, *argv)
    assert sorted(listed) == sorted(MAIN_OPTIONS) and len(listed) == len(MAIN_OPTIONS) == 15
    assert MAIN_OPTIONS <= {"resume", "jobs", *leaves(preset("tiny"))}
    assert "--help all" in out and "--child" not in out


# ---------------------------------------------------------------- the device


@pytest.mark.parametrize(
    ("name", "count", "told"),
    [
        ("cuda", 0, "0 usable CUDA devices; use --device cpu"),
        ("cuda:1", 1, "--device cuda:1: this machine has 1 usable"),
        ("gpu", 0, "--device gpu: not a device"),
        ("mps", 0, "--device mps: .*never run on an Apple GPU.*--device cpu"),
        ("meta", 0, "--device meta: only cpu and cuda are supported"),
        ("", 0, "not a device"),
    ],
)
def test_a_device_that_is_not_there_is_a_clear_error(monkeypatch, name, count, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(UserError, match=told):
        resolve_device(name)


def test_auto_takes_a_gpu_when_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("auto").type == "cuda" and resolve_device("cuda:0").index == 0
