"""What can a prompter do to a reward's mean and variance? Every listed rewrite answered, before any training.

    python -m alignpro_mini.experiments.listing --preset smollm2 --reward tutorials.vader_reward:sentiment
    python -m alignpro_mini.experiments.listing --preset smollm2 --also mine:second     # the learned reward, and gold

Some *training* requests (--theory.inputs), each with every listed ending, are answered several times
(--theory.answers) by the frozen model. The answers are kept, and any number of rewards rates the same ones. Without
--reward, the stages of `train.py` before PPO are done first, and `train.py --resume` goes on from there.

    units      each reward is shifted and scaled as PPO does it: mean 0, variance 1 over answers to all endings, equally
               often, which is what SFT teaches the prompter. lambda is in these units
    optimum    rho*(ending) ~ exp(R(ending) / lam), the same for every request: R(ending), a mean over all requests, is
               known well, R(x, x') of one request is not. A prompter that reads x can do better
    curve      mean and the three variance components under rho* along lambda, and the ratio of the total variance to
               the plain request's. Chosen on one half of the requests, described on the other, both ways
    intervals  95 %, 500 resamples of requests within each half
    seeds      with --seed 0-2 the requests of all seeds are described together; a learned reward has an optimum a seed

    <out>/<run>/listing.json, listing.png (of several seeds: <out>/<run without seed>-listing/)
    <out>/listing-<preset>-<task>-seed<k>/answers.jsonl
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
from alignpro_mini.lab import assess, pipeline
from alignpro_mini.lab.cli import one_line_errors, parse_command_line
from alignpro_mini.lab.config import EvalConfig, RunConfig
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

PROG = "alignpro_mini.experiments.listing"
LAMBDAS = (0.3, 0.1, 0.05, 0.03, 0.01)  # those of the table
RESAMPLES = 500


def under(rho: Tensor, r: Tensor) -> dict[str, float]:
    """Mean and variance components of r (N, K, M) under one distribution over the K endings."""
    V = r.var(2)  # (N, K)
    return moments(rho.expand(len(r), -1), r.mean(2), V / r.shape[2], V)


def optimum(r: Tensor, lam: float) -> Tensor:
    """rho* over endings (K,), the same for every request, by the mean rewards of r (N, K, M)."""
    R = r.mean((0, 2))[None]  # (1, K)
    return theory.optimal_prompter(torch.full_like(R, 1 / R.shape[1]), R, lam)[0]


def at(pairs: Sequence[tuple[Tensor, Tensor]], lam: float) -> dict[str, float | None]:
    """Mean and components under rho* at lam, chosen on one half and described on the other, both ways; mean of `pairs`.

    Against the plain request: `gain` of the mean, `ratio` of the total variance, None where the plain one has none.
    """
    ways = [way for pair in pairs for way in (pair, pair[::-1])]
    each = [(under(optimum(chose, lam), rates), _plain(rates)) for chose, rates in ways]
    found, start = ({key: sum(one[i][key] for one in each) / len(each) for key in each[0][i]} for i in (0, 1))
    return found | {"gain": found["mean"] - start["mean"], "ratio": _ratio(found, start)}


def _ratio(found: dict[str, float], start: dict[str, float]) -> float | None:
    return found["total"] / start["total"] if start["total"] > 1e-12 else None


def _plain(r: Tensor) -> dict[str, float]:
    return under(torch.eye(r.shape[1], dtype=torch.float64)[0], r)  # the first rewrite is the plain request


def measured_again(z: Tensor, rho: Tensor, later: EvalConfig, draw: np.random.Generator) -> float:
    """A variance ratio as an evaluation under rho (K,) would measure it: `later` says on how many requests and answers.

    Requests and answers are drawn from those of z (N, K, M), with replacement.
    """
    (N, K, M), shape = z.shape, (later.inputs, later.rewrites, later.answers)
    who = draw.integers(N, size=later.inputs)[:, None, None]
    endings = draw.choice(K, p=(rho / rho.sum()).numpy(), size=shape[:2])[:, :, None]
    ours, plain = (z[who, which, draw.integers(M, size=shape)] for which in (endings, 0))
    return float(ours.var() / plain.var())


def describe(r: Tensor, truncated: Tensor, names: Sequence[str], lams=LAMBDAS, later=EvalConfig(), seeds=1) -> dict:
    """All that is told of one reward: r (N, K, M) in its own units, truncated (N, K, M) of 0 and 1, K names.

    A reward learned anew by each of `seeds` (N / seeds requests each) has an optimum for each of them.
    `ratio_pi95` is the 95 % prediction interval for the ratio that `later` measures at this lambda, if the prompter
    gets to rho*: the listing's own uncertainty times the noise of that measurement.
    """
    scale = moments_of(r.flatten())  # UserError where the rewards do not vary
    z = (r - scale["mean"]) / scale["std"]
    parts = z.chunk(seeds)
    pairs, draw = [(part[::2], part[1::2]) for part in parts], np.random.default_rng(0)
    again_of = lambda pair: tuple(half[draw.integers(len(half), size=len(half))] for half in pair)
    resampled = [[again_of(pair) for pair in pairs] for _ in range(RESAMPLES)]
    few, best = replace(later, inputs=later.inputs // seeds), {lam: [optimum(p, lam) for p in parts] for lam in lams}
    curve = []
    for lam in lams:
        again = [at(drawn, lam) for drawn in resampled]
        point = {"lam": lam, **at(pairs, lam)}
        for key in ("gain", "ratio", *(part for part, _ in PARTS)):
            values = [other[key] for other in again]
            point[f"{key}_ci95"] = None if None in values else interval(np.array(values))
        point["ratio_pi95"] = None
        if point["ratio_ci95"]:
            each = [[measured_again(*of, few, draw) for of in zip(parts, best[lam])] for _ in range(RESAMPLES)]
            noise = np.array(each).mean(1)
            point["ratio_pi95"] = interval(np.array([other["ratio"] for other in again]) * noise / noise.mean())
        rho = torch.stack(best[lam]).mean(0)  # (K,)
        cut = float(rho @ truncated.to(rho.dtype).mean((0, 2)))
        curve.append(point | {"truncated": cut, "endings": _favourites(rho, names)})
    spread, start = variance_parts(z.numpy()), _plain(z)
    between, within = max(spread["between_rewrites"], 0.0), spread["within"]
    endings = []
    for name, only, cut in zip(names, torch.eye(len(names), dtype=torch.float64), truncated.double().mean((0, 2))):
        alone = under(only, z)
        against = {"gain": alone["mean"] - start["mean"], "ratio": _ratio(alone, start)}
        endings.append({"ending": name, **against, "truncated": float(cut)})
    grid = np.geomspace(10 * max(lams), min(lams), 25).tolist()
    smooth = [{"lam": lam, **at(pairs, lam)} for lam in grid]
    told = {"mean": scale["mean"], "sd": scale["std"], "icc": between / max(between + within, 1e-12), "plain": start}
    return told | {"curve": curve, "smooth": smooth, "endings": sorted(endings, key=lambda e: -e["gain"])}


def _favourites(rho: Tensor, names: Sequence[str]) -> list[list]:
    """The three likeliest endings: [name, probability]."""
    best = rho.topk(min(3, len(names)))
    return [[names[j], round(p, 3)] for p, j in zip(best.values.tolist(), best.indices.tolist())]


def table(name: str, found: dict) -> str:
    """One reward for the screen: along lambda, then the endings from best to worst; listing.json has all intervals."""
    parts = [part for part, _ in PARTS[:3]]
    heads = ["λ", "gain, sd", "variance ratio", "95% predicted", "between inputs", "rewrites", "within", "truncated"]
    rows = [[*heads, "likeliest endings"]]
    for p in found["curve"]:
        best = "; ".join(f"{told} {share:.2f}" for told, share in p["endings"][:2])
        told = [f"{num(p[key], 2)} {num(p[f'{key}_ci95'], 2)}" for key in ("gain", "ratio")]
        told.append(num(p.get("ratio_pi95"), 2))
        rows.append([f"{p['lam']:g}", *told, *(num(p.get(key), 2) for key in (*parts, "truncated")), best])
    cut = next((e["truncated"] for e in found["endings"] if e["ending"] == "…"), None)
    rows.insert(1, ["plain", "0", "1", "", *(num(found["plain"][part], 2) for part in parts), num(cut, 2), ""])
    each = [["ending", "gain, sd", "variance ratio", "truncated"]]
    each += [[e["ending"], num(e["gain"], 2), num(e["ratio"], 2), num(e["truncated"], 2)] for e in found["endings"]]
    head = f"{name}: mean {num(found['mean'], 3)}, standard deviation {num(found['sd'], 3)}, ICC {num(found['icc'], 2)}"
    return "\n\n".join([head, aligned(rows), aligned(each)])


def figure(rewards: dict[str, dict], path: Path) -> None:
    """A column a reward, along 1/lambda: mean under rho*, and its variance components; dashed, the plain request's."""
    fig, axes = new_figure(path, 2, len(rewards), (4.6 * len(rewards), 6.4), sharex=True)
    for (top, ax), (name, found) in zip(axes.T, rewards.items()):
        for where, part, colour in [(top, "gain", "black"), *((ax, part, colour) for part, colour in PARTS)]:
            x = [1 / p["lam"] for p in found["smooth"]]
            where.plot(x, [p[part] for p in found["smooth"]], color=colour, label=part.replace("_", " "))
            for p in found["curve"]:
                where.vlines(1 / p["lam"], *(p.get(f"{part}_ci95") or (p[part], p[part])), color=colour)
        top.axhline(0, color="#999999", linestyle="--")
        top.set(title=name, ylabel="mean - plain request's (sd)")
        ax.axhline(found["plain"]["total"], color="#999999", linestyle="--", label="plain request, total")
        ax.set(xscale="log", xlabel="1 / λ", ylabel="variance (of all answers: 1)")
    fig.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    fig.savefig(path)


