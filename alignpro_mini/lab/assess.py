"""The stages after the training: the exact optimum, the arms on held-out requests, and the results.

An arm is kept as numbers (rewards, true rewards, KL), so that a resumed run, or another cell of the grid, loads it
instead of running the models again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from alignpro_mini.alignpro import Prompter
from alignpro_mini.frozen import FrozenLM, FrozenModel
from alignpro_mini.lab import evaluation, explore, optimum, report
from alignpro_mini.lab.evaluation import Arm, Evaluator
from alignpro_mini.lab.glossary import ARMS
from alignpro_mini.lab.models import assert_frozen, with_weights
from alignpro_mini.lab.optimum import Listing, OracleSamples, RatedRewrites
from alignpro_mini.lab.recompute import save_rewards
from alignpro_mini.lab.rewards import Reward
from alignpro_mini.lab.run import API_FILE, SNAPSHOTS, Run, RunStage
from alignpro_mini.lab.setup import Setup
from alignpro_mini.remote.client import spent
from alignpro_mini.remote.lm import unclear
from alignpro_mini.theory import optimal_prompter
from alignpro_mini.weights.tensors import read_json, write_json
from alignpro_mini.worlds.world import World

MakeArm = Callable[[Evaluator], Arm]


def rate_rewrites(run: Run, setup: Setup, world: World, pi_f: FrozenModel, reward: Reward) -> RatedRewrites | None:
    """The stage "listing": all enumerated rewrites of the first evaluation requests, and their rewards.

    None where there is no exact optimum: rewrites that cannot be enumerated (requests of files), no single KL
    coefficient above 0, or `--theory.inputs 0`.
    """
    c = run.config
    requests = world.eval_requests[: c.theory.inputs]
    listed = bool(requests) and all(world.rewrites(x) for x in requests)
    if not listed or c.ppo.kl_coef == 0 or c.ppo.adaptive_kl_target > 0:
        return None
    rated = setup.rate_rewrites(run, world, pi_f, reward.train)
    assert_frozen(pi_f, "listing")
    return rated


def sample_oracle(
    run: Run, pi_f: FrozenModel, oracle: FrozenLM | None, reward: Reward, rated: RatedRewrites | None
) -> OracleSamples | None:
    """The samples for the bounds on the suboptimality; None without an oracle, or where answers are greedy.

    None too where all requests have one table of rewards: 64 requests x 24 endings x 8 answers would be 12,288 texts to
    score with a real model.
    """
    c = run.config
    if rated is None or rated.is_pooled or oracle is None or c.sampling.temperature == 0:
        return None
    lm = with_weights(pi_f, "the bounds on the distance to the oracle (--theory.inputs 0 leaves them out)")

    def make(stage: RunStage) -> tuple[dict, dict]:
        g = run.generator("theory")
        samples = optimum.sample_oracle(rated, lm, oracle, reward.train, c.theory.samples, g)
        return {f.name: getattr(samples, f.name) for f in dataclasses.fields(samples)}, {}

    tensors, _ = run.tensors("theory_oracle", make)
    assert_frozen(pi_f, "theory_oracle")
    return OracleSamples(**tensors)


def closed_form(
    run: Run, rho_sft: Prompter, rho: Prompter, rated: RatedRewrites | None, samples: OracleSamples | None
) -> Listing | None:
    """Stage 7: the exact optimum over the enumerated rewrites, and PPO's distance to it; None where there is none."""
    if rated is None:
        return None
    listing, lam = rated.under(rho_sft, rho), run.config.ppo.kl_coef

    def make(stage: RunStage) -> dict:
        facts = optimum.describe(listing, lam) | dict.fromkeys(("delta1", "bound_paper", "bound_sharp", "r_max"))
        return facts if samples is None else facts | optimum.suboptimality(listing, samples, lam)

    run.json("theory", make)
    return listing


def evaluate_plain(
    run: Run, world: World, pi_f: FrozenModel, oracle: FrozenLM | None, reward: Reward
) -> dict[str, Arm]:
    """Stage 8: the arms without a prompter, on the held-out requests."""
    arms: dict[str, MakeArm] = {"no_finetuning": lambda e: e.plain()}
    if run.config.eval.untrained_arms:
        arms["best_of_n_answers"] = lambda e: e.best_of_n_answers()
    if oracle is not None:
        arms["rlhf_oracle"] = lambda e: e.oracle(oracle, pi_f)
    return evaluate(run, "evaluation_plain", world, pi_f, reward, arms)


def evaluate_prompters(
    run: Run,
    world: World,
    pi_f: FrozenModel,
    rho_sft: Prompter,
    rho: Prompter,
    reward: Reward,
    fixed: dict | None,
    listing: Listing | None,
) -> dict[str, Arm]:
    """Stage 9: the arms whose requests are rewritten, the same requests."""
    arms: dict[str, MakeArm] = {
        "untrained_prompter": lambda e: e.prompter(rho_sft, None),  # its KL to itself is 0
        "best_of_n": lambda e: e.best_of_n(rho_sft),
        "align_pro": lambda e: e.prompter(rho, rho_sft),
    }
    if fixed is not None:
        arms["fixed_rewrite"] = lambda e: _fixed(e, world, rho_sft, fixed["kind"])
    if listing is not None:
        star = optimal_prompter(listing.rho_sft, listing.R, run.config.ppo.kl_coef)
        arms["closed_form"] = lambda e: e.enumerated(listing.rewrites, star, listing.rho_sft)
    return evaluate(run, "evaluation", world, pi_f, reward, arms)


