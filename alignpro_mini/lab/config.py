"""Every choice of a run in one frozen dataclass, composed of the stages' own options, and the presets.

`--preset` sets the scale; every option can be overridden one by one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace

from alignpro_mini.frozen import SamplingConfig
from alignpro_mini.options import UserError, check_ranges, option, require
from alignpro_mini.ppo import PPOConfig
from alignpro_mini.remote.config import ApiConfig
from alignpro_mini.reward import RewardConfig
from alignpro_mini.sft import SFTConfig
from alignpro_mini.transformer import TransformerConfig
from alignpro_mini.variants import REWARD_MODELS, VARIANTS
from alignpro_mini.worlds.everyday import EverydayRequests
from alignpro_mini.worlds.files import DataConfig
from alignpro_mini.worlds.toy import TASKS
from alignpro_mini.worlds.wishes import WishRequests
from alignpro_mini.worlds.world import WorldConfig

REAL_WORLDS = {"chat": EverydayRequests, "wishes": WishRequests}  # those of the preset smollm2, by task
PRESETS = ("micro", "tiny", "small", "gpt2", "smollm2")
DTYPES = ("auto", "float32", "bfloat16")


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
class PreferenceConfig:
    """The pairs of answers that a learned reward is trained on, and the answers that set a reward's unit."""

    pairs: int = option(18000, "preference pairs of the frozen LM's answers (files bring their own)", least=1)
    answers_per_request: int = option(5, "answers to a request, each compared with each of the others", least=2)
    scale: float = option(2.0, "P(a over b) = sigmoid(scale x gold difference); larger is cleaner", above=0)
    mismatched: float = option(0.5, "further pairs with an answer to another request, for each of `pairs`", least=0)
    other_wish: float = option(1.0, "further pairs: the same two answers under another wish, for each of `pairs`")
    normalise_on: int = option(1000, "answers to SFT rewrites that set the reward's mean and scale", least=2)

    def __post_init__(self) -> None:
        check_ranges(self)
        most = 2 / (self.answers_per_request - 1)  # as many as there are answers
        require(0 <= self.other_wish <= 1, f"other_wish is {self.other_wish}; it is a share of the pairs, in 0..1")
        require(self.mismatched <= most, f"mismatched is {self.mismatched}; each answer serves once, {most:g} at most")


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """The arms on one fixed set of held-out requests."""

    inputs: int = option(512, "evaluation requests, the same for every arm", least=2)
    rewrites: int = option(2, "K, rewrites per request (the arms without a prompter get K x M answers)", least=1)
    answers: int = option(2, "M, answers per rewrite", least=1)
    best_of_n: int = option(4, "n of best-of-n rewrites (the chosen one is answered again), and of answers", least=1)
    untrained_arms: bool = option(
        True, "also the best fixed rewrite, found by as many answers as PPO gets, and best-of-n answers"
    )
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
    task: str = option("quality", "the embedded world's task; of a real model: chat, or wishes", (*TASKS, *REAL_WORLDS))
    seed: int = option(0, "seed of everything: data, weights, sampling")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 ...; auto takes a GPU when there is one")
    dtype: str = option(
        "auto",
        "of the frozen LM's weights (what trains stays in float32); auto: float32, for a real model bfloat16 where the "
        "processor has instructions for it",
        DTYPES,
    )
    frozen: str = option("", "the frozen model: folder, hub name, or api:MODEL; empty: SmolLM2 (preset smollm2)")
    prompter: str = option("", "what the prompter starts from: folder or hub name; empty: SmolLM2 (preset smollm2)")
    reward_base: str = option("", "what a learned reward starts from: folder or hub name; empty: the frozen model")
    reward_blocks: int = option(0, "blocks of that model that the reward keeps, the lower ones; 0: all", least=0)
    reward_read: str = option(
        "last", "state that the reward is read off: the last token's, or the mean", tuple(REWARD_MODELS)
    )
    reward: str = option("", "module:function(prompts, completions) -> rewards, or judge:MODEL; empty: learned")
    gold: str = option("", "module:function, the true reward of a real model's answers; empty: the package's own")
    cut: str = option(
        "sentence",
        "how an answer that the token limit cut is rated: up to its last whole sentence or line, or whole, as it is",
        ("sentence", "whole"),
    )
    guard: bool = option(
        False, "replace rewrites with an objection (lab/guards.py) by the request; else only count them"
    )
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
    prompter_sft: SFTConfig = SFTConfig(steps=800)
    preferences: PreferenceConfig = PreferenceConfig()
    reward_model: RewardConfig = RewardConfig()
    sampling: SamplingConfig = SamplingConfig()
    ppo: PPOConfig = PPOConfig(kl_start=5.0, warmup_ratio=0.05)
    # Fewer iterations, which are enough for it: an answer is longer than a rewrite. All else is as in ppo, and
    # `with_options` keeps it so.
    oracle: PPOConfig = replace(ppo, iterations=200, max_new_tokens=SamplingConfig().max_new_tokens)
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
        what = self.task
        if self.real_model and named:
            what = f"{self.task}-{named}" if self.task == "wishes" else named
        if self.frozen:  # its last part, without what a folder's name cannot hold
            what += "-" + re.sub(r"[^\w.]+", "-", self.frozen.rstrip("/").rpartition("/")[2].removeprefix("api:"))
        return self.name or f"{self.preset}-{what}-seed{self.seed}"

    def check(self) -> None:
        """Raises UserError for options that do not fit together in any kind of run (`setup.Setup.check` for each kind)."""
        inputs = self.eval.inputs
        tried = self.theory.inputs
        message = f"--theory.inputs is {tried}, but it takes them from the {inputs} of --eval.inputs"
        require(tried <= inputs or bool(self.data.prompts), message)
        for section in ("ppo", "oracle"):
            c = getattr(self, section)
            names = ", ".join(VARIANTS)
            require(c.variant in VARIANTS, f"--{section}.variant is {c.variant!r}; it must be one of {names}")
            try:
                VARIANTS[c.variant].check(c)
            except UserError as error:  # it begins with the field's name
                raise UserError(f"--{section}.{error}") from None

    def unread(self) -> dict[str, str]:
        """{section or option that other options make superfluous: why}, in any kind of run."""
        unread = {"oracle.answers": "it has no effect: the oracle gives one answer a prompt"}
        for section in ("ppo", "oracle"):
            c = getattr(self, section)
            if c.adaptive_kl_target == 0:
                unread[f"{section}.adaptive_kl_horizon"] = f"it is not read without --{section}.adaptive_kl_target"
            if c.adaptive_kl_target > 0 or c.kl_coef == 0:
                why = f"it is not read with --{section}.adaptive_kl_target, nor with --{section}.kl_coef 0"
                unread[f"{section}.kl_start"] = why
            why = f"it is not read with --{section}.variant {c.variant}"
            unread |= {f"{section}.{name}": why for name in VARIANTS[c.variant].unread}
        if not self.eval.oracle:
            unread |= dict.fromkeys(("oracle", "theory.samples"), "it is not read with --eval.oracle false")
        if self.sampling.temperature == 0:
            unread |= dict.fromkeys(
                ("sampling.top_p", "theory.samples"), "it is not read with --sampling.temperature 0"
            )
        if self.theory.inputs == 0 or self.ppo.kl_coef == 0 or self.ppo.adaptive_kl_target > 0:
            why = "it is not read with --theory.inputs 0, --ppo.kl_coef 0 or --ppo.adaptive_kl_target"
            unread |= dict.fromkeys(("theory.answers", "theory.more_answers", "theory.samples"), why)
        if self.reward:
            learned = ["reward_model", "reward_base", "reward_blocks", "reward_read", "data.preferences"]
            learned += [f"preferences.{f.name}" for f in fields(PreferenceConfig) if f.name != "normalise_on"]
            unread |= dict.fromkeys(learned, "it is not read with --reward")
        return unread


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
        "reward_model": replace(tiny.reward_model, batch_size=32, epochs=2.0, lr=lr / 4, **micro[1]),
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
        preferences=replace(tiny.preferences, pairs=80, answers_per_request=2, mismatched=0.8, normalise_on=64),
        reward_model=replace(tiny.reward_model, batch_size=16, epochs=3.0),
        sampling=replace(tiny.sampling, max_new_tokens=20),
        ppo=ppo,
        oracle=ppo,
        eval=EvalConfig(inputs=24, headroom_inputs=8, bootstrap=200),
        theory=TheoryConfig(inputs=4, answers=4, more_answers=4),
    )