def run_listing(config: RunConfig, resume: bool, also: Sequence[str]) -> dict[str, tuple]:
    """Answer and rate: {reward: (r (N, K, M), truncated (N, K, M), K names)} of one seed."""
    world = pipeline.make_world(config)
    require(bool(world.rewrites(world.train_requests[0])), "these rewrites cannot be listed: leave out --data.prompts")
    require("gold" not in also or world.gold is not None, "--also gold: the true reward is not known here")
    given = {name: load_callable(name, "also") for name in also if name != "gold"}
    run, found = Run(config, resume), {}
    tokenizer, pi_f = pipeline.frozen_lm(run, world)
    if config.reward:
        given = {config.reward: load_callable(config.reward)} | given
    else:
        rho_sft = pipeline.prompter_sft(run, world, tokenizer, pi_f)
        reward = pipeline.reward_model(run, world, pi_f, rho_sft)
    rows = assess.listed_answers(config, world, pi_f)
    if config.real_model and not config.reward:
        found["learned"] = assess.listed_rewards(run, world, pi_f, reward)  # kept: `train.py` needs them too
    elif not config.reward:
        found["learned"] = assess.rated(rows, reward.train)
    for name, score in given.items():
        found[name] = assess.rated(rows, _by_sentences(score, rows) if config.real_model else score)
    if world.gold is not None:
        found["gold"] = assess.rated(rows, world.gold)
    endings = [x_prime.replace(rows[0]["x"], "…") for x_prime in rows[0]["rewrites"]]
    truncated = torch.tensor([row["truncated"] for row in rows]).view(len(rows), len(endings), -1)
    return {name: (r, truncated, endings) for name, r in found.items()}


