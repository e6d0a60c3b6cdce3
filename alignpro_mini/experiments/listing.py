"""What can a prompter do to a reward's mean and variance? Every listed rewrite answered, before any training.

    python -m alignpro_mini.experiments.listing --preset smollm2 --reward tutorials.vader_reward:sentiment
    python -m alignpro_mini.experiments.listing --preset smollm2 --reward mine:first --also mine:second --resume

Some *training* requests, each with every listed ending, are answered several times by the frozen model. The answers are
kept (answers.jsonl), and any number of rewards rates the same ones. The embedded world has a gold reward of its own.

    units      each reward is shifted and scaled as PPO does it: mean 0, variance 1 over answers to all endings, equally
               often, which is what SFT teaches the prompter. lambda is in these units
    optimum    rho*(ending) ~ exp(R(ending) / lam), the same for every request: R(ending), a mean over all requests, is
               known well, R(x, x') of one request is not. A prompter that reads x can do better
    curve      mean and the three variance components under rho* along lambda, and the ratio of the total variance to
               the plain request's. Chosen on one half of the requests, described on the other, both ways
    intervals  95 %, 500 resamples of requests within each half

    <out>/listing-<run>/answers.jsonl, results.json, listing.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alignpro_mini import theory
from alignpro_mini.experiments.variance import PARTS, moments
from alignpro_mini.frozen import Answer, FrozenModel
from alignpro_mini.lab import pipeline
from alignpro_mini.lab.cli import one_line_errors, parse_command_line
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.plots import new_figure
from alignpro_mini.lab.run import Run
from alignpro_mini.lab.statistics import interval, variance_parts
from alignpro_mini.lab.tables import aligned, num
from alignpro_mini.options import require
from alignpro_mini.reward import moments as moments_of
from alignpro_mini.training import Score
from alignpro_mini.weights.tensors import write_json
from alignpro_mini.worlds.callables import load_callable
from alignpro_mini.worlds.sentences import by_sentences, low_reward
from alignpro_mini.worlds.world import World

PROG = "alignpro_mini.experiments.listing"
LAMBDAS = (0.3, 0.1, 0.03, 0.01)  # those of the table
RESAMPLES = 500


def answered(run: Run, world: World, pi_f: FrozenModel, count: int, each: int) -> list[dict]:
    """A row a request: {"x", "rewrites": K texts, "y": K*M texts, "truncated": K*M}; those of an earlier try stay.

    Raises UserError where these had another number of answers.
    """
    file = "answers.jsonl"
    rows = run.rows(file) if (run.path / file).exists() else []
    for x in world.train_requests[len(rows) : count]:
        rewrites = world.rewrites(x)
        asked = [x_prime for x_prime in rewrites for _ in range(each)]
        found = pi_f.answer(asked, run.generator(f"listing {len(rows)}"))
        row = {"x": x, "rewrites": rewrites, "y": [a.text for a in found], "truncated": [a.truncated for a in found]}
        run.append(file, [row])
        rows.append(row)
        print(f"[listing] request {len(rows)} of {count}", flush=True)
    kept = len(rows[0]["y"]) // len(rows[0]["rewrites"])
    require(kept == each, f"{run.path / file} has {kept} answers to a rewrite, not {each}: leave --answers at {kept}")
    return rows[:count]


def rated(rows: Sequence[dict], reward: Score, real_model: bool) -> Tensor:
    """Rewards (N, K, M) float64 of kept answers, against the requests; a real model's as `worlds.sentences` does it."""
    texts = [Answer(y, cut).text for row in rows for y, cut in zip(row["y"], row["truncated"])]
    asked = [row["x"] for row in rows for _ in row["y"]]
    low = low_reward(reward, asked, texts) if real_model else None
    r = torch.as_tensor(by_sentences(reward, low)(asked, texts), dtype=torch.float64)
    return r.view(len(rows), len(rows[0]["rewrites"]), -1)


def under(rho: Tensor, r: Tensor) -> dict[str, float]:
    """Mean and variance components of r (N, K, M) under one distribution over the K endings."""
    V = r.var(2)  # (N, K)
    return moments(rho.expand(len(r), -1), r.mean(2), V / r.shape[2], V)


