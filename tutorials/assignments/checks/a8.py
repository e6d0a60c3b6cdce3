"""Checks of a8: sums written out in Python, resamples whose end points are certain, and an evaluator with given rewards.

Shape legend:  N inputs   K rewrites of an input   M answers to a rewrite
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from alignpro_mini.lab.config import EvalConfig
from alignpro_mini.lab.evaluation import Arm, Evaluator
from checks.a5 import f64
from checks.base import WRONG_SHAPES, Case, sentences

PARTS = ("between_inputs", "between_rewrites", "within")
ROOM = (*PARTS, "icc", "best_rewrite_gain")
RESAMPLES = 8000


def cases(path: str, rng: torch.Generator) -> list[Case]:
    """The cases of a function, the smallest first."""
    made = {
        "kl": _kl,
        "optimal_prompter": _optimal_prompter,
        "regularised_value": _regularised_value,
        "variance_parts": _variance_parts,
        "bootstrap_interval": _bootstrap_interval,
        "win_shares": _win_shares,
        "headroom": _headroom,
        "request_share": _request_share,
    }
    return made[path.rpartition(".")[2]](rng)


# ---------------------------------------------------------------- the optimum


def oracle_kl_of(p: list[float], q: list[float]) -> float:
    """One KL, term by term."""
    total = 0.0
    for a, b in zip(p, q):
        if math.isnan(a):
            return math.nan
        if a > 0:
            total += math.inf if b == 0 else a * math.log(a / b)
    return total


def oracle_kl(p, q) -> tuple[Tensor, str]:
    p, q = f64(p) if isinstance(p, list) else p, f64(q) if isinstance(q, list) else q
    rows = zip(p.reshape(-1, p.shape[-1]).tolist(), q.reshape(-1, q.shape[-1]).tolist())
    return f64([oracle_kl_of(*row) for row in rows]).view(p.shape[:-1]), "torch.float64"


def _typed(function, *args) -> tuple:
    found = function(*args)
    return found, str(getattr(found, "dtype", type(found)))


def simplex(rng: torch.Generator, *shape: int) -> Tensor:
    """Distributions over the last axis, no entry near 0."""
    x = torch.rand(*shape, generator=rng, dtype=torch.float64) + 0.1
    return x / x.sum(-1, keepdim=True)


def _kl(rng: torch.Generator) -> list[Case]:
    case = partial(Case, oracle=oracle_kl, call=_typed)
    return [
        case("the example of the docstring", ([0.5, 0.5], [0.25, 0.75])),
        case("p with a 0", ([0.0, 1.0], [0.5, 0.5])),
        case("a 0 in both", ([0.0, 0.25, 0.75], [0.0, 0.5, 0.5])),
        case("q with a 0 where p has none", ([0.5, 0.5], [1.0, 0.0])),
        case("p = q", ([[0.5, 0.5]], [[0.5, 0.5]])),
        case("one row of three", (simplex(rng, 3), simplex(rng, 3))),
        case("2 x 3 rows of four", (simplex(rng, 2, 3, 4), simplex(rng, 2, 3, 4))),
        case("numpy arrays", (simplex(rng, 2, 4).numpy(), simplex(rng, 2, 4).numpy())),
        case("probabilities of 1e-20 and of 1e-300", (f64([[0.5, 0.5]] * 2), f64([[1e-20, 1.0], [1.0, 1e-300]]))),
        case("a probability that is NaN", (f64([math.nan, 0.5]), f64([0.5, 0.5]))),
        *(Case(f"{about}: the gradient by p", (f64(p), f64(q)), oracle_slope, call=_slope) for about, p, q in SLOPES),
    ]


SLOPES = [
    ("p = (0.25, 0.75)", [0.25, 0.75], [0.5, 0.5]),
    ("p = (1e-15, 1)", [1e-15, 1.0], [0.5, 0.5]),
    ("a 0 in p", [0.0, 0.25, 0.75], [0.2, 0.4, 0.4]),
    ("a 0 in both", [0.0, 0.25, 0.75], [0.0, 0.5, 0.5]),
]


def _slope(function, p: Tensor, q: Tensor) -> tuple[Tensor, bool]:
    """Where p is above 0; where it is 0, whether the gradient is a NaN."""
    (slope,) = torch.autograd.grad(function(p.requires_grad_(), q), p)
    return slope[p > 0], bool(slope.isnan().any())


def oracle_slope(p: Tensor, q: Tensor) -> tuple[Tensor, bool]:
    return f64([math.log(a / b) + 1 for a, b in zip(p.tolist(), q.tolist()) if a > 0]), False


def oracle_checked(lam: float, R, *tables) -> list[list[list[float]]]:
    """R and tables as lists of rows. Raises ValueError as the docstring says."""
    R, *tables = (torch.as_tensor(x, dtype=torch.float64) for x in (R, *tables))
    if not lam > 0 or R.dim() != 2 or any(t.shape != R.shape for t in tables):
        raise ValueError(WRONG_SHAPES)
    for row in [row for table in tables for row in table.tolist()]:
        if abs(math.fsum(row) - 1) > 1e-6 or min(row) < 0:
            raise ValueError("a row is not a distribution")
    return [table.tolist() for table in (R, *tables)]


def oracle_optimum(rho_sft, R, lam: float) -> tuple[Tensor, str]:
    rows = []
    for rewards, start in zip(*oracle_checked(lam, R, rho_sft)):
        top = max(r for r, p in zip(rewards, start) if p > 0)  # exp of what may be 1e6 otherwise
        weight = [p * math.exp((r - top) / lam) if p > 0 else 0.0 for r, p in zip(rewards, start)]
        rows.append([w / math.fsum(weight) for w in weight])
    return f64(rows), "torch.float64"


def _optimal_prompter(rng: torch.Generator) -> list[Case]:
    case = partial(Case, oracle=oracle_optimum, call=_typed)
    log3, R = math.log(3), torch.randn(3, 4, generator=rng, dtype=torch.float64)
    half = [[0.5, 0.5]]
    return [
        case("the example of the docstring", (half, [[0.0, log3]], 1.0)),
        case("lam 0.5", (half, [[0.0, log3]], 0.5)),
        case("rho_sft (0.2, 0.8), equal rewards", ([[0.2, 0.8]], [[1.0, 1.0]], 1.0)),
        case("a rewrite that rho_sft never offers", ([[0.0, 0.25, 0.75]], [[9.0, 1.0, 2.0]], 1.0)),
        case("a small lam, 0.001", ([[0.3, 0.7]], [[1000.0, 1000.001]], 1e-3)),
        case("two inputs, rewards as integers", ([[0.2, 0.8], [0.5, 0.5]], [[1, 0], [0, 3]], 2.0)),
        case("three inputs of four rewrites", (simplex(rng, 3, 4), R, 0.3)),
        case("numpy arrays", (simplex(rng, 3, 4).numpy(), R.numpy(), 3.0)),
        case("rewards of 100000, lam 0.5", (half, [[1e5, 1e5 + 1]], 0.5)),
        case("lam 100", (half, [[0.0, 200.0]], 100.0)),
        case("lam 0.0001", (half, [[0.0, 0.0001]], 1e-4)),
        case("a rewrite of probability 1e-20 whose reward is 60", ([[1e-20, 1.0]], [[60.0, 0.0]], 1.0)),
        case("a far better rewrite that rho_sft never offers", ([[0.0, 0.25, 0.75]], [[1e6, 1.0, 2.0]], 1.0)),
        case("lam 0", (half, [[0.0, 1.0]], 0.0)),
        case("lam -1", (half, [[0.0, 1.0]], -1.0)),
        case("a row of rho_sft that sums to 1.1", ([[0.5, 0.5], [0.5, 0.6]], [[0.0, 1.0]] * 2, 1.0)),
        case("a row of rho_sft with -0.5", ([[1.5, -0.5]], [[0.0, 1.0]], 1.0)),
        case("R (1, 3), rho_sft (1, 2)", (half, [[0.0, 1.0, 2.0]], 1.0)),
        case("R (2, 1), rho_sft (2, 2)", (half * 2, [[0.0], [1.0]], 1.0)),
        case("R (2,), rho_sft (2,)", ([0.5, 0.5], [0.0, 1.0], 1.0)),
    ]


def oracle_value(rho, rho_sft, R, lam: float) -> Tensor:
    R, rho, rho_sft = (torch.as_tensor(x, dtype=torch.float64).tolist() for x in (R, rho, rho_sft))
    each = [
        math.fsum(p * r for p, r in zip(ours, rewards)) - lam * oracle_kl_of(ours, start)
        for ours, start, rewards in zip(rho, rho_sft, R)
    ]
    return f64(sum(each) / len(each))


def _regularised_value(rng: torch.Generator) -> list[Case]:
    case = partial(Case, oracle=oracle_value)
    half = [[0.5, 0.5]]
    R = torch.randn(3, 4, generator=rng, dtype=torch.float64)
    return [
        case("rho = rho_sft", (half, half, [[0.0, 1.0]], 1.0)),
        case("rho (0.25, 0.75), rho_sft (0.5, 0.5), lam 1", ([[0.25, 0.75]], half, [[0.0, 1.0]], 1.0)),
        case("the same, lam 0.1", ([[0.25, 0.75]], half, [[0.0, 1.0]], 0.1)),
        case("all on one rewrite", ([[0.0, 1.0]], half, [[0.0, 3.0]], 0.5)),
        case("a rewrite that neither offers", ([[0.0, 0.25, 0.75]], [[0.0, 0.5, 0.5]], [[9.0, 0.0, 1.0]], 0.5)),
        case("a rewrite that rho_sft never offers", (half, [[1.0, 0.0]], [[0.0, 1.0]], 0.5)),
        case("lam 50", ([[0.25, 0.75]], half, [[0.0, 1.0]], 50.0)),
        case("lam 0.001", ([[0.25, 0.75]], half, [[0.0, 1.0]], 0.001)),
        case("a rewrite of probability 1e-20 in rho_sft", (half, [[1e-20, 1.0]], [[0.0, 1.0]], 0.5)),
        case("two inputs", ([[0.25, 0.75], [0.5, 0.5]], half * 2, [[0, 1], [0, 3]], 1.0)),
        case("three inputs of four rewrites", (simplex(rng, 3, 4), simplex(rng, 3, 4), R, 0.3)),
        case("the gradient by rho", (simplex(rng, 3, 4), simplex(rng, 3, 4), R, 0.3), gradient=True),
        case("numpy arrays", (simplex(rng, 3, 4).numpy(), simplex(rng, 3, 4).numpy(), R.numpy(), 2.0)),
    ]


# ---------------------------------------------------------------- the statistics


def mean(numbers) -> float:
    numbers = list(numbers)
    return math.fsum(numbers) / len(numbers)


def spread(numbers) -> float:
    """Sum of squared distances to the mean."""
    numbers = [float(x) for x in numbers]
    return math.fsum((x - mean(numbers)) ** 2 for x in numbers)


def oracle_parts(rewards: np.ndarray) -> tuple[float, float, float]:
    """From sums of squares: each level's own spread, less what the level below it puts there."""
    N, K, M = rewards.shape
    if N < 2 or K * M < 2:
        raise ValueError("nothing to part")
    rewrite = [[mean(rewards[i, k].tolist()) for k in range(K)] for i in range(N)]
    level = spread([mean(row) for row in rewrite]) / (N - 1)  # of the inputs' means
    if M == 1:
        within = sum(spread(row) for row in rewrite) / (N * (K - 1))
        return level - within / K, 0.0, within
    within = sum(spread(rewards[i, k]) for i in range(N) for k in range(K)) / (N * K * (M - 1))
    if K == 1:
        return level - within / M, 0.0, within
    between = sum(spread(row) for row in rewrite) / (N * (K - 1))  # of a rewrite's mean
    return level - between / K, between - within / M, within


