"""Supervised fine-tuning: next-token loss on the answer, given the prompt. Trains the frozen LM and the prompter.

    ids    <|user|> Tell me about Oakdale . <|assistant|> Oakdale is a town . <|end|>
    loss                                                  ^^^^^^^^^^^^^^^^^^^^^^^^^^^ the answer's tokens, EOS too

Shape legend:  B rows   T tokens   V vocabulary   D width
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from alignpro_mini import training
from alignpro_mini.generation import by_length, pad_pairs
from alignpro_mini.options import MAX_GRAD_NORM, MICRO_BATCH, TRAIN_LAYERS, check_ranges, option, require
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
    micro_batch_size: int = option(16, MICRO_BATCH.format("examples"), least=1)
    lr: float = option(3e-3, "peak learning rate; 5 % linear warm-up, then cosine down to a tenth", above=0)
    weight_decay: float = option(0.01, "AdamW's decoupled weight decay, on matrices only", least=0)
    max_grad_norm: float = option(1.0, MAX_GRAD_NORM, above=0)
    train_layers: int = option(0, TRAIN_LAYERS, least=0)
    heldout_examples: int = option(256, "examples kept out of training to report the loss on", least=1)

    __post_init__ = check_ranges


def encode_pairs(pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer, max_len: int) -> list[Encoded]:
    """(prompt, answer) texts -> ids. Raises UserError, naming the pair, when one does not fit the context."""
    encoded = []
    for i, (prompt, answer) in enumerate(pairs):
        ids = tokenizer.chat_with_answer(prompt, answer)
        told = f"training pair {i} has {sum(map(len, ids))} tokens, more than the context of {max_len}"
        require(sum(map(len, ids)) <= max_len, f"{told}: shorten it or raise max_len ({prompt[:60]!r})")
        encoded.append(ids)
    return encoded


def answer_loss(model: Transformer, batch: Sequence[Encoded], train_layers: int = 0) -> Tensor:
    """Mean cross-entropy in nats per answer token over the batch; a scalar."""
    ids, is_answer = pad_pairs(batch, model.device)  # (B, T)
    hidden = model.top(model.trunk(ids, None, train_layers), None, train_layers)  # (B, T, D)
    # Token t is predicted from the hidden state at t-1. Only those states meet the large output matrix.
    logits = model.unembed(hidden[:, :-1][is_answer[:, 1:]])  # (answer tokens, V)
    return F.cross_entropy(logits.float(), ids[:, 1:][is_answer[:, 1:]])


def micro_batches(examples: Sequence[Encoded], rows: int) -> Iterator[tuple[list[Encoded], float]]:
    """The examples in parts of `rows`, rows of similar length together, and each part's share of the answer tokens.

    The shares weigh the parts' mean losses into that of the whole, so the cutting changes padding and memory only.
    """
    tokens = sum(len(answer) for _, answer in examples)
    for index in by_length([len(prompt) + len(answer) for prompt, answer in examples], rows):
        part = [examples[i] for i in index]
        yield part, sum(len(answer) for _, answer in part) / tokens


@torch.no_grad()
def heldout_loss(model: Transformer, examples: Sequence[Encoded], rows: int) -> float:
    """Mean nats per answer token over all examples, `rows` at a time."""
    model.eval()
    loss = sum(answer_loss(model, part).item() * share for part, share in micro_batches(examples, rows))
    model.train()
    return loss


def train_sft(
    model: Transformer,
    examples: Sequence[Encoded],
    config: SFTConfig = SFTConfig(),
    stage: Stage = SilentStage(),
    generator: torch.Generator | None = None,
) -> Transformer:
    """Train `model` on encoded pairs, the first `config.heldout_examples` of them held out; returns it in eval mode.

    Later pairs with the prompt of a held-out one are left out of training, so that the held-out loss shows overfitting.
    Loss and held-out loss are logged, and the state saved and restored, through `stage`. `generator` draws the order
    of the examples (None: PyTorch's global one).
    """
    count = config.heldout_examples
    heldout, prompts = list(examples[:count]), {tuple(prompt) for prompt, _ in examples[:count]}
    train = [example for example in examples[count:] if tuple(example[0]) not in prompts]
    parameters = training.trainable(model, config.train_layers)
    optimizer = training.make_optimizer(parameters, config.lr, config.weight_decay)
    # The batches are a function of the seed alone, so a resumed run skips ahead instead of storing its place.
    batches = training.shuffled_batches(len(train), config.batch_size, generator)
    start, _ = stage.restore(model, optimizer)
    for _ in range(start):
        next(batches)
    model.train()
    clock, seen, losses = time.perf_counter(), 0, []
    for step in stage.progress(start, config.steps):
        lr = training.warmup_cosine(step, config.steps, config.lr)
        batch = [train[i] for i in next(batches)]
        losses.append(0.0)
        for part, share in micro_batches(batch, config.micro_batch_size):
            loss = answer_loss(model, part, config.train_layers) * share
            loss.backward()
            losses[-1] += loss.item()
        training.optimizer_step(optimizer, parameters, config.max_grad_norm, lr)
        seen += sum(len(p) + len(a) for p, a in batch)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == config.steps:
            row = {"loss": sum(losses) / len(losses)}
            row["heldout_loss"] = heldout_loss(model, heldout, config.micro_batch_size)
            row |= {"lr": lr, "tokens_per_s": seen / (time.perf_counter() - clock)}
            stage.log(step + 1, row)
            clock, seen, losses = time.perf_counter(), 0, []
            stage.save(step + 1, model, optimizer)
    return model.eval()
