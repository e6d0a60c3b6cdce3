"""Sampling from a language model: a batch of ragged prompts, one token of every row at a time.

    prompts (left-padded)     new tokens                        mask of the cache
    . . a b c                 d e <end>                         0 0 1 1 1 | 1 1 1
    f g h i j                 k <end>          -> leaves early  1 1 1 1 1 | 1 1
    . . . . l                 m n o p ...                       0 0 0 0 1 | 1 1 1 1

Left padding puts the last prompt token of every row in the same column, so one write index of the
cache serves all rows. Each row has its own stream of uniform numbers, drawn before the loop: which
rows share a batch, and when the others leave it, does not change what a row samples.

This is the sampler to read. `fast/sampling.py` has the same function, sooner: it gives the same
tokens, and one test file compares the two.

Shape legend:  N prompts   B rows of a batch   P longest prompt   T new tokens   V vocabulary
               D width   S tokens of prompt and completion   n sampled tokens of all rows
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignpro_mini.options import require
from alignpro_mini.transformer import KVCache, Transformer


@dataclass(frozen=True, slots=True)
class Completion:
    """What one prompt got: the new tokens, EOS included, and the log-prob of each when sampled."""

    tokens: list[int]
    logprobs: list[float]
    finished: bool  # ended with EOS, not truncated at the limit


Sampler = Callable[..., list[Completion]]  # `generate`, or one with its signature


def sampling_logprobs(logits: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """The log of the distribution that sampling draws from: (..., V) -> (..., V), float32.

    The sampler *and* the scorer of PPO call this one function. If one of them used another
    temperature, PPO's first probability ratio would not be 1. Nucleus: the smallest set of tokens
    whose mass reaches top_p; the others get -inf. Temperature 0 means greedy decoding, whose
    log-probs are reported at temperature 1. Raises ValueError for a temperature below 0 or a top_p
    outside (0, 1].
    """
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature {temperature} must be >= 0 and top_p {top_p} in (0, 1]")
    logits = logits.float()
    if temperature not in (0.0, 1.0):
        logits = logits / temperature
    if top_p < 1.0 and temperature > 0:
        ordered, index = logits.sort(dim=-1, descending=True)  # (..., V)
        mass = ordered.softmax(-1)  # (..., V)
        better = mass.cumsum(-1) - mass  # (..., V) mass of the better tokens
        ordered = ordered.masked_fill(better >= top_p, -torch.inf)
        logits = torch.empty_like(logits).scatter_(-1, index, ordered)
    return logits.log_softmax(-1)


def draw(logp: Tensor, uniform: Tensor) -> Tensor:
    """One token of each row by its uniform number: log-probs (B, V), (B,) in [0, 1) -> ids (B,).

    Takes the first token at which the cumulative probability exceeds the number, so a token of
    probability 0 is never taken. Stays on the device.
    """
    cdf = logp.exp().cumsum(-1)  # (B, V)
    # Rounding may leave the total a little off 1: u is scaled to it, and kept off the very end.
    u = uniform.clamp(max=1 - 2**-20)[:, None] * cdf[:, -1:]  # (B, 1)
    return torch.searchsorted(cdf, u, right=True)[:, 0]  # (B,)


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
    check_prompts(model, prompts, max_new_tokens, max_batch)
    uniforms = draw_uniforms(len(prompts), max_new_tokens, generator).to(model.device)  # (N, T)
    ends = end_ids(eos_id)
    tokens: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    # rows: the prompts of a batch, by their numbers i. Row b of the batch is prompt i = rows[b].
    for rows in by_length([len(prompt) for prompt in prompts], max_batch or 256):
        logits, cache = prefill(model, [prompts[i] for i in rows], max_new_tokens)  # (B, V)
        for t in range(max_new_tokens):
            logp = sampling_logprobs(logits, temperature, top_p)  # (B, V)
            greedy = temperature == 0
            new = logp.argmax(-1) if greedy else draw(logp, uniforms[rows, t])  # (B,)
            taken = logp.gather(-1, new[:, None])[:, 0]  # (B,)
            for i, token, token_logp in zip(rows, new.tolist(), taken.tolist()):
                tokens[i].append(token)
                logprobs[i].append(token_logp)
            alive = [b for b, i in enumerate(rows) if tokens[i][-1] not in ends]
            if not alive or t + 1 == max_new_tokens:
                break
            if len(alive) < len(rows):  # rows that are done leave the batch
                cache.keep(torch.tensor(alive, device=model.device))
                rows = [rows[b] for b in alive]
            logits = decode(model, new[alive], cache)  # (B, V)
    ended = [len(row) > 0 and row[-1] in ends for row in tokens]
    return [Completion(*completion) for completion in zip(tokens, logprobs, ended)]


def end_ids(eos_id: int | Sequence[int] | None) -> tuple[int, ...]:
    """The tokens that end a row: one, several or none."""
    if eos_id is None:
        return ()
    return (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)


def prefill(
    model: Transformer, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> tuple[Tensor, KVCache]:
    """The prompts through the model: logits of the first new tokens (B, V), and their cache."""
    ids, mask = pad_left(prompts, 0, model.device)  # (B, P)
    B, P = ids.shape
    cache = KVCache(model.config, B, P + max_new_tokens, like=model.embed.weight)
    cache.mask[:, :P] = mask
    cache.mask[:, P:] = True  # a row has a new token in every later slot until it leaves
    states = model.hidden(ids, cache=cache)  # (B, P, D)
    return model.unembed(states[:, -1]), cache


def decode(model: Transformer, new: Tensor, cache: KVCache) -> Tensor:
    """One more token of every row through the model, ids (B,) -> logits of the next (B, V)."""
    states = model.hidden(new[:, None], cache=cache)  # (B, 1, D)
    return model.unembed(states[:, -1])


def check_prompts(
    model: Transformer, prompts: Sequence[Sequence[int]], max_new_tokens: int, max_batch: int | None
) -> None:
    """Raises UserError for what `generate` cannot do, naming the prompt."""
    require(max_batch is None or max_batch >= 1, f"max_batch is {max_batch}; it must be at least 1")
    negative = f"max_new_tokens is {max_new_tokens}; it must be at least 0"
    require(max_new_tokens >= 0, negative)
    longest = model.config.max_len
    room = max(0, longest - max_new_tokens)
    for i, prompt in enumerate(prompts):
        require(len(prompt) > 0, f"prompt {i} is empty: give it at least one token")
        require(
            len(prompt) + max_new_tokens <= longest,
            f"prompt {i} has {len(prompt)} tokens; with {max_new_tokens} new ones it does not fit "
            f"the context of {longest}: shorten it to {room} or lower max_new_tokens",
        )


def draw_uniforms(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    """All numbers that a call of `generate` draws, on the generator's device."""
    device = "cpu" if generator is None else generator.device
    return torch.rand(rows, columns, generator=generator, device=device)  # (rows, columns)


