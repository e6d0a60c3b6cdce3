"""Every choice of a run in frozen dataclasses, and the presets.

`--preset` is the one dial for scale; everything else follows from it and may be overridden field by field.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from alignpro_mini.toyworld import TASKS, WorldConfig

PRESETS = ("tiny", "small", "gpt2", "smollm2")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def option(default, help: str, choices: tuple = ()):
    return field(default=default, metadata={"help": help, "choices": choices})


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


@dataclass(frozen=True, slots=True)
class ShapeConfig:
    """The size of a model trained from scratch (the vocabulary comes from the tokenizer)."""

    family: str = option("llama", "architecture family", ("llama", "gpt2"))
    d_model: int = option(96, "width of the residual stream")
    n_layers: int = option(3, "number of blocks")
    n_heads: int = option(4, "attention heads per block")
    n_kv_heads: int = option(0, "key/value heads, each shared by n_heads / n_kv_heads queries (0: n_heads)")
    max_len: int = option(160, "longest row in tokens: prompt and completion together")


@dataclass(frozen=True, slots=True)
class SFTConfig:
    """Supervised fine-tuning (next-token loss on the answer) of the frozen LM or the prompter."""

    examples: int = option(20_000, "training examples drawn in the embedded world")
    steps: int = option(700, "optimiser steps")
    batch: int = option(32, "examples a step")
    lr: float = option(3e-3, "peak learning rate; 5 % linear warm-up, then cosine down to a tenth")
    weight_decay: float = option(0.01, "AdamW's decoupled weight decay, on matrices only")
    grad_clip: float = option(1.0, "largest gradient norm")
    train_layers: int = option(0, "train only this many top blocks over a frozen trunk (0: everything)")
    heldout: int = option(256, "examples kept out of training to report the loss on")

    def __post_init__(self) -> None:
        _check(self.steps >= 1 and self.batch >= 1, "steps and batch must be at least 1")
        _check(self.lr > 0, f"lr is {self.lr}; it must be above 0")


@dataclass(frozen=True, slots=True)
class RewardConfig:
    """The reward model and its preferences."""

    pairs: int = option(3000, "preference pairs drawn in the embedded world (files bring their own)")
    heldout: float = option(0.1, "share of the prompts whose pairs are kept out to measure accuracy")
    epochs: float = option(2.0, "passes over the pairs")
    batch: int = option(64, "pairs a step")
    lr: float = option(5e-4, "peak learning rate")
    weight_decay: float = option(0.05, "AdamW's decoupled weight decay")
    grad_clip: float = option(1.0, "largest gradient norm")
    train_layers: int = option(0, "train only this many top blocks over a frozen trunk (0: everything)")
    normalise_on: int = option(1000, "answers to the SFT prompter's rewrites on which rewards get mean 0, variance 1")
    max_tokens: int = option(256, "pairs longer than this, prompt and answer, are left out and counted")

    def __post_init__(self) -> None:
        _check(0 < self.heldout < 1, f"heldout is {self.heldout}; it is a share in (0, 1)")
        _check(self.batch >= 1 and self.epochs > 0, "batch must be at least 1 and epochs above 0")
        _check(self.lr > 0, f"lr is {self.lr}; it must be above 0")


@dataclass(frozen=True, slots=True)
class PPOConfig:
    """PPO with GAE and a KL penalty; the same for the prompter (ppo) and the RLHF oracle (oracle)."""

    iterations: int = option(40, "rollout-and-update rounds")
    batch: int = option(128, "prompts a round")
    answers: int = option(1, "M, answers of the frozen LM per rewrite, their rewards averaged (oracle: always 1)")
    epochs: int = option(2, "passes over each round's rollout")
    minibatches: int = option(2, "optimiser steps a pass")
    micro_batch: int = option(128, "rows per forward pass; gradients accumulate, so it changes memory only")
    lr: float = option(5e-4, "learning rate at the start")
    anneal: bool = option(True, "lower the learning rate linearly to 0 over the run")
    kl_coef: float = option(0.1, "lambda, the price of a nat of KL to the SFT policy in units of reward")
    kl_target: float = option(0.0, "if above 0, kl_coef is adapted to hold the sequence KL at this many nats")
    kl_horizon: float = option(10_000.0, "episodes over which the adaptive controller reacts")
    gamma: float = option(1.0, "discount; 1, because the score comes once, at the end of a short text")
    gae_lam: float = option(0.95, "lambda of GAE: 1 is unbiased, lower trusts the value head")
    clip: float = option(0.2, "PPO's epsilon: how far a token's probability ratio earns credit")
    value_clip: float = option(0.4, "how far a value may move from the rollout's in one round")
    value_coef: float = option(0.5, "weight of the value loss")
    whiten: bool = option(True, "scale advantages to mean 0, variance 1 over a round")
    grad_clip: float = option(1.0, "largest gradient norm")
    missing_eos_penalty: float = option(1.0, "taken from the score of a completion cut before its EOS")
    temperature: float = option(1.0, "temperature of the policy's sampling, and of the log-probs that PPO uses")
    max_new_tokens: int = option(48, "longest completion of the policy")
    train_layers: int = option(0, "train only this many top blocks over a frozen trunk (0: everything)")
    checkpoint_every: int = option(10, "rounds between training-state checkpoints")

    def __post_init__(self) -> None:
        _check(self.iterations >= 1 and self.batch >= 1 and self.epochs >= 1, "iterations, batch, epochs must be >= 1")
        _check(
            1 <= self.minibatches <= self.batch,
            f"minibatches is {self.minibatches}; with a batch of {self.batch} it must lie in 1..{self.batch}",
        )
        _check(self.temperature > 0, "temperature must be above 0: greedy rollouts explore nothing")
        _check(self.answers >= 1, "answers must be at least 1")
        _check(self.micro_batch >= 1 and self.checkpoint_every >= 1, "micro_batch and checkpoint_every must be at least 1")
        _check(self.lr > 0, f"lr is {self.lr}; it must be above 0")
        _check(0 <= self.gae_lam <= 1 and 0 <= self.gamma <= 1, "gamma and gae_lam must lie in 0..1")
        _check(self.kl_coef >= 0 and self.kl_target >= 0, "kl_coef and kl_target must not be negative")


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How the frozen LM answers, the same for every arm."""

    temperature: float = option(1.0, "sampling temperature of the frozen LM; 0 is greedy")
    top_p: float = option(1.0, "nucleus mass of the frozen LM's sampling")
    max_new_tokens: int = option(72, "longest answer")

    def __post_init__(self) -> None:
        _check(self.temperature >= 0 and 0 < self.top_p <= 1, "temperature must be >= 0 and top_p in (0, 1]")


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """The arms on one fixed set of unseen requests."""

    inputs: int = option(512, "evaluation requests, the same for every arm")
    rewrites: int = option(2, "K, rewrites per request (the arms without a prompter get K x M answers)")
    answers: int = option(2, "M, answers per rewrite")
    best_of: int = option(4, "n of best-of-n rewriting; each choice is made on its own draws, then answered afresh")
    bootstrap: int = option(2000, "resamples of the requests for the 95 % intervals")
    headroom_inputs: int = option(64, "requests for the headroom diagnostic printed before PPO")
    oracle: bool = option(True, "train and evaluate the RLHF oracle too")

    def __post_init__(self) -> None:
        _check(self.inputs >= 2 and self.rewrites >= 1 and self.answers >= 1, "inputs >= 2, rewrites and answers >= 1")
        _check(self.rewrites * self.answers >= 2, "one answer per input has no variance: raise eval.rewrites or eval.answers")
        _check(self.best_of >= 1 and self.bootstrap >= 1, "best_of and bootstrap must be at least 1")
        _check(self.headroom_inputs >= 2, f"headroom_inputs is {self.headroom_inputs}; it takes at least 2")


