"""Checks of a2: cosines and sines, counting loops, and attention with a loop over heads, queries and keys."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from checks.base import Case, known


def f64(rows) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def bools(rows) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def kind(x) -> str:
    """What a returned value is, for comparison: its dtype, or its class where it is no tensor."""
    return str(x.dtype) if isinstance(x, Tensor) else type(x).__name__


def turns(angles) -> Tensor:
    """(T, E/2) angles, or (B, T, E/2) -> (B, 1, T, E/2) complex numbers of length 1."""
    a = torch.as_tensor(angles, dtype=torch.float32)
    a = a[None] if a.dim() == 2 else a
    return torch.complex(a.cos(), a.sin())[:, None]


# ---------------------------------------------------------------- oracles


def oracle_turned(head: list, angles: list[complex]) -> list:
    """One head of one token, its pairs oracle_turned by hand."""
    new = []
    for i, c in enumerate(angles):
        a, b = head[2 * i], head[2 * i + 1]
        new += [a * c.real - b * c.imag, a * c.imag + b * c.real]
    return new


def oracle_rotate(x: Tensor, rope: Tensor) -> tuple[Tensor, str]:
    B, H, T, _ = x.shape
    angles = rope.expand(B, 1, T, -1).tolist()
    rows = [
        [[oracle_turned(x[b, h, t].tolist(), angles[b][0][t]) for t in range(T)] for h in range(H)] for b in range(B)
    ]
    return f64(rows), str(x.dtype)


def oracle_positions(model, x: Tensor, mask: Tensor | None, cache) -> tuple[Tensor, str]:
    B, T = x.shape[:2]
    start = 0 if cache is None else cache.length
    real = cache.mask if cache is not None else torch.ones(B, T, dtype=torch.bool) if mask is None else mask
    found = []
    for row in real.tolist():
        seen, places = 0, []
        for r in row[: start + T]:
            seen += r
            places.append(max(0, seen - 1))
        found.append(places[start:])
    return torch.tensor(found), "integers"


def oracle_allowed(model, x: Tensor, mask: Tensor | None, cache) -> Tensor | None:
    if cache is None and mask is None:
        return None
    B, T = x.shape[:2]
    start, real = (0, mask) if cache is None else (cache.length, cache.mask)
    found = torch.zeros(B, 1, T, start + T, dtype=torch.bool)
    for b in range(B):
        for t in range(T):
            for s in range(start + t + 1):
                found[b, 0, t, s] = bool(real[b, s]) or s == start + t
    return found


def oracle_append(cache, layer: int, k: Tensor, v: Tensor) -> tuple:
    """Slot by slot."""
    for b in range(k.shape[0]):
        for g in range(k.shape[1]):
            for t in range(k.shape[2]):
                cache.k[layer, b, g, cache.length + t] = k[b, g, t]
                cache.v[layer, b, g, cache.length + t] = v[b, g, t]
    end = cache.length + k.shape[2]
    return cache.k[layer, :, :, :end], cache.v[layer, :, :, :end]


Sees = Callable[[int, int, int], bool]  # (b, t, s): whether query t of row b may look at key s


def oracle_loops(q: Tensor, k: Tensor, v: Tensor, sees: Sees) -> Tensor:
    """Attention, one head, one query and one key at a time: q (B, H, T, E), k and v (B, G, S, E). Gradients flow."""
    B, H, T, E = q.shape
    group = H // k.shape[1]  # the first H/G query heads share key/value head 0, and so on
    rows = []
    for b in range(B):
        for h in range(H):
            for t in range(T):
                seen = [s for s in range(k.shape[2]) if sees(b, t, s)]
                scores = [(q[b, h, t] * k[b, h // group, s]).sum() / math.sqrt(E) for s in seen]
                top = torch.stack(scores).max().detach()
                weights = [torch.exp(score - top) for score in scores]
                rows.append(sum(w * v[b, h // group, s] for w, s in zip(weights, seen)) / sum(weights))
    return torch.stack(rows).view(q.shape)


def oracle_sees(allowed: Tensor | None, start: int = 0) -> Sees:
    """What `allowed` (B, 1, T, S) says; None: causal, after `start` tokens of a cache."""
    if allowed is None:
        return lambda b, t, s: s <= start + t
    return lambda b, t, s: bool(allowed[b, 0, t, s])


def oracle_attend(layer, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    return oracle_loops(q, k, v, oracle_sees(allowed))


def oracle_layer(layer, x: Tensor, sees: Sees, rope: Tensor | None, old: tuple | None) -> tuple:
    """y (B, T, D), and all keys and values; `old` (k, v), (B, G, P, E) each, come before the new ones. Gradients flow."""
    B, T, D = x.shape
    H, G, E = layer.heads, layer.kv_heads, layer.head_dim
    weight, bias = layer.qkv.weight, layer.qkv.bias
    angles = None if rope is None else rope.expand(B, 1, T, -1).tolist()
    heads = [[[] for _ in range(H + 2 * G)] for _ in range(B)]  # [b][n][t] (E,): H of queries, G of keys, G of values
    for b in range(B):
        for t in range(T):
            z = weight @ x[b, t] + (0.0 if bias is None else bias)
            for n in range(H + 2 * G):
                norm = layer.q_norm if n < H else layer.k_norm if n < H + G else torch.nn.Identity()
                part = list(norm(z[n * E : (n + 1) * E]))
                part = oracle_turned(part, angles[b][0][t]) if angles is not None and n < H + G else part
                heads[b][n].append(torch.stack(part))
    q, k, v = torch.stack([torch.stack([torch.stack(one) for one in row]) for row in heads]).split((H, G, G), dim=1)
    if old is not None:
        k, v = torch.cat((old[0], k), 2), torch.cat((old[1], v), 2)
    y = oracle_loops(q, k, v, sees).transpose(1, 2).reshape(B, T, H * E) @ layer.out.weight.T
    return y if layer.out.bias is None else y + layer.out.bias, k, v


def oracle_attention(layer, x: Tensor, rope, allowed: Tensor | None, cache, number: int) -> tuple:
    start = 0 if cache is None else cache.length
    old = None if cache is None else (cache.k[number, :, :, :start], cache.v[number, :, :, :start])
    y, k, v = oracle_layer(layer, x, oracle_sees(allowed, start), rope, old)
    if cache is None:
        return (y,)
    end = start + x.shape[1]
    cache.k[number, :, :, :end], cache.v[number, :, :, :end] = k, v
    return y, cache.k, cache.v, cache.length


# ---------------------------------------------------------------- what the cases are made of


def tiny(rng: torch.Generator, dtype=torch.float64, **changes):
    """A model with large uneven weights: where attention is almost uniform, its mistakes do not show."""
    from alignpro_mini.transformer import Transformer, TransformerConfig

    settings = {"vocab_size": 11, "d_model": 8, "n_layers": 2, "n_heads": 2, "max_len": 16} | changes
    model = Transformer(TransformerConfig(**settings), rng).eval().to(dtype).requires_grad_(False)
    for p in model.parameters():
        p.copy_(0.6 * torch.randn(p.shape, generator=rng, dtype=dtype) + (1.0 if p.dim() == 1 else 0.0))
    return model


def made_cache(model, mask: Tensor, length: int, rng: torch.Generator | None = None, garbage: float = 9.0):
    """A cache of mask.shape[1] slots, the first `length` in use (1, 2, 3 ... or random), `garbage` in the others."""
    from alignpro_mini.transformer import KVCache

    cache = KVCache(model.config, *mask.shape, model.embed.weight)
    for part, sign in ((cache.k, 1.0), (cache.v, -1.0)):
        used = part[:, :, :, :length]
        if rng is None:
            used.copy_(sign * (1 + torch.arange(used.numel())).view(used.shape))
        else:
            used.copy_(torch.randn(used.shape, generator=rng, dtype=used.dtype))
        part[:, :, :, length:] = garbage
    cache.mask.copy_(mask)
    cache.length = length
    return cache


def cases(path: str, rng: torch.Generator) -> list[Case]:
    """The cases of a function, the smallest first."""
    name = path.rpartition(".")[2]
    return {
        "rotate": _rotate,
        "_positions": _positions,
        "_allowed": _allowed,
        "append": _append,
        "attend": _attend,
        "forward": _forward,
    }[name](rng)


def _rotate(rng: torch.Generator) -> list[Case]:
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)
    quarter = math.pi / 2
    one = f64([1.0, 2.0]).view(1, 1, 1, 2)
    two = f64([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    many, angles = draw(2, 3, 4, 6), 3 * draw(2, 4, 3)
    found = [
        Case("one pair (1, 2), a quarter turn", (one, turns([[quarter]]))),
        Case("two pairs (1, 2), (3, 4), no turn", (two, turns([[0.0, 0.0]]))),
        Case("two pairs (1, 2), (3, 4): a quarter turn, no turn", (two, turns([[quarter, 0.0]]))),
        Case("two pairs (1, 2), (3, 4): no turn, half a turn", (two, turns([[0.0, 2 * quarter]]))),
        Case("one pair at three positions", (draw(1, 1, 3, 2), turns([[0.0], [1.0], [2.0]]))),
        Case("two rows of three heads, four positions, three pairs", (many, turns(angles))),
        Case("one row of positions for two rows of heads", (many, turns(angles[:1]))),
        Case("float32", (many.float(), turns(angles))),
        Case("bfloat16", (many.bfloat16(), turns(angles)), tolerance=1e-2),
        Case("a gradient", (many[:1, :2], turns(angles[:1])), gradient=True),
    ]
    call = lambda function, x, rope: (y := function(x, rope), kind(y))
    # computed in float32
    return [Case(c.about, c.args, oracle_rotate, c.gradient, call, max(c.tolerance, 1e-4)) for c in found]


RAGGED = [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]  # left-padded rows of 3, 5 and 1 tokens


def _batches(rng: torch.Generator) -> list[tuple]:
    """(about, x, mask, mask of the cache, its length) for positions and allowed."""
    ids = lambda B, T: torch.randint(0, 11, (B, T), generator=rng)
    left, right = bools(RAGGED), bools(RAGGED).flip(1)
    hole = bools([[1, 0, 1, 1], [0, 1, 0, 1]])
    # What stands after the new tokens may be True already: the sampler sets it so.
    roomy = torch.cat((left, bools([[1, 1], [1, 1], [1, 1]])), 1)
    return [
        ("two tokens, no mask", ids(1, 2), None, None, 0),
        ("one real token", ids(1, 1), bools([[1]]), None, 0),
        ("mask [0, 1, 1]", ids(1, 3), bools([[0, 1, 1]]), None, 0),
        ("mask [1, 1, 0]", ids(1, 3), bools([[1, 1, 0]]), None, 0),
        ("cache [1, 1] and one new token", ids(1, 1), None, bools([[1, 1, 1]]), 2),
        ("cache [0, 1] and one new token", ids(1, 1), None, bools([[0, 1, 1]]), 2),
        ("cache [0, 1] and two new tokens", ids(1, 2), None, bools([[0, 1, 1, 1]]), 2),
        ("cache [0, 0], new tokens [0, 1]", ids(1, 2), None, bools([[0, 0, 0, 1]]), 2),
        ("an empty cache, new tokens [0, 1]", ids(1, 2), None, bools([[0, 1, 0, 0]]), 0),
        ("three left-padded rows", ids(3, 5), left, None, 0),
        ("three right-padded rows", ids(3, 5), right, None, 0),
        ("rows with padding in the middle", ids(2, 4), hole, None, 0),
        ("a row of padding only", ids(2, 2), bools([[0, 0], [1, 1]]), None, 0),
        ("states (B, T, D) in place of ids (B, T)", torch.randn(3, 5, 8, generator=rng), left, None, 0),
        ("states without a mask", torch.randn(2, 4, 8, generator=rng), None, None, 0),
        ("a cache with slots to spare, five new tokens", ids(3, 5), None, roomy, 0),
        ("a cache with slots to spare, three new tokens", ids(3, 3), None, roomy, 2),
        ("a cache with slots to spare, one new token", ids(3, 1), None, roomy, 5),
        ("a row of 300 tokens", ids(1, 300), torch.ones(1, 300, dtype=torch.bool), None, 0),
        ("a cache, and a mask argument that says something else", ids(3, 3), bools([[0] * 3] * 3), roomy, 2),
    ]


def _model_cases(rng: torch.Generator, oracle: Callable, call: Callable | None) -> list[Case]:
    model = tiny(rng)

    def args(x, mask, cached, length):
        return lambda: (model, x.clone(), mask, None if cached is None else made_cache(model, cached, length))

    return [Case(about, args(*rest), oracle, call=call) for about, *rest in _batches(rng)]


def _positions(rng: torch.Generator) -> list[Case]:
    whole = lambda x: isinstance(x, Tensor) and not x.is_floating_point() and x.dtype != torch.bool
    call = lambda function, *args: (y := function(*args), "integers" if whole(y) else kind(y))
    return _model_cases(rng, oracle_positions, call)


def _allowed(rng: torch.Generator) -> list[Case]:
    call = lambda function, *args: (y := function(*args), kind(y))
    return _model_cases(rng, partial(call, oracle_allowed), call)


def _append(rng: torch.Generator) -> list[Case]:
    small = tiny(rng, d_model=2, n_heads=1)
    grouped = tiny(rng, n_heads=4, n_kv_heads=2, n_layers=3)

    def args(model, rows, slots, length, new, layer):
        shape = (rows, model.config.n_kv_heads, new, model.config.head_dim)
        k, v = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(2))
        if model is small:
            k, v = 100 + torch.arange(k.numel()).view(shape), 200 + torch.arange(v.numel()).view(shape)
        filled = torch.ones(rows, slots, dtype=torch.bool)
        filled[0, length] = False  # padding among the new tokens: nothing of append's
        return lambda: (made_cache(model, filled, length, garbage=9.0), layer, k.double(), v.double())

    told = lambda cache: f"cache.length = {cache.length}"

    def call(append, cache, layer, k, v):
        return (*append(cache, layer, k, v)[:2], told(cache))

    def layer_by_layer(append, cache, layer, k, v):
        """As the model does it: every layer at the same length, then the length moves, then the next token."""
        seen = []
        for step in range(2):
            for n in range(layer):
                seen += append(cache, n, (step + 1) * k + n, v - step * n)[:2]
            cache.length += k.shape[2]
        return (*seen, cache.k, cache.v, told(cache))

    oracle = lambda *args: call(oracle_append, *args)
    oracle_layers = lambda *args: layer_by_layer(oracle_append, *args)
    return [
        Case("an empty cache of one slot, one token", args(small, 1, 1, 0, 1, 0), oracle, call=call),
        Case("one slot of two in use, one token", args(small, 1, 2, 1, 1, 0), oracle, call=call),
        Case("one slot of three in use, one token", args(small, 1, 3, 1, 1, 0), oracle, call=call),
        Case("one slot of four in use, two tokens, layer 1", args(small, 1, 4, 1, 2, 1), oracle, call=call),
        Case("two rows, two heads, layer 2 of 3", args(grouped, 2, 7, 3, 2, 2), oracle, call=call),
        Case("three layers twice", args(grouped, 2, 5, 2, 1, 3), oracle_layers, call=layer_by_layer),
    ]


def _attend(rng: torch.Generator) -> list[Case]:
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)
    one, heads = tiny(rng, d_model=4, n_heads=1).blocks[0].attn, tiny(rng).blocks[0].attn
    groups = tiny(rng, d_model=12, n_heads=6, n_kv_heads=2).blocks[0].attn
    by_hand = f64([0.0, 0, 0, 0, 2, 0, 0, 0]).view(1, 1, 2, 4)  # query 1: scores 0 and ln 3
    keys = f64([0.0, 1, 2, 3, math.log(3), 4, 5, 6]).view(1, 1, 2, 4)
    values = f64([8.0, 0, 1, 2, 4, 1, 1, 0]).view(1, 1, 2, 4)
    mask = bools([[[0, 1, 1], [1, 1, 1]]]).view(2, 1, 1, 3) & torch.ones(3, 3, dtype=torch.bool).tril()
    mask = mask | torch.eye(3, dtype=torch.bool)  # (2, 1, 3, 3)
    looser = bools([[1, 0, 1], [0, 1, 1], [1, 1, 0]]).expand(2, 1, 3, 3)  # not causal
    tokens = lambda H, T, G, S, E: (draw(2, H, T, E), draw(2, G, S, E), draw(2, G, S, E))
    later = bools([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).view(2, 1, 1, 5)

    def gradients(attend, layer, q, k, v, allowed):
        wanted = [x.requires_grad_() for x in (q, k, v)]
        y = attend(layer, q, k, v, allowed)
        weights = torch.linspace(0.5, 1.5, y.numel(), dtype=torch.float64).view(y.shape)
        return tuple(torch.autograd.grad((y * weights).sum(), wanted))

    weighted = [
        Case("one token", (one, by_hand[:, :, 1:], keys[:, :, 1:], values[:, :, 1:], None)),
        Case("two tokens, scores 0 and ln 3", (one, by_hand, keys, values, None)),
        Case("two rows of three tokens, two heads", (heads, *tokens(2, 3, 2, 3, 4), None)),
        Case("two rows, the first left-padded", (heads, *tokens(2, 3, 2, 3, 4), mask)),
        Case("an `allowed` that is not causal", (heads, *tokens(2, 3, 2, 3, 4), looser)),
        Case("six query heads, two of keys and values", (groups, *tokens(6, 3, 2, 3, 2), None)),
        Case("six query heads, two of keys and values, padding", (groups, *tokens(6, 3, 2, 3, 2), mask)),
        Case("one query, five keys, six query heads, two of keys and values", (groups, *tokens(6, 1, 2, 5, 2), later)),
        Case("as many query heads as key heads, in a layer of 6 and 2", (groups, *tokens(2, 3, 2, 3, 2), mask)),
        Case("scores about 1000", (heads, *(30 * x for x in tokens(2, 3, 2, 3, 4)), mask)),
    ]
    own, low = torch.eye(3, dtype=torch.bool).expand(2, 1, 3, 3), draw(2, 2, 3, 4).abs() + 1
    nan = draw(2, 2, 3, 4)
    nan[0, 0, 1] = math.nan
    weighted += [
        Case(
            "scores about -100000, each query sees only itself", (heads, 300 * low, -300 * low, draw(2, 2, 3, 4), own)
        ),
        Case("a query that is NaN", (heads, nan, draw(2, 2, 3, 4), draw(2, 2, 3, 4), mask)),
    ]
    # A softmax in float32 is as good.
    weighted = [Case(c.about, c.args, oracle_attend, tolerance=1e-3 if "1000" in c.about else 1e-5) for c in weighted]
    oracle = lambda *args: gradients(oracle_attend, *args)
    rest = (groups, *tokens(6, 3, 2, 3, 2), mask)
    return [*weighted, Case("gradients by q, k and v", rest, oracle, call=gradients, tolerance=1e-4)]


def _forward(rng: torch.Generator) -> list[Case]:
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)
    one = tiny(rng, d_model=2, n_heads=1)
    heads = tiny(rng)
    bias = tiny(rng, family="gpt2")
    groups = tiny(rng, n_heads=4, n_kv_heads=2, qkv_bias=True)
    shared = tiny(rng, d_model=12, n_heads=6, n_kv_heads=2, n_layers=3)
    normed = tiny(rng, qk_norm=True)
    mask = bools([[0, 1, 1], [1, 1, 1]])
    layered = lambda model, n=0: model.blocks[n].attn

    def plain(model, x, rope=None, allowed=None):
        return lambda: (layered(model), x.clone(), rope, allowed, None, 0)

    def cached(model, number, mask, length, rope=None):
        x = draw(len(mask), mask.shape[1] - length, model.config.d_model)
        spare = torch.cat((mask, torch.ones(len(mask), 1, dtype=torch.bool)), 1)
        start = made_cache(model, spare, length, rng)
        allowed = known(rng, lambda: oracle_allowed(model, x, None, made_cache(model, mask, length)))

        def args():
            cache = made_cache(model, spare, length)
            cache.k.copy_(start.k), cache.v.copy_(start.v)
            return layered(model, number), x.clone(), rope, allowed, cache, number

        return args

    def call(forward, layer, x, rope, allowed, cache, number):
        y = forward(layer, x, rope, allowed, cache, number)
        return y if cache is None else (y, cache.k, cache.v, cache.length)

    def gradients(forward, layer, x, *rest):
        """The gradients by x and by the layer's matrices, of a sum with uneven weights."""
        wanted = [x.requires_grad_(), *layer.parameters()]
        for p in wanted:
            p.requires_grad_()
        y = forward(layer, x, *rest)
        y = y[0] if isinstance(y, tuple) else y
        weights = torch.linspace(0.5, 1.5, y.numel(), dtype=torch.float64).view(y.shape)
        found = torch.autograd.grad((y * weights).sum(), wanted)
        layer.requires_grad_(False)
        return tuple(found)

    sees = lambda x, mask: known(rng, lambda: oracle_allowed(None, x, mask, None))
    x3, x8, x12 = draw(2, 3, 2), draw(2, 3, 8), draw(2, 3, 12)
    # two rows at positions of their own
    rope8, rope12 = turns(f64([[[0, 0], [0, 0], [1, 0.1]], [[0, 0], [1, 0.1], [2, 0.2]]])), turns(3 * draw(2, 3, 1))
    found = [
        Case("one token, one head of width 2", plain(one, draw(1, 1, 2))),
        Case("two tokens, one head of width 2", plain(one, draw(1, 2, 2))),
        Case("two tokens, one head, RoPE", plain(one, draw(1, 2, 2), turns([[0.0], [1.0]]))),
        Case("two tokens, two heads", plain(heads, draw(1, 2, 8))),
        Case("two rows, the first left-padded", plain(one, x3, None, sees(x3, mask))),
        Case("two rows of three tokens, two heads", plain(heads, x8)),
        Case("two rows, two heads, RoPE", plain(heads, x8, rope8)),
        Case("an `allowed` that is not causal", plain(heads, x8, None, ~sees(x8, mask) | torch.eye(3).bool())),
        Case("GPT-2's biases", plain(bias, x8, None, sees(x8, mask))),
        Case("four query heads, two of keys and values", plain(groups, x8)),
        Case("six query heads, two of keys and values, RoPE, padding", plain(shared, x12, rope12, sees(x12, mask))),
        Case(
            "two rows, two heads, q_norm and k_norm, RoPE",
            plain(normed, x8, turns(f64([[0], [1], [2]]) * f64([1, 0.1]))),
        ),
        Case("a cache with one token, one new one", cached(one, 0, bools([[1, 1]]), 1)),
        Case("a cache with two tokens, one new one, layer 1", cached(heads, 1, bools([[0, 1, 1], [1, 1, 1]]), 2)),
        Case("an empty cache, three new tokens, RoPE", cached(heads, 0, mask, 0, rope8)),
        Case(
            "a cache with two slots in use, three new tokens, RoPE, grouped heads, layer 2",
            cached(shared, 2, bools([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]), 2, rope12),
        ),
    ]
    # RoPE is computed in float32.
    found = [Case(c.about, c.args, oracle_attention, False, call, 1e-3 if "RoPE" in c.about else 1e-6) for c in found]
    oracle = lambda *args: gradients(oracle_attention, *args)
    grouped = plain(groups, x8, rope12, sees(x8, mask))
    return [*found, Case("gradients by x and the weights, RoPE", grouped, oracle, call=gradients, tolerance=1e-3)]


