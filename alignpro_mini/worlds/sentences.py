"""How the answers of a real model are rated where the token limit cut them: up to their last whole sentence.

At 64 tokens most answers are cut in the middle of a sentence. Half a sentence is no answer, and rewards differ in what
they make of it. So a truncated answer is rated without it, every arm alike; one without any whole sentence gets a fixed
low reward. What is left is still `Truncated`: no EOS is invented for a learned reward.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from alignpro_mini.options import UserError
from alignpro_mini.training import Score, Truncated

# A full stop, exclamation or question mark with closing quotes or brackets; not the "2." that begins a list's item.
# Only one digit is taken for such a number: "10." ends a sentence here, and "You need 2." does not.
END = re.compile(r"(?:(?<!\s\d)(?<!^\d)\.|[!?])[\"'”’)\]*]*(?=\s|$)", re.MULTILINE)
WORD = re.compile(r"[a-z']+")
LOW = 0.05  # an answer without a whole sentence gets this quantile of the other answers' rewards


def sentences(text: str) -> list[str]:
    """The sentences of a text; what follows the last end is one too."""
    starts = [0, *(match.end() for match in END.finditer(text))]
    parts = (text[a:b].strip() for a, b in zip(starts, [*starts[1:], len(text)]))
    return [part for part in parts if WORD.search(part.lower())]


def whole_sentences(text: str) -> str:
    """A finished answer as it is; a `Truncated` one up to the end of its last whole sentence, "" without one."""
    if not isinstance(text, Truncated):
        return text
    ends = [match.end() for match in END.finditer(text)]
    return Truncated(text[: ends[-1]]) if ends else Truncated("")


def low_reward(score: Score, prompts: Sequence[str], completions: Sequence[str]) -> float:
    """The reward of an answer without a whole sentence, from a sample of answers. Raises UserError if all are such."""
    rewards = _rated(score, prompts, completions)[1]
    if not len(rewards):
        raise UserError(f"none of {len(completions)} answers has a whole sentence: raise --sampling.max_new_tokens")
    return float(torch.as_tensor(rewards, dtype=torch.float64).quantile(LOW))


def by_sentences(score: Score, low: float | None) -> Score:
    """`score` of the whole sentences; `low` where there are none. With None (no real model): `score` as it is."""
    if low is None:
        return score

    def rated(prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        kept, rewards = _rated(score, prompts, completions)
        found = torch.full((len(completions),), low, dtype=torch.float32)
        if kept:
            found[kept] = torch.as_tensor(rewards, dtype=torch.float32).cpu()
        return found

    return rated


def _rated(score: Score, prompts: Sequence[str], completions: Sequence[str]) -> tuple[list[int], Tensor]:
    """The places of the answers with a whole sentence (or an end of their own), and their rewards."""
    cut = [whole_sentences(y) for y in completions]
    kept = [i for i, y in enumerate(cut) if y or not isinstance(y, Truncated)]
    rewards = score([prompts[i] for i in kept], [cut[i] for i in kept]) if kept else torch.zeros(0)
    return kept, rewards