def _fixed(evaluator: Evaluator, world: World, rho_sft: Prompter, kind: int) -> Arm:
    """The arm of one kind of rewrite, with the KL of a prompter that always writes it."""
    rewrites = [world.rewrites(x)[kind] for x in evaluator.requests]
    logs = optimum.log_probabilities(rho_sft, evaluator.requests, [[x_prime] for x_prime in rewrites])  # (N, 1)
    return evaluator.fixed(rewrites, -logs.numpy())


def evaluate(
    run: Run, name: str, world: World, pi_f: FrozenModel, reward: Reward, makers: dict[str, MakeArm]
) -> dict[str, Arm]:
    """A stage whose result is some arms, kept as `checkpoints/<name>.safetensors`; some texts become samples."""

    def made(stage: RunStage) -> tuple[dict, dict]:
        requests = world.eval_requests[: run.config.eval.inputs]
        evaluator = Evaluator(
            requests, pi_f, reward.report, world.gold, run.config.eval, run.generator(name), run.config.guard
        )
        steps = stage.progress(0, len(makers))
        arms = {}
        for _, (arm, make) in zip(steps, makers.items()):
            stage.doing = f"arm {arm}"
            arms[arm] = make(evaluator)
        rows = [_sample(arm, arms[arm], i) for i in range(8) for arm in arms if i < len(arms[arm].x)]
        stage.samples(0, rows, show=False)
        parts = {f"{arm}.{part}": getattr(arms[arm], part) for arm in arms for part in ("reward", "gold", "kl")}
        numbers = {key: torch.from_numpy(value.copy()) for key, value in parts.items() if value is not None}
        return numbers, {arm: arms[arm].extra | _described(world, arms[arm]) for arm in arms}

    tensors, extras = run.tensors(name, made)
    assert_frozen(pi_f, name)
    n = {key: value.numpy() for key, value in tensors.items()}
    return {arm: Arm(n[f"{arm}.reward"], n.get(f"{arm}.gold"), n[f"{arm}.kl"], extras[arm]) for arm in extras}


def _sample(name: str, arm: Arm, i: int) -> dict:
    texts = {"arm": name, "x": arm.x[i], "x_prime": arm.x_prime[i][0], "y": arm.y[i, 0, 0]}
    return texts | {"reward": float(arm.reward[i, 0, 0]), "kl": float(arm.kl[i, 0])}


def _described(world: World, arm: Arm) -> dict[str, float]:
    """The world's own figures of an arm, such as the share of right answers."""
    answers = arm.y.reshape(len(arm.x), -1)  # (N, K*M)
    requests = [x for x in arm.x for _ in range(answers.shape[1])]
    return world.describe(requests, [text for row in arm.x_prime for text in row], list(answers.flat))


def conclude(run: Run, world: World, arms: dict[str, Arm]) -> dict:
    """`results.json`, from the arms and from what the stages before them saved: writes it and returns it."""
    c = run.config
    run.in_order()
    arms = {name: arms[name] for name in ARMS if name in arms}
    results = {"task": c.task, "preset": c.preset, "seed": c.seed, "n_eval": len(arms["no_finetuning"].reward)}
    results["kl_coef"] = {"ppo": c.ppo.kl_coef, "oracle": c.oracle.kl_coef}
    groups = world.groups(world.eval_requests[: c.eval.inputs])
    results |= evaluation.summarise(arms, c.eval, groups)
    for extra in ("reward_model", "headroom", "fixed_rewrite", "theory"):
        path = run.path / "checkpoints" / f"{extra}.json"
        results[extra] = read_json(path) if path.exists() else None
    if (run.path / API_FILE).exists():
        results["api"] = spent(run.path / API_FILE, c.api)
        if (share := unclear(run.path / API_FILE, c.judge)) is not None:
            results["api"]["unclear_verdicts"] = share
    results["stopped"] = {r["stage"]: r["stopped"] for r in run.rows("metrics.jsonl") if "stopped" in r}
    results["wall_s"] = {name: stage["seconds"] for name, stage in run.stages.items()}
    write_json(run.path / "results.json", results)
    save_rewards(run.path / "rewards.npz", arms, groups, results["kl_coef"])
    return results


def write_report(run: Run, results: dict, arms: dict[str, Arm], listing: Listing | None) -> Path:
    """The plots, report.html and explore.html from what the run left behind; returns the report's path."""
    kind = (results["fixed_rewrite"] or {}).get("kind")
    data = explore.page_data(listing, kind, run.config.ppo.kl_coef, run.rows(SNAPSHOTS))
    explore.write_page(run.path / "explore.html", data)
    config = read_json(run.path / "config.json")
    rewards = {name: arms[name].reward for name in results["arms"]}
    logs = run.rows("metrics.jsonl"), run.rows("samples.jsonl")
    return report.write_report(run.path, results | {"config": config}, *logs, rewards)
