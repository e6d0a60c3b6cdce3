"""What a prompter could do to a reward, read off rated answers to every listed ending; `real.py` makes these.

    units      each reward is shifted and scaled as PPO does it: mean 0, variance 1 over answers to the endings, each as
               often as SFT teaches it (`shares`). lambda is in these units
    optimum    rho*(ending) ~ share(ending) exp(R(ending) / lam), the same for all requests of a kind (`world.kinds`):
               R(ending), a mean over them, is known well, R(x, x') of one request is not. A prompter that reads more
               of x can do better
    fixed      the ending that is best for all requests together
    curve      mean and the three variance components under rho* along lambda, and the ratios of the total variance, and
               of that within requests, to the plain request's. Cross-fitted: chosen on one half of the requests,
               described on the other, both ways
    intervals  95 %, 500 resamples of topics (requests, where each is a topic of its own) within each half. Prediction
               intervals (pi95) hold the noise of the later evaluation too

Shape legend:  N requests   K endings, the plain request first   M answers to each
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alignpro_mini import theory
from alignpro_mini.experiments.study import legend_and_save
from alignpro_mini.lab.config import EvalConfig
from alignpro_mini.lab.glossary import PARTS
from alignpro_mini.lab.optimum import cross_fitted, moments, variance_ratios
from alignpro_mini.lab.plots import new_figure
from alignpro_mini.lab.statistics import interval, variance_parts, within_requests
from alignpro_mini.lab.tables import aligned, num
from alignpro_mini.reward import moments as scale_of

LAMBDAS = (0.3, 0.1, 0.05, 0.03, 0.01)  # those of the table
RESAMPLES = 500
RATIOS = ("ratio", "within_ratio")
Rho = dict[str, Tensor]  # kind -> a distribution over the endings, (K,)


@dataclass(frozen=True, slots=True)
class Rated:
    """One reward of the listed answers: r in its own units, and which answers are truncated, (N, K, M) each."""

    r: Tensor
    truncated: Tensor
    endings: list[str]  # K, "…" for the request
    kinds: list[str] = field(default_factory=list)  # N; empty: all of one kind
    topics: list[str] = field(default_factory=list)  # N; empty: each request is a topic of its own
    shares: list[float] = field(default_factory=list)  # K, of rho_sft; empty: equal

    def __post_init__(self) -> None:
        N, K, _ = self.r.shape
        object.__setattr__(self, "kinds", self.kinds or [""] * N)
        object.__setattr__(self, "topics", self.topics or [str(i) for i in range(N)])
        object.__setattr__(self, "shares", self.shares or [1 / K] * K)

    @property
    def rho_sft(self) -> Tensor:
        return torch.tensor(self.shares, dtype=torch.float64)  # (K,)

    def take(self, index: Sequence[int]) -> Rated:
        """Some of the requests, in this order."""
        pick = lambda labels: [labels[i] for i in index]
        rows = torch.as_tensor(index, dtype=torch.long)
        labels = (pick(self.kinds), pick(self.topics), self.shares)
        return Rated(self.r[rows], self.truncated[rows], self.endings, *labels)

    def scale(self) -> dict[str, float]:
        """Mean and standard deviation under rho_sft. Raises UserError where the rewards do not vary."""
        scale_of(self.r.flatten())  # it has the error
        mean = float(self.rho_sft @ self.r.mean((0, 2)))
        return {"mean": mean, "std": float(self.rho_sft @ (self.r - mean).square().mean((0, 2))) ** 0.5}

    def scaled(self) -> Rated:
        """The same in units of this reward. Raises UserError where the rewards do not vary."""
        scale = self.scale()
        return replace(self, r=(self.r - scale["mean"]) / scale["std"])

    def halves(self) -> Halves:
        """Every other request, and the rest."""
        return self.take(range(0, len(self.r), 2)), self.take(range(1, len(self.r), 2))

    def resampled(self, draw: np.random.Generator) -> Rated:
        """As many of its topics, drawn with replacement, each with all of its requests."""
        of_topic = self.by_topic()
        drawn = draw.integers(len(of_topic), size=len(of_topic))
        return self.take([i for topic in drawn for i in of_topic[topic]])

    def by_topic(self) -> list[list[int]]:
        """The places of each topic's requests."""
        found: dict[str, list[int]] = {}
        for i, topic in enumerate(self.topics):
            found.setdefault(topic, []).append(i)
        return list(found.values())


Halves = tuple[Rated, Rated]


