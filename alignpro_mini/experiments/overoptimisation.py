"""Over-optimisation with a known gold reward: learned and gold reward against the square root of the KL.

    python -m alignpro_mini.experiments.overoptimisation --seed 0-2 --jobs 2      # task quality, one table
    python -m alignpro_mini.experiments.overoptimisation --pairs 250 --lambdas 0.02 --mismatched 0     # one cell

Gao et al. (2023) let a large reward model play the gold reward. Here it is that of the world. Reward models learn from
so many preference pairs, with as many mismatched ones on top or none; PPO trains a prompter on each at some lambda.
Both rewards are gains over the SFT prompter in standard deviations of its answers: a reward model that were the gold
reward would give equal numbers. Over-optimisation is a gold gain that falls while the KL rises. Pairs and training
steps go together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from alignpro_mini.alignpro import Prompter
from alignpro_mini.experiments import study
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.pipeline import Reward
from alignpro_mini.lab.plots import new_figure
from alignpro_mini.lab.run import Run, RunStage
from alignpro_mini.options import require

COLOURS = ("#56b4e9", "#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7")


def run_cells(
    config: RunConfig, resume: bool, pairs: Sequence[int], lambdas: Sequence[float], mismatched: Sequence[int]
) -> dict:
    """One task and seed: {"task", "seed", "cells": [{"pairs", "mismatched", "lam", gains, KL}]}."""
    shared = study.Stages(config, resume)
    cells = []
    for count, ratio in product(pairs, mismatched):
        name = f"pairs-{count}-mismatched-{ratio}"
        learns = {"preferences.pairs": count, "preferences.mismatched": float(ratio)}
        if ratio == 0:
            learns["preferences.other_wish"] = 0.0  # no pair at all that teaches the reward to read the request
        run = study.part(config, resume, name, learns)
        reward = shared.learn_reward(run)
        facts = json.loads((run.path / "checkpoints" / "reward_model.json").read_text(encoding="utf-8"))
        start = run.json("evaluation", partial(measure, shared, run, reward, shared.rho_sft))
        for lam in lambdas:
            ppo = {"ppo.kl_coef": lam, "ppo.adaptive_kl_target": 0.0}
            run = study.part(config, resume, f"{name}-lam-{lam:g}", learns | ppo)
            rho = shared.align_pro(run, reward)
            end = run.json("evaluation", partial(measure, shared, run, reward, rho))
            cell = {"pairs": count, "mismatched": ratio, "lam": lam, "kl": end["kl"]}
            cell["gain"] = (end["mean"] - start["mean"]) / start["std"]
            cell["gold_gain"] = (end["gold_mean"] - start["gold_mean"]) / start["gold_std"]
            cells.append(cell | {"accuracy": facts["accuracy"], "swap_accuracy": facts["swap_accuracy"]})
    return {"task": config.task, "seed": config.seed, "cells": cells}


def measure(shared: study.Stages, run: Run, reward: Reward, prompter: Prompter, stage: RunStage) -> dict[str, float]:
    """Learned and gold reward of a prompter on the held-out requests, and its KL to the SFT prompter."""
    counts = run.config.eval
    requests = shared.world.eval_requests[: counts.inputs]
    arm = shared.evaluator(run, "evaluation", requests, counts, reward).prompter(prompter, shared.rho_sft)
    learned = {"mean": float(arm.reward.mean()), "std": float(arm.reward.std()), "kl": float(arm.kl.mean())}
    return learned | {"gold_mean": float(arm.gold.mean()), "gold_std": float(arm.gold.std())}


def by_cell(runs: list[dict], *keys: str) -> dict[tuple, list[dict]]:
    """The cells of all seeds: {(their task, their values of these keys): a cell a seed}, in that order."""
    groups: dict[tuple, list[dict]] = {}
    for run in runs:
        for cell in run["cells"]:
            groups.setdefault((run["task"], *(cell[key] for key in keys)), []).append(cell)
    return dict(sorted(groups.items()))


COLUMNS = {
    "accuracy": lambda cell: cell["accuracy"],
    "swap, subject": lambda cell: cell["swap_accuracy"]["subject"],
    "swap, wish": lambda cell: cell["swap_accuracy"].get("wish"),
    "KL": lambda cell: cell["kl"],
    "learned gain": lambda cell: cell["gain"],
    "gold gain": lambda cell: cell["gold_gain"],
}


def table(content: dict) -> str:
    """A row a cell: means over the seeds."""
    rows = by_cell(content["runs"], "mismatched", "pairs", "lam")
    return study.seed_table(("task", "mismatched", "pairs", "λ"), rows, COLUMNS)


def figure(content: dict, path: Path) -> None:
    """Per task a row; with and without mismatched pairs a column: gains against the square root of the KL."""
    runs = content["runs"]
    tasks = sorted({run["task"] for run in runs})
    ratios = sorted({cell["mismatched"] for run in runs for cell in run["cells"]})
    picture, axes = new_figure(path, len(tasks), len(ratios), (6.4 * len(ratios), 4.6 * len(tasks)), sharey="row")
    for (row, task), (column, ratio) in product(enumerate(tasks), enumerate(ratios)):
        ax = axes[row, column]
        points = {
            key[2:]: cells
            for key, cells in by_cell(runs, "mismatched", "pairs", "lam").items()
            if key[:2] == (task, ratio)
        }
        counts = sorted({count for count, _ in points})
        for (count, lam), cells in points.items():
            mean = lambda key, cells=cells: np.mean([cell[key] for cell in cells])
            x = math.sqrt(max(mean("kl"), 0.0))
            colour = COLOURS[counts.index(count) % len(COLOURS)]
            label = f"{count} pairs" if lam == min(at for c, at in points if c == count) else None
            ax.plot([x, x], [mean("gain"), mean("gold_gain")], color=colour, linewidth=1)
            ax.plot(x, mean("gain"), "o", mfc="white", color=colour)
            ax.plot(x, mean("gold_gain"), "o", color=colour, label=label)
        ax.axhline(0, color="black", linewidth=0.6)
        kind = "with mismatched pairs" if ratio else "same-request pairs only"
        ax.set(title=f"{task}, {kind}", xlabel="√KL to the SFT prompter, √nats", ylabel="gain, standard deviations")
    study.legend_and_save(picture, axes, path, 6, title="● gold  ○ learned")


def check(
    configs: Sequence[RunConfig], pairs: Sequence[int], lambdas: Sequence[float], mismatched: Sequence[int]
) -> None:
    """Raises UserError where there is no learned reward beside a known gold one, and for numbers that cannot be."""
    config = configs[0]
    require(not config.real_model and not config.reward, "it needs a learned reward and a known gold reward")
    # Pairs of equal answers are dropped, and two batches must remain.
    least = 3 * config.reward_model.batch_size
    require(min(pairs) >= least, f"--pairs: {min(pairs)} is too few; give at least {least}")
    require(max(mismatched) <= 2, f"--mismatched: {max(mismatched)} is too many; give at most 2 for a pair")


STUDY = study.Study(
    "overoptimisation",
    cell=run_cells,
    table=table,
    figures={"": figure},
    options=(
        study.Option("pairs", "250,500,1000,2000,4000,8000", "numbers of preference pairs", study.whole_numbers),
        study.Option("lambdas", "0.02,0.1,0.5", "KL coefficients", study.positive_numbers),
        study.Option("mismatched", "0,1", "mismatched pairs for each pair, 0 to 2", study.whole_numbers),
    ),
    varies=("ppo.kl_coef", "ppo.adaptive_kl_target", "preferences.pairs", "preferences.mismatched"),
    ignores=("theory", "eval.best_of_n", "eval.headroom_inputs", *study.ORACLE_OPTIONS),
    check=check,
)

if __name__ == "__main__":
    study.main(STUDY)
