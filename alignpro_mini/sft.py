"""Supervised fine-tuning: next-token loss on the answer, given the prompt. Trains the frozen LM and the prompter.

    ids    <|user|> Tell me about Oakdale . <|assistant|> Oakdale is a town . <|end|>
    loss                                                  ^^^^^^^^^^^^^^^^^^^^^^^^^^^ the answer's tokens, EOS too

Shape legend:  B rows   T tokens   V vocabulary   D width
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignpro_mini.config import SFTConfig
from alignpro_mini.generation import by_length, pad_pairs
from alignpro_mini.run import Stage
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.transformer import Transformer

Encoded = tuple[list[int], list[int]]  # prompt ids, answer ids with EOS


def encode_pairs(pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer, max_len: int) -> list[Encoded]:
    """(prompt, answer) texts -> ids. Raises ValueError, naming the pair, when one does not fit the context."""
    encoded = []
    for i, (prompt, answer) in enumerate(pairs):
        ids = tokenizer.chat_with_answer(prompt, answer)
        if sum(map(len, ids)) > max_len:
            raise ValueError(
                f"training pair {i} has {sum(map(len, ids))} tokens, more than the context of {max_len}: "
                f"shorten it or raise max_len ({prompt[:60]!r})"
            )
        encoded.append(ids)
    return encoded


def answer_loss(model: Transformer, batch: Sequence[Encoded], train_layers: int = 0) -> Tensor:
    """Mean cross-entropy in nats per answer token over the batch; a scalar."""
    ids, is_answer = pad_pairs(batch, model.device)  # (B, T)
    hidden = trunk_then_top(model, ids, None, train_layers)  # (B, T, D)
    # Token t is predicted from the hidden state at t-1. Only those states meet the large output matrix.
    logits = model.unembed(hidden[:, :-1][is_answer[:, 1:]])  # (answer tokens, V)
    return F.cross_entropy(logits.float(), ids[:, 1:][is_answer[:, 1:]])


def trunk_then_top(model: Transformer, ids: Tensor, mask: Tensor, train_layers: int) -> Tensor:
    """Hidden states (B, T, D) with gradients through the top `train_layers` blocks only (0: through all)."""
    if train_layers == 0:
        return model.hidden(ids, mask)
    depth = model.config.n_layers - train_layers
    with torch.no_grad():
        trunk = model.lower(ids, mask, depth)  # (B, T, D)
    return model.upper(trunk, mask, depth)


def trainable(model: Transformer, train_layers: int) -> list[nn.Parameter]:
    """Freeze all but the top `train_layers` blocks and the last norm (0: train everything); returns what trains.

    Raises ValueError for more layers than the model has.
    """
    if train_layers > model.config.n_layers:
        raise ValueError(f"train_layers is {train_layers}, but the model has {model.config.n_layers} blocks")
    model.requires_grad_(train_layers == 0)  # said outright: a copy of a frozen model arrives frozen
    if train_layers:
        for module in (*model.blocks[-train_layers:], model.norm):
            module.requires_grad_(True)
    return [p for p in model.parameters() if p.requires_grad]


def make_optimizer(parameters: Sequence[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW, decaying matrices only: pulling norms and biases to zero would fight their purpose."""
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)


def warmup_cosine(step: int, steps: int, peak: float) -> float:
    """Learning rate of a step (from 0): linear over the first 5 %, then a cosine down to a tenth of the peak."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)


def optimizer_step(optimizer: torch.optim.Optimizer, parameters, grad_clip: float, lr: float) -> float:
    """Clip the gradients to norm `grad_clip`, take the step, clear them; returns the norm before clipping.

    Raises FloatingPointError on a norm that is not finite (as after a loss that is not), before any weight changes.
    """
    norm = nn.utils.clip_grad_norm_(parameters, grad_clip)
    if not bool(torch.isfinite(norm)):
        raise FloatingPointError(f"the gradient norm is {norm.item()}: lower the learning rate (now {lr:.1e})")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm.item()


def shuffled_batches(count: int, batch: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Endless index batches, each pass over 0..count-1 in a fresh order; a short last batch is dropped."""
    if count < batch:
        raise ValueError(
            f"{count} examples, those held out not counted, do not fill one batch of {batch}: add data or lower the batch"
        )
    while True:
        order = torch.randperm(count, generator=generator).tolist()
        for start in range(0, count - batch + 1, batch):
            yield order[start : start + batch]


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
    model: Transformer, examples: Sequence[Encoded], config: SFTConfig, stage: Stage, generator: torch.Generator
) -> Transformer:
    """Train `model` on encoded pairs; logs loss and held-out loss, saves and restores its state through `stage`.

    Returns the model in eval mode.
    """
    heldout, train = list(examples[: config.heldout]), list(examples[config.heldout :])
    parameters = trainable(model, config.train_layers)
    optimizer = make_optimizer(parameters, config.lr, config.weight_decay)
    # The batches are a function of the seed alone, so a resumed run skips ahead instead of storing its place.
    batches = shuffled_batches(len(train), config.batch, generator)
    start = stage.restore(model, optimizer)
    for _ in range(start):
        next(batches)
    model.train()
    clock, seen, losses = time.perf_counter(), 0, []
    for step in stage.progress(start, config.steps):
        lr = warmup_cosine(step, config.steps, config.lr)
        batch = [train[i] for i in next(batches)]
        losses.append(0.0)
        for part, share in micro_batches(batch, config.micro_batch):
            loss = answer_loss(model, part, config.train_layers) * share
            loss.backward()
            losses[-1] += loss.item()
        optimizer_step(optimizer, parameters, config.grad_clip, lr)
        seen += sum(len(p) + len(a) for p, a in batch)
        if (step + 1) % stage.log_every == 0 or step + 1 == config.steps:
            row = {"loss": sum(losses) / len(losses), "heldout_loss": heldout_loss(model, heldout, config.micro_batch)}
            row |= {"lr": lr, "tokens_per_s": seen / (time.perf_counter() - clock)}
            stage.log(step + 1, row)
            clock, seen, losses = time.perf_counter(), 0, []
            stage.save(step + 1, model, optimizer)
    return model.eval()
