"""The plane of mean and variance: exact prompters and exact RLHF, without training anything.

    python -m alignpro_mini.experiments.plane --task all --seed 0-2 --jobs 2

In the paper Align-Pro has a higher mean and a lower variance than no fine-tuning, and a lower mean *and* a lower
variance than RLHF of the LM. Is there a KL coefficient of each, lambda and beta, for which all of this holds?

    prompter   rho*, the closed form over the listed rewrites, along lambda: rated by other answers than chose it
    RLHF       its exact optimum pi* ~ pi_F exp(r / beta), along beta: pi_F's own answers, weighted anew
    fixed      every single rewrite, the same for all requests

Rewards: the learned one, and the true one in its units (shifted and scaled as the learned reward is: mean 0, variance 1
over answers to the SFT prompter's rewrites). Small beta needs many answers: `effective` says how many really count.

Shape legend:  N requests   K listed rewrites   M answers to each   A answers to the request itself
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from alignpro_mini.experiments import study
from alignpro_mini.lab import optimum, rewards
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.glossary import ARMS
from alignpro_mini.lab.optimum import moments_at_optimum, moments_of_kind
from alignpro_mini.lab.plots import new_figure
from alignpro_mini.lab.sweep import by_task
from alignpro_mini.options import require
from alignpro_mini.reward import moments as moments_of
from alignpro_mini.training import Score

LAMBDAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
BETAS = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
LEAST_EFFECTIVE = 8  # answers a request: with fewer the weighted sample says little of pi*


def run_plane(config: RunConfig, resume: bool, plain_answers: int) -> dict:
    """One task and seed: {"task", "seed", "rewards": {"learned" or "gold": points of the plane}}."""
    shared = study.Stages(config, resume)
    requests = shared.world.eval_requests[: config.theory.inputs]
    listed = [shared.world.rewrites(x) for x in requests]
    rho_sft = optimum.log_probabilities(shared.rho_sft, requests, listed).softmax(1)  # (N, K)
    found = {}
    for name, score_of in (("learned", lambda: shared.reward.train), ("gold", lambda: true_reward(shared))):
        # The number of answers is no option of a run, so the stage's name holds it.
        make = lambda stage, score_of=score_of: (rate(shared, requests, listed, score_of(), plain_answers), {})
        tensors, _ = shared.run.tensors(f"plane_{name}_{plain_answers}", make)
        found[name] = points(rho_sft, tensors["r"], tensors["plain"])
    return {"task": config.task, "seed": config.seed, "rewards": found}


def true_reward(shared: study.Stages) -> Score:
    """The gold reward, in units of answers to rho_sft's rewrites, as a learned reward is."""
    requests, answers = rewards.answers_to_rewrites(shared.run, shared.world, shared.pi_f, shared.rho_sft)
    gold = lambda x, y: torch.tensor(shared.world.gold(x, y), dtype=torch.float32)
    unit = moments_of(gold(requests, answers))
    return lambda x, y: (gold(x, y) - unit["mean"]) / unit["std"]


def rate(
    shared: study.Stages, requests: list[str], listed: list[list[str]], score: Score, answers: int
) -> dict[str, Tensor]:
    """Rewards r (N, K, M) of answers to every listed rewrite, and plain (N, A) of answers to the request."""
    c = shared.run.config.theory
    draw = shared.run.generator("plane")
    rated = optimum.rate(requests, listed, shared.pi_f, score, c.answers, draw, c.more_answers)
    plain = optimum.rate(requests, [[x] for x in requests], shared.pi_f, score, answers, draw)
    return {"r": rated.r, "plain": plain.r[:, 0]}


def points(rho_sft: Tensor, r: Tensor, plain: Tensor) -> dict[str, list[dict]]:
    """Mean and variance of the reward for each way to answer."""
    point = lambda found: {"mean": found["mean"], "variance": found["total"]}
    return {
        "plain": [point(moments_of_kind(plain[:, None], 0))],
        "prompter": [{"lam": lam} | point(moments_at_optimum(rho_sft, r, lam)) for lam in LAMBDAS],
        "rlhf": [{"beta": beta} | rlhf(plain, beta) for beta in BETAS],
        "fixed": [{"kind": kind} | point(moments_of_kind(r, kind)) for kind in range(r.shape[1])],
    }


def rlhf(plain: Tensor, beta: float) -> dict[str, float]:
    """RLHF's optimum from rewards (N, A) of the frozen LM's own answers, each weighted by exp(r / beta).

    `effective`, 1 / sum of squared weights, says how many answers carry the weight, in the request with the fewest.
    """
    weights = (plain / beta).softmax(1)  # (N, A)
    mean = (weights * plain).sum(1)  # (N,)
    within = (weights * (plain - mean[:, None]) ** 2).sum(1)  # (N,)
    effective = 1 / (weights**2).sum(1)
    return {
        "mean": float(mean.mean()),
        "variance": float(within.mean() + mean.var()),
        "effective": float(effective.min()),
    }


