"""Every choice of a run in one frozen dataclass, composed of the stages' own options, and the presets.

`--preset` sets the scale; every option can be overridden one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch

from alignpro_mini.frozen import SamplingConfig
from alignpro_mini.options import UserError, check_ranges, option, require
from alignpro_mini.ppo import PPOConfig
from alignpro_mini.remote.client import ApiConfig
from alignpro_mini.reward import RewardConfig
from alignpro_mini.sft import SFTConfig
from alignpro_mini.transformer import TransformerConfig
from alignpro_mini.variants import VARIANTS
from alignpro_mini.worlds.files import DataConfig
from alignpro_mini.worlds.toy import TASKS
from alignpro_mini.worlds.world import WorldConfig

PRESETS = ("micro", "tiny", "small", "gpt2", "smollm2")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class ShapeConfig:
    """The size of a model trained from scratch (the vocabulary comes from the tokenizer)."""

    family: str = option("llama", "architecture family", ("llama", "gpt2"))
    d_model: int = option(96, "width of the residual stream", least=1)
    n_layers: int = option(3, "number of blocks", least=1)
    n_heads: int = option(4, "attention heads per block", least=1)
    n_kv_heads: int = option(0, "key/value heads, each shared by n_heads / n_kv_heads queries (0: n_heads)", least=0)
    max_len: int = option(160, "longest row in tokens: prompt and completion together", least=2)

    __post_init__ = check_ranges

    def transformer(self, vocab_size: int) -> TransformerConfig:
        """This shape with a vocabulary. Raises UserError for one that no transformer has."""
        size = vocab_size, self.d_model, self.n_layers, self.n_heads, self.n_kv_heads
        return TransformerConfig(*size, max_len=self.max_len, family=self.family)


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """The arms on one fixed set of held-out requests."""

    inputs: int = option(512, "evaluation requests, the same for every arm", least=2)
    rewrites: int = option(2, "K, rewrites per request (the arms without a prompter get K x M answers)", least=1)
    answers: int = option(2, "M, answers per rewrite", least=1)
    best_of_n: int = option(4, "n of best-of-n rewriting; the chosen rewrite is answered again", least=1)
    bootstrap: int = option(2000, "resamples of the requests for the 95 % intervals", least=1)
    headroom_inputs: int = option(64, "requests for the headroom diagnostic printed before PPO", least=2)
    oracle: bool = option(True, "train and evaluate the RLHF oracle too")

    def __post_init__(self) -> None:
        check_ranges(self)
        message = "answers is 1 and rewrites is 1: one answer an input has no variance; raise one of them"
        require(self.rewrites * self.answers >= 2, message)


@dataclass(frozen=True, slots=True)
class TheoryConfig:
    """How near PPO came to the exact optimum over the enumerated rewrites (not for requests of files)."""

    inputs: int = option(64, "requests whose rewrites are all tried; 0 leaves the comparison out", least=0)
    answers: int = option(16, "answers to each enumerated rewrite; with fewer the optimum comes out too high", least=2)
    more_answers: int = option(80, "further answers to the best third of a request's rewrites", least=0)
    samples: int = option(4, "answers to each request for the total variations in the bounds", least=1)

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.inputs != 1, "inputs is 1; it takes at least 2, or 0 to leave the comparison out")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One whole run."""

    preset: str = option(
        "tiny",
        "micro: seconds, learns nothing; tiny: minutes on two cores; small; gpt2: for a GPU; smollm2: a chat model",
        PRESETS,
    )
    task: str = option("quality", "the embedded world's task", (*TASKS, "chat"))
    seed: int = option(0, "seed of everything: data, weights, sampling")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 ...; auto takes a GPU when there is one")
    dtype: str = option("float32", "dtype of the frozen LM's weights; what is trained stays in float32", tuple(DTYPES))
    frozen: str = option("", "the frozen model: folder, hub name, or api:MODEL; empty: SmolLM2 (preset smollm2)")
    prompter: str = option("", "what the prompter starts from: folder or hub name; empty: SmolLM2 (preset smollm2)")
    reward_base: str = option("", "what a learned reward starts from: folder or hub name; empty: the frozen model")
    reward: str = option("", "module:function(prompts, completions) -> rewards, or judge:MODEL; empty: learned")
    gold: str = option("", "module:function, the true reward of a real model's answers; empty: the package's own")
    guard: bool = option(False, "replace rewrites with an objection (lab/guards.py) by the request; else only count them")
    stop: bool = option(True, "end PPO when KL, entropy or length run away (lab/guards.py)")
    out: str = option("runs", "folder of the runs")
    name: str = option(
        "", "name of this run's folder; empty: <preset>-<task; smollm2: function of --reward>[-<--frozen>]-seed<seed>"
    )
    vocab_size: int = option(640, "entries of the byte-level BPE tokenizer trained on the world's corpus", least=260)
    frozen_model: ShapeConfig = ShapeConfig(n_layers=2)
    prompter_model: ShapeConfig = ShapeConfig(n_layers=2)
    world: WorldConfig = WorldConfig()
    data: DataConfig = DataConfig()
    frozen_lm: SFTConfig = SFTConfig(steps=1200)
    prompter_sft: SFTConfig = SFTConfig(steps=1200)
    reward_model: RewardConfig = RewardConfig()
    sampling: SamplingConfig = SamplingConfig()
    ppo: PPOConfig = PPOConfig()
    # All else is as in ppo, and `with_options` keeps it so.
    oracle: PPOConfig = PPOConfig(max_new_tokens=SamplingConfig().max_new_tokens)
    eval: EvalConfig = EvalConfig()
    theory: TheoryConfig = TheoryConfig()
    api: ApiConfig = ApiConfig()

    def __post_init__(self) -> None:
        check_ranges(self)
        for name in ("reward", "gold"):
            spec = getattr(self, name)
            written = not spec or spec.count(":") == 1 or (name == "reward" and self.judge)
            require(bool(written), f"{name} is {spec!r}; write it as module:function")
        require(self.frozen != "api:" and self.reward != "judge:", "no model after the colon; write api:MODEL")

    @property
    def real_model(self) -> bool:
        """A published checkpoint, and everyday requests or those of files, instead of the embedded world."""
        return self.preset == "smollm2"

    @property
    def remote(self) -> str:
        """The model behind an API that answers (`--frozen api:MODEL`), or ""."""
        return self.frozen.removeprefix("api:") if self.frozen.startswith("api:") else ""

    @property
    def judge(self) -> str:
        """The model behind an API that is the reward (`--reward judge:MODEL`), or ""."""
        return self.reward.removeprefix("judge:") if self.reward.startswith("judge:") else ""

    @property
    def run_name(self) -> str:
        named = "judge" if self.judge else self.reward.partition(":")[2]
        what = named if self.real_model and named else self.task
        if self.frozen:  # its last part, without what a folder's name cannot hold
            what += "-" + re.sub(r"[^\w.]+", "-", self.frozen.rstrip("/").rpartition("/")[2].removeprefix("api:"))
        return self.name or f"{self.preset}-{what}-seed{self.seed}"

    def validate(self) -> RunConfig:
        """Check combinations of options, and the device; returns self, raises UserError."""
        resolve_device(self.device)
        for ok, message in (*self._rules(), *(self._rules_real() if self.real_model else self._rules_toy())):
            require(ok, message)
        for section in ("ppo", "oracle"):
            c = getattr(self, section)
            names = ", ".join(VARIANTS)
            require(c.variant in VARIANTS, f"--{section}.variant is {c.variant!r}; it must be one of {names}")
            try:
                VARIANTS[c.variant].check(c)
            except UserError as error:  # it begins with the field's name
                raise UserError(f"--{section}.{error}") from None
        for name in () if self.real_model else ("frozen_model", "prompter_model"):
            try:
                getattr(self, name).transformer(self.vocab_size)
            except UserError as error:
                raise UserError(f"--{name}: {error}") from None
        return self

    def _rules(self) -> Iterator[tuple[bool, str]]:
        """(holds, what to say if it does not) for both kinds of model."""
        inputs, tried = self.eval.inputs, self.theory.inputs
        told = f"--theory.inputs is {tried}, but it takes them from the {inputs} of --eval.inputs"
        yield tried <= inputs or bool(self.data.prompts), told

    def _rules_real(self) -> Iterator[tuple[bool, str]]:
        """(holds, what to say if it does not) for a real model."""
        yield self.task == "chat", f"--preset smollm2 works on everyday requests: its task is chat, not {self.task}"
        told = "--eval.oracle true needs the weights of the frozen model, and api:MODEL has none here: leave it out"
        yield not (self.remote and self.eval.oracle), told

    def _rules_toy(self) -> Iterator[tuple[bool, str]]:
        """(holds, what to say if it does not) for the embedded world."""
        inputs, kept = self.eval.inputs, self.world.eval_requests
        yield self.task in TASKS, f"task is {self.task}, but --preset {self.preset} has {', '.join(TASKS)}"
        yield inputs <= kept, f"--eval.inputs is {inputs}, but --world.eval_requests keeps only {kept}"
        shaping, usual = ("follow", "spread", "unseen_towns"), WorldConfig()
        as_usual = all(getattr(self.world, name) == getattr(usual, name) for name in shaping)
        towns = f"--world.{', --world.'.join(shaping)} shape the tasks quality and attributes, not reasoning"
        yield self.task != "reasoning" or as_usual, f"{towns}: leave them or the task out"
        yield not self.judge, f"--reward judge:MODEL is for a real model, not for the embedded world of {self.preset}"
        yield not self.gold, f"--gold is for a real model: the embedded world of --preset {self.preset} has its own"
        pairs, batch = self.reward_model.pairs, self.reward_model.batch_size
        two = f"it takes at least two batches of --reward_model.batch_size {batch}"
        yield pairs >= 2 * batch, f"--reward_model.pairs is {pairs}; {two}"
        for section, model in (("ppo", "prompter_model"), ("sampling", "frozen_model"), ("oracle", "frozen_model")):
            length, longest = getattr(self, section).max_new_tokens, getattr(self, model).max_len
            message = f"--{section}.max_new_tokens is {length}; with the prompt it must fit --{model}.max_len {longest}"
            yield length < longest, message

    def unread(self) -> dict[str, str]:
        """{section or option that this run does not read: why}; setting one is an error, since it would do nothing."""
        found = {"oracle.answers": "it has no effect: the oracle gives one answer a prompt"}
        for section in ("ppo", "oracle"):
            if getattr(self, section).adaptive_kl_target == 0:
                found[f"{section}.adaptive_kl_horizon"] = f"it is not read without --{section}.adaptive_kl_target"
            variant = getattr(self, section).variant
            for name in VARIANTS[variant].unread:
                found[f"{section}.{name}"] = f"it is not read with --{section}.variant {variant}"
        if not self.eval.oracle:
            found |= dict.fromkeys(("oracle", "theory.samples"), "it is not read with --eval.oracle false")
        if self.sampling.temperature == 0:
            found |= dict.fromkeys(("sampling.top_p", "theory.samples"), "it is not read with --sampling.temperature 0")
        if self.theory.inputs == 0 or self.ppo.kl_coef == 0 or self.ppo.adaptive_kl_target > 0:
            why = "it is not read with --theory.inputs 0, --ppo.kl_coef 0 or --ppo.adaptive_kl_target"
            found |= dict.fromkeys(("theory.answers", "theory.more_answers", "theory.samples"), why)
        if self.reward:
            learned = (f"reward_model.{f.name}" for f in fields(RewardConfig) if f.name != "normalise_on")
            found |= dict.fromkeys(("data.preferences", "reward_base", *learned), "it is not read with --reward")
        if not (self.remote or self.judge):
            found["api"] = "only --frozen api:MODEL and --reward judge:MODEL read it"
        toy = ("world", "frozen_lm", "frozen_model", "prompter_model", "vocab_size")
        other = toy if self.real_model else ("data", "api", "frozen", "prompter", "reward_base")
        if self.data.preferences:
            why = "it is about pairs of the frozen LM's answers: not read with --data.preferences"
            for name in ("pairs", "mismatched", "answers_per_request", "preference_scale"):
                found[f"reward_model.{name}"] = why
        if self.data.prompts:
            found["theory"] = "rewrites of requests from --data.prompts are not enumerated"
        elif self.real_model:
            found["theory.more_answers"] = "a real model's rewrites get equally many answers: raise --theory.answers"
            found["theory.samples"] = "the bounds are not computed for a real model"
            only = "it is about requests of your own: only --data.prompts reads it"
            found |= dict.fromkeys(("data.rewrites", "data.max_prompt_tokens"), only)
        return found | dict.fromkeys(other, f"it is not read with --preset {self.preset}")


