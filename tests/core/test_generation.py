"""Batched sampling against the simplest sampler: one row, no padding, no cache, everything recomputed.

The distributions are worked by hand or read off a lookup-table model (tests/conftest.py), whose probabilities are given.
"""

import ast
import inspect
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from doubles import lookup_lm, random_lm, seed_with_margin

from alignpro_mini import generation
from alignpro_mini.generation import (
    _draw,
    generate,
    pad_left,
    pad_pairs,
    pad_right,
    sampling_logprobs,
    sequence_logprobs,
)
from alignpro_mini.options import UserError

PROMPTS = [[4, 7, 2], [5], [9, 9, 8, 1, 6, 2, 11], [3, 10], [6, 1, 1, 8], [10, 2, 7, 5, 9], [1], [8, 8, 4, 2, 3, 5]]
FAMILIES = ("gpt2", "llama")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
# Where a test needs a GPU to say much, it runs on the CPU too: a mistake in the test itself is then seen everywhere.
EACH_DEVICE = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, needs_gpu])])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def next_logits(model, row: list[int]) -> list[float]:
    with torch.no_grad():
        return model(torch.tensor([row]))[0, -1].tolist()


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(v - top) for v in logits]
    return [w / math.fsum(weights) for w in weights]


def naive_greedy(model, prompt: list[int], limit: int, eos: int | None) -> list[int]:
    new: list[int] = []
    while len(new) < limit and (not new or new[-1] != eos):
        logits = next_logits(model, prompt + new)
        new.append(max(range(len(logits)), key=logits.__getitem__))
    return new


def naive_logprobs(model, prompt: list[int], new: list[int], temperature: float, top_p: float) -> list[float]:
    """The log-probability of each sampled token: temperature first, then the smallest set of mass top_p."""
    result = []
    for t, token in enumerate(new):
        p = softmax([v / temperature for v in next_logits(model, prompt + new[:t])])
        nucleus, mass = [], 0.0
        for v in sorted(range(len(p)), key=lambda v: -p[v]):
            if mass >= top_p:
                break
            nucleus.append(v)
            mass += p[v]
        result.append(math.log(p[token] / mass) if token in nucleus else -math.inf)
    return result


def tokens(completions) -> list[list[int]]:
    return [c.tokens for c in completions]


def a_common_token(model) -> int:
    """The token that greedy decoding reaches at the most different steps: a stop token worth testing."""
    rows = [naive_greedy(model, p, 12, None) for p in PROMPTS]
    return max(range(12), key=lambda v: len({row.index(v) for row in rows if v in row}))


# ---------------------------------------------------------------- against the naive sampler


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_greedy_equals_each_row_alone_without_a_cache(family, seed):
    model = random_lm(family, seed)
    eos = a_common_token(model)
    want = [naive_greedy(model, p, 12, eos) for p in PROMPTS]
    assert len(set(map(len, want))) > 2, "rows must end at different steps"
    got = generate(model, PROMPTS, 12, temperature=0, eos_id=eos)
    assert tokens(got) == want
    assert [c.finished for c in got] == [row[-1] == eos for row in want]
    assert tokens(generate(model, PROMPTS, 12, temperature=0)) == [naive_greedy(model, p, 12, None) for p in PROMPTS]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.5, 0.8), (0.0, 1.0)])
def test_logprobs_are_those_of_the_distribution_sampled_from(family, temperature, top_p):
    model = random_lm(family)
    got = generate(model, PROMPTS, 9, temperature=temperature, top_p=top_p, eos_id=4, generator=rng())
    for prompt, completion in zip(PROMPTS, got):
        want = naive_logprobs(model, prompt, completion.tokens, temperature or 1.0, top_p)
        assert len(completion.logprobs) == len(completion.tokens)
        assert completion.logprobs == pytest.approx(want, abs=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.8)])
