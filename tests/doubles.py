"""Small fakes, one for each interface, so that a test takes milliseconds."""

import tempfile
from pathlib import Path

import torch

from alignpro_mini.training import SilentStage
from alignpro_mini.transformer import Transformer, TransformerConfig

ROOT = Path(__file__).resolve().parent.parent


def in_a_folder(check):
    """For `ahead(run=...)`: check(folder) in a temporary folder; gives its result, or its exception, for the test to raise."""

    def run():
        with tempfile.TemporaryDirectory() as place:
            try:
                return check(Path(place))
            except Exception as error:
                return error

    return run


class Letters:
    """A tokenizer of one token a letter: 0 pad, 1 user, 2 assistant, 3 end, then a = 4, b = 5, ... h = 11."""

    def __init__(self, pad_id: int = 0, eos_id: int = 3, letters: str = "abcdefgh") -> None:
        self.letters = letters
        self.pad_id = pad_id
        self.eos_id = eos_id
        self.end_ids = (eos_id,)
        self.vocab_size = 4 + len(letters)

    def encode(self, text: str) -> list[int]:
        return [4 + self.letters.index(c) for c in text]

    def decode(self, ids) -> str:
        return "".join(self.letters[i - 4] for i in ids if i >= 4 and i != self.eos_id)

    def chat(self, prompt: str) -> list[int]:
        return [1, *self.encode(prompt), 2]

    def chat_with_answer(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        return self.chat(prompt), [*self.encode(answer), self.eos_id]


def random_lm(family: str = "llama", seed: int = 5, spread: float = 0.4, **changes) -> Transformer:
    """A tiny model with large, uneven weights: with freshly drawn ones attention is flat and hides its bugs."""
    settings = dict(vocab_size=12, d_model=16, n_layers=2, n_heads=4, max_len=40, family=family) | changes
    if family == "llama":
        settings.setdefault("n_kv_heads", 2)
    draw = torch.Generator().manual_seed(seed)
    model = Transformer(TransformerConfig(**settings), draw)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(spread * torch.randn(p.shape, generator=draw))
            if p.dim() == 1:  # a norm's scale lies about 1; a large last bias would drown what the text says
                p.copy_(1 + p if name.endswith("weight") else p / 4)
    return model.eval()


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
