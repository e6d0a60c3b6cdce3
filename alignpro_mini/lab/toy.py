"""The embedded world: requests, rewrites and the true reward are generated, and all models train from scratch."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from alignpro_mini.frozen import FrozenModel
from alignpro_mini.lab import optimum
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.device import DTYPES, resolve_device
from alignpro_mini.lab.models import make_frozen_lm, new_model, saved_model, with_weights
from alignpro_mini.lab.optimum import RatedRewrites
from alignpro_mini.lab.preflight import try_reward
from alignpro_mini.lab.run import Run, RunStage
from alignpro_mini.options import UserError, require
from alignpro_mini.sft import encode_pairs, train_sft
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.training import Score
from alignpro_mini.transformer import Transformer
from alignpro_mini.weights.tensors import replacing
from alignpro_mini.worlds.callables import load_callable
from alignpro_mini.worlds.toy import TASKS, ToyWorld
from alignpro_mini.worlds.world import World, WorldConfig

SHAPING = ("follow", "spread", "unseen_towns")  # options of the world that the task reasoning does not read
OF_REAL_MODELS = ("data", "api", "frozen", "prompter", "reward_base", "cut")


class EmbeddedWorld:
    """The `Setup` of the presets that train all models from scratch."""

    dtype = torch.float32

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    # ------------------------------------------------------------ options

    def check(self) -> None:
        """Raises UserError for options that do not fit together."""
        c = self.config
        c.check()
        resolve_device(c.device)
        require(c.task in TASKS, f"task is {c.task}, but --preset {c.preset} has {', '.join(TASKS)}")
        inputs = c.eval.inputs
        kept = c.world.eval_requests
        require(inputs <= kept, f"--eval.inputs is {inputs}, but --world.eval_requests keeps only {kept}")
        as_usual = all(getattr(c.world, name) == getattr(WorldConfig(), name) for name in SHAPING)
        names = ", ".join(f"--world.{name}" for name in SHAPING)
        only = f"{names} shape the tasks quality and attributes, not reasoning: leave them or the task out"
        require(c.task != "reasoning" or as_usual, only)
        require(not c.judge, f"--reward judge:MODEL is for a real model, not for the embedded world of {c.preset}")
        require(not c.gold, f"--gold is for a real model: the embedded world of --preset {c.preset} has its own")
        pairs = c.preferences.pairs
        batch = c.reward_model.batch_size
        needed = f"it takes at least two batches of --reward_model.batch_size {batch}"
        require(pairs >= 2 * batch, f"--preferences.pairs is {pairs}; {needed}")
        self._check_lengths()

    def _check_lengths(self) -> None:
        """Raises UserError for shapes that no transformer has, and for texts that do not fit them."""
        c = self.config
        for name in ("frozen_model", "prompter_model"):
            try:
                getattr(c, name).transformer(c.vocab_size)
            except UserError as error:
                raise UserError(f"--{name}: {error}") from None
        for section, model in (("ppo", "prompter_model"), ("sampling", "frozen_model"), ("oracle", "frozen_model")):
            length = getattr(c, section).max_new_tokens
            longest = getattr(c, model).max_len
            fits = f"with the prompt it must fit --{model}.max_len {longest}"
            require(length < longest, f"--{section}.max_new_tokens is {length}; {fits}")

    def unread(self) -> dict[str, str]:
        """What only real models read, besides what the other options make superfluous."""
        c = self.config
        unread = c.unread() | dict.fromkeys(OF_REAL_MODELS, f"it is not read with --preset {c.preset}")
        if c.task == "reasoning" or not c.world.wishes:
            unread["preferences.other_wish"] = (
                "there are no requests with another wish in reasoning, nor without wishes"
            )
        return unread

    def defaults(self) -> dict[str, object]:
        """None but those of the preset."""
        return {}

    # ------------------------------------------------------------ requests and models

    def make_world(self) -> World:
        """Generated requests of the task, whose true reward is known."""
        c = self.config
        reward = load_callable(c.reward) if c.reward else None  # one that is missing is told now
        world = ToyWorld(c.task, c.world, c.seed)
        if reward is not None:
            try_reward(reward, world.train_requests)
        return world

    def tokenizer(self, run: Run, world: World) -> Tokenizer:
        """The stage "tokenizer": one for both models, trained on the beginning of the LM's corpus."""
        file = run.path / "tokenizer.json"

        def make(stage: RunStage) -> Tokenizer:
            corpus = self._corpus(world, min(5000, self.config.frozen_lm.examples))
            return Tokenizer.train([text for pair in corpus for text in pair], self.config.vocab_size)

        def save(tokenizer: Tokenizer) -> None:
            with replacing(file) as draft:
                tokenizer.save(draft)

        return run.once("tokenizer", make, lambda: Tokenizer.load(file), save)

    def _corpus(self, world: World, count: int) -> list[tuple[str, str]]:
        return world.corpus(count, random.Random(f"corpus {self.config.seed}"))

    def frozen_lm(self, run: Run, world: World, tokenizer: Tokenizer) -> FrozenModel:
        """The stage "frozen_lm": an LM trained on the world's corpus."""
        c = self.config
        device = resolve_device(c.device)

        def make(stage: RunStage) -> Transformer:
            model = new_model(c.frozen_model, tokenizer.vocab_size, run.generator("frozen_lm weights"), device)
            examples = encode_pairs(self._corpus(world, c.frozen_lm.examples), tokenizer, c.frozen_model.max_len)
            return train_sft(model, examples, c.frozen_lm, stage, run.generator("frozen_lm"))

        model = run.model("frozen_lm", make, tokenizer).to(device, DTYPES[c.dtype])
        return make_frozen_lm(model, tokenizer, c.sampling)

    def saved_frozen_lm(self, folder: Path, api_file: str) -> FrozenModel:
        """The LM that the run trained first."""
        c = self.config
        model, tokenizer = saved_model(folder / "checkpoints" / "frozen_lm", resolve_device(c.device), DTYPES[c.dtype])
        return make_frozen_lm(model, tokenizer, c.sampling)

    def prompter_start(self, run: Run, tokenizer: Tokenizer) -> Callable[[], Transformer]:
        """Fresh weights."""
        c = self.config
        draw = run.generator("prompter weights")
        return lambda: new_model(c.prompter_model, tokenizer.vocab_size, draw, resolve_device(c.device))

    # ------------------------------------------------------------ rewards

    def given_reward(self, folder: Path, api_file: str, pi_f: FrozenModel) -> Score:
        """The callable of --reward."""
        return load_callable(self.config.reward)

    def reward_base(self, pi_f: FrozenModel) -> tuple[Transformer, Tokenizer]:
        """The frozen LM, which knows the language already."""
        lm = with_weights(pi_f, "a learned reward")
        return lm.model, lm.tokenizer

    def as_rated(self, answer: str) -> str:
        """All of it."""
        return answer

    def lowest_reward(self, score: Score, requests: Sequence[str], answers: Sequence[str]) -> None:
        """Every answer is rated."""

    def rate_rewrites(self, run: Run, world: World, pi_f: FrozenModel, reward: Score) -> RatedRewrites:
        """Each rewrite is answered for this run, the best ones more often (`optimum.rate`)."""
        c = self.config.theory
        requests = world.eval_requests[: c.inputs]
        rewrites = [world.rewrites(x) for x in requests]

        def make(stage: RunStage) -> tuple[dict, dict]:
            draw = run.generator("listing")
            return {"r": optimum.rate(requests, rewrites, pi_f, reward, c.answers, draw, c.more_answers).r}, {}

        tensors, _ = run.tensors("listing", make)
        return RatedRewrites(requests, rewrites, tensors["r"])
