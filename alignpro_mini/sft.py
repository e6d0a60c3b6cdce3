"""Supervised fine-tuning: next-token loss on the answer, given the prompt.

It trains the frozen LM and the SFT prompter.

    ids    <|user|> Tell me about Oakdale . <|assistant|> Oakdale is a town . <|end|>
    loss                                                  ^^^^^^^^^^^^^^^^^^^^^^^^^^^
                                                          the answer's tokens, EOS too

Shape legend:  B rows   T tokens   V vocabulary   D width
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from alignpro_mini import options, training
from alignpro_mini.generation import by_length, pad_pairs
from alignpro_mini.options import check_ranges, option, require
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.training import LOG_EVERY, SilentStage, Stage
from alignpro_mini.transformer import Transformer

Encoded = tuple[list[int], list[int]]  # prompt ids, answer ids with EOS


@dataclass(frozen=True, slots=True)
class SFTConfig:
    """Supervised fine-tuning (next-token loss on the answer) of the frozen LM or the prompter."""

    examples: int = option(20_000, "training examples drawn in the embedded world", least=1)
    steps: int = option(700, "optimiser steps", least=1)
    batch_size: int = option(32, "examples a step", least=1)
    micro_batch_size: int = option(16, options.MICRO_BATCH.format("examples"), least=1)
    lr: float = option(
        3e-3, "peak learning rate; 5 % linear warm-up, then cosine down to a tenth", above=0
    )
    weight_decay: float = option(0.01, "AdamW's decoupled weight decay, on matrices only", least=0)
    max_grad_norm: float = option(1.0, options.MAX_GRAD_NORM, above=0)
    train_layers: int = option(0, options.TRAIN_LAYERS, least=0)
    heldout_examples: int = option(
        256, "examples kept out of training to report the loss on", least=1
    )
    heldout_share: float = option(
        1.0, "at most this share of the distinct prompts is kept out, and one at least", above=0
    )

    __post_init__ = check_ranges


# ---------------------------------------------------------------- examples


def encode_pairs(
    pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer, max_len: int
) -> list[Encoded]:
    """(prompt, answer) texts -> ids.

    Raises UserError, naming the pair, when one does not fit the context.
    """
    encoded = []
    for number, (prompt, answer) in enumerate(pairs):
        prompt_ids, answer_ids = tokenizer.chat_with_answer(prompt, answer)
        length = len(prompt_ids) + len(answer_ids)
        require(
            length <= max_len,
            f"training pair {number} has {length} tokens, more than the context of {max_len}: "
            f"shorten it or raise max_len ({prompt[:60]!r})",
        )
        encoded.append((prompt_ids, answer_ids))
    return encoded


def split_heldout(
    examples: Sequence[Encoded], count: int, share: float = 1.0
) -> tuple[list[Encoded], list[Encoded]]:
    """(train, held out): the first `count` examples are held out.

    Later examples with the prompt of a held-out one are left out of training: otherwise the
    held-out loss would not show overfitting. Where few prompts come many times, that would leave
    little. So only the first prompts are held out, at most `share` of them, with up to `count` of
    their examples.
    """
    distinct = dict.fromkeys(tuple(prompt) for prompt, _ in examples)
    first = dict.fromkeys(tuple(prompt) for prompt, _ in examples[:count])
    held = set(list(first)[: max(1, int(share * len(distinct)))])
    train = [example for example in examples if tuple(example[0]) not in held]
    heldout = [example for example in examples if tuple(example[0]) in held]
    return train, heldout[:count]


def micro_batches(examples: Sequence[Encoded], rows: int) -> Iterator[tuple[list[Encoded], float]]:
    """The examples in parts of `rows`, and each part's share of the answer tokens.

    Rows of similar length are together. The shares weigh the parts' mean losses into that of the
    whole, so the cutting changes padding and memory only.
    """
    answer_tokens = sum(len(answer) for _, answer in examples)
    lengths = [len(prompt) + len(answer) for prompt, answer in examples]
    for index in by_length(lengths, rows):
        part = [examples[i] for i in index]
        yield part, sum(len(answer) for _, answer in part) / answer_tokens


# ---------------------------------------------------------------- the loss


def answer_loss(model: Transformer, batch: Sequence[Encoded], train_layers: int = 0) -> Tensor:
    """Mean cross-entropy in nats per answer token over the batch; a scalar."""
    ids, is_answer = pad_pairs(batch, model.device)  # (B, T), (B, T)
    # Right padding needs no mask: a causal query never reaches it, and it is not read.
    features = training.trunk(model, ids, None, train_layers)
    frozen = training.frozen_blocks(model, train_layers)
    hidden = model.hidden(features, start=frozen)  # (B, T, D)
    # Token t is predicted from the state at t-1. Only those states meet the large output matrix.
    predicting = hidden[:, :-1][is_answer[:, 1:]]  # (answer tokens, D)
    logits = model.unembed(predicting)  # (answer tokens, V)
    return F.cross_entropy(logits.float(), ids[:, 1:][is_answer[:, 1:]])


@torch.no_grad()
def heldout_loss(model: Transformer, examples: Sequence[Encoded], rows: int) -> float:
    """Mean nats per answer token over all examples, `rows` at a time."""
    loss = 0.0
    for part, share in micro_batches(examples, rows):
        loss += answer_loss(model, part).item() * share
    return loss


def accumulate_gradients(model: Transformer, batch: Sequence[Encoded], config: SFTConfig) -> float:
    """Add the gradient of the batch's loss to the weights' gradients; returns the loss."""
    loss = 0.0
    for part, share in micro_batches(batch, config.micro_batch_size):
        part_loss = answer_loss(model, part, config.train_layers) * share
        part_loss.backward()
        loss += part_loss.item()
    return loss


# ---------------------------------------------------------------- training


def train_sft(
    model: Transformer,
    examples: Sequence[Encoded],
    config: SFTConfig = SFTConfig(),
    stage: Stage = SilentStage(),
    generator: torch.Generator | None = None,
) -> Transformer:
    """Train `model` on encoded pairs; returns it in eval mode.

    The first `config.heldout_examples` pairs are held out (`split_heldout`). Loss and held-out loss
    are logged, and the state saved and restored, through `stage`. `generator` draws the order of
    the examples (None: PyTorch's global one).
    """
    count = config.heldout_examples
    train, heldout = split_heldout(examples, count, config.heldout_share)
    parameters = training.trainable(model, config.train_layers)
    optimizer = training.make_optimizer(parameters, config.lr, config.weight_decay)
    batches = training.shuffled_batches(len(train), config.batch_size, generator)
    start, _ = stage.restore(model, optimizer)
    # The batches follow from the seed alone: a resumed run skips those that it has trained on.
    for _ in range(start):
        next(batches)
    losses: list[float] = []  # of each step since the last log row
    tokens = 0  # read since then
    since = time.perf_counter()
    for step in stage.progress(start, config.steps):
        batch = [train[i] for i in next(batches)]
        losses.append(accumulate_gradients(model, batch, config))
        lr = training.warmup_cosine(step, config.steps, config.lr)
        training.optimizer_step(optimizer, parameters, config.max_grad_norm, lr)
        tokens += sum(len(prompt) + len(answer) for prompt, answer in batch)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == config.steps:
            metrics = {
                "loss": sum(losses) / len(losses),
                "heldout_loss": heldout_loss(model, heldout, config.micro_batch_size),
                "lr": lr,
                "tokens_per_s": tokens / (time.perf_counter() - since),
            }
            stage.log(step + 1, metrics)
            stage.save(step + 1, model, optimizer)
            losses = []
            tokens = 0
            since = time.perf_counter()
    return model.eval()
