"""When does prompt optimisation lower the variance? The closed form's prediction against trained prompters.

    python -m alignpro_mini.experiments.variance --seed 0-2 --jobs 2                    # all worlds, one table
    python -m alignpro_mini.experiments.variance --worlds quality-plain-0.9 --seed 0    # one world; --resume adds more

A world is a task, `--world.spread` (which prompts get answers of random style: the plain ones or those with a cue) and
`--world.follow` (the probability that an answer obeys a cue). For each of them

    predicted    rho* by the closed form from many rated answers of the frozen LM, before any PPO: mean and the three
                 variance components of the reward along lambda; cross-fitted, because R is noisy
    measured     prompters trained by PPO at some lambda: the same figures from new rewrites and answers, same requests

A cell is a seed; its folder has one for each world. The prediction uses nothing of the trained prompters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from alignpro_mini.alignpro import Prompter
from alignpro_mini.experiments import study
from alignpro_mini.lab.cli import with_options
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.glossary import ARMS, TRIO
from alignpro_mini.lab.optimum import moments_at_optimum, moments_of_kind
from alignpro_mini.lab.plots import new_figure
from alignpro_mini.lab.run import Run, RunStage
from alignpro_mini.lab.statistics import variance_parts
from alignpro_mini.lab.tables import num
from alignpro_mini.options import require

PARTS = {"between_inputs": "#e69f00", "between_rewrites": "#cc79a7", "within": "#56b4e9", "total": "black"}
WORLDS = tuple(
    f"{task}-{spread}-{follow}"
    for task, follows in (("quality", (0.3, 0.5, 0.7, 0.9)), ("attributes", (0.5, 0.9)))
    for spread in ("plain", "cue")
    for follow in follows
)


def run_worlds(config: RunConfig, resume: bool, worlds: Sequence[str], lambdas: Sequence[float]) -> dict:
    """One seed: {"seed", "preset", "worlds": {world: its predictions and measurements}}."""
    begun = lambda world: resume and (study.folder(config) / world / "base" / "stages.json").exists()
    results = {w: run_world(in_world(config, w), resume, lambdas) for w in WORLDS if w in worlds or begun(w)}
    return {"seed": config.seed, "preset": config.preset, "worlds": results}


def in_world(config: RunConfig, world: str) -> RunConfig:
    """The configuration of a world such as "quality-plain-0.9", in a folder of its own."""
    task, spread, follow = world.split("-")
    place = {"out": str(study.folder(config)), "name": world}
    return with_options(config, place | {"task": task, "world.spread": spread, "world.follow": float(follow)})


def run_world(config: RunConfig, resume: bool, lambdas: Sequence[float]) -> dict:
    """One world: {"plain", "curve", "predicted"} by the closed form, {"start", "points"} by new answers."""
    shared = study.Stages(config, resume)
    listing = shared.rated.under(shared.rho_sft, shared.rho_sft)
    run = study.part(config, resume, "no-finetuning", {})
    start = run.json("evaluation", partial(measure, shared, run, None))
    points = []
    for lam in lambdas:
        run = study.part(config, resume, f"lam-{lam:g}", {"ppo.kl_coef": lam})
        points.append({"lam": lam} | run.json("evaluation", partial(measure, shared, run, shared.align_pro(run))))
    grid = np.geomspace(10 * max(lambdas), min(lambdas) / 2, 25).tolist()
    return {
        "plain": moments_of_kind(listing.r, 0),
        "curve": [{"lam": lam} | moments_at_optimum(listing.rho_sft, listing.r, lam) for lam in grid],
        "predicted": [{"lam": lam} | moments_at_optimum(listing.rho_sft, listing.r, lam) for lam in lambdas],
        "start": start,
        "points": points,
    }


def measure(shared: study.Stages, run: Run, prompter: Prompter | None, stage: RunStage) -> dict[str, float]:
    """The same from new rewrites (8 a request) and answers (4 each), by nested ANOVA; and the KL.

    Without a prompter (None): no fine-tuning, 32 answers to each request.
    """
    requests = shared.rated.requests
    counts = replace(run.config.eval, inputs=len(requests), rewrites=8, answers=4)
    evaluator = shared.evaluator(run, "variance", requests, counts)
    arm = evaluator.plain() if prompter is None else evaluator.prompter(prompter, shared.rho_sft)
    parts = variance_parts(arm.reward)
    return parts | {"mean": float(arm.reward.mean()), "total": sum(parts.values()), "kl": float(arm.kl.mean())}


# ---------------------------------------------------------------- table and figure


def in_all(runs: list[dict]) -> list[str]:
    """The worlds that every run has."""
    return [world for world in WORLDS if all(world in run["worlds"] for run in runs)]


def against_plain(world: dict) -> list[dict[str, float]]:
    """Gain and variance ratio to no fine-tuning, predicted and measured, at each lambda of one run's world."""
    rows = []
    for prediction, point in zip(world["predicted"], world["points"]):
        row = {"lam": point["lam"]}
        for kind, values, start in (("predicted", prediction, world["plain"]), ("measured", point, world["start"])):
            row[f"gain {kind}"] = values["mean"] - start["mean"]
            row[f"ratio {kind}"] = values["total"] / start["total"]
        rows.append(row)
    return rows


