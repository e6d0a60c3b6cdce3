"""Batched sampling of ragged prompts with a preallocated KV cache; finished rows leave the batch.

    prompts (left-padded)     new tokens                        mask of the cache
    . . a b c                 d e <end>                         0 0 1 1 1 | 1 1 1
    f g h i j                 k <end>          -> leaves early  1 1 1 1 1 | 1 1
    . . . . l                 m n o p ...                       0 0 0 0 1 | 1 1 1 1

Left padding puts the last prompt token of every row in the same column, so one write index serves all rows.
Each row has its own stream of uniform numbers, drawn before the loop: which rows share a batch, and when the
others leave it, does not change what a row samples. Equal prompts go through the model once, and so does what all
begin with. On a CPU so do equal continuations of a prompt: rows part where they draw different tokens.
On a GPU a step is recorded and replayed (a CUDA graph): from Python its kernels would start slower than they run.

Shape legend:  N prompts   U distinct prompts   R rows still generating   B rows of the model (R or fewer)
               P longest prompt   T new tokens   V vocabulary
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os.path import commonprefix  # of any sequences

import torch
from torch import Tensor

from alignpro_mini.options import require
from alignpro_mini.transformer import KVCache, Transformer

# Steps are recorded by one thread at a time, all on one stream of a GPU: each stream keeps memory for matrix products.
RECORDING, SIDE_STREAMS = threading.Lock(), {}


@dataclass(frozen=True, slots=True)
class Completion:
    """What one prompt got: the new tokens (with EOS, if it came) and the log-probability of each when sampled."""

    tokens: list[int]
    logprobs: list[float]
    finished: bool  # ended with EOS, not truncated at the limit


Sampler = Callable[..., list[Completion]]  # `generate`, or another function of its signature


def sampling_logprobs(logits: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """The log of the distribution that sampling draws from: (..., V) logits -> (..., V) log-probs, float32.

    The sampler *and* the scorer of PPO call this one function; were one of them to use another temperature,
    the first ratio would not be 1. Nucleus: the smallest set of tokens whose mass reaches top_p; the others
    get -inf. Temperature 0 means greedy decoding, whose log-probs are reported at temperature 1.
    Raises ValueError for a temperature below 0 or a top_p outside (0, 1].
    """
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature {temperature} must be >= 0 and top_p {top_p} in (0, 1]")
    logits = logits.float()
    if temperature not in (0.0, 1.0):
        logits = logits / temperature
    if top_p < 1.0 and temperature > 0:
        ordered, index = logits.sort(dim=-1, descending=True)  # (..., V)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # (..., V) mass of the better tokens
        ordered = ordered.masked_fill(before >= top_p, -torch.inf)
        logits = torch.empty_like(logits).scatter_(-1, index, ordered)
    return logits.log_softmax(-1)


def by_length(lengths: Sequence, most: int) -> Iterator[list[int]]:
    """The indices of `lengths` in batches of at most `most`, rows of similar length together: little padding."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return (order[start : start + most] for start in range(0, len(order), most))


def pad_left(rows: Sequence[Sequence[int]], pad_id: int, device=None) -> tuple[Tensor, Tensor]:
    """Ragged rows -> ids (N, P) padded on the left and their mask, True on real tokens."""
    return _pad(rows, pad_id, device, left=True)


def pad_right(rows: Sequence[Sequence[int]], pad_id: int, device=None) -> tuple[Tensor, Tensor]:
    """Ragged rows -> ids (N, T) padded on the right and their mask, True on real tokens."""
    return _pad(rows, pad_id, device, left=False)


def pad_pairs(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], device=None) -> tuple[Tensor, Tensor]:
    """(prompt, completion) pairs, each one row -> ids (N, T) padded on the right, and True on the completions' tokens.

    To the model these go without a mask: a causal query never reaches right padding. The fused kernel is faster so.
    """
    ids, mask = pad_right([[*p, *c] for p, c in pairs], 0, device)  # (N, T)
    _, prompt = pad_right([p for p, _ in pairs], 0, device)  # (N, P)
    mask[:, : prompt.shape[1]] &= ~prompt
    return ids, mask


def _pad(rows: Sequence[Sequence[int]], pad_id: int, device, left: bool) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)[:, None]  # (N, 1)
    width = max(map(len, rows), default=0)
    blank = [[pad_id] * (width - len(row)) for row in rows]
    padded = [[*pads, *row] if left else [*row, *pads] for row, pads in zip(rows, blank)]
    column = torch.arange(width)  # (width,)
    mask = column >= width - lengths if left else column < lengths  # (N, width)
    return torch.tensor(padded, dtype=torch.long).view(mask.shape).to(device), mask.to(device)


