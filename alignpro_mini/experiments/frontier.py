"""Reward against KL over a sweep of lambda, with the exact optimum as a curve.

    python -m alignpro_mini.experiments.frontier --lambdas 0.02,0.05,0.1,0.2,0.5

    closed form    (KL, J) of rho* as lambda runs from large to small, twice: rated by the answers that chose it, which
                   makes it too high, and by other answers, which makes it too low; the truth lies between
    Align-Pro      (KL, J) of prompters trained at some lambda, on the same enumerated rewrites: exact
    RLHF           the oracle trained at the same coefficient: mean reward on the same requests, against the KL of
                   *answers*, another quantity. The figure of all runs has Align-Pro's KL of answers too

A cell's folder has base/, lam-0.1/, ..., and frontier.png, the figure of its run. Rewards are in the units that PPO
sees, those of lambda (a callable is shifted and scaled; the learned reward already is). What it leaves out: settings
other than lambda.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from alignpro_mini import theory
from alignpro_mini.experiments import study
from alignpro_mini.frozen import FrozenLM
from alignpro_mini.lab import optimum
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.glossary import ARMS, TRIO
from alignpro_mini.lab.optimum import Listing
from alignpro_mini.lab.plots import new_figure
from alignpro_mini.lab.run import Run, RunStage
from alignpro_mini.lab.statistics import bootstrap_interval, t_interval
from alignpro_mini.lab.sweep import by_task


def run_frontier(config: RunConfig, resume: bool, lambdas: Sequence[float]) -> dict:
    """Train at each KL coefficient, measure, draw; returns {"task", "seed", "closed_form", ...}."""
    shared = study.Stages(config, resume)
    untrained = shared.rated.under(shared.rho_sft, shared.rho_sft)
    points = []
    for lam in lambdas:
        options = {"ppo.kl_coef": lam, "ppo.adaptive_kl_target": 0.0}  # the oracle follows
        points.append(_point(shared, study.part(config, resume, f"lam-{lam:g}", options), lam))
    results = {key: getattr(config, key) for key in ("task", "preset", "seed")}
    results["no_finetuning"] = float(untrained.R[:, 0].mean())
    results["closed_form"] = closed_form_curve(untrained, lambdas)
    results["align_pro"] = points
    run_figure(results, study.folder(config) / "frontier.png")
    return results


def _point(shared: study.Stages, run: Run, lam: float) -> dict:
    """Align-Pro and the oracle, trained in this run at one KL coefficient."""
    listing = shared.rated.under(shared.rho_sft, shared.align_pro(run))
    oracle = shared.oracle(run)
    point = {"lam": lam, "kl": float(theory.kl(listing.rho, listing.rho_sft).mean())}
    point |= run.json("answer_kl", partial(_answer_kl, shared, run, listing))
    point["mean"] = float(theory.value(listing.rho, listing.R))
    point |= optimum.describe(listing, lam)
    if oracle is not None:
        point |= run.json("rlhf", partial(_rlhf, shared, run, oracle))
        point["rlhf_optimum"] = rlhf_optimum(listing.r[:, 0], lam)
    return point


def _answer_kl(shared: study.Stages, run: Run, listing: Listing, stage: RunStage) -> dict[str, float | None]:
    """KL of Align-Pro's answers, as RLHF's is one of answers; None where it needs weights or a temperature above 0."""
    pi_f = shared.pi_f
    if not isinstance(pi_f, FrozenLM) or pi_f.sampling.temperature == 0:
        return {"answer_kl": None}
    return {"answer_kl": optimum.induced_kl(listing, pi_f, 8, run.generator("answer_kl"))}


def _rlhf(shared: study.Stages, run: Run, oracle: FrozenLM, stage: RunStage) -> dict:
    """RLHF in the units and on the requests of the enumerated rewrites: KL of its answers, mean, gain with its CI."""
    rated = shared.rated
    counts = replace(run.config.eval, inputs=len(rated.requests), rewrites=1, answers=run.config.theory.answers)
    arm = shared.evaluator(run, "rlhf", rated.requests, counts).oracle(oracle, shared.pi_f)
    gain = arm.reward.mean((1, 2)) - rated.R[:, 0].numpy()  # (N,) to the plain request's
    return {
        "rlhf_kl": float(arm.kl.mean()),
        "rlhf_mean": float(arm.reward.mean()),
        "rlhf_gain": float(gain.mean()),
        "rlhf_gain_ci95": bootstrap_interval(gain, run.config.eval.bootstrap),
    }


def rlhf_optimum(r: Tensor, beta: float) -> float:
    """The most that RLHF can reach, max over pi of J(pi) - beta KL(pi || pi_F), from rewards (N, M) of pi_F's answers.

    That is beta E_x log E exp(r / beta), by M answers too low on average (Jensen). NaN in r: no answer.
    """
    answered = (~r.isnan()).double()
    r = r.nan_to_num()
    pi_f = answered / answered.sum(1, keepdim=True)  # each answer is a draw of pi_F
    return float(theory.regularised_value(theory.optimal_prompter(pi_f, r, beta), pi_f, r, beta))


def closed_form_curve(listing: Listing, lambdas: Sequence[float], points: int = 60) -> list[dict[str, float]]:
    """rho* for KL coefficients from ten times the largest down to the smallest, with the variance on the way.

    R is noisy, and rho* leans on what came out high: `mean`, by the same answers, is too high. `kl_held_out` and
    `mean_held_out` are cross-fitted, and so too low. `between_rewrites` and `within` and their derivatives along
    1/lambda are `theory.along_eta`'s.
    """
    curve = []
    for lam in np.geomspace(10 * max(lambdas), min(lambdas), points).tolist():

        def held_out(chose: Tensor, rates: Tensor, lam: float = lam) -> dict[str, float]:
            star = theory.optimal_prompter(listing.rho_sft, chose.nanmean(2), lam)  # (N, K)
            kl, mean = theory.kl(star, listing.rho_sft).mean(), theory.value(star, rates.nanmean(2))
            return {"kl_held_out": float(kl), "mean_held_out": float(mean)}

        star = theory.optimal_prompter(listing.rho_sft, listing.R, lam)  # (N, K)
        point = {"lam": lam, "kl": float(theory.kl(star, listing.rho_sft).mean())}
        point |= theory.along_eta(listing.rho_sft, listing.R, listing.V, 1 / lam)
        curve.append(point | optimum.cross_fitted(held_out, listing.halves))
    return curve


# ---------------------------------------------------------------- table


def by_point(runs: list[dict]) -> dict[tuple, list[dict]]:
    """{(task, KL coefficient): its points, one a seed}, each with its run's reward without fine-tuning."""
    rows: dict[tuple, list[dict]] = {}
    for run in (run for of_task in by_task(runs).values() for run in of_task):
        for point in run["align_pro"]:
            point = {"start": run["no_finetuning"], "matched": at_matched_kl(run, point)} | point
            rows.setdefault((run["task"], point["lam"]), []).append(point)
    return rows


