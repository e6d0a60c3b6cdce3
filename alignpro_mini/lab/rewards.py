"""The reward of a run: a callable or a judge, or learned from preferences; and its unit."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch

from alignpro_mini.alignpro import Prompter, usable_rewrites
from alignpro_mini.fast.reward import TrunkCache
from alignpro_mini.frozen import FrozenModel
from alignpro_mini.lab.accuracy import accuracy_facts, cut_at, swap_accuracy, wish_accuracy
from alignpro_mini.lab.config import PreferenceConfig, RunConfig
from alignpro_mini.lab.models import copy_of
from alignpro_mini.lab.run import API_FILE, Run, RunStage
from alignpro_mini.lab.setup import Setup
from alignpro_mini.lab.tables import reward_model_lines
from alignpro_mini.reward import (
    Preference,
    RewardModel,
    draw_preferences,
    moments,
    split_by_prompt,
    train_reward_model,
    usable_pairs,
)
from alignpro_mini.training import Score
from alignpro_mini.variants import REWARD_MODELS
from alignpro_mini.weights.tensors import load_state, read_json, write_json
from alignpro_mini.worlds.sentences import by_sentences
from alignpro_mini.worlds.world import World


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward as it is reported, and as PPO sees it: shifted and scaled on answers to rho_sft's rewrites."""

    report: Score
    train: Score


def sample_answers(pi_f: FrozenModel, prompter: Prompter, requests: Sequence[str], g: torch.Generator) -> list[str]:
    """The frozen LM's answers to a rewrite of each request."""
    rewrites, _ = usable_rewrites(requests, prompter.rewrite(requests, g), pi_f.fits)
    return [answer.text for answer in pi_f.answer(rewrites, g)]


def answers_to_rewrites(run: Run, world: World, pi_f: FrozenModel, rho_sft: Prompter) -> tuple[list[str], list[str]]:
    """Training requests, and the frozen LM's answers to rho_sft's rewrites of them: what a reward is normalised on."""
    g = run.generator("reward scale")
    count = run.config.preferences.normalise_on
    picked = torch.randint(len(world.train_requests), (count,), generator=g).tolist()
    requests = [world.train_requests[i] for i in picked]
    return requests, sample_answers(pi_f, rho_sft, requests, g)


# ---------------------------------------------------------------- a callable, or a judge


def given_reward(run: Run, setup: Setup, world: World, pi_f: FrozenModel, rho_sft: Prompter) -> Reward:
    """The stage "reward_scale": the reward of --reward, scaled for PPO to mean 0 and variance 1."""
    score = setup.given_reward(run.path, API_FILE, pi_f)

    def scale(stage: RunStage) -> dict[str, float]:
        requests, answers = answers_to_rewrites(run, world, pi_f, rho_sft)
        low = setup.lowest_reward(score, requests, answers)
        return moments(by_sentences(score, low)(requests, answers)) | {"low": low}

    unit = run.json("reward_scale", scale)
    report = by_sentences(score, unit["low"])
    return Reward(report, lambda x, y: (report(x, y) - unit["mean"]) / unit["std"])


# ---------------------------------------------------------------- learned


def learned_reward(run: Run, setup: Setup, world: World, pi_f: FrozenModel, rho_sft: Prompter) -> Reward:
    """The stage "reward_model": Bradley-Terry on preferences."""
    c = run.config
    model = new_reward_model(c, setup, pi_f)

    def make(stage: RunStage) -> tuple[dict, dict]:
        """Label pairs, train on them and set the unit: the model's weights, and facts about it."""
        g = run.generator("preferences")
        pairs = preferences(c.preferences, c.seed, world, pi_f, rho_sft, g)
        usable = usable_pairs(model, pairs, c.reward_model)
        train, heldout = split_by_prompt(usable, c.reward_model.heldout_share, g)
        train_reward_model(model, train, heldout, c.reward_model, stage, g, TrunkCache(model, train))
        # A file's answers may be longer than those that the run rates; a remote LM has no tokenizer here.
        tokenizer = getattr(pi_f, "tokenizer", model.tokenizer)
        cut = lambda y: setup.as_rated(cut_at(y, tokenizer, c.sampling.max_new_tokens))
        facts = accuracy_facts(model, heldout, cut)
        facts |= {"train_pairs": len(train), "heldout_pairs": len(heldout), "left_out": len(pairs) - len(usable)}
        requests, answers = answers_to_rewrites(run, world, pi_f, rho_sft)
        model.normalise(requests, answers)
        facts["low"] = setup.lowest_reward(model.score, requests, answers)
        return model.state_dict(), facts | swap_facts(run, world, pi_f, rho_sft, model, g)

    tensors, facts = run.tensors("reward_model", make)
    model.load_state_dict(tensors)
    model.eval().requires_grad_(False)
    if run.leads:
        write_json(run.path / "checkpoints" / "reward_model.json", facts)
    print("\n".join(reward_model_lines(facts)))
    score = by_sentences(model.score, facts["low"])
    return Reward(score, score)