def preset(name: str) -> RunConfig:
    """The configuration of a preset. Raises UserError for an unknown name."""
    require(name in PRESETS, f"preset is {name!r}; it must be one of {', '.join(PRESETS)}")
    tiny = RunConfig()
    if name == "tiny":
        return tiny
    if name == "micro":
        return _micro(tiny)
    if name == "smollm2":
        return _smollm2(tiny)
    width, layers, heads, lr = (256, 6, 8, 1e-3) if name == "small" else (768, 12, 12, 3e-4)
    shape = ShapeConfig("llama" if name == "small" else "gpt2", width, layers, heads)
    # A CPU is faster with less padding, a GPU with fewer and larger kernels.
    micro = [{"micro_batch_size": rows} if name == "gpt2" else {} for rows in (32, 64, 128)]
    rl = {"lr": lr / 4, "iterations": 100, "batch_size": 256, **micro[2]}
    changes = {
        "frozen_model": shape,
        "prompter_model": shape if name == "gpt2" else replace(shape, d_model=192, n_layers=4, n_heads=6),
        "frozen_lm": replace(tiny.frozen_lm, lr=lr, steps=1500, **micro[0]),
        "prompter_sft": replace(tiny.prompter_sft, lr=lr, steps=800, **micro[0]),
        "reward_model": replace(tiny.reward_model, lr=lr / 4, pairs=8000, **micro[1]),
    }
    return replace(tiny, preset=name, ppo=replace(tiny.ppo, **rl), oracle=replace(tiny.oracle, **rl), **changes)


