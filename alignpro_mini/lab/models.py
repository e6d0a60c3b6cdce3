"""The models of a run. They compute by the fast forward pass and sample by the fast sampler (`alignpro_mini.fast`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from alignpro_mini.alignpro import Prompter
from alignpro_mini.fast.sampling import generate
from alignpro_mini.fast.transformer import FastTransformer
from alignpro_mini.frozen import FrozenLM, FrozenModel, SamplingConfig
from alignpro_mini.lab.config import ShapeConfig
from alignpro_mini.options import UserError, require
from alignpro_mini.ppo import PPOConfig
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.transformer import Transformer
from alignpro_mini.weights import hub
from alignpro_mini.weights.pretrained import load_pretrained


def new_model(shape: ShapeConfig, vocab_size: int, generator: torch.Generator, device: torch.device) -> Transformer:
    """A transformer of this shape with fresh weights, drawn on the CPU so that every device starts the same."""
    return FastTransformer(shape.transformer(vocab_size), generator).to(device)


def saved_model(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[Transformer, Tokenizer]:
    """A model that a run saved, and its tokenizer."""
    return load_pretrained(folder, device, dtype, FastTransformer)


def published_model(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Transformer, Tokenizer]:
    """A published model and its tokenizer: a folder, a name on the hub, or "" for SmolLM2 (`hub.load_model`)."""
    return hub.load_model(name, device, dtype, FastTransformer)


def dtype_of_copy(model: Transformer, train_layers: int) -> torch.dtype:
    """What a copy that trains computes in: float32 where all of it trains, else as the blocks that stay frozen do."""
    return torch.float32 if train_layers == 0 else model.embed.weight.dtype


def copy_of(model: Transformer, train_layers: int = 0, blocks: int = 0) -> Transformer:
    """A model of its own with the same weights, to train its top layers, in `dtype_of_copy`.

    `blocks`: only so many of the model's blocks, the lower ones (0: all). Raises UserError where it has fewer.
    """
    shape = model.config
    require(blocks <= shape.n_layers, f"--reward_blocks is {blocks}, but the model has {shape.n_layers}: lower it")
    twin = FastTransformer(replace(shape, n_layers=blocks or shape.n_layers))
    twin = twin.to(model.device, dtype_of_copy(model, train_layers))
    names = twin.state_dict().keys()
    twin.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in names})
    return twin


def make_frozen_lm(model: Transformer, tokenizer: Tokenizer, sampling: SamplingConfig) -> FrozenLM:
    """The frozen LM with these weights."""
    return FrozenLM(model, tokenizer, sampling, generate)


def make_prompter(model: Transformer, tokenizer: Tokenizer, ppo: PPOConfig) -> Prompter:
    """The prompter with these weights; it samples as PPO does."""
    return Prompter(model.eval(), tokenizer, ppo.max_new_tokens, ppo.temperature, generate)


def with_weights(pi_f: FrozenModel, what: str) -> FrozenLM:
    """pi_f, for a part that needs its weights. Raises UserError naming that part where there are none."""
    if not isinstance(pi_f, FrozenLM):
        raise UserError(f"{what} needs the weights of the frozen model, and this one returns answers only")
    return pi_f


def assert_frozen(pi_f: FrozenModel, after: str) -> None:
    """Check that the stage `after` did not change the frozen model, where its weights are here."""
    if isinstance(pi_f, FrozenLM):
        pi_f.assert_unchanged(after)
