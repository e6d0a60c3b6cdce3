"""Credit: assembled rewards and GAE: replace each `raise NotImplementedError`. Helpers and imports of your own are kept."""

from __future__ import annotations

import torch
from torch import Tensor


def assemble_rewards(scores: Tensor, kl: Tensor, mask: Tensor, lam: float) -> Tensor:
    """Per-token rewards: -lam * kl_t on every sampled token, plus the score on the last one.

    Align-Pro: max E[r(x, y)] - lam KL(rho || rho_sft). The KL is a sum over the rewrite's tokens,
    so each token pays its own part. The one score of the rewrite lands on its last token (its EOS).
    scores (B,), kl (B, T) estimates, mask (B, T) -> (B, T), 0 on padding.
    Raises ValueError for a row without a sampled token: there is nowhere to put its score.
    Example: scores [1.], kl [[.1, .2, 9.]], mask [[1, 1, 0]], lam 1 -> [[-.1, .8, 0.]].
    """
    raise NotImplementedError


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), all (B, T).

        delta_t = r_t + gamma V_{t+1} - V_t        A_t = delta_t + gamma lam A_{t+1}
    with V = A = 0 after the last sampled token: the episode ends there, nothing is bootstrapped.
    Returns (advantages, returns = advantages + values), 0 on padding.
    Example (gamma = lam = 1): rewards [[0., 1.]], values [[.5, .5]] -> advantages [[.5, .5]].
    """
    raise NotImplementedError
