"""Variants of PPO, each a small subclass of `PPOTrainer`, and of the reward model.

`--ppo.variant NAME` is `VARIANTS[NAME]`:

    reinforce      REINFORCE: the reward of a completion, less the mean of the others of its batch
    reinforce++    REINFORCE++: the rewards from each token on
    rloo           RLOO: the reward of a completion, less the mean of the others of its prompt
    grpo           GRPO: the same, divided by the prompt's standard deviation
    grpo-unscaled  GRPO without that division (Dr. GRPO)
    ...-sequence   one probability ratio for a whole completion
    kl-k2, kl-k3   another estimator of the KL penalty in the reward
    kl-loss-k1, kl-loss-k2, kl-loss-k3    the KL penalty as a loss, token by token

"RLOO" and "GRPO" name the advantage alone: clip, KL penalty and weights of the tokens are PPO's.
`--reward_read NAME` is `REWARD_MODELS[NAME]`: last (`RewardModel`) or mean (`MeanRewardModel`).

Shape legend:  B rows   b rows of a micro-batch   T longest completion   D width
               N prompts   K completions of each, side by side (B = N K)
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from alignpro_mini import rl_math
from alignpro_mini.options import require
from alignpro_mini.ppo import PPOConfig, PPOTrainer
from alignpro_mini.reward import RewardModel
from alignpro_mini.rollout import Rollout
from alignpro_mini.training import frozen_blocks

# ---------------------------------------------------------------- advantages without a value head


def rloo(rewards: Tensor) -> Tensor:
    """REINFORCE leave-one-out (Ahmadian et al. 2024): N prompts, K completions, (N, K) -> (N, K).

        A_i = r_i - mean of the other K - 1 rewards = (r_i - mean) K / (K - 1)
    Unbiased: a completion's baseline does not depend on it. `grpo` without `scale` is the same but
    for the factor (K - 1) / K. Raises ValueError for K < 2.
    Example: [[0., 1., 2.]] -> [[-1.5, 0., 1.5]].
    """
    K = _group_size(rewards)
    return (rewards - rewards.mean(1, keepdim=True)) * K / (K - 1)


def grpo(rewards: Tensor, scale: bool = True, eps: float = 1e-4) -> Tensor:
    """GRPO's advantage (Shao et al. 2024): N prompts, K completions of each, (N, K) -> (N, K).

        A_i = (r_i - mean) / (std + eps), std divided by K - 1
    Without `scale` A_i = r_i - mean (Dr. GRPO, Liu et al. 2025). With it a prompt whose rewards
    hardly differ weighs as much as one whose rewards differ a lot. Raises ValueError for K < 2.
    Example: [[0., 1., 2.]] -> [[-1., 0., 1.]] (but for eps).
    """
    _group_size(rewards)
    off = rewards - rewards.mean(1, keepdim=True)
    return off / (rewards.std(1, keepdim=True) + eps) if scale else off


def _group_size(rewards: Tensor) -> int:
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        shape = tuple(rewards.shape)
        raise ValueError(
            f"rewards have shape {shape}; they must be (N prompts, K >= 2 completions)"
        )
    return rewards.shape[1]


def on_every_token(advantages: Tensor, mask: Tensor) -> Tensor:
    """(B,) -> (B, T): each completion's advantage on all of its tokens, 0 on padding."""
    return torch.where(mask, advantages[:, None], 0.0)