def at_matched_kl(run: dict, point: dict) -> float | None:
    """The oracle's reward at this point's KL of answers, by straight lines in the root of the KL between its points.

    The root, because a reward rises about with it near the start: lines in the KL would lie below the oracle's curve.
    None beyond the oracle's largest KL, or without an oracle.
    """
    if point.get("answer_kl") is None or "rlhf_kl" not in point:
        return None
    curve = sorted([(0.0, run["no_finetuning"]), *((p["rlhf_kl"], p["rlhf_mean"]) for p in run["align_pro"])])
    if point["answer_kl"] > curve[-1][0]:
        return None
    kl, mean = zip(*curve)
    return float(np.interp(max(point["answer_kl"], 0.0) ** 0.5, np.sqrt(np.maximum(kl, 0.0)), mean))


def gap_closed(point: dict) -> float | None:
    """Share of the oracle's gain; None where that gain is not shown."""
    shown = point.get("rlhf_gain_ci95", [0.0])[0] > 0
    return (point["mean"] - point["start"]) / point["rlhf_gain"] if shown else None


def objective(mean: str, kl: str) -> Callable[[dict], float | None]:
    """What RLHF maximises, J - beta KL of answers, from these keys of a point."""
    return lambda p: None if p.get(kl) is None else p[mean] - p["lam"] * p[kl]


def oracle_share(point: dict) -> float | None:
    """The most that the oracle takes of the optimum's gain in J - beta KL over no fine-tuning."""
    best, start = point.get("rlhf_optimum"), point["start"]
    return (
        None if best is None or best <= start else (objective("rlhf_mean", "rlhf_kl")(point) - start) / (best - start)
    )


AT_EQUAL_KL = {  # Align-Pro and the oracle at the same KL coefficient and at the same KL of answers
    "Align-Pro": lambda p: p["mean"],
    "attain. share": lambda p: p.get("attainable_gain_share"),
    "its KL of answers": lambda p: p.get("answer_kl"),
    "oracle": lambda p: p.get("rlhf_mean"),
    "its KL": lambda p: p.get("rlhf_kl"),
    "gap closed, same coefficient": gap_closed,
    "Align-Pro - oracle, same KL": lambda p: None if p["matched"] is None else p["mean"] - p["matched"],
}
OBJECTIVE = {
    "J - β KL: no fine-tuning": lambda p: p["start"],
    "Align-Pro": objective("mean", "answer_kl"),
    "oracle": objective("rlhf_mean", "rlhf_kl"),
    "optimum, at least": lambda p: p.get("rlhf_optimum"),
    "oracle's share": oracle_share,
}


