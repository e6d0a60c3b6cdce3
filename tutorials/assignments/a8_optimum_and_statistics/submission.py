"""The optimum and the statistics: replace each `raise NotImplementedError`. Helpers and imports of your own are kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from alignpro_mini.alignpro import Prompter
from alignpro_mini.lab.evaluation import EvalConfig, Evaluator
from alignpro_mini.lab.statistics import Groups


def kl(p, q) -> Tensor:
    """KL(p || q) in nats over the last axis: (..., K), (..., K) -> (...).

    Infinite where p > 0 and q = 0. Example: kl([.5, .5], [.25, .75]) = 0.144.
    """
    raise NotImplementedError


def optimal_prompter(rho_sft, R, lam: float) -> Tensor:
    """rho*(x'|x) = rho_sft(x'|x) exp(R(x, x') / lam) / Z(x): (N, K), (N, K) -> (N, K) float64.

    Example: rho_sft [[.5, .5]], R [[0., ln 3]], lam 1 -> [[.25, .75]].

    A rewrite that rho_sft never offers stays at 0. The same formula with answers for rewrites is
    RLHF's optimal policy. Raises ValueError for rows that are no distribution, other shapes,
    lam <= 0.
    """
    raise NotImplementedError


def regularised_value(rho, rho_sft, R, lam: float) -> Tensor:
    """J_lam(rho) = J(rho) - lam E_x KL(rho || rho_sft): three (N, K) tables -> scalar.

    Averaged over inputs; differentiable in rho. -inf where rho offers what rho_sft cannot. Raises
    ValueError as `optimal_prompter` does.
    """
    raise NotImplementedError


def variance_parts(rewards: np.ndarray) -> dict[str, float]:
    """The three variance components of a balanced (N, K, M) array, by nested ANOVA mean squares.

        Var(r) = between inputs + between rewrites of an input + within a rewrite (the LM's own sampling)
        within = MSW,  between_rewrites = (MSP - MSW) / M,  between_inputs = (MSX - MSP) / (K M)
    Unbiased, so a part whose true value is near 0 can come out slightly negative. With K = 1 there is nothing between
    rewrites and between_inputs = (MSX - MSW) / M; with M = 1 `within` is MSP, both parts together. Raises ValueError
    for fewer than 2 inputs, or K = M = 1.
    """
    raise NotImplementedError


def bootstrap_interval(per_input: np.ndarray, resamples: int, groups: Groups = None) -> list[float]:
    """95 % percentile interval of the mean of (N,) values, resampling inputs.

    Give it per-input *differences* of two arms and it is the paired interval. Example: constant values give [c, c].
    """
    raise NotImplementedError


def win_shares(judged: np.ndarray, baseline: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(wins + ties / 2, ties) as shares of each input's answers: (N,) each.

    Answer j of an input is compared with answer j of the baseline for the same input. A baseline with fewer answers is
    gone through again.
    """
    raise NotImplementedError


def headroom(evaluator: Evaluator, rho_sft: Prompter, K: int = 8, M: int = 4) -> dict[str, float]:
    """Before any RL: how much of the reward's variance lies between rewrites. Only by these can RL gain.

    ICC = between rewrites / (between rewrites + within). Near 0, the frozen LM's own sampling hides the signal: then
    more answers per rewrite are needed, or another reward. `best_rewrite_gain` is the mean gain of the best of K
    rewrites, chosen by one half of its answers and measured on the other half, so that selection does not bias it.
    """
    raise NotImplementedError


def request_share(
    pro: np.ndarray, fixed: np.ndarray, star: np.ndarray, count: int, groups: Groups = None
) -> dict[str, float | list[float] | None]:
    """Of what can be gained by reading the request, the share that Align-Pro took, and its interval.

        request_share = (mean of pro - mean of fixed) / (mean of star - mean of fixed)
    Rewards (N, K, M) of Align-Pro, the fixed rewrite and the closed form, each with its own K and M. The closed form has
    only the first requests, so all three means are over these. Numerator and denominator have the same resamples. Both
    values are None where the lead of the closed form is not shown (its paired interval reaches 0 or below): one sentence
    is then enough.
    """
    raise NotImplementedError