def _parted(function, rewards: np.ndarray) -> tuple:
    return tuple(function(rewards)[name] for name in PARTS)


def nested(rng: torch.Generator, N: int, K: int, M: int, *scales: float) -> np.ndarray:
    """(N, K, M) rewards about 3; the scales are of inputs, rewrites and answers."""
    shapes = ((N, 1, 1), (N, K, 1), (N, K, M))
    drawn = [s * torch.randn(*shape, generator=rng, dtype=torch.float64) for s, shape in zip(scales, shapes)]
    return (3 + sum(drawn)).numpy()


def _variance_parts(rng: torch.Generator) -> list[Case]:
    case = lambda about, rewards: Case(about, lambda: (rewards.copy(),), oracle_parts, call=_parted)
    array = lambda rows: np.array(rows, dtype=float)
    noisy = nested(rng, 3, 4, 4, 0.0, 0.0, 1.0)
    noisy += 2 - noisy.mean(2, keepdims=True)  # all rewrites have one mean: what is found between them is negative
    return [
        case("two inputs, two rewrites, two answers", array([[[0, 2], [2, 4]], [[5, 7], [7, 9]]])),
        case("rewrites with equal means", noisy),
        case("5 inputs, 3 rewrites, 4 answers", nested(rng, 5, 3, 4, 1.4, 1.0, 0.7)),
        case("4 inputs, 2 rewrites, 3 answers, far from 0", 1000 + nested(rng, 4, 2, 3, 1.0, 2.0, 0.7)),
        case("4 inputs, 2 rewrites, 3 answers, about 10 million", 1e7 + nested(rng, 4, 2, 3, 1.0, 2.0, 0.7)),
        case("K = 1", nested(rng, 5, 1, 4, 1.4, 1.0, 0.7)),
        case("M = 1", nested(rng, 5, 4, 1, 1.4, 1.0, 0.7)),
        case("one input", nested(rng, 1, 3, 3, 1.0, 1.0, 1.0)),
        case("K = M = 1", nested(rng, 5, 1, 1, 1.0, 1.0, 1.0)),
    ]


