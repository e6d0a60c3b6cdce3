"""The statistics of an evaluation: variance components, intervals, win rate. Numpy only.

Rewards of an arm are an array (N inputs, K rewrites, M answers). Answers to one request are not independent, so every
interval resamples whole requests. Where requests come in groups that an interval must hold beyond (topics, towns), it
resamples whole groups: `groups` holds a label for each request, None where each is alone. Arms over the same requests
get the same resamples: differences and ratios of two arms are paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

Groups = Sequence[str] | None


def variance_parts(rewards: np.ndarray) -> dict[str, float]:
    """The three variance components of a balanced (N, K, M) array, by nested ANOVA mean squares.

        Var(r) = between inputs + between rewrites of an input + within a rewrite (the LM's own sampling)
        within = MSW,  between_rewrites = (MSP - MSW) / M,  between_inputs = (MSX - MSP) / (K M)
    Unbiased, so a part whose true value is near 0 can come out slightly negative. With K = 1 there is nothing between
    rewrites and between_inputs = (MSX - MSW) / M; with M = 1 `within` is MSP, both parts together. Raises ValueError
    for fewer than 2 inputs, or K = M = 1.
    """
    N, K, M = rewards.shape
    if N < 2 or K * M < 2:
        raise ValueError(f"variance parts need at least 2 inputs and 2 answers each, not {rewards.shape}")
    per_rewrite = rewards.mean(2)  # (N, K)
    per_input = per_rewrite.mean(1)  # (N,)
    ms_inputs = K * M * ((per_input - rewards.mean()) ** 2).sum() / (N - 1)
    ms_rewrites = M * ((per_rewrite - per_input[:, None]) ** 2).sum() / (N * (K - 1)) if K > 1 else None
    ms_within = ((rewards - per_rewrite[:, :, None]) ** 2).sum() / (N * K * (M - 1)) if M > 1 else None
    rewrites = 0.0
    if K == 1:
        inputs, within = (ms_inputs - ms_within) / M, ms_within
    elif M == 1:  # the two lower components cannot be separated: their sum is reported as the LM's own sampling
        inputs, within = (ms_inputs - ms_rewrites) / K, ms_rewrites
    else:
        inputs, within = (ms_inputs - ms_rewrites) / (K * M), ms_within
        rewrites = (ms_rewrites - ms_within) / M
    return {"between_inputs": float(inputs), "between_rewrites": float(rewrites), "within": float(within)}


def within_requests(rewards: np.ndarray) -> np.ndarray:
    """(N, K, M) rewards -> the variance within each request, (N,): between its rewrites + within them, unbiased.

    A learned reward is known only up to an offset b(x) for each request (Bradley-Terry). This part of the variance does
    not depend on it. The mean over requests is `between_rewrites` + `within` of `variance_parts`.
    """
    N, K, M = rewards.shape
    if K == 1:
        return rewards[:, 0].var(1, ddof=1)
    between = rewards.mean(2).var(1, ddof=1)  # (N,) the rewrites' means: M answers' noise / M is in it
    within = rewards.var(2, ddof=1).mean(1) if M > 1 else np.zeros(N)  # (N,)
    return between + within * (1 - 1 / M)


@lru_cache(maxsize=4)
def _resamples(n: int, count: int) -> np.ndarray:
    """(count, n): how often each of n groups is drawn in each of `count` resamples. A fixed seed: see the module."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=count).astype(np.float64)


def resampled_moments(rewards: np.ndarray, count: int, groups: Groups = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (divided by n - 1) of the rewards (N, K, M) in each of `count` resamples: (count,) each."""
    labels, place = np.unique(np.arange(len(rewards)) if groups is None else groups, return_inverse=True)
    alone = len(labels) == len(rewards)  # then in the order of the requests, whatever their labels
    weights = _resamples(len(labels), count)[:, slice(None) if alone else place]  # (count, N)
    centre = rewards.mean()
    off = (rewards - centre).reshape(len(rewards), -1)  # centred: the sum of squares loses no digits
    size = weights.sum(1) * off.shape[1]  # (count,)
    mean = weights @ off.sum(1) / size  # (count,)
    variance = (weights @ (off**2).sum(1) - size * mean**2) / (size - 1)
    return centre + mean, np.maximum(variance, 0.0)


def interval(resampled: np.ndarray) -> list[float]:
    """95 % percentile interval of a statistic from its value in each resample."""
    return [float(q) for q in np.quantile(resampled, (0.025, 0.975))]


def bootstrap_interval(per_input: np.ndarray, resamples: int, groups: Groups = None) -> list[float]:
    """95 % percentile interval of the mean of (N,) values, resampling inputs.

    Give it per-input *differences* of two arms and it is the paired interval. Example: constant values give [c, c].
    """
    return interval(resampled_moments(per_input[:, None, None], resamples, groups)[0])


def win_shares(judged: np.ndarray, baseline: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(wins + ties / 2, ties) as shares of each input's answers: (N,) each.

    Answer j of an input is compared with answer j of the baseline for the same input. A baseline with fewer answers is
    gone through again.
    """
    a, b = judged.reshape(len(judged), -1), baseline.reshape(len(baseline), -1)
    b = np.tile(b, (1, -(-a.shape[1] // b.shape[1])))[:, : a.shape[1]]
    tie = np.isclose(a, b, rtol=0, atol=1e-9)
    return ((a > b) & ~tie).mean(1) + tie.mean(1) / 2, tie.mean(1)


def t_interval(values) -> tuple[float | None, float | None]:
    """Mean over seeds and half-width of its 95% t-interval, which is unknown (None) for a single seed."""
    values = [v for v in values if v is not None]
    if len(values) < 2:
        return (values[0] if values else None), None
    exact = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)  # 1 to 9 degrees of freedom
    t = exact[len(values) - 2] if len(values) <= 10 else 1.96 + 2.5 / (len(values) - 1)  # right to 1%
    return float(np.mean(values)), float(t * np.std(values, ddof=1) / math.sqrt(len(values)))
