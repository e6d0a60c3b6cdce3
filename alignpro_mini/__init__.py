"""Align-Pro from scratch: a small prompter, trained by PPO, aligns a frozen language model."""

from alignpro_mini.generation import Completion, generate
from alignpro_mini.transformer import Transformer, TransformerConfig
from alignpro_mini.weights.pretrained import load_pretrained, save_pretrained

__all__ = [
    "Completion",
    "Transformer",
    "TransformerConfig",
    "generate",
    "load_pretrained",
    "save_pretrained",
]
