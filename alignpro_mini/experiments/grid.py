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
    <out>/grid-<preset>.png, -variance.png, .json        the figures of all groups in <out>, and their numbers

So no fine-tuning and the oracle are the same for both prompters; in the paper's figure they differ.
What it leaves out: a reward model per frozen model, which would give the cells different units.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from alignpro_mini.experiments import grid_report
from alignpro_mini.frozen import FrozenLM
from alignpro_mini.lab import assess, pipeline
from alignpro_mini.lab.cli import chosen, one_line_errors, parse_command_line
from alignpro_mini.lab.config import RunConfig, ShapeConfig
from alignpro_mini.lab.paper import CELLS
from alignpro_mini.lab.run import Run
from alignpro_mini.lab.sweep import exit_if_failed, run_all
from alignpro_mini.options import require
from alignpro_mini.weights.tensors import write_json

PROG = "alignpro_mini.experiments.grid"
# The second prompter and the second frozen model: other sizes than the preset's own.
SECOND = {
    "tiny": (ShapeConfig(d_model=64, n_layers=2), ShapeConfig(n_layers=3)),
    "small": (ShapeConfig(d_model=128, n_layers=4), ShapeConfig("llama", 320, 6, 10)),
    "gpt2": (ShapeConfig("llama", 384, 6, 6), ShapeConfig("llama", 1024, 16, 16, 4)),
}


def grid_part(config: RunConfig, part: str) -> RunConfig:
    """The configuration of one part of the grid, its name set: "F2", "P1", "P2-F1", or "reward" (that of P1 and F1).

    P1 and F1 are the preset's own prompter and frozen model. Raises UserError for a preset without a second pair.
    """
    one = f"the grid needs two models of each kind, and --preset {config.preset} has one"
    require(config.preset in SECOND, f"{one}: use {', '.join(SECOND)}")
    prompter, frozen = SECOND[config.preset]
    config = replace(config, prompter_model=prompter) if "P2" in part else config
    return replace(config, name=part, frozen_model=frozen if "F2" in part else config.frozen_model)


class Parts:
    """The runs of one group (a task and a seed), each opened once."""

    def __init__(self, config: RunConfig, resume: bool) -> None:
        self.config, self.resume = replace(config, out=str(Path(config.out) / config.run_name)), resume
        self.runs: dict[str, Run] = {}

    def __getitem__(self, part: str) -> Run:
        if part not in self.runs:
            print(f"--- {self.config.task}, seed {self.config.seed}: {part}")
            self.runs[part] = Run(grid_part(self.config, part), self.resume)
        return self.runs[part]

    def finished(self, cell: str) -> bool:
        """Whether an earlier command has left this cell behind, evaluation and all."""
        return (Path(self.config.out) / cell / "results.json").exists()


def run_group(config: RunConfig, resume: bool, cells: Sequence[str]) -> dict:
    """The wanted cells of one task and seed; returns (and writes) {"task", "preset", "seed", "cells", "wall_s"}."""
    world, parts = pipeline.make_world(config), Parts(config, resume)
    # Cells of an earlier command come along: results.json holds them all.
    cells = [cell for cell in CELLS if cell in cells or parts.finished(cell)]
    wanted = sorted({part for cell in cells for part in cell.split("-")} | {"F1", "P1"})  # the reward is of these two
    frozen: dict[str, FrozenLM] = {}
    for F in (part for part in wanted if part[0] == "F"):
        tokenizer, frozen[F] = pipeline.frozen_lm(parts[F], world)
    rho_sft = {P: pipeline.prompter_sft(parts[P], world, tokenizer, frozen["F1"]) for P in wanted if P[0] == "P"}
    reward = pipeline.reward_model(parts["reward"], world, frozen["F1"], rho_sft["P1"])
    oracle, plain, rated, samples = {}, {}, {}, {}
    for F in {cell.split("-")[1]: None for cell in cells}:
        oracle[F] = pipeline.rlhf_oracle(parts[F], world, frozen[F], reward)
        plain[F] = assess.evaluate_plain(parts[F], world, frozen[F], oracle[F], reward)
        rated[F] = assess.rate_rewrites(parts[F], world, frozen[F], reward)
        samples[F] = assess.sample_oracle(parts[F], frozen[F], oracle[F], reward, rated[F])
    found = {}
    for cell in cells:
        P, F = cell.split("-")
        run = parts[cell]
        rho = pipeline.align_pro(run, world, frozen[F], rho_sft[P], reward)
        listing = assess.closed_form(run, rho_sft[P], rho, rated[F], samples[F])
        arms = assess.evaluate_prompters(run, world, frozen[F], rho_sft[P], rho, reward, listing)
        found[cell] = assess.conclude(run, world, plain[F] | arms)
    results = {"task": config.task, "preset": config.preset, "seed": config.seed, "cells": found}
    seconds = {part: [stage["seconds"] for stage in run.stages.values()] for part, run in parts.runs.items()}
    results["wall_s"] = {part: sum(found) for part, found in seconds.items()}
    write_json(Path(parts.config.out) / "results.json", results)
    return results


def draw(groups: list[dict], config: RunConfig) -> list[Path]:
    """The figures of these groups and of those that earlier commands left beside them, and their numbers in one file.

    A group with a --name of its own is drawn alone, in its folder.
    """
    stem, others = Path(config.out, f"grid-{config.preset}"), []
    if config.run_name.startswith(stem.name):
        paths = stem.parent.glob(f"{stem.name}-*/results.json")
        others = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    else:
        stem = Path(config.out, config.run_name, stem.name)
    by_run = {(g["task"], g["seed"]): g for g in (*others, *groups)}
    groups = [by_run[key] for key in sorted(by_run)]
    mean, variance, numbers = (stem.with_name(stem.name + end) for end in (".png", "-variance.png", ".json"))
    grid_report.grid_figure(groups, mean)
    grid_report.variance_figure(groups, variance)
    write_json(numbers, {"groups": groups})
    return [mean, variance, numbers]


def main() -> None:
    """The command at the top of this module."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--cells", default="all", help=f"all, or some of {', '.join(CELLS)} (default: all)")

    configs, how = parse_command_line(prog=PROG, add=add)
    with one_line_errors(PROG):
        grid_part(configs[0], "F1")  # a preset without a second pair of models ends here
        configs = [replace(c, name=f"grid-{c.run_name}") for c in configs]
        results, failed = run_all(
            ["-m", PROG], configs, how, partial(run_group, cells=chosen(how.cells, CELLS, "cells"))
        )
        # The figures show all groups, so only the parent process draws them.
        if results and not how.child:
            print(grid_report.grid_table(results))
            print(f"\nfigures: {', '.join(map(str, draw(results, configs[0])))}")
    exit_if_failed(PROG, configs, failed)


if __name__ == "__main__":
    main()
