"""Checks of a3: the oracle_distribution token by token in Python, padding by lists, and each row alone through the model.

Sampled tokens are compared only where no uniform number is near an edge between two tokens (`settled`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from checks.a2 import kind, tiny
from checks.base import Case, known, sentences

INF = math.inf


def f64(rows) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def logs(p) -> Tensor:
    """Probabilities -> their logs in float32, as the sampler has them."""
    return f64(p).log().float()


# ---------------------------------------------------------------- oracles


def oracle_distribution(logits: list[float], temperature: float, top_p: float) -> list[float]:
    """The probabilities that sampling draws from: divide, softmax, take the likeliest until top_p is reached."""
    z = [v / (temperature if temperature > 0 else 1.0) for v in logits]
    e = [math.exp(v - max(z)) for v in z] if not any(map(math.isnan, z)) else [math.nan] * len(z)
    p = [v / math.fsum(e) for v in e]
    if temperature == 0 or top_p == 1:
        return p
    kept, mass = set(), 0.0
    for v in sorted(range(len(p)), key=lambda v: -p[v]):
        if mass >= top_p:
            break
        kept.add(v)
        mass += p[v]
    return [p[v] / mass if v in kept else 0.0 for v in range(len(p))]


def oracle_logprobs(logits: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> tuple[Tensor, str]:
    if temperature < 0 or top_p <= 0 or top_p > 1:
        raise ValueError("impossible settings")
    rows = [oracle_distribution(z, temperature, top_p) for z in logits.double().reshape(-1, logits.shape[-1]).tolist()]
    logs = [[math.nan if math.isnan(p) else math.log(p) if p > 0 else -INF for p in row] for row in rows]
    return f64(logs).view(logits.shape), "torch.float32"


def oracle_slope(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """d/dz_j of sum_i w_i logp_i over the tokens that can come: (w_j - p_j sum_i w_i) / temperature; w = 1, 2, 3 ..."""
    found = []
    for row in logits.tolist():
        p = oracle_distribution(row, temperature, top_p)
        total = sum(v + 1 for v in range(len(p)) if p[v] > 0)
        found.append([(v + 1 - p[v] * total) / (temperature or 1.0) if p[v] > 0 else 0.0 for v in range(len(p))])
    return f64(found)


def oracle_draw(logp: Tensor, uniform: Tensor) -> tuple[Tensor, str]:
    found = []
    for row, u in zip(logp.double().tolist(), uniform.double().tolist()):
        p = [math.exp(v) for v in row]
        exceeds = [v for v in range(len(p)) if math.fsum(p[: v + 1]) > u * math.fsum(p)]
        found.append(exceeds[0] if exceeds else max(v for v in range(len(p)) if p[v] > 0))
    return torch.tensor(found), "integers"


@torch.no_grad()
def oracle_row(model, prompt, uniforms: list[float], temperature=1.0, top_p=1.0, eos_id=None) -> tuple:
    """(tokens, their log-probs, finished, least distance of a number to an edge): no batch, no padding, no cache."""
    tokens, logprobs, distance = [], [], 1.0
    for u in uniforms:
        p = oracle_distribution(model(torch.tensor([[*prompt, *tokens]]))[0, -1].tolist(), temperature, top_p)
        edges = [math.fsum(p[: v + 1]) for v in range(len(p))]
        likeliest, second = sorted(p)[-1], sorted(p)[-2]
        distance = min(distance, likeliest - second if temperature == 0 else min(abs(u - edge) for edge in edges))
        new = (
            p.index(likeliest)
            if temperature == 0
            else next(v for v in range(len(p)) if edges[v] > u or v == len(p) - 1)
        )
        tokens.append(new)
        logprobs.append(math.log(p[new]) if p[new] > 0 else -INF)
        if new in (eos_id if isinstance(eos_id, tuple) else (eos_id,)):
            return tokens, logprobs, True, distance
    return tokens, logprobs, False, distance


def oracle_rows(model, prompts, limit: int, seed: int, options: dict) -> list[tuple]:
    """Row i of a (N, limit) table of uniform numbers is prompt i's, whatever the batches."""
    uniforms = torch.rand(len(prompts), limit, generator=torch.Generator().manual_seed(seed)).tolist()
    own = {name: value for name, value in options.items() if name != "max_batch"}
    return [oracle_row(model, prompt, u, **own) for prompt, u in zip(prompts, uniforms)]


