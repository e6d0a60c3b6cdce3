"""The paper's figure again: two prompters x two frozen models, every cell on the same requests and in the same units.

    <out>/grid-<preset>-<task>-seed<k>/
        F1/  F2/      a frozen model, its RLHF oracle, the arms without a prompter, and what every listed rewrite earns: once,
                      whatever stands before it
        P1/  P2/      an SFT prompter
        reward/       one reward model for all cells, learned on F1's answers to P1's rewrites
        P1-F1/ ...    Align-Pro of this cell and the arms with a prompter
        P1-F1-swapped/ ...   its prompter in front of the other frozen model
        results.json  all cells, and the swap test

So no fine-tuning and the oracle cannot change with the prompter, as they do in the paper's figure. Swap test: a prompter
trained for F1 is put in front of F2, and back, to see whether what it learned is about F1 or about the world.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from alignpro_mini import assess, pipeline, plots
from alignpro_mini.alignpro import Prompter
from alignpro_mini.config import RunConfig, grid_part
from alignpro_mini.evaluation import Arm, paired
from alignpro_mini.frozen import FrozenLM
from alignpro_mini.run import Run, write_json
from alignpro_mini.tables import CELLS


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


def run_group(config: RunConfig, cells: Sequence[str], resume: bool) -> dict:
    """The wanted cells of one task and seed; returns (and writes) {"task", "preset", "seed", "cells", "swap", "wall_s"}."""
    task, parts = pipeline.make_task(config), Parts(config, resume)
    # Cells of an earlier command come along: the swap test needs two, and results.json holds them all.
    cells = [cell for cell in CELLS if cell in cells or parts.finished(cell)]
    wanted = sorted(
        {part for cell in cells for part in cell.split("-")} | {"F1", "P1"}
    )  # these two made the reward model
    frozen: dict[str, FrozenLM] = {}
    for F in (part for part in wanted if part[0] == "F"):
        tokenizer, frozen[F] = pipeline.frozen_lm(parts[F], task)
    rho_sft = {P: pipeline.prompter_sft(parts[P], task, tokenizer, frozen["F1"]) for P in wanted if P[0] == "P"}
    reward = pipeline.reward_model(parts["reward"], task, frozen["F1"], rho_sft["P1"])
    oracle, plain, rated, samples = {}, {}, {}, {}
    for F in {cell.split("-")[1]: None for cell in cells}:
        oracle[F] = pipeline.rlhf_oracle(parts[F], task, frozen[F], reward)
        plain[F] = assess.evaluate_plain(parts[F], task, frozen[F], oracle[F], reward)
        rated[F] = assess.rate_rewrites(parts[F], task, frozen[F], reward)
        samples[F] = assess.sample_oracle(parts[F], frozen[F], oracle[F], reward, rated[F])
    found, rho, own = {}, {}, {}
    for cell in cells:
        P, F = cell.split("-")
        run = parts[cell]
        rho[cell] = pipeline.align_pro(run, task, frozen[F], rho_sft[P], reward)
        listing = assess.closed_form(run, rho_sft[P], rho[cell], rated[F], samples[F])
        arms = plain[F] | assess.evaluate_prompters(run, task, frozen[F], rho_sft[P], rho[cell], reward, listing)
        found[cell], own[cell] = assess.conclude(run, arms), arms["align_pro"]
    swap = {
        cell: _swapped(parts, task, cell, frozen, rho_sft, rho, reward, plain, own)
        for cell in cells
        if _other(cell) in cells
    }
    results = {"task": config.task, "preset": config.preset, "seed": config.seed, "cells": found, "swap": swap}
    results["wall_s"] = {
        part: sum(stage["seconds"] for stage in run.stages.values()) for part, run in parts.runs.items()
    }
    write_json(Path(parts.config.out) / "results.json", results)
    return results


def draw(groups: list[dict], config: RunConfig) -> list[Path]:
    """The figures of these groups and of those that earlier commands left beside them, and their numbers in one file.

    A group with a --name of its own is drawn alone, in its folder.
    """
    stem = Path(config.out, f"grid-{config.preset}")
    found = {}
    if config.run_name.startswith(stem.name):
        found = {
            path: json.loads(path.read_text(encoding="utf-8"))
            for path in stem.parent.glob(f"{stem.name}-*/results.json")
        }
    else:
        stem = Path(config.out, config.run_name, stem.name)
    by_run = {(g["task"], g["seed"]): g for g in (*found.values(), *groups)}
    groups = [by_run[key] for key in sorted(by_run)]
    mean, variance, numbers = (stem.with_name(stem.name + end) for end in (".png", "-variance.png", ".json"))
    plots.grid_figure(groups, mean)
    plots.variance_figure(groups, variance)
    write_json(numbers, {"groups": groups})
    return [mean, variance, numbers]


def _other(cell: str) -> str:
    """The cell with the same prompter and the other frozen model."""
    return cell.replace("F1", "F3").replace("F2", "F1").replace("F3", "F2")


def _swapped(
    parts: Parts,
    task,
    cell: str,
    frozen: dict[str, FrozenLM],
    rho_sft: dict[str, Prompter],
    rho: dict[str, Prompter],
    reward: pipeline.Reward,
    plain: dict[str, dict[str, Arm]],
    own: dict[str, Arm],
) -> dict:
    """The cell's prompter in front of the other frozen model: against no prompter there, and against the one trained for it."""
    P, away, n = cell.split("-")[0], _other(cell).split("-")[1], parts.config.eval.bootstrap
    arm = assess.evaluate_swapped(parts[f"{cell}-swapped"], task, frozen[away], rho_sft[P], rho[cell], reward)
    return {
        "in_front_of": away,
        "mean": float(arm.reward.mean()),
        "variance": float(arm.reward.var(ddof=1)),
        "against_no_finetuning": paired(arm, plain[away]["no_finetuning"], n),
        "against_its_own_prompter": paired(arm, own[_other(cell)], n),
    }
