"""Copies of models."""

import pytest
import torch

from alignpro_mini.lab.models import copy_of
from alignpro_mini.options import UserError
from alignpro_mini.transformer import Transformer, TransformerConfig


def test_a_reward_model_may_keep_the_lower_blocks_only():
    shape = TransformerConfig(300, d_model=16, n_layers=3, n_heads=2, max_len=32)
    model = Transformer(shape, torch.Generator().manual_seed(0)).eval()
    ids = torch.randint(300, (2, 7), generator=torch.Generator().manual_seed(1))
    lower = copy_of(model, 1, 2)
    assert lower.config.n_layers == len(lower.blocks) == 2
    assert torch.equal(lower.hidden(ids), model.norm(model.hidden(ids, stop=2)))
    assert torch.equal(copy_of(model)(ids), model(ids))
    with pytest.raises(UserError, match="--reward_blocks is 4, but the model has 3: lower it"):
        copy_of(model, 1, 4)