def oracle_generate(model, prompts, limit: int, seed: int, options: dict) -> tuple:
    from alignpro_mini.options import UserError

    if limit < 0 or options.get("max_batch") == 0 or not all(prompts):
        raise UserError("a limit below 0, a batch of no rows, or an empty prompt")
    if any(len(prompt) + limit > model.config.max_len for prompt in prompts):
        raise UserError("a prompt that leaves too little of the context")
    if options.get("temperature", 1.0) < 0:
        raise ValueError("impossible settings")
    rows = oracle_rows(model, prompts, limit, seed, options)
    logprobs = f64([logp for _, row, _, _ in rows for logp in row])
    finished = [end for _, _, end, _ in rows]
    return "tokens", [row for row, *_ in rows], "log-probabilities", logprobs, "finished", finished, "all is right"


def oracle_pad(rows, pad_id: int, device, left: bool) -> tuple:
    width = max([len(row) for row in rows] + [0])
    ids, mask = [], []
    for row in rows:
        blank = width - len(row)
        ids.append([pad_id] * blank + list(row) if left else list(row) + [pad_id] * blank)
        mask.append([False] * blank + [True] * len(row) if left else [True] * len(row) + [False] * blank)
    return _tensors(ids, mask, len(rows), width)


def oracle_pairs(pairs, device=None) -> tuple:
    width = max([len(p) + len(c) for p, c in pairs] + [0])
    ids, mask = [], []
    for p, c in pairs:
        blank = width - len(p) - len(c)
        ids.append([*p, *c] + [0] * blank)
        mask.append([False] * len(p) + [True] * len(c) + [False] * blank)
    return _tensors(ids, mask, len(pairs), width)


def _tensors(ids: list, mask: list, rows: int, width: int) -> tuple:
    shaped = lambda x, dtype: torch.tensor(x, dtype=dtype).view(rows, width)
    return shaped(ids, torch.long), shaped(mask, torch.bool), "torch.int64", "torch.bool"


@torch.no_grad()
def oracle_scores(model, prompts, completions, temperature: float = 1.0, top_p: float = 1.0, max_batch: int = 128):
    """Each row alone, each token from the logits of all that stands before it."""
    from alignpro_mini.options import UserError

    if not all(prompts) or any(len(p) + len(c) > model.config.max_len for p, c in zip(prompts, completions)):
        raise UserError("an empty prompt, or a row longer than the context")
    if len(prompts) != len(completions):
        raise ValueError("prompts and completions differ in number")
    found = []
    for p, c in zip(prompts, completions):
        total = 0.0
        for t in range(len(c)):
            logits = model(torch.tensor([[*p, *c[:t]]]))[0, -1].tolist()
            chance = oracle_distribution(logits, temperature, top_p)[c[t]]
            total += math.log(chance) if chance > 0 else -INF
        found.append(total)
    return f64(found), "torch.float32", "no graph"


# ---------------------------------------------------------------- cases


def fresh(args: tuple):
    """The arguments made anew for each call: a function may sort the lists that it gets."""
    return lambda: tuple(copy.deepcopy(a) if isinstance(a, (list, tuple)) else a for a in args)


def cases(path: str, rng: torch.Generator) -> list[Case]:
    """The cases of a function, the smallest first."""
    name = path.rpartition(".")[2]
    return {
        "sampling_logprobs": _logprobs,
        "draw": _draw,
        "generate": _generate,
        "_pad": _pad,
        "pad_pairs": _pairs,
        "sequence_logprobs": _scores,
    }[name](rng)