def optimum(rated: Rated, lam: float) -> Rho:
    """rho* of each kind, by the mean rewards of its requests; lam 0: all on the best ending."""
    kinds = dict.fromkeys(rated.kinds)
    of = lambda kind: rated.r[[other == kind for other in rated.kinds]]
    R = torch.stack([of(kind).mean((0, 2)) for kind in kinds])  # (kinds, K)
    if lam:
        found = theory.optimal_prompter(rated.rho_sft.expand_as(R), R, lam)
    else:
        found = torch.stack([_only(j, R.shape[1]) for j in R.argmax(1).tolist()])
    return dict(zip(kinds, found))


def fixed(rated: Rated) -> Rho:
    """All on the ending that is best for all requests together."""
    best = optimum(replace(rated, kinds=[""] * len(rated.r)), 0)[""]
    return dict.fromkeys(rated.kinds, best)


def _only(j: int, count: int) -> Tensor:
    return torch.eye(count, dtype=torch.float64)[j]


def by_request(rho: Rho, rated: Rated) -> Tensor:
    """rho of each request's kind, (N, K). A kind that rho does not know is left to rho_sft."""
    unknown = rated.rho_sft
    return torch.stack([rho.get(kind, unknown) for kind in rated.kinds])


def under(rho: Rho, rated: Rated) -> dict[str, float]:
    """Mean and variance components of the rewards under rho."""
    return moments(by_request(rho, rated), rated.r)


def plain(rated: Rated) -> dict[str, float]:
    """The same of the plain request."""
    return alone(rated, 0)


def alone(rated: Rated, j: int) -> dict[str, float]:
    """The same of one ending for all requests."""
    return under(dict.fromkeys(rated.kinds, _only(j, rated.r.shape[1])), rated)


def ratios(values: dict[str, float], start: dict[str, float]) -> dict[str, float | None]:
    """Of the variance, and of that within requests, to the plain request's; None where that has none."""
    return dict(zip(RATIOS, variance_ratios(values, start)))


def without_reading(halves: Sequence[Halves]) -> tuple[dict[str, float], dict[str, float]]:
    """Moments of the plain request, and of the fixed ending: both cross-fitted, averaged over `halves`."""
    start = cross_fitted(lambda chose, rates: plain(rates), *halves)
    return start, cross_fitted(lambda chose, rates: under(fixed(chose), rates), *halves)


def at(halves: Sequence[Halves], lam: float, start: dict, same: dict) -> dict[str, float | None]:
    """Under the cross-fitted rho* at lam, averaged over `halves`: mean, components, gain and ratios to the plain x.

    `start` and `same` are `without_reading` of these halves; `over_fixed` is the mean less that of the fixed ending.
    """
    values = cross_fitted(lambda chose, rates: under(optimum(chose, lam), rates), *halves)
    gains = {"gain": values["mean"] - start["mean"], "over_fixed": values["mean"] - same["mean"]}
    return values | gains | ratios(values, start)


def measured_again(z: Rated, rho: Rho, later: EvalConfig, topics: int, draw: np.random.Generator) -> dict[str, float]:
    """What an evaluation under rho would measure: gain, components and ratios.

    `later` says on how many requests and answers. Topics (0: none, each request is one), their requests and the answers
    are drawn from those of z, with replacement.
    """
    N, K, M = z.r.shape
    of_topic = z.by_topic()
    drawn = draw.integers(len(of_topic), size=topics or later.inputs)
    of_request = drawn[np.arange(later.inputs) % len(drawn)]  # the topic of each request
    requests = np.empty(later.inputs, int)
    for topic, members in enumerate(of_topic):
        requests[of_request == topic] = draw.choice(members, (of_request == topic).sum())
    shape = (later.inputs, later.rewrites, later.answers)
    up_to = by_request(rho, z).cumsum(1).numpy()[requests]  # (inputs, K)
    endings = (draw.random((*shape[:2], 1)) > up_to[:, None] / up_to[:, None, -1:]).sum(2)[:, :, None]
    r = z.r.numpy()
    ours, start = (r[requests[:, None, None], which, draw.integers(M, size=shape)] for which in (endings, 0))
    values, base = ({**variance_parts(x), "total": x.var(), "mean": x.mean()} for x in (ours, start))
    of_base = lambda value, base: value / base if base > 1e-12 else np.nan
    found = {"gain": values["mean"] - base["mean"], "ratio": of_base(values["total"], base["total"])}
    found["within_ratio"] = of_base(within_requests(ours).mean(), within_requests(start).mean())
    return found | {name: values[name] for name in PARTS}


