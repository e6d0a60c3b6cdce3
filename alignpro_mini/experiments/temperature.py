"""Does the result hold at other temperatures of the frozen model? A finished run, evaluated again at some of them.

    python -m alignpro_mini.experiments.temperature --preset smollm2 --temperatures 0.4,0.7,1 --requests 256

Give the options of the run: its folder is found by them, and its stages are loaded. The prompter was trained at one
temperature; nothing is trained here. At each temperature the arms without fine-tuning, with the SFT prompter and with
the trained one answer the same held-out requests anew. Intervals (95 %) resample topics.

    <run>/temperature-0.4/ ...      the arms, finished ones are loaded again
    <run>/temperature.json, .png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from alignpro_mini.experiments.frontier import lambdas
from alignpro_mini.frozen import FrozenLM
from alignpro_mini.lab import assess, evaluation, pipeline
from alignpro_mini.lab.cli import one_line_errors, parse_command_line
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.plots import new_figure
from alignpro_mini.lab.run import Run
from alignpro_mini.lab.tables import aligned, get, num
from alignpro_mini.options import require
from alignpro_mini.weights.tensors import write_json

PROG = "alignpro_mini.experiments.temperature"


def run_temperatures(config: RunConfig, temperatures: Sequence[float], requests: int) -> dict:
    """All temperatures of one run; returns what is written to temperature.json."""
    world, run = pipeline.make_world(config), Run(config, resume=True)
    mend = "run train.py with the same options first"
    require("align_pro" in run.stages, f"{run.path} holds no trained prompter: {mend}")
    tokenizer, pi_f = pipeline.frozen_lm(run, world)
    rho_sft = pipeline.prompter_sft(run, world, tokenizer, pi_f)
    reward = pipeline.reward_model(run, world, pi_f, rho_sft)
    rho = pipeline.align_pro(run, world, pi_f, rho_sft, reward)
    makers: dict[str, assess.MakeArm] = {
        "no_finetuning": lambda e: e.plain(),
        "untrained_prompter": lambda e: e.prompter(rho_sft, None),  # its KL to itself is 0
        "align_pro": lambda e: e.prompter(rho, rho_sft),
    }
    lm = pipeline.with_weights(pi_f, "another temperature")
    found, few, groups = [], replace(config.eval, inputs=requests), world.groups(world.eval_requests[:requests])
    for T in temperatures:
        sampling = replace(config.sampling, temperature=T)
        place = replace(config, out=str(run.path), name=f"temperature-{T:g}", sampling=sampling, eval=few)
        warm = FrozenLM(lm.model, lm.tokenizer, sampling)
        arms = assess.evaluate(Run(place, resume=True), "arms", world, warm, reward, makers)
        found.append({"temperature": T} | evaluation.summarise(arms, few, groups))
    results = {"trained_at": config.sampling.temperature, "requests": requests, "temperatures": found}
    write_json(run.path / "temperature.json", results)
    figure(results, run.path / "temperature.png")
    return results


def table(results: dict) -> str:
    """A row a temperature."""
    rows = [["temperature", "no fine-tuning", "Align-Pro", "gain", "95% CI", "variance ratio", "95% CI", "truncated"]]
    for point in results["temperatures"]:
        gain = point["arms"]["align_pro"]["difference"]
        means = [num(point["arms"][arm]["mean"]) for arm in ("no_finetuning", "align_pro")]
        trained = " (trained)" if point["temperature"] == results["trained_at"] else ""
        ratio = [num(point["variance_ratio"], 2), num(point["variance_ratio_ci95"], 2)]
        cut = " to ".join(num(get(point, "arms", arm, "truncated"), 2) for arm in ("no_finetuning", "align_pro"))
        rows.append([f"{point['temperature']:g}{trained}", *means, num(gain["mean"]), num(gain["ci95"]), *ratio, cut])
    return aligned(rows)


def figure(results: dict, path: Path) -> None:
    """Variance ratio and gain against temperature, with their intervals."""
    fig, axes = new_figure(path, 1, 2, (8, 3.4))
    points = results["temperatures"]
    ratio = [(p["temperature"], p["variance_ratio"], p["variance_ratio_ci95"]) for p in points]
    gain = [(p["temperature"], *p["arms"]["align_pro"]["difference"].values()) for p in points]
    labels = ("variance, Align-Pro / no fine-tuning", "mean reward, Align-Pro - no fine-tuning")
    for ax, rows, label, level in zip(axes.flat, (ratio, gain), labels, (1, 0)):
        for T, value, ci95 in rows:
            if value is not None:
                ax.errorbar(T, value, [[value - ci95[0]], [ci95[1] - value]], fmt="o", capsize=3, color="#0072b2")
        ax.axhline(level, color="#999999", linestyle="--")
        ax.set(xlabel="temperature of the frozen model", ylabel=label)
    fig.savefig(path)


def main() -> None:
    """The command at the top of this module."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--temperatures", default="0.4,0.7,1", help="temperatures (default: %(default)s)")
        parser.add_argument("--requests", type=int, default=256, help="held-out requests (default: %(default)s)")

    configs, how = parse_command_line(prog=PROG, add=add)
    with one_line_errors(PROG):
        require(len(configs) == 1, "one run at a time: give one task and one seed")
        most = configs[0].eval.inputs
        told = f"--requests is {how.requests}; it takes 2 to {most}, those of --eval.inputs"
        require(2 <= how.requests <= most, told)
        temperatures = lambdas(how.temperatures, "temperatures")  # above 0: a greedy answer has no variance
        print(table(run_temperatures(configs[0], temperatures, how.requests)))


if __name__ == "__main__":
    main()
