"""What the theory promises, to the digit, on problems small enough to list. Float64; nothing here knows a model.

    objective      J_lam(rho) = J(rho) - lam E_x KL(rho || rho_sft),   J(rho) = E_x sum_x' rho(x'|x) R(x, x')
    optimum        rho*(x'|x) = rho_sft(x'|x) exp(R(x, x') / lam) / Z(x)
    identity       J_lam(rho*) - J_lam(mu) = lam E_x KL(mu || rho*)               for every prompter mu
    suboptimality  Delta = J(pi*) - J(rho*) = Delta1 + Delta2 + Delta3, bounded from above (`bound_paper`, `bound_sharp`)

R(x, x') = E_{y ~ pi_F(.|x')}[r(x, y)] is averaged over answers *before* it is exponentiated: E[exp(r / lam)] is another,
risk-seeking optimum. Delta may be negative, because J leaves the KL's price out.

The objective and rho* are the paper's (Align-Pro, AAAI 2025); the identity, the sharper bound, the floor, the ceiling and
the derivatives are derived, and tests/test_theory.py checks them on thousands of random problems.

Shape legend:  N inputs   K rewrites of an input   Y answers
Arrays are accepted as well as tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def _distribution(p, name: str) -> Tensor:
    """p as float64, its last axis checked to be a distribution. Raises ValueError naming the first row that is not."""
    p = torch.as_tensor(p, dtype=torch.float64)
    if p.dim() == 0:
        raise ValueError(f"{name} is a single number; it must be a table whose rows are distributions")
    rows = p.detach().reshape(-1, p.shape[-1])
    bad = ((rows.sum(-1) - 1).abs() > 1e-6) | (rows < 0).any(-1) | ~rows.isfinite().all(-1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"{name}: row {row} is not a distribution (sum {rows[row].sum():.6g}, least entry {rows[row].min():.3g})"
        )
    return p


def _tables(lam: float, R, **prompters) -> tuple[Tensor, ...]:
    """R and the prompters as float64 (N, K). Raises ValueError for lam <= 0, other shapes, or rewards that are not finite."""
    if not lam > 0:
        raise ValueError(f"lam is {lam}; the price of KL must be above 0 (at 0 the optimum is the best rewrite itself)")
    R = torch.as_tensor(R, dtype=torch.float64)
    found = [_distribution(p, name) for name, p in prompters.items()]
    shapes = {name: tuple(p.shape) for name, p in zip(("R", *prompters), (R, *found))}
    if R.dim() != 2 or len(set(shapes.values())) > 1:
        raise ValueError(
            f"tables must all be (N inputs, K rewrites): {', '.join(f'{n} {s}' for n, s in shapes.items())}"
        )
    if not bool(R.isfinite().all()):
        raise ValueError("R has an entry that is not finite")
    return R, *found


def kl(p, q) -> Tensor:
    """KL(p || q) over the last axis: (..., K), (..., K) -> (...), nats; infinite where p goes and q cannot.

    Example: kl([.5, .5], [.25, .75]) = 0.144.
    """
    p, q = torch.as_tensor(p, dtype=torch.float64), torch.as_tensor(q, dtype=torch.float64)
    return _kl_logs(p, q.log())


def _kl_logs(p: Tensor, log_q: Tensor) -> Tensor:
    log_ratio = torch.where(p > 0, p, 1.0).log() - torch.where(p > 0, log_q, 0.0)  # 0 ln 0 = 0
    return (p * log_ratio).sum(-1)


def total_variation(p, q) -> Tensor:
    """Half the L1 distance over the last axis: (..., Y), (..., Y) -> (...), in [0, 1]."""
    p, q = torch.as_tensor(p, dtype=torch.float64), torch.as_tensor(q, dtype=torch.float64)
    return (p - q).abs().sum(-1) / 2


# ---------------------------------------------------------------- the objective and its optimum


def _log_optimum(rho_sft: Tensor, R: Tensor, lam: float) -> Tensor:
    return (rho_sft.log() + R / lam).log_softmax(-1)  # (N, K)


def optimal_prompter(rho_sft, R, lam: float) -> Tensor:
    """rho*(x'|x) = rho_sft(x'|x) exp(R(x, x') / lam) / Z(x): (N, K), (N, K) -> (N, K) float64.

    Example: rho_sft [[.5, .5]], R [[0., ln 3]], lam 1 -> [[.25, .75]]. A rewrite that rho_sft never offers stays at 0.
    The same formula with answers for rewrites is RLHF's optimal policy. Raises ValueError for rows that are no
    distribution, other shapes, lam <= 0.
    """
    R, rho_sft = _tables(lam, R, rho_sft=rho_sft)
    return _log_optimum(rho_sft, R, lam).exp()


def value(rho, R) -> Tensor:
    """J(rho) = E_x sum_x' rho(x'|x) R(x, x'): the plain reward, KL left out. (N, K), (N, K) -> scalar."""
    R, rho = _tables(1.0, R, rho=rho)
    return (rho * R).sum(-1).mean()


def regularised_value(rho, rho_sft, R, lam: float) -> Tensor:
    """J_lam(rho) = J(rho) - lam E_x KL(rho || rho_sft), averaged over inputs: three (N, K) tables -> scalar.

    Differentiable in rho. -inf where rho offers what rho_sft cannot.
    """
    R, rho, rho_sft = _tables(lam, R, rho=rho, rho_sft=rho_sft)
    return (rho * R).sum(-1).mean() - lam * _kl_logs(rho, rho_sft.log()).mean()


def closeness(rho, rho_sft, R, lam: float) -> dict[str, float]:
    """How near a trained prompter comes to rho*, in units of reward.

        attainable_gain_share   (J_lam(rho) - J_lam(rho_sft)) / (J_lam(rho*) - J_lam(rho_sft)): 1 is perfect, 0 is untrained
        regularised_gap         J_lam(rho*) - J_lam(rho)
        lambda_kl_to_optimum    lam E_x KL(rho || rho*), which the master identity makes equal to the gap

    The two last are computed by different routes, so that their difference shows an error. The share is None where
    rho_sft is optimal already.
    """
    R, rho, rho_sft = _tables(lam, R, rho=rho, rho_sft=rho_sft)
    best = regularised_value(optimal_prompter(rho_sft, R, lam), rho_sft, R, lam)
    ours, start = regularised_value(rho, rho_sft, R, lam), value(rho_sft, R)
    attainable = float(best - start)
    return {
        "attainable_gain_share": float(ours - start) / attainable if attainable > 1e-12 else None,
        "regularised_gap": float(best - ours),
        "lambda_kl_to_optimum": lam * float(_kl_logs(rho, _log_optimum(rho_sft, R, lam)).mean()),
    }


def along_eta(rho_sft, R, V, eta: float) -> dict[str, float]:
    """Mean and variance of the reward under rho_eta ~ rho_sft exp(eta R), eta = 1/lam, and their exact derivatives.

        d E[R] / d eta   =  Var(R) >= 0          the mean rises, as fast as rewrites differ
        d Var(R) / d eta =  kappa_3(R)           the spread between rewrites *rises* first where good ones are rare
        d E[V] / d eta   =  Cov(V, R)            the LM's own spread falls only if better rewrites are also steadier

    R and V are (N, K): mean and variance of r over the answers to a rewrite. Everything is averaged over inputs. Raises
    ValueError for other shapes and rows of rho_sft that are no distribution.
    """
    R, rho_sft = _tables(1.0, R, rho_sft=rho_sft)
    V = torch.as_tensor(V, dtype=torch.float64)  # (N, K)
    if V.shape != R.shape:
        raise ValueError(f"V has shape {tuple(V.shape)}; it must be R's, {tuple(R.shape)}")
    rho = (rho_sft.log() + eta * R).softmax(-1)  # (N, K)
    mean = (rho * R).sum(-1, keepdim=True)  # (N, 1)
    off = R - mean  # (N, K)
    each = lambda x: float((rho * x).sum(-1).mean())  # noqa: E731
    return {
        "mean": each(R),
        "between_rewrites": each(off**2),
        "within": each(V),
        "d_mean": each(off**2),
        "d_between_rewrites": each(off**3),
        "d_within": each(off * V),
    }


# ---------------------------------------------------------------- how far from RLHF: bounds on Delta


def bound_paper(r_max: float, tv_oracle: float, tv_rewrites: float, kl_star: float, lam: float) -> float:
    """The paper's bound, Delta <= r_max E TV(pi*, pi_F) + r_max E E TV(pi_F(.|x), pi_F(.|x')) - lam KL(rho* || rho_sft).

    r_max is the range of r; x' ~ rho_sft in the second term. Its full form is recalled, not read off the paper's text; as
    written here it is provable (and loose: `bound_sharp` is never above it).
    """
    return r_max * (tv_oracle + tv_rewrites) - lam * kl_star


def bound_sharp(r_max: float, tv_induced: float, kl_star: float, kl_back: float, lam: float) -> float:
    """Delta <= r_max E TV(pi*, induced by rho_sft) - lam E[KL(rho* || rho_sft) + KL(rho_sft || rho*)].

    The KL terms are Delta3 exactly, so all the slack is in the first. With kl_star = KL(rho || rho_sft) of a *trained*
    prompter and kl_back = 0 it bounds that prompter's Delta, provided that J_lam(rho) >= J(rho_sft).
    """
    return r_max * tv_induced - lam * (kl_star + kl_back)


@dataclass(frozen=True, slots=True)
class FiniteProblem:
    """A world that can be listed: answers and all.

    rho_sft (N, K)    the SFT prompter
    pi_f (N, K, Y)    the frozen LM's answers to each rewrite
    pi_plain (N, Y)   its answers to x itself
    r (N, Y)          the reward of an answer to x, whatever it was asked
    lam, beta         the price of KL for the prompter and for RLHF
    """

    rho_sft: Tensor
    pi_f: Tensor
    pi_plain: Tensor
    r: Tensor
    lam: float
    beta: float

    def __post_init__(self) -> None:
        for name in ("rho_sft", "pi_f", "pi_plain"):
            object.__setattr__(self, name, _distribution(getattr(self, name), name))
        object.__setattr__(self, "r", torch.as_tensor(self.r, dtype=torch.float64))
        if self.pi_f.dim() != 3:
            raise ValueError(f"pi_f has shape {tuple(self.pi_f.shape)}; it must be (N inputs, K rewrites, Y answers)")
        N, K, Y = self.pi_f.shape
        for name, shape in {"rho_sft": (N, K), "pi_plain": (N, Y), "r": (N, Y)}.items():
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"{name} has shape {tuple(getattr(self, name).shape)}; with pi_f {(N, K, Y)} it must be {shape}"
                )

    @property
    def R(self) -> Tensor:
        """(N, K): the reward that a rewrite earns on average."""
        return (self.pi_f * self.r[:, None]).sum(-1)

    @property
    def V(self) -> Tensor:
        """(N, K): the variance of the reward over the answers to a rewrite."""
        return (self.pi_f * (self.r[:, None] - self.R[..., None]) ** 2).sum(-1)

    @property
    def r_max(self) -> float:
        """The range of r; a shift of r changes no Delta, so it need not start at 0."""
        return float(self.r.max() - self.r.min())

    @property
    def pi_star(self) -> Tensor:
        """(N, Y): RLHF's optimum, pi_F(y|x) exp(r(x, y) / beta) / Z(x)."""
        return optimal_prompter(self.pi_plain, self.r, self.beta)

    @property
    def rho_star(self) -> Tensor:
        return optimal_prompter(self.rho_sft, self.R, self.lam)  # (N, K)

    def induced(self, rho) -> Tensor:
        """The answers that a prompter brings about: sum_x' rho(x'|x) pi_F(y|x'), (N, K) -> (N, Y)."""
        return (torch.as_tensor(rho, dtype=torch.float64)[..., None] * self.pi_f).sum(1)

    def J(self, policy: Tensor) -> float:
        """E_x E_{y ~ policy}[r(x, y)] of answers (N, Y), KL left out."""
        return float((policy * self.r).sum(-1).mean())

    def deltas(self) -> dict[str, float]:
        """Delta1 = J(pi*) - J(pi_F), Delta2 = J(pi_F) - J(rho_sft), Delta3 = J(rho_sft) - J(rho*): they sum to Delta."""
        stairs = [
            self.J(p) for p in (self.pi_star, self.pi_plain, self.induced(self.rho_sft), self.induced(self.rho_star))
        ]
        return {f"delta{i + 1}": a - b for i, (a, b) in enumerate(zip(stairs, stairs[1:]))}

    def bounds(self) -> dict[str, float]:
        """`bound_paper` and `bound_sharp`, both at least delta1 + delta2 + delta3."""
        kl_star = float(kl(self.rho_star, self.rho_sft).mean())
        # From rho*'s logs: where exp(R / lam) underflows, rho* itself is 0 and this KL would be infinite.
        kl_back = float(_kl_logs(self.rho_sft, _log_optimum(self.rho_sft, self.R, self.lam)).mean())
        tv_oracle = float(total_variation(self.pi_star, self.pi_plain).mean())
        tv_rewrites = float((self.rho_sft * total_variation(self.pi_plain[:, None], self.pi_f)).sum(-1).mean())
        tv_induced = float(total_variation(self.pi_star, self.induced(self.rho_sft)).mean())
        return {
            "bound_paper": bound_paper(self.r_max, tv_oracle, tv_rewrites, kl_star, self.lam),
            "bound_sharp": bound_sharp(self.r_max, tv_induced, kl_star, kl_back, self.lam),
        }

    def no_harm_floor(self, identity: int = 0) -> float:
        """What J(rho*) cannot fall below, where rewrite number `identity` is x itself, so that pi_f there is pi_plain:

            J(rho*) >= J(pi_F) - lam E log(1 / rho_sft(x|x)) + lam E KL(rho* || rho_sft)

        A prompter that sometimes leaves the request alone buys this floor; -inf if it never does. Raises ValueError where
        that rewrite is not answered as x itself.
        """
        if not torch.allclose(self.pi_f[:, identity], self.pi_plain, atol=1e-9):
            raise ValueError(
                f"rewrite {identity} is not x itself: its answers pi_f[:, {identity}] differ from pi_plain"
            )
        p0 = self.rho_sft[:, identity]  # (N,)
        return self.J(self.pi_plain) + self.lam * float(p0.log().mean() + kl(self.rho_star, self.rho_sft).mean())

    def ceiling(self) -> float:
        """What no prompter exceeds at any lam: E_x max over the rewrites that rho_sft offers of R(x, x')."""
        return float(self.R.masked_fill(self.rho_sft == 0, -torch.inf).amax(-1).mean())