def _bootstrap_interval(rng: torch.Generator) -> list[Case]:
    """How the resamples are drawn is free, so the end points must be certain: an end point of the 95 % interval lies
    well inside the values that one mean takes in more than 1 % of the resamples."""

    def sure(values: list[float], low: float, high: float) -> Case:
        about = f"the values {values}, {RESAMPLES} resamples"
        # An array cannot be written as JSON.
        call = lambda function, *args: (found := function(*args), type(found).__name__)
        return Case(about, lambda: (np.array(values), RESAMPLES), lambda *_: (f64([low, high]), "list"), call=call)

    def properties(about: str, values: np.ndarray, resamples: int, judge) -> Case:
        view = lambda found: judge(*map(float, found))
        return Case(about, lambda: (values.copy(), resamples), lambda *_: sentences(), view=view)

    values = torch.randn(100, generator=rng, dtype=torch.float64).numpy() + 5
    deviation = math.sqrt(spread(values)) / len(values)  # of the mean of a resample
    normal = partial(_normal, mean(values), deviation)
    twice = lambda function, *args: (function(*args), function(*args))
    steady = lambda once, again: sentences((list(map(float, once)) == list(map(float, again)), SEED))

    return [
        sure([2.5, 2.5, 2.5], 2.5, 2.5),
        sure([0.0, 1.0], 0.0, 1.0),  # a resample's mean is 0 in 1/4 of them, 1 in 1/4
        sure([0.0, 1.0, 1.0], 0.0, 1.0),  # 0 in 1/27 = 3.7 %
        sure([0.0, 0.0, 1.0, 1.0], 0.0, 1.0),  # 0 in 1/16 = 6.3 %
        sure([0.0, 0.0, 0.0, 1.0, 1.0, 1.0], 1 / 6, 5 / 6),  # 0 in 1/64 = 1.6 %, at most 1/6 in 11 %
        properties("one resample of 100 values", values, 1, lambda a, b: sentences((a == b, "one mean has no width"))),
        properties(f"100 normal values, {RESAMPLES} resamples", values, RESAMPLES, normal),
        Case("100 normal values, twice", lambda: (values.copy(), 200), lambda *_: sentences(), call=twice, view=steady),
    ]