def pooled(listings: Sequence[dict[str, tuple]]) -> dict[str, tuple]:
    """The same of several seeds: all their requests, each seed's reward in its own units."""
    found = {}
    for name in listings[0]:
        units = [moments_of(listing[name][0].flatten()) for listing in listings]
        z = [(listing[name][0] - u["mean"]) / u["std"] for listing, u in zip(listings, units)]
        found[name] = torch.cat(z), torch.cat([listing[name][1] for listing in listings]), listings[0][name][2]
    return found


def pooled_folder(configs: Sequence[RunConfig]) -> Path:
    """Where the listing of these seeds is told: in the run's folder, of several seeds in one beside their runs."""
    first = Path(configs[0].out) / configs[0].run_name
    return first if len(configs) == 1 else first.with_name(f"{first.name.rpartition('-')[0]}-listing")


def tell(configs: Sequence[RunConfig], listed: dict[str, tuple]) -> dict:
    """Table, figure and listing.json in `pooled_folder`."""
    c, place = configs[0], pooled_folder(configs)
    place.mkdir(parents=True, exist_ok=True)
    lams = sorted({*LAMBDAS, *({c.ppo.kl_coef} - {0})}, reverse=True)
    later = replace(c.eval, inputs=len(configs) * c.eval.inputs)
    own = {"learned": len(configs)}
    found = {name: describe(*each, lams, later, own.get(name, 1)) for name, each in listed.items()}
    results = {"preset": c.preset, "task": c.task, "seeds": [config.seed for config in configs], "rewards": found}
    results |= {"requests": len(configs) * c.theory.inputs, "answers": c.theory.answers}
    results |= {"temperature": c.sampling.temperature, "evaluated_later": later.inputs}
    write_json(place / "listing.json", results)
    figure(found, place / "listing.png")
    print("\n\n".join(table(name, told) for name, told in found.items()))
    print(f"\nfigure: {place / 'listing.png'}, numbers: {place / 'listing.json'}")
    return results


def _by_sentences(reward: Score, rows: Sequence[dict]) -> Score:
    """The reward of truncated answers as `worlds.sentences` does it, by these answers."""
    return by_sentences(reward, low_reward(reward, *assess.asked_and_answered(rows)))


def main() -> None:
    """The command at the top of this module."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--also", default="", help="further rewards of the same answers, module:function, comma")

    configs, how = parse_command_line(prog=PROG, add=add)
    with one_line_errors(PROG):
        c = configs[0]
        require(len({config.task for config in configs}) == 1, "one task at a time: give one --task")
        require(how.jobs == 1, "--jobs: the seeds are listed one after the other; leave it out")
        require(not c.judge, "--reward judge:MODEL is not listed: each answer would be paid for")
        require(c.theory.inputs >= 4, f"--theory.inputs is {c.theory.inputs}; it takes at least 4")
        also = [name.strip() for name in how.also.split(",") if name.strip()]
        wrong = [name for name in also if name.count(":") != 1 and name != "gold"]
        require(not wrong, f"--also: {wrong[:1]} is no module:function")
        listings = [run_listing(config, how.resume, also) for config in configs]
        tell(configs, listings[0] if len(listings) == 1 else pooled(listings))


if __name__ == "__main__":
    main()
