"""The stages after the training: the exact optimum, the arms on unseen requests, and what follows from them.

An arm is kept as numbers (rewards, true rewards, KL), so that whoever needs it again (a resumed run, another cell of
the grid) loads it instead of asking the models once more.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from alignpro_mini import evaluation, optimum, report
from alignpro_mini.alignpro import Prompter
from alignpro_mini.checkpoint import load_state, save_state
from alignpro_mini.data import FileTask
from alignpro_mini.evaluation import Arm, Evaluator
from alignpro_mini.frozen import FrozenLM
from alignpro_mini.optimum import Listing, OracleSamples, RatedRewrites
from alignpro_mini.pipeline import Reward
from alignpro_mini.run import Run, Stage, write_json
from alignpro_mini.tables import ARMS
from alignpro_mini.theory import optimal_prompter
from alignpro_mini.toyworld import ToyWorld


def rate_rewrites(run: Run, task: ToyWorld | FileTask, pi_f: FrozenLM, reward: Reward) -> RatedRewrites | None:
    """The stage "listing": all listed rewrites of the first evaluation requests, and what they earn, whoever writes them.

    None where there is no exact optimum: for real requests (nothing lists their rewrites), without one fixed price of KL
    above 0, and with `--theory.inputs 0`.
    """
    c = run.config
    if isinstance(task, FileTask) or not c.theory.inputs or c.ppo.kl_coef == 0 or c.ppo.kl_target > 0:
        return None
    requests = task.eval_requests[: c.theory.inputs]
    rewrites = [task.rewrites(x) for x in requests]
    path = run.path / "checkpoints" / "listing.safetensors"
    rated = run.once(
        "listing",
        lambda stage: optimum.rate(requests, rewrites, pi_f, reward.train, c.theory.answers, run.generator("listing")),
        lambda: RatedRewrites(requests, rewrites, load_state(path)[0]["r"]),
        lambda made: save_state(path, {"r": made.r}, {}),
    )
    pi_f.assert_unchanged("listing")
    return rated


def sample_oracle(
    run: Run, pi_f: FrozenLM, oracle: FrozenLM | None, reward: Reward, rated: RatedRewrites | None
) -> OracleSamples | None:
    """What the bounds on the suboptimality ask of the oracle; None where there is no oracle or no chance in an answer."""
    c = run.config
    if rated is None or oracle is None or c.sampling.temperature == 0:
        return None
    path = run.path / "checkpoints" / "theory_oracle.safetensors"
    samples = run.once(
        "theory_oracle",
        lambda stage: optimum.sample_oracle(
            rated, pi_f, oracle, reward.train, c.theory.samples, run.generator("theory")
        ),
        lambda: OracleSamples(**load_state(path)[0]),
        lambda made: save_state(path, {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}, {}),
    )
    pi_f.assert_unchanged("theory_oracle")
    return samples


def closed_form(
    run: Run, rho_sft: Prompter, rho: Prompter, rated: RatedRewrites | None, samples: OracleSamples | None
) -> Listing | None:
    """Stage 7: the exact optimum over the listed rewrites, and how near to it PPO came; None where it does not exist."""
    if rated is None:
        return None
    listing, lam = rated.under(rho_sft, rho), run.config.ppo.kl_coef

    def make(stage: Stage) -> dict:
        facts = optimum.describe(listing, lam) | dict.fromkeys(("delta1", "bound_paper", "bound_sharp", "r_max"))
        return facts if samples is None else facts | optimum.suboptimality(listing, samples, lam)

    run.json("theory", make)
    return listing


def evaluate_plain(
    run: Run, task: ToyWorld | FileTask, pi_f: FrozenLM, oracle: FrozenLM | None, reward: Reward
) -> dict[str, Arm]:
    """Stage 8: the arms without a prompter, no fine-tuning and the oracle, on the unseen requests."""

    def make(evaluator: Evaluator) -> dict[str, Arm]:
        arms = {"no_finetuning": evaluator.plain()}
        if oracle is not None:
            arms["rlhf_oracle"] = evaluator.plain(oracle)
        return arms

    return _arms(run, "evaluation_plain", task, pi_f, reward, make)


def evaluate_prompters(
    run: Run,
    task: ToyWorld | FileTask,
    pi_f: FrozenLM,
    rho_sft: Prompter,
    rho: Prompter,
    reward: Reward,
    listing: Listing | None,
) -> dict[str, Arm]:
    """Stage 9: the arms with a prompter, on the same requests."""

    def make(evaluator: Evaluator) -> dict[str, Arm]:
        arms = {
            "untrained_prompter": evaluator.prompter(rho_sft, rho_sft),
            "best_of_n": evaluator.best_of_n(rho_sft),
            "align_pro": evaluator.prompter(rho, rho_sft),
        }
        if listing is not None:
            star = optimal_prompter(listing.rho_sft, listing.R, run.config.ppo.kl_coef)
            arms["closed_form"] = evaluator.listed(listing.rewrites, star, listing.rho_sft)
        return arms

    return _arms(run, "evaluation", task, pi_f, reward, make)


def evaluate_rlhf(run: Run, requests: list[str], pi_f: FrozenLM, oracle: FrozenLM, reward: Reward) -> dict[str, float]:
    """Where RLHF lies, in the units and on the requests of the listed rewrites: the KL of its answers and their mean reward."""

    def make(stage: Stage) -> dict[str, float]:
        many = dataclasses.replace(run.config.eval, inputs=len(requests), rewrites=1, answers=run.config.theory.answers)
        arm = Evaluator(requests, pi_f, reward.train, None, many, run.generator("rlhf")).plain(oracle)
        return {"rlhf_kl": float(arm.kl.mean()), "rlhf_mean": float(arm.reward.mean())}

    return run.json("rlhf", make)


def evaluate_swapped(
    run: Run, task: ToyWorld, other: FrozenLM, rho_sft: Prompter, rho: Prompter, reward: Reward
) -> Arm:
    """This run's prompter in front of a frozen model that it was not trained for."""
    return _arms(run, "swapped", task, other, reward, lambda evaluator: {"swapped": evaluator.prompter(rho, rho_sft)})[
        "swapped"
    ]