# ---------------------------------------------------------------- batches of ragged rows


def by_length(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Indices in batches of at most `most`, rows of similar length together: little padding."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return (order[start : start + most] for start in range(0, len(order), most))


def pad_left(rows: Sequence[Sequence[int]], pad_id: int, device=None) -> tuple[Tensor, Tensor]:
    """Ragged rows -> ids (N, P) padded on the left, and their mask, True on real tokens."""
    return _pad(rows, pad_id, device, left=True)


def pad_right(rows: Sequence[Sequence[int]], pad_id: int, device=None) -> tuple[Tensor, Tensor]:
    """Ragged rows -> ids (N, T) padded on the right, and their mask, True on real tokens."""
    return _pad(rows, pad_id, device, left=False)


def pad_pairs(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], device=None
) -> tuple[Tensor, Tensor]:
    """(prompt, completion) pairs, each one row -> ids (N, T) padded right, True on completions.

    To the model these go without a mask: a causal query never reaches right padding.
    """
    ids, mask = pad_right([[*p, *c] for p, c in pairs], 0, device)  # (N, T)
    _, prompt = pad_right([p for p, _ in pairs], 0, device)  # (N, P)
    mask[:, : prompt.shape[1]] &= ~prompt
    return ids, mask


def _pad(rows: Sequence[Sequence[int]], pad_id: int, device, left: bool) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)[:, None]  # (N, 1)
    width = max(map(len, rows), default=0)
    padded = []
    for row in rows:
        pads = [pad_id] * (width - len(row))
        padded.append([*pads, *row] if left else [*row, *pads])
    column = torch.arange(width)  # (width,)
    mask = column >= width - lengths if left else column < lengths  # (N, width)
    ids = torch.tensor(padded, dtype=torch.long).view(mask.shape)  # (N, width)
    return ids.to(device), mask.to(device)


# ---------------------------------------------------------------- scoring what was sampled


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
    for i, prompt in enumerate(prompts):
        require(len(prompt) > 0, f"prompt {i} is empty: give it at least one token")
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    sums = torch.empty(len(prompts))  # (N,)
    for rows in by_length(lengths, max_batch):
        pairs = [(prompts[i], completions[i]) for i in rows]
        ids, action = pad_pairs(pairs, model.device)  # (B, S), (B, S)
        action = action[:, 1:]  # token t is predicted from the state at t - 1
        states = model.hidden(ids)[:, :-1][action]  # (n, D)
        taken = ids[:, 1:][action][:, None]  # (n, 1)
        logp = torch.zeros(action.shape, device=model.device)  # (B, S - 1)
        logp[action] = _token_logprobs(model, states, taken, temperature, top_p)
        sums[rows] = logp.sum(1).cpu()
    return sums


def _token_logprobs(
    model: Transformer, states: Tensor, taken: Tensor, temperature: float, top_p: float
) -> Tensor:
    """Log-probs of the tokens `taken` (n, 1) from the states (n, D) that predict them: (n,)."""
    # A few at a time: of a large vocabulary the logits of a whole batch would take gigabytes.
    few = max(1, 2**24 // model.config.vocab_size)
    logprobs = []
    for some_states, some_taken in zip(states.split(few), taken.split(few)):
        logp = sampling_logprobs(model.unembed(some_states), temperature, top_p)  # (few, V)
        logprobs.append(logp.gather(1, some_taken)[:, 0])
    return torch.cat(logprobs)
