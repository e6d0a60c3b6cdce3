"""What a reward model's held-out accuracy must be compared with, and how far it can be believed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from alignpro_mini.alignpro import Gold
from alignpro_mini.lab.statistics import bootstrap_interval
from alignpro_mini.reward import Preference, RewardModel, accuracy
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.training import Score, Truncated

RESAMPLES = 2000
FEWEST = 10  # pairs of like length: fewer say nothing


def accuracy_ceiling(pairs: Sequence[Preference]) -> float | None:
    """Expected accuracy of the true reward on these noisy labels: mean of max(P, 1 - P); None if P is unknown."""
    if any(p.certainty is None for p in pairs):
        return None
    return sum(max(p.certainty, 1 - p.certainty) for p in pairs) / len(pairs)


def always_longer(pairs: Sequence[Preference]) -> float:
    """Accuracy of the rule "the longer answer wins" (equal: half): what a reward model must beat."""
    points = 0.0
    for p in pairs:
        points += len(p.chosen) > len(p.rejected)
        points += 0.5 * (len(p.chosen) == len(p.rejected))
    return points / len(pairs)


def swap_accuracy(
    reward: Score, prompts: Sequence[str], answers: Sequence[str], swapped: Sequence[str]
) -> float | None:
    """Share of prompts with r(x, y) > r(x, y~), y~ the answer `swapped` for that of another request (equal: half).

    0.5: the reward does not read x. The gold reward's own share is the ceiling: it is below 1 where answers are often
    wrong. Prompts whose two answers are the same text are left out; None if all are.
    """
    kept = [(x, y, other) for x, y, other in zip(prompts, answers, swapped, strict=True) if y != other]
    if not kept:
        return None
    x, y, other = map(list, zip(*kept))
    apart = torch.as_tensor(reward(x, y)) - torch.as_tensor(reward(x, other))  # (B,)
    return ((apart > 0).float() + 0.5 * (apart == 0).float()).mean().item()


def wish_accuracy(
    reward: Score,
    gold: Gold,
    requests: tuple[Sequence[str], Sequence[str]],
    answers: tuple[Sequence[str], Sequence[str]],
) -> float | None:
    """Share of right rankings of two answers under two requests that differ in their wish (equal: half).

    Only where `gold` prefers one answer under one wish and the other answer under the other. There a reward that does
    not read the wish ranks the answers alike under both, and is right in exactly one of two. None without such a case.
    """

    def apart(score: Score, x: Sequence[str]) -> Tensor:
        first, second = (torch.as_tensor(score(x, y), dtype=torch.float64) for y in answers)
        return first - second  # (B,)

    truth = torch.stack([apart(gold, x) for x in requests])  # (2, B)
    said = torch.stack([apart(reward, x) for x in requests])  # (2, B)
    reverses = truth[0] * truth[1] < 0  # (B,)
    if not reverses.any():
        return None
    right = ((truth * said).sign()[:, reverses] + 1) / 2
    return right.mean().item()


def cut_at(text: str, tokenizer: Tokenizer, limit: int) -> str:
    """`text` as an LM that writes at most `limit` tokens, EOS included, leaves it: `Truncated` where it is longer."""
    ids = tokenizer.encode(text)
    return text if isinstance(text, Truncated) or len(ids) < limit else Truncated(tokenizer.decode(ids[:limit]))


def accuracy_facts(model: RewardModel, pairs: Sequence[Preference], cut: Callable[[str], str]) -> dict:
    """Accuracy on held-out pairs with its interval, its ceiling and baseline, and the accuracy on two kinds of pairs.

    The interval resamples prompts, whose pairs are not independent (None for a single prompt). `length_matched`: where
    both answers' characters differ by at most 10 % of the longer one (None: fewer than 10 pairs).
    `truncated_accuracy`: of the answers as `cut` leaves them, where it leaves something of both (None: it cuts none).
    """
    prompts, chosen, rejected = zip(*((p.prompt, p.chosen, p.rejected) for p in pairs))
    apart = model.raw(prompts, chosen) - model.raw(prompts, rejected)  # (B,)
    right = (np.sign(apart.double().numpy()) + 1) / 2  # (B,): 1, 0; a tie 0.5
    alike = [10 * abs(len(a) - len(b)) <= max(len(a), len(b)) for a, b in zip(chosen, rejected)]
    short = [replace(p, chosen=cut(p.chosen), rejected=cut(p.rejected)) for p in pairs]
    is_cut = any(s.chosen is not p.chosen or s.rejected is not p.rejected for s, p in zip(short, pairs))
    short = [p for p in short if p.chosen and p.rejected]
    return {
        "accuracy": float(right.mean()),
        "ceiling": accuracy_ceiling(pairs),
        "always_longer": always_longer(pairs),
        "accuracy_ci95": bootstrap_interval(right, RESAMPLES, prompts) if len(set(prompts)) > 1 else None,
        "length_matched": float(right[alike].mean()) if sum(alike) >= FEWEST else None,
        "length_matched_pairs": sum(alike),
        "truncated_accuracy": accuracy(model, short) if is_cut and short else None,
    }
