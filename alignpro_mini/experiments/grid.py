"""The paper's figure: two prompters x two frozen models, every cell on the same requests and in the same units.

    python -m alignpro_mini.experiments.grid --task all --seed 0-4 --jobs 2      # all cells, one table
    python -m alignpro_mini.experiments.grid --cells P1-F2                       # one cell; --resume adds more

    <out>/grid-<preset>-<task>-seed<k>/
        F1/  F2/      a frozen model, its RLHF oracle, the arms without a prompter, and the rewards of all enumerated
                      rewrites: once, for both prompters
        P1/  P2/      an SFT prompter
        reward/       one reward model for all cells, learned on F1's answers to P1's rewrites
        P1-F1/ ...    Align-Pro of this cell and the arms with a prompter
        results.json  all cells
    <out>/grid-<preset>.json, .png, -variance.png        all groups in <out>, those of earlier commands too

So no fine-tuning and the oracle are the same for both prompters; in the paper's figure they differ.
What it leaves out: a reward model per frozen model, which would give the cells different units.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from alignpro_mini.experiments import study
from alignpro_mini.frozen import FrozenLM
from alignpro_mini.lab import assess, pipeline, sweep
from alignpro_mini.lab.config import RunConfig, ShapeConfig
from alignpro_mini.lab.glossary import ARMS, PARTS, TRIO
from alignpro_mini.lab.paper import CELLS, PAPER_CELLS
from alignpro_mini.lab.plots import new_figure
from alignpro_mini.lab.run import Run
from alignpro_mini.lab.setup import Setup, setup_of
from alignpro_mini.lab.tables import get
from alignpro_mini.options import require
from alignpro_mini.worlds.world import World

# The second prompter and the second frozen model: other sizes than the preset's own.
SECOND = {
    "tiny": (ShapeConfig(d_model=64, n_layers=2), ShapeConfig(n_layers=3)),
    "small": (ShapeConfig(d_model=128, n_layers=4), ShapeConfig("llama", 320, 6, 10)),
    "gpt2": (ShapeConfig("llama", 384, 6, 6), ShapeConfig("llama", 1024, 16, 16, 4)),
}
SHOWN = ("no_finetuning", "fixed_rewrite", "align_pro", "rlhf_oracle")
HEADINGS = ("No-FT", "Align-Pro", "Oracle")


def grid_part(config: RunConfig, name: str) -> RunConfig:
    """The configuration of one part of the grid: "F2", "P1", "P2-F1", or "reward" (that of P1 and F1).

    P1 and F1 are the preset's own prompter and frozen model.
    """
    prompter, frozen = SECOND[config.preset]
    config = replace(config, prompter_model=prompter) if "P2" in name else config
    return replace(config, frozen_model=frozen) if "F2" in name else config


def run_group(config: RunConfig, resume: bool, cells: Sequence[str]) -> dict:
    """The wanted cells of one task and seed, and those of an earlier command: {"task", "preset", "seed", "cells"}."""
    world = setup_of(config).make_world()
    cells = [cell for cell in CELLS if cell in cells or (study.folder(config) / cell / "results.json").exists()]
    prompters = sorted({cell.split("-")[0] for cell in cells} | {"P1"})  # the reward is of P1 and F1
    models = sorted({cell.split("-")[1] for cell in cells} | {"F1"})

    @cache
    def run_of(name: str) -> Run:
        return study.part(grid_part(config, name), resume, name, {})

    def of(name: str) -> tuple[Run, Setup, World]:
        """A part's run, its own models, and the requests that all parts share."""
        return run_of(name), setup_of(run_of(name).config), world

    frozen: dict[str, FrozenLM] = {}
    for F in models:
        tokenizer = of(F)[1].tokenizer(run_of(F), world)
        frozen[F] = pipeline.frozen_lm(*of(F), tokenizer)
    rho_sft = {P: pipeline.prompter_sft(*of(P), tokenizer) for P in prompters}
    reward = pipeline.reward_model(*of("reward"), frozen["F1"], rho_sft["P1"])
    plain, fixed, rated, samples = {}, {}, {}, {}
    for F in dict.fromkeys(cell.split("-")[1] for cell in cells):
        oracle = pipeline.rlhf_oracle(run_of(F), world, frozen[F], reward)
        plain[F] = assess.evaluate_plain(run_of(F), world, frozen[F], oracle, reward)
        fixed[F] = pipeline.fixed_rewrite(run_of(F), world, frozen[F], reward)
        rated[F] = assess.rate_rewrites(*of(F), frozen[F], reward)
        samples[F] = assess.sample_oracle(run_of(F), frozen[F], oracle, reward, rated[F])
    results = {}
    for cell in cells:
        P, F = cell.split("-")
        run = run_of(cell)
        rho = pipeline.align_pro(run, world, frozen[F], rho_sft[P], reward)
        listing = assess.closed_form(run, rho_sft[P], rho, rated[F], samples[F])
        arms = assess.evaluate_prompters(run, world, frozen[F], rho_sft[P], rho, reward, fixed[F], listing)
        results[cell] = assess.conclude(run, world, plain[F] | arms)
    return {"task": config.task, "preset": config.preset, "seed": config.seed, "cells": results}


