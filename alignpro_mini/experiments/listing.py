"""What a prompter could do to a reward, read off rated answers to every listed ending; `real.py` makes these.

    units      each reward is shifted and scaled as PPO does it: mean 0, variance 1 over answers to all endings, equally
               often, which is what SFT teaches the prompter. lambda is in these units
    optimum    rho*(ending) ~ exp(R(ending) / lam), the same for every request: R(ending), a mean over all requests, is
               known well, R(x, x') of one request is not. A prompter that reads x can do better
    curve      mean and the three variance components under rho* along lambda, and the ratio of the total variance to
               the plain request's. Cross-fitted: chosen on one half of the requests, described on the other, both ways
    intervals  95 %, 500 resamples of requests within each half

Shape legend:  N requests   K endings, the plain request first   M answers to each
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alignpro_mini import theory
from alignpro_mini.experiments.study import legend_and_save
from alignpro_mini.experiments.variance import PARTS
from alignpro_mini.lab.config import EvalConfig
from alignpro_mini.lab.optimum import cross_fitted, moments
from alignpro_mini.lab.plots import new_figure
from alignpro_mini.lab.statistics import interval, variance_parts
from alignpro_mini.lab.tables import aligned, num
from alignpro_mini.reward import moments as scale_of

LAMBDAS = (0.3, 0.1, 0.05, 0.03, 0.01)  # those of the table
RESAMPLES = 500
Halves = tuple[Tensor, Tensor]  # the rewards (N/2, K, M) of every other request, and of the rest


@dataclass(frozen=True, slots=True)
class Rated:
    """One reward of the listed answers: r in its own units, and which answers are truncated, (N, K, M) each."""

    r: Tensor
    truncated: Tensor
    endings: list[str]  # K, "…" for the request

    def scaled(self) -> Rated:
        """The same in units of this reward. Raises UserError where the rewards do not vary."""
        scale = scale_of(self.r.flatten())
        return replace(self, r=(self.r - scale["mean"]) / scale["std"])


def optimum(r: Tensor, lam: float) -> Tensor:
    """rho* over endings (K,), the same for every request, by the mean rewards of r (N, K, M)."""
    R = r.mean((0, 2))[None]  # (1, K)
    return theory.optimal_prompter(torch.full_like(R, 1 / R.shape[1]), R, lam)[0]


def under(rho: Tensor, r: Tensor) -> dict[str, float]:
    """Mean and variance components of r (N, K, M) under one distribution over the K endings."""
    return moments(rho.expand(len(r), -1), r)


def plain(r: Tensor) -> dict[str, float]:
    """The same of the plain request."""
    return under(torch.eye(r.shape[1], dtype=torch.float64)[0], r)


def ratio(values: dict[str, float], start: dict[str, float]) -> float | None:
    """Of the total variance to the plain request's; None where that has none."""
    return values["total"] / start["total"] if start["total"] > 1e-12 else None


def at(halves: Sequence[Halves], lam: float) -> dict[str, float | None]:
    """Mean and components under the cross-fitted rho* at lam, averaged over `halves`; gain and ratio to the plain x."""
    values = cross_fitted(lambda chose, rates: under(optimum(chose, lam), rates), *halves)
    start = cross_fitted(lambda chose, rates: plain(rates), *halves)
    return values | {"gain": values["mean"] - start["mean"], "ratio": ratio(values, start)}


def measured_again(z: Tensor, rho: Tensor, later: EvalConfig, draw: np.random.Generator) -> float:
    """A variance ratio as an evaluation under rho (K,) would measure it: `later` says on how many requests and answers.

    Requests and answers are drawn from those of z (N, K, M), with replacement.
    """
    N, K, M = z.shape
    shape = (later.inputs, later.rewrites, later.answers)
    requests = draw.integers(N, size=later.inputs)[:, None, None]
    endings = draw.choice(K, p=(rho / rho.sum()).numpy(), size=shape[:2])[:, :, None]
    ours, start = (z[requests, which, draw.integers(M, size=shape)] for which in (endings, 0))
    return float(ours.var() / start.var())


