"""What a nat of KL buys: reward against KL over a sweep of lambda, the exact optimum as a curve.

    <out>/frontier-<preset>-<task>-seed<k>/
        base/           the frozen LM, the SFT prompter, the reward model, R over the listed rewrites
        lam-0.1/ ...    Align-Pro and the RLHF oracle trained at this price
        results.json, frontier.png

    closed form    (KL, J) of rho* as lambda runs from large to small, twice: rated by the answers that chose it, which
                   flatters it, and by answers that did not, which does it wrong; no prompter lies above the truth between
    Align-Pro      (KL, J) of the trained prompters, on the same listed rewrites: exact
    best-of-n      the same for the distribution of its picks: chosen by one half of the answers, rated by the other
    RLHF           mean reward on the same requests, against the KL of *answers*: another budget, told beside it

Rewards are in the units that PPO sees, those of lambda (a callable is shifted and scaled; the learned reward already is).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from alignpro_mini import assess, optimum, pipeline, plots, theory
from alignpro_mini.config import RunConfig
from alignpro_mini.optimum import Listing
from alignpro_mini.run import Run, write_json

BEST_OF = (2, 4, 8, 16, 32)


def base(config: RunConfig, folder: Path, resume: bool):
    """What runs that differ in PPO alone share, kept in `folder`/base: (task, pi_F, rho_sft, reward, rated rewrites)."""
    task = pipeline.make_task(config)
    run = Run(replace(config, out=str(folder), name="base"), resume)
    tokenizer, pi_f = pipeline.frozen_lm(run, task)
    rho_sft = pipeline.prompter_sft(run, task, tokenizer, pi_f)
    reward = pipeline.reward_model(run, task, pi_f, rho_sft)
    return task, pi_f, rho_sft, reward, assess.rate_rewrites(run, task, pi_f, reward)


def run_frontier(config: RunConfig, lams: Sequence[float], resume: bool) -> dict:
    """Train at each price, measure, draw; returns (and writes) {"task", "preset", "seed", "closed_form", "align_pro", ...}."""
    folder = Path(config.out) / config.run_name
    task, pi_f, rho_sft, reward, rated = base(config, folder, resume)
    untrained, points = rated.under(rho_sft, rho_sft), []
    for lam in lams:
        priced = replace(config.ppo, kl_coef=lam, kl_target=0.0), replace(config.oracle, kl_coef=lam, kl_target=0.0)
        run = Run(replace(config, out=str(folder), name=f"lam-{lam:g}", ppo=priced[0], oracle=priced[1]), resume)
        rho = pipeline.align_pro(run, task, pi_f, rho_sft, reward)
        oracle = pipeline.rlhf_oracle(run, task, pi_f, reward)
        ours = rated.under(rho_sft, rho)
        point = {"lam": lam, **_point(ours.rho, ours), **optimum.describe(ours, lam)}
        if oracle is not None:
            point |= assess.evaluate_rlhf(run, rated.requests, pi_f, oracle, reward)
        points.append(point)
    results = {
        "task": config.task,
        "preset": config.preset,
        "seed": config.seed,
        "no_finetuning": float(rated.R[:, 0].mean()),
        "closed_form": closed_form_curve(untrained, lams),
        "align_pro": points,
        "best_of_n": best_of_n(untrained, config.seed),
    }
    write_json(folder / "results.json", results)
    plots.frontier_figure(results, folder / "frontier.png")
    return results


def _point(rho: torch.Tensor, listing: Listing) -> dict[str, float]:
    """Where a prompter (N, K) lies: KL to rho_sft in nats, and J."""
    return {"kl": float(theory.kl(rho, listing.rho_sft).mean()), "mean": float(theory.value(rho, listing.R))}


def closed_form_curve(listing: Listing, lams: Sequence[float], points: int = 60) -> list[dict[str, float]]:
    """rho* for prices from ten times the largest of `lams` down to the smallest, with the variance on the way.

    R is noisy, and rho* leans on what came out high: `mean`, by the same answers, is too high. `kl_held_out` and
    `mean_held_out` are those of the optimum by one half of the answers, rated by the other half (both ways, averaged): a
    prompter that exists, and so too low. `between_rewrites` and `within` and their derivatives along 1/lambda are
    `theory.along_eta`'s.
    """
    found, halves = [], [half.mean(2) for half in listing.r.tensor_split(2, dim=2)]  # (N, K) each
    for lam in np.geomspace(10 * max(lams), min(lams), points).tolist():
        along = theory.along_eta(listing.rho_sft, listing.R, listing.r.var(2), 1 / lam)
        star = theory.optimal_prompter(listing.rho_sft, listing.R, lam)
        found.append({"lam": lam, "kl": float(theory.kl(star, listing.rho_sft).mean())} | along)
        blind = [
            (theory.optimal_prompter(listing.rho_sft, chose, lam), rates) for chose, rates in (halves, halves[::-1])
        ]
        found[-1]["kl_held_out"] = sum(float(theory.kl(p, listing.rho_sft).mean()) for p, _ in blind) / 2
        found[-1]["mean_held_out"] = sum(float(theory.value(p, rates)) for p, rates in blind) / 2
    return found


def best_of_n(listing: Listing, seed: int, draws: int = 4000) -> list[dict[str, float]]:
    """Best-of-n's picks, simulated: n rewrites of rho_sft, one answer each, the best answer's rewrite.

    The picks of `draws` tries an input give a distribution over rewrites, whose KL and J are then exact, but for a KL that
    is too high by about (K - 1) / (2 draws) nats. Picks are made by the first half of the listed answers and rated by the
    second: an answer that was chosen for being good would flatter. Raises ValueError for a single answer a rewrite.
    """
    g = torch.Generator().manual_seed(seed)
    N, K, M = listing.r.shape
    if M < 2:
        raise ValueError("best-of-n needs two answers a rewrite at least: one to choose by, one to rate")
    chosen_by, rated_by = listing.r[:, :, : M // 2], listing.r[:, :, M // 2 :].mean(2)  # (N, K, M/2), (N, K)
    found = []
    for n in BEST_OF:
        picked = torch.zeros(N, K, dtype=torch.float64)
        for i in range(N):
            rewrite = torch.multinomial(listing.rho_sft[i], draws * n, replacement=True, generator=g).view(draws, n)
            answer = torch.randint(M // 2, (draws, n), generator=g)  # (draws, n)
            best = chosen_by[i][rewrite, answer].argmax(1, keepdim=True)  # (draws, 1)
            picked[i] = rewrite.gather(1, best)[:, 0].bincount(minlength=K).double() / draws
        point = {
            "n": n,
            "kl_bound": float(np.log(n) - (n - 1) / n),
            "kl": float(theory.kl(picked, listing.rho_sft).mean()),
        }
        found.append(point | {"mean": float(theory.value(picked, rated_by))})
    return found