def whole(rng: torch.Generator) -> list[Case]:
    """All together: a model of either family, padded and with a cache, against a loop over one row alone."""
    found = []
    for settings in ({"family": "gpt2"}, {"n_heads": 4, "n_kv_heads": 2, "qkv_bias": True}):
        model = tiny(rng, n_layers=3, **settings)
        args = (model, torch.randint(0, 11, (3, 5), generator=rng), bools(RAGGED))
        family = model.config.family
        found.append(Case(f"{family}, left-padded rows", args, oracle_logits, call=_padded, tolerance=1e-3))
        found.append(Case(f"{family}, each row alone", args, oracle_logits, call=_alone, tolerance=1e-3))
        for chunks in ([5], [3, 1, 1], [1] * 5):
            about = f"{family}, left-padded rows with a cache, {chunks} tokens at a time"
            call = partial(_with_a_cache, chunks)
            found.append(Case(about, args, oracle_logits, call=call, tolerance=1e-3))
    return found


def _padded(_, model, ids: Tensor, mask: Tensor) -> tuple[Tensor, bool]:
    logits = model(ids, mask)
    return logits[mask], bool(logits.isfinite().all())  # no NaN, not even where nobody reads


def _alone(_, model, ids: Tensor, mask: Tensor) -> tuple[Tensor, bool]:
    rows = [model(row[real][None])[0] for row, real in zip(ids, mask)]
    return torch.cat(rows), True