@dataclass(frozen=True, slots=True)
class TheoryConfig:
    """How near to the exact optimum PPO came, over the embedded world's listed rewrites."""

    inputs: int = option(16, "evaluation requests whose rewrites are all tried; 0 leaves the comparison out")
    answers: int = option(64, "answers to each listed rewrite: fewer flatter the optimum, and the share of its gain comes out too low")
    samples: int = option(16, "answers to each request for the total variations in the bounds")

    def __post_init__(self) -> None:
        _check(self.inputs == 0 or self.inputs >= 2, f"inputs is {self.inputs}; it takes at least 2, or 0 to leave the comparison out")
        _check(self.samples >= 1, "samples must be at least 1")
        _check(self.answers >= 2, f"answers is {self.answers}; one answer to a rewrite has no standard error")


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Files instead of the embedded world (only --preset smollm2 reads them)."""

    prompts: str = option("", "JSONL (.gz too) with a `prompt` a line: the requests; several files: comma")
    preferences: str = option("", "JSONL (.gz too) with `prompt, chosen, rejected` a line; several files: comma")
    rewrites: str = option("", "JSONL (.gz too) with `prompt, rewrite` a line for the prompter's SFT; empty: endings")
    max_prompt_tokens: int = option(48, "longer requests are left out and counted")
    rewrite_pairs: int = option(4000, "SFT pairs made by adding openings and endings to the requests")
    model: str = option("", "folder of the chat model; empty: where `python -m alignpro_mini.smollm2` puts it")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One whole run."""

    preset: str = option("tiny", "tiny: minutes on two cores; small: better; gpt2: 12 x 768, a GPU; smollm2: a real chat model", PRESETS)
    task: str = option("quality", "the embedded world's task", (*TASKS, "chat"))
    seed: int = option(0, "seed of everything: data, weights, sampling")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 ...; auto takes a GPU when there is one")
    dtype: str = option("float32", "dtype of the frozen LM's weights; what is trained stays in float32", tuple(DTYPES))
    reward: str = option("", "module:function(prompts, completions) -> rewards instead of the learned reward model")
    out: str = option("runs", "folder of the runs")
    name: str = option("", "name of this run's folder; empty: <preset>-<task>-seed<seed>")
    vocab_size: int = option(640, "entries of the byte-level BPE tokenizer trained on the world's corpus")
    frozen_model: ShapeConfig = ShapeConfig()
    prompter_model: ShapeConfig = ShapeConfig()
    world: WorldConfig = WorldConfig()
    data: DataConfig = DataConfig()
    frozen_lm: SFTConfig = SFTConfig()
    prompter_sft: SFTConfig = SFTConfig()
    reward_model: RewardConfig = RewardConfig()
    sampling: SamplingConfig = SamplingConfig()
    ppo: PPOConfig = PPOConfig()
    oracle: PPOConfig = PPOConfig(kl_coef=0.05, max_new_tokens=72)
    eval: EvalConfig = EvalConfig()
    theory: TheoryConfig = TheoryConfig()

    def __post_init__(self) -> None:
        _check(self.preset in PRESETS, f"preset is {self.preset!r}; it must be one of {', '.join(PRESETS)}")
        _check(self.dtype in DTYPES, f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}")
        if self.reward:
            _check(self.reward.count(":") == 1, f"reward is {self.reward!r}; write it as module:function")

    def validate(self) -> RunConfig:
        """Check what only the finished whole can tell (impossible combinations); returns self, raises ValueError."""
        if self.preset == "smollm2":
            _check(self.task == "chat", f"--preset smollm2 works on files: its task is chat, not {self.task}")
            _check(bool(self.data.prompts), "--preset smollm2 needs requests: --data.prompts FILE.jsonl")
            _check(
                bool(self.data.preferences or self.reward),
                "--preset smollm2 needs a reward: --data.preferences FILE.jsonl to learn one, or --reward module:function",
            )
            _check(not self.eval.oracle, "the RLHF oracle is not trained with --preset smollm2: leave out --eval.oracle")
            return self
        _check(self.task in TASKS, f"task is {self.task}, but --preset {self.preset} has {', '.join(TASKS)}")
        _check(
            self.eval.inputs <= self.world.eval_requests,
            f"--eval.inputs is {self.eval.inputs}, but --world.eval_requests keeps only {self.world.eval_requests}",
        )
        _check(
            self.theory.inputs <= self.eval.inputs,
            f"--theory.inputs is {self.theory.inputs}, but it takes them from the {self.eval.inputs} of --eval.inputs",
        )
        _check(not self.data.prompts, f"--data.prompts is read by --preset smollm2 only, not by {self.preset}")
        return self

    @property
    def run_name(self) -> str:
        return self.name or f"{self.preset}-{self.task}-seed{self.seed}"