def describe(rated: Rated, lambdas=LAMBDAS, later=EvalConfig(), seeds=1) -> dict:
    """All that is reported of one reward; `later` is the evaluation whose ratio is predicted.

    A reward learned anew by each of `seeds` (N / seeds requests each) has an optimum for each of them. Raises UserError
    where the rewards do not vary.
    """
    scale = scale_of(rated.r.flatten())
    z = rated.scaled().r
    parts = z.chunk(seeds)
    halves = [(part[::2], part[1::2]) for part in parts]
    draw = np.random.default_rng(0)
    resample = lambda half: half[draw.integers(len(half), size=len(half))]
    resampled = [[tuple(map(resample, pair)) for pair in halves] for _ in range(RESAMPLES)]
    a_seed = replace(later, inputs=later.inputs // seeds)
    curve = []
    for lam in lambdas:
        best = [optimum(part, lam) for part in parts]
        again = [at(pairs, lam) for pairs in resampled]
        point = {"lam": lam, **at(halves, lam), **_intervals(again)}
        noise = [[measured_again(*of_seed, a_seed, draw) for of_seed in zip(parts, best)] for _ in range(RESAMPLES)]
        point["ratio_pi95"] = _prediction_interval(again, np.array(noise).mean(1))
        rho = torch.stack(best).mean(0)  # (K,)
        point["truncated"] = float(rho @ rated.truncated.to(rho.dtype).mean((0, 2)))
        curve.append(point | {"endings": _likeliest(rho, rated.endings)})
    spread = variance_parts(z.numpy())
    between, within = max(spread["between_rewrites"], 0.0), spread["within"]
    grid = np.geomspace(10 * max(lambdas), min(lambdas), 25).tolist()
    return {
        "mean": scale["mean"],
        "sd": scale["std"],
        "icc": between / max(between + within, 1e-12),
        "plain": plain(z),
        "curve": curve,
        "smooth": [{"lam": lam, **at(halves, lam)} for lam in grid],
        "endings": _alone(z, rated),
    }


def _intervals(again: list[dict]) -> dict[str, list[float] | None]:
    """95 % intervals of what `at` gives, from its values in each resample."""
    columns = {key: [values[key] for values in again] for key in ("gain", "ratio", *PARTS)}
    return {f"{key}_ci95": None if None in column else interval(np.array(column)) for key, column in columns.items()}


def _prediction_interval(again: list[dict], noise: np.ndarray) -> list[float] | None:
    """The 95 % prediction interval of a ratio that is measured later: the listing's uncertainty times its noise."""
    ratios = [values["ratio"] for values in again]
    return None if None in ratios else interval(np.array(ratios) * noise / noise.mean())


def _likeliest(rho: Tensor, names: Sequence[str]) -> list[list]:
    """The three likeliest endings: [name, probability]."""
    best = rho.topk(min(3, len(names)))
    return [[names[j], round(p, 3)] for p, j in zip(best.values.tolist(), best.indices.tolist())]


def _alone(z: Tensor, rated: Rated) -> list[dict]:
    """Each ending for itself, from the best to the worst."""
    start = plain(z)
    endings = []
    for name, only, truncated in zip(
        rated.endings, torch.eye(z.shape[1]).double(), rated.truncated.double().mean((0, 2))
    ):
        alone = under(only, z)
        entry = {"ending": name, "gain": alone["mean"] - start["mean"], "ratio": ratio(alone, start)}
        endings.append(entry | {"truncated": float(truncated)})
    return sorted(endings, key=lambda entry: -entry["gain"])


def reward_table(name: str, reward: dict) -> str:
    """One reward for the screen: along lambda, then the endings from best to worst; the JSON has all intervals."""
    parts = list(PARTS)[:3]
    heads = ["λ", "gain, sd", "variance ratio", "95% predicted", "between inputs", "rewrites", "within", "truncated"]
    truncated = next((e["truncated"] for e in reward["endings"] if e["ending"] == "…"), None)
    start = [num(reward["plain"][part], 2) for part in parts]
    rows = [[*heads, "likeliest endings"], ["plain", "0", "1", "", *start, num(truncated, 2), ""]]
    for p in reward["curve"]:
        cells = [f"{num(p[key], 2)} {num(p[f'{key}_ci95'], 2)}" for key in ("gain", "ratio")]
        cells += [num(p.get(key), 2) for key in ("ratio_pi95", *parts, "truncated")]
        rows.append([f"{p['lam']:g}", *cells, "; ".join(f"{ending} {share:.2f}" for ending, share in p["endings"][:2])])
    each = [["ending", "gain, sd", "variance ratio", "truncated"]]
    each += [[e["ending"], *(num(e[key], 2) for key in ("gain", "ratio", "truncated"))] for e in reward["endings"]]
    numbers = f"mean {num(reward['mean'])}, standard deviation {num(reward['sd'])}, ICC {num(reward['icc'], 2)}"
    return f"{name}: {numbers}\n\n{aligned(rows)}\n\n{aligned(each)}"


def table(content: dict) -> str:
    return "\n\n".join(reward_table(name, reward) for name, reward in content["rewards"].items())


def figure(content: dict, path: Path) -> None:
    """A column a reward, along 1/lambda: mean under rho*, and its variance components; dashed, the plain request's."""
    rewards = content["rewards"]
    picture, axes = new_figure(path, 2, len(rewards), (4.6 * len(rewards), 6.4), sharex=True)
    for (top, below), (name, reward) in zip(axes.T, rewards.items()):
        for ax, part, colour in [(top, "gain", "black"), *((below, part, colour) for part, colour in PARTS.items())]:
            x = [1 / p["lam"] for p in reward["smooth"]]
            ax.plot(x, [p[part] for p in reward["smooth"]], color=colour, label=part.replace("_", " "))
            for p in reward["curve"]:
                ax.vlines(1 / p["lam"], *(p.get(f"{part}_ci95") or (p[part], p[part])), color=colour)
        top.axhline(0, color="#999999", linestyle="--")
        top.set(title=name, ylabel="mean - plain request's (sd)")
        below.axhline(reward["plain"]["total"], color="#999999", linestyle="--", label="plain request, total")
        below.set(xscale="log", xlabel="1 / λ", ylabel="variance (of all answers: 1)")
    legend_and_save(picture, axes[1:], path)
