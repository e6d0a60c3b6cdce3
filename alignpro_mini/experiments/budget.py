"""Reward against the number of the frozen LM's answers that training used.

    python -m alignpro_mini.experiments.budget --task all --seed 0-2 --jobs 2

Whoever has a model behind an API pays for its answers. So what does each method make of the same number of answers?

    PPO, RLOO        prompters trained by so many answers, each with a schedule of its own
    fixed rewrite    the best single rewrite for all requests, by successive halving: no training
    selector         one of the listed rewrites for each request: ridge regression of the reward on the request's words
    best-of-n        no training; n answers to every request whenever it is used

All but best-of-n are rated on the same held-out requests, by the listed rewrites and many answers to each: a prompter
by its exact probabilities, the closed form cross-fitted. So nothing of a search enters its rating. Best-of-n is rated
as an arm of train.py is. Rewards are in the units that PPO sees.

Shape legend:  N requests   K listed rewrites   F features   B answers
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alignpro_mini import theory
from alignpro_mini.experiments import study
from alignpro_mini.lab import fixed, optimum
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.glossary import ARMS, TRIO
from alignpro_mini.lab.pipeline import answers_of
from alignpro_mini.lab.plots import new_figure
from alignpro_mini.lab.run import RunStage
from alignpro_mini.lab.statistics import t_interval
from alignpro_mini.lab.sweep import by_task
from alignpro_mini.options import require

RIDGE = 1.0  # the penalty of the selector's weights; features are words, 0 or 1
TRAINED = {"PPO": {}, "RLOO": {"ppo.variant": "rloo", "ppo.rewrites_per_request": 4}}
COLOURS = {
    "PPO": ARMS["align_pro"][1],
    "RLOO": "#cc79a7",
    "fixed rewrite": ARMS["fixed_rewrite"][1],
    "selector": "#e69f00",
}


def run_budget(config: RunConfig, resume: bool, shares: Sequence[float]) -> dict:
    """One task and seed: {"task", "seed", "lines": reward without training, "methods": {name: [{answers, mean}]}}."""
    shared = study.Stages(config, resume)
    R = shared.rated.R  # (N, K)
    counts = sorted({max(1, round(share * config.ppo.iterations)) for share in shares})  # of PPO's iterations
    methods = {name: [_trained(shared, config, resume, name, count) for count in counts] for name in TRAINED}
    budgets = [count * answers_of(config) // config.ppo.iterations for count in counts]
    methods["fixed rewrite"] = [
        shared.run.json(f"fixed_{budget}", partial(_fixed, shared, R, budget)) for budget in budgets
    ]
    methods["selector"] = [
        shared.run.json(f"selector_{budget}", partial(_selector, shared, budget)) for budget in budgets
    ]
    start = shared.rated.under(shared.rho_sft, shared.rho_sft)
    best = lambda chose: theory.optimal_prompter(start.rho_sft, chose.nanmean(2), config.ppo.kl_coef)  # (N, K)
    value = lambda chose, rates: {"mean": float(theory.value(best(chose), rates.nanmean(2)))}
    lines = {"no fine-tuning": float(R[:, 0].mean())}
    lines["closed form"] = optimum.cross_fitted(value, shared.rated.halves)["mean"]
    lines |= shared.run.json("best_of_n", partial(_best_of_n, shared))
    return {"task": config.task, "seed": config.seed, "lines": lines, "methods": methods}


def _trained(shared: study.Stages, config: RunConfig, resume: bool, name: str, iterations: int) -> dict:
    """A prompter trained by so many iterations, rated on the listing."""
    run = study.part(config, resume, f"{name}-{iterations}", TRAINED[name] | {"ppo.iterations": iterations})
    listing = shared.rated.under(shared.rho_sft, shared.align_pro(run))
    kl = float(theory.kl(listing.rho, listing.rho_sft).mean())
    return {"answers": answers_of(run.config), "mean": float(theory.value(listing.rho, listing.R)), "kl": kl}


def _fixed(shared: study.Stages, R: Tensor, budget: int, stage: RunStage) -> dict:
    """The fixed rewrite that this many answers find."""
    draw = shared.run.generator(f"fixed {budget}")
    train = shared.world.train_requests
    found = fixed.find_fixed_rewrite(shared.world, train, shared.pi_f, shared.reward.train, budget, draw)
    return {"answers": found["answers"], "mean": float(R[:, found["kind"]].mean()), "kind": found["kind"]}


def _selector(shared: study.Stages, budget: int, stage: RunStage) -> dict:
    """A linear model of each kind's reward, learned from answers to random rewrites of random training requests."""
    draw = shared.run.generator(f"selector {budget}")
    world = shared.world
    picked = torch.randint(len(world.train_requests), (budget,), generator=draw).tolist()
    requests = [world.train_requests[i] for i in picked]
    count = len(world.rewrites(requests[0]))
    kinds = torch.randint(count, (budget,), generator=draw)  # (B,)
    asked = [world.rewrites(x)[k] for x, k in zip(requests, kinds.tolist())]
    answers = [answer.text for answer in shared.pi_f.answer(asked, draw)]
    r = torch.as_tensor(shared.reward.train(requests, answers), dtype=torch.float64)  # (B,)
    words = sorted({word for x in requests for word in x.split()})
    weights = ridge(features(requests, words), kinds, r, count)  # (K, F)
    chosen = (features(shared.rated.requests, words) @ weights.T).argmax(1, keepdim=True)  # (N, 1)
    return {"answers": budget, "mean": float(shared.rated.R.gather(1, chosen).mean())}