SEED = "two calls with the same values gave two intervals: draw from a fixed seed"


def _normal(middle: float, deviation: float, low: float, high: float) -> str:
    """The verdict on an interval where the estimate is nearly normal, with this standard deviation."""
    a, b = ((x - middle) / deviation for x in (low, high))
    return sentences(
        (a < b, "the lower end comes first"),
        (abs(a + b) < 0.5, "the interval is not about the estimate"),
        (b - a > 3.6, "the interval is too narrow for 95 %"),
        (b - a < 4.4, "the interval is too wide for 95 %"),
    )


def oracle_wins(judged: np.ndarray, baseline: np.ndarray) -> tuple[Tensor, Tensor]:
    wins, ties = [], []
    for ours, theirs in zip(judged.tolist(), baseline.tolist()):
        a, b = [r for row in ours for r in row], [r for row in theirs for r in row]
        pairs = [(r, b[j % len(b)]) for j, r in enumerate(a)]
        tied = [abs(r - s) <= 1e-9 for r, s in pairs]
        ties.append(sum(tied) / len(a))
        wins.append(sum(0.5 if tie else float(r > s) for (r, s), tie in zip(pairs, tied)) / len(a))
    return f64(wins), f64(ties)


def _win_shares(rng: torch.Generator) -> list[Case]:
    case = lambda about, *arms: Case(about, lambda: tuple(np.array(a, dtype=float) for a in arms), oracle_wins)
    drawn = lambda *shape: torch.randint(3, shape, generator=rng).double().numpy()
    return [
        case("one input, one answer: a win", [[[1.0]]], [[[0.0]]]),
        case("a loss", [[[0.0]]], [[[1.0]]]),
        case("a tie", [[[1.0]]], [[[1.0]]]),
        case("a tie but for 1e-12", [[[1.0, 1.0]]], [[[1.0 + 1e-12, 1.0 - 1e-12]]]),
        case("differences of 0.001 about a million", [[[1e6 + 0.001, 1e6]]], [[[1e6, 1e6 + 0.001]]]),
        case("differences of 3e-9", [[[1.0, 1.0 + 3e-9]]], [[[1.0 + 3e-9, 1.0]]]),
        case("differences of 1e-6", [[[1.0, 1.0 + 1e-6]]], [[[1.0 + 1e-6, 1.0]]]),
        case("two answers against one", [[[0.0, 2.0]]], [[[1.0]]]),
        case("one answer against two", [[[1.0]]], [[[0.0], [2.0]]]),
        case("two inputs", [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 5.0], [0.0, 1.0]]], [[[0, 2, 9, 4]], [[5, 6, 0, 0]]]),
        case("five inputs, 2 x 3 answers against 6", drawn(5, 2, 3), drawn(5, 1, 6)),
        case("five inputs, 2 x 3 answers against 4", drawn(5, 2, 3), drawn(5, 1, 4)),
    ]


