"""Sampling and scoring in batches: replace each `raise NotImplementedError`. Helpers and imports of your own are kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alignpro_mini.generation import Completion, _token_logprobs, by_length, check_prompts, decode
from alignpro_mini.generation import draw_uniforms, end_ids, pad_right, prefill
from alignpro_mini.options import UserError
from alignpro_mini.transformer import Transformer


def sampling_logprobs(logits: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """The log of the distribution that sampling draws from: (..., V) -> (..., V), float32.

    The sampler *and* the scorer of PPO call this one function. If one of them used another
    temperature, PPO's first probability ratio would not be 1. Nucleus: the smallest set of tokens
    whose mass reaches top_p; the others get -inf. Temperature 0 means greedy decoding, whose
    log-probs are reported at temperature 1. Raises ValueError for a temperature below 0 or a top_p
    outside (0, 1].
    """
    raise NotImplementedError


def draw(logp: Tensor, uniform: Tensor) -> Tensor:
    """One token of each row by its uniform number: log-probs (B, V), (B,) in [0, 1) -> ids (B,).

    Takes the first token at which the cumulative probability exceeds the number, so a token of
    probability 0 is never taken. Stays on the device.
    """
    raise NotImplementedError


@torch.no_grad()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    eos_id: int | Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    max_batch: int | None = None,
) -> list[Completion]:
    """Sample a continuation of each prompt (lists of token ids), returned in their order.

    A row stops at `eos_id`, or any of them (kept in its tokens), or after `max_new_tokens`.
    Temperature 0 is greedy. `generator` draws the numbers (None: PyTorch's global one). At most
    `max_batch` rows run at once (None: 256). Raises UserError for an empty prompt, one that leaves
    too little of the context, a max_batch below 1 and a negative max_new_tokens; ValueError as
    `sampling_logprobs` does.
    """
    raise NotImplementedError


def _pad(rows: Sequence[Sequence[int]], pad_id: int, device, left: bool) -> tuple[Tensor, Tensor]:
    raise NotImplementedError


def pad_pairs(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], device=None
) -> tuple[Tensor, Tensor]:
    """(prompt, completion) pairs, each one row -> ids (N, T) padded right, True on completions.

    To the model these go without a mask: a causal query never reaches right padding.
    """
    raise NotImplementedError


@torch.no_grad()
def sequence_logprobs(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_batch: int = 128,
) -> Tensor:
    """log p(completion | prompt) under the sampling of `generate`, summed over tokens: (N,), CPU.

    Both are lists of token ids; whether an EOS counts is up to the completion. -inf where top_p
    rules a token out. At most max_batch sequences at a time. Raises UserError for an empty prompt,
    as then nothing predicts the first token, and for a row longer than the context; ValueError
    where there are not as many completions as prompts.
    """
    raise NotImplementedError