def test_scorer_gives_the_samplers_log_probs(family, temperature, top_p):
    model = random_lm(family=family)
    sampled = generate(model, PROMPTS, 6, temperature=temperature, top_p=top_p, eos_id=3, generator=rng())
    want = [sum(naive_logprobs(model, p, c.tokens, temperature, top_p)) for p, c in zip(PROMPTS, sampled)]
    for max_batch in (1, 3, 128):
        found = sequence_logprobs(model, PROMPTS, [c.tokens for c in sampled], temperature, top_p, max_batch)
        assert found.tolist() == pytest.approx(want, abs=2e-4)
    assert max(want) - min(want) > 1  # so that rows in the wrong order would not pass


def test_rows_that_fill_the_context_are_scored_together_wherever_they_are_cut():
    model, prompts, completions = random_lm(max_len=10), [[5] * 8, [7] * 2, [4] * 5], [[9] * 2, [8] * 8, []]
    want = [sum(naive_logprobs(model, p, c, 1.0, 1.0)) for p, c in zip(prompts, completions)]
    assert sequence_logprobs(model, prompts, completions).tolist() == pytest.approx(want, abs=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.4])
def test_neither_compaction_nor_the_batching_changes_what_a_row_samples(family, temperature):
    model = random_lm(family, spread=0.3)
    prompts = PROMPTS * 3
    seed = seed_with_margin(model, prompts, 12, temperature=temperature, eos_id=4)

    def run(**how):
        return generate(model, prompts, 12, temperature=temperature, eos_id=4, generator=rng(seed), **how)

    want = run(compact=False)
    lengths = {len(c.tokens) for c in want}
    assert len(lengths) > 2 or temperature == 0
    for how in (dict(), dict(max_batch=1), dict(max_batch=2), dict(max_batch=5), dict(max_batch=5, compact=False)):
        got = run(**how)
        assert tokens(got) == tokens(want), how
        for a, b in zip(got, want):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4) and a.finished == b.finished


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
    model, shared = random_lm(family, spread=0.3), [3, 8, 5, 9] * 5
    prompts = [shared, *([*shared, *prompt] for prompt in PROMPTS)]
    want = [naive_greedy(model, prompt, 6, None) for prompt in prompts]
    seen = shapes_of_passes(model, monkeypatch)
    assert tokens(generate(model, prompts, 6, temperature=0, fixed_shapes=fixed)) == want
    assert seen[:2] == [(1, 19), (9, 8)]  # the last common token stays with the rows: nothing else is left of the first
    got = generate(model, prompts, 6, temperature=0.7, eos_id=4, generator=rng(), fixed_shapes=fixed)
    for prompt, completion in zip(prompts, got):
        alone = naive_logprobs(model, prompt, completion.tokens, 0.7, 1.0)
        assert completion.logprobs == pytest.approx(alone, abs=2e-4)


@pytest.mark.parametrize("prompts", [[[7] * 30], [[7] * 15 + [8], [7] * 15 + [9]]], ids=["one", "few"])
def test_a_beginning_that_saves_little_gets_no_pass_of_its_own(monkeypatch, prompts):
    model = random_lm()
    seen = shapes_of_passes(model, monkeypatch)
    generate(model, prompts, 2, generator=rng())
    assert seen[0] == (len(prompts), len(prompts[0]))


