"""The kinds of learned reward by `--reward_read`: off the last token's state, or off the mean of a row's states."""

from __future__ import annotations

from torch import Tensor

from alignpro_mini.reward import RewardModel
from alignpro_mini.training import frozen_blocks


class MeanRewardModel(RewardModel):
    """A reward read off the mean of the row's states: a truncated answer has no token that sums it up."""

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Raw rewards (B,) of right-padded rows: w . mean of h over the real tokens."""
        hidden = self.lm.hidden(features, start=frozen_blocks(self.lm, self.train_layers))  # (B, T, D)
        mean = (hidden * mask[..., None]).float().sum(1) / mask.sum(1, keepdim=True)  # (B, D)
        return self.head(mean.to(self.head.weight.dtype)).squeeze(-1).float()  # (B,)


REWARD_MODELS = {"last": RewardModel, "mean": MeanRewardModel}
