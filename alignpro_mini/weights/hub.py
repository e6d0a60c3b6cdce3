"""A model by what a user calls it: a folder, a name on the Hugging Face hub, or nothing, which is SmolLM2."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from alignpro_mini.options import UserError, one_line
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.transformer import Transformer
from alignpro_mini.weights import chat
from alignpro_mini.weights.pretrained import load_pretrained
from alignpro_mini.weights.smollm2 import COMMAND, default_directory

NAME = re.compile(r"[\w.-]+/[\w.-]+")
FILES = ["*.json", "*.safetensors", "*.jinja"]  # of a published model, what is read here


def load_model(
    model: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    model_class: type[Transformer] = Transformer,
) -> tuple[Transformer, Tokenizer]:
    """Model and tokenizer: "" is the fetched SmolLM2, a folder is read, `owner/name` comes from the hub.

    Raises FileNotFoundError for a folder that is not there, and UserError for one without a tokenizer or that does not
    fit, and where the hub does not answer.
    """
    folder = folder_of(model)
    loaded, tokenizer = load_pretrained(folder, device, dtype, model_class)
    return loaded, _there(tokenizer, folder)


def load_tokenizer(model: str) -> Tokenizer:
    """The tokenizer of `load_model` alone, without reading the weights."""
    folder = folder_of(model)
    return _there(chat.load_tokenizer(folder), folder)


def _there(tokenizer: Tokenizer | None, folder: Path) -> Tokenizer:
    if tokenizer is None:
        raise UserError(f"{folder}: no tokenizer.json; copy it from where the weights came from")
    return tokenizer


def folder_of(model: str) -> Path:
    """Where the model lies, after a download if need be."""
    if model:
        return Path(model) if Path(model).is_dir() or not NAME.fullmatch(model) else download(model)
    if not (default_directory() / chat.CONFIG).exists():
        raise FileNotFoundError(f"{default_directory()}: SmolLM2-135M-Instruct is not here yet; run: {COMMAND}")
    return default_directory()


def download(name: str) -> Path:
    """The folder of a model of the hub, fetched once. Raises UserError saying what to download where by hand."""
    try:
        import huggingface_hub  # comes with tokenizers

        return Path(huggingface_hub.snapshot_download(name, allow_patterns=FILES))
    except Exception as error:  # no such name, no network, no permission: the library has its own class for each
        by_hand = f"put the *.json, *.jinja and *.safetensors files of https://huggingface.co/{name} into a folder, and"
        by_hand += " give that folder's path"
        raise UserError(f"{name}: no such folder, and the hub gave no model ({one_line(error)}): {by_hand}") from None
