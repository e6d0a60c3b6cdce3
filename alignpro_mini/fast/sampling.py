"""`generation.generate`, sooner: the same signature, and the same tokens from the same generator.

    piece               what it saves                                                       where
    shared_beginnings   what all prompts begin with (a system prompt) goes through once     everywhere
    shared_rows         equal prompts, and equal continuations of a prompt, are one row     CPU: to part rows is to
                        of the model until they draw different tokens                       wait, which costs a GPU
    compaction          finished rows leave in place, and with them common padding          everywhere
    draw_in_parts       of a large vocabulary a few rows are drawn at a time: their table   CPU
                        fits the processor's cache
    recorded_steps      a step has the same shapes each time, so a GPU can record and       GPU
                        replay it (a CUDA graph): from Python its kernels start slower
                        than they run

Each piece is a field of `FastSampler` and can be switched off alone.

Shape legend:  N prompts   U distinct prompts   R rows still generating   B rows of the model (R or fewer)
               P longest prompt   T new tokens   V vocabulary
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os.path import commonprefix  # of any sequences

import torch
import torch.nn.functional as F
from torch import Tensor

from alignpro_mini.fast.transformer import FastTransformer
from alignpro_mini.generation import (
    Completion,
    check_prompts,
    draw,
    draw_uniforms,
    end_ids,
    pad_left,
    sampling_logprobs,
)
from alignpro_mini.transformer import KVCache, Transformer

SHORTEST_SHARED_BEGINNING = 16  # tokens: fewer are not worth a pass of their own
# Steps are recorded by one thread at a time, all on one stream of a GPU: each stream keeps memory for matrix products.
RECORDING = threading.Lock()
SIDE_STREAMS: dict[torch.device, torch.cuda.Stream] = {}


@dataclass(frozen=True, slots=True)
class FastSampler:
    """A sampler with the signature of `generation.generate`; its fields switch its pieces on and off."""

    shared_beginnings: bool = True
    shared_rows: bool = True
    compaction: bool = True
    draw_in_parts: bool = True
    recorded_steps: bool | None = None  # None: on a GPU

    @torch.no_grad()
    def __call__(
        self,
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
        """As `generation.generate`. `max_batch` None: 256 rows on a CPU, 2,048 on a GPU.

        Up to four times as many rows run at once while they share so much that no more go through the model.
        """
        check_prompts(model, prompts, max_new_tokens, max_batch)
        if isinstance(model, FastTransformer):
            model = model.in_one_dtype()
        on_gpu = model.device.type == "cuda"
        if max_batch is None:  # a CPU is faster while keys and values fit its cache, a GPU with few large kernels
            max_batch = 2048 if on_gpu else 256
        uniforms = draw_uniforms(len(prompts), max_new_tokens, generator)  # (N, T)
        results: list[Completion | None] = [None] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), tuple(prompts[i])))  # equal ones together
        rows_at_once = max_batch
        while order:
            distinct = len({tuple(prompts[i]) for i in order[:rows_at_once]})
            if distinct > max_batch:  # the last batch shared more than this one
                rows_at_once = max_batch
            chunk, order = order[:rows_at_once], order[rows_at_once:]
            batch = Batch(self, model, [prompts[i] for i in chunk], uniforms[chunk], temperature, top_p, eos_id)
            batch.run()
            rows_at_once = min(max_batch * len(chunk) // batch.most_rows, 4 * max_batch)
            for i, completion in zip(chunk, batch.completions()):
                results[i] = completion
        return results

    def records(self, device: torch.device) -> bool:
        """Whether steps have fixed shapes."""
        return device.type == "cuda" if self.recorded_steps is None else self.recorded_steps

    def shares_rows(self, device: torch.device) -> bool:
        """Whether one row of the model may stand for several."""
        return self.shared_rows and device.type != "cuda" and not self.records(device)


generate = FastSampler()


class Batch:
    """One batch of prompts on its way: what was drawn, and which row of the model each row reads."""

    def __init__(
        self,
        sampler: FastSampler,
        model: Transformer,
        prompts: Sequence[Sequence[int]],
        uniforms: Tensor,
        temperature: float,
        top_p: float,
        eos_id: int | Sequence[int] | None,
    ) -> None:
        self.sampler = sampler
        self.model = model
        self.prompts = prompts
        self.uniforms = uniforms.to(model.device)  # (N, T)
        self.temperature = temperature
        self.top_p = top_p
        self.ends = end_ids(eos_id)
        N, T = uniforms.shape
        filler = self.ends[0] if self.ends else -1
        self.tokens = torch.full((N, T), filler, device=model.device)  # what follows a row's EOS is meaningless
        self.logprobs = torch.zeros(N, T, device=model.device)
        self.rows = torch.arange(N, device=model.device)  # (R,) the row of `tokens` that each row writes to
        self.done = torch.zeros(N, dtype=torch.bool, device=model.device)  # (R,)
        self.column = torch.zeros(1, dtype=torch.long, device=model.device)  # of the next token
        in_cache = max(1, 2**20 // model.config.vocab_size)  # rows whose table fits a CPU's cache
        parts = sampler.draw_in_parts and model.device.type != "cuda"
        self.rows_a_part = in_cache if parts else N
        self.most_rows = N  # the largest B so far

    def run(self) -> None:
        """Prefill, then one token of every row after the other."""
        limit = self.uniforms.shape[1]
        if limit == 0:
            return
        states = self.prefill(limit)  # (B, D)
        self.most_rows = len(states)
        self.new = self.draw(states)  # (R,), and (B,) after `drop_finished`: the last token of each row
        replay = None
        check_every = 8 if self.model.device.type == "cuda" else 1  # reading `done` from a GPU waits for it
        for count in range(1, limit):
            if count % check_every == 0:
                if bool(self.done.all()):
                    return
                if self.drop_finished():
                    replay = None  # the shapes are others
            if replay is not None:
                replay()
            elif self.sampler.records(self.model.device) and count + 1 < limit:
                replay = recorded(self.fixed_step, self.model.device)
            else:
                self.new = self.draw(self.decode())

    def completions(self) -> list[Completion]:
        """What each prompt got, in their order."""
        found = []
        for row, logprobs in zip(self.tokens.tolist(), self.logprobs.tolist()):
            length = next((t + 1 for t, token in enumerate(row) if token in self.ends), None)
            ended = length is not None
            found.append(Completion(row[:length], logprobs[:length], ended))
        return found

    # ------------------------------------------------------------ the two ways through the model

    def prefill(self, limit: int) -> Tensor:
        """Each distinct prompt through the model; sets the cache and each row's place in it. Last states (B, D)."""
        model, device = self.model, self.model.device
        place = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, self.prompts)))}
        distinct = list(place)  # U
        shared = self.sampler.shared_beginnings
        C = shared_beginning(distinct) if shared else 0
        cache = SharedCache(model.config, 1, C, model.embed.weight)
        if C:
            cache.mask[:] = True
            model.hidden(torch.tensor([distinct[0][:C]], device=device), cache=cache)
        ids, mask = pad_left([prompt[C:] for prompt in distinct], 0, device)  # (U, P - C)
        cache.spread(torch.zeros(len(distinct), dtype=torch.long, device=device), mask.shape[1], len(distinct))
        cache.mask[:, C:] = mask
        states = model.hidden(ids, cache=cache)[:, -1]  # (U, D)
        which = torch.tensor([place[tuple(prompt)] for prompt in self.prompts], device=device)  # (R,) of the U
        if self.sampler.shares_rows(device):
            source = torch.arange(len(distinct), device=device)  # (B,), B = U
            self.which = which
        else:
            source = which  # (B,), B = R
            self.which = torch.arange(len(self.prompts), device=device)
        cache.spread(source, limit, len(self.prompts))
        self.cache = FixedCache(cache) if self.sampler.records(device) else cache
        return states[source]

    def decode(self) -> Tensor:
        """The last token of each row through the model: the states that predict the next, (B, D)."""
        return self.model.hidden(self.new[:, None], cache=self.cache)[:, -1]

    def fixed_step(self) -> None:
        """The next token of each row, into the same tensors each time."""
        self.new.copy_(self.draw(self.decode()))
        self.cache.advance()

    def draw(self, states: Tensor) -> Tensor:
        """The next token of each row, noted: the model's last states (B, D) -> ids (R,)."""
        logits = self.model.unembed(states)  # (B, V)
        new = torch.empty_like(self.rows)  # (R,)
        for part in torch.arange(len(self.rows), device=new.device).split(self.rows_a_part):
            logp = sampling_logprobs(logits[self.which[part]], self.temperature, self.top_p)  # (part, V)
            uniform = self.uniforms[self.rows[part], self.column]  # (part,)
            new[part] = logp.argmax(-1) if self.temperature == 0 else draw(logp, uniform)
            self.logprobs[self.rows[part], self.column] = logp.gather(-1, new[part, None])[:, 0]
        self.tokens[self.rows, self.column] = new
        for end in self.ends:
            self.done.logical_or_(new == end)
        self.column.add_(1)
        return new

    # ------------------------------------------------------------ rows that leave, and rows that part

    def drop_finished(self) -> bool:
        """Take finished rows out, and give rows that drew different tokens a row of the model each; whether it did."""
        alive = torch.arange(len(self.done), device=self.done.device)
        if self.sampler.compaction:
            alive = alive[~self.done]  # (R',)
        share = len(self.cache.mask) < len(self.rows)  # B < R
        # To take rows out costs a part of a step, so some finished ones stay; more where a GPU must record anew.
        fixed = self.sampler.records(self.model.device)
        few = len(alive) <= (0.5 * len(self.rows) - 64 if fixed else 0.9 * len(self.rows))
        if not (share or few):
            return False
        drawn = self.which * self.model.config.vocab_size + self.new  # (R,) another number for each row and token
        source, which = regroup(self.which[alive], drawn[alive])  # (B',), (R',)
        self.cache.keep(source)
        in_order = which.argsort()  # so that rows which share nothing are those of the model, one by one
        kept = alive[in_order]
        self.which = which[in_order]
        self.rows = self.rows[kept]
        self.done = self.done[kept]
        self.new = torch.empty_like(source).scatter(0, self.which, self.new[kept])  # (B',)
        self.most_rows = max(self.most_rows, len(source))
        return True


