"""The readable sampler and the fast one against the simplest: one row, no padding, no cache, everything recomputed.

The distributions are worked by hand or read off a lookup-table model (tests/doubles.py), whose probabilities are given.
What only the fast one does is in tests/fast/test_sampling.py.
"""

import inspect
import math
from collections import Counter

import pytest
import torch
from doubles import lookup_lm, random_lm

from alignpro_mini import generation
from alignpro_mini.fast import sampling
from alignpro_mini.generation import draw, pad_left, pad_pairs, pad_right, sampling_logprobs, sequence_logprobs
from alignpro_mini.options import UserError

PROMPTS = [[4, 7, 2], [5], [9, 9, 8, 1, 6, 2, 11], [3, 10], [6, 1, 1, 8], [10, 2, 7, 5, 9], [1], [8, 8, 4, 2, 3, 5]]
FAMILIES = ("gpt2", "llama")


@pytest.fixture(params=["readable", "fast"])
def generate(request):
    """Every test that asks for it runs over both samplers."""
    return generation.generate if request.param == "readable" else sampling.generate


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


def naive_distribution(model, row: list[int], temperature: float, top_p: float) -> list[float]:
    """Probabilities of the token after the row: temperature first, then the smallest set of mass top_p, scaled to 1."""
    p = softmax([v / temperature for v in next_logits(model, row)])
    nucleus, mass = [], 0.0
    for v in sorted(range(len(p)), key=lambda v: -p[v]):
        if mass >= top_p:
            break
        nucleus.append(v)
        mass += p[v]
    return [p[v] / mass if v in nucleus else 0.0 for v in range(len(p))]


def naive_logprobs(model, prompt: list[int], new: list[int], temperature: float, top_p: float) -> list[float]:
    """The log-probability of each sampled token."""
    steps = (naive_distribution(model, prompt + new[:t], temperature, top_p) for t in range(len(new)))
    return [math.log(p[token]) if p[token] > 0 else -math.inf for p, token in zip(steps, new)]


def tokens(completions) -> list[list[int]]:
    return [c.tokens for c in completions]


def a_common_token(model) -> int:
    """The token that greedy decoding reaches at the most different steps: a stop token worth testing."""
    rows = [naive_greedy(model, p, 12, None) for p in PROMPTS]
    return max(range(12), key=lambda v: len({row.index(v) for row in rows if v in row}))


# ---------------------------------------------------------------- against the naive sampler


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_greedy_equals_each_row_alone_without_a_cache(generate, family, seed):
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
def test_logprobs_are_those_of_the_distribution_sampled_from(generate, family, temperature, top_p):
    model = random_lm(family)
    got = generate(model, PROMPTS, 9, temperature=temperature, top_p=top_p, eos_id=4, generator=rng())
    for prompt, completion in zip(PROMPTS, got):
        want = naive_logprobs(model, prompt, completion.tokens, temperature or 1.0, top_p)
        assert len(completion.logprobs) == len(completion.tokens)
        assert completion.logprobs == pytest.approx(want, abs=2e-4)


def naive_sample(model, prompt: list[int], uniforms: list[float], temperature: float, top_p: float, eos: int):
    """(tokens, distance of the nearest number to an edge between two tokens) of one row by its own uniform numbers."""
    new, distance = [], 1.0
    for u in uniforms:
        p = naive_distribution(model, prompt + new, temperature, top_p)
        edges = [math.fsum(p[: v + 1]) for v in range(12)]
        distance = min(distance, *(abs(edge - u) for edge in edges))
        new.append(next(v for v in range(12) if edges[v] > u))
        if new[-1] == eos:
            break
    return new, distance


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.8, 0.7)])
def test_each_row_takes_the_tokens_that_its_own_numbers_choose(generate, family, temperature, top_p):
    model = random_lm(family, spread=0.3).double()
    uniforms = torch.rand(len(PROMPTS), 7, generator=rng(9)).tolist()
    alone = [naive_sample(model, prompt, u, temperature, top_p, eos=6) for prompt, u in zip(PROMPTS, uniforms)]
    assert min(distance for _, distance in alone) > 1e-5, "a draw so near an edge depends on the processor"
    want = [row for row, _ in alone]
    assert len(set(map(len, want))) > 2, "rows must end at different steps"
    for max_batch in (None, 3):
        got = generate(
            model, PROMPTS, 7, temperature=temperature, top_p=top_p, eos_id=6, generator=rng(9), max_batch=max_batch
        )
        assert tokens(got) == want and [c.finished for c in got] == [row[-1] == 6 for row in want]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.8)])
def test_scorer_gives_the_samplers_log_probs(family, temperature, top_p):
    model = random_lm(family=family)
    sampled = generation.generate(model, PROMPTS, 6, temperature=temperature, top_p=top_p, eos_id=3, generator=rng())
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
def test_the_fast_sampler_gives_the_readable_ones_tokens_however_they_are_batched(family, temperature):
    """In float64: the rounding of another batch shape then moves no draw over the edge between two tokens."""
    model = random_lm(family, spread=0.3).double()
    prompts = PROMPTS * 3

    def run(sampler, max_batch=None):
        return sampler(model, prompts, 12, temperature=temperature, eos_id=4, generator=rng(7), max_batch=max_batch)

    want = run(generation.generate)
    lengths = {len(c.tokens) for c in want}
    assert len(lengths) > 2 or temperature == 0
    for sampler in (generation.generate, sampling.generate):
        for max_batch in (None, 1, 2, 5):
            got = run(sampler, max_batch)
            assert tokens(got) == tokens(want), (sampler, max_batch)
            for a, b in zip(got, want):
                assert a.logprobs == pytest.approx(b.logprobs, abs=1e-6) and a.finished == b.finished