def _logprobs(rng: torch.Generator) -> list[Case]:
    draw = lambda *shape: 2 * torch.randn(*shape, generator=rng, dtype=torch.float64)
    two = f64([0.0, math.log(3)])  # 1/4, 3/4
    four = f64([0.15, 0.5, 0.1, 0.25]).log() + 3  # a constant added to the logits changes nothing
    x, rows = draw(2, 3, 7), draw(40, 6)
    found = [
        Case("logits (0, ln 3)", (two,)),
        Case("logits (0, ln 3), temperature 0.5", (two, 0.5)),
        Case("logits (0, ln 3), temperature 2", (two, 2.0)),
        Case("logits (0, ln 3), temperature 0", (two, 0.0)),
        Case("logits (0, ln 3), top_p 0.7", (two, 1.0, 0.7)),
        Case("logits (0, ln 3), top_p 0.8", (two, 1.0, 0.8)),
        Case("logits (0, ln 3), temperature 2, top_p 0.7", (two, 2.0, 0.7)),
        Case("logits (0, ln 3), temperature 0.5, top_p 0.8", (two, 0.5, 0.8)),
        Case("logits (0, ln 3), temperature 0, top_p 0.5", (two, 0.0, 0.5)),
        Case("p = (.15, .5, .1, .25), top_p 0.45", (four, 1.0, 0.45)),
        Case("p = (.15, .5, .1, .25), top_p 0.7", (four, 1.0, 0.7)),
        Case("p = (.15, .5, .1, .25), top_p 0.85", (four, 1.0, 0.85)),
        Case("p = (.15, .5, .1, .25), top_p 0.95", (four, 1.0, 0.95)),
        Case("p = (.15, .5, .1, .25), top_p 0.01", (four, 1.0, 0.01)),
        Case("a logit of -inf", (f64([[0.5, -INF, -1.0, 0.25]]),)),
        Case("a logit of -inf, top_p 0.6", (f64([[0.5, -INF, -1.0, 0.25]]), 1.0, 0.6)),
        Case("logits about 1000", (f64([[1000.0, 1000.5, 998.25]]), 1.0, 0.95)),
        Case("bfloat16 logits", (torch.tensor([[0.5, -1.0, 2.0]]).bfloat16(), 0.7)),
        Case("logits (0, ln 3), temperature 0.01", (two, 0.01)),
        Case("logits (0, ln 3), temperature 50", (two, 50.0)),
        Case("tokens that hardly ever come: logits (0, -30, -200)", (f64([0.0, -30.0, -200.0]),)),
        Case("a logit that is NaN", (f64([[0.0, math.nan, 1.0], [0.0, 1.0, 2.0]]),)),
        Case("(2, 3, 7) logits", (x,)),
        Case("(2, 3, 7) logits, temperature 0.6, top_p 0.8", (x, 0.6, 0.8)),
        Case("forty rows, temperature 1.3, top_p 0.5", (rows, 1.3, 0.5)),
    ]
    for temperature, top_p in ((-0.1, 1.0), (1.0, 0.0), (1.0, -1.0), (1.0, 1.1), (0.0, 1.5)):
        found.append(Case(f"temperature {temperature}, top_p {top_p}", (two, temperature, top_p)))
    call = lambda function, *args: (y := function(*args), kind(y))
    # computed in float32
    found = [Case(c.about, c.args, oracle_logprobs, call=call, tolerance=3e-4) for c in found]

    def slope(function, logits, temperature, top_p):
        logits.requires_grad_()
        logp = function(logits, temperature, top_p)
        weights = torch.arange(1.0, 1 + logits.shape[-1]).expand(logits.shape)
        possible = logp.isfinite()
        return torch.autograd.grad((logp[possible] * weights[possible]).sum(), logits)[0]

    for temperature, top_p in ((1.0, 1.0), (0.7, 1.0), (1.5, 0.8)):
        about = f"the gradient, temperature {temperature}, top_p {top_p}"
        found.append(Case(about, (x[0], temperature, top_p), oracle_slope, call=slope, tolerance=1e-3))
    return found