@torch.no_grad()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    eos_id: int | None = None,
    generator: torch.Generator | None = None,
    max_batch: int | None = None,
    compact: bool = True,
    fixed_shapes: bool | None = None,
) -> list[Completion]:
    """Sample a continuation of each prompt (lists of token ids), returned in the order of the prompts.

    A row stops at `eos_id` (kept in its tokens) or after `max_new_tokens`. Temperature 0 is greedy. `max_batch` rows
    run at once (None: 256 on a CPU, 2,048 on a GPU), up to four times as many while rows share so much that no more go
    through the model. `compact=False`: no rows shared or taken out (for tests). `fixed_shapes` (None: on a GPU): steps
    that a GPU can replay. Raises UserError for an empty prompt, one that leaves too little of the context, a max_batch
    below 1 and a negative max_new_tokens; ValueError as `sampling_logprobs` does.
    """
    # A CPU is faster while the keys and values fit its cache, a GPU with fewer and larger kernels.
    max_batch = (2048 if model.device.type == "cuda" else 256) if max_batch is None else max_batch
    fixed = model.device.type == "cuda" if fixed_shapes is None else fixed_shapes
    require(max_batch >= 1, f"max_batch is {max_batch}; it must be at least 1")
    require(max_new_tokens >= 0, f"max_new_tokens is {max_new_tokens}; it must be at least 0")
    room = model.config.max_len - max_new_tokens
    for i, prompt in enumerate(prompts):
        require(len(prompt) > 0, f"prompt {i} is empty: give it at least one token")
        told = f"prompt {i} has {len(prompt)} tokens; with {max_new_tokens} new ones it does not fit the context of"
        mend = f"{model.config.max_len}: shorten it to {max(room, 0)} or lower max_new_tokens"
        require(len(prompt) <= room, f"{told} {mend}")
    draw_on = generator.device if generator is not None else "cpu"
    uniforms = torch.rand(len(prompts), max_new_tokens, generator=generator, device=draw_on)  # (N, T)
    was_training = model.training
    model.eval()
    results: list[Completion | None] = [None] * len(prompts)
    try:
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), tuple(prompts[i])))  # equal ones together
        take = max_batch
        while order:
            if len({tuple(prompts[i]) for i in order[:take]}) > max_batch:  # the last batch shared more than this one
                take = max_batch
            chunk, order = order[:take], order[take:]
            rows, draws = [prompts[i] for i in chunk], uniforms[chunk].to(model.device)
            tokens, logps, most = _generate_batch(model, rows, draws, temperature, top_p, eos_id, compact, fixed)
            take = min(max_batch * len(chunk) // most, 4 * max_batch)
            for i, row, logp in zip(chunk, tokens.tolist(), logps.tolist()):
                length = row.index(eos_id) + 1 if eos_id in row else len(row)
                results[i] = Completion(row[:length], logp[:length], eos_id in row)
    finally:
        model.train(was_training)
    return results


class _FixedCache(KVCache):
    """A cache under which a step of one token has the same shapes each time, so that a GPU can replay it.

    All slots are attended to, the empty ones masked. A new token stands in the last slot, where the causal mask lets
    it see itself, and in the first empty one, where it stays.
    """

    def __init__(self, cache: KVCache) -> None:
        self.whole, self.k, self.v, self.mask = cache.whole, cache.k, cache.v, cache.mask
        self.mask[:, cache.length : -1] = False
        self.whole[..., cache.length :, :] = 0  # a masked slot weighs 0, but 0 x NaN is NaN
        self.length = self.mask.shape[1] - 1  # up to the last slot
        self.slots = torch.tensor([cache.length, self.length], device=self.mask.device)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new (B, G, 1, E) key and value of one layer; return those of all slots, (B, G, S_max, E)."""
        for held, new in ((self.k[layer], k), (self.v[layer], v)):
            held.index_copy_(2, self.slots, new.to(held.dtype).expand(-1, -1, 2, -1))
        return self.k[layer], self.v[layer]

    def advance(self) -> None:
        """After a step: its token is one of the past, and the next goes into the slot after it."""
        self.length -= 1  # the model has counted it
        self.mask.index_fill_(1, self.slots[:1], True)
        self.slots[:1] += 1

    def keep(self, rows: Tensor) -> None:
        before = self.length
        super().keep(rows)
        self.slots -= before - self.length


def _recorded(step: Callable[[], None], device: torch.device) -> Callable[[], object]:
    """Run a step, and return what runs it again: on a GPU the replay of its kernels (a CUDA graph), without Python."""
    if device.type != "cuda":
        step()
        return step
    graph, main = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
    side = SIDE_STREAMS.setdefault(device, torch.cuda.Stream(device))
    with RECORDING, torch.cuda.stream(side):
        side.wait_stream(main)
        try:
            step()  # a first call allocates and picks kernels, which cannot be recorded
            free, total = torch.cuda.mem_get_info(device)
            if free < total / 4:  # dropped graphs may still hold memory, and it cannot be freed while this records
                torch.cuda.empty_cache()
            graph.capture_begin(capture_error_mode="thread_local")  # other threads may go on with other work
            try:
                step()
            finally:
                graph.capture_end()
        finally:
            main.wait_stream(side)
    return graph.replay


def _prefill(model: Transformer, prompts, limit: int, share: bool, fixed: bool) -> tuple[KVCache, Tensor, Tensor]:
    """Each distinct prompt through the model: the cache, its last states (B, D), and each prompt's row of them (R,)."""
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}  # U distinct ones
    C = min(len(commonprefix(list(place))), min(map(len, place)) - 1)  # the common tokens; one of each prompt is left
    C = C if C >= 16 and len(place) > 1 else 0  # few are not worth a pass of their own
    cache = KVCache(model.config, 1, C, model.embed.weight)
    if C:
        cache.mask[:] = True
        model.hidden(torch.tensor([prompts[0][:C]], device=model.device), cache=cache)
    ids, mask = pad_left([prompt[C:] for prompt in place], 0, model.device)  # (U, P - C)
    cache.spread(torch.zeros(len(place), dtype=torch.long, device=model.device), mask.shape[1], len(place))
    cache.mask[:, C:] = mask
    which = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=model.device)  # (R,)
    states = model.hidden(ids, cache=cache)[:, -1]  # (U, D)
    source = torch.arange(len(place), device=model.device) if share else which  # (B,)
    cache.spread(source, limit, len(prompts))
    which = which if share else torch.arange(len(prompts), device=model.device)
    return _FixedCache(cache) if fixed else cache, states[source], which


