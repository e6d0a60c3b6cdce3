"""A problem that can be enumerated, answers and all: the oracle for the bounds of `alignpro_mini.theory`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignpro_mini.theory import (
    _distribution,
    _kl_logs,
    _log_optimum,
    bound_paper,
    bound_sharp,
    kl,
    optimal_prompter,
    total_variation,
)


@dataclass(frozen=True, slots=True)
class FiniteProblem:
    """Requests, rewrites and answers, all enumerated.

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