def _draw(rng: torch.Generator) -> list[Case]:
    row = lambda p, *uniform: (logs([p] * len(uniform)), torch.tensor(uniform))
    possible = torch.rand(64, 9, generator=rng) < 0.7
    possible[:, 4] = True
    logits = torch.where(possible, torch.randn(64, 9, generator=rng), -INF)
    edges = torch.tensor([0.0, 2**-24, 1 - 2**-24, 1.0]).repeat(16)
    grid = (torch.arange(1000) + 0.5) / 1000
    found = [
        Case("p = (.25, .5, .25), u = .1, .6, .9", row([0.25, 0.5, 0.25], 0.1, 0.6, 0.9)),
        Case("p = (0, .5, 0, .5), u = 0", row([0.0, 0.5, 0.0, 0.5], 0.0)),
        Case("p = (0, .5, 0, .5), u = .4, .6", row([0.0, 0.5, 0.0, 0.5], 0.4, 0.6)),
        Case("p = (.5, .5, 0), u = 1 (by rounding)", row([0.5, 0.5, 0.0], 1.0)),
        Case("one certain token, u = 0, .5, 1 - 2**-24", row([0.0, 1.0, 0.0], 0.0, 0.5, 1 - 2**-24)),
        Case("masses (.25, .25), which sum to .5; u = .4, .6, .9", row([0.25, 0.25], 0.4, 0.6, 0.9)),
        Case("masses (.5, .5, .5), which sum to 1.5; u = .3, .6, .9", row([0.5, 0.5, 0.5], 0.3, 0.6, 0.9)),
        Case("p = (.7003, .2997), u = .70029, .70031", row([0.7003, 0.2997], 0.70029, 0.70031)),
        Case("p = (.9995, .0005), u = .999, .9997", row([0.9995, 0.0005], 0.999, 0.9997)),
        Case("64 rows of 9 tokens", (logits.log_softmax(-1), torch.rand(64, generator=rng))),
        Case("64 rows, u at both ends", (logits.log_softmax(-1), edges)),
        Case("p = (.1, .2, .3, .4), u = .0005, .0015, ...", (logs([[0.1, 0.2, 0.3, 0.4]]).expand(1000, 4), grid)),
    ]
    whole = lambda y: isinstance(y, Tensor) and not y.is_floating_point() and y.dtype != torch.bool
    call = lambda function, *args: (y := function(*args), "integers" if whole(y) else kind(y))
    return [Case(c.about, c.args, oracle_draw, call=call) for c in found]


def settled(rng: torch.Generator, *call) -> tuple[int, dict]:
    """`oracle_settled`, which the submission's process is told."""
    return known(rng, lambda: oracle_settled(rng, *call))


def oracle_settled(
    rng: torch.Generator, model, prompts, limit: int, options: dict, wanted: Callable
) -> tuple[int, dict]:
    """(seed, options with an eos_id) of a call that depends on no rounding, and whose lengths are as `wanted` says.

    Whoever computes a batch in another shape or on another processor gets numbers that differ in the last place. So no
    uniform number may lie near an edge between two tokens. The best of some tries, if none is as wanted.
    """
    best = None
    for _ in range(20):
        seed = int(torch.randint(0, 2**31, (1,), generator=rng))
        rows = oracle_rows(model, prompts, limit, seed, options | {"eos_id": None})
        if any(distance < 1e-4 for *_, distance in rows):
            continue
        for eos in [options["eos_id"]] if "eos_id" in options else range(model.config.vocab_size):
            ends = [eos in row for row, *_ in rows]
            lengths = [row.index(eos) + 1 if end else limit for (row, *_), end in zip(rows, ends)]
            best = best or (seed, options | {"eos_id": eos})
            if wanted(lengths, ends):
                return seed, options | {"eos_id": eos}
    return best or (seed, {"eos_id": None} | options)


def completed(generate, model, prompts, limit, seed, options):
    completions = generate(model, prompts, limit, **options, generator=torch.Generator().manual_seed(seed))
    return [c.tokens for c in completions], [c.logprobs for c in completions], [c.finished for c in completions]


def as_completed(tokens, logprobs, finished):
    plain = sentences(
        (all(type(v) is int for row in tokens for v in row), "tokens are a list of Python's int"),
        (all(type(v) is float for row in logprobs for v in row), "log-probabilities are a list of Python's float"),
        (all(type(end) is bool for end in finished), "finished is True or False"),
        (list(map(len, tokens)) == list(map(len, logprobs)), "each token has a log-probability"),
    )
    numbers = f64([float(v) for row in logprobs for v in row])
    return "tokens", tokens, "log-probabilities", numbers, "finished", finished, plain