def preset(name: str) -> RunConfig:
    """The configuration of a preset. Raises ValueError for an unknown name."""
    _check(name in PRESETS, f"preset is {name!r}; it must be one of {', '.join(PRESETS)}")
    tiny = RunConfig()
    if name == "tiny":
        return tiny
    if name in ("small", "gpt2"):
        width, layers, heads, lr = (256, 6, 8, 1e-3) if name == "small" else (768, 12, 12, 3e-4)
        shape = ShapeConfig(family="llama" if name == "small" else "gpt2", d_model=width, n_layers=layers, n_heads=heads)
        prompter = shape if name == "gpt2" else replace(shape, d_model=192, n_layers=4, n_heads=6)
        return replace(
            tiny,
            preset=name,
            frozen_model=shape,
            prompter_model=prompter,
            frozen_lm=replace(tiny.frozen_lm, lr=lr, steps=1500),
            prompter_sft=replace(tiny.prompter_sft, lr=lr, steps=800),
            reward_model=replace(tiny.reward_model, lr=lr / 4, pairs=8000),
            ppo=replace(tiny.ppo, lr=lr / 4, iterations=100, batch=256),
            oracle=replace(tiny.oracle, lr=lr / 4, iterations=100, batch=256),
        )
    return _smollm2(tiny)


