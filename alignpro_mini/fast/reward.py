"""What the frozen blocks of a reward model give for its training pairs, computed once instead of in every epoch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from alignpro_mini.generation import by_length
from alignpro_mini.reward import Preference, RewardModel, Row
from alignpro_mini.training import frozen_blocks

ROWS = 16  # rows that go through the frozen blocks together


class TrunkCache:
    """`model.trunk` for the rows of these pairs; hand it to `train_reward_model` as its `trunk`.

    It keeps 2 x pairs x tokens x D numbers in memory; an answer of several pairs is kept once. Where no block is frozen
    there is nothing to keep, and it calls `model.trunk`.
    """

    def __init__(self, model: RewardModel, pairs: Sequence[Preference]) -> None:
        self.model = model
        self.states: dict[tuple[int, ...], Tensor] = {}  # row -> (its tokens, D)
        if frozen_blocks(model.lm, model.train_layers) == 0:
            return
        encoded = [tuple(model.encode(p.prompt, y)) for p in pairs for y in (p.chosen, p.rejected)]
        rows = list(dict.fromkeys(encoded))
        for part in by_length([len(row) for row in rows], ROWS):
            states, _ = model.trunk([rows[i] for i in part])  # (16, T, D)
            for place, i in enumerate(part):
                self.states[rows[i]] = states[place, : len(rows[i])].clone()

    def __call__(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """The frozen blocks' states (B, T, D) of rows of these pairs, and the rows' mask (B, T)."""
        if not self.states:
            return self.model.trunk(rows)
        kept = [self.states[tuple(row)] for row in rows]
        states = nn.utils.rnn.pad_sequence(kept, batch_first=True)  # (B, T, D)
        lengths = torch.tensor([len(row) for row in rows], device=states.device)  # (B,)
        columns = torch.arange(states.shape[1], device=states.device)  # (T,)
        return states, columns < lengths[:, None]
