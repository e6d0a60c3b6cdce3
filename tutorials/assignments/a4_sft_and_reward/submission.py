"""SFT and the reward model: replace each `raise NotImplementedError`. Helpers and imports of your own are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from alignpro_mini import training
from alignpro_mini.generation import pad_pairs
from alignpro_mini.reward import Preference, RewardModel
from alignpro_mini.sft import Encoded
from alignpro_mini.transformer import Transformer


def answer_loss(model: Transformer, batch: Sequence[Encoded], train_layers: int = 0) -> Tensor:
    """Mean cross-entropy in nats per answer token over the batch; a scalar."""
    raise NotImplementedError


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected) per pair, (B,) -> (B,).

    It is the negative log-likelihood of the Bradley-Terry model of preferences.
    """
    raise NotImplementedError


def draw_preferences(
    prompts: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    gold: Callable[[Sequence[str], Sequence[str]], list[float]],
    scale: float,
    generator: torch.Generator,
    mismatched: bool = False,
) -> list[Preference]:
    """A noisy labeller's choices between two answers to each prompt, by the true reward `gold`.

        P(first over second) = sigmoid(scale x (gold of first - gold of second))     (Bradley-Terry)

    `mismatched` marks the pairs as such: the labels are drawn in the same way.
    """
    raise NotImplementedError


def split_by_prompt(
    pairs: Sequence[Preference], share: float, generator: torch.Generator | None
) -> tuple[list[Preference], list[Preference]]:
    """(train, held out): all pairs of a prompt are on one side.

    Otherwise the held-out accuracy is too high. No mismatched pair is held out: they are easy, and
    would raise the accuracy too. Those of a held-out prompt are dropped. At least one prompt is
    held out.
    """
    raise NotImplementedError


def accuracy(model: RewardModel, pairs: Sequence[Preference]) -> float:
    """Share of pairs whose chosen answer gets the higher reward (equal: half)."""
    raise NotImplementedError


class RewardModel:
    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Raw rewards (B,) of right-padded rows, read at each row's last real token."""
        raise NotImplementedError