# The grid's second prompter and second frozen model: other sizes than the preset's own.
SECOND = {
    "tiny": (ShapeConfig(d_model=64, n_layers=2), ShapeConfig(d_model=128, n_layers=3)),
    "small": (ShapeConfig(d_model=128, n_layers=4), ShapeConfig(d_model=320, n_layers=6, n_heads=10)),
    "gpt2": (ShapeConfig(d_model=384, n_layers=6, n_heads=6), ShapeConfig(d_model=768, n_layers=12, n_heads=12, n_kv_heads=4)),
}


def grid_part(config: RunConfig, part: str) -> RunConfig:
    """The configuration of one part of the grid, its name set: "F2", "P1", "P2-F1", or "reward" (that of P1 and F1).

    P1 and F1 are the preset's own prompter and frozen model. Raises ValueError for a preset without a second pair.
    """
    _check(config.preset in SECOND, f"--grid needs two models of each kind, and --preset {config.preset} has one: use {', '.join(SECOND)}")
    prompter, frozen = SECOND[config.preset]
    return replace(
        config, name=part, prompter_model=prompter if "P2" in part else config.prompter_model,
        frozen_model=frozen if "F2" in part else config.frozen_model,
    )  # fmt: skip


def _smollm2(tiny: RunConfig) -> RunConfig:
    """SmolLM2-135M on two cores: only the top layers learn, over a trunk whose outputs are computed once."""
    return replace(
        tiny,
        preset="smollm2",
        task="chat",
        prompter_sft=SFTConfig(steps=120, batch=16, lr=3e-4, train_layers=10, heldout=64),
        reward_model=RewardConfig(epochs=2, batch=16, lr=1e-4, train_layers=6, max_tokens=256, normalise_on=192),
        sampling=SamplingConfig(temperature=0.4, max_new_tokens=40),
        ppo=PPOConfig(
            iterations=30, batch=48, answers=2, epochs=3, minibatches=2, micro_batch=24, lr=5e-5, anneal=False,
            kl_coef=0.05, train_layers=10, max_new_tokens=80, checkpoint_every=2,
        ),
        eval=EvalConfig(inputs=96, rewrites=2, answers=2, best_of=4, headroom_inputs=24, oracle=False),
    )  # fmt: skip


def resolve_device(name: str) -> torch.device:
    """The torch device of `--device`; raises ValueError when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(
            f"--device {name}: this machine has {torch.cuda.device_count()} usable CUDA devices; use --device cpu"
        )
    return device
