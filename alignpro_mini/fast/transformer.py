"""The transformer, sooner: the same logits by other kernels, and top blocks that train above a bfloat16 trunk.

    one query a row      while decoding, the queries that share a key head go as rows of one product: keys and values
                         are not copied
    bfloat16 on a CPU    the gradient of attention is taken in float32: the kernel's own backward pass takes 4 times
                         as long
    mixed precision      blocks that train have float32 weights (a small step is lost in bfloat16's rounding); above a
                         bfloat16 trunk they compute in bfloat16, as it does

Shape legend: as in alignpro_mini/transformer.py
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from alignpro_mini.transformer import Attention, Block, KVCache, Transformer


class FastAttention(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
        """As `Attention.attend`: (B, H, T, E) -> (B, H, T, E)."""
        B, H, T, E = q.shape
        if T == 1 and allowed is not None:
            q = q.reshape(B, self.kv_heads, -1, E)  # (B, G, H/G, E)
        y = super().attend(q, k, v, allowed)
        if q.dtype == torch.bfloat16 and q.device.type == "cpu" and y.requires_grad:
            y = _with_float32_gradient(y, super().attend, q, k, v, allowed)
        return y.reshape(B, H, T, E)


def _with_float32_gradient(y: Tensor, attend, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    """y, bit by bit, with the gradient of the same attention in float32."""
    with torch.autocast("cpu", enabled=False):
        exact = attend(q.float(), k.float(), v.float(), allowed)
    return (exact + (y - exact).detach()).to(y.dtype)


class FastBlock(Block):
    attention = FastAttention


class FastTransformer(Transformer):
    """A `Transformer` of the same weights and names, whose upper blocks may train in float32 above a bfloat16 trunk."""

    block = FastBlock
    mixes_dtypes = True

    @property
    def is_mixed(self) -> bool:
        """Whether the upper blocks' weights have another dtype than the trunk's."""
        return self.embed.weight.dtype != self.blocks[-1].norm1.weight.dtype

    def hidden(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> Tensor:
        """As `Transformer.hidden`; a mixed model computes in the dtype of its trunk."""
        if not self.is_mixed:
            return super().hidden(x, mask, cache, start, stop)
        dtype = self.embed.weight.dtype
        # Without autocast's cache of converted weights: it would outlive the optimiser's step.
        with torch.autocast(self.device.type, dtype, cache_enabled=False):
            return super().hidden(x, mask, cache, start, stop).to(dtype)

    def in_one_dtype(self) -> FastTransformer:
        """This model, or a copy in the trunk's dtype if it is mixed: no step of sampling then converts weights."""
        return copy.deepcopy(self).to(self.embed.weight.dtype) if self.is_mixed else self
