"""Checks of a5: loops and the textbook sum against `assemble_rewards` and `gae`."""

from __future__ import annotations

import torch
from torch import Tensor

from checks.base import WRONG_SHAPES, Case


def f64(rows) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def ragged(rng: torch.Generator, lengths: tuple[int, ...], garbage: float) -> dict[str, Tensor]:
    """Right-padded rows as the trainer sees them, with garbage in the padding."""
    B, T = len(lengths), max(lengths)
    mask = torch.arange(T) < torch.tensor(lengths)[:, None]
    draw = lambda: torch.where(mask, torch.randn(B, T, generator=rng, dtype=torch.float64), garbage)
    found = {name: draw() for name in ("kl", "rewards", "values")}
    return found | {"mask": mask, "scores": torch.randn(B, generator=rng, dtype=torch.float64)}


def oracle_assemble(scores: Tensor, kl: Tensor, mask: Tensor, lam: float) -> Tensor:
    if kl.shape != mask.shape or scores.shape != (len(mask),):
        raise ValueError(WRONG_SHAPES)
    rows = []
    for score, row, real in zip(scores.tolist(), kl.tolist(), mask.tolist()):
        if True not in real:
            raise ValueError("a row without a sampled token")
        new = [-lam * k if r else 0.0 for k, r in zip(row, real)]
        new[len(real) - 1 - real[::-1].index(True)] += score
        rows.append(new)
    return f64(rows)


def oracle_gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """The definition: A_t = sum over l of (gamma lam)^l delta_{t+l}. No recursion."""
    if rewards.shape != values.shape or rewards.shape != mask.shape:
        raise ValueError(WRONG_SHAPES)
    advantages, returns = torch.zeros(mask.shape, dtype=torch.float64), torch.zeros(mask.shape, dtype=torch.float64)
    for b in range(len(mask)):
        T = int(mask[b].sum())
        r, v = rewards[b, :T].tolist(), [*values[b, :T].tolist(), 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(T)]
        for t in range(T):
            advantages[b, t] = sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, T))
            returns[b, t] = advantages[b, t] + v[t]
    return advantages, returns


def cases(path: str, rng: torch.Generator) -> list[Case]:
    """The cases of a function, the smallest first."""
    if path == "rl_math.assemble_rewards":
        return _assemble(rng)
    return _gae(rng)


def _assemble(rng: torch.Generator) -> list[Case]:
    ones = torch.ones(1, 2, dtype=torch.bool)
    found = [
        Case("one row of one token", (f64([1.0]), f64([[0.5]]), ones[:, :1], 1.0)),
        Case("one row of two tokens", (f64([1.0]), f64([[0.1, 0.2]]), ones, 1.0)),
        Case("lam 0.5", (f64([2.0]), f64([[0.4, -0.2]]), ones, 0.5)),
        Case(
            "a row with padding",
            (f64([1.0]), f64([[0.1, 0.2, 9.0, 9.0]]), torch.tensor([[True, True, False, False]]), 1.0),
        ),
    ]
    for garbage in (7.0, float("inf"), float("nan")):
        g = ragged(rng, (4, 1, 2), garbage)
        found.append(Case(f"three rows, {garbage} in the padding", (g["scores"], g["kl"], g["mask"], 0.3)))
    nan = float("nan")
    found += [
        Case("a KL of 30 and of -30, a score of 50", (f64([50.0]), f64([[30.0, -30.0]]), ones, 0.5)),
        Case("lam 3", (f64([2.0]), f64([[0.4, -0.2]]), ones, 3.0)),
        Case("lam 0", (f64([2.0]), f64([[0.4, -0.2]]), ones, 0.0)),
        Case("a sampled token whose KL is NaN", (f64([2.0]), f64([[nan, -0.2]]), ones, 1.0)),
        Case("a score that is NaN", (f64([nan]), f64([[0.1, -0.2]]), ones, 1.0)),
    ]
    g = ragged(rng, (3, 3), 0.0)
    found += [
        Case("a row without a sampled token", (g["scores"], g["kl"], torch.tensor([[True] * 3, [False] * 3]), 0.3)),
        Case("scores (B, 1) instead of (B,)", (g["scores"][:, None], g["kl"], g["mask"], 0.3)),
    ]
    return [Case(c.about, c.args, oracle_assemble) for c in found]


def _gae(rng: torch.Generator) -> list[Case]:
    ones = torch.ones(1, 3, dtype=torch.bool)
    found = [
        Case("one token", (f64([[1.0]]), f64([[0.5]]), ones[:, :1], 1.0, 1.0)),
        Case("two tokens, gamma = lam = 1", (f64([[0.0, 1.0]]), f64([[0.5, 0.5]]), ones[:, :2], 1.0, 1.0)),
        Case("lam 0", (f64([[0.0, 0.0, 3.0]]), f64([[1.0, 2.0, 2.0]]), ones, 1.0, 0.0)),
        Case("lam 0.5", (f64([[0.0, 0.0, 3.0]]), f64([[1.0, 2.0, 2.0]]), ones, 1.0, 0.5)),
        Case("gamma 0.5", (f64([[0.0, 0.0, 4.0]]), f64([[1.0, 2.0, 2.0]]), ones, 0.5, 1.0)),
        Case(
            "a row with padding",
            (f64([[1.0, 2.0, 7.0]]), f64([[0.5, 0.25, 7.0]]), torch.tensor([[True, True, False]]), 1.0, 0.5),
        ),
    ]
    for gamma, lam, garbage in ((1.0, 0.95, 7.0), (0.9, 0.8, float("inf")), (0.97, 0.0, float("nan"))):
        g = ragged(rng, (5, 1, 3), garbage)
        about = f"three rows, {garbage} in the padding, gamma {gamma}, lam {lam}"
        found.append(Case(about, (g["rewards"], g["values"], g["mask"], gamma, lam)))
    g = ragged(rng, (5, 1, 3), 0.0)
    nan = torch.where(g["rewards"] == g["rewards"][0, 2], float("nan"), g["rewards"])
    found += [
        Case("rewards of some hundreds", (300 * g["rewards"], g["values"], g["mask"], 0.9, 0.8)),
        Case("values of some hundreds", (g["rewards"], 300 * g["values"], g["mask"], 0.9, 0.8)),
        Case("a sampled token whose reward is NaN", (nan, g["values"], g["mask"], 0.9, 0.8)),
    ]
    g = ragged(rng, (3, 3), 0.0)
    found.append(Case("values (B, 1) instead of (B, T)", (g["rewards"], g["values"][:, :1], g["mask"], 1.0, 0.9)))
    # In float32 some hundreds leave fewer digits.
    return [Case(c.about, c.args, oracle_gae, tolerance=1e-3 if "hundreds" in c.about else 1e-5) for c in found]


def whole(rng: torch.Generator) -> list[Case]:
    """Both together, as the trainer calls them."""
    g = ragged(rng, (6, 2, 4), 0.0)
    args = (g["scores"], g["kl"], g["values"], g["mask"])
    return [Case("three rows", args, oracle_both, call=_both)]


def _both(_, scores: Tensor, kl: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    from alignpro_mini import rl_math

    return rl_math.gae(rl_math.assemble_rewards(scores, kl, mask, 0.2), values, mask, 1.0, 0.95)


def oracle_both(scores: Tensor, kl: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return oracle_gae(oracle_assemble(scores, kl, mask, 0.2), values, mask, 1.0, 0.95)
