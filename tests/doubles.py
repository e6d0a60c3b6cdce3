"""Small fakes, one for each interface, so that a test takes milliseconds."""

import tempfile
from pathlib import Path

import torch

from alignpro_mini.experiments.gradient import Letters, random_lm  # noqa: F401
from alignpro_mini.training import SilentStage
from alignpro_mini.transformer import Transformer, TransformerConfig

ROOT = Path(__file__).resolve().parent.parent


def in_a_folder(check):
    """For `ahead(run=...)`: check(folder) in a temporary folder; gives its exception, for the test to raise, or None."""

    def run():
        with tempfile.TemporaryDirectory() as place:
            try:
                check(Path(place))
            except Exception as error:
                return error

    return run


def lookup_lm(rows: dict[int, dict[int, float]], vocabulary: int = 12, max_len: int = 40) -> Transformer:
    """A model whose next token depends on the last one only: rows[last][next] is its exact probability.

    A token without a row is followed by any token, all equally likely; a `next` left out never comes. The blocks add
    nothing and the embedding is one-hot, so the last norm times the output matrix reads one row of the table.
    """
    config = TransformerConfig(
        vocabulary, d_model=vocabulary, n_layers=1, n_heads=1, max_len=max_len, tied=False, norm_eps=1e-12
    )
    model = Transformer(config)
    table = torch.zeros(vocabulary, vocabulary)  # (last, next) logits
    for last, following in rows.items():
        table[last] = -1e9
        for token, p in following.items():
            table[last, token] = torch.tensor(p).log()
    with torch.no_grad():
        model.embed.weight.copy_(torch.eye(vocabulary))
        model.unembed.weight.copy_(table.T / vocabulary**0.5)
        model.blocks[0].attn.out.weight.zero_()
        model.blocks[0].mlp.down.weight.zero_()
    return model.eval()


class FakeStage(SilentStage):
    """A stage that keeps its log in memory and saves nothing."""

    def __init__(self) -> None:
        self.rows: list[dict] = []
        self.shown: list[dict] = []

    def log(self, step: int, metrics: dict, samples=()) -> None:
        self.rows.append({"step": step} | metrics)
        self.shown += samples