# ---------------------------------------------------------------- headroom


@dataclass(slots=True)
class Given(Evaluator):
    """An evaluator whose prompter earns what `table` (N, K, M) says: no model."""

    table: np.ndarray | None = None

    def prompter(self, prompter, reference) -> Arm:
        if prompter != "rho_sft" or reference is not None:
            raise ValueError("prompter(rho_sft, None) was expected")
        N, K, M = len(self.requests), self.config.rewrites, self.config.answers
        if any(asked > there for asked, there in zip((N, K, M), self.table.shape)):
            raise ValueError(f"{N} requests, {K} rewrites and {M} answers were asked for")
        return Arm(self.table[:N, :K, :M].copy(), None, np.zeros((N, K)), x=self.requests)


def oracle_headroom(evaluator: Given, rho_sft: str, K: int = 8, M: int = 4) -> tuple:
    N = min(evaluator.config.headroom_inputs, len(evaluator.requests))
    rewards = evaluator.table[:N, :K, :M]
    parts = oracle_parts(rewards)
    rewrites = max(parts[1], 0.0)
    found = []
    for table in rewards.tolist():
        first = [mean(answers[: M // 2]) for answers in table]
        found.append(mean(table[first.index(max(first))][M // 2 :]))
    gain = mean(found) - mean(rewards.flatten().tolist())
    icc = rewrites / (rewrites + parts[2]) if rewrites + parts[2] > 1e-12 else 0.0
    return _told((*parts, icc, gain), evaluator)


def _room(function, evaluator: Given, *args) -> tuple:
    found = function(evaluator, *args)
    return _told([found[name] for name in ROOM], evaluator)


def _told(numbers, evaluator: Given) -> tuple:
    after = f"the evaluator afterwards: {len(evaluator.requests)} requests, {evaluator.config.rewrites} rewrites"
    return ", ".join(ROOM), f64([float(x) for x in numbers]), after


def _headroom(rng: torch.Generator) -> list[Case]:
    def case(about: str, table: np.ndarray, *sizes: int, most: int = 64) -> Case:
        N = len(table)
        config = EvalConfig(inputs=N, rewrites=2, answers=3, headroom_inputs=most)
        requests, unused = [f"request {i}" for i in range(N)], torch.Generator()
        args = lambda: (Given(list(requests), None, None, None, config, unused, table=table.copy()), "rho_sft", *sizes)
        return Case(about, args, oracle_headroom, call=_room)

    hand = np.array([[[1, 3, 0, 2], [2, 4, 4, 6]], [[6, 8, 3, 1], [5, 7, 9, 7]]], dtype=float)
    unlucky = nested(rng, 3, 3, 4, 0.0, 0.0, 1.0)
    unlucky += 2 - unlucky.mean(2, keepdims=True)
    return [
        case("two inputs, two rewrites, four answers", hand, 2, 4),
        case("rewrites with equal means", unlucky, 3, 4),
        case("constant rewards", np.full((2, 2, 2), 1.5), 2, 2),
        case("five inputs of which headroom_inputs are 3", nested(rng, 5, 3, 4, 1.0, 1.0, 0.7), 3, 4, most=3),
        case("rewards that differ by a thousandth", 1e-3 * nested(rng, 5, 3, 4, 1.0, 1.0, 0.7), 3, 4),
        case("three answers", nested(rng, 5, 3, 3, 1.0, 0.7, 0.7), 3, 3),
        case("K and M left out", nested(rng, 6, 8, 4, 2.0, 1.0, 1.0)),
    ]


# ---------------------------------------------------------------- the request share


def oracle_share(pro: np.ndarray, fixed: np.ndarray, star: np.ndarray) -> float:
    ours, theirs, best = (mean(rewards[: len(star)].flatten().tolist()) for rewards in (pro, fixed, star))
    return (ours - theirs) / (best - theirs)


def _shared(function, *args) -> tuple:
    found = function(*args)
    return found["request_share"], found["request_share_ci95"]


def _arms(rng: torch.Generator, ours: list[float], theirs: list[float], best: list[float]) -> list[np.ndarray]:
    """Rewards (N, 2, 3), (N, 1, 4) and (n, 3, 2) with these means by request; answers differ, and so do requests."""
    ease = 20 * torch.randn(len(ours), 1, 1, generator=rng, dtype=torch.float64).numpy()
    arms = []
    for means, shape in ((ours, (2, 3)), (theirs, (1, 4)), (best, (3, 2))):
        noise = nested(rng, len(means), *shape, 0.0, 0.5, 0.5)
        noise -= noise.mean((1, 2), keepdims=True)
        arms.append(ease[: len(means)] + np.array(means)[:, None, None] + noise)
    return arms


def _request_share(rng: torch.Generator) -> list[Case]:
    """As for `bootstrap_interval`: how requests are drawn is free, so end points are certain or have room."""

    def sure(about: str, arms: list[np.ndarray], *ends: float) -> Case:
        args = lambda: (*(arm.copy() for arm in arms), RESAMPLES)
        right = lambda *given: (oracle_share(*given[:3]), list(ends)) if ends else (None, None)
        return Case(about, args, right, call=_shared)

    leads = partial(_arms, rng)
    ours, best = (torch.randn(100, generator=rng, dtype=torch.float64).numpy() + k for k in (4, 6))
    many = leads([*ours, *(-ours)], [0.0] * 200, [*best])  # of 200 requests the closed form has the first 100
    share = mean(ours) / mean(best)
    deviation = math.sqrt(spread(ours - share * best)) / len(best) / mean(best)  # of a ratio of means
    args = lambda: (*(arm.copy() for arm in many), RESAMPLES)
    near = lambda found, ends: _normal(share, deviation, *ends) if abs(found - share) < 1e-9 else "the share is wrong"
    twice = lambda function, *args: (_shared(function, *args)[1], _shared(function, *args)[1])
    steady = lambda once, again: sentences((once == again, SEED))
    flat = lambda *means: [np.array(each)[:, None, None] for each in means]
    tenths = [0.3, 1.2, 2.1, 0.6, 2.4]
    return [
        sure("two requests, one answer each", flat([1.0, 3.0], [0.0, 0.0], [4.0, 6.0]), 1 / 4, 3 / 6),
        sure("two requests that differ by more than the arms", leads([1.0, 3.0], [0.0, 0.0], [4.0, 6.0]), 1 / 4, 3 / 6),
        sure("four requests, the closed form of two", leads([1, 3, 70, -90], [0, 0, 10, 10], [4, 6]), 1 / 4, 3 / 6),
        sure("five requests of which Align-Pro takes 0.3 each", leads(tenths, [0.0] * 5, [1, 4, 7, 2, 8]), 0.3, 0.3),
        sure("Align-Pro above the closed form", leads([2.0, 4.0], [0.0, 0.0], [1.0, 2.0]), 2.0, 2.0),
        sure("Align-Pro below the fixed rewrite", leads([-1.0, -3.0], [0.0, 0.0], [1.0, 2.0]), -1.5, -1.0),
        sure("leads by a thousandth", [1e-3 * arm for arm in leads([1.0, 3.0], [0, 0], [4.0, 6.0])], 1 / 4, 3 / 6),
        sure("a closed form with a lead of -1 and of 3", leads([1.0, 1.0, 1.0], [0.0] * 3, [-1.0, 3.0])),
        sure("a closed form below the fixed rewrite", leads([1.0, 1.0], [0.0, 0.0], [-1.0, -2.0])),
        sure("a closed form that is the fixed rewrite", flat([1.0, 1.0], [0.5, 0.5], [0.5, 0.5])),
        Case(f"200 requests, {RESAMPLES} resamples", args, lambda *_: sentences(), call=_shared, view=near),
        Case("the same, twice", args, lambda *_: sentences(), call=twice, view=steady),
    ]


# ---------------------------------------------------------------- all together


def whole(rng: torch.Generator) -> list[Case]:
    """The master identity, the optimum's gain, and headroom with an interval about it."""
    R = torch.randn(3, 5, generator=rng, dtype=torch.float64)
    tables = (simplex(rng, 3, 5), simplex(rng, 3, 5), R, 0.4)
    table = nested(rng, 40, 8, 4, 1.0, 1.0, 0.5)
    return [
        Case("the optimum of three inputs of five rewrites", tables, oracle_gap, call=_gap),
        Case("40 requests", lambda: (table.copy(),), lambda *_: sentences(), call=_statistics, view=_plausible),
    ]


def _gap(_, rho_sft: Tensor, mu: Tensor, R: Tensor, lam: float) -> tuple:
    from alignpro_mini import theory

    star = theory.optimal_prompter(rho_sft, R, lam)
    gap = theory.regularised_value(star, rho_sft, R, lam) - theory.regularised_value(mu, rho_sft, R, lam)
    return gap, lam * theory.kl(mu, star).mean(), theory.closeness(star, rho_sft, R, lam)["attainable_gain_share"]


def oracle_gap(rho_sft: Tensor, mu: Tensor, R: Tensor, lam: float) -> tuple:
    star, _ = oracle_optimum(rho_sft, R, lam)
    gap = oracle_value(star, rho_sft, R, lam) - oracle_value(mu, rho_sft, R, lam)
    return gap, lam * oracle_kl(mu, star)[0].mean(), 1.0


def _statistics(_, table: np.ndarray) -> tuple:
    from alignpro_mini.lab import evaluation, statistics

    config, unused = EvalConfig(inputs=40, rewrites=2, answers=2), torch.Generator()
    given = Given([f"request {i}" for i in range(40)], None, None, None, config, unused, table=table)
    found = evaluation.headroom(given, "rho_sft")
    per_input = table.mean((1, 2))
    low, high = statistics.bootstrap_interval(per_input, 500)
    wins, ties = statistics.win_shares(table + 1, table)
    share = evaluation.request_share(table + 1, table, table[:20] + 2, 500)["request_share"]
    return found["icc"], found["best_rewrite_gain"], low, per_input.mean(), high, wins.min(), ties.max(), share


def _plausible(icc, gain, low, middle, high, wins, ties, share) -> str:
    return sentences(
        (0.4 < icc < 0.95, f"headroom: the ICC is {float(icc):.2f}"),
        (gain > 0.5, f"headroom: the best rewrite gains {float(gain):.2f}"),
        (low < middle < high, "bootstrap_interval: the mean lies outside of its interval"),
        (wins == 1 and ties == 0, "win_shares: rewards that are all greater by 1 do not win all"),
        (share is not None and abs(share - 0.5) < 1e-6, "request_share: leads of 1 and of 2 are not a share of 0.5"),
    )
