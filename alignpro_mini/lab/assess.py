"""The stages after the training: the exact optimum, the arms on held-out requests, and the results.

An arm is kept as numbers (rewards, true rewards, KL), so that a resumed run, or another cell of the grid, loads it
instead of running the models again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from alignpro_mini.alignpro import Prompter
from alignpro_mini.frozen import Answer, FrozenLM, FrozenModel
from alignpro_mini.lab import evaluation, optimum, report
from alignpro_mini.lab.config import RunConfig, preset
from alignpro_mini.lab.evaluation import Arm, Evaluator
from alignpro_mini.lab.glossary import ARMS
from alignpro_mini.lab.optimum import Listing, OracleSamples, RatedRewrites
from alignpro_mini.lab.pipeline import API_FILE, Reward, assert_frozen, with_weights
from alignpro_mini.lab.run import Run, RunStage
from alignpro_mini.options import UserError
from alignpro_mini.remote.client import spent
from alignpro_mini.remote.lm import unclear
from alignpro_mini.theory import optimal_prompter
from alignpro_mini.training import Score
from alignpro_mini.weights.tensors import write_json
from alignpro_mini.worlds.files import DataConfig
from alignpro_mini.worlds.world import World

MakeArm = Callable[[Evaluator], Arm]


def rate_rewrites(run: Run, world: World, pi_f: FrozenModel, reward: Reward) -> RatedRewrites | None:
    """The stage "listing": all enumerated rewrites of the first evaluation requests, and their rewards.

    A real model's answers come from `listed_answers`, and the reward of an ending is its mean over these requests
    (`RatedRewrites.pooled`): the few answers that one request can get would tell nothing of R(x, x').
    None where there is no exact optimum: rewrites that cannot be enumerated (requests of files), no single KL
    coefficient above 0, or `--theory.inputs 0`.
    """
    c = run.config
    requests = world.eval_requests[: c.theory.inputs]
    rewrites = [world.rewrites(x) for x in requests]
    if not all(rewrites) or not requests or c.ppo.kl_coef == 0 or c.ppo.adaptive_kl_target > 0:
        return None
    if c.real_model:
        return RatedRewrites(requests, rewrites, listed_rewards(run, world, pi_f, reward)).pooled()

    def make(stage: RunStage) -> tuple[dict, dict]:
        g = run.generator("listing")
        many = c.theory.answers, g, c.theory.more_answers
        return {"r": optimum.rate(requests, rewrites, pi_f, reward.train, *many).r}, {}

    tensors, _ = run.tensors("listing", make)
    assert_frozen(pi_f, "listing")
    return RatedRewrites(requests, rewrites, tensors["r"])


def listed_answers(config: RunConfig, world: World, pi_f: FrozenModel) -> list[dict]:
    """Answers of the frozen model to all listed rewrites of the first *training* requests, kept for every later use.

    A row a request: {"x", "rewrites": K texts, "y": K*M texts, "truncated": K*M}, in `<out>/listing-.../answers.jsonl`.
    They depend on nothing but the frozen model, its sampling and the seed. So all runs share them, and a listing that
    was stopped goes on. Raises UserError where that folder's answers were sampled in another way.
    """
    c = config
    same = ("frozen", *(("api",) if c.remote else ())) if c.real_model else ("frozen_model", "frozen_lm", "vocab_size")
    how = {name: getattr(c, name) for name in (*same, "task", "seed", "device", "dtype", "sampling", "world", "out")}
    c = replace(preset(c.preset), **how, data=DataConfig(c.data.prompts))
    place = Run(replace(c, name=f"listing-{c.run_name}"), resume=True, wait=True)
    count, each, file = config.theory.inputs, config.theory.answers, "answers.jsonl"
    rows = place.rows(file)
    for kept in {len(row["y"]) // len(row["rewrites"]) for row in rows} - {each}:
        told = f"{place.path / file} has {kept} answers to a rewrite, not {each}"
        raise UserError(f"{told}: leave --theory.answers at {kept}, or move the folder away")
    if [row["x"] for row in rows[:count]] != world.train_requests[: min(len(rows), count)]:
        raise UserError(f"{place.path / file} is not of these requests in their order: move the folder away")
    for x in world.train_requests[len(rows) : count]:
        rewrites = world.rewrites(x)
        asked = [x_prime for x_prime in rewrites for _ in range(each)]
        found = pi_f.answer(asked, place.generator(f"listing {len(rows)}"))
        row = {"x": x, "rewrites": rewrites, "y": [a.text for a in found], "truncated": [a.truncated for a in found]}
        place.append(file, [row])
        rows.append(row)
        print(f"[listing] request {len(rows)} of {count}", flush=True)
    return rows[:count]


def listed_rewards(run: Run, world: World, pi_f: FrozenModel, reward: Reward) -> Tensor:
    """The stage "listing" of a real model: what PPO sees of `listed_answers`, (N, K, M)."""
    make = lambda stage: ({"r": rated(listed_answers(run.config, world, pi_f), reward.train)}, {})
    tensors, _ = run.tensors("listing", make)
    assert_frozen(pi_f, "listing")
    return tensors["r"]


def rated(rows: Sequence[dict], reward: Score) -> Tensor:
    """Rewards (N, K, M) float64 of listed answers, each against its request."""
    r = torch.as_tensor(reward(*asked_and_answered(rows)), dtype=torch.float64)
    return r.view(len(rows), len(rows[0]["rewrites"]), -1)


def asked_and_answered(rows: Sequence[dict]) -> tuple[list[str], list[str]]:
    """The request of each listed answer, and the answers; a truncated one is marked as such."""
    answers = [Answer(y, cut).text for row in rows for y, cut in zip(row["y"], row["truncated"])]
    return [row["x"] for row in rows for _ in row["y"]], answers


def sample_oracle(
    run: Run, pi_f: FrozenModel, oracle: FrozenLM | None, reward: Reward, rated: RatedRewrites | None
) -> OracleSamples | None:
    """The samples for the bounds on the suboptimality; None without an oracle, or where answers are greedy.

    None for a real model too: 64 requests x 24 endings x 8 answers would be 12,288 texts to score with it.
    """
    c = run.config
    if rated is None or oracle is None or c.sampling.temperature == 0 or c.real_model:
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
    """Stage 8: the arms without a prompter, no fine-tuning and the oracle, on the held-out requests."""
    arms: dict[str, MakeArm] = {"no_finetuning": lambda e: e.plain()}
    if oracle is not None:
        arms["rlhf_oracle"] = lambda e: e.oracle(oracle, pi_f)
    return evaluate(run, "evaluation_plain", world, pi_f, reward, arms)


def evaluate_prompters(
    run: Run, world: World, pi_f: FrozenModel, rho_sft: Prompter, rho: Prompter, reward: Reward, listing: Listing | None
) -> dict[str, Arm]:
    """Stage 9: the arms with a prompter, on the same requests."""
    arms: dict[str, MakeArm] = {
        "untrained_prompter": lambda e: e.prompter(rho_sft, None),  # its KL to itself is 0
        "best_of_n": lambda e: e.best_of_n(rho_sft),
        "align_pro": lambda e: e.prompter(rho, rho_sft),
    }
    if listing is not None:
        star = optimal_prompter(listing.rho_sft, listing.R, run.config.ppo.kl_coef)
        arms["closed_form"] = lambda e: e.enumerated(listing.rewrites, star, listing.rho_sft)
    return evaluate(run, "evaluation", world, pi_f, reward, arms)


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
        arms = {arm: make(evaluator) for _, (arm, make) in zip(steps, makers.items())}
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
    arms = {name: arms[name] for name in ARMS if name in arms}
    results = {"task": c.task, "preset": c.preset, "seed": c.seed, "n_eval": len(arms["no_finetuning"].reward)}
    results["kl_coef"] = {"ppo": c.ppo.kl_coef, "oracle": c.oracle.kl_coef}
    results |= evaluation.summarise(arms, c.eval, world.groups(world.eval_requests[: c.eval.inputs]))
    for extra in ("reward_model", "headroom", "theory"):
        path = run.path / "checkpoints" / f"{extra}.json"
        results[extra] = json.loads(path.read_text()) if path.exists() else None
    if (run.path / API_FILE).exists():
        results["api"] = spent(run.path / API_FILE, c.api)
        if c.judge:
            results["api"]["unclear_verdicts"] = unclear(run.path / API_FILE, c.judge)
    results["stopped"] = {r["stage"]: r["stopped"] for r in run.rows("metrics.jsonl") if "stopped" in r}
    results["wall_s"] = {name: stage["seconds"] for name, stage in run.stages.items()}
    write_json(run.path / "results.json", results)
    return results


def write_report(run: Run, results: dict, arms: dict[str, Arm]) -> Path:
    """The plots and report.html from what the run left behind."""
    config = json.loads((run.path / "config.json").read_text(encoding="utf-8"))
    rewards = {name: arms[name].reward for name in results["arms"]}
    logs = run.rows("metrics.jsonl"), run.rows("samples.jsonl")
    return report.write_report(run.path, results | {"config": config}, *logs, rewards)
