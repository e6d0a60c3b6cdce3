"""What all trainers share: the stage that records a training, what trains, the optimiser, batches.

With `train_layers` = 0 the whole model trains; above 0 only that many blocks at its top. The blocks
below them are the *trunk*. It is frozen, so its states are computed once and used in every epoch.

Shape legend:  B rows   T tokens   D width
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from alignpro_mini.options import require
from alignpro_mini.transformer import Transformer

Score = Callable[[Sequence[str], Sequence[str]], Tensor]  # (prompts, completions) -> scores (B,)
Saved = nn.Module | torch.optim.Optimizer | torch.Generator
LOG_EVERY = 50  # optimiser steps between log rows of SFT and reward learning


class Truncated(str):
    """A completion that ended at the token limit.

    Its model wrote no EOS, so the reward model must not read one. To every other reward it is a
    plain text.
    """


# ---------------------------------------------------------------- where a training reports


class Stage(Protocol):
    """Where a trainer reports and keeps its state.

    `SilentStage` does nothing; `lab.run.RunStage` writes files.
    """

    def progress(self, start: int, stop: int) -> Iterable[int]:
        """The steps from `start` up to `stop`, for the training loop to go through."""

    def log(self, step: int, metrics: dict, samples: Sequence[dict] = ()) -> None:
        """Record metrics, and samples (x, x_prime, y, reward, kl), after `step` steps."""

    def save(self, step: int, *things: Saved, **meta) -> None:
        """Keep the state of these things, and JSON-able `meta`, after `step` steps."""

    def restore(self, *things: Saved) -> tuple[int, dict]:
        """Bring the same things to the saved state; returns its step and its meta.

        Returns (0, {}) where none is saved.
        """


class SilentStage:
    """A stage that records nothing: the default of all trainers."""

    def progress(self, start: int, stop: int) -> Iterable[int]:
        return range(start, stop)

    def log(self, step: int, metrics: dict, samples: Sequence[dict] = ()) -> None:
        pass

    def save(self, step: int, *things: Saved, **meta) -> None:
        pass

    def restore(self, *things: Saved) -> tuple[int, dict]:
        return 0, {}


# ---------------------------------------------------------------- which weights train


def trainable(model: Transformer, train_layers: int) -> list[nn.Parameter]:
    """Freeze all but the top `train_layers` blocks and the last norm; returns what trains.

    0 trains everything. What trains gets float32 weights: a small step would be lost in the
    rounding of bfloat16. The trunk keeps its dtype. Raises UserError for more layers than the model
    has, and for a trunk in bfloat16 where the model's class computes in one dtype only.
    """
    layers = model.config.n_layers
    require(
        train_layers <= layers, f"train_layers is {train_layers}, but the model has {layers} blocks"
    )
    # Set explicitly: a copy of a frozen model arrives frozen.
    model.requires_grad_(train_layers == 0)
    if train_layers:
        for module in (*model.blocks[-train_layers:], model.norm):
            module.requires_grad_(True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    coarse = [p for p in parameters if p.dtype in (torch.bfloat16, torch.float16)]
    require(
        not coarse or train_layers == 0 or model.mixes_dtypes,
        "float32 blocks above a trunk in bfloat16 need fast.transformer.FastTransformer: load the "
        "model with model_class=FastTransformer, or in float32",
    )
    for p in coarse:
        p.data = p.data.float()
    return parameters


def frozen_blocks(model: Transformer, train_layers: int) -> int:
    """How many blocks the trunk has: none where `train_layers` is 0 (all train)."""
    return 0 if train_layers == 0 else model.config.n_layers - train_layers


def trunk(model: Transformer, ids: Tensor, mask: Tensor | None, train_layers: int) -> Tensor:
    """The trunk's states (B, T, D), without gradients; the ids (B, T) if no block is frozen.

    model.hidden(trunk(...), mask, start=frozen_blocks(model, train_layers)) goes on from there to
    what model.hidden(ids, mask) gives.
    """
    frozen = frozen_blocks(model, train_layers)
    if frozen == 0:
        return ids
    with torch.no_grad():
        return model.hidden(ids, mask, stop=frozen)


# ---------------------------------------------------------------- optimiser and schedule


def make_optimizer(
    parameters: Sequence[nn.Parameter], lr: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW that decays matrices only: norms and biases should not be pulled to zero."""
    matrices = [p for p in parameters if p.dim() >= 2]
    vectors = [p for p in parameters if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    # 0.98 (usual: 0.999): the mean of the squared gradients reaches back about 50 steps, not 1000,
    # because trainings here are short.
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)


def warmup_cosine(step: int, steps: int, peak: float) -> float:
    """Learning rate of a step, counted from 0.

    Linear over the first 5 % of the steps, then a cosine down to a tenth of the peak.
    """
    warmup = max(1, steps // 20)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)  # 0 after the warm-up, 1 at the end
    return peak * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)


def optimizer_step(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    max_grad_norm: float,
    lr: float,
) -> float:
    """Clip the gradients, take the step, clear them; returns the norm before clipping.

    Raises FloatingPointError on a norm that is not finite (as after a loss that is not), before
    any weight changes.
    """
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm).item()
    if not math.isfinite(norm):
        raise FloatingPointError(
            f"the gradient norm is {norm}: lower the learning rate (now {lr:.1e})"
        )
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


# ---------------------------------------------------------------- data


def shuffled_batches(
    count: int, batch_size: int, generator: torch.Generator | None
) -> Iterator[list[int]]:
    """Endless index batches, each pass over 0..count-1 in a new order.

    A short last batch is dropped. Raises UserError for fewer examples than one batch.
    """
    require(
        count >= batch_size,
        f"{count} examples, those held out not counted, do not fill one batch of {batch_size}: "
        "add data or lower the batch size",
    )
    while True:
        order = torch.randperm(count, generator=generator).tolist()
        for start in range(0, count - batch_size + 1, batch_size):
            yield order[start : start + batch_size]