def _generate_batch(
    model: Transformer, prompts, uniforms: Tensor, temperature, top_p, eos_id, compact: bool, fixed: bool
) -> tuple[Tensor, Tensor, int]:
    """One batch: tokens (N, T), their log-probs (N, T), and the largest B; what follows a row's EOS is meaningless."""
    device, N, limit = model.device, *uniforms.shape
    # Parting rows reads what they drew. A GPU would wait for that, and has room for all rows at once.
    share = compact and not fixed and device.type != "cuda"
    cache, states, which = _prefill(model, prompts, limit, share, fixed)  # which (R,): each row's of the model
    rows = torch.arange(N, device=device)  # (R,) which result row each row writes to
    tokens = torch.full((N, limit), -1 if eos_id is None else eos_id, device=device)  # (N, T)
    logps = torch.zeros(N, limit, device=device)  # (N, T)
    done = torch.zeros(N, dtype=torch.bool, device=device)  # (R,)
    t = torch.zeros(1, dtype=torch.long, device=device)  # the column of the next token
    few = N if device.type == "cuda" else max(1, 2**20 // model.config.vocab_size)  # their table fits a CPU's cache

    def draw(states: Tensor) -> Tensor:
        """The next token of each row, noted: the model's last states (B, D) -> ids (R,)."""
        logits, new = model.unembed(states), torch.empty_like(rows)  # (B, V), (R,)
        for part in torch.arange(len(rows), device=device).split(few):
            logp = sampling_logprobs(logits[which[part]], temperature, top_p)  # (few, V)
            new[part] = logp.argmax(-1) if temperature == 0 else _draw(logp, uniforms[rows[part], t])
            logps[rows[part], t] = logp.gather(-1, new[part, None])[:, 0]
        tokens[rows, t] = new
        if eos_id is not None:
            done.logical_or_(new == eos_id)
        t.add_(1)
        return new

    def step() -> None:
        """The next token of each row, into the same tensors each time."""
        new.copy_(draw(model.hidden(new[:, None], cache=cache)[:, -1]))
        cache.advance()

    again, most = None, len(states)
    every = 8 if device.type == "cuda" else 1  # reading `done` from a GPU waits for it
    for count in range(1, limit + 1):
        if count == 1:
            new = draw(states)  # (B,) the last token of each row of the model; (R,) until rows are put together below
        elif again is not None:
            again()
        elif fixed and count < limit:
            again = _recorded(step, device)
        else:
            new = draw(model.hidden(new[:, None], cache=cache)[:, -1])
        if count % every == 0 and count < limit:
            alive = (~done).nonzero()[:, 0]
            if len(alive) == 0:
                break
            # To take rows out costs a part of a step, so some finished ones stay; more where a GPU must record anew.
            shared = len(cache.mask) < len(rows)  # B < R
            if compact and (shared or len(alive) <= (0.5 * len(rows) - 64 if fixed else 0.9 * len(rows))):
                source, which = _regroup(which[alive], (which * model.config.vocab_size + new)[alive])
                cache.keep(source)
                in_order = which.argsort()  # so that rows which share nothing are those of the model, one by one
                rows, which, done = rows[alive][in_order], which[in_order], done[alive]
                new = torch.empty_like(source).scatter(0, which, new[alive][in_order])  # (B,)
                again, most = None, max(most, len(source))
    return tokens, logps, most


def _regroup(which: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """The model's rows of the next step: one for all that came through the same row and drew the same token.

    which (R,) rows of the model, key (R,) another number for each row of the model and token -> the former row of each
    next one (B',), and the next row of each (R,). The first that continues a former row stays in its place, where there
    still is one of that number, so that little has to be copied.
    """
    distinct, group = key.unique(return_inverse=True)  # (B',) in the order of the former rows, (R,)
    former, B = torch.empty_like(distinct).scatter(0, group, which), len(distinct)  # (B',)
    stays = (former.diff(prepend=former.new_tensor([-1])) != 0) & (former < B)  # (B',)
    free = torch.ones(B, dtype=torch.bool, device=which.device).index_fill(0, former[stays], False)
    place = former.clone()
    place[~stays] = free.nonzero()[:, 0]
    return torch.empty_like(former).scatter(0, place, former), place[group]


def _draw(logp: Tensor, uniform: Tensor) -> Tensor:
    """Inverse-CDF sampling without leaving the device: log-probs (B, V), uniforms (B,) in [0, 1) -> ids (B,).

    Takes the first token whose cumulative mass exceeds u, so a token of probability 0 is never taken, nor for a u of 1.
    """
    cdf = logp.exp().cumsum(-1)  # (B, V)
    # Rounding may leave the total a little off 1; u is scaled to it, and kept off the very end.
    u = uniform.clamp(max=1 - 2**-20)[:, None] * cdf[:, -1:]  # (B, 1)
    return torch.searchsorted(cdf, u, right=True)[:, 0]  # (B,)


@torch.no_grad()
def sequence_logprobs(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_batch: int = 128,
) -> Tensor:
    """log p(completion | prompt) under the sampling of `generate`, summed over the completion: (N,) on the CPU.

    Both are lists of token ids; whether an EOS counts is up to the completion. -inf where top_p rules a token out.
    At most max_batch sequences at a time. Raises UserError for an empty prompt, as then nothing predicts the first
    token, and for a row longer than the context; ValueError where there are not as many completions as prompts.
    """
    for i, prompt in enumerate(prompts):
        require(len(prompt) > 0, f"prompt {i} is empty: give it at least one token")
    found = torch.empty(len(prompts))
    for chunk in by_length([len(p) + len(c) for p, c in zip(prompts, completions, strict=True)], max_batch):
        ids, action = pad_pairs([(prompts[i], completions[i]) for i in chunk], model.device)  # (B, S)
        action = action[:, 1:]  # token t is predicted from the state at t - 1
        states = model.hidden(ids)[:, :-1][action]  # (n, D)
        taken = ids[:, 1:][action][:, None]  # (n, 1)
        # A few tokens at a time: of a large vocabulary the logits of a whole batch would take gigabytes.
        pairs = zip(*(x.split(max(1, 2**24 // model.config.vocab_size)) for x in (states, taken)))
        logps = [sampling_logprobs(model.unembed(s), temperature, top_p).gather(1, t)[:, 0] for s, t in pairs]
        logp = torch.zeros(action.shape, device=model.device)  # (B, S - 1)
        logp[action] = torch.cat(logps)
        found[chunk] = logp.sum(1).cpu()
    return found
