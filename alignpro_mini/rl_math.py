"""The formulas of RLHF as pure functions: tensors in, tensors out, no model, no globals.

Shape legend:  B rows (one sampled completion each)   T tokens of the completion   V vocabulary

Everything here is over *completion* tokens, right-padded. The mask is True on every sampled token,
EOS included, and False after it. No padded value may reach a result: each function selects by the
mask, so the padding may hold any number.
"""

from __future__ import annotations

import torch
from torch import Tensor

KL_KINDS = ("k1", "k2", "k3")


def _same_shape(**tensors: Tensor) -> None:
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    # [B, 1] against [B] would broadcast to [B, B] and train on nonsense.
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes differ: {', '.join(f'{n} {s}' for n, s in shapes.items())}")


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of x over the True entries of mask (same shape): all of them, or along `dim`.

    A row without any True entry gives 0.
    Example: masked_mean([[1., 2.], [5., 9.]], [[1, 1], [1, 0]]) = 8/3; with dim=1: [1.5, 5.0].
    """
    _same_shape(x=x, mask=mask)
    kept = torch.where(mask, x, 0.0)
    count = mask.sum() if dim is None else mask.sum(dim)
    return (kept.sum() if dim is None else kept.sum(dim)) / count.clamp(min=1)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over the last axis of the True entries: (B, T) -> (B,).

    Example: the log-probability of a completion is the sum of those of its tokens.
    """
    _same_shape(x=x, mask=mask)
    return torch.where(mask, x, 0.0).sum(-1)


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Population variance (divide by n) of x over the True entries of mask."""
    mean = masked_mean(x, mask)
    return masked_mean((x - mean) ** 2, mask)


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Scale x to unit variance over the mask, and to zero mean; padding gives 0.

    With `shift_mean` False the mean stays what it is.
    """
    mean = masked_mean(x, mask)
    var = masked_var(x, mask)
    white = (x - mean) * torch.rsqrt(var + eps)
    return torch.where(mask, white if shift_mean else white + mean, 0.0)


def kl_estimate(logp: Tensor, logp_ref: Tensor, kind: str = "k1") -> Tensor:
    """Per-sample estimate of KL(p || ref) from samples of p; any shape, nats.

    With d = logp - logp_ref (http://joschu.net/blog/kl-approx.html):
        k1 = d               unbiased, may be negative for one sample
        k2 = d^2 / 2         biased, never negative
        k3 = e^-d - 1 + d    unbiased, never negative
    Raises ValueError for another kind. Example: logp = ln(.5), logp_ref = ln(.25): k1 = 0.693.
    """
    _same_shape(logp=logp, logp_ref=logp_ref)
    d = logp - logp_ref
    if kind == "k1":
        return d
    if kind == "k2":
        return d**2 / 2
    if kind == "k3":
        return torch.expm1(-d) + d
    raise ValueError(f"KL estimator {kind!r} is not one of {', '.join(KL_KINDS)}")


