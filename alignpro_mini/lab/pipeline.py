"""The training stages of `train.py`, each done once per run: what it needs, what it leaves in the run's folder.

A checksum asserts after every stage that meets the frozen LM that its weights did not change.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch

from alignpro_mini.alignpro import Prompter, train_align_pro, train_rlhf_oracle
from alignpro_mini.fast.sampling import generate
from alignpro_mini.frozen import FrozenLM, FrozenModel
from alignpro_mini.lab import evaluation, processes, rewards
from alignpro_mini.lab.device import resolve_device
from alignpro_mini.lab.fixed import find_fixed_rewrite
from alignpro_mini.lab.guards import GuardedScore
from alignpro_mini.lab.models import assert_frozen, copy_of, dtype_of_copy, make_frozen_lm, make_prompter, with_weights
from alignpro_mini.lab.preflight import answers_of, rewrite_pairs
from alignpro_mini.lab.rewards import Reward
from alignpro_mini.lab.run import Run, RunStage
from alignpro_mini.lab.setup import Setup
from alignpro_mini.lab.snapshots import Snapshots
from alignpro_mini.sft import encode_pairs, train_sft
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.transformer import Transformer
from alignpro_mini.worlds.world import World


def _trained(
    run: Run,
    name: str,
    make: Callable[[RunStage], Transformer],
    tokenizer: Tokenizer,
    dtype: torch.dtype,
    together: bool = False,
) -> Transformer:
    """The stage `name` whose result is a trained model, kept in `dtype`: what was frozen in it computes as before."""
    model = run.model(name, lambda stage: make(stage).to(dtype), tokenizer, together)
    return model.to(resolve_device(run.config.device), dtype)


def frozen_lm(run: Run, setup: Setup, world: World, tokenizer: Tokenizer) -> FrozenModel:
    """Stage 1: the frozen LM, trained on the world's corpus, loaded, or behind an API; fixed from here on."""
    return setup.frozen_lm(run, world, tokenizer)


def prompter_sft(run: Run, setup: Setup, world: World, tokenizer: Tokenizer) -> Prompter:
    """Stage 2: rho_sft, a model that has learned what rewrites look like: a small one, or the real model again."""
    c = run.config
    pairs = rewrite_pairs(c, world)
    start = setup.prompter_start(run, tokenizer)

    def make(stage: RunStage) -> Transformer:
        model = start()
        examples = encode_pairs(pairs, tokenizer, model.config.max_len)
        return train_sft(model, examples, c.prompter_sft, stage, run.generator("prompter_sft"))

    model = _trained(run, "prompter_sft", make, tokenizer, setup.dtype)
    return make_prompter(model.requires_grad_(False), tokenizer, c.ppo)


def reward_model(run: Run, setup: Setup, world: World, pi_f: FrozenModel, rho_sft: Prompter) -> Reward:
    """Stage 3: the reward, given by --reward or learned, in units of answers to rho_sft's rewrites."""
    stage = rewards.given_reward if run.config.reward else rewards.learned_reward
    reward = stage(run, setup, world, pi_f, rho_sft)
    assert_frozen(pi_f, "reward_model")
    return reward


def print_headroom(run: Run, world: World, pi_f: FrozenModel, rho_sft: Prompter, reward: Reward) -> None:
    """Stage 4: how far rewriting can move this reward, reported before any PPO."""

    def make(stage: RunStage) -> dict:
        c = run.config
        requests = world.train_requests[: c.eval.headroom_inputs]
        draw = run.generator("headroom")
        evaluator = evaluation.Evaluator(requests, pi_f, reward.report, None, c.eval, draw, c.guard)
        return evaluation.headroom(evaluator, rho_sft)

    room = run.json("headroom", make)
    assert_frozen(pi_f, "headroom")
    print(
        f"headroom: of the reward's variance for one request, {100 * room['icc']:.0f} % lies between rewrites "
        f"(ICC {room['icc']:.2f}; between {room['between_rewrites']:.2f}, the LM's sampling {room['within']:.2f}); "
        f"the best of 8 rewrites gains {room['best_rewrite_gain']:+.2f}"
    )


def align_pro(run: Run, world: World, pi_f: FrozenModel, rho_sft: Prompter, reward: Reward) -> Prompter:
    """Stage 5: PPO on the prompter."""
    c = run.config.ppo
    reference = rho_sft.model
    tokenizer = rho_sft.tokenizer

    def make(stage: RunStage) -> Transformer:
        draw = run.generator("align_pro")
        score = GuardedScore(pi_f, reward.train, draw, c.answers, run.config.guard)
        start = copy.deepcopy(reference)
        trainer = processes.trainer_class(c)(start, reference, tokenizer, score, c, draw, generate)
        watched = Snapshots(stage, trainer, world.eval_requests)
        return train_align_pro(trainer, world.train_requests, watched, world.gold)

    model = _trained(run, "align_pro", make, tokenizer, reference.embed.weight.dtype, together=True)
    assert_frozen(pi_f, "align_pro")
    return replace(rho_sft, model=model.eval())


def fixed_rewrite(run: Run, world: World, pi_f: FrozenModel, reward: Reward) -> dict | None:
    """The competitor that reads no request: one rewrite for all, found by as many answers as PPO used.

    None with `--eval.untrained_arms false`, and where rewrites cannot be enumerated.
    """
    if not run.config.eval.untrained_arms or not world.rewrites(world.train_requests[0]):
        return None

    def make(stage: RunStage) -> dict:
        draw = run.generator("fixed_rewrite")
        found = find_fixed_rewrite(world, world.train_requests, pi_f, reward.train, answers_of(run.config), draw)
        x = world.eval_requests[0]
        return found | {"x": x, "text": world.rewrites(x)[found["kind"]]}

    found = run.json("fixed_rewrite", make)
    assert_frozen(pi_f, "fixed_rewrite")
    return found


def rlhf_oracle(run: Run, world: World, pi_f: FrozenModel, reward: Reward) -> FrozenLM | None:
    """Stage 6: the comparator, the same PPO on a copy of the LM; None with `--eval.oracle false`."""
    if not run.config.eval.oracle:
        return None
    c = run.config.oracle
    lm = with_weights(pi_f, "the RLHF oracle (--eval.oracle false leaves it out)")

    def make(stage: RunStage) -> Transformer:
        draw = run.generator("rlhf_oracle")
        reference = copy_of(lm.model, c.train_layers)
        start = copy.deepcopy(reference)
        trainer = processes.trainer_class(c)(start, reference, lm.tokenizer, reward.train, c, draw, generate)
        return train_rlhf_oracle(trainer, world.train_requests, stage, world.gold)

    dtype = dtype_of_copy(lm.model, c.train_layers)
    model = _trained(run, "rlhf_oracle", make, lm.tokenizer, dtype, together=True)
    lm.assert_unchanged("rlhf_oracle")
    return make_frozen_lm(model, lm.tokenizer, lm.sampling)
