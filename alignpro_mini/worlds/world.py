"""What every world provides, and the options of the embedded one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from alignpro_mini.alignpro import Gold
from alignpro_mini.options import check_ranges, option, require


@dataclass(frozen=True, slots=True)
class WorldConfig:
    """The embedded world (presets tiny, small and gpt2 only)."""

    follow: float = option(0.9, "probability that an answer obeys a cue, for each part of the style (not in reasoning)")
    spread: str = option("plain", "which prompts get answers of random style; not in reasoning", ("plain", "cue"))
    wishes: bool = option(True, "the request decides which answer is best; false: one sentence serves all requests")
    eval_requests: int = option(600, "requests kept for evaluation, never trained on", least=1)
    unseen_towns: int = option(0, "towns that only the frozen LM has read about: all evaluation is on them", least=0)

    def __post_init__(self) -> None:
        check_ranges(self)
        require(0 <= self.follow <= 1, f"follow is {self.follow}; a probability lies in 0..1")
        most = f"unseen_towns is {self.unseen_towns}; of the 24 towns at least 4 must be left to train on"
        require(self.unseen_towns <= 20, most)


def answers_of_others(answers: Sequence[str], rng: random.Random) -> list[str]:
    """For each answer another one of the list, drawn at random; a single answer stays."""
    count = len(answers)
    return [answers[(i + rng.randrange(1, count)) % count] if count > 1 else y for i, y in enumerate(answers)]


class World(Protocol):
    """Requests to train and to evaluate on, rewrites to imitate, and the true reward where it is known."""

    task: str
    train_requests: list[str]
    eval_requests: list[str]
    gold: Gold | None  # true rewards of answers; None where they are unknown

    def rewrite_pairs(self, count: int, rng: random.Random) -> list[tuple[str, str]]:
        """SFT data for the prompter: (request, rewrite)."""

    def rewrites(self, request: str) -> list[str]:
        """The enumerated rewrites of a request, the plain request first; [] where they cannot be enumerated."""

    def preferences(self) -> list[tuple[str, str, str]] | None:
        """(request, chosen, rejected); None where pairs of the frozen model's answers are to be judged by `gold`."""

    def swapped(self, requests: Sequence[str], answers: Sequence[str], rng: random.Random) -> list[str]:
        """For each answer one that would belong to another request; the answer itself where there is none."""

    def with_other_wish(self, requests: Sequence[str], rng: random.Random) -> list[str]:
        """Requests for which something else is wanted of the same answers; [] where nobody knows of such requests."""

    def groups(self, requests: Sequence[str]) -> list[str]:
        """A label for each: requests of one label have something in common that held-out ones were chosen by."""

    def describe(self, requests: Sequence[str], rewrites: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
        """Further figures of an arm: `requests` go with `answers`; `rewrites` are all that were sent."""
