"""How far a reward model's held-out accuracy can be believed: its interval, and two harder comparisons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from alignpro_mini.lab.statistics import bootstrap_interval
from alignpro_mini.reward import Preference, RewardModel, accuracy, accuracy_ceiling, always_longer
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.training import Truncated

RESAMPLES = 2000
FEWEST = 10  # pairs of like length: fewer say nothing


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