def _arms(
    run: Run,
    name: str,
    task: ToyWorld | FileTask,
    pi_f: FrozenLM,
    reward: Reward,
    make: Callable[[Evaluator], dict[str, Arm]],
) -> dict[str, Arm]:
    """A stage whose result is some arms, kept as `checkpoints/<name>.safetensors`, with a few of their texts as samples."""
    c, path = run.config, run.path / "checkpoints" / f"{name}.safetensors"

    def made(stage: Stage) -> dict[str, Arm]:
        requests = task.eval_requests[: c.eval.inputs]
        arms = make(Evaluator(requests, pi_f, reward.report, task.gold, c.eval, run.generator(name)))
        for arm in arms.values():
            arm.extra |= _reasoning(task, arm)
        stage.samples(
            0, [_sample(name, arm, i) for i in range(8) for name, arm in arms.items() if i < len(arm.x)], show=False
        )
        return arms

    def save(arms: dict[str, Arm]) -> None:
        tensors = {
            f"{name}.{part}": getattr(arm, part) for name, arm in arms.items() for part in ("reward", "gold", "kl")
        }
        numbers = {key: torch.from_numpy(value.copy()) for key, value in tensors.items() if value is not None}
        save_state(path, numbers, {name: arm.extra for name, arm in arms.items()})

    def load() -> dict[str, Arm]:
        tensors, extras = load_state(path)
        numbers = {key: value.numpy() for key, value in tensors.items()}
        return {
            n: Arm(numbers[f"{n}.reward"], numbers.get(f"{n}.gold"), numbers[f"{n}.kl"], extra)
            for n, extra in extras.items()
        }

    arms = run.once(name, made, load, save)
    pi_f.assert_unchanged(name)
    return arms


def _sample(name: str, arm: Arm, i: int) -> dict:
    return {
        "arm": name,
        "x": arm.x[i],
        "x_prime": arm.x_prime[i][0],
        "y": arm.y[i, 0, 0],
        "reward": float(arm.reward[i, 0, 0]),
        "kl": float(arm.kl[i, 0]),
    }


def _reasoning(task: ToyWorld | FileTask, arm: Arm) -> dict[str, float]:
    """For sums: the share of right answers, of worked answers, and of rewrites that ask for steps."""
    if task.task != "reasoning":
        return {}
    x = np.array(arm.x, dtype=object)[:, None, None].repeat(arm.y.shape[1], 1).repeat(arm.y.shape[2], 2)
    return {
        "right_rate": float(np.mean([task.right(a, b) for a, b in zip(x.flat, arm.y.flat)])),
        "worked_rate": float(np.mean([task.worked(y) for y in arm.y.flat])),
        "asks_for_steps": float(np.mean([task.asks_for_steps(t) for row in arm.x_prime for t in row])),
    }


def conclude(run: Run, arms: dict[str, Arm]) -> dict:
    """What follows from the arms, with what the stages before them left behind: writes `results.json` and returns it."""
    c = run.config
    arms = {name: arms[name] for name in ARMS if name in arms}
    results = {"task": c.task, "preset": c.preset, "seed": c.seed, "n_eval": len(arms["no_finetuning"].reward)}
    results |= evaluation.summarise(arms, c.eval)
    for extra in ("reward_model", "headroom", "theory"):
        path = run.path / "checkpoints" / f"{extra}.json"
        results[extra] = json.loads(path.read_text()) if path.exists() else None
    results["wall_s"] = {name: stage["seconds"] for name, stage in run.stages.items()}
    write_json(run.path / "results.json", results)
    return results


def write_report(run: Run, results: dict, arms: dict[str, Arm]) -> Path:
    """The plots and report.html from what the run left behind."""
    config = json.loads((run.path / "config.json").read_text(encoding="utf-8"))
    rewards = {name: arms[name].reward for name in results["arms"]}
    return report.write_report(
        run.path, results | {"config": config}, run.rows("metrics.jsonl"), run.rows("samples.jsonl"), rewards
    )
