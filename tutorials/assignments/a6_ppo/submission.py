"""PPO: replace each `raise NotImplementedError`. Helpers and imports of your own are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from alignpro_mini import rl_math
from alignpro_mini.generation import sampling_logprobs
from alignpro_mini.options import UserError
from alignpro_mini.rollout import Rollout
from alignpro_mini.training import frozen_blocks
from alignpro_mini.transformer import Transformer


def policy_loss(
    logp: Tensor, logp_old: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7), negated, per token; all (B, T).

        ratio = pi / pi_old        L = -min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)
    The minimum is pessimistic. When A > 0 the gain stops at 1 + eps; when A < 0 it stops at
    1 - eps; moving *back* from beyond the clip is never stopped. Padding gives 0; the caller
    divides by its token count.
    Second result: per-token (B, T) `clipped` (the gradient is 0 there) and `ratio`.
    """
    raise NotImplementedError


def value_loss(
    values: Tensor, values_old: Tensor, returns: Tensor, mask: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Half the squared error to the returns, per token, over a clipped step: all (B, T) -> (B, T).

        V_c = V_old + clip(V - V_old, -eps, eps)     L = max((V - R)^2, (V_c - R)^2) / 2
    The maximum is pessimistic, as the minimum of `policy_loss` is.
    Second result: where the clipped branch was the larger one, (B, T) booleans.
    """
    raise NotImplementedError


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the mask: 1 perfect, 0 as good as a constant.

    A variance of the returns below 1e-8 counts as 1e-8.
    """
    raise NotImplementedError


def adaptive_kl_coef(coef: float, kl: float, target: float, horizon: float, steps: float) -> float:
    """The next KL coefficient by the controller of Ziegler et al. 2019, section 2.2.

        coef x (1 + clip(kl / target - 1, -0.2, 0.2) x steps / horizon)
    kl is the *policy-to-reference* KL of this batch (not old-to-new: that one only ever shrinks the
    coefficient). The coefficient rises when kl > target. steps: episodes since the last call.
    """
    raise NotImplementedError


class Policy:
    def states(self, lm: Transformer, features: Tensor, mask: Tensor, T: int) -> Tensor:
        """The states (B, T, D) that the completion's tokens are predicted from: one column left.

        `lm` is the policy's own model or the reference: their trunks, and so `features`, are equal.
        """
        raise NotImplementedError


class PPOTrainer:
    def scores(self, rollout: Rollout) -> Tensor:
        """The score of each completion, (B,).

        Raises UserError for another shape, FloatingPointError for a score that is not finite.
        """
        raise NotImplementedError

    def assemble_rewards(self, rollout: Rollout) -> Tensor:
        """(B, T): the KL penalty on every token; on the last one the score too.

        A completion without EOS pays a penalty at its end.
        """
        raise NotImplementedError

    def estimate_advantages(self, rollout: Rollout, rewards: Tensor) -> None:
        """Set advantages and returns (B, T) and the advantages' standard deviation.

        Whitening scales the advantages only: the value head learns returns.
        """
        raise NotImplementedError

    def extra_loss(
        self, part: Rollout, logp: Tensor, values: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """vf_coef x the value loss, a sum over the tokens, and the sums that are logged.

        logp, values (b, T) are those of the policy now; they carry gradients.
        """
        raise NotImplementedError

    def loss(self, part: Rollout) -> tuple[Tensor, dict[str, float]]:
        """Policy loss + `extra_loss`, and what is logged; sums over the tokens of the micro-batch.

        The caller divides them by the tokens of the whole minibatch. `ratio_max` is no sum.
        """
        raise NotImplementedError