def test_a_large_vocabulary_is_drawn_from_a_few_rows_at_a_time(monkeypatch):
    """Equal to each row alone, with rows that leave and rows that go through the model together.

    A row has a few likely tokens: between 131,072 equally likely ones no draw would keep a margin from every edge.
    """
    model, prompts = random_lm(vocab_size=2**17), PROMPTS * 3
    likely = next_logits(model, PROMPTS[0])
    eos, settings = likely.index(max(likely)), {"temperature": 0.2}
    run = lambda prompts, **how: generate(model, prompts, 4, eos_id=eos, **settings, **how)
    seed, sizes = seed_with_margin(model, prompts, 4, eos_id=eos, **settings), []
    uniforms, inner = torch.rand(24, 4, generator=rng(seed)), generation.sampling_logprobs
    monkeypatch.setattr(generation, "sampling_logprobs", lambda x, *how: (sizes.append(len(x)), inner(x, *how))[1])
    got = run(prompts, generator=rng(seed))
    assert len({tuple(c.tokens) for c in got}) > len(PROMPTS) and len({len(c.tokens) for c in got}) > 1
    assert max(sizes) == 8 and sum(sizes) > 8
    for i, (prompt, completion) in enumerate(zip(prompts, got)):
        monkeypatch.setattr(torch, "rand", lambda *shape, i=i, **how: uniforms[i : i + 1])
        (alone,) = run([prompt])
        assert completion.tokens == alone.tokens and completion.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_rows_go_through_the_model_once_as_long_as_they_are_the_same(monkeypatch):
    model = random_lm(spread=0.3)
    seen, prompts = shapes_of_passes(model, monkeypatch), [PROMPTS[0], PROMPTS[1]] * 12
    rows = tokens(generate(model, prompts, 6, temperature=0.4, generator=rng()))
    distinct = [len({(*p, 0, *row[:t]) for p, row in zip(prompts, rows)}) for t in range(1, 6)]
    assert seen == [(2, max(len(p) for p in PROMPTS[:2])), *((n, 1) for n in distinct)]
    assert 2 < distinct[0] < distinct[-1] < 24  # each row samples with numbers of its own; some still are the same

    seen.clear()
    generate(model, prompts, 3, temperature=0)
    assert seen[1:] == [(2, 1), (2, 1)]
    seen.clear()
    generate(model, prompts, 3, generator=rng(), compact=False)
    assert seen[1:] == [(24, 1), (24, 1)]


