"""How the answers of a real model are rated where the token limit cut them: up to their last whole sentence or line.

At 64 tokens most answers are cut in the middle of a sentence. Half a sentence is no answer, and rewards differ in what
they make of it. So a truncated answer is rated without it, every arm alike; one without any whole sentence or line gets
a fixed low reward. What is left is still `Truncated`: no EOS is invented for a learned reward. `--cut whole` rates such
answers as they are.

Many scripts have marks of their own. Lists, code and JSON have lines instead of sentences.
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
# Other scripts: Chinese and Japanese, Arabic and Urdu, Hindi and its relatives, Armenian, Ethiopic, Burmese, Khmer,
# Tibetan, and rarer ones. They need no space after the mark; "．" is also the point of "３．５". Thai and Lao have no
# mark: there a space ends a sentence or a phrase.
END = re.compile(
    r"(?:(?<!\s\d)(?<!^\d)\.|[!?])[\"'“”’»)\]*_]*(?=\s|$)"
    r"|(?:[。！？｡؟۔।॥։።፧။។༎།‼⁇⁈⁉᠃᭟꧉᱾꯫]|(?<!\d)．)[\"'”’)\]*_」』）】》]*"
    r"|(?<=[\u0e01-\u0eff])(?=[ \n])",
    re.MULTILINE,
)
# A whole line; not one that announces what follows: with a colon at its end, or the ```python before code.
LINE = re.compile(r"^(?![^\S\n]*```\w).*[^\s:：][^\S\n]*(?=\n)", re.MULTILINE)
WORD = re.compile(r"[a-z']+")
LOW = 0.05  # an answer without a whole sentence gets this quantile of the other answers' rewards


def sentences(text: str) -> list[str]:
    """The sentences of a text; what follows the last end is one too."""
    starts = [0, *(match.end() for match in END.finditer(text))]
    parts = (text[a:b].strip() for a, b in zip(starts, [*starts[1:], len(text)]))
    return [part for part in parts if WORD.search(part.lower())]


def whole_sentences(text: str) -> str:
    """A finished answer as it is; a `Truncated` one up to the end of its last whole sentence or line, "" without one."""
    if not isinstance(text, Truncated):
        return text
    ends = [match.end() for pattern in (END, LINE) for match in pattern.finditer(text)]
    return Truncated(text[: max(ends, default=0)])


def low_reward(score: Score, prompts: Sequence[str], completions: Sequence[str]) -> float:
    """The reward of an answer without a whole sentence or line, from a sample of answers.

    Raises UserError if all are such.
    """
    rewards = _rated(score, prompts, completions)[1]
    if not len(rewards):
        problem = f"none of {len(completions)} answers has a whole sentence or line"
        raise UserError(f"{problem}: raise --sampling.max_new_tokens, or rate them as they are with --cut whole")
    return float(torch.as_tensor(rewards, dtype=torch.float64).quantile(LOW))


def by_sentences(score: Score, low: float | None) -> Score:
    """`score` of the whole sentences; `low` where there are none. With None (`--cut whole`): `score` as it is."""
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
