"""Every choice of a run in frozen dataclasses, and the presets.

`--preset` is the one dial for scale; everything else follows from it and may be overridden field by field.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace

import torch

from alignpro_mini.toyworld import TASKS, WorldConfig

PRESETS = ("tiny", "small", "gpt2", "smollm2")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


MICRO_BATCH = (
    "{} of similar length per forward pass; gradients accumulate, so it changes only padding, memory and speed"
)


def option(default, help: str, choices: tuple = (), *, least: float | None = None, above: float | None = None):
    """A field with its help; numbers are checked to be finite, at least `least`, above `above` (`_check_ranges`)."""
    return field(default=default, metadata={"help": help, "choices": choices, "least": least, "above": above})


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


def _check_ranges(config) -> None:
    """Raises ValueError, beginning with the field's name, for a number that is not finite or out of its range."""
    for f in fields(config):
        value = getattr(config, f.name)
        if isinstance(value, (int, float)):
            least, above = f.metadata.get("least"), f.metadata.get("above")
            _check(math.isfinite(value), f"{f.name} is {value}; it must be a finite number")
            _check(least is None or value >= least, f"{f.name} is {value}; it must be at least {least}")
            _check(above is None or value > above, f"{f.name} is {value}; it must be above {above}")


@dataclass(frozen=True, slots=True)
class ShapeConfig:
    """The size of a model trained from scratch (the vocabulary comes from the tokenizer)."""

    family: str = option("llama", "architecture family", ("llama", "gpt2"))
    d_model: int = option(96, "width of the residual stream", least=1)
    n_layers: int = option(3, "number of blocks", least=1)
    n_heads: int = option(4, "attention heads per block", least=1)
    n_kv_heads: int = option(0, "key/value heads, each shared by n_heads / n_kv_heads queries (0: n_heads)", least=0)
    max_len: int = option(160, "longest row in tokens: prompt and completion together", least=2)

    __post_init__ = _check_ranges


@dataclass(frozen=True, slots=True)
class SFTConfig:
    """Supervised fine-tuning (next-token loss on the answer) of the frozen LM or the prompter."""

    examples: int = option(20_000, "training examples drawn in the embedded world", least=1)
    steps: int = option(700, "optimiser steps", least=1)
    batch: int = option(32, "examples a step", least=1)
    micro_batch: int = option(16, MICRO_BATCH.format("examples"), least=1)
    lr: float = option(3e-3, "peak learning rate; 5 % linear warm-up, then cosine down to a tenth", above=0)
    weight_decay: float = option(0.01, "AdamW's decoupled weight decay, on matrices only", least=0)
    grad_clip: float = option(1.0, "largest gradient norm", above=0)
    train_layers: int = option(0, "train only this many top blocks over a frozen trunk (0: everything)", least=0)
    heldout: int = option(256, "examples kept out of training to report the loss on", least=1)

    __post_init__ = _check_ranges


@dataclass(frozen=True, slots=True)
class RewardConfig:
    """The reward model and its preferences."""

    pairs: int = option(3000, "preference pairs drawn in the embedded world (files bring their own)", least=1)
    heldout: float = option(0.1, "share of the prompts whose pairs are kept out to measure accuracy")
    epochs: float = option(2.0, "passes over the pairs", above=0)
    batch: int = option(64, "pairs a step", least=1)
    micro_batch: int = option(16, MICRO_BATCH.format("pairs"), least=1)
    lr: float = option(5e-4, "peak learning rate", above=0)
    weight_decay: float = option(0.05, "AdamW's decoupled weight decay", least=0)
    grad_clip: float = option(1.0, "largest gradient norm", above=0)
    train_layers: int = option(0, "train only this many top blocks over a frozen trunk (0: everything)", least=0)
    normalise_on: int = option(
        1000, "answers to the SFT prompter's rewrites on which rewards get mean 0, variance 1", least=2
    )
    max_tokens: int = option(256, "pairs longer than this, prompt and answer, are left out and counted", least=1)

    def __post_init__(self) -> None:
        _check_ranges(self)
        _check(0 < self.heldout < 1, f"heldout is {self.heldout}; it is a share in (0, 1)")