def _micro(tiny: RunConfig) -> RunConfig:
    """Models far too small to learn anything: every stage runs, in seconds, for tests and lessons."""
    shape = replace(tiny.frozen_model, d_model=32, n_layers=1, n_heads=2)
    sft = SFTConfig(600, steps=60, batch_size=8, heldout_examples=32)
    ppo = replace(tiny.ppo, iterations=5, batch_size=16, max_new_tokens=20)
    return replace(
        tiny,
        preset="micro",
        vocab_size=400,
        world=replace(tiny.world, eval_requests=40),
        frozen_model=shape,
        prompter_model=shape,
        frozen_lm=sft,
        prompter_sft=sft,
        reward_model=replace(tiny.reward_model, pairs=80, batch_size=16, normalise_on=64),
        sampling=replace(tiny.sampling, max_new_tokens=20),
        ppo=ppo,
        oracle=ppo,
        eval=EvalConfig(inputs=24, headroom_inputs=8, bootstrap=200),
        theory=TheoryConfig(inputs=4, answers=4, more_answers=4),
    )


def _smollm2(tiny: RunConfig) -> RunConfig:
    """SmolLM2-135M on two cores: only the top layers learn, over a trunk whose outputs are computed once."""
    sampling = SamplingConfig(temperature=0.7, max_new_tokens=64)
    ppo = PPOConfig("rloo", iterations=40, batch_size=48, rewrites_per_request=4, answers=2, ppo_epochs=3)
    ppo = replace(ppo, micro_batch_size=24, lr=1e-4, warmup_ratio=0.1, kl_coef=0.05, train_layers=10)
    # Nearly all answers are truncated, so a penalty for that would be all that the oracle learns.
    as_the_lm = {"temperature": sampling.temperature, "max_new_tokens": sampling.max_new_tokens}
    oracle = replace(ppo, missing_eos_penalty=0.0, answers=1, **as_the_lm)
    sft = SFTConfig(4000, steps=200, batch_size=16, lr=3e-4, train_layers=10, heldout_examples=64)
    pairs = {"pairs": 6000, "answers_per_request": 6, "mismatched": 0.15, "preference_scale": 1.0}
    # The last blocks turn the state into the next token; two thirds of the way up it says more about the whole answer.
    pairs |= {"blocks": 20, "train_layers": 6, "read": "mean", "normalise_on": 384}
    rewards = RewardConfig(**pairs, epochs=1.0, batch_size=32, lr=3e-4)
    evaluation = EvalConfig(headroom_inputs=24, best_of_n=2)
    theory = TheoryConfig(answers=4, more_answers=0)
    parts = {"prompter_sft": sft, "reward_model": rewards, "sampling": sampling, "ppo": ppo, "eval": evaluation}
    return replace(tiny, preset="smollm2", task="chat", dtype="bfloat16", oracle=oracle, theory=theory, **parts)


def resolve_device(name: str) -> torch.device:
    """The torch device of `--device`; raises UserError when it is not there or not supported."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type == "mps":
        raise UserError(f"--device {name}: this code was never run on an Apple GPU: use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        count = torch.cuda.device_count()
        raise UserError(f"--device {name}: this machine has {count} usable CUDA devices; use --device cpu")
    return device
