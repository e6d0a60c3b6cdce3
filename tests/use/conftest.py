"""A run's folder that nobody trained: for what depends on the folder and not on what it learned."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from alignpro_mini.lab.config import preset
from alignpro_mini.lab.models import new_model
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.weights.pretrained import save_pretrained

X = "Tell me about Milton."


@pytest.fixture
def untrained(tmp_path, monkeypatch):
    """A function that writes the folder "run" with these options changed; the working directory is a new one."""
    monkeypatch.chdir(tmp_path)

    def make(api: dict | None = None, **changes) -> str:
        config = preset("micro")
        tokenizer = Tokenizer.train([X, "What is Milton known for? Answer in one short sentence."], vocab_size=260)
        draw = torch.Generator().manual_seed(0)
        for name in ("align_pro", "frozen_lm"):
            model = new_model(config.prompter_model, tokenizer.vocab_size, draw, torch.device("cpu"))
            save_pretrained(model, Path("run", "checkpoints", name), tokenizer)
        Path("run", "checkpoints", "reward_scale.json").write_text('{"mean": 0, "std": 1, "low": null}')
        saved = dataclasses.asdict(config) | changes
        saved["api"] |= api or {}
        Path("run", "config.json").write_text(json.dumps(saved))
        return "run"

    return make
