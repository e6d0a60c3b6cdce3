"""The fixed rewrite: the one sentence that serves all requests best, found without training.

It is the simplest competitor of a prompter, which reads each request. A *kind* of rewrite is a place in the list
`world.rewrites(x)`, the same for every request: a phrasing and a cue, or an ending.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from alignpro_mini.frozen import FrozenModel
from alignpro_mini.training import Score
from alignpro_mini.worlds.world import World

Rate = Callable[[list[int], int], list[float]]


def successive_halving(count: int, budget: int, rate: Rate) -> tuple[int, list[dict]]:
    """The best of `count` arms by about `budget` rewards: (its number, the rounds).

    Every round gives its arms equally many new rewards, and the better half goes on; every round costs the same
    (Karnin, Koren and Somekh 2013, "Almost Optimal Exploration in Multi-Armed Bandits"). `rate(arms, each)` gives the
    arms' mean rewards, from `each` rewards of each.
    """
    arms = list(range(count))
    rounds: list[dict] = []
    each_round = budget / max(1, math.ceil(math.log2(count)))
    while len(arms) > 1:
        each = max(1, int(each_round / len(arms)))
        means = rate(arms, each)
        ranked = sorted(zip(means, arms), key=lambda pair: (-pair[0], pair[1]))
        rounds.append({"arms": arms, "each": each, "means": means})
        arms = sorted(arm for _, arm in ranked[: math.ceil(len(arms) / 2)])
    return arms[0], rounds


def find_fixed_rewrite(
    world: World, requests: Sequence[str], frozen: FrozenModel, reward: Score, budget: int, generator: torch.Generator
) -> dict:
    """The kind of rewrite with the best mean reward over `requests`, by about `budget` answers of the frozen model.

    In a round all kinds rewrite the same requests, drawn at random. Returns its place in `world.rewrites(x)`, the
    answers that it cost, and the rounds of the search.
    """

    def rate(kinds: list[int], each: int) -> list[float]:
        picked = torch.randint(len(requests), (each,), generator=generator).tolist()
        x = [requests[i] for i in picked]  # (each)
        listed = [world.rewrites(request) for request in x]
        asked = [row[kind] for kind in kinds for row in listed]  # (kinds * each)
        answers = [answer.text for answer in frozen.answer(asked, generator)]
        rewards = torch.as_tensor(reward(x * len(kinds), answers), dtype=torch.float64)
        return rewards.view(len(kinds), each).mean(1).tolist()

    kind, rounds = successive_halving(len(world.rewrites(requests[0])), budget, rate)
    return {"kind": kind, "answers": sum(len(row["arms"]) * row["each"] for row in rounds), "rounds": rounds}