def test_finished_rows_leave_and_a_few_are_carried_along(monkeypatch):
    model = random_lm(spread=0.3)
    seen, prompts = shapes_of_passes(model, monkeypatch), [[4 + i % 8, 1 + i // 8] for i in range(64)]
    rows = tokens(generate(model, prompts, 10, eos_id=4, generator=rng(3)))
    alive = [sum(len(row) > t for row in rows) for t in range(1, 10)]
    assert alive[-1] < 0.7 * alive[0]
    assert all(n <= B <= n / 0.9 for n, (B, _) in zip(alive, seen[1:]))


def test_more_rows_at_once_where_they_share_the_models(monkeypatch):
    model, sizes, batch = random_lm(), [], generation._generate_batch
    monkeypatch.setattr(
        generation,
        "_generate_batch",
        lambda model, rows, *rest: (sizes.append(len(rows)), batch(model, rows, *rest))[1],
    )
    generate(model, [[4]] * 50, 5, temperature=0, max_batch=5)
    assert sizes == [5, 20, 20, 5]  # one row of the model for five at first: four times as many, and not more
    sizes.clear()
    generate(model, [[4 + i % 8, 1 + i // 8] for i in range(40)], 5, temperature=0, max_batch=10)
    assert sizes == [10] * 4


@pytest.mark.parametrize("family", FAMILIES)
def test_another_companion_does_not_change_what_a_row_samples(family):
    model = random_lm(family, spread=0.3)
    seed = seed_with_margin(model, [[4], *PROMPTS], 10, eos_id=4)
    one, other = (
        generate(model, [first, *PROMPTS], 10, eos_id=4, generator=rng(seed))[1:] for first in ([4], [5] * 20)
    )
    assert tokens(one) == tokens(other) and len(set(map(tuple, tokens(one)))) > 4


def test_completions_come_back_in_the_order_of_the_prompts():
    follow = {v: {v + 1 if v < 11 else 4: 1.0} for v in range(4, 12)}  # the next letter, and a after h
    prompts = [[4], [9, 9, 9, 6], [1, 5], [7, 7, 7, 7, 7, 10], [2, 2, 8]]
    assert tokens(generate(lookup_lm(follow), prompts, 3, generator=rng(), max_batch=2)) == [
        [5, 6, 7],
        [7, 8, 9],
        [6, 7, 8],
        [11, 4, 5],
        [9, 10, 11],
    ]
    model = random_lm()
    forward, backward = (generate(model, order, 6, temperature=0) for order in (PROMPTS, PROMPTS[::-1]))
    assert tokens(backward) == tokens(forward)[::-1]


# ---------------------------------------------------------------- EOS and the limit


def test_eos_is_kept_as_the_last_token_and_the_limit_cuts():
    # 4 -> 5 -> 6 -> 3 (end); 7 -> 7 -> ... never ends; 8 -> 3 at once
    model = lookup_lm({4: {5: 1.0}, 5: {6: 1.0}, 6: {3: 1.0}, 7: {7: 1.0}, 8: {3: 1.0}, 3: {9: 1.0}})
    for compact in (True, False):
        got = generate(model, [[4], [7], [8], [1, 5]], 3, eos_id=3, generator=rng(), compact=compact)
        assert tokens(got) == [[5, 6, 3], [7, 7, 7], [3], [6, 3]]
        assert [c.finished for c in got] == [True, False, True, True]
    got = generate(model, [[4]], 2, eos_id=3, generator=rng())[0]
    assert got.tokens == [5, 6] and not got.finished
    assert generate(model, [[8, 3]], 1, eos_id=3, generator=rng())[0].tokens == [9]  # one in the prompt ends nothing
    assert tokens(generate(model, [[4]], 6, generator=rng()))[0][:4] == [5, 6, 3, 9]  # no eos_id: nothing ends


def test_no_prompts_and_no_new_tokens():
    assert generate(random_lm(), [], 5) == []
    assert tokens(generate(random_lm(), [[4], [5, 6]], 0, generator=rng())) == [[], []]


# ---------------------------------------------------------------- the distribution


@pytest.mark.parametrize(
    ("top_p", "want"),
    [
        # p = .15 .5 .1 .25: the smallest set whose mass reaches top_p, scaled to 1
        (0.30, [0, 1, 0, 0]),
        (0.49, [0, 1, 0, 0]),
        (0.51, [0, 2 / 3, 0, 1 / 3]),
        (0.74, [0, 2 / 3, 0, 1 / 3]),
        (0.76, [1 / 6, 5 / 9, 0, 5 / 18]),
        (0.91, [0.15, 0.5, 0.1, 0.25]),
        (1.0, [0.15, 0.5, 0.1, 0.25]),
    ],
)
def test_nucleus_by_hand(top_p, want):
    logits = torch.tensor([0.15, 0.5, 0.1, 0.25]).log() + 3.0  # a constant added to the logits changes nothing
    got = sampling_logprobs(logits.expand(2, 3, 4), 1.0, top_p).exp()
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float32).expand(2, 3, 4))


def test_temperature_by_hand_and_before_the_nucleus():
    logits = torch.tensor([[0.0, math.log(2)]])
    torch.testing.assert_close(sampling_logprobs(logits, 0.5).exp(), torch.tensor([[0.2, 0.8]]))  # 1 : 2^2
    torch.testing.assert_close(sampling_logprobs(logits, 0.0).exp(), torch.tensor([[1 / 3, 2 / 3]]))  # reported at 1
    torch.testing.assert_close(sampling_logprobs(logits, 0.0, 0.5).exp(), torch.tensor([[1 / 3, 2 / 3]]))  # whole
    # at temperature 1 the better token has 2/3 and does not reach 0.75 alone; at 0.5 it has 0.8 and does
    assert sampling_logprobs(logits, 1.0, 0.75).isfinite().tolist() == [[True, True]]
    assert sampling_logprobs(logits, 0.5, 0.75).tolist() == [[-math.inf, 0.0]]
    assert sampling_logprobs(logits.bfloat16(), 1.0).dtype == torch.float32


@pytest.mark.parametrize(("temperature", "top_p"), [(-0.1, 1.0), (1.0, 0.0), (1.0, 1.1), (1.0, -1.0)])
def test_impossible_sampling_settings_are_refused(temperature, top_p):
    with pytest.raises(ValueError, match="temperature"):
        sampling_logprobs(torch.zeros(1, 3), temperature, top_p)


@pytest.mark.parametrize(
    ("temperature", "top_p", "want"),
    [
        (1.0, 1.0, {4: 0.4, 5: 0.3, 6: 0.2, 7: 0.1}),
        (0.5, 1.0, {4: 16 / 30, 5: 9 / 30, 6: 4 / 30, 7: 1 / 30}),  # squares, scaled
        (1.0, 0.65, {4: 4 / 7, 5: 3 / 7}),
    ],
)
def test_sampled_frequencies_match_the_probabilities(temperature, top_p, want):
    start, second = {4: 0.4, 5: 0.3, 6: 0.2, 7: 0.1}, {8: 0.5, 9: 0.5}
    model = lookup_lm({1: start} | {v: second for v in start})
    n = 20_000
    got = tokens(generate(model, [[1]] * n, 2, temperature=temperature, top_p=top_p, generator=rng(3), max_batch=5000))
    seen = Counter(map(tuple, got))
    expected = {(v, w): n * p / 2 for v, p in want.items() for w in (8, 9)}
    assert set(seen) <= set(expected)
    if top_p < 0.7:  # the nucleus of fifty-fifty at 0.65 is both
        assert len(seen) == 4
    chi_square = sum((seen[k] - e) ** 2 / e for k, e in expected.items())
    assert chi_square < 24.3  # 99.9 % quantile of chi-square at 7 degrees of freedom


def test_a_token_of_probability_zero_is_never_drawn():
    uniform = torch.tensor([0.0, 1e-30, 2**-24, 0.25, 0.5, 0.75, 1 - 2**-20, 1 - 2**-24, 1.0])
    p = torch.tensor([0.0, 0.5, 0.0, 0.0, 0.5, 0.0])
    got = _draw(p.log().expand(len(uniform), -1), uniform)
    assert got.tolist() == [1, 1, 1, 1, 4, 4, 4, 4, 4]
    # A mass that rounding leaves below 1 over a real vocabulary: the index must stay inside it.
    flat = torch.full((50_257,), 1 / 50_257).log()
    flat[-7:] = -math.inf
    assert 50_000 < _draw(flat.expand(2, -1), torch.tensor([1 - 2**-24, 1.0])).max() < 50_250
    # one certain token is drawn whatever u is
    certain = torch.full((len(uniform), 4), -math.inf).index_fill_(1, torch.tensor([2]), 0.0)
    assert _draw(certain, uniform).tolist() == [2] * len(uniform)


def test_the_uniform_interval_of_a_token_is_as_wide_as_its_probability():
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    u = (torch.arange(1000) + 0.5) / 1000
    counts = torch.bincount(_draw(p.log().expand(1000, -1), u), minlength=4)
    assert counts.tolist() == [100, 200, 300, 400]


# ---------------------------------------------------------------- seeds, errors, the token loop


def test_the_generator_decides_everything():
    model = random_lm(spread=0.2)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, again, other = (tokens(generate(model, PROMPTS, 8, generator=rng(s))) for s in (0, 0, 1))
    assert one == again and one != other
    assert torch.equal(torch.get_rng_state(), before), "the global stream was touched"
    stream = rng(0)
    assert tokens(generate(model, PROMPTS, 8, generator=stream)) != tokens(
        generate(model, PROMPTS, 8, generator=stream)
    )
    same = tokens(generate(model, [[4]] * 8, 8, generator=rng(0)))
    assert len(set(map(tuple, same))) > 4, "equal prompts must draw from streams of their own"


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_rows_that_shared_much_do_not_swell_the_batch_of_those_that_share_nothing(monkeypatch, temperature):
    """8 equal prompts are 1 row of the model: the batch after them may be four times as large, if it shares as much."""
    model, sizes = random_lm(), []
    prompts = [[4]] * 8 + [[4 + i // 8, 4 + i % 8] for i in range(64)]  # sorted by length: the equal ones come first
    seed, hidden = seed_with_margin(model, prompts, 6, temperature=temperature, eos_id=3), model.hidden

    def watched(ids, *args, **how):
        sizes.append(len(ids))
        return hidden(ids, *args, **how)

    monkeypatch.setattr(model, "hidden", watched)
    run = lambda **how: generate(model, prompts, 6, temperature=temperature, eos_id=3, generator=rng(seed), **how)
    got = run(max_batch=8)
    assert sizes[0] == 1 and max(sizes) == 8
    want = run(compact=False)
    assert tokens(got) == tokens(want)
    for a, b in zip(got, want):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4) and a.finished == b.finished


def test_a_batch_of_no_rows_and_fewer_than_no_tokens_are_refused():
    with pytest.raises(UserError, match="max_batch is 0; it must be at least 1"):
        generate(random_lm(), [[4]], 3, max_batch=0)
    with pytest.raises(UserError, match="max_new_tokens is -1; it must be at least 0"):
        generate(random_lm(), [[4]], -1)


def test_bad_prompts_are_refused_by_number():
    model = random_lm(max_len=10)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        generate(model, [[4], []], 3)
    with pytest.raises(ValueError, match=r"prompt 2 has 8 tokens.*context of 10.*shorten it to 7"):
        generate(model, [[4], [5], [6] * 8], 3)
    assert len(generate(model, [[6] * 7], 3, generator=rng())[0].tokens) == 3  # just fits
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        sequence_logprobs(model, [[4], []], [[5], [5]])
    with pytest.raises(ValueError, match="shorter"):
        sequence_logprobs(model, [[4], [5]], [[6]])


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_put_back_and_no_gradient_is_kept(training):
    model = random_lm().train(training)
    generate(model, [[4]], 2, generator=rng())
    assert model.training is training and all(m.training is training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_the_token_loop_never_waits_for_a_number():
    """`.item()`, `.tolist()`, `.cpu()` would wait for a GPU at each token; only "all done?" may, at every n-th step."""
    for name in ("_generate_batch", "_FixedCache", "_draw", "sampling_logprobs"):
        tree = ast.parse(inspect.getsource(getattr(generation, name)))
        loops = [node for node in ast.walk(tree) if isinstance(node, (ast.For, ast.While))]
        assert loops or name != "_generate_batch"
        calls = {n.func.attr for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)}
        assert not calls & {"item", "tolist", "cpu", "numpy", "any", "all"}, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("temperature", "ends"), [(0.0, True), (1.0, True), (1.0, False)])
def test_steps_of_fixed_shapes_give_the_same_answers(monkeypatch, family, temperature, ends):
    """As a GPU works, without the recording: ragged prompts, rows that leave, and memory that holds anything."""
    model, kept, keep = random_lm(family=family, spread=0.3), [], generation._FixedCache.keep
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *shape: x.new_full(shape, math.nan))
    monkeypatch.setattr(generation._FixedCache, "keep", lambda cache, rows: (kept.append(len(rows)), keep(cache, rows)))
    run = lambda **how: generate(model, PROMPTS * 40, 20, temperature=temperature, generator=rng(seed), **how)
    seed = 7
    common = Counter(sum(tokens(run()), [])).most_common(1)[0][0] if ends else None
    seed = seed_with_margin(model, PROMPTS * 40, 20, temperature=temperature, eos_id=common)
    want, got = run(eos_id=common, fixed_shapes=False), run(eos_id=common, fixed_shapes=True)
    assert tokens(got) == tokens(want) and [c.finished for c in got] == [c.finished for c in want]
    for a, b in zip(got, want):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    rows = [256, *kept]  # the first batch, and what is left of it; that of the other 64 rows stays whole
    assert all(after <= before / 2 - 64 for before, after in zip(rows, kept)) and bool(kept) == ends


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_fixed_shapes_fit_the_whole_context(limit):
    model = random_lm(max_len=7 + limit)
    seed = seed_with_margin(model, [[6] * 7, [5]], limit)
    run = lambda fixed: tokens(generate(model, [[6] * 7, [5]], limit, generator=rng(seed), fixed_shapes=fixed))
    assert run(True) == run(False) and [len(row) for row in run(True)] == [limit] * 2


def test_fixed_shapes_take_keys_of_another_dtype():
    """Under a caller's autocast the keys are coarser than the cache, which has the dtype of the weights."""
    with torch.autocast("cpu", torch.bfloat16):
        found = generate(random_lm(), PROMPTS, 5, generator=rng(), fixed_shapes=True)
    assert [len(c.tokens) for c in found] == [5] * len(PROMPTS)


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_gpu_that_asks_who_is_done_every_eight_tokens_gives_the_same_tokens(temperature):
    model = random_lm(spread=0.3)
    seed = seed_with_margin(model, PROMPTS * 3, 20, temperature=temperature, eos_id=4)
    want = generate(model, PROMPTS * 3, 20, temperature=temperature, eos_id=4, generator=rng(seed))
    got = generate(model.cuda(), PROMPTS * 3, 20, temperature=temperature, eos_id=4, generator=rng(seed))
    assert tokens(got) == tokens(want) and [c.finished for c in got] == [c.finished for c in want]


@EACH_DEVICE
def test_recorded_steps_are_recorded_anew_when_rows_leave_and_in_each_call(device):
    """Weights that changed in place are seen, and rows that stay go on from where they were."""
    model = random_lm(spread=0.3, max_len=50).to(device)
    for shift in range(4):
        with torch.no_grad():
            model.embed.weight.copy_(model.embed.weight.roll(shift, 0))
        seed = seed_with_margin(model, PROMPTS * 32, 24, eos_id=4)
        got, want = (
            tokens(generate(model, PROMPTS * 32, 24, eos_id=4, generator=rng(seed), fixed_shapes=fixed))
            for fixed in (True, False)
        )
        assert got == want


@EACH_DEVICE
def test_threads_that_sample_at_the_same_time_do_not_disturb_each_other(device):
    models = [random_lm(family, spread=0.3).to(device) for family in FAMILIES]
    seeds = [[seed_with_margin(model, PROMPTS, 20, first=100 * i) for i in range(10)] for model in models]
    run = lambda i: [tokens(generate(models[i], PROMPTS, 20, generator=rng(seed))) for seed in seeds[i]]
    want = [run(0), run(1)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, (0, 1))) == want


@pytest.mark.parametrize(
    ("pad", "ids", "mask"),
    [
        (pad_left, [[0, 0, 7], [5, 6, 0], [0, 0, 0]], [[0, 0, 1], [1, 1, 1], [0, 0, 0]]),
        (pad_right, [[7, 0, 0], [5, 6, 0], [0, 0, 0]], [[1, 0, 0], [1, 1, 1], [0, 0, 0]]),
    ],
)
def test_padding_by_hand(pad, ids, mask):
    for pad_id in (0, 9):
        got, real = pad([[7], [5, 6, 0], []], pad_id)  # a real token may equal the padding: the mask tells them apart
        assert real.tolist() == [[bool(m) for m in row] for row in mask]
        assert got.tolist() == [[v if m else pad_id for v, m in zip(*rows)] for rows in zip(ids, mask)]
        assert got.dtype == torch.long and real.dtype == torch.bool
    assert [t.shape for t in pad([], 0)] == [(0, 0), (0, 0)]


def test_pairs_are_padded_by_hand():
    """A completion may hold the id of the padding, or nothing; a prompt, too."""
    ids, action = pad_pairs([([5, 0], [0, 7]), ([8], []), ([], [0])])
    assert ids.tolist() == [[5, 0, 0, 7], [8, 0, 0, 0], [0, 0, 0, 0]] and ids.dtype == torch.long
    assert action.int().tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]] and action.dtype == torch.bool
    assert [t.shape for t in pad_pairs([])] == [(0, 0), (0, 0)]