def both_orderings(found: dict[str, list[dict]]) -> list[tuple[float, float]]:
    """The (lambda, beta) for which the paper's orderings of mean and of variance both hold."""
    plain = found["plain"][0]

    def hold(ours: dict, oracle: dict) -> bool:
        between = plain["mean"] < ours["mean"] < oracle["mean"]
        return between and ours["variance"] < min(oracle["variance"], plain["variance"])

    enough = [point for point in found["rlhf"] if point["effective"] >= LEAST_EFFECTIVE]
    return [(ours["lam"], point["beta"]) for ours, point in product(found["prompter"], enough) if hold(ours, point)]


# ---------------------------------------------------------------- table and figure


def together(configs: Sequence[RunConfig], results: list[dict], **own) -> dict:
    """All cells, each with the pairs of coefficients for which both orderings hold."""
    with_pairs = lambda found: found | {"both": both_orderings(found)}
    rated = lambda run: {name: with_pairs(found) for name, found in run["rewards"].items()}
    return {"runs": [run | {"rewards": rated(run)} for run in results]}


def table(content: dict) -> str:
    """Means over the seeds of mean and variance at each coefficient; then where both orderings hold."""
    rows: dict[tuple, list[dict]] = {}
    held = []
    for task, runs in by_task(content["runs"]).items():
        for name in runs[0]["rewards"]:
            of = [run["rewards"][name] for run in runs]
            for arm, key in (("plain", None), ("prompter", "lam"), ("rlhf", "beta")):
                for places in zip(*(found[arm] for found in of)):
                    rows[task, name, arm, "–" if key is None else places[0][key]] = list(places)
            best = [max(found["fixed"], key=lambda point: point["mean"]) for found in of]
            rows[task, name, "best fixed rewrite", "–"] = best
            pairs = [{tuple(pair) for pair in found["both"]} for found in of]
            common = sorted(set.intersection(*pairs))
            said = ", ".join(f"λ {lam:g} with β {beta:g}" for lam, beta in common) or "no pair of λ and β"
            held.append(f"{task}, {name} reward: both orderings of the paper hold in every seed for {said}")
    columns = {key: lambda point, key=key: point.get(key) for key in ("mean", "variance", "effective")}
    return study.seed_table(("task", "reward", "arm", "λ or β"), rows, columns) + "\n\n" + "\n".join(held)


def figure(content: dict, path: Path) -> None:
    """A row a task, a column a reward: the first seed's curves in the plane."""
    tasks = by_task(content["runs"])
    picture, axes = new_figure(path, len(tasks), 2, (11, 4.3 * len(tasks)))
    for row, (task, runs) in zip(axes, tasks.items()):
        for ax, (name, found) in zip(row, runs[0]["rewards"].items()):
            for arm, key, colour in (("prompter", "lam", "closed_form"), ("rlhf", "beta", "rlhf_oracle")):
                curve = found[arm]
                label = {"prompter": "exact prompter, along λ", "rlhf": "exact RLHF, along β"}[arm]
                shade = ARMS[colour][1]
                ax.plot([p["mean"] for p in curve], [p["variance"] for p in curve], "o-", color=shade, label=label)
                for point in curve:
                    ax.annotate(f"{point[key]:g}", (point["mean"], point["variance"]), fontsize=7)
            for arm, mark, colour in (("fixed", ".", "fixed_rewrite"), ("plain", "s", "no_finetuning")):
                label, shade = ARMS[colour]
                xs, ys = ([p[key] for p in found[arm]] for key in ("mean", "variance"))
                ax.plot(xs, ys, mark, color=shade, label="each fixed rewrite" if arm == "fixed" else label)
            ax.set(xlabel="mean reward", ylabel="variance", title=f"{task}, {name} reward, seed {runs[0]['seed']}")
    study.legend_and_save(picture, axes, path, columns=4)


def check(configs: Sequence[RunConfig], plain_answers: int) -> None:
    """Raises UserError where there is no closed form, and for too few answers to have a variance."""
    study.require_enumerable(configs)
    require(plain_answers >= 2, f"--plain_answers is {plain_answers}: a variance takes at least 2")
    least = configs[0].theory.answers
    require(least >= 4, f"--theory.answers is {least}: half of them choose and half rate, so it takes at least 4")


STUDY = study.Study(
    "plane",
    cell=run_plane,
    table=table,
    figures={"": figure},
    options=(study.Option("plain_answers", "400", "answers to each request for RLHF's optimum", study.whole_number),),
    ignores=(*study.ARM_OPTIONS, *study.ORACLE_OPTIONS),
    check=check,
    together=together,
)

if __name__ == "__main__":
    study.main(STUDY)