@dataclass(frozen=True, slots=True)
class PPOConfig:
    """PPO with GAE and a KL penalty; the same for the prompter (ppo) and the RLHF oracle (oracle)."""

    iterations: int = option(50, "rollout-and-update rounds", least=1)
    batch: int = option(128, "prompts a round", least=1)
    answers: int = option(
        1, "M, answers of the frozen LM per rewrite, their rewards averaged (oracle: always 1)", least=1
    )
    epochs: int = option(2, "passes over each round's rollout", least=1)
    minibatches: int = option(2, "optimiser steps a pass", least=1)
    micro_batch: int = option(32, MICRO_BATCH.format("rows"), least=1)
    lr: float = option(4e-4, "learning rate, before warm-up and annealing scale it", above=0)
    warmup: float = option(
        0.2,
        "share of the rounds over which the learning rate rises: Adam's first steps are as long as any, and mostly noise",
    )
    anneal: bool = option(True, "lower the learning rate linearly to 0 over the run")
    kl_coef: float = option(0.1, "lambda, the price of a nat of KL to the SFT policy in units of reward", least=0)
    kl_target: float = option(0.0, "if above 0, kl_coef is adapted to hold the sequence KL at this many nats", least=0)
    kl_horizon: float = option(10_000.0, "episodes over which the adaptive controller reacts", above=0)
    gamma: float = option(1.0, "discount; 1, because the score comes once, at the end of a short text")
    gae_lam: float = option(0.95, "lambda of GAE: 1 is unbiased, lower trusts the value head")
    clip: float = option(0.2, "PPO's epsilon: how far a token's probability ratio earns credit", above=0)
    value_clip: float = option(0.4, "how far a value may move from the rollout's in one round", above=0)
    value_coef: float = option(0.5, "weight of the value loss", least=0)
    whiten: bool = option(True, "scale advantages to mean 0, variance 1 over a round")
    grad_clip: float = option(1.0, "largest gradient norm", above=0)
    missing_eos_penalty: float = option(1.0, "taken from the score of a completion cut before its EOS", least=0)
    temperature: float = option(1.0, "temperature of the policy's sampling, and of the log-probs that PPO uses")
    max_new_tokens: int = option(48, "longest completion of the policy", least=1)
    train_layers: int = option(0, "train only this many top blocks over a frozen trunk (0: everything)", least=0)
    checkpoint_every: int = option(10, "rounds between training-state checkpoints", least=1)

    def __post_init__(self) -> None:
        _check_ranges(self)
        _check(
            self.minibatches <= self.batch,
            f"minibatches is {self.minibatches}; a batch of {self.batch} has no more than that many",
        )
        _check(
            self.temperature > 0,
            f"temperature is {self.temperature}; it must be above 0: greedy rollouts explore nothing",
        )
        for name in ("gamma", "gae_lam", "warmup"):
            _check(0 <= getattr(self, name) <= 1, f"{name} is {getattr(self, name)}; it must lie in 0..1")


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How the frozen LM answers, the same for every arm."""

    temperature: float = option(1.0, "sampling temperature of the frozen LM; 0 is greedy", least=0)
    top_p: float = option(1.0, "nucleus mass of the frozen LM's sampling")
    max_new_tokens: int = option(72, "longest answer", least=1)

    def __post_init__(self) -> None:
        _check_ranges(self)
        _check(0 < self.top_p <= 1, f"top_p is {self.top_p}; it must lie in (0, 1]")


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """The arms on one fixed set of unseen requests."""

    inputs: int = option(256, "evaluation requests, the same for every arm", least=2)
    rewrites: int = option(2, "K, rewrites per request (the arms without a prompter get K x M answers)", least=1)
    answers: int = option(2, "M, answers per rewrite", least=1)
    best_of: int = option(
        4, "n of best-of-n rewriting; each choice is made on its own draws, then answered afresh", least=1
    )
    bootstrap: int = option(2000, "resamples of the requests for the 95 % intervals", least=1)
    headroom_inputs: int = option(64, "requests for the headroom diagnostic printed before PPO", least=2)
    oracle: bool = option(True, "train and evaluate the RLHF oracle too")

    def __post_init__(self) -> None:
        _check_ranges(self)
        _check(
            self.rewrites * self.answers >= 2,
            "answers is 1 and rewrites is 1: one answer an input has no variance; raise one of them",
        )


@dataclass(frozen=True, slots=True)
class TheoryConfig:
    """How near to the exact optimum PPO came, over the embedded world's listed rewrites."""

    inputs: int = option(16, "evaluation requests whose rewrites are all tried; 0 leaves the comparison out", least=0)
    answers: int = option(
        64,
        "answers to each listed rewrite: fewer flatter the optimum, and the share of its gain comes out too low",
        least=2,
    )
    samples: int = option(16, "answers to each request for the total variations in the bounds", least=1)

    def __post_init__(self) -> None:
        _check_ranges(self)
        _check(self.inputs != 1, "inputs is 1; it takes at least 2, or 0 to leave the comparison out")


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Files instead of the embedded world (only --preset smollm2 reads them)."""

    prompts: str = option("", "JSONL (.gz too) with a `prompt` a line: the requests; several files: comma")
    preferences: str = option("", "JSONL (.gz too) with `prompt, chosen, rejected` a line; several files: comma")
    rewrites: str = option("", "JSONL (.gz too) with `prompt, rewrite` a line for the prompter's SFT; empty: endings")
    max_prompt_tokens: int = option(48, "longer requests are left out and counted", least=1)
    rewrite_pairs: int = option(4000, "SFT pairs made by adding openings and endings to the requests", least=1)
    model: str = option("", "folder of the chat model; empty: where `python -m alignpro_mini.smollm2` puts it")

    __post_init__ = _check_ranges


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One whole run."""

    preset: str = option(
        "tiny", "tiny: minutes on two cores; small: better; gpt2: 12 x 768, a GPU; smollm2: a real chat model", PRESETS
    )
    task: str = option("quality", "the embedded world's task", (*TASKS, "chat"))
    seed: int = option(0, "seed of everything: data, weights, sampling")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 ...; auto takes a GPU when there is one")
    dtype: str = option("float32", "dtype of the frozen LM's weights; what is trained stays in float32", tuple(DTYPES))
    reward: str = option("", "module:function(prompts, completions) -> rewards instead of the learned reward model")
    out: str = option("runs", "folder of the runs")
    name: str = option("", "name of this run's folder; empty: <preset>-<task>-seed<seed>")
    vocab_size: int = option(640, "entries of the byte-level BPE tokenizer trained on the world's corpus", least=260)
    frozen_model: ShapeConfig = ShapeConfig()
    prompter_model: ShapeConfig = ShapeConfig()
    world: WorldConfig = WorldConfig()
    data: DataConfig = DataConfig()
    frozen_lm: SFTConfig = SFTConfig()
    prompter_sft: SFTConfig = SFTConfig(steps=500)
    reward_model: RewardConfig = RewardConfig()
    sampling: SamplingConfig = SamplingConfig()
    ppo: PPOConfig = PPOConfig()
    oracle: PPOConfig = PPOConfig(iterations=40, lr=5e-4, kl_coef=0.05, max_new_tokens=72)
    eval: EvalConfig = EvalConfig()
    theory: TheoryConfig = TheoryConfig()

    def __post_init__(self) -> None:
        _check_ranges(self)
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
            _check(
                not self.eval.oracle, "the RLHF oracle is not trained with --preset smollm2: leave out --eval.oracle"
            )
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
        _check(
            self.task != "reasoning"
            or (self.world.follow, self.world.spread) == (WorldConfig().follow, WorldConfig().spread),
            "--world.follow and --world.spread shape the tasks quality and attributes, not reasoning: leave them or the task out",
        )
        _check(
            self.reward_model.pairs >= 2 * self.reward_model.batch,
            f"--reward_model.pairs is {self.reward_model.pairs}; it takes at least two batches of --reward_model.batch {self.reward_model.batch}",
        )
        for section, length, model in (
            ("ppo", self.ppo.max_new_tokens, "prompter_model"),
            ("oracle", self.oracle.max_new_tokens, "frozen_model"),
            ("sampling", self.sampling.max_new_tokens, "frozen_model"),
        ):
            longest = getattr(self, model).max_len
            _check(
                length < longest,
                f"--{section}.max_new_tokens is {length}; with the prompt it must fit --{model}.max_len {longest}",
            )
        return self

    def unread(self) -> dict[str, str]:
        """{section or option that this run does not read: why}; who sets one means another run."""
        files = self.preset == "smollm2"
        world = ("world", "oracle", "theory", "frozen_lm", "frozen_model", "prompter_model", "vocab_size")
        learned = (
            "data.preferences",
            *(f"reward_model.{f.name}" for f in fields(RewardConfig) if f.name != "normalise_on"),
        )
        return dict.fromkeys(learned if self.reward else (), "--reward") | dict.fromkeys(
            world if files else ("data",), f"--preset {self.preset}"
        )

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
        shape = ShapeConfig(
            family="llama" if name == "small" else "gpt2", d_model=width, n_layers=layers, n_heads=heads
        )
        # A CPU gains by less padding, a GPU by fewer and larger kernels.
        whole = lambda rows: {"micro_batch": rows} if name == "gpt2" else {}  # noqa: E731
        prompter = shape if name == "gpt2" else replace(shape, d_model=192, n_layers=4, n_heads=6)
        return replace(
            tiny,
            preset=name,
            frozen_model=shape,
            prompter_model=prompter,
            frozen_lm=replace(tiny.frozen_lm, lr=lr, steps=1500, **whole(32)),
            prompter_sft=replace(tiny.prompter_sft, lr=lr, steps=800, **whole(32)),
            reward_model=replace(tiny.reward_model, lr=lr / 4, pairs=8000, **whole(64)),
            ppo=replace(tiny.ppo, lr=lr / 4, iterations=100, batch=256, **whole(128)),
            oracle=replace(tiny.oracle, lr=lr / 4, iterations=100, batch=256, **whole(128)),
        )
    return _smollm2(tiny)