def optimum(r: Tensor, lam: float) -> Tensor:
    """rho* over endings (K,), the same for every request, by the mean rewards of r (N, K, M)."""
    R = r.mean((0, 2))[None]  # (1, K)
    return theory.optimal_prompter(torch.full_like(R, 1 / R.shape[1]), R, lam)[0]


def at(halves: tuple[Tensor, Tensor], lam: float) -> dict[str, float | None]:
    """Mean and components under rho* at lam, chosen on one half and described on the other, both ways.

    Against the plain request: `gain` of the mean, `ratio` of the total variance, None where the plain one has none.
    """
    both = [(under(optimum(chose, lam), rates), _plain(rates)) for chose, rates in (halves, halves[::-1])]
    found, start = ({key: sum(pair[i][key] for pair in both) / 2 for key in both[0][i]} for i in (0, 1))
    return found | {"gain": found["mean"] - start["mean"], "ratio": _ratio(found, start)}


def _ratio(found: dict[str, float], start: dict[str, float]) -> float | None:
    return found["total"] / start["total"] if start["total"] > 1e-12 else None


def _plain(r: Tensor) -> dict[str, float]:
    return under(torch.eye(r.shape[1], dtype=torch.float64)[0], r)  # the first rewrite is the plain request


def describe(r: Tensor, truncated: Tensor, names: Sequence[str], lams: Sequence[float] = LAMBDAS) -> dict:
    """All that is told of one reward: r (N, K, M) in its own units, truncated (N, K, M) of 0 and 1, K names."""
    scale = moments_of(r.flatten())  # UserError where the rewards do not vary
    z = (r - scale["mean"]) / scale["std"]
    halves = (z[::2], z[1::2])
    draw = np.random.default_rng(0)
    resampled = [tuple(half[draw.integers(len(half), size=len(half))] for half in halves) for _ in range(RESAMPLES)]
    curve = []
    for lam in lams:
        again = [at(pair, lam) for pair in resampled]
        point = {"lam": lam, **at(halves, lam)}
        for key in ("gain", "ratio"):
            values = [other[key] for other in again]
            point[f"{key}_ci95"] = None if None in values else interval(np.array(values))
        curve.append(point | {"endings": _favourites(optimum(z, lam), names)})
    parts, start = variance_parts(z.numpy()), _plain(z)
    between, within = max(parts["between_rewrites"], 0.0), parts["within"]
    endings = []
    for name, only, cut in zip(names, torch.eye(len(names), dtype=torch.float64), truncated.double().mean((0, 2))):
        alone = under(only, z)
        against = {"gain": alone["mean"] - start["mean"], "ratio": _ratio(alone, start)}
        endings.append({"ending": name, **against, "truncated": float(cut)})
    grid = np.geomspace(10 * max(lams), min(lams), 25).tolist()
    smooth = [{"lam": lam, **at(halves, lam)} for lam in grid]
    told = {"mean": scale["mean"], "sd": scale["std"], "icc": between / (between + within), "plain": start}
    return told | {"curve": curve, "smooth": smooth, "endings": sorted(endings, key=lambda e: -e["gain"])}


def _favourites(rho: Tensor, names: Sequence[str]) -> list[list]:
    """The three likeliest endings: [name, probability]."""
    best = rho.topk(min(3, len(names)))
    return [[names[j], round(p, 3)] for p, j in zip(best.values.tolist(), best.indices.tolist())]


def table(name: str, found: dict) -> str:
    """One reward for the screen: along lambda, then the endings from best to worst."""
    rows = [["λ", "gain, sd", "variance ratio", "between inputs", "rewrites", "within", "likeliest endings"]]
    for p in found["curve"]:
        best = "; ".join(f"{told} {share:.2f}" for told, share in p["endings"][:2])
        told = [f"{num(p[key], 2)} {num(p[f'{key}_ci95'], 2)}" for key in ("gain", "ratio")]
        rows.append([f"{p['lam']:g}", *told, *(num(p[part], 2) for part, _ in PARTS[:3]), best])
    start = found["plain"]
    rows.insert(1, ["plain", "0", "1", *(num(start[part], 2) for part, _ in PARTS[:3]), ""])
    each = [["ending", "gain, sd", "variance ratio", "truncated"]]
    each += [[e["ending"], num(e["gain"], 2), num(e["ratio"], 2), num(e["truncated"], 2)] for e in found["endings"]]
    head = f"{name}: mean {num(found['mean'], 3)}, standard deviation {num(found['sd'], 3)}, ICC {num(found['icc'], 2)}"
    return "\n\n".join([head, aligned(rows), aligned(each)])


