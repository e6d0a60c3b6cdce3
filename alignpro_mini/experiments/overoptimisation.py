"""Over-optimisation with a known gold reward: learned and gold reward against the square root of the KL.

    python -m alignpro_mini.experiments.overoptimisation --seed 0-2 --jobs 2      # task quality, one table
    python -m alignpro_mini.experiments.overoptimisation --pairs 250 --lambdas 0.02 --mismatched 0     # one cell

    <out>/overoptimisation-<preset>-<task>-seed<k>/
        base/                         the frozen LM and the SFT prompter
        pairs-250-mismatched-0/ ...   a reward model, from so many preference pairs and as many mismatched ones or none
        pairs-250-mismatched-0-lam-0.02/ ...    Align-Pro trained on it, and its arm on the held-out requests
        results.json
    <out>/overoptimisation.png, .json       the cells of all seeds of the command

Gao et al. (2023) let a large reward model play the gold reward. Here the gold reward is that of the world. Both rewards
are reported in standard deviations of the answers to the SFT prompter's rewrites, as gains over it: so a reward model
that were the gold reward would give equal numbers. A reward model that saturates gives a small learned gain where the
gold gain is large: over-optimisation is a gold gain that falls while the KL rises. Pairs and training steps go
together (`reward_model.epochs` is the same for all; with mismatched pairs, which come on top of the others, there are
more). Intervals are 95 % t-intervals over the seeds.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from alignpro_mini.alignpro import Prompter
from alignpro_mini.experiments.frontier import lambdas
from alignpro_mini.frozen import FrozenModel
from alignpro_mini.lab import pipeline
from alignpro_mini.lab.cli import one_line_errors, parse_command_line
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.evaluation import Evaluator
from alignpro_mini.lab.plots import new_figure
from alignpro_mini.lab.run import Run, RunStage
from alignpro_mini.lab.statistics import t_interval
from alignpro_mini.lab.sweep import ORACLE_OPTIONS, exit_if_failed, leave, not_read, run_all
from alignpro_mini.lab.tables import aligned, num, over_seeds
from alignpro_mini.options import require
from alignpro_mini.weights.tensors import write_json
from alignpro_mini.worlds.world import World

PROG = "alignpro_mini.experiments.overoptimisation"
PAIRS = (250, 500, 1000, 2000, 4000, 8000)
COLOURS = ("#56b4e9", "#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7")


def measured(
    run: Run, world: World, pi_f: FrozenModel, prompter: Prompter, rho_sft: Prompter, reward: pipeline.Reward
) -> dict:
    """The stage "evaluation": learned and gold reward of a prompter on the held-out requests, and its KL."""

    def make(stage: RunStage) -> dict:
        c = run.config.eval
        requests = world.eval_requests[: c.inputs]
        evaluator = Evaluator(
            requests, pi_f, reward.report, world.gold, c, run.generator("evaluation"), run.config.guard
        )
        arm = evaluator.prompter(prompter, rho_sft)
        found = {"mean": arm.reward.mean(), "std": arm.reward.std(), "kl": arm.kl.mean()}
        found |= {"gold_mean": arm.gold.mean(), "gold_std": arm.gold.std()}
        return {key: float(value) for key, value in found.items()}

    return run.json("evaluation", make)


def run_cells(
    config: RunConfig, resume: bool, pairs: Sequence[int], lams: Sequence[float], mixed: Sequence[int]
) -> dict:
    """One task and seed: {"task", "seed", "cells": [{"pairs", "mismatched", "lam", gains, KL}]}."""
    folder, world = Path(config.out) / config.run_name, pipeline.make_world(config)
    part = lambda name, **changes: Run(replace(config, out=str(folder), name=name, **changes), resume)
    base = part("base")
    tokenizer, pi_f = pipeline.frozen_lm(base, world)
    rho_sft = pipeline.prompter_sft(base, world, tokenizer, pi_f)
    cells = []
    for count in pairs:
        for mismatched in mixed:
            name = f"pairs-{count}-mismatched-{mismatched}"
            preferences = replace(config.preferences, pairs=count, mismatched=float(mismatched))
            run = part(name, preferences=preferences)
            reward = pipeline.reward_model(run, world, pi_f, rho_sft)
            facts = json.loads((run.path / "checkpoints" / "reward_model.json").read_text(encoding="utf-8"))
            start = measured(run, world, pi_f, rho_sft, rho_sft, reward)
            for lam in lams:
                ppo = replace(config.ppo, kl_coef=lam, adaptive_kl_target=0.0)
                run = part(f"{name}-lam-{lam:g}", preferences=preferences, ppo=ppo)
                rho = pipeline.align_pro(run, world, pi_f, rho_sft, reward)
                end = measured(run, world, pi_f, rho, rho_sft, reward)
                cell = {"pairs": count, "mismatched": mismatched, "lam": lam, "kl": end["kl"]}
                cell["gain"] = (end["mean"] - start["mean"]) / start["std"]
                cell["gold_gain"] = (end["gold_mean"] - start["gold_mean"]) / start["gold_std"]
                cell |= {key: facts[key] for key in ("accuracy", "swap_accuracy")}
                cells.append(cell)
    results = {"task": config.task, "seed": config.seed, "cells": cells}
    write_json(folder / "results.json", results)
    return results


def table(runs: list[dict]) -> str:
    """A row a cell: means over the seeds, 95 % t-intervals of the gains."""
    by_cell: dict[tuple, list[dict]] = {}
    for run in runs:
        for cell in run["cells"]:
            by_cell.setdefault((run["task"], cell["mismatched"], cell["pairs"], -cell["lam"]), []).append(cell)
    heads = "task|mismatched|pairs|accuracy|swap acc.|λ|KL|learned gain|gold gain"
    rows = [heads.split("|")]
    for (task, mismatched, pairs, lam), cells in sorted(by_cell.items()):  # down a block λ falls and the KL rises
        accuracy, swap, kl = (num(t_interval([c[k] for c in cells])[0], 2) for k in ("accuracy", "swap_accuracy", "kl"))
        gains = [over_seeds(c[key] for c in cells) for key in ("gain", "gold_gain")]
        rows.append([task, str(mismatched), str(pairs), accuracy, swap, f"{-lam:g}", kl, *gains])
    return aligned(rows)


def figure(runs: list[dict], path) -> None:
    """Per task a row; with and without mismatched pairs a column: gains against the square root of the KL."""
    tasks = sorted({run["task"] for run in runs})
    mixed = sorted({cell["mismatched"] for run in runs for cell in run["cells"]})
    fig, axes = new_figure(path, len(tasks), len(mixed), (6.4 * len(mixed), 4.6 * len(tasks)), sharey="row")
    for row, task in zip(axes, tasks):
        for ax, mismatched in zip(row, mixed):
            cells = [c for run in runs if run["task"] == task for c in run["cells"] if c["mismatched"] == mismatched]
            counts = sorted({c["pairs"] for c in cells})
            for count, colour in zip(counts, COLOURS * (1 + len(counts) // len(COLOURS))):
                mine = [c for c in cells if c["pairs"] == count]
                for lam in sorted({c["lam"] for c in mine}):
                    same = [c for c in mine if c["lam"] == lam]
                    x = [math.sqrt(max(sum(c["kl"] for c in same) / len(same), 0.0))] * 2
                    ends = [sum(c[key] for c in same) / len(same) for key in ("gain", "gold_gain")]
                    ax.plot(x, ends, color=colour, linewidth=1)
                    ax.plot(x[0], ends[0], "o", mfc="white", color=colour)
                    label = f"{count} pairs" if lam == min(c["lam"] for c in mine) else None
                    ax.plot(x[0], ends[1], "o", color=colour, label=label)
            ax.axhline(0, color="black", linewidth=0.6)
            kind = "with mismatched pairs" if mismatched else "same-request pairs only"
            ax.set(title=f"{task}, {kind}", xlabel="√KL to the SFT prompter, √nats", ylabel="gain, standard deviations")
    place = {"loc": "outside lower center", "ncols": 6, "frameon": False, "title": "● gold  ○ learned"}
    fig.legend(*axes[0, 0].get_legend_handles_labels(), **place)
    fig.savefig(path)


def numbers(text: str, what: str, least: int, most: int = 10**6) -> list[int]:
    """'250,500' -> [250, 500]. Raises UserError for anything but whole numbers from `least` to `most`."""
    good = all(part.isdecimal() and least <= int(part) <= most for part in text.split(","))
    require(good, f"--{what}: {text!r} is not a list of whole numbers from {least} to {most}")
    return list(dict.fromkeys(int(part) for part in text.split(",")))


def main() -> None:
    """The command at the top of this module."""

    def add(parser: argparse.ArgumentParser) -> None:
        many = ",".join(map(str, PAIRS))
        parser.add_argument("--pairs", default=many, help="numbers of preference pairs (default: %(default)s)")
        parser.add_argument("--lambdas", default="0.02,0.1,0.5", help="KL coefficients (default: %(default)s)")
        help_ = "mismatched pairs a pair, 0 to 2 (default: %(default)s)"
        parser.add_argument("--mismatched", default="0,1", help=help_)

    varied = ("ppo.kl_coef", "ppo.adaptive_kl_target", "preferences.pairs", "preferences.mismatched")
    unread = not_read("theory", "eval.best_of_n", "eval.headroom_inputs", *ORACLE_OPTIONS, varied=varied)
    configs, how = parse_command_line(prog=PROG, add=add, unread=unread)
    with one_line_errors(PROG):
        known = not configs[0].real_model and not configs[0].reward
        require(known, "it needs a learned reward and a known gold reward")
        # Pairs of equal answers are dropped, and two batches must remain.
        pairs = numbers(how.pairs, "pairs", 3 * configs[0].reward_model.batch_size)
        mixed = numbers(how.mismatched, "mismatched", 0, 2)
        configs = [replace(c, name=f"overoptimisation-{c.run_name}") for c in configs]
        one = partial(run_cells, pairs=pairs, lams=lambdas(how.lambdas), mixed=mixed)
        results, failed = run_all(["-m", PROG], configs, how, one)
        if results and not how.child:
            leave(results, Path(configs[0].out) / "overoptimisation.png", figure, table(results))
    exit_if_failed(PROG, configs, failed)


if __name__ == "__main__":
    main()