def _smollm2(tiny: RunConfig) -> RunConfig:
    """SmolLM2-135M on two cores: only the top layers learn, over a trunk whose outputs are computed once."""
    sampling = SamplingConfig(temperature=0.7, max_new_tokens=64)
    ppo = PPOConfig(variant="rloo", iterations=40, batch_size=48, rewrites_per_request=4, answers=2, ppo_epochs=3)
    ppo = replace(ppo, micro_batch_size=24, lr=1e-4, warmup_ratio=0.1, kl_coef=0.05, train_layers=10)
    # Nearly all answers are truncated, so a penalty for that would be all that the oracle learns.
    as_the_lm = {"temperature": sampling.temperature, "max_new_tokens": sampling.max_new_tokens}
    oracle = replace(ppo, missing_eos_penalty=0.0, answers=1, **as_the_lm)
    sft = SFTConfig(4000, steps=200, batch_size=16, lr=3e-4, train_layers=10, heldout_examples=64, heldout_share=0.1)
    preferences = PreferenceConfig(6000, answers_per_request=6, mismatched=0.15, scale=1.0, normalise_on=384)
    rewards = RewardConfig(epochs=1.0, batch_size=32, lr=3e-4, train_layers=6)
    # The last blocks turn the state into the next token; two thirds of the way up it says more about the whole answer.
    learned = {"preferences": preferences, "reward_model": rewards, "reward_blocks": 20, "reward_read": "mean"}
    evaluation = EvalConfig(headroom_inputs=24, best_of_n=2)
    theory = TheoryConfig(answers=4, more_answers=0)
    parts = {"prompter_sft": sft, "sampling": sampling, "ppo": ppo, "eval": evaluation} | learned
    return replace(tiny, preset="smollm2", task="chat", oracle=oracle, theory=theory, **parts)
