"""Attention, positions and the KV cache: replace each `raise NotImplementedError`. Helpers and imports of your own are kept."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from alignpro_mini.transformer import KVCache


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate the pairs (x_{2i}, x_{2i+1}) of each head by position x frequency_i: a product of complex numbers.

    x (B, H, T, E); rope (B, 1, T, E/2), complex, of length 1.
    """
    raise NotImplementedError


class Transformer:
    def _positions(self, x: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        """(B, T) index of each token among the real tokens of its row; padding before the first of them gets 0."""
        raise NotImplementedError

    def _allowed(self, x: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor | None:
        """(B, 1, T, S), True where query t may look at key s: s real and not later; None means plain causal.

        A padded query sees itself, too: a row of the softmax without any key would be NaN.
        """
        raise NotImplementedError


class KVCache:
    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new (B, G, T, E) keys and values of one layer; return all of them, (B, G, S, E)."""
        raise NotImplementedError


class Attention:
    def forward(self, x: Tensor, rope, allowed: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        """Causal self-attention, (B, T, D) -> (B, T, D); `layer` names this block's place in the cache."""
        raise NotImplementedError
