"""The policy with its value head, and one batch of its sampled completions.

Shape legend:  B rows   n sampled tokens of all rows   P longest prompt   T longest completion
               V vocabulary   D width

    columns of a row      0 ........ P-1 | P ............ P+T-1
    prompt, left-padded   _ _ Tell me .  |                                _ is padding
    completion                           | Please tell me . <end> _ _     action: True up to <end>
    predicted from               column P-1 ............ P+T-2            one to the left

Token t's log-prob comes from the state at t-1. The action mask (B, T) is True on sampled tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor, nn

from alignpro_mini import rl_math
from alignpro_mini.training import frozen_blocks
from alignpro_mini.transformer import Transformer


class Policy(nn.Module):
    """A language model with a value head: V_t, the return expected before token t is sampled."""

    def __init__(self, lm: Transformer, train_layers: int = 0) -> None:
        super().__init__()
        self.lm = lm
        self.value_head = nn.Linear(lm.config.d_model, 1, device=lm.device)
        nn.init.zeros_(self.value_head.weight)  # at the start every state has the value 0
        nn.init.zeros_(self.value_head.bias)
        self.train_layers = train_layers  # of the top; 0: all

    def forward(self, features: Tensor, mask: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, V) of the n sampled tokens, in row order, and values (B, T).

        features, mask and action are those of a `Rollout`.
        """
        states = self.states(self.lm, features, mask, action.shape[1])  # (B, T, D)
        values = self.value_head(states.to(self.value_head.weight.dtype)).squeeze(-1)  # (B, T)
        return self.lm.unembed(states[action]).float(), values.float()

    def states(self, lm: Transformer, features: Tensor, mask: Tensor, T: int) -> Tensor:
        """The states (B, T, D) that the completion's tokens are predicted from: one column left.

        `lm` is the policy's own model or the reference: their trunks, and so `features`, are equal.
        """
        start = frozen_blocks(lm, self.train_layers)
        return lm.hidden(features, mask, start=start)[:, -T - 1 : -1]


@dataclass(slots=True)
class Rollout:
    """One batch of sampled completions with all that PPO needs.

    Tensors are (B, T) unless a comment says otherwise.
    """

    prompts: list[str]
    completions: list[str]
    finished: Tensor  # (B,) ended with EOS
    features: Tensor  # (B, P+T, D) states of the trunk; (B, P+T) ids where there is none
    mask: Tensor  # (B, P+T) real tokens
    tokens: Tensor  # ids of the completions
    action: Tensor  # True on sampled tokens, EOS included
    logp: Tensor  # log-prob of each token when it was sampled: the ratio's denominator
    logp_ref: Tensor  # its log-prob under the reference
    logp_gap: Tensor  # how far logp is from the log-prob that the policy's forward pass gives
    values: Tensor  # before the update
    kl_exact: Tensor  # policy to reference over the whole vocabulary, nats; only logged
    entropy: Tensor  # of the policy, nats; only logged
    scores: Tensor | None = None  # (B,)
    advantages: Tensor | None = None
    advantage_std: float | None = None  # of the whole batch, before whitening
    returns: Tensor | None = None

    @property
    def kl(self) -> Tensor:
        """(B,) log rho/rho_ref of each whole completion: the KL's k1, summed over its tokens."""
        return rl_math.masked_sum(rl_math.kl_estimate(self.logp, self.logp_ref, "k1"), self.action)

    def rows(self, index: Tensor) -> Rollout:
        """The rows of `index` (b,), without the columns that are padding in all of them."""
        P = self.mask.shape[1] - self.action.shape[1]
        T = int(self.action[index].sum(1).max())
        lead = int(self.mask[index].any(0).float().argmax())  # the first column that is kept

        def pick(name: str):
            value = getattr(self, name)
            if isinstance(value, list):
                return [value[i] for i in index.tolist()]
            if not isinstance(value, Tensor):  # one number for the whole batch, or not known yet
                return value
            if value.dim() == 1:
                return value[index]
            columns = slice(lead, P + T) if name in ("features", "mask") else slice(T)
            return value[index][:, columns]

        return Rollout(**{f.name: pick(f.name) for f in fields(self)})
