"""The embedded world, or real models: `setup_of` asks once which of them a run is about; its stages are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from alignpro_mini.frozen import FrozenModel
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.device import with_dtype
from alignpro_mini.lab.optimum import RatedRewrites
from alignpro_mini.lab.real import RealModels, RemoteModel
from alignpro_mini.lab.run import Run
from alignpro_mini.lab.toy import EmbeddedWorld
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.training import Score
from alignpro_mini.transformer import Transformer
from alignpro_mini.worlds.world import World


class Setup(Protocol):
    """What each kind of run does in its own way. `config` is that of the run."""

    config: RunConfig
    dtype: torch.dtype  # of the prompter

    # ------------------------------------------------------------ options

    def check(self) -> None:
        """Raises UserError for options that do not fit together."""

    def unread(self) -> dict[str, str]:
        """{section or option that this run does not read: why}; to set one is an error, since it would do nothing."""

    def defaults(self) -> dict[str, object]:
        """Options that hold unless they are given."""

    # ------------------------------------------------------------ requests and models

    def make_world(self) -> World:
        """The requests. Raises UserError or OSError for what cannot be read: before the run's folder is made."""

    def tokenizer(self, run: Run, world: World) -> Tokenizer:
        """The prompter's tokenizer."""

    def frozen_lm(self, run: Run, world: World, tokenizer: Tokenizer) -> FrozenModel:
        """The frozen model; one that is trained here shares the prompter's tokenizer."""

    def saved_frozen_lm(self, folder: Path, api_file: str) -> FrozenModel:
        """The frozen model of the finished run in `folder`."""

    def prompter_start(self, run: Run, tokenizer: Tokenizer) -> Callable[[], Transformer]:
        """A function that makes what the prompter starts from: where its SFT is finished nobody needs it."""

    # ------------------------------------------------------------ rewards

    def given_reward(self, folder: Path, api_file: str, pi_f: FrozenModel) -> Score:
        """The reward of --reward; a judge keeps its answers in the run's folder."""

    def reward_base(self, pi_f: FrozenModel) -> tuple[Transformer, Tokenizer]:
        """What a learned reward starts from."""

    def as_rated(self, answer: str) -> str:
        """What of an answer is rated."""

    def lowest_reward(self, score: Score, requests: Sequence[str], answers: Sequence[str]) -> float | None:
        """The reward of an answer of which nothing is rated; None where there are no such answers."""

    def rate_rewrites(self, run: Run, world: World, pi_f: FrozenModel, reward: Score) -> RatedRewrites:
        """The stage "listing": the enumerated rewrites of the first evaluation requests, and their rewards."""


def setup_of(config: RunConfig) -> Setup:
    """The setup of a run; its configuration has a dtype in place of "auto"."""
    config = with_dtype(config)
    if not config.real_model:
        return EmbeddedWorld(config)
    return RemoteModel(config) if config.remote else RealModels(config)