def test_both_samplers_have_one_signature():
    readable, fast = (inspect.signature(s).parameters for s in (generation.generate, sampling.generate))
    assert list(readable) == list(fast)
    assert [p.default for p in readable.values()] == [p.default for p in fast.values()]


def test_rows_that_are_done_leave_at_once(monkeypatch):
    # 4 -> 5 -> 6 -> 3 (end); 7 -> 7 -> ... never ends; 8 -> 3 at once
    model = lookup_lm({4: {5: 1.0}, 5: {6: 1.0}, 6: {3: 1.0}, 7: {7: 1.0}, 8: {3: 1.0}})
    sizes, hidden = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda x, **how: (sizes.append(tuple(x.shape)), hidden(x, **how))[1])
    got = generation.generate(model, [[4], [7], [8]], 5, eos_id=3, generator=rng())
    assert tokens(got) == [[5, 6, 3], [7] * 5, [3]]
    assert sizes == [(3, 1), (2, 1), (2, 1), (1, 1), (1, 1)]


def test_no_more_than_max_batch_rows_go_through_the_model_at_once(generate, monkeypatch):
    model, prompts = random_lm(), [[4 + i, 5] for i in range(7)]
    sizes, hidden = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda x, **named: (sizes.append(len(x)), hidden(x, **named))[1])
    generate(model, prompts, 3, generator=rng(), max_batch=3)
    assert sizes == [3] * 6 + [1] * 3


@pytest.mark.parametrize("family", FAMILIES)
def test_another_companion_does_not_change_what_a_row_samples(generate, family):
    model = random_lm(family, spread=0.3).double()
    one, other = (generate(model, [first, *PROMPTS], 10, eos_id=4, generator=rng(2))[1:] for first in ([4], [5] * 20))
    assert tokens(one) == tokens(other) and len(set(map(tuple, tokens(one)))) > 4


def test_completions_come_back_in_the_order_of_the_prompts(generate):
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


def test_eos_is_kept_as_the_last_token_and_the_limit_cuts(generate):
    # 4 -> 5 -> 6 -> 3 (end); 7 -> 7 -> ... never ends; 8 -> 3 at once
    model = lookup_lm({4: {5: 1.0}, 5: {6: 1.0}, 6: {3: 1.0}, 7: {7: 1.0}, 8: {3: 1.0}, 3: {9: 1.0}})
    got = generate(model, [[4], [7], [8], [1, 5]], 3, eos_id=3, generator=rng())
    assert tokens(got) == [[5, 6, 3], [7, 7, 7], [3], [6, 3]]
    assert [c.finished for c in got] == [True, False, True, True]
    got = generate(model, [[4]], 2, eos_id=3, generator=rng())[0]
    assert got.tokens == [5, 6] and not got.finished
    assert generate(model, [[8, 3]], 1, eos_id=3, generator=rng())[0].tokens == [9]  # one in the prompt ends nothing
    assert tokens(generate(model, [[4]], 6, generator=rng()))[0][:4] == [5, 6, 3, 9]  # no eos_id: nothing ends


def test_a_row_stops_at_each_of_several_ends(generate):
    # 4 -> 3 -> 9, 5 -> 10 -> 3, 6 -> 6
    model = lookup_lm({4: {3: 1.0}, 3: {9: 1.0}, 5: {10: 1.0}, 10: {3: 1.0}, 6: {6: 1.0}})
    for ends in ((3, 10), [10, 3]):
        got = generate(model, [[4], [5], [6]], 3, eos_id=ends, generator=rng())
        assert tokens(got) == [[3], [10], [6, 6, 6]] and [c.finished for c in got] == [True, True, False]
    got = generate(model, [[4], [5]], 2, eos_id=(), generator=rng())
    assert tokens(got) == [[3, 9], [10, 3]] and not any(c.finished for c in got)


def test_no_prompts_and_no_new_tokens(generate):
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
def test_sampled_frequencies_match_the_probabilities(generate, temperature, top_p, want):
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
    got = draw(p.log().expand(len(uniform), -1), uniform)
    assert got.tolist() == [1, 1, 1, 1, 4, 4, 4, 4, 4]
    # A mass that rounding leaves below 1 over a real vocabulary: the index must stay inside it.
    flat = torch.full((50_257,), 1 / 50_257).log()
    flat[-7:] = -math.inf
    assert 50_000 < draw(flat.expand(2, -1), torch.tensor([1 - 2**-24, 1.0])).max() < 50_250
    # one certain token is drawn whatever u is
    certain = torch.full((len(uniform), 4), -math.inf).index_fill_(1, torch.tensor([2]), 0.0)
    assert draw(certain, uniform).tolist() == [2] * len(uniform)


def test_the_uniform_interval_of_a_token_is_as_wide_as_its_probability():
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    u = (torch.arange(1000) + 0.5) / 1000
    counts = torch.bincount(draw(p.log().expand(1000, -1), u), minlength=4)
    assert counts.tolist() == [100, 200, 300, 400]


# ---------------------------------------------------------------- seeds, errors, the token loop


def test_the_generator_decides_everything(generate):
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


def test_a_batch_of_no_rows_and_fewer_than_no_tokens_are_refused(generate):
    with pytest.raises(UserError, match="max_batch is 0; it must be at least 1"):
        generate(random_lm(), [[4]], 3, max_batch=0)
    with pytest.raises(UserError, match="max_new_tokens is -1; it must be at least 0"):
        generate(random_lm(), [[4]], -1)


def test_bad_prompts_are_refused_by_number(generate):
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
def test_the_models_mode_stays_and_no_gradient_is_kept(generate, training):
    model = random_lm().train(training)
    generate(model, [[4]], 2, generator=rng())
    assert model.training is training and all(m.training is training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


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