class CriticFree(PPOTrainer):
    """PPO's step without a value head: subclasses say what `advantages` are."""

    unread = ("gamma", "gae_lambda", "vf_coef", "value_clip_range")

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.policy.value_head.requires_grad_(False)  # no gradient ever comes to it

    @property
    def whitens(self) -> bool:
        return self.config.whiten_advantages

    def advantages(self, rewards: Tensor, mask: Tensor) -> Tensor:
        """Rewards (B, T) of each token -> advantages (B, T), 0 on padding."""
        raise NotImplementedError

    def estimate_advantages(self, rollout: Rollout, rewards: Tensor) -> None:
        mask = rollout.action
        advantages = self.advantages(rewards, mask)
        rollout.advantage_std = float(rl_math.masked_var(advantages, mask).sqrt())
        rollout.advantages = rl_math.whiten(advantages, mask) if self.whitens else advantages

    def extra_loss(
        self, part: Rollout, logp: Tensor, values: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        return logp.new_zeros(()), {}


class Reinforce(CriticFree):
    """The reward of the whole completion less the mean of the *others* of the batch."""

    variant = "reinforce"

    @classmethod
    def check(cls, config: PPOConfig) -> None:
        super().check(config)
        rows = config.batch_size
        require(rows >= 2, f"batch_size is {rows}; variant {cls.variant} compares at least 2")

    def advantages(self, rewards: Tensor, mask: Tensor) -> Tensor:
        total = rl_math.masked_sum(rewards, mask)  # (B,)
        return on_every_token(rloo(total[None])[0], mask)


class ReinforcePlusPlus(CriticFree):
    """The sum of the rewards from each token on: GAE with lambda 1 and no values (Hu et al. 2025).

    Its normalisation is `whiten_advantages`.
    """

    variant = "reinforce++"

    def advantages(self, rewards: Tensor, mask: Tensor) -> Tensor:
        no_values = torch.zeros_like(rewards)  # (B, T)
        return rl_math.gae(rewards, no_values, mask, gamma=1.0, lam=1.0)[0]


class Grouped(CriticFree):
    """The reward of the whole completion against those of the same prompt.

    Such advantages are centred already and are not whitened.
    """

    unread = (*CriticFree.unread, "whiten_advantages")
    whitens = False

    @classmethod
    def check(cls, config: PPOConfig) -> None:
        super().check(config)
        K = config.rewrites_per_request
        message = f"rewrites_per_request is {K}; variant {cls.variant} compares at least 2"
        require(K >= 2, message)

    def compare(self, rewards: Tensor) -> Tensor:
        """(N, K) rewards of whole completions -> their advantages (N, K)."""
        raise NotImplementedError

    def advantages(self, rewards: Tensor, mask: Tensor) -> Tensor:
        total = rl_math.masked_sum(rewards, mask)  # (B,)
        groups = total.view(-1, self.config.rewrites_per_request)  # (N, K)
        return on_every_token(self.compare(groups).flatten(), mask)


class RLOO(Grouped):
    variant = "rloo"
    compare = staticmethod(rloo)


class GRPO(Grouped):
    variant = "grpo"
    compare = staticmethod(grpo)


class UnscaledGRPO(Grouped):
    variant = "grpo-unscaled"
    compare = staticmethod(partial(grpo, scale=False))


# ---------------------------------------------------------------- one ratio for a whole completion


class SequenceRatio:
    """All tokens of a completion share one ratio, the geometric mean of their own, as in GSPO.

    GSPO (Zheng et al. 2025) also weighs all completions alike; here one weighs by its tokens.
    Only for advantages that are the same on all tokens of a completion.
    """

    def ratio_logprobs(self, logp: Tensor, part: Rollout) -> tuple[Tensor, Tensor]:
        mean = partial(rl_math.masked_mean, mask=part.action, dim=1)  # (b, T) -> (b,)
        return mean(logp)[:, None].expand_as(logp), mean(part.logp)[:, None].expand_as(logp)


class ReinforceSequence(SequenceRatio, Reinforce):
    variant = "reinforce-sequence"


class RLOOSequence(SequenceRatio, RLOO):
    variant = "rloo-sequence"


class GRPOSequence(SequenceRatio, GRPO):
    variant = "grpo-sequence"


# ---------------------------------------------------------------- the KL penalty, elsewhere


def assembled(trainer: PPOTrainer, rollout: Rollout, kl: Tensor) -> Tensor:
    """`PPOTrainer.assemble_rewards` with another KL of each token (B, T)."""
    penalty = trainer.config.missing_eos_penalty * (~rollout.finished)  # (B,)
    scores = rollout.scores - penalty  # (B,)
    return rl_math.assemble_rewards(scores, kl, rollout.action, trainer.kl_coef)


class KLInReward(PPOTrainer):
    """The KL penalty of each token is another estimate; only k1 has the KL's gradient there."""

    kind: str  # of `rl_math.kl_estimate`

    def assemble_rewards(self, rollout: Rollout) -> Tensor:
        kl = rl_math.kl_estimate(rollout.logp, rollout.logp_ref, self.kind)  # (B, T)
        return assembled(self, rollout, kl)


class K2InReward(KLInReward):
    variant = "kl-k2"
    kind = "k2"


class K3InReward(KLInReward):
    variant = "kl-k3"
    kind = "k3"


class KLInLoss(PPOTrainer):
    """The KL penalty is a part of the loss: its estimate is differentiated, token by token.

    The expected gradient: of k1 nothing at all, of k2 that of KL(rho || rho_sft), of k3 that of
    KL(rho_sft || rho). The samples are those of the older policy, as they are.
    """

    kind: str  # of `rl_math.kl_estimate`

    def assemble_rewards(self, rollout: Rollout) -> Tensor:
        return assembled(self, rollout, torch.zeros_like(rollout.logp))

    def extra_loss(
        self, part: Rollout, logp: Tensor, values: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        value, logged = super().extra_loss(part, logp, values)
        kl = rl_math.kl_estimate(logp, part.logp_ref, self.kind)  # (b, T)
        # Whitening divides the reward by this standard deviation: so that lambda keeps its meaning
        # beside it, the penalty is divided too.
        spread = max(part.advantage_std, 1e-4) if self.config.whiten_advantages else 1.0
        return value + self.kl_coef / spread * rl_math.masked_sum(kl, part.action).sum(), logged


class K1InLoss(KLInLoss):
    """A known mistake, for the comparison: no penalty at all on average."""

    variant = "kl-loss-k1"
    kind = "k1"


class K2InLoss(KLInLoss):
    variant = "kl-loss-k2"
    kind = "k2"


class K3InLoss(KLInLoss):
    variant = "kl-loss-k3"
    kind = "k3"


VARIANTS: dict[str, type[PPOTrainer]] = {
    trainer.variant: trainer
    for trainer in (
        PPOTrainer,
        Reinforce,
        ReinforcePlusPlus,
        RLOO,
        GRPO,
        UnscaledGRPO,
        ReinforceSequence,
        RLOOSequence,
        GRPOSequence,
        K2InReward,
        K3InReward,
        K1InLoss,
        K2InLoss,
        K3InLoss,
    )
}


# ---------------------------------------------------------------- where the reward is read


class MeanRewardModel(RewardModel):
    """A reward read off the mean of a row's states: w . mean of h(x, y) over its tokens.

    A truncated answer has no token that sums it up.
    """

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Raw rewards (B,) of right-padded rows."""
        frozen = frozen_blocks(self.lm, self.train_layers)
        hidden = self.lm.hidden(features, start=frozen)  # (B, T, D)
        total = (hidden * mask[..., None]).float().sum(1)  # (B, D)
        mean = total / mask.sum(1, keepdim=True)  # (B, D)
        return self.head(mean.to(self.head.weight.dtype)).squeeze(-1).float()  # (B,)


REWARD_MODELS: dict[str, type[RewardModel]] = {"last": RewardModel, "mean": MeanRewardModel}