def table(content: dict) -> str:
    """A row a world and lambda: predicted and measured gain and variance ratio to no fine-tuning, over the seeds."""
    runs = content["runs"]
    rows: dict[tuple, list[dict]] = {}
    for world, run in product(in_all(runs), runs):
        for row in against_plain(run["worlds"][world]):
            rows.setdefault((world, row["lam"]), []).append(row)
    keys = ("gain predicted", "gain measured", "ratio predicted", "ratio measured")
    columns = {key: lambda row, key=key: row[key] for key in keys}
    columns["measured above 1, share"] = lambda row: float(row["ratio measured"] > 1)
    rises = lambda seeds, kind: np.mean([row[f"ratio {kind}"] for row in seeds]) > 1
    agree = sum(rises(seeds, "predicted") == rises(seeds, "measured") for seeds in rows.values())
    by_rule = sum(("cue" in world) == rises(seeds, "measured") for (world, _), seeds in rows.items())
    lines = [study.seed_table(("world", "λ"), rows, columns), ""]
    lines.append(f"predicted and measured ratio on the same side of 1: {agree} of {len(rows)} rows")
    lines.append(f"by the rule that plain falls and cue rises: {by_rule}")
    rms = lambda errors: num(np.sqrt(np.mean(np.square(errors))))
    for spread, key in product(("plain", "cue"), ("gain", "ratio")):
        of_spread = [row for (world, _), seeds in rows.items() if spread in world for row in seeds]
        if of_spread:
            prediction, measured = np.array([[row[f"{key} predicted"], row[f"{key} measured"]] for row in of_spread]).T
            errors = f"{rms(measured - prediction)}, of measured - its own mean {rms(measured - measured.mean())}"
            lines.append(f"spread {spread}, root mean square of measured - predicted {key}: {errors}")
    return "\n".join(lines)


def figure(content: dict, path: Path) -> None:
    """A panel a world, along 1/lambda: predicted components as curves (mean of seeds), trained prompters as points."""
    worlds = in_all(content["runs"])
    columns = min(4, max(1, len(worlds)))
    rows = -(-len(worlds) // columns) or 1
    picture, axes = new_figure(path, rows, columns, (4.1 * columns, 3.4 * rows), sharex=True)
    for ax, world in zip(axes.flat, worlds):
        runs = [run["worlds"][world] for run in content["runs"]]
        for name, colour in PARTS.items():
            curve = np.mean([[p[name] for p in run["curve"]] for run in runs], axis=0)
            ax.plot([1 / p["lam"] for p in runs[0]["curve"]], curve, color=colour, linewidth=1.3)
            points = [(1 / p["lam"], p[name]) for run in runs for p in run["points"]]
            ax.plot(*zip(*points), "o", markersize=4, color=colour, alpha=0.7, label=name.replace("_", " "))
        name, grey = ARMS[TRIO[0]]
        ax.axhline(np.mean([run["start"]["total"] for run in runs]), color=grey, linestyle="--", label=f"{name}, total")
        ax.set(title=world, xscale="log", xlabel="1 / λ", ylabel="variance of the reward")
    study.legend_and_save(picture, axes, path, 5)


def check(configs: Sequence[RunConfig], **own) -> None:
    """Raises UserError where there is no closed form, or no variance of each half of the answers."""
    study.require_enumerable(configs)
    answers = configs[0].theory.answers
    require(answers >= 4, f"--theory.answers is {answers}; each half of the answers needs a variance: at least 4")


STUDY = study.Study(
    "variance",
    cell=run_worlds,
    table=table,
    figures={"": figure},
    options=(
        study.Option("worlds", "all", f"all, or some of {', '.join(WORLDS)}", study.names_of(WORLDS)),
        study.Option("lambdas", "0.05,0.2,0.8", "KL coefficients", study.positive_numbers),
    ),
    varies=("task", "ppo.kl_coef", "world.follow", "world.spread"),
    ignores=(*study.ARM_OPTIONS, *study.ORACLE_OPTIONS),
    check=check,
)

if __name__ == "__main__":
    study.main(STUDY)