def shared_beginning(prompts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all prompts begin with; one of each is left over. 0 where too few are to be worth a pass."""
    common = min(len(commonprefix(prompts)), min(map(len, prompts)) - 1)
    return common if common >= SHORTEST_SHARED_BEGINNING and len(prompts) > 1 else 0


def regroup(which: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """The model's rows of the next step: one for all that came through the same row and drew the same token.

    which (R,) rows of the model, drawn (R,) another number for each row of the model and token -> the former row of
    each next one (B',), and the next row of each (R,). The first that continues a former row stays in its place, where
    there still is one of that number, so that little has to be copied.
    """
    distinct, group = drawn.unique(return_inverse=True)  # (B',) in the order of the former rows, (R,)
    former = torch.empty_like(distinct).scatter(0, group, which)  # (B',)
    B = len(distinct)
    stays = (former.diff(prepend=former.new_tensor([-1])) != 0) & (former < B)  # (B',)
    free = torch.ones(B, dtype=torch.bool, device=which.device).index_fill(0, former[stays], False)
    place = former.clone()
    place[~stays] = free.nonzero()[:, 0]
    return torch.empty_like(former).scatter(0, place, former), place[group]


# ---------------------------------------------------------------- caches


class SharedCache(KVCache):
    """A cache whose rows can be copied and taken out in place, with room for more rows."""

    def __init__(self, config, rows: int, max_len: int, like: Tensor) -> None:
        super().__init__(config, rows, max_len, like)
        self.whole = torch.stack((self.k, self.v))  # (2, layers, B or more, G, S_max, E)
        self.k, self.v = self.whole

    def spread(self, rows: Tensor, room: int, most: int) -> None:
        """Row i becomes a copy of what row rows[i] was (B',), with `room` slots after those in use (mask True).

        `keep` can make up to `most` rows of them.
        """
        used = self.whole[:, :, rows, :, : self.length]  # (2, layers, B', G, S, E)
        layers, _, heads, length, width = used.shape[1:]
        self.whole = used.new_empty(2, layers, most, heads, length + room, width)
        self.whole[:, :, : len(rows), :, :length] = used
        self.k, self.v = self.whole[:, :, : len(rows)]
        self.mask = F.pad(self.mask[rows, :length], (0, room), value=True)  # (B', S_max)

    def keep(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was (B'); leading slots that are padding in all of these are dropped.

        In place: only the rows that change their number are copied.
        """
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        self.whole[:, :, moved, :, : self.length] = self.whole[:, :, rows[moved], :, : self.length]
        mask = self.mask[rows]  # (B', S_max)
        lead = int(mask.any(dim=0).float().argmax())
        self.whole = self.whole[..., lead:, :]
        self.mask = mask[:, lead:]
        self.k, self.v = self.whole[:, :, : len(rows)]
        self.length -= lead


class FixedCache(SharedCache):
    """A cache under which a step of one token has the same shapes each time, so that a GPU can replay it.

    All slots are attended to, the empty ones masked. A new token stands in the last slot, where the causal mask lets
    it see itself, and in the first empty one, where it stays.
    """

    def __init__(self, cache: SharedCache) -> None:
        self.whole, self.k, self.v = cache.whole, cache.k, cache.v
        self.mask = cache.mask
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


# ---------------------------------------------------------------- recorded steps


def recorded(step: Callable[[], None], device: torch.device) -> Callable[[], object]:
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
