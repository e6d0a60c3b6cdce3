"""The fast sampler's pieces, each alone: what it saves, and that the tokens stay those of the readable sampler.

Where tokens of two batch shapes are compared, the model is in float64: the rounding of another shape then moves no draw
over the edge between two tokens.
"""

import ast
import inspect
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import pytest
import torch
from doubles import lookup_lm, random_lm

from alignpro_mini import generation
from alignpro_mini.fast import sampling
from alignpro_mini.fast.sampling import FastSampler, SharedCache

PROMPTS = [[4, 7, 2], [5], [9, 9, 8, 1, 6, 2, 11], [3, 10], [6, 1, 1, 8], [10, 2, 7, 5, 9], [1], [8, 8, 4, 2, 3, 5]]
FAMILIES = ("gpt2", "llama")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
# Where a test needs a GPU to say much, it runs on the CPU too: a mistake in the test itself is then seen everywhere.
EACH_DEVICE = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, needs_gpu])])
PIECES = [field.name for field in fields(FastSampler)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(completions) -> list[list[int]]:
    return [c.tokens for c in completions]


def generate(model, prompts, limit, *, max_batch=None, temperature=1.0, eos_id=None, generator=None, **pieces):
    """The fast sampler with some of its pieces switched."""
    sampler = FastSampler(**pieces)
    return sampler(
        model, prompts, limit, temperature=temperature, eos_id=eos_id, generator=generator, max_batch=max_batch
    )


def same(got, want, abs=1e-6) -> None:
    assert tokens(got) == tokens(want) and [c.finished for c in got] == [c.finished for c in want]
    for a, b in zip(got, want):
        assert a.logprobs == pytest.approx(b.logprobs, abs=abs)


# ---------------------------------------------------------------- the cache


def filled(model, ids, mask, slots: int) -> SharedCache:
    """A cache that holds these rows."""
    cache = SharedCache(model.config, rows=len(ids), max_len=slots, like=model.embed.weight)
    cache.mask[:, : ids.shape[1]] = mask
    model.hidden(ids, cache=cache)
    return cache


def left_padded(lengths: list[int], width: int) -> torch.Tensor:
    return torch.arange(width) >= (width - torch.tensor(lengths))[:, None]  # (B, T)


def some_ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 12, (rows, length), generator=rng(rows * 100 + length))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_cache_keep_drops_rows_and_shared_padding(family):
    model, ids, mask = random_lm(family), some_ids(4, 10), left_padded([10, 6, 8, 5], 10)
    cache = filled(model, ids[:, :8], mask[:, :8], 8)
    rows = torch.tensor([3, 1])
    cache.spread(torch.arange(4), 2, 4)
    cache.keep(rows)
    assert cache.length == 8 - 4 and cache.mask.tolist() == [[False] + [True] * 5, [True] * 6]
    rest = model.hidden(ids[rows, 8:], cache=cache)  # (2, 2, D)
    torch.testing.assert_close(rest, model.hidden(ids, mask)[rows, 8:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("slots", [5, 7])  # just enough, and some that were never used
@torch.no_grad()
def test_cache_spread_continues_one_row_in_many(family, slots):
    model, ids, mask = random_lm(family), some_ids(2, 5), left_padded([5, 3], 5)
    cache = filled(model, ids, mask, slots)
    rows, more = torch.tensor([1, 0, 1]), some_ids(3, 4)
    cache.spread(rows, 4, 5)
    assert cache.length == 5 and cache.k.shape[1] == 3 and cache.mask.shape == (3, 9)
    whole_mask = torch.cat((mask[rows], torch.ones(3, 4, dtype=torch.bool)), 1)
    whole = model.hidden(torch.cat((ids[rows], more), 1), whole_mask)
    found = torch.cat([model.hidden(one, cache=cache) for one in more.split(1, dim=1)], 1)
    torch.testing.assert_close(found, whole[:, 5:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [[0, 3, 2], [3, 2, 1, 0], [1, 2, 3], [0], [0, 1, 2, 3, 1, 1], [2, 2, 0, 0, 2]])
@torch.no_grad()
def test_cache_keep_takes_rows_in_any_order_and_more_than_once(family, rows):
    model, ids, rows = random_lm(family), some_ids(4, 6), torch.tensor(rows)
    cache = filled(model, ids[:, :4], torch.ones(4, 4, dtype=torch.bool), 4)
    cache.spread(torch.arange(4), 2, 6)
    cache.keep(rows)
    found = model.hidden(ids[rows, 4:], cache=cache)
    torch.testing.assert_close(found, model.hidden(ids)[rows, 4:], atol=1e-4, rtol=0)


# ---------------------------------------------------------------- the pieces


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_piece_alone_and_all_but_each_give_the_readable_samplers_tokens(piece, family, temperature):
    model = random_lm(family, spread=0.3).double()
    prompts = [[3, 8, 5, 9] * 5 + prompt for prompt in PROMPTS * 3]
    settings = {"temperature": temperature, "eos_id": 4}
    want = generation.generate(model, prompts, 12, generator=rng(7), **settings)
    assert len({len(c.tokens) for c in want}) > 1 or temperature == 0
    for on in (True, False):
        pieces = {name: (name == piece) == on for name in PIECES}
        same(generate(model, prompts, 12, generator=rng(7), **settings, **pieces), want)
        same(generate(model, prompts, 12, generator=rng(7), max_batch=5, **settings, **pieces), want)


def shapes_of_passes(model, monkeypatch) -> list[tuple[int, ...]]:
    """A list that grows by the shape of the ids of each pass through the model."""
    seen, hidden = [], model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda ids, *rest, **named: (seen.append(tuple(ids.shape)), hidden(ids, *rest, **named))[1]
    )
    return seen


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fixed", [False, True])
def test_what_all_prompts_begin_with_goes_through_the_model_once(monkeypatch, family, fixed):
    """A system prompt before ragged requests, one of them nothing else: the same answers as each row alone."""
    model, shared = random_lm(family, spread=0.3).double(), [3, 8, 5, 9] * 5
    prompts = [shared, *([*shared, *prompt] for prompt in PROMPTS)]
    want = tokens(generation.generate(model, prompts, 6, temperature=0))
    seen = shapes_of_passes(model, monkeypatch)
    assert tokens(generate(model, prompts, 6, temperature=0, recorded_steps=fixed)) == want
    assert seen[:2] == [(1, 19), (9, 8)]  # the last common token stays with the rows: nothing else is left of the first
    got = generate(model, prompts, 6, temperature=0.7, eos_id=4, generator=rng(), recorded_steps=fixed)
    same(got, generation.generate(model, prompts, 6, temperature=0.7, eos_id=4, generator=rng()))


@pytest.mark.parametrize("prompts", [[[7] * 30], [[7] * 15 + [8], [7] * 15 + [9]]], ids=["one", "few"])
def test_a_beginning_that_saves_little_gets_no_pass_of_its_own(monkeypatch, prompts):
    model = random_lm()
    seen = shapes_of_passes(model, monkeypatch)
    generate(model, prompts, 2, generator=rng())
    assert seen[0] == (len(prompts), len(prompts[0]))


def test_a_large_vocabulary_is_drawn_from_a_few_rows_at_a_time(monkeypatch):
    """With the same tokens as all rows at once, with rows that leave and rows that go through the model together."""
    model, prompts, sizes = random_lm(vocab_size=2**17, spread=0.1).double(), PROMPTS * 3, []
    run = lambda **pieces: generate(model, prompts, 4, temperature=0.5, eos_id=4, generator=rng(), **pieces)
    inner = sampling.sampling_logprobs
    monkeypatch.setattr(sampling, "sampling_logprobs", lambda x, *rest: (sizes.append(len(x)), inner(x, *rest))[1])
    got = run()
    assert max(sizes) == 8 and sum(sizes) > 8
    sizes.clear()
    want = run(draw_in_parts=False)
    assert max(sizes) == 24
    same(got, want)


def test_rows_go_through_the_model_once_as_long_as_they_are_the_same(monkeypatch):
    model = random_lm(spread=0.3).double()
    seen, prompts = shapes_of_passes(model, monkeypatch), [PROMPTS[0], PROMPTS[1]] * 12
    rows = tokens(generate(model, prompts, 6, temperature=0.4, generator=rng()))
    distinct = [len({(*p, 0, *row[:t]) for p, row in zip(prompts, rows)}) for t in range(1, 6)]
    assert seen == [(2, max(len(p) for p in PROMPTS[:2])), *((n, 1) for n in distinct)]
    assert 2 < distinct[0] < distinct[-1] < 24  # each row samples with numbers of its own; some still are the same

    seen.clear()
    generate(model, prompts, 3, temperature=0)
    assert seen[1:] == [(2, 1), (2, 1)]
    seen.clear()
    generate(model, prompts, 3, generator=rng(), shared_rows=False)
    assert seen[1:] == [(24, 1), (24, 1)]


def test_finished_rows_leave_and_a_few_are_carried_along(monkeypatch):
    model = random_lm(spread=0.3).double()
    seen, prompts = shapes_of_passes(model, monkeypatch), [[4 + i % 8, 1 + i // 8] for i in range(64)]
    rows = tokens(generate(model, prompts, 10, eos_id=4, generator=rng(3)))
    alive = [sum(len(row) > t for row in rows) for t in range(1, 10)]
    assert alive[-1] < 0.7 * alive[0]
    assert all(n <= B <= n / 0.9 for n, (B, _) in zip(alive, seen[1:]))


def test_a_row_leaves_at_each_of_several_ends(monkeypatch):
    """Its tokens would be the same: they are cut at the first end."""
    model = lookup_lm({4: {3: 1.0}, 5: {10: 1.0}, 10: {6: 1.0}, 6: {6: 1.0}})
    passes = shapes_of_passes(model, monkeypatch)
    got = generate(model, [[4], [5]], 6, eos_id=(3, 10), generator=rng())
    assert tokens(got) == [[3], [10]] and len(passes) == 1, passes


def test_more_rows_at_once_where_they_share_the_models(monkeypatch):
    sizes, run = [], sampling.Batch.run
    monkeypatch.setattr(sampling.Batch, "run", lambda batch: (sizes.append(len(batch.prompts)), run(batch))[1])
    model = random_lm()
    generate(model, [[4]] * 50, 5, temperature=0, max_batch=5)
    assert sizes == [5, 20, 20, 5]  # one row of the model for five at first: four times as many, and not more
    sizes.clear()
    generate(model, [[4 + i % 8, 1 + i // 8] for i in range(40)], 5, temperature=0, max_batch=10)
    assert sizes == [10] * 4


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_rows_that_shared_much_do_not_swell_the_batch_of_those_that_share_nothing(monkeypatch, temperature):
    """8 equal prompts are 1 row of the model: the batch after them may be four times as large, if it shares as much."""
    model, sizes = random_lm().double(), []
    prompts = [[4]] * 8 + [[4 + i // 8, 4 + i % 8] for i in range(64)]  # sorted by length: the equal ones come first
    hidden = model.hidden

    def watched(ids, *args, **how):
        sizes.append(len(ids))
        return hidden(ids, *args, **how)

    monkeypatch.setattr(model, "hidden", watched)
    run = lambda **how: generate(model, prompts, 6, temperature=temperature, eos_id=3, generator=rng(), **how)
    got = run(max_batch=8)
    assert sizes[0] == 1 and max(sizes) == 8
    want = run(shared_rows=False, compaction=False)
    assert tokens(got) == tokens(want)
    for a, b in zip(got, want):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4) and a.finished == b.finished


def test_the_token_loop_never_waits_for_a_number():
    """`.item()`, `.tolist()`, `.cpu()` would wait for a GPU at each token; only "all done?" may, at every n-th step."""
    batch = sampling.Batch
    for loop in (batch.decode, batch.fixed_step, batch.draw, sampling.FixedCache.append, sampling.FixedCache.advance):
        name, tree = loop.__qualname__, ast.parse(inspect.getsource(loop).replace("    def", "def", 1).strip())
        calls = {n.func.attr for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)}
        assert not calls & {"item", "tolist", "cpu", "numpy", "any", "all", "nonzero"}, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("temperature", "ends"), [(0.0, True), (1.0, True), (1.0, False)])
def test_steps_of_fixed_shapes_give_the_same_answers(monkeypatch, family, temperature, ends):
    """As a GPU works, without the recording: ragged prompts, rows that leave, and memory that holds anything."""
    model, kept, keep = random_lm(family=family, spread=0.3).double(), [], sampling.FixedCache.keep
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *shape: x.new_full(shape, math.nan))
    monkeypatch.setattr(sampling.FixedCache, "keep", lambda cache, rows: (kept.append(len(rows)), keep(cache, rows)))
    run = lambda **how: generate(model, PROMPTS * 40, 20, temperature=temperature, generator=rng(7), **how)
    common = Counter(sum(tokens(run()), [])).most_common(1)[0][0] if ends else None
    want, got = run(eos_id=common, recorded_steps=False), run(eos_id=common, recorded_steps=True)
    assert tokens(got) == tokens(want) and [c.finished for c in got] == [c.finished for c in want]
    for a, b in zip(got, want):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    rows = [256, *kept]  # the first batch, and what is left of it; that of the other 64 rows stays whole
    assert all(after <= before / 2 - 64 for before, after in zip(rows, kept)) and bool(kept) == ends


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_fixed_shapes_fit_the_whole_context(limit):
    model = random_lm(max_len=7 + limit).double()
    run = lambda fixed: tokens(generate(model, [[6] * 7, [5]], limit, generator=rng(), recorded_steps=fixed))
    assert run(True) == run(False) and [len(row) for row in run(True)] == [limit] * 2


def test_fixed_shapes_take_keys_of_another_dtype():
    """Under a caller's autocast the keys are coarser than the cache, which has the dtype of the weights."""
    with torch.autocast("cpu", torch.bfloat16):
        found = generate(random_lm(), PROMPTS, 5, generator=rng(), recorded_steps=True)
    assert [len(c.tokens) for c in found] == [5] * len(PROMPTS)


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_gpu_that_asks_who_is_done_every_eight_tokens_gives_the_same_tokens(temperature):
    model = random_lm(spread=0.3).double()
    want = generate(model, PROMPTS * 3, 20, temperature=temperature, eos_id=4, generator=rng(7))
    got = generate(model.cuda(), PROMPTS * 3, 20, temperature=temperature, eos_id=4, generator=rng(7))
    assert tokens(got) == tokens(want) and [c.finished for c in got] == [c.finished for c in want]


@EACH_DEVICE
def test_recorded_steps_are_recorded_anew_when_rows_leave_and_in_each_call(device):
    """Weights that changed in place are seen, and rows that stay go on from where they were."""
    model = random_lm(spread=0.3, max_len=50).double().to(device)
    for shift in range(4):
        with torch.no_grad():
            model.embed.weight.copy_(model.embed.weight.roll(shift, 0))
        got, want = (
            tokens(generate(model, PROMPTS * 40, 40, eos_id=4, generator=rng(shift), recorded_steps=fixed))
            for fixed in (True, False)
        )
        assert got == want


@EACH_DEVICE
def test_threads_that_sample_at_the_same_time_do_not_disturb_each_other(device):
    models = [random_lm(family, spread=0.3).double().to(device) for family in FAMILIES]
    run = lambda i: [tokens(generate(models[i], PROMPTS, 20, generator=rng(seed))) for seed in range(10)]
    want = [run(0), run(1)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, (0, 1))) == want