def figure(rewards: dict[str, dict], path: Path) -> None:
    """A panel a reward: the variance components under rho* along 1/lambda; dashed, the plain request's total."""
    fig, axes = new_figure(path, 1, len(rewards), (4.6 * len(rewards), 3.6))
    for ax, (name, found) in zip(axes.flat, rewards.items()):
        for part, colour in PARTS:
            x = [1 / p["lam"] for p in found["smooth"]]
            ax.plot(x, [p[part] for p in found["smooth"]], color=colour, label=part.replace("_", " "))
        ax.axhline(found["plain"]["total"], color="#999999", linestyle="--", label="plain request, total")
        ax.set(title=name, xscale="log", xlabel="1 / λ", ylabel="variance, units of the reward's own")
    fig.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    fig.savefig(path)


def run_listing(config: RunConfig, resume: bool, also: Sequence[str], count: int, each: int) -> dict:
    """Answer, rate, tell; returns what is written to results.json."""
    world = pipeline.make_world(config)
    require(bool(world.rewrites(world.train_requests[0])), "these rewrites cannot be listed: leave out --data.prompts")
    names = [*([config.reward] if config.reward else ["gold"]), *also]
    require(
        "gold" not in names or world.gold is not None, "--also gold: the true reward is known in the embedded world"
    )
    rewards = {name: world.gold if name == "gold" else load_callable(name) for name in names}
    require(count <= len(world.train_requests), f"--requests is {count}; there are {len(world.train_requests)}")
    run = Run(replace(config, reward="", name=f"listing-{config.run_name}"), resume)  # answers serve all rewards
    _, pi_f = pipeline.frozen_lm(run, world)
    rows = answered(run, world, pi_f, count, each)
    endings = [x_prime.replace(rows[0]["x"], "…") for x_prime in rows[0]["rewrites"]]
    truncated = torch.tensor([row["truncated"] for row in rows]).view(count, len(endings), each)
    found = {
        name: describe(rated(rows, reward, config.real_model), truncated, endings) for name, reward in rewards.items()
    }
    results = {"preset": config.preset, "task": config.task, "seed": config.seed, "requests": count, "answers": each}
    results |= {"temperature": config.sampling.temperature, "rewards": found}
    write_json(run.path / "results.json", results)
    figure(found, run.path / "listing.png")
    print("\n\n".join(table(name, told) for name, told in found.items()))
    print(f"\nfigure: {run.path / 'listing.png'}, numbers: {run.path / 'results.json'}")
    return results


def main() -> None:
    """The command at the top of this module."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--also", default="", help="further rewards of the same answers, module:function, comma")
        parser.add_argument("--requests", type=int, default=48, help="training requests (default: %(default)s)")
        parser.add_argument("--answers", type=int, default=4, help="answers to each rewrite (default: %(default)s)")

    configs, how = parse_command_line(prog=PROG, add=add)
    with one_line_errors(PROG):
        require(len(configs) == 1, "one listing at a time: give one task and one seed")
        require(how.requests >= 4, f"--requests is {how.requests}; two halves take at least 4")
        require(how.answers >= 2, f"--answers is {how.answers}; a variance within a rewrite takes at least 2")
        also = [name.strip() for name in how.also.split(",") if name.strip()]
        wrong = [name for name in also if name.count(":") != 1 and name != "gold"]
        require(not wrong, f"--also: {wrong[:1]} is no module:function")
        run_listing(configs[0], how.resume, also, how.requests, how.answers)


if __name__ == "__main__":
    main()
