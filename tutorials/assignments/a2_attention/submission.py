"""Attention, positions and the KV cache: replace each `raise NotImplementedError`. Helpers and imports of your own are kept."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from alignpro_mini.transformer import KVCache


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate the pairs (x_{2i}, x_{2i+1}) of each head by position x frequency_i.

    A pair is a complex number: rotating it is a product. x (B, H, T, E) -> (B, H, T, E);
    rope (B, 1, T, E/2), complex, of length 1. Published checkpoints pair x_i with x_{i+E/2};
    weights/pretrained.py reorders the rows of q and k.
    """
    raise NotImplementedError


class Transformer:
    def _positions(self, x: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        """(B, T) index of each token among the real ones of its row; padding before them gets 0."""
        raise NotImplementedError

    def _allowed(self, x: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor | None:
        """(B, 1, T, S), True where query t may look at key s: s real and not later.

        None means plain causal. A padded query sees itself, too: a row of the softmax without any
        key would be NaN.
        """
        raise NotImplementedError


class KVCache:
    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values (B, G, T, E); return all of them, (B, G, S, E)."""
        raise NotImplementedError


class Attention:
    def attend(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
        """softmax(q k^T / sqrt(E)) v over the allowed keys; a key head serves H/G query heads.

        q (B, H, T, E), k and v (B, G, S, E), allowed (B, 1, T, S) -> (B, H, T, E).
        """
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None,
        allowed: Tensor | None,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D); `layer` names this block's place in the cache.

        rope (B, 1, T, E/2): see `rotate`; None: positions were added at the bottom.
        allowed (B, 1, T, S): True where query t may look at key s; None: s <= t.
        """
        raise NotImplementedError
