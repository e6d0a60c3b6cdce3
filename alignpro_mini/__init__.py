"""Align-Pro from scratch: a small prompter, trained by PPO, aligns a language model that nobody may touch."""

from alignpro_mini.checkpoint import load_pretrained, save_pretrained
from alignpro_mini.generation import Completion, generate
from alignpro_mini.transformer import Transformer, TransformerConfig

__all__ = ["Completion", "Transformer", "TransformerConfig", "generate", "load_pretrained", "save_pretrained"]
