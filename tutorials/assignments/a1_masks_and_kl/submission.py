"""Masks and KL: replace each `raise NotImplementedError`. Helpers and imports of your own are kept."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of x over the True entries of mask (same shape): all of them, or along `dim`.

    A row without any True entry gives 0.
    Example: masked_mean([[1., 2.], [5., 9.]], [[1, 1], [1, 0]]) = 8/3; with dim=1: [1.5, 5.0].
    """
    raise NotImplementedError


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over the last axis of the True entries: (B, T) -> (B,).

    Example: the log-probability of a completion is the sum of those of its tokens.
    """
    raise NotImplementedError


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Population variance (divide by n) of x over the True entries of mask."""
    raise NotImplementedError


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Scale x to unit variance over the mask, and to zero mean; padding gives 0.

    With `shift_mean` False the mean stays what it is.
    """
    raise NotImplementedError


def kl_estimate(logp: Tensor, logp_ref: Tensor, kind: str = "k1") -> Tensor:
    """Per-sample estimate of KL(p || ref) from samples of p; any shape, nats.

    With d = logp - logp_ref (http://joschu.net/blog/kl-approx.html):
        k1 = d               unbiased, may be negative for one sample
        k2 = d^2 / 2         biased, never negative
        k3 = e^-d - 1 + d    unbiased, never negative
    Raises ValueError for another kind. Example: logp = ln(.5), logp_ref = ln(.25): k1 = 0.693.
    """
    raise NotImplementedError


def exact_kl(logits: Tensor, logits_ref: Tensor) -> Tensor:
    """KL(p || ref) of two categorical distributions, in nats: (..., V) -> (...)."""
    raise NotImplementedError


def entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) in nats: (..., V) -> (...). The uniform one gives ln V."""
    raise NotImplementedError
