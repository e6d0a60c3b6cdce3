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
from alignpro_mini.lab.real import PLAIN_FILE
from alignpro_mini.lab.rewards import saved_reward
from alignpro_mini.lab.setup import setup_of
from alignpro_mini.options import UserError, require
from alignpro_mini.remote.client import KEY, ApiConfig
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
    """What a run left behind, to use. Raises UserError for a folder without a trained prompter.

    A run's folder may come from somebody else. So code and addresses that its config.json names are used only if the
    user names them too: `reward` as in the folder, and `base_url`, which takes the place of the folder's.
    """

    def __init__(
        self, folder: str | Path, device: str = "auto", seed: int | None = None, reward: str = "", base_url: str = ""
    ) -> None:
        self.path = Path(folder)
        if not (self.path / "config.json").is_file():
            raise UserError(f"{folder}: no run (no config.json); give a folder such as runs/tiny-quality-seed0")
        config = replace(config_of(read_json(self.path / "config.json")), device=device)
        its = config.reward or "learned"
        require(reward in ("", config.reward), f"--reward {reward}: the reward of {folder} is {its!r:.200}")
        self.named_reward = bool(reward)
        self.named_address = bool(base_url)
        if base_url:
            config = replace(config, api=_api(config.api, base_url))
        self.config = config
        self.setup = setup_of(config)
        place = self.path / "checkpoints" / "align_pro"
        if not place.is_dir():
            raise UserError(f"{folder}: no trained prompter yet; finish the run with --resume")
        model, tokenizer = saved_model(place, resolve_device(device), self.setup.dtype)
        self.prompter = make_prompter(model, tokenizer, self.config.ppo)
        self.generator = torch.Generator()
        self.generator.seed() if seed is None else self.generator.manual_seed(seed)

    def rewrite(self, requests: Sequence[str], greedy: bool = False) -> list[Rewrite]:
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
            rewrites.append(Rewrite(x, x_prime, guards.objection(x, x_prime)))
        return rewrites

    @cached_property
    def frozen(self) -> FrozenModel:
        """The frozen model of the run: loaded, or behind its API. Raises UserError or FileNotFoundError without it."""
        if self.config.remote:
            self.require_address()
        return self.setup.saved_frozen_lm(self.path, USE_FILE)

    @cached_property
    def reward(self) -> Score:
        """The reward of the run, as it was reported. Raises UserError for one that the user did not name."""
        spec = self.config.reward
        named = f"{self.path}: its config.json names the reward {spec!r:.200}, which may be any program"
        require(self.named_reward or not spec, f"{named}; give --reward, too, to run it")
        if self.config.judge:
            self.require_address()
        return saved_reward(self.setup, self.path, USE_FILE, self.frozen)

    def require_address(self, option: str = "--api.base_url") -> None:
        """Raises UserError where only the folder says to which address requests go."""
        url = self.config.api.base_url
        named = f"{self.path}: its config.json names the address {url!r:.200}, which would get your requests and {KEY}"
        require(self.named_address, f"{named}; give {option}, too, to send them")
        for name in (USE_FILE, PLAIN_FILE):
            require(not (self.path / name).is_symlink(), f"{self.path / name} is a link to another file: remove it")


def config_of(saved: dict) -> RunConfig:
    """The configuration that a run's config.json holds. Raises UserError for a file that holds none."""
    try:
        options = {f.name: _as(f.default, saved[f.name]) for f in dataclasses.fields(RunConfig)}
        return RunConfig(**options)
    except (AttributeError, KeyError, TypeError, OverflowError, UserError) as error:
        raise UserError(f"config.json is no configuration of a run ({error})") from None


def _api(api: ApiConfig, base_url: str) -> ApiConfig:
    """The options of the API with this address for model and judge. Raises UserError for an address that is none."""
    try:
        return replace(api, base_url=base_url, judge_base_url="")
    except UserError as error:  # it begins with the field's name
        raise UserError(f"--api.{error}") from None


def _as(default, saved):
    """`saved` as a value like `default`. Raises AttributeError or TypeError where it is none."""
    if dataclasses.is_dataclass(default):
        return type(default)(**{name: _as(getattr(default, name), value) for name, value in saved.items()})
    if type(saved) is not type(default) and (type(saved), type(default)) != (int, float):
        raise TypeError(f"{saved!r:.60} is no {type(default).__name__}")
    return saved