def table(content: dict) -> str:
    """Align-Pro and the oracle, and what RLHF maximises; means over the seeds."""
    points = by_point(content["runs"])
    return "\n\n".join(study.seed_table(("task", "λ = β"), points, columns) for columns in (AT_EQUAL_KL, OBJECTIVE))


# ---------------------------------------------------------------- figures


def run_figure(results: dict, path: Path) -> None:
    """One run: reward against KL, the closed form as curves, the others from point to point; beside it the variance."""
    picture, axes = new_figure(path, 1, 2, (13, 5.6))
    ax, spread = axes[0]
    curve = results["closed_form"]
    along = {key: np.array([p[key] for p in curve]) for key in curve[0]}
    along["both"] = along["between_rewrites"] + along["within"]
    for part, shade in (("between_rewrites", "#cc79a7"), ("within", "#56b4e9"), ("both", "black")):
        spread.plot(along["kl"], along[part], color=shade, label=part.replace("_", " "))
    spread.set(xlabel="KL of the optimum to the reference, nats", ylabel="variance of the reward for one request")
    spread.set(ylim=(0, None), title="the variance along the closed form")
    spread.legend(frameon=False)
    name, colour = ARMS["closed_form"]
    for end, style, label in (("", "-", "rated by the same answers"), ("_held_out", "--", "rated by other answers")):
        ax.plot(along[f"kl{end}"], along[f"mean{end}"], style, color=colour, lw=2, label=f"{name}, {label}")
    for arm, points, kl, mean in (
        ("align_pro", results["align_pro"], "kl", "mean"),
        ("rlhf_oracle", [p for p in results["align_pro"] if "rlhf_kl" in p], "rlhf_kl", "rlhf_mean"),
    ):
        name, colour = ARMS[arm]
        label = name + (" (KL of answers)" if arm == "rlhf_oracle" else "")
        ax.plot([p[kl] for p in points], [p[mean] for p in points], "o:", color=colour, label=label)
    ax.axhline(results["no_finetuning"], color=ARMS[TRIO[0]][1], linestyle="--", label=ARMS[TRIO[0]][0])
    title = f"task {results['task']}, seed {results['seed']}"
    ax.set(xlabel="KL to the reference, nats", ylabel="mean reward", title=title)
    study.legend_and_save(picture, axes, path)


def figure(content: dict, path: Path) -> None:
    """A row a task: reward against the KL coefficient, and against the KL of answers; means and 95 % intervals."""
    tasks = by_task(content["runs"])
    picture, axes = new_figure(path, len(tasks), 2, (12, 4.2 * len(tasks)))
    for (left, right), (task, runs) in zip(axes, tasks.items()):
        at_each = list(zip(*(run["align_pro"] for run in runs)))  # at each KL coefficient: a point a seed
        lams = [points[0]["lam"] for points in at_each]
        for arm, mean, kl, mark in (
            ("align_pro", "mean", "answer_kl", "o"),
            ("rlhf_oracle", "rlhf_mean", "rlhf_kl", "s"),
        ):
            rewards, kls = ([t_interval([p.get(key) for p in points]) for points in at_each] for key in (mean, kl))
            name, colour = ARMS[arm]
            style = {"fmt": f"{mark}-", "color": colour, "label": name, "capsize": 3}
            for ax, x in ((left, lams), (right, [value for value, _ in kls])):
                if None not in (*x, *(value for value, _ in rewards)):
                    ax.errorbar(x, [value for value, _ in rewards], [half or 0 for _, half in rewards], **style)
        name, grey = ARMS[TRIO[0]]
        for ax in (left, right):
            ax.axhline(np.mean([run["no_finetuning"] for run in runs]), color=grey, linestyle="--", label=name)
            ax.set(ylabel="mean reward", title=f"{task}, {len(runs)} seeds")
        left.set(xscale="log", xlabel="KL coefficient: λ of Align-Pro, β of the oracle")
        left.set_xticks(lams, [f"{lam:g}" for lam in lams])
        left.minorticks_off()
        right.set(xlabel="KL of the answers to those of no fine-tuning, nats")
    study.legend_and_save(picture, axes, path)


STUDY = study.Study(
    "frontier",
    cell=run_frontier,
    table=table,
    figures={"": figure},
    options=(study.Option("lambdas", "0.02,0.05,0.1,0.2,0.5", "KL coefficients", study.positive_numbers),),
    varies=("ppo.kl_coef", "ppo.adaptive_kl_target", "oracle.kl_coef", "oracle.adaptive_kl_target"),
    ignores=study.ARM_OPTIONS,
    check=study.require_enumerable,
)

if __name__ == "__main__":
    study.main(STUDY)
