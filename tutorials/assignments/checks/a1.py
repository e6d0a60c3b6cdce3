"""Checks of a1: Python loops over the True entries, and sums over a small vocabulary."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from checks.base import WRONG_SHAPES, Case

INF = math.inf


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


def oracle_logs(z: list[float]) -> list[float]:
    """Log-probabilities."""
    top = max(z) if not any(map(math.isnan, z)) else math.nan
    total = math.log(math.fsum(math.exp(v - top) for v in z))
    return [v - top - total for v in z]


def oracle_kl(logits: Tensor, logits_ref: Tensor) -> Tensor:
    found = []
    for a, b in zip(logits.flatten(0, -2).tolist(), logits_ref.flatten(0, -2).tolist()):
        pairs = zip(oracle_logs(a), oracle_logs(b))
        found.append(math.fsum(math.exp(u) * (u - v) for u, v in pairs if u != -math.inf))
    return f64(found).view(logits.shape[:-1])


def oracle_entropy(logits: Tensor) -> Tensor:
    rows = [oracle_logs(z) for z in logits.flatten(0, -2).tolist()]
    found = [-math.fsum(math.exp(u) * u for u in row if u != -math.inf) for row in rows]
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
    if name in ("masked_var", "whiten"):
        found += [
            Case("float32 numbers about 1000", ((1000 + x).float(), mask), oracle, tolerance=1e-3),
            Case("float64 numbers about 10 million", (1e7 + x, mask), oracle),
        ]
    found.append(Case("numbers of some thousands", (1e4 * x, mask), oracle))
    found.append(Case("a NaN that is not padding", (torch.where(x == x[0, 0], math.nan, x), mask), oracle))
    if name in ("masked_mean", "masked_sum"):
        found.append(Case("an infinite number that is not padding", (torch.where(x == x[0, 0], INF, x), mask), oracle))
    if name == "masked_mean":
        zeros = f64([[0.0, 2.0], [0.0, 9.0]])
        found.append(Case("numbers that are 0, dim 1", (zeros, small[1], 1), oracle))
    if name == "whiten":
        close = f64([[3.0, 3.0002], [3.0001, 9.0]])
        found.append(Case("numbers that differ by 0.0001", (close, small[1]), oracle))
        one_of_500 = f64([[1.0] + [0.0] * 499])
        found.append(Case("one number of 500 that stands out", (one_of_500, one_of_500 > -1), oracle))
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
        Case("a difference of 1e-9, k1", (*tiny, "k1"), oracle_estimate, tolerance=1e-9),
    ]
    far = f64([[-0.5, -30.5, math.nan]]), f64([[-30.5, -0.5, -1.0]])
    about = "log-probs that differ by 30 and -30, and NaN"
    found += [Case(f"{about}, {kind}", (*far, kind), oracle_estimate) for kind in ("k1", "k2", "k3")]
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
    far, nan = f64([[0.0, 60.0], [60.0, 0.0], [0.0, 800.0]]), f64([[0.0, math.nan, 1.0]])
    found += [
        Case("almost certain tokens: logits that differ by 60 and 800", args(far, far.flip(-1)), oracle),
        Case("a logit that is NaN", args(nan, f64([[0.0, 1.0, 2.0]])), oracle),
    ]
    rare, rarer = f64([[0.0, -7.0], [0.0, -13.0]]), f64([[0.0, 0.0], [0.0, -1000.0]])
    found.append(Case("tokens of a small probability", args(rare, rarer), oracle))
    if name == "exact_kl":
        found += [
            Case("a logit of -inf in p only", (forbidden, free), oracle, gradient=True),
            Case("a logit of -inf in the reference only", (free, forbidden), oracle),
        ]
    return found


def whole(rng: torch.Generator) -> list[Case]:
    """All together, as the trainer's metrics use them: the mean of k1 under p is the exact KL."""
    p, q = (torch.randn(2, 3, 6, generator=rng, dtype=torch.float64) for _ in range(2))
    return [Case("two rows of three positions", (p, q, bools([[1, 1, 1], [1, 0, 0]])), oracle_metrics, call=_metrics)]


def _metrics(_, p: Tensor, q: Tensor, mask: Tensor) -> tuple:
    from alignpro_mini import rl_math

    logp, logq = p.log_softmax(-1), q.log_softmax(-1)
    k1 = (logp.exp() * rl_math.kl_estimate(logp, logq, "k1")).sum(-1)
    white = rl_math.whiten(k1, mask)
    return (
        rl_math.masked_sum(rl_math.exact_kl(p, q), mask),
        rl_math.masked_mean(k1, mask),
        rl_math.masked_var(white, mask),
        white,
        rl_math.entropy(p),
    )


def oracle_metrics(p: Tensor, q: Tensor, mask: Tensor) -> tuple:
    kl = oracle_kl(p, q)
    white = oracle_whiten(kl, mask)
    return oracle_sum(kl, mask), oracle_mean(kl, mask), oracle_var(white, mask), white, oracle_entropy(p)
