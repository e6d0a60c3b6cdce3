"""A finished run in use: its prompter, and on demand its frozen model and its reward."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from alignpro_mini.frozen import FrozenModel
from alignpro_mini.lab import guards
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.device import resolve_device
from alignpro_mini.lab.models import make_prompter, saved_model
from alignpro_mini.lab.rewards import saved_reward
from alignpro_mini.lab.setup import setup_of
from alignpro_mini.options import UserError
from alignpro_mini.training import Score
from alignpro_mini.weights.tensors import read_json

USE_FILE = "use.jsonl"  # answers of an API that were asked for after the run


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A request x, what the prompter wrote, and why that is not sent (`guards.REASONS`; None: it is)."""

    x: str
    written: str
    objection: str | None

    @property
    def sent(self) -> str:
        return self.x if self.objection else self.written


class Trained:
    """What a run left behind, to use. Raises UserError for a folder without a trained prompter."""

    def __init__(self, folder: str | Path, device: str = "auto", seed: int | None = None) -> None:
        self.path = Path(folder)
        if not (self.path / "config.json").is_file():
            raise UserError(f"{folder}: no run (no config.json); give a folder such as runs/tiny-quality-seed0")
        self.config = replace(config_of(read_json(self.path / "config.json")), device=device)
        self.setup = setup_of(self.config)
        place = self.path / "checkpoints" / "align_pro"
        if not place.is_dir():
            raise UserError(f"{folder}: no trained prompter yet; finish the run with --resume")
        model, tokenizer = saved_model(place, resolve_device(device), self.setup.dtype)
        self.prompter = make_prompter(model, tokenizer, self.config.ppo)
        self.generator = torch.Generator()
        self.generator.seed() if seed is None else self.generator.manual_seed(seed)

    def rewrite(self, requests: Sequence[str], greedy: bool = False, guard: bool = True) -> list[Rewrite]:
        """A rewrite of each request; one to which the guards object, or a request that is too long, stays as it is.

        Sampled as in training; `greedy` takes the likeliest token each time. Raises UserError for an empty request.
        """
        if not all(x.strip() for x in requests):
            raise UserError("the request is empty: give some text")
        if any("\ud800" <= c <= "\udfff" for x in requests for c in x):  # bytes that were no UTF-8, or half an emoji
            raise UserError("the request is no valid text: is it UTF-8?")
        prompter = replace(self.prompter, temperature=0.0) if greedy else self.prompter
        limit = prompter.model.config.max_len - prompter.max_new_tokens
        short = [x for x in requests if len(prompter.tokenizer.chat(x)) <= limit]
        written = iter(prompter.rewrite(short, self.generator) if short else ())
        rewrites = []
        for x in requests:
            x_prime = next(written) if len(prompter.tokenizer.chat(x)) <= limit else ""
            empty = None if x_prime.strip() else "empty"
            rewrites.append(Rewrite(x, x_prime, guards.objection(x, x_prime) if guard else empty))
        return rewrites

    @cached_property
    def frozen(self) -> FrozenModel:
        """The frozen model of the run: loaded, or behind its API. Raises UserError or FileNotFoundError without it."""
        return self.setup.saved_frozen_lm(self.path, USE_FILE)

    @cached_property
    def reward(self) -> Score:
        """The reward of the run, as it was reported."""
        return saved_reward(self.setup, self.path, USE_FILE, self.frozen)


def config_of(saved: dict) -> RunConfig:
    """The configuration that a run's config.json holds. Raises UserError for a file that holds none."""
    try:
        options = {}
        for f in dataclasses.fields(RunConfig):
            value = saved[f.name]
            options[f.name] = type(f.default)(**value) if dataclasses.is_dataclass(f.default) else value
        return RunConfig(**options)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"config.json is no configuration of a run ({error})") from None
