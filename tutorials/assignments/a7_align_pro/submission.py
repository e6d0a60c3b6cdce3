"""Align-Pro around a frozen model: replace each `raise NotImplementedError`. Helpers and imports of your own are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from alignpro_mini.options import UserError


def checksum(model: nn.Module) -> str:
    """SHA-256 over the state_dict (parameters, persistent buffers), equal only for equal bits.

    Names, dtypes, shapes and bytes count.
    """
    raise NotImplementedError


def usable_rewrites(
    requests: Sequence[str], rewrites: Sequence[str], fits: Callable[[str], bool]
) -> tuple[list[str], int]:
    """Rewrites that can be sent, and how many had to be replaced.

    An empty rewrite, or one too long for the frozen LM, becomes x.
    """
    raise NotImplementedError


class FrozenLM:
    def assert_unchanged(self, after: str) -> None:
        """Compare the checksum with the one taken at construction.

        Raises RuntimeError naming the stage `after`.
        """
        raise NotImplementedError


class PromptScore:
    def __call__(self, requests: Sequence[str], rewrites: Sequence[str]) -> Tensor:
        """Requests x and rewrites x', B each -> scores (B,), float32; sets the attributes above.

        Raises UserError where the reward does not return one number for each answer.
        """
        raise NotImplementedError