def new_reward_model(c: RunConfig, setup: Setup, pi_f: FrozenModel) -> RewardModel:
    """A reward model before it has learned anything."""
    base, tokenizer = setup.reward_base(pi_f)
    layers = c.reward_model.train_layers
    return REWARD_MODELS[c.reward_read](copy_of(base, layers, c.reward_blocks), tokenizer, layers)


def preferences(
    c: PreferenceConfig, seed: int, world: World, pi_f: FrozenModel, rho_sft: Prompter, g: torch.Generator
) -> list[Preference]:
    """The world's pairs, or pairs of the frozen LM's answers, each to a rewrite of its own, judged with noise.

    All answers to a request are compared in pairs. Two further kinds of pairs need no further answers. They teach the
    reward to read the request: the same two answers under another wish, and an answer beside what it would be for
    another request (mismatched). Pairs that share a request and answers are side by side.
    """
    of_the_world = world.preferences()
    if of_the_world is not None:
        return [Preference(*pair) for pair in of_the_world]
    couples = list(combinations(range(c.answers_per_request), 2))
    asked = math.ceil(c.pairs / len(couples))
    requests: list[str] = []
    while len(requests) < asked:  # none a second time before all were drawn
        requests += [world.train_requests[i] for i in torch.randperm(len(world.train_requests), generator=g).tolist()]
    requests = requests[:asked]  # N
    texts = [sample_answers(pi_f, rho_sft, requests, g) for _ in range(c.answers_per_request)]  # (A, N)
    compared = [(n, texts[i][n], texts[j][n]) for n in range(asked) for i, j in couples][: c.pairs]
    index, first, second = zip(*compared)
    pairs = draw_preferences([requests[n] for n in index], first, second, world.gold, c.scale, g)
    others = world.with_other_wish(requests, random.Random(f"other wishes {seed}"))
    again = round(c.other_wish * len(compared)) if others else 0
    prompts = [others[n] for n in index[:again]]
    pairs += draw_preferences(prompts, first[:again], second[:again], world.gold, c.scale, g)
    place = [*index, *(asked + n for n in index[:again])]
    count = round(c.mismatched * c.pairs)
    prompts = (requests * len(texts))[:count]
    own = [y for row in texts for y in row][:count]
    swapped = world.swapped(prompts, own, random.Random(f"mismatched {seed}"))
    pairs += draw_preferences(prompts, own, swapped, world.gold, c.scale, g, mismatched=True)
    place += [i % asked for i in range(count)]
    return [pairs[i] for i in sorted(range(len(pairs)), key=place.__getitem__)]


def swap_facts(
    run: Run, world: World, pi_f: FrozenModel, rho_sft: Prompter, model: RewardModel, g: torch.Generator
) -> dict[str, dict[str, float | None]]:
    """Whether the reward, and the true reward, read the request: a swap test for each part of it that matters.

    subject   an answer is rated above one that belongs to another held-out request (`swap_accuracy`)
    wish      two answers are ranked as each of two wishes demands (`wish_accuracy`)
    """
    requests = world.eval_requests[: run.config.eval.inputs]
    answers = sample_answers(pi_f, rho_sft, requests, g)
    swapped = world.swapped(requests, answers, random.Random(f"swaps {run.config.seed}"))
    tests = {"subject": lambda score: swap_accuracy(score, requests, answers, swapped)}
    others = world.with_other_wish(requests, random.Random(f"wishes {run.config.seed}"))
    if others and world.gold:
        second = sample_answers(pi_f, rho_sft, requests, g)
        tests["wish"] = lambda score: wish_accuracy(score, world.gold, (requests, others), (answers, second))
    return {
        "swap_accuracy": {part: test(model.score) for part, test in tests.items()},
        "swap_ceiling": {part: world.gold and test(world.gold) for part, test in tests.items()},
    }


# ---------------------------------------------------------------- of a finished run


def saved_reward(setup: Setup, folder: Path, api_file: str, pi_f: FrozenModel) -> Score:
    """The reward of a finished run, as it was reported. Nothing in its folder is changed."""
    checkpoints = folder / "checkpoints"
    if setup.config.reward:
        score = setup.given_reward(folder, api_file, pi_f)
        return by_sentences(score, read_json(checkpoints / "reward_scale.json")["low"])
    model = new_reward_model(setup.config, setup, pi_f)
    tensors, facts = load_state(checkpoints / "reward_model.safetensors")
    model.load_state_dict(tensors)
    return by_sentences(model.eval().requires_grad_(False).score, facts["low"])