def with_earlier(configs: Sequence[RunConfig], results: list[dict], **own) -> dict:
    """These groups, and those that earlier commands left beside them; alone where they have a --name of their own."""
    stem = STUDY.stem(configs)
    paths = [] if stem.parent == study.folder(configs[0]) else stem.parent.glob(f"{stem.name}-*/results.json")
    earlier = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    groups = {(group["task"], group["seed"]): group for group in (*earlier, *results)}
    return {"groups": [groups[key] for key in sorted(groups)]}


# ---------------------------------------------------------------- table


def by_cell(groups: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """{(task, cell): its results, a seed each} of the groups that `run_group` returns."""
    cells = {}
    for task, runs in sweep.by_task(groups).items():
        cells |= {(task, cell): [run["cells"][cell] for run in runs if cell in run["cells"]] for cell in CELLS}
    return {key: results for key, results in cells.items() if results}


def six(runs: list[dict]) -> list[float]:
    """Mean, then variance, of the three arms, averaged over seeds, in the order of PAPER_CELLS."""
    return [sweep.seed_mean(runs, "arms", arm, key)[0] for key in ("mean", "variance") for arm in TRIO]


def grid_counts(sixes: list) -> dict[str, tuple[int, int]]:
    """{claim: (k, n)} over cells, each six numbers as in PAPER_CELLS; None where no oracle was trained."""
    claims = {
        sweep.BETWEEN: [s[0] < s[1] < s[2] for s in sixes if s[2] is not None],
        "variance below no fine-tuning": [s[4] < s[3] for s in sixes],
        "variance below the oracle": [s[4] < s[5] for s in sixes if s[5] is not None],
    }
    return {claim: (sum(held), len(held)) for claim, held in claims.items()}


COLUMNS = {
    **{f"{heading} {key}": ("arms", arm, key) for key in ("mean", "variance") for heading, arm in zip(HEADINGS, TRIO)},
    "fixed rewrite": ("arms", "fixed_rewrite", "mean"),
    "Align-Pro - fixed": ("over_fixed",),
    "gap closed": ("gap_closed",),
    "var. ratio": ("variance_ratio",),
    "within requests": ("variance_ratio_within_requests",),
    "gold": ("gold_variance_ratio",),
    "attain.": ("theory", "attainable_gain_share"),
}


def table(content: dict) -> str:
    """Cell by cell, means over seeds with 95% t-intervals; the counts beside the paper's own; the variance."""
    cells = by_cell(content["groups"])
    columns = {heading: lambda run, keys=keys: get(run, *keys) for heading, keys in COLUMNS.items()}
    every = [run for runs in cells.values() for run in runs]
    of_cells = grid_counts([six(runs) for runs in cells.values()])
    of_runs = grid_counts([six([run]) for run in every])
    paper = grid_counts(list(PAPER_CELLS.values()))
    lines = [sweep.coefficients(every), study.seed_table(("task", "cell"), cells, columns), ""]
    for claim, (k, n) in paper.items():
        ours = "{} of {} cells, {} of {} single runs".format(*of_cells[claim], *of_runs[claim])
        lines.append(f"  {claim}: {ours} (paper: {k} of {n} cells)")
    others = {claim: count for claim, count in sweep.sweep_counts(every).items() if claim not in paper}
    lines += sweep.claim_lines(others, " single runs")
    for task in sweep.by_task(content["groups"]):
        runs = [run for (of_task, _), results in cells.items() if of_task == task for run in results]
        lines += ["", f"task {task}, all cells", *sweep.variance_lines(runs, False), *sweep.right_answers(runs)]
    return "\n".join(lines)


# ---------------------------------------------------------------- figures


def figure(content: dict, path: Path) -> None:
    """The paper's figure: a column a task; reward mean above, variance below; four bars a cell.

    Error bars are 95% t-intervals over seeds. A single seed has none: its mean gets the bootstrap interval over
    requests instead, its variance nothing.
    """
    cells = by_cell(content["groups"])
    tasks = list(sweep.by_task(content["groups"]))
    picture, axes = new_figure(path, 2, max(1, len(tasks)), (4.6 * max(1, len(tasks)), 6.8))
    for column, task in zip(axes.T, tasks):
        of_task = {cell: runs for (t, cell), runs in cells.items() if t == task}
        for ax, key in zip(column, ("mean", "variance")):
            for i, arm in enumerate(SHOWN):
                values = [sweep.seed_mean(runs, "arms", arm, key) for runs in of_task.values()]
                places = np.arange(len(of_task)) + 0.2 * (i - 1.5)
                heights = [np.nan if mean is None else mean for mean, _ in values]
                ax.bar(places, heights, 0.19, color=ARMS[arm][1], label=ARMS[arm][0])
                for x, (mean, half), runs in zip(places, values, of_task.values()):
                    single = get(runs[0], "arms", arm, "ci95") if key == "mean" else None
                    low, high = (mean - half, mean + half) if half is not None else single or (np.nan, np.nan)
                    ax.errorbar(x, (low + high) / 2, (high - low) / 2, color="black", linewidth=1, capsize=3)
            ax.axhline(0, color="black", linewidth=0.6)
            ax.set_xticks(range(len(of_task)), list(of_task))
            seeds = max(map(len, of_task.values()))
            ax.set(title=f"{task}, {seeds} seed{'s' if seeds > 1 else ''}", ylabel=f"{key} of the learned reward")
    study.legend_and_save(picture, axes, path)


def variance_figure(content: dict, path: Path) -> None:
    """Which variance component falls: a column a task, a bar an arm and cell, the three components stacked."""
    cells = by_cell(content["groups"])
    tasks = list(sweep.by_task(content["groups"]))
    picture, axes = new_figure(path, 1, max(1, len(tasks)), (4.6 * max(1, len(tasks)), 4.2))
    for ax, task in zip(axes.flat, tasks):
        of_task = {cell: runs for (t, cell), runs in cells.items() if t == task}
        for i, arm in enumerate(TRIO):
            places = np.arange(len(of_task)) + 0.27 * (i - 1)
            base = np.zeros(len(of_task))
            for name, colour in list(PARTS.items())[:3]:
                keys = ("arms", arm, "variance_parts", name)
                height = [sweep.seed_mean(runs, *keys)[0] or 0.0 for runs in of_task.values()]
                height = np.maximum(height, 0.0)  # an unbiased part near 0 may come out a little below it
                label = name.replace("_", " ") if i == 0 else None
                ax.bar(places, height, 0.25, bottom=base, color=colour, label=label)
                base = base + height
            for x, top in zip(places, base):
                ax.text(x, top, " " + ARMS[arm][0], rotation=90, ha="center", va="bottom", fontsize=6)
        ax.set_xticks(range(len(of_task)), list(of_task))
        ax.set(title=task, ylabel="variance of the learned reward")
        ax.set_ylim(0, 1.35 * ax.get_ylim()[1])  # room for the arms' names
    study.legend_and_save(picture, axes, path)


def check(configs: Sequence[RunConfig], **own) -> None:
    """Raises UserError for a preset without a second pair of models."""
    preset = configs[0].preset
    one = f"the grid needs two models of each kind, and --preset {preset} has one"
    require(preset in SECOND, f"{one}: use {', '.join(SECOND)}")


STUDY = study.Study(
    "grid",
    cell=run_group,
    table=table,
    figures={"": figure, "-variance": variance_figure},
    options=(study.Option("cells", "all", f"all, or some of {', '.join(CELLS)}", study.names_of(CELLS)),),
    check=check,
    together=with_earlier,
)

if __name__ == "__main__":
    study.main(STUDY)
