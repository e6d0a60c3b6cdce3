"""Checks of a1: Python loops over the True entries, and sums over a small vocabulary."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from checks.base import WRONG_SHAPES, Case


def f64(rows) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def bools(rows) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def _fit(x: Tensor, mask: Tensor) -> None:
    if x.shape != mask.shape:
        raise ValueError(WRONG_SHAPES)


def _kept(x: Tensor, mask: Tensor) -> list[float]:
    return [v for v, m in zip(x.flatten().tolist(), mask.flatten().tolist()) if m]


def oracle_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    _fit(x, mask)
    if dim is None:
        kept = _kept(x, mask)
        return f64(math.fsum(kept) / max(1, len(kept)))
    rows = (x, mask) if dim == 1 else (x.T, mask.T)
    return f64([math.fsum(k) / max(1, len(k)) for k in (_kept(a, m) for a, m in zip(*rows))])


def oracle_sum(x: Tensor, mask: Tensor) -> Tensor:
    _fit(x, mask)
    return f64([math.fsum(_kept(a, m)) for a, m in zip(x, mask)])


def oracle_var(x: Tensor, mask: Tensor) -> Tensor:
    _fit(x, mask)
    kept = _kept(x, mask)
    mean = math.fsum(kept) / len(kept)
    return f64(math.fsum((v - mean) ** 2 for v in kept) / len(kept))


def oracle_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    _fit(x, mask)
    kept = _kept(x, mask)
    mean = math.fsum(kept) / len(kept)
    scale = 1 / math.sqrt(math.fsum((v - mean) ** 2 for v in kept) / len(kept) + eps)
    new = lambda v: (v - mean) * scale + (0.0 if shift_mean else mean)
    rows = zip(x.tolist(), mask.tolist())
    return f64([[new(v) if m else 0.0 for v, m in zip(*row)] for row in rows])


def oracle_estimate(logp: Tensor, logp_ref: Tensor, kind: str = "k1") -> Tensor:
    if logp.shape != logp_ref.shape:
        raise ValueError(WRONG_SHAPES)
    formulas = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(-d) - 1 + d}
    if kind not in formulas:
        raise ValueError("another kind")
    d = [a - b for a, b in zip(logp.flatten().tolist(), logp_ref.flatten().tolist())]
    return f64([formulas[kind](v) for v in d]).view(logp.shape)


def _softmax(z: list[float]) -> list[float]:
    top = max(z)
    e = [math.exp(v - top) for v in z]
    return [v / math.fsum(e) for v in e]


def oracle_kl(logits: Tensor, logits_ref: Tensor) -> Tensor:
    found = []
    for a, b in zip(logits.flatten(0, -2).tolist(), logits_ref.flatten(0, -2).tolist()):
        p, q = _softmax(a), _softmax(b)
        found.append(math.fsum(u * math.log(u / v) if v > 0 else math.inf for u, v in zip(p, q) if u > 0))
    return f64(found).view(logits.shape[:-1])


def oracle_entropy(logits: Tensor) -> Tensor:
    found = [-math.fsum(p * math.log(p) for p in _softmax(z) if p > 0) for z in logits.flatten(0, -2).tolist()]
    return f64(found).view(logits.shape[:-1])


def cases(path: str, rng: torch.Generator) -> list[Case]:
    """The cases of a function, the smallest first."""
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)
    name = path.partition(".")[2]
    if name == "kl_estimate":
        return _estimate(draw)
    if name in ("exact_kl", "entropy"):
        return _vocabulary(name, draw)
    oracle = {"masked_mean": oracle_mean, "masked_sum": oracle_sum, "masked_var": oracle_var, "whiten": oracle_whiten}[
        name
    ]
    small = f64([[1.0, 2.0], [5.0, 9.0]]), bools([[1, 1], [1, 0]])
    mask = bools([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    x = draw(3, 4)
    found = [Case("the example of the docstring", small, oracle)]
    more = {"masked_mean": [{"dim": 1}, {"dim": 0}], "whiten": [{"shift_mean": False}]}.get(name, [])
    found += [Case(f"three rows, {options}", (x, mask, *options.values()), oracle) for options in more]
    if name in ("masked_mean", "masked_sum"):
        empty = bools([[0, 0], [1, 1]])
        found.append(
            Case("a row without a True entry", (small[0], empty, *([1] if name == "masked_mean" else [])), oracle)
        )
    for garbage in (7.0, float("inf"), float("nan")):
        dirty = torch.where(mask, x, garbage)
        found.append(Case(f"three rows, {garbage} in the padding", (dirty, mask), oracle))
        if more:
            options = tuple(more[0].values())
            found.append(Case(f"three rows, {garbage} in the padding, {more[0]}", (dirty, mask, *options), oracle))
    found.append(Case("a gradient", (torch.where(mask, x, 3.0), mask), oracle, gradient=True))
    if name == "whiten":
        constant = torch.full_like(small[0], 3.0)
        found += [
            Case("eps 1", (*small, True, 1.0), oracle),
            Case("a constant x, whose variance is 0", (constant, small[1]), oracle),
            Case("large numbers far from 0", (1000 + 50 * x, mask), oracle),
        ]
    found.append(Case("a column against a row", (x[:, :1], mask), oracle))
    return found


def _estimate(draw) -> list[Case]:
    one = f64([math.log(0.5)]), f64([math.log(0.25)])
    found = [
        Case(f"logp = ln .5, logp_ref = ln .25, {kind}", (*one, kind), oracle_estimate) for kind in ("k1", "k2", "k3")
    ]
    logp, ref = -draw(3, 4).abs(), -draw(3, 4).abs()
    for kind in ("k1", "k2", "k3"):
        found.append(Case(f"three rows, {kind}", (logp, ref, kind), oracle_estimate, gradient=True))
    tiny = f64([-1.0]), f64([-1.0 - 1e-9])
    found += [
        Case("the default kind", (logp, ref), oracle_estimate),
        Case("another kind", (logp, ref, "k4"), oracle_estimate),
        Case("a column against a row", (logp[:, :1], ref, "k1"), oracle_estimate),
        Case("a difference of 1e-9, k1", (*tiny, "k1"), oracle_estimate),
    ]
    return found


def _vocabulary(name: str, draw) -> list[Case]:
    oracle = oracle_kl if name == "exact_kl" else oracle_entropy
    two = f64([[0.0, math.log(3)]])
    other = f64([[math.log(3), 0.0]])
    forbidden, free = f64([[0.5, float("-inf"), -1.0, 0.25]]), f64([[0.0, 2.0, 0.0, 1.0]])
    args = lambda x, y: (x, y) if name == "exact_kl" else (x,)
    x, y = draw(2, 3, 5), draw(2, 3, 5)
    found = [
        Case("two tokens", args(two, other), oracle),
        Case("two rows of three positions, five tokens", args(x, y), oracle),
        Case("logits shifted by 100", args(x + 100, y), oracle),
        Case("a gradient", args(x[0], y[0]), oracle, gradient=True),
        Case("a token that cannot come (logit -inf)", args(forbidden, f64([[0.0, float("-inf"), 0.0, 1.0]])), oracle),
        Case("its gradient", args(forbidden, f64([[0.0, float("-inf"), 0.0, 1.0]])), oracle, gradient=True),
    ]
    if name == "exact_kl":
        found += [
            Case("a logit of -inf in p only", (forbidden, free), oracle, gradient=True),
            Case("a logit of -inf in the reference only", (free, forbidden), oracle),
        ]
    return found


def whole(rng: torch.Generator) -> None:
    """All together, as the trainer's metrics use them."""
    from alignpro_mini import rl_math

    mask = bools([[1, 1, 1], [1, 0, 0]])
    p, q = (torch.randn(2, 3, 6, generator=rng, dtype=torch.float64) for _ in range(2))
    exact = rl_math.masked_sum(rl_math.exact_kl(p, q), mask)
    torch.testing.assert_close(exact, oracle_sum(oracle_kl(p, q), mask), rtol=1e-6, atol=1e-8)
    # The mean of k1 under p is the exact KL.
    logp, logq = p.log_softmax(-1), q.log_softmax(-1)
    k1 = (logp.exp() * rl_math.kl_estimate(logp, logq, "k1")).sum(-1)
    torch.testing.assert_close(rl_math.masked_mean(k1, mask), oracle_mean(oracle_kl(p, q), mask), rtol=1e-6, atol=1e-8)
    white = rl_math.whiten(k1, mask)
    torch.testing.assert_close(rl_math.masked_var(white, mask), f64(1.0), rtol=1e-5, atol=1e-6)
    assert (rl_math.entropy(p) > 0).all() and white[~mask].eq(0).all()
