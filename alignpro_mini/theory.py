"""The theory, exact where rewrites are enumerated. Float64 tables in, numbers out; no model.

    value          J(rho) = E_x sum_x' rho(x'|x) R(x, x')
    objective      J_lam(rho) = J(rho) - lam E_x KL(rho || rho_sft)
    optimum        rho*(x'|x) = rho_sft(x'|x) exp(R(x, x') / lam) / Z(x)
    identity       J_lam(rho*) - J_lam(mu) = lam E_x KL(mu || rho*)      for every prompter mu
    suboptimality  Delta = J(pi*) - J(rho*) = Delta1 + Delta2 + Delta3
                   with two bounds (`bound_paper`, `bound_sharp`)

R(x, x') = E_{y ~ pi_F(.|x')}[r(x, y)] is averaged over answers *before* it is exponentiated:
E[exp(r / lam)] gives another, risk-seeking optimum. Delta may be negative, because J does not
contain the KL penalty.

The objective and rho* are the paper's (Align-Pro, AAAI 2025). The identity, the sharper bound and
the derivatives are derived; tests/core/test_theory.py checks them on thousands of random problems.

Shape legend:  N inputs   K rewrites of an input   Y answers
Arrays are accepted as well as tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _distribution(p, name: str) -> Tensor:
    """p as float64, its last axis checked to be a distribution.

    Raises ValueError naming the first row that is not.
    """
    p = torch.as_tensor(p, dtype=torch.float64)
    if p.dim() == 0:
        raise ValueError(
            f"{name} is a single number; it must be a table whose rows are distributions"
        )
    rows = p.detach().reshape(-1, p.shape[-1])
    bad = ((rows.sum(-1) - 1).abs() > 1e-6) | (rows < 0).any(-1) | ~rows.isfinite().all(-1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        facts = f"sum {rows[row].sum():.6g}, least entry {rows[row].min():.3g}"
        raise ValueError(f"{name}: row {row} is not a distribution ({facts})")
    return p


def _tables(lam: float, R, **prompters) -> tuple[Tensor, ...]:
    """R and prompters as float64 (N, K).

    Raises ValueError for lam <= 0, other shapes, rewards that are not finite.
    """
    if not lam > 0:
        raise ValueError(
            f"lam is {lam}; the KL coefficient must be above 0 "
            "(at 0 the optimum is the best rewrite)"
        )
    R = torch.as_tensor(R, dtype=torch.float64)
    tables = {"R": R}
    for name, p in prompters.items():
        tables[name] = _distribution(p, name)
    shapes = {name: tuple(table.shape) for name, table in tables.items()}
    if R.dim() != 2 or len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"tables must all be (N inputs, K rewrites): {listed}")
    if not bool(R.isfinite().all()):
        raise ValueError("R has an entry that is not finite")
    return tuple(tables.values())


def kl(p, q) -> Tensor:
    """KL(p || q) in nats over the last axis: (..., K), (..., K) -> (...).

    Infinite where p > 0 and q = 0. Example: kl([.5, .5], [.25, .75]) = 0.144.
    """
    p = torch.as_tensor(p, dtype=torch.float64)
    q = torch.as_tensor(q, dtype=torch.float64)
    return _kl_logs(p, q.log())


def _kl_logs(p: Tensor, log_q: Tensor) -> Tensor:
    # Where p is 0 both logs are put to 0: 0 ln 0 = 0, and never 0 x infinity.
    log_p = torch.where(p > 0, p, 1.0).log()
    log_ratio = log_p - torch.where(p > 0, log_q, 0.0)
    return (p * log_ratio).sum(-1)


def total_variation(p, q) -> Tensor:
    """Half the L1 distance over the last axis: (..., Y), (..., Y) -> (...), in [0, 1]."""
    p = torch.as_tensor(p, dtype=torch.float64)
    q = torch.as_tensor(q, dtype=torch.float64)
    return (p - q).abs().sum(-1) / 2


# ---------------------------------------------------------------- the objective and its optimum


def _log_optimum(rho_sft: Tensor, R: Tensor, lam: float) -> Tensor:
    return (rho_sft.log() + R / lam).log_softmax(-1)  # (N, K)


def optimal_prompter(rho_sft, R, lam: float) -> Tensor:
    """rho*(x'|x) = rho_sft(x'|x) exp(R(x, x') / lam) / Z(x): (N, K), (N, K) -> (N, K) float64.

    Example: rho_sft [[.5, .5]], R [[0., ln 3]], lam 1 -> [[.25, .75]].

    A rewrite that rho_sft never offers stays at 0. The same formula with answers for rewrites is
    RLHF's optimal policy. Raises ValueError for rows that are no distribution, other shapes,
    lam <= 0.
    """
    R, rho_sft = _tables(lam, R, rho_sft=rho_sft)
    return _log_optimum(rho_sft, R, lam).exp()


def reverse_kl_optimum(rho_sft, R, lam: float, steps: int = 200) -> Tensor:
    """The prompter that maximises J(rho) - lam E_x KL(rho_sft || rho): (N, K), (N, K) -> (N, K).

        rho(x'|x) = lam rho_sft(x'|x) / (mu(x) - R(x, x')),   mu(x) such that the row sums to 1

    Over the rewrites that rho_sft offers; float64. It is where a KL penalty of the other direction
    leads: k3 as a loss, for completions of one token. (Of longer ones a loss per token sees each
    token's own KL, not what it does to the tokens after it.) mu is found by bisection. Raises
    ValueError as `optimal_prompter` does.
    """
    R, rho_sft = _tables(lam, R, rho_sft=rho_sft)
    best = torch.where(rho_sft > 0, R, -torch.inf).max(-1, keepdim=True)  # (N, 1)
    # How far a rewrite is behind the best one on offer.
    behind = torch.where(rho_sft > 0, best.values - R, torch.inf)  # (N, K)
    # Bounds of mu - best. At the lower one the best rewrite alone has probability 1, at the upper
    # one the row's sum is at most 1.
    low = lam * rho_sft.gather(-1, best.indices)  # (N, 1)
    high = torch.full_like(best.values, lam)  # (N, 1)
    for _ in range(steps):
        middle = low.sqrt() * high.sqrt()  # by orders of magnitude: rho_sft may be 1e-300
        above = (lam * rho_sft / (middle + behind)).sum(-1, keepdim=True) > 1  # (N, 1)
        low = torch.where(above, middle, low)
        high = torch.where(above, high, middle)
    rho = lam * rho_sft / (high + behind)  # (N, K)
    return rho / rho.sum(-1, keepdim=True)


def value(rho, R) -> Tensor:
    """J(rho) = E_x sum_x' rho(x'|x) R(x, x'): (N, K), (N, K) -> scalar.

    The plain reward, without the KL penalty.
    """
    R, rho = _tables(1.0, R, rho=rho)
    return (rho * R).sum(-1).mean()


def regularised_value(rho, rho_sft, R, lam: float) -> Tensor:
    """J_lam(rho) = J(rho) - lam E_x KL(rho || rho_sft): three (N, K) tables -> scalar.

    Averaged over inputs; differentiable in rho. -inf where rho offers what rho_sft cannot. Raises
    ValueError as `optimal_prompter` does.
    """
    R, rho, rho_sft = _tables(lam, R, rho=rho, rho_sft=rho_sft)
    return (rho * R).sum(-1).mean() - lam * _kl_logs(rho, rho_sft.log()).mean()


def closeness(rho, rho_sft, R, lam: float) -> dict[str, float]:
    """How near a trained prompter comes to rho*, in units of reward.

        attainable_gain         J_lam(rho*) - J_lam(rho_sft)
        attainable_gain_share   (J_lam(rho) - J_lam(rho_sft)) / attainable_gain
        regularised_gap         J_lam(rho*) - J_lam(rho)
        lambda_kl_to_optimum    lam E_x KL(rho || rho*), by the identity equal to the gap

    The share is 1 for the optimum and 0 for rho_sft; None where rho_sft is optimal already. The two
    last are computed by different routes, so that their difference shows an error.
    """
    R, rho, rho_sft = _tables(lam, R, rho=rho, rho_sft=rho_sft)
    best = regularised_value(optimal_prompter(rho_sft, R, lam), rho_sft, R, lam)
    reached = regularised_value(rho, rho_sft, R, lam)
    start = value(rho_sft, R)
    attainable = float(best - start)
    share = float(reached - start) / attainable if attainable > 1e-12 else None
    return {
        "attainable_gain": attainable,
        "attainable_gain_share": share,
        "regularised_gap": float(best - reached),
        "lambda_kl_to_optimum": lam * float(_kl_logs(rho, _log_optimum(rho_sft, R, lam)).mean()),
    }


def along_eta(rho_sft, R, V, eta: float) -> dict[str, float]:
    """Mean and variance of the reward under rho_eta ~ rho_sft exp(eta R), eta = 1/lam.

    And their exact derivatives:

        d E[R] / d eta   =  Var(R) >= 0   the mean rises, as fast as rewrites differ
        d Var(R) / d eta =  kappa_3(R)    the spread between rewrites first *rises* where good
                                          ones are rare
        d E[V] / d eta   =  Cov(V, R)     the LM's own spread falls only if better rewrites are
                                          also steadier

    R and V are (N, K): mean and variance of r over the answers to a rewrite. Everything is averaged
    over inputs. Raises ValueError for other shapes and rows of rho_sft that are no distribution.
    """
    R, rho_sft = _tables(1.0, R, rho_sft=rho_sft)
    V = torch.as_tensor(V, dtype=torch.float64)  # (N, K)
    if V.shape != R.shape:
        raise ValueError(f"V has shape {tuple(V.shape)}; it must be R's, {tuple(R.shape)}")
    rho = (rho_sft.log() + eta * R).softmax(-1)  # (N, K)
    mean = (rho * R).sum(-1, keepdim=True)  # (N, 1)
    off = R - mean  # (N, K)

    def expected(table: Tensor) -> float:
        """E_x E_{x' ~ rho_eta} of a table (N, K)."""
        return float((rho * table).sum(-1).mean())

    return {
        "mean": expected(R),
        "between_rewrites": expected(off**2),
        "within": expected(V),
        "d_mean": expected(off**2),
        "d_between_rewrites": expected(off**3),
        "d_within": expected(off * V),
    }


# ---------------------------------------------------------------- bounds on Delta: the way to RLHF


def bound_paper(
    r_max: float, tv_oracle: float, tv_rewrites: float, kl_star: float, lam: float
) -> float:
    """The paper's bound on Delta.

        Delta <= r_max E TV(pi*, pi_F)
                 + r_max E E TV(pi_F(.|x), pi_F(.|x'))
                 - lam KL(rho* || rho_sft)

    r_max is the range of r; x' ~ rho_sft in the second term. Its full form is recalled, not read
    off the paper's text. As written here it is provable, and loose: `bound_sharp` is never above.
    """
    return r_max * (tv_oracle + tv_rewrites) - lam * kl_star


def bound_sharp(
    r_max: float, tv_induced: float, kl_star: float, kl_back: float, lam: float
) -> float:
    """A sharper bound on Delta.

        Delta <= r_max E TV(pi*, induced by rho_sft)
                 - lam E[KL(rho* || rho_sft) + KL(rho_sft || rho*)]

    The KL terms are Delta3 exactly, so all the slack is in the first. With kl_star =
    KL(rho || rho_sft) of a *trained* prompter and kl_back = 0 it bounds that prompter's Delta,
    provided that J_lam(rho) >= J(rho_sft).
    """
    return r_max * tv_induced - lam * (kl_star + kl_back)