def exact_kl(logits: Tensor, logits_ref: Tensor) -> Tensor:
    """KL(p || ref) of two categorical distributions, in nats: (..., V) -> (...)."""
    _same_shape(logits=logits, logits_ref=logits_ref)
    logp = logits.log_softmax(-1)  # (..., V)
    logq = logits_ref.log_softmax(-1)  # (..., V)
    # A token that p never takes (log-prob -inf) adds nothing, but 0 * (-inf - -inf) would be NaN.
    # The factor is replaced, not the product: a masked product still sends 0 * NaN backwards.
    log_ratio = (logp - logq).masked_fill(logp == -torch.inf, 0.0)  # (..., V)
    return (logp.exp() * log_ratio).sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) in nats: (..., V) -> (...). The uniform one gives ln V."""
    logp = logits.log_softmax(-1)  # (..., V)
    # 0 ln 0 = 0, as in exact_kl.
    return -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)


def assemble_rewards(scores: Tensor, kl: Tensor, mask: Tensor, lam: float) -> Tensor:
    """Per-token rewards: -lam * kl_t on every sampled token, plus the score on the last one.

    Align-Pro: max E[r(x, y)] - lam KL(rho || rho_sft). The KL is a sum over the rewrite's tokens,
    so each token pays its own part. The one score of the rewrite lands on its last token (its EOS).
    scores (B,), kl (B, T) estimates, mask (B, T) -> (B, T), 0 on padding.
    Raises ValueError for a row without a sampled token: there is nowhere to put its score.
    Example: scores [1.], kl [[.1, .2, 9.]], mask [[1, 1, 0]], lam 1 -> [[-.1, .8, 0.]].
    """
    _same_shape(kl=kl, mask=mask)
    if scores.shape != mask.shape[:1]:
        wanted = tuple(mask.shape[:1])
        raise ValueError(f"scores have shape {tuple(scores.shape)}; one per row is {wanted}")
    if not bool(mask.any(dim=1).all()):
        raise ValueError("a row has no sampled token: an empty completion cannot carry a reward")
    T = mask.shape[1]
    column = torch.arange(T, device=mask.device)  # (T,)
    last = torch.where(mask, column, -1).amax(dim=1)  # (B,) index of the last True
    rewards = torch.where(mask, -lam * kl, 0.0)  # (B, T)
    return rewards.scatter_add(1, last[:, None], scores[:, None].to(rewards.dtype))  # (B, T)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), all (B, T).

        delta_t = r_t + gamma V_{t+1} - V_t        A_t = delta_t + gamma lam A_{t+1}
    with V = A = 0 after the last sampled token: the episode ends there, nothing is bootstrapped.
    Returns (advantages, returns = advantages + values), 0 on padding.
    Example (gamma = lam = 1): rewards [[0., 1.]], values [[.5, .5]] -> advantages [[.5, .5]].
    """
    _same_shape(rewards=rewards, values=values, mask=mask)
    rewards = torch.where(mask, rewards, 0.0)  # (B, T)
    values = torch.where(mask, values, 0.0)  # (B, T)
    no_value = torch.zeros_like(values[:, :1])  # (B, 1) after the end
    next_value = torch.cat((values[:, 1:], no_value), dim=1)  # (B, T) V_{t+1}
    delta = rewards + gamma * next_value - values  # (B, T)
    running = torch.zeros_like(delta[:, 0])  # (B,)
    columns = []
    for t in range(delta.shape[1] - 1, -1, -1):
        running = delta[:, t] + gamma * lam * running
        columns.append(running)
    advantages = torch.where(mask, torch.stack(columns[::-1], dim=1), 0.0)  # (B, T)
    return advantages, advantages + values


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
    _same_shape(logp=logp, logp_old=logp_old, advantages=advantages, mask=mask)
    # exp of garbage in the padding could overflow to inf, and inf * 0 is NaN in the backward pass.
    log_ratio = torch.where(mask, logp - logp_old, 0.0)  # (B, T)
    ratio = log_ratio.exp()  # (B, T)
    plain = ratio * advantages  # (B, T)
    limited = ratio.clamp(1 - clip, 1 + clip) * advantages  # (B, T)
    loss = torch.where(mask, -torch.minimum(plain, limited), 0.0)  # (B, T)
    return loss, {"clipped": (limited < plain) & mask, "ratio": ratio.detach()}


def value_loss(
    values: Tensor, values_old: Tensor, returns: Tensor, mask: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Half the squared error to the returns, per token, over a clipped step: all (B, T) -> (B, T).

        V_c = V_old + clip(V - V_old, -eps, eps)     L = max((V - R)^2, (V_c - R)^2) / 2
    The maximum is pessimistic, as the minimum of `policy_loss` is.
    Second result: where the clipped branch was the larger one, (B, T) booleans.
    """
    _same_shape(values=values, values_old=values_old, returns=returns, mask=mask)
    # Bounds, not V_old + clamp(step): inside the clip this is V to the bit, so that rounding never
    # counts as clipped.
    limited = values.clamp(values_old - clip, values_old + clip)  # (B, T)
    # Masked before the square: the derivative of inf ** 2 in the padding is inf; 0 * inf is NaN.
    plain_error = torch.where(mask, values - returns, 0.0) ** 2  # (B, T)
    limited_error = torch.where(mask, limited - returns, 0.0) ** 2  # (B, T)
    return torch.maximum(plain_error, limited_error) / 2, limited_error > plain_error


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the mask: 1 perfect, 0 as good as a constant.

    A variance of the returns below 1e-8 counts as 1e-8.
    """
    return 1 - masked_var(returns - values, mask) / masked_var(returns, mask).clamp(min=1e-8)


def adaptive_kl_coef(coef: float, kl: float, target: float, horizon: float, steps: float) -> float:
    """The next KL coefficient by the controller of Ziegler et al. 2019, section 2.2.

        coef x (1 + clip(kl / target - 1, -0.2, 0.2) x steps / horizon)
    kl is the *policy-to-reference* KL of this batch (not old-to-new: that one only ever shrinks the
    coefficient). The coefficient rises when kl > target. steps: episodes since the last call.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * steps / horizon)


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected) per pair, (B,) -> (B,).

    It is the negative log-likelihood of the Bradley-Terry model of preferences.
    """
    _same_shape(chosen=chosen, rejected=rejected)
    return -torch.nn.functional.logsigmoid(chosen - rejected)