def describe(rated: Rated, lambdas=LAMBDAS, later=EvalConfig(), seeds=1, topics=0) -> dict:
    """All that is reported of one reward; `later` is the evaluation that is predicted, on so many `topics`.

    A reward learned anew by each of `seeds` (N / seeds requests each) has an optimum for each of them. Raises UserError
    where the rewards do not vary.
    """
    scale = rated.scale()
    z = rated.scaled()
    parts = [z.take(range(s * len(z.r) // seeds, (s + 1) * len(z.r) // seeds)) for s in range(seeds)]
    halves = [part.halves() for part in parts]
    draw = np.random.default_rng(0)
    resampled = [[tuple(half.resampled(draw) for half in pair) for pair in halves] for _ in range(RESAMPLES)]
    unread = [without_reading(pairs) for pairs in resampled]
    start, same = without_reading(halves)
    a_seed = replace(later, inputs=later.inputs // seeds)
    curve = []
    for lam in lambdas:
        best = [optimum(part, lam) for part in parts]
        again = [at(pairs, lam, *values) for pairs, values in zip(resampled, unread)]
        point = {"lam": lam, **at(halves, lam, start, same), **_intervals(again)}
        noise = [[measured_again(*pair, a_seed, topics, draw) for pair in zip(parts, best)] for _ in range(RESAMPLES)]
        point |= _prediction_intervals(again, noise)
        rho = torch.stack([by_request(*pair).mean(0) for pair in zip(best, parts)]).mean(0)  # (K,)
        point["truncated"] = float(rho @ rated.truncated.to(rho.dtype).mean((0, 2)))
        curve.append(point | {"endings": _likeliest(rho, rated.endings), "by_kind": _of_kinds(best, rated.endings)})
    spread = variance_parts(z.r.numpy())
    between, within = max(spread["between_rewrites"], 0.0), spread["within"]
    grid = np.geomspace(10 * max(lambdas), min(lambdas), 25).tolist()
    base = plain(z)
    return {
        "mean": scale["mean"],
        "sd": scale["std"],
        "icc": between / max(between + within, 1e-12),
        "plain": base,
        "fixed": same | {"gain": same["mean"] - base["mean"], **ratios(same, base)},
        "curve": curve,
        "smooth": [{"lam": lam, **at(halves, lam, start, same)} for lam in grid],
        "endings": _each(z, rated),
    }


def _intervals(again: list[dict]) -> dict[str, list[float] | None]:
    """95 % intervals of what `at` gives, from its values in each resample."""
    columns = {key: [values[key] for values in again] for key in ("gain", "over_fixed", *RATIOS, *PARTS)}
    return {f"{key}_ci95": None if None in column else interval(np.array(column)) for key, column in columns.items()}


def _prediction_intervals(again: list[dict], noise: list[list[dict]]) -> dict[str, list[float] | None]:
    """95 % prediction intervals of what is measured later: the listing's uncertainty with the evaluation's noise.

    The noise multiplies a ratio, and is added to all else.
    """
    found = {}
    for key in ("gain", *RATIOS, *PARTS):
        known = [values[key] for values in again]
        if None in known:
            found[f"{key}_pi95"] = None
            continue
        drawn = np.array([[values[key] for values in seeds] for seeds in noise]).mean(1)
        both = np.array(known) * drawn / drawn.mean() if key in RATIOS else np.array(known) + drawn - drawn.mean()
        found[f"{key}_pi95"] = interval(both)
    return found


def _likeliest(rho: Tensor, names: Sequence[str]) -> list[list]:
    """The three likeliest endings: [name, probability]."""
    best = rho.topk(min(3, len(names)))
    return [[names[j], round(p, 3)] for p, j in zip(best.values.tolist(), best.indices.tolist())]


def _of_kinds(best: Sequence[Rho], names: Sequence[str]) -> dict[str, list[list]]:
    """The likeliest endings of each kind, by the first seed's optimum."""
    return {kind: _likeliest(rho, names) for kind, rho in best[0].items()}


def _each(z: Rated, rated: Rated) -> list[dict]:
    """Each ending for all requests, from the best to the worst; `by_kind` has its mean reward for each kind."""
    start = plain(z)
    endings = []
    truncated = rated.truncated.double().mean((0, 2)).tolist()
    of_kind = {kind: [other == kind for other in rated.kinds] for kind in dict.fromkeys(rated.kinds)}
    for j, name in enumerate(rated.endings):
        only = alone(z, j)
        entry = {"ending": name, "gain": only["mean"] - start["mean"], "ratio": ratios(only, start)["ratio"]}
        entry["by_kind"] = {kind: float(rated.r[rows, j].mean()) for kind, rows in of_kind.items()}
        endings.append(entry | {"truncated": truncated[j]})
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
