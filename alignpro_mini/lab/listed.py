"""Every listed ending of a real model's requests: the frozen model's answers, kept for all runs, and their rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from alignpro_mini.frozen import Answer, FrozenModel
from alignpro_mini.lab.config import RunConfig, preset
from alignpro_mini.lab.run import Run
from alignpro_mini.options import UserError
from alignpro_mini.training import Score
from alignpro_mini.worlds.files import DataConfig
from alignpro_mini.worlds.world import World

ANSWERS = "answers.jsonl"
SHARED = ("task", "seed", "device", "dtype", "sampling", "out")  # options of a run that its answers depend on


def listed_answers(config: RunConfig, model: dict[str, object], world: World, pi_f: FrozenModel) -> list[dict]:
    """Answers of the frozen model to all listed rewrites of the first *training* requests, kept for every later use.

    A row a request: {"x", "rewrites": K texts, "y": K*M texts, "truncated": K*M}, in `<out>/listing-.../answers.jsonl`.
    They depend on nothing but the frozen model (the options `model`), its sampling and the seed. So all runs share
    them, and a listing that was stopped goes on. Raises UserError where the folder's answers were sampled otherwise.
    """
    options = model | {name: getattr(config, name) for name in SHARED}
    shared = replace(preset(config.preset), **options, data=DataConfig(config.data.prompts))
    place = Run(replace(shared, name=f"listing-{shared.run_name}"), resume=True, wait=True)
    count = config.theory.inputs
    rows = place.rows(ANSWERS)
    _check_rows(rows, place, config.theory.answers, world.train_requests[:count])
    for x in world.train_requests[len(rows) : count]:
        rows.append(
            _answered(x, world.rewrites(x), config.theory.answers, pi_f, place.generator(f"listing {len(rows)}"))
        )
        place.append(ANSWERS, rows[-1:])
        print(f"[listing] request {len(rows)} of {count}", flush=True)
    return rows[:count]


def _check_rows(rows: Sequence[dict], place: Run, each: int, requests: Sequence[str]) -> None:
    """Raises UserError for rows with another number of answers to a rewrite, or of other requests."""
    file = place.path / ANSWERS
    for kept in {len(row["y"]) // len(row["rewrites"]) for row in rows} - {each}:
        problem = f"{file} has {kept} answers to a rewrite, not {each}"
        raise UserError(f"{problem}: leave --theory.answers at {kept}, or move the folder away")
    if any(row["x"] != x for row, x in zip(rows, requests)):
        raise UserError(f"{file} is not of these requests in their order: move the folder away")


def _answered(x: str, rewrites: list[str], each: int, pi_f: FrozenModel, draw: torch.Generator) -> dict:
    """One row: `each` answers to every rewrite."""
    answers = pi_f.answer([x_prime for x_prime in rewrites for _ in range(each)], draw)
    texts = [answer.text for answer in answers]
    return {"x": x, "rewrites": rewrites, "y": texts, "truncated": [answer.truncated for answer in answers]}


def rated(rows: Sequence[dict], reward: Score) -> Tensor:
    """Rewards (N, K, M) float64 of listed answers, each against its request."""
    r = torch.as_tensor(reward(*asked_and_answered(rows)), dtype=torch.float64)
    return r.view(len(rows), len(rows[0]["rewrites"]), -1)


def asked_and_answered(rows: Sequence[dict]) -> tuple[list[str], list[str]]:
    """The request of each listed answer, and the answers; a truncated one is marked as such."""
    answers = [Answer(y, truncated).text for row in rows for y, truncated in zip(row["y"], row["truncated"])]
    return [row["x"] for row in rows for _ in row["y"]], answers