def features(requests: Sequence[str], words: Sequence[str]) -> Tensor:
    """1 for each of `words` that a request has, and a constant: (N, F) float64."""
    place = {word: i for i, word in enumerate(words)}
    found = torch.zeros(len(requests), len(words) + 1, dtype=torch.float64)
    found[:, -1] = 1.0
    for row, x in enumerate(requests):
        found[row, [place[word] for word in x.split() if word in place]] = 1.0
    return found


def ridge(phi: Tensor, kinds: Tensor, r: Tensor, count: int) -> Tensor:
    """Weights (K, F) of a ridge regression of r (B,) on the features phi (B, F), for each kind by its own answers."""
    penalty = RIDGE * torch.eye(phi.shape[1], dtype=phi.dtype)
    weights = torch.zeros(count, phi.shape[1], dtype=phi.dtype)
    for k in range(count):
        own = phi[kinds == k]  # (b, F)
        weights[k] = torch.linalg.solve(own.T @ own + penalty, own.T @ r[kinds == k])
    return weights


def _best_of_n(shared: study.Stages, stage: RunStage) -> dict:
    """Best-of-n rewrites and answers on the listed requests: nothing is trained."""
    counts = replace(shared.run.config.eval, inputs=len(shared.rated.requests))
    evaluator = shared.evaluator(shared.run, "best of n", shared.rated.requests, counts)
    n = counts.best_of_n
    arms = {f"best-of-{n} rewrites": evaluator.best_of_n(shared.rho_sft)}
    arms[f"best-of-{n} answers"] = evaluator.best_of_n_answers()
    return {name: float(arm.reward.mean()) for name, arm in arms.items()}


# ---------------------------------------------------------------- table and figure


def _rows(content: dict) -> dict[tuple, list[dict]]:
    rows: dict[tuple, list[dict]] = {}
    for task, runs in by_task(content["runs"]).items():
        for run in runs:
            low, high = run["lines"]["no fine-tuning"], run["lines"]["closed form"]
            of_gain = lambda mean, low=low, high=high: (mean - low) / (high - low) if high > low else None
            share = lambda point, of_gain=of_gain: point | {"share": of_gain(point["mean"])}
            for name, value in run["lines"].items():
                rows.setdefault((task, name, "–"), []).append(share({"mean": value}))
            for name, points in run["methods"].items():
                for place, point in enumerate(points):
                    rows.setdefault((task, name, f"{place + 1} of {len(points)}"), []).append(share(point))
    return rows


COLUMNS = {
    "answers": lambda point: point.get("answers"),
    "mean reward": lambda point: point["mean"],
    "of the closed form's gain": lambda point: point["share"],
}


def table(content: dict) -> str:
    """A row a method and budget: reward, and its gain over no fine-tuning as a share of the closed form's."""
    return study.seed_table(("task", "method", "budget"), _rows(content), COLUMNS)


def figure(content: dict, path: Path) -> None:
    """A panel a task: mean reward against answers used; means over the seeds and 95 % intervals."""
    tasks = by_task(content["runs"])
    picture, axes = new_figure(path, 1, len(tasks), (4.6 * len(tasks), 4.6))
    for ax, (task, runs) in zip(axes[0], tasks.items()):
        for name in runs[0]["methods"]:
            at_each = list(zip(*(run["methods"][name] for run in runs)))
            means = [t_interval([point["mean"] for point in points]) for points in at_each]
            answers = [np.mean([point["answers"] for point in points]) for points in at_each]
            height, half = zip(*((mean, half or 0) for mean, half in means))
            ax.errorbar(answers, height, half, fmt="o-", capsize=3, label=name, color=COLOURS[name])
        styles = ("--", "-", ":", "-.")
        for (name, _), style in zip(runs[0]["lines"].items(), styles):
            value = np.mean([run["lines"][name] for run in runs])
            ax.axhline(value, linestyle=style, color=ARMS[TRIO[0]][1], label=name)
        ax.set(xscale="log", xlabel="answers of the frozen LM in training", ylabel="mean reward", title=task)
    study.legend_and_save(picture, axes, path, columns=4)


def check(configs: Sequence[RunConfig], **own) -> None:
    """Raises UserError where there is no closed form, and for batches that RLOO cannot take."""
    study.require_enumerable(configs)
    rows = configs[0].ppo.batch_size
    group = TRAINED["RLOO"]["ppo.rewrites_per_request"]
    require(rows % group == 0, f"--ppo.batch_size is {rows}; RLOO takes a multiple of {group}")


STUDY = study.Study(
    "budget",
    cell=run_budget,
    table=table,
    figures={"": figure},
    options=(
        study.Option(
            "shares", "0.125,0.25,0.5,1", "shares of PPO's answers that a method gets", study.positive_numbers
        ),
    ),
    varies=("ppo.variant", "ppo.rewrites_per_request"),
    ignores=(*study.ORACLE_OPTIONS, "eval.untrained_arms", "eval.headroom_inputs", "theory.samples"),
    check=check,
)

if __name__ == "__main__":
    study.main(STUDY)