# The grid's second prompter and second frozen model: other sizes than the preset's own.
SECOND = {
    "tiny": (ShapeConfig(d_model=64, n_layers=2), ShapeConfig(n_layers=2)),
    "small": (ShapeConfig(d_model=128, n_layers=4), ShapeConfig(d_model=320, n_layers=6, n_heads=10)),
    "gpt2": (
        ShapeConfig(d_model=384, n_layers=6, n_heads=6),
        ShapeConfig(d_model=1024, n_layers=16, n_heads=16, n_kv_heads=4),
    ),
}


def grid_part(config: RunConfig, part: str) -> RunConfig:
    """The configuration of one part of the grid, its name set: "F2", "P1", "P2-F1", or "reward" (that of P1 and F1).

    P1 and F1 are the preset's own prompter and frozen model. Raises ValueError for a preset without a second pair.
    """
    _check(
        config.preset in SECOND,
        f"--grid needs two models of each kind, and --preset {config.preset} has one: use {', '.join(SECOND)}",
    )
    prompter, frozen = SECOND[config.preset]
    return replace(
        config,
        name=part,
        prompter_model=prompter if "P2" in part else config.prompter_model,
        frozen_model=frozen if "F2" in part else config.frozen_model,
    )


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
            iterations=30,
            batch=48,
            answers=2,
            epochs=3,
            minibatches=2,
            micro_batch=24,
            lr=5e-5,
            warmup=0.0,
            anneal=False,
            kl_coef=0.05,
            train_layers=10,
            max_new_tokens=80,
            checkpoint_every=2,
        ),
        eval=EvalConfig(inputs=96, rewrites=2, answers=2, best_of=4, headroom_inputs=24, oracle=False),
    )


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
