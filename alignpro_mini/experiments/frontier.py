"""Reward against KL over a sweep of lambda, with the exact optimum as a curve.

    python -m alignpro_mini.experiments.frontier --lambdas 0.02,0.05,0.1,0.2,0.5

    <out>/frontier-<preset>-<task>-seed<k>/
        base/           the frozen LM, the SFT prompter, the reward model, R over the enumerated rewrites
        lam-0.1/ ...    Align-Pro and the RLHF oracle trained at this KL coefficient
        results.json, frontier.png
    <out>/frontier-<preset>.png, .json      all tasks and seeds of the command: Align-Pro and the oracle over the KL
                                            coefficient, and at equal KL of the answers

    closed form    (KL, J) of rho* as lambda runs from large to small, twice: rated by the answers that chose it, which
                   makes it too high, and by other answers, which makes it too low; the truth lies between
    Align-Pro      (KL, J) of the trained prompters, on the same enumerated rewrites: exact
    best-of-n      the same for the distribution of its picks: chosen by one half of the answers, rated by the other
    RLHF           mean reward on the same requests, against the KL of *answers*: another quantity, for comparison.
                   In the figure of all runs Align-Pro's KL is that of its answers too (`optimum.induced_kl`).
                   A trained oracle is not the best one: the last table compares J - beta KL with the optimum's.

Rewards are in the units that PPO sees, those of lambda (a callable is shifted and scaled; the learned reward already
is). What it leaves out: settings other than lambda.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alignpro_mini import theory
from alignpro_mini.experiments import frontier_report
from alignpro_mini.frozen import FrozenLM, FrozenModel
from alignpro_mini.lab import assess, optimum, pipeline
from alignpro_mini.lab.cli import one_line_errors, parse_command_line
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.evaluation import Evaluator
from alignpro_mini.lab.optimum import Listing, RatedRewrites
from alignpro_mini.lab.run import Run, RunStage
from alignpro_mini.lab.statistics import bootstrap_interval
from alignpro_mini.lab.sweep import ARM_OPTIONS, exit_if_failed, leave, not_read, run_all
from alignpro_mini.options import require
from alignpro_mini.weights.tensors import write_json

PROG = "alignpro_mini.experiments.frontier"
BEST_OF = (2, 4, 8, 16, 32)


def base(config: RunConfig, folder: Path, resume: bool):
    """What runs that differ in PPO alone share, kept in `folder`/base: world, pi_F, rho_sft, reward, rated rewrites."""
    world = pipeline.make_world(config)
    run = Run(replace(config, out=str(folder), name="base"), resume)
    tokenizer, pi_f = pipeline.frozen_lm(run, world)
    rho_sft = pipeline.prompter_sft(run, world, tokenizer, pi_f)
    reward = pipeline.reward_model(run, world, pi_f, rho_sft)
    return world, pi_f, rho_sft, reward, assess.rate_rewrites(run, world, pi_f, reward)


def run_frontier(config: RunConfig, resume: bool, lams: Sequence[float]) -> dict:
    """Train at each KL coefficient, measure, draw; returns (and writes) {"task", "seed", "closed_form", ...}."""
    folder = Path(config.out) / config.run_name
    world, pi_f, rho_sft, reward, rated = base(config, folder, resume)
    untrained, points = rated.under(rho_sft, rho_sft), []
    for lam in lams:
        ppo, oracle = (replace(c, kl_coef=lam, adaptive_kl_target=0.0) for c in (config.ppo, config.oracle))
        run = Run(replace(config, out=str(folder), name=f"lam-{lam:g}", ppo=ppo, oracle=oracle), resume)
        rho = pipeline.align_pro(run, world, pi_f, rho_sft, reward)
        oracle = pipeline.rlhf_oracle(run, world, pi_f, reward)
        ours = rated.under(rho_sft, rho)
        kl = run.json("answer_kl", partial(_answer_kl, run, ours, pi_f))
        point = {"lam": lam, "kl": float(theory.kl(ours.rho, ours.rho_sft).mean())} | kl
        point |= {"mean": float(theory.value(ours.rho, ours.R))} | optimum.describe(ours, lam)
        if oracle is not None:
            point |= _rlhf(run, rated, pi_f, oracle, reward) | {"rlhf_optimum": rlhf_optimum(rated.r[:, 0], lam)}
        points.append(point)
    results = {key: getattr(config, key) for key in ("task", "preset", "seed")}
    results |= {"no_finetuning": float(rated.R[:, 0].mean()), "closed_form": closed_form_curve(untrained, lams)}
    results |= {"align_pro": points, "best_of_n": best_of_n(untrained, config.seed)}
    write_json(folder / "results.json", results)
    frontier_report.frontier_figure(results, folder / "frontier.png")
    return results


def _answer_kl(run: Run, listing: Listing, pi_f: FrozenModel, stage: RunStage) -> dict[str, float | None]:
    """KL of Align-Pro's answers, as RLHF's is one of answers; None where it needs weights or a temperature above 0."""
    if not isinstance(pi_f, FrozenLM) or pi_f.sampling.temperature == 0:
        return {"answer_kl": None}
    return {"answer_kl": optimum.induced_kl(listing, pi_f, 8, run.generator("answer_kl"))}


def _rlhf(run: Run, rated: RatedRewrites, pi_f: FrozenLM, oracle: FrozenLM, reward: pipeline.Reward) -> dict:
    """RLHF in the units and on the requests of the enumerated rewrites: KL of its answers, mean, gain with its CI."""

    def make(stage: RunStage) -> dict:
        many = replace(run.config.eval, inputs=len(rated.requests), rewrites=1, answers=run.config.theory.answers)
        arm = Evaluator(rated.requests, pi_f, reward.train, None, many, run.generator("rlhf")).oracle(oracle, pi_f)
        gain = arm.reward.mean((1, 2)) - rated.R[:, 0].numpy()  # (N,) to the plain request's
        found = {"kl": arm.kl.mean(), "mean": arm.reward.mean(), "gain": gain.mean()}
        ci95 = bootstrap_interval(gain, run.config.eval.bootstrap)
        return {f"rlhf_{key}": float(value) for key, value in found.items()} | {"rlhf_gain_ci95": ci95}

    return run.json("rlhf", make)


def rlhf_optimum(r: Tensor, beta: float) -> float:
    """The most that RLHF can reach, max over pi of J(pi) - beta KL(pi || pi_F), from rewards (N, M) of pi_F's answers.

    That is beta E_x log E exp(r / beta), by M answers too low on average (Jensen). NaN in r: no answer.
    """
    answered, r = (~r.isnan()).double(), r.nan_to_num()
    pi_f = answered / answered.sum(1, keepdim=True)  # each answer is a draw of pi_F
    return float(theory.regularised_value(theory.optimal_prompter(pi_f, r, beta), pi_f, r, beta))


def closed_form_curve(listing: Listing, lams: Sequence[float], points: int = 60) -> list[dict[str, float]]:
    """rho* for KL coefficients from ten times the largest of `lams` down to the smallest, with the variance on the way.

    R is noisy, and rho* leans on what came out high: `mean`, by the same answers, is too high. `kl_held_out` and
    `mean_held_out` are those of the optimum by one half of the answers, rated by the other half (both ways, averaged):
    a prompter that exists, and so too low. `between_rewrites` and `within` and their derivatives along 1/lambda are
    `theory.along_eta`'s.
    """
    found, halves = [], listing.halves  # (N, K) each
    for lam in np.geomspace(10 * max(lams), min(lams), points).tolist():
        along = theory.along_eta(listing.rho_sft, listing.R, listing.V, 1 / lam)
        star = theory.optimal_prompter(listing.rho_sft, listing.R, lam)
        found.append({"lam": lam, "kl": float(theory.kl(star, listing.rho_sft).mean())} | along)
        for chose, rates in (halves, halves[::-1]):
            other = theory.optimal_prompter(listing.rho_sft, chose, lam)
            point = {"kl": theory.kl(other, listing.rho_sft).mean(), "mean": theory.value(other, rates)}
            for key, value in point.items():
                found[-1][f"{key}_held_out"] = found[-1].get(f"{key}_held_out", 0.0) + float(value) / 2
    return found


def best_of_n(listing: Listing, seed: int, draws: int = 4000) -> list[dict[str, float]]:
    """Best-of-n's picks, simulated: n rewrites of rho_sft, one answer each, the best answer's rewrite.

    The picks of `draws` tries an input give a distribution over rewrites, whose KL and J are then exact, but for a KL
    that is too high by about (K - 1) / (2 draws) nats. Picks are made by the first half of the answers and rated by the
    second: an answer chosen for its reward is biased. Raises ValueError for a single answer a rewrite.
    """
    g = torch.Generator().manual_seed(seed)
    N, K, _ = listing.r.shape
    M = int(listing.answers.min())  # the best rewrites have more
    if M < 2:
        raise ValueError("best-of-n needs two answers a rewrite at least: one to choose by, one to rate")
    chosen_by, rated_by = listing.r[:, :, : M // 2], listing.r[:, :, M // 2 :].nanmean(2)  # (N, K, M/2), (N, K)
    found = []
    for n in BEST_OF:
        picked = torch.zeros(N, K, dtype=torch.float64)
        for i in range(N):
            rewrite = torch.multinomial(listing.rho_sft[i], draws * n, replacement=True, generator=g).view(draws, n)
            answer = torch.randint(M // 2, (draws, n), generator=g)  # (draws, n)
            best = chosen_by[i][rewrite, answer].argmax(1, keepdim=True)  # (draws, 1)
            picked[i] = rewrite.gather(1, best)[:, 0].bincount(minlength=K).double() / draws
        point = {"n": n, "kl_bound": float(np.log(n) - (n - 1) / n)}
        point["kl"] = float(theory.kl(picked, listing.rho_sft).mean())
        found.append(point | {"mean": float(theory.value(picked, rated_by))})
    return found


def lambdas(text: str, option: str = "lambdas") -> list[float]:
    """'0.1,0.2' -> [0.1, 0.2]. Raises UserError, naming the option, for anything but numbers above 0."""
    try:
        found = list({f"{float(lam):g}": float(lam) for lam in text.split(",")}.values())  # a folder each, named by %g
    except ValueError:
        found = [math.nan]
    good = all(0 < lam < math.inf for lam in found)
    require(good, f"--{option}: {text!r} is not a list of numbers above 0, such as 0.05,0.1,0.2")
    return found


def main() -> None:
    """The command at the top of this module."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--lambdas", default="0.02,0.05,0.1,0.2,0.5", help="KL coefficients (default: %(default)s)")

    varied = [f"{section}.{name}" for section in ("ppo", "oracle") for name in ("kl_coef", "adaptive_kl_target")]
    configs, how = parse_command_line(prog=PROG, add=add, unread=not_read(*ARM_OPTIONS, varied=varied))
    with one_line_errors(PROG):
        require_enumerable(configs[0])
        configs = [replace(c, name=f"frontier-{c.run_name}") for c in configs]
        results, failed = run_all(["-m", PROG], configs, how, partial(run_frontier, lams=lambdas(how.lambdas)))
    if results and not how.child:
        path = Path(configs[0].out) / f"frontier-{configs[0].preset}.png"
        tables = (frontier_report.frontier_table, frontier_report.beta_table, frontier_report.objective_table)
        leave(results, path, frontier_report.beta_figure, "\n\n".join(table(results) for table in tables))
    exit_if_failed(PROG, configs, failed)


def require_enumerable(config: RunConfig) -> None:
    """Raises UserError where there is no exact optimum to compare with."""
    one_coefficient = config.ppo.kl_coef > 0 and not config.ppo.adaptive_kl_target
    known = "the optimum is known for the embedded world and one KL coefficient above 0 only"
    mend = "leave out --preset smollm2, --theory.inputs 0 and --ppo.adaptive_kl_target"
    require(not config.real_model and config.theory.inputs > 0 and one_coefficient, f"{known}: {mend}")


if __name__ == "__main__":
    main()