def _with_a_cache(chunks: list[int], _, model, ids: Tensor, mask: Tensor) -> tuple[Tensor, bool]:
    from alignpro_mini.transformer import KVCache

    cache = KVCache(model.config, 3, 7, model.embed.weight)
    cache.mask[:] = torch.cat((mask, bools([[1, 1]] * 3)), 1)
    parts = [model.unembed(model.hidden(piece, cache=cache)) for piece in ids.split(chunks, dim=1)]
    return torch.cat(parts, 1)[mask], True


def oracle_logits(model, ids: Tensor, mask: Tensor) -> tuple[Tensor, bool]:
    """Of the real tokens, row after row."""
    rows = [model.unembed(oracle_hidden(model, row[real])) for row, real in zip(ids, mask)]
    return torch.cat(rows), True


def oracle_hidden(model, ids: Tensor) -> Tensor:
    """The last hidden states (T, D) of one row without padding; only norms and MLPs are the model's own."""
    config, T = model.config, len(ids)
    x = model.embed.weight[ids][None]
    if model.positions is not None:
        x = x + model.positions.weight[:T]
    half = config.head_dim // 2
    angles = [[t / config.rope_theta ** (i / half) for i in range(half)] for t in range(T)]
    rope = turns(angles) if model.positions is None else None
    for block in model.blocks:
        x = x + oracle_layer(block.attn, block.norm1(x), oracle_sees(None), rope, None)[0]
        x = x + block.mlp(block.norm2(x))
    return model.norm(x)[0]