def _generate(rng: torch.Generator) -> list[Case]:
    model, absolute = tiny(rng), tiny(rng, family="gpt2")
    whatever = lambda lengths, ends: True
    ragged = lambda lengths, ends: len(set(lengths)) > 2 and not all(ends)
    some_end = lambda lengths, ends: any(ends) and not all(ends)
    early = lambda lengths, ends: ends == [True] and 1 < lengths[0] < 4
    at_the_limit = lambda lengths, ends: ends == [True] and lengths == [3]
    goes_on = lambda lengths, ends: lengths[0] > 2

    def case(about: str, prompts, limit: int, wanted=whatever, lm=model, **options) -> Case:
        seed, options = settled(rng, lm, prompts, limit, options, wanted)
        args = fresh((lm, prompts, limit, seed, options))
        return Case(about, args, oracle_generate, call=completed, view=as_completed, tolerance=1e-4)

    def refused(about: str, prompts, limit: int, **options) -> Case:
        return Case(
            about, fresh((model, prompts, limit, 0, options)), oracle_generate, call=completed, view=as_completed
        )

    no_eos = {"eos_id": None}
    rows = [[4, 7, 2], [5], [9, 9, 8, 1, 6, 2, 10], [3, 10], [6, 1, 1, 8], [1]]
    sampled = [
        case("prompt [1], one new token", [[1]], 1, **no_eos),
        case("prompt [1], one new token, temperature 0", [[1]], 1, temperature=0.0, **no_eos),
        case("prompt [1], three new tokens", [[1]], 3, **no_eos),
        case("prompt [4, 7, 2], five new tokens", [[4, 7, 2]], 5, **no_eos),
        case("prompt [4, 7, 2], temperature 0", [[4, 7, 2]], 5, temperature=0.0, **no_eos),
        case("prompt [4, 7, 2], temperature 0.5", [[4, 7, 2]], 5, temperature=0.5, **no_eos),
        case("prompt [4, 7, 2], temperature 1.3, top_p 0.6", [[4, 7, 2]], 5, temperature=1.3, top_p=0.6, **no_eos),
        case("a row that ends with EOS", [[4, 7]], 6, early),
        case("an EOS that is the last token allowed", [[4, 7]], 3, at_the_limit),
        case("an EOS in the prompt, which ends nothing", [[3, 3]], 4, goes_on, eos_id=3),
        case("two prompts of one length", [[4, 7], [5, 1]], 4, **no_eos),
        case("six prompts, three tokens that end a row", rows, 6, eos_id=(2, 7, 10)),
        case("prompts [4, 7, 2] and [5]", [[4, 7, 2], [5]], 4, **no_eos),
        case("prompts [4, 7] and [5, 1]: one row ends before the other", [[4, 7], [5, 1]], 6, some_end),
        case("four times the same prompt", [[4, 7]] * 4, 5, **no_eos),
        case("six prompts", rows, 6, ragged),
        case("six prompts, the longest first", sorted(rows, key=len, reverse=True), 6, ragged),
        case("six prompts, temperature 0", rows, 6, ragged, temperature=0.0),
        case("six prompts, temperature 0.7, top_p 0.8", rows, 6, ragged, temperature=0.7, top_p=0.8),
        case("six prompts, max_batch 2", rows, 6, ragged, max_batch=2),
        case("six prompts, max_batch 4, GPT-2's positions", rows, 6, ragged, absolute, max_batch=4),
        case("rows that fill the context", [[5] * 12, [7, 7]], 4, **no_eos),
        case("no new tokens", [[4], [5, 6]], 0, **no_eos),
        case("no prompts", [], 3, **no_eos),
        refused("an empty prompt", [[4], []], 3),
        refused("a prompt that leaves too little of the context", [[4], [5] * 14], 3),
        refused("max_batch 0", [[4]], 3, max_batch=0),
        refused("max_new_tokens -1", [[4]], -1),
        refused("temperature -1", [[4]], 3, temperature=-1.0),
    ]
    fair = lambda *args: "all is right"
    longer = [[4, 7, 2], [5, 5], [9, 9, 8, 1], [3, 10], [6, 1, 1, 8], [1, 2]]
    # The model is made anew for each call, as its methods are replaced.
    again = int(torch.randint(0, 2**31, (1,), generator=rng))
    made = lambda: tiny(torch.Generator().manual_seed(again))
    seed, options = settled(rng, made(), longer, 6, {"max_batch": 3}, ragged)
    args = lambda: (made(), copy.deepcopy(longer), 6, seed, options)
    lengths = known(rng, lambda: [len(row) for row, *_ in oracle_rows(made(), longer, 6, seed, options)])
    return [
        *sampled,
        Case(
            "six prompts, max_batch 3: what goes through the model",
            args,
            fair,
            call=_passes,
            view=partial(few_passes, lengths),
        ),
        Case("a model in training mode", args, lambda *args: True, call=_mode),
    ]


