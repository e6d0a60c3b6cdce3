"""When does prompt optimisation lower the variance? The closed form's prediction against trained prompters.

    python -m alignpro_mini.experiments.variance --seed 0-2 --jobs 2                    # all worlds, one table
    python -m alignpro_mini.experiments.variance --worlds quality-plain-0.9 --seed 0    # one world; --resume adds more

A world is a task, `--world.spread` (which prompts get answers of random style: the plain ones or those with a cue) and
`--world.follow` (the probability that an answer obeys a cue). For each of them

    predicted    rho* by the closed form from many rated answers of the frozen LM, before any PPO: mean and the three
                 variance components of the reward along the KL coefficient lambda
    measured     prompters trained by PPO at some lambda: the same figures from new rewrites and answers, same requests

    <out>/variance-<preset>-seed<k>/<world>/base, lam-0.2, ...      results.json of all worlds beside them
    <out>/variance.png, variance.json

The prediction is no fit: it uses nothing of the trained prompters. Its R is noisy, which makes the predicted spread
between rewrites too high at small lambda; so the optimum is chosen by one half of the answers and described by the
other (both ways, averaged).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alignpro_mini import theory
from alignpro_mini.experiments.frontier import base, lambdas, require_enumerable
from alignpro_mini.lab import pipeline
from alignpro_mini.lab.cli import chosen, one_line_errors, parse_command_line
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.evaluation import Evaluator
from alignpro_mini.lab.glossary import ARMS, TRIO
from alignpro_mini.lab.optimum import Listing, RatedRewrites
from alignpro_mini.lab.plots import new_figure
from alignpro_mini.lab.run import Run, RunStage
from alignpro_mini.lab.statistics import variance_parts
from alignpro_mini.lab.sweep import ARM_OPTIONS, ORACLE_OPTIONS, exit_if_failed, leave, not_read, run_all
from alignpro_mini.lab.tables import aligned, num, over_seeds
from alignpro_mini.options import require
from alignpro_mini.weights.tensors import write_json

PROG = "alignpro_mini.experiments.variance"
PARTS = (("between_inputs", "#e69f00"), ("between_rewrites", "#cc79a7"), ("within", "#56b4e9"), ("total", "black"))
WORLDS = tuple(
    f"{task}-{spread}-{follow}"
    for task, follows in (("quality", (0.3, 0.5, 0.7, 0.9)), ("attributes", (0.5, 0.9)))
    for spread in ("plain", "cue")
    for follow in follows
)


def in_world(config: RunConfig, world: str) -> RunConfig:
    """The configuration of a world such as "quality-plain-0.9"."""
    task, spread, follow = world.split("-")
    return replace(config, task=task, world=replace(config.world, spread=spread, follow=float(follow)))


def predicted(listing: Listing, lam: float) -> dict[str, float]:
    """Mean and variance components of the reward under rho* at lam, cross-fitted; lam = inf: under rho_sft."""
    found: dict[str, float] = {}
    for i, (chose, rates) in enumerate((listing.halves, listing.halves[::-1])):
        other = RatedRewrites(listing.requests, listing.rewrites, listing.r[:, :, 1 - i :: 2])  # what `rates` is of
        rho = theory.optimal_prompter(listing.rho_sft, chose, lam)
        for key, value in moments(rho, rates, other.V / other.answers, other.V).items():
            found[key] = found.get(key, 0.0) + value / 2
    return found


def plain(listing: Listing) -> dict[str, float]:
    """The same without a prompter: all probability on the plain request, which is the first rewrite."""
    only_x = torch.zeros_like(listing.rho_sft).index_fill_(1, torch.tensor(0), 1.0)
    return moments(only_x, listing.R, listing.V / listing.answers, listing.V)


def moments(rho: Tensor, R: Tensor, error2: Tensor, V: Tensor) -> dict[str, float]:
    """Mean of r under rho, and its variance over requests, rewrites and answers; all (N, K), error2 that of R."""
    each = (rho * R).sum(1)  # (N,)
    noise = (rho * (1 - rho) * error2).sum(1).mean()  # what the noise of R adds to the spread between rewrites
    within, rewrites = (rho * V).sum(1).mean(), (rho * (R - each[:, None]) ** 2).sum(1).mean() - noise
    inputs = each.var() - (rho**2 * error2).sum(1).mean()
    parts = {"between_inputs": float(inputs), "between_rewrites": float(rewrites), "within": float(within)}
    return parts | {"mean": float(each.mean()), "total": sum(parts.values())}


def measured(run: Run, requests: Sequence[str], pi_f, prompter, rho_sft, reward: pipeline.Reward) -> dict[str, float]:
    """The stage "evaluation": mean and variance components by 8 rewrites of each request, 4 new answers each.

    Without a prompter (None): no fine-tuning, 32 answers to each request.
    """

    def make(stage: RunStage) -> dict[str, float]:
        many = replace(run.config.eval, inputs=len(requests), rewrites=8, answers=4)
        evaluator = Evaluator(
            list(requests), pi_f, reward.train, None, many, run.generator("variance"), run.config.guard
        )
        arm = evaluator.plain() if prompter is None else evaluator.prompter(prompter, rho_sft)
        parts = variance_parts(arm.reward)
        return parts | {"mean": float(arm.reward.mean()), "total": sum(parts.values()), "kl": float(arm.kl.mean())}

    return run.json("evaluation", make)


def run_worlds(config: RunConfig, resume: bool, worlds: Sequence[str], lams: Sequence[float]) -> dict:
    """One seed: {"seed", "preset", "worlds": {world: {"plain", "curve", "points"}}}."""
    folder, found = Path(config.out) / config.run_name, {}
    for world in WORLDS:
        place = folder / world
        if world not in worlds and not (resume and (place / "base" / "stages.json").exists()):
            continue
        local = in_world(config, world)
        toy, pi_f, rho_sft, reward, rated = base(local, place, resume)
        listing, points = rated.under(rho_sft, rho_sft), []
        untouched = Run(replace(local, out=str(place), name="no-finetuning"), resume)
        start = measured(untouched, rated.requests, pi_f, None, None, reward)
        for lam in lams:
            changed = replace(local, out=str(place), name=f"lam-{lam:g}", ppo=replace(local.ppo, kl_coef=lam))
            run = Run(changed, resume)
            rho = pipeline.align_pro(run, toy, pi_f, rho_sft, reward)
            points.append({"lam": lam} | measured(run, rated.requests, pi_f, rho, rho_sft, reward))
        grid = np.geomspace(10 * max(lams), min(lams) / 2, 25).tolist()
        curve = [{"lam": lam} | predicted(listing, lam) for lam in grid]
        at = [{"lam": lam} | predicted(listing, lam) for lam in lams]
        found[world] = {"plain": plain(listing), "curve": curve, "predicted": at, "start": start, "points": points}
    results = {"seed": config.seed, "preset": config.preset, "worlds": found}
    write_json(folder / "results.json", results)
    return results


def table(runs: list[dict]) -> str:
    """A row a world and lambda: predicted and measured gain and variance ratio to no fine-tuning, over the seeds."""
    heads = ["world", "λ", "gain: predicted", "measured", "variance ratio: predicted", "measured", "falls / rises"]
    heads.append("measured above 1")
    rows, agree, by_rule, off, kept = [heads], [], [], [], {"plain": [], "cue": []}
    for world in [w for w in WORLDS if all(w in run["worlds"] for run in runs)]:
        for i, point in enumerate(runs[0]["worlds"][world]["points"]):
            of = lambda kind, run_, j=i, w=world: run_["worlds"][w][kind][j]
            gains, ratios = ([], []), ([], [])
            for run in runs:
                for column, (kind, without) in enumerate((("predicted", "plain"), ("points", "start"))):
                    start = run["worlds"][world][without]
                    gains[column].append(of(kind, run)["mean"] - start["mean"])
                    ratios[column].append(of(kind, run)["total"] / start["total"])
            off += [b - a for a, b in zip(*gains)]
            kept[spread := world.split("-")[1]] += zip(*ratios)
            falls = np.mean(ratios[1]) < 1
            agree.append((np.mean(ratios[0]) < 1) == falls)
            by_rule.append((spread == "plain") == falls)
            told = [over_seeds(values) for values in (*gains, *ratios)]
            said = ["rises" if np.mean(column) > 1 else "falls" for column in ratios]
            above = f"{sum(ratio > 1 for ratio in ratios[1])} of {len(runs)}"
            rows.append([world, f"{point['lam']:g}", *told, " / ".join(said), above])
    rms = lambda values: num(np.sqrt(np.mean(np.square(values))))
    agreed = f"{sum(agree)} of {len(agree)} rows; by the rule that plain falls and cue rises {sum(by_rule)}"
    lines = [aligned(rows), "", f"predicted and measured ratio on the same side of 1: {agreed}"]
    lines.append(f"measured - predicted gain: mean {num(np.mean(off))}, root mean square {rms(off)}")
    for spread, pairs in kept.items():
        if pairs:
            p, m = np.array(pairs).T
            told = f"root mean square {rms(m - p)}, of measured - its own mean {rms(m - m.mean())}"
            lines.append(f"measured - predicted ratio, spread {spread}: {told}")
    return "\n".join(lines)


def figure(runs: list[dict], path) -> None:
    """A panel a world, along 1/lambda: predicted components as curves (mean of seeds), trained prompters as points."""
    worlds = [w for w in WORLDS if all(w in run["worlds"] for run in runs)]
    cols = min(4, max(1, len(worlds)))
    rows = -(-len(worlds) // cols) or 1
    fig, axes = new_figure(path, rows, cols, (4.1 * cols, 3.4 * rows), sharex=True)
    for ax, world in zip(axes.flat, worlds):
        mine = [run["worlds"][world] for run in runs]
        for part, colour in PARTS:
            x = [1 / p["lam"] for p in mine[0]["curve"]]
            ax.plot(x, np.mean([[p[part] for p in m["curve"]] for m in mine], axis=0), color=colour, linewidth=1.3)
            points = [(1 / p["lam"], p[part]) for m in mine for p in m["points"]]
            ax.plot(*zip(*points), "o", markersize=4, color=colour, alpha=0.7, label=part.replace("_", " "))
        name, grey = ARMS[TRIO[0]]
        ax.axhline(np.mean([m["start"]["total"] for m in mine]), color=grey, linestyle="--", label=f"{name}, total")
        ax.set(title=world, xscale="log", xlabel="1 / λ", ylabel="variance of the reward")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    fig.savefig(path)


def main() -> None:
    """The command at the top of this module."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--worlds", default="all", help=f"all, or some of {', '.join(WORLDS)} (default: all)")
        parser.add_argument("--lambdas", default="0.05,0.2,0.8", help="KL coefficients (default: %(default)s)")

    unread = not_read(*ARM_OPTIONS, *ORACLE_OPTIONS, varied=("ppo.kl_coef", "world.follow", "world.spread"))
    configs, how = parse_command_line(prog=PROG, add=add, unread=unread)
    with one_line_errors(PROG):
        require_enumerable(configs[0])
        few = f"--theory.answers is {configs[0].theory.answers}; each half of the answers needs a variance: at least 4"
        require(configs[0].theory.answers >= 4, few)
        require({c.task for c in configs} == {RunConfig().task}, "--task is varied here: leave it out, or use --worlds")
        configs = [replace(c, name=f"variance-{c.preset}-seed{c.seed}") for c in configs]
        one = partial(run_worlds, worlds=chosen(how.worlds, WORLDS, "worlds"), lams=lambdas(how.lambdas))
        results, failed = run_all(["-m", PROG], configs, how, one)
        if results and not how.child:
            leave(results, Path(configs[0].out) / "variance.png", figure, table(results))
    exit_if_failed(PROG, configs, failed)


if __name__ == "__main__":
    main()