def _passes(generate, model, prompts, limit: int, seed: int, options: dict) -> list[tuple[int, int]]:
    """(rows, columns) of each batch of ids that goes through the model."""
    seen, hidden = [], model.hidden
    model.hidden = lambda x, *rest, **named: (seen.append(tuple(x.shape[:2])), hidden(x, *rest, **named))[1]
    generate(model, prompts, limit, **options, generator=torch.Generator().manual_seed(seed))
    del model.hidden
    return seen


def few_passes(lengths: list[int], seen: list[tuple[int, int]]) -> str:
    """The verdict on the batches of six prompts whose completions have these lengths."""
    at_once = max((rows for rows, _ in seen), default=0)
    whole = sum(rows for rows, width in seen if width > 1)
    steps, needed = sum(rows for rows, width in seen if width == 1), sum(lengths) - len(lengths)
    return sentences(
        (at_once <= 3, f"{at_once} rows went through the model at once, max_batch is 3"),
        (whole == 6, f"{whole} rows of more than one token went through the model: 6 prompts, once each"),
        (steps >= needed, f"{steps} single tokens went through the model: the answers need {needed}"),
        (steps <= needed, f"{steps} single tokens went through the model: rows that are done must leave ({needed} do)"),
    )


def _mode(generate, model, prompts, limit: int, seed: int, options: dict) -> bool:
    """Whether it is in training mode afterwards, as before."""
    model.train()
    generate(model, prompts, limit, **options, generator=torch.Generator().manual_seed(seed))
    return model.training


def _kinds(function, *args) -> tuple:
    ids, mask = function(*args)
    return ids, mask, kind(ids), kind(mask)


def _pad(rng: torch.Generator) -> list[Case]:
    found = []
    for left in (True, False):
        side = "left" if left else "right"
        found += [
            Case(f"[[7]], {side}", ([[7]], 0, None, left)),
            Case(f"[[7], [5, 6]], {side}", ([[7], [5, 6]], 0, None, left)),
            Case(f"[[7], [5, 6]], pad_id 9, {side}", ([[7], [5, 6]], 9, None, left)),
            Case(f"[[9], [9, 6, 9]], pad_id 9, {side}", ([[9], [9, 6, 9]], 9, None, left)),
            Case(f"ids of a large vocabulary, {side}", ([[70000, 32768], [50256]], 49152, None, left)),
            Case(f"an empty row, {side}", ([[], [5, 6], [1]], 0, "cpu", left)),
            Case(f"empty rows only, {side}", ([[], []], 0, None, left)),
            Case(f"no rows, {side}", ([], 0, None, left)),
            Case(f"rows that are tuples, {side}", (((1, 2, 3), (4,)), 0, torch.device("cpu"), left)),
        ]
    lengths = torch.randint(0, 9, (12,), generator=rng).tolist()
    rows = [torch.randint(0, 4, (n,), generator=rng).tolist() for n in lengths]
    found += [Case(f"twelve rows, left={left}", (rows, 3, None, left)) for left in (True, False)]
    found.sort(key=lambda case: len(case.args[0]) or 9)
    return [Case(c.about, fresh(c.args), oracle_pad, call=_kinds) for c in found]


def _pairs(rng: torch.Generator) -> list[Case]:
    some = lambda: torch.randint(0, 4, (int(torch.randint(0, 6, (1,), generator=rng)),), generator=rng).tolist()
    found = [
        Case("prompt [5], completion [6]", ([([5], [6])],)),
        Case("prompt [5, 7], completion [6]", ([([5, 7], [6])],)),
        Case("([5], [6]) and ([5, 7], [6, 8])", ([([5], [6]), ([5, 7], [6, 8])],)),
        Case("([5, 7, 9], [6]) and ([5], [6, 8])", ([([5, 7, 9], [6]), ([5], [6, 8])],)),
        Case("zeros among the tokens: ([5, 0], [0, 6])", ([([5, 0], [0, 6]), ([0], [0])],)),
        Case("an empty completion", ([([5, 7], []), ([5], [6])],)),
        Case("an empty prompt", ([([], [6, 7]), ([5], [6])],)),
        Case("a list and a tuple, device 'cpu'", ([([5], (6, 7)), ((5, 7), [6])], "cpu")),
        Case("no pairs", ([],)),
        Case("twelve pairs", ([(some(), some()) for _ in range(12)],)),
    ]
    return [Case(c.about, fresh(c.args), oracle_pairs, call=_kinds) for c in found]


PROMPTS = [[4, 7, 2], [5], [9, 9, 8, 1, 6, 2, 10], [3, 10], [6, 1, 1, 8], [1]]
COMPLETIONS = [[1, 2], [5, 5, 0, 3, 7, 8], [10], [], [0, 0, 4], [2, 3, 9, 4]]


def _scores(rng: torch.Generator) -> list[Case]:
    model = tiny(rng, dtype=torch.float32).requires_grad_()
    absolute = tiny(rng, dtype=torch.float32, family="gpt2").requires_grad_()
    likely = known(rng, lambda: [oracle_greedy(model, p, 1 + i % 3) for i, p in enumerate(PROMPTS)])
    full = [[5] * 12, [7] * 2, [4] * 9], [[9] * 4, [8] * 14, []]  # max_len is 16
    sure = copy.deepcopy(model)
    with torch.no_grad():
        sure.norm.weight.mul_(20)
    found = [
        Case("prompt [1], completion [2]", (model, [[1]], [[2]])),
        Case("prompt [4, 7], completion [2]", (model, [[4, 7]], [[2]])),
        Case("prompt [1], completion [2, 3]", (model, [[1]], [[2, 3]])),
        Case("prompt [1], completion [2, 3], temperature 0.5", (model, [[1]], [[2, 3]], 0.5)),
        Case("prompt [1], completion [2, 3], temperature 0, top_p 0.5", (model, [[1]], [[2, 3]], 0.0, 0.5)),
        Case("an empty completion", (model, [[1]], [[]])),
        Case("two rows, the longer first", (model, [[1, 2, 3], [4]], [[5], [6]])),
        Case("likely completions, temperature 0.9, top_p 0.6", (model, PROMPTS, likely, 0.9, 0.6)),
        Case("other completions, top_p 0.3", (model, PROMPTS, COMPLETIONS, 1.0, 0.3)),
        Case("six rows", (model, PROMPTS, COMPLETIONS)),
        Case("six rows, max_batch 2", (model, PROMPTS, COMPLETIONS, 1.3, 1.0, 2)),
        Case("six rows, tokens that hardly ever come", (sure, PROMPTS, COMPLETIONS)),
        Case("six rows, max_batch 1", (absolute, PROMPTS, COMPLETIONS, 1.0, 1.0, 1)),
        Case("rows that fill the context", (absolute, *full)),
        Case("no rows", (model, [], [])),
        Case("an empty prompt", (model, [[4], []], [[5], [5]])),
        Case("a row longer than the context", (model, [[4], [5] * 12], [[6], [7] * 8])),
        Case("two prompts, one completion", (model, [[4], [5]], [[6]])),
    ]

    def call(function, *args):
        y = function(*args)
        return y, kind(y), "a graph is kept" if isinstance(y, Tensor) and y.requires_grad else "no graph"

    found = [Case(c.about, fresh(c.args), oracle_scores, call=call, tolerance=1e-3) for c in found]
    fair = lambda *args: "all is right"
    rows = fresh((PROMPTS, COMPLETIONS))
    args = lambda: (tiny(torch.Generator().manual_seed(1), dtype=torch.float32), *rows())
    return [
        *found,
        Case("six rows, max_batch 2: how many go through the model at once", args, fair, call=_at_once, view=few_rows),
        Case(
            "a vocabulary of 2**22: how many logits are made at once", args, fair, call=_logits_at_once, view=few_logits
        ),
    ]


@torch.no_grad()
def oracle_greedy(model, prompt: list[int], length: int) -> list[int]:
    new: list[int] = []
    while len(new) < length:
        new.append(int(model(torch.tensor([[*prompt, *new]]))[0, -1].argmax()))
    return new


def _at_once(function, model, *args) -> list[int]:
    """Rows of each batch that goes through the model."""
    seen, hidden = [], model.hidden
    model.hidden = lambda ids, *rest, **named: (seen.append(len(ids)), hidden(ids, *rest, **named))[1]
    function(model, *args, max_batch=2)
    del model.hidden
    return seen


def few_rows(seen: list[int]) -> str:
    return sentences(
        (len(seen) > 0, "the model was never called"),
        (max(seen, default=0) <= 2, f"{max(seen, default=0)} rows went through the model at once, max_batch is 2"),
        (len(seen) <= 3, f"{len(seen)} calls of the model for six rows, max_batch is 2"),
    )


def _logits_at_once(function, model, *args) -> list[int]:
    """States of each call of unembed. The configuration says 2**22 tokens (the matrix is small): 4 have 2**24 logits."""
    seen, unembed = [], model.unembed.forward
    model.unembed.forward = lambda states: (seen.append(states.shape[:-1].numel()), unembed(states))[1]
    model.config = replace(model.config, vocab_size=2**22)
    function(model, *args)
    return seen


def few_logits(seen: list[int]) -> str:
    return sentences(
        (len(seen) > 0, "model.unembed was never called"),
        (max(seen, default=0) <= 4, f"{max(seen, default=0)} states went through model.unembed at once, 4 may"),
    )


def whole(rng: torch.Generator) -> list[Case]:
    """All together: what `generate` samples, and what the scorer says of it, against one row at a time."""
    prompts, limit, found = PROMPTS * 2, 6, []
    for family, temperature, top_p in (("llama", 1.0, 1.0), ("gpt2", 0.7, 0.8), ("llama", 0.0, 1.0)):
        model = tiny(rng, family=family)
        options = {"temperature": temperature, "top_p": top_p, "max_batch": 5}
        call = (model, prompts, limit, options, lambda lengths, ends: len(set(lengths)) > 2)
        args = (model, prompts, limit, *settled(rng, *call))
        about = f"twelve prompts, {family}, temperature {temperature}, top_p {top_p}"
        found.append(Case(about, fresh(args), oracle_both, call=_both, tolerance=1e-3))
    return found


def _both(_, model, prompts, limit: int, seed: int, options: dict) -> tuple:
    from alignpro_mini.generation import generate, sequence_logprobs

    completions = generate(model, prompts, limit, **options, generator=torch.Generator().manual_seed(seed))
    tokens, total = [c.tokens for c in completions], [math.fsum(c.logprobs) for c in completions]
    scored = sequence_logprobs(model, prompts, tokens, options["temperature"], options["top_p"], 4)
    return "tokens", tokens, "log-probabilities of the rows", f64(total), "as the scorer has them", scored


def oracle_both(model, prompts, limit: int, seed: int, options: dict) -> tuple:
    rows = oracle_rows(model, prompts, limit, seed, options)
    total = f64([math.fsum(logprobs) for _, logprobs, *_ in rows])
    tokens = [row for row, *_ in rows]
    return "tokens", tokens, "log-probabilities of the rows", total, "as the scorer has them", total
