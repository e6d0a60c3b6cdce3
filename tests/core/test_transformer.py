"""Both transformers against `transformers` (stored logits and greedy tokens), attention written out, and each other.

Oracles: tests/fixtures (see make_fixtures.py), published parameter counts, complex multiplication for RoPE.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alignpro_mini.fast.sampling import SharedCache
from alignpro_mini.fast.transformer import FastTransformer
from alignpro_mini.generation import generate
from alignpro_mini.transformer import Attention, KVCache, RMSNorm, Transformer, TransformerConfig, rope_table, rotate
from alignpro_mini.weights.pretrained import load_pretrained

FIXTURES = Path(__file__).parents[1] / "fixtures"
FAMILIES = ("gpt2", "llama", "qwen2", "llama3", "qwen3")
STORED = (*FAMILIES, "qwen2_untied", "smollm2")
SHAPES = {  # 3 layers, so that a layer in the middle exists
    "gpt2": dict(family="gpt2"),
    "llama": dict(family="llama", n_kv_heads=2, tied=False),
    "qwen2": dict(family="llama", n_kv_heads=1, qkv_bias=True),
    "llama3": dict(family="llama", n_kv_heads=2, rope_scaling=(8.0, 1.0, 4.0, 16)),
    "qwen3": dict(family="llama", n_kv_heads=2, head_dim=8, qk_norm=True),
}


BOTH = (Transformer, FastTransformer)


@pytest.fixture(
    params=[(kind, family) for kind in BOTH for family in FAMILIES], ids=lambda p: f"{p[0].__name__}-{p[1]}"
)
def model(request) -> Transformer:
    """Every test that asks for it runs over both transformers and all families."""
    kind, family = request.param
    return make(kind, **SHAPES[family])


def make(kind: type[Transformer] = Transformer, **changes) -> Transformer:
    """A model whose weights are large and uneven: at 0.02, attention is almost uniform and its bugs do not show."""
    settings = dict(vocab_size=31, d_model=24, n_layers=3, n_heads=4, max_len=40) | changes
    draw = torch.Generator().manual_seed(5)
    model = kind(TransformerConfig(**settings), draw).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=draw) + (1.0 if p.dim() == 1 else 0.0))
    return model.requires_grad_(False)


def tokens(rows: int, length: int, vocabulary: int = 31) -> torch.Tensor:
    return torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(rows * 100 + length))


def left_padded(lengths: list[int], width: int) -> torch.Tensor:
    return torch.arange(width) >= (width - torch.tensor(lengths))[:, None]  # (B, T)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-4) -> bool:
    assert a.shape == b.shape and a.isfinite().all() and b.abs().max() > 0.01, "a comparison that would show nothing"
    return (a - b).abs().max().item() < tolerance


# ---------------------------------------------------------------- against independent oracles


@pytest.mark.parametrize("family", STORED)
def test_logits_equal_those_of_transformers(family):
    model, _ = load_pretrained(FIXTURES / family)
    stored = load_file(FIXTURES / family / "logits.safetensors")
    real = stored["mask"]
    assert real.sum(1).tolist() == [9, 6, 3, 1], "the fixture should have left-padded rows"
    with torch.no_grad():
        logits = model(stored["ids"], real)  # (B, T, V)
        whole_row = model(stored["ids"][:1])  # (1, T, V), the path without a mask
    assert close(logits[real], stored["logits"][real])
    assert close(whole_row, stored["logits"][:1])


@pytest.mark.parametrize("family", STORED)
def test_greedy_tokens_equal_those_of_transformers(family):
    model, _ = load_pretrained(FIXTURES / family)
    stored = load_file(FIXTURES / family / "greedy.safetensors")
    prompts = [row[real].tolist() for row, real in zip(stored["ids"], stored["mask"])]
    expected = stored["tokens"].tolist()
    assert [len(prompt) for prompt in prompts] == [9, 6, 3, 1] and all(len(set(row)) > 2 for row in expected)
    together = generate(model, prompts, 12, temperature=0.0)  # one batch, padded on the left
    assert [found.tokens for found in together] == expected
    for prompt, tokens in zip(prompts, expected):
        assert generate(model, [prompt], 12, temperature=0.0)[0].tokens == tokens


def attention_written_out(layer: Attention, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Attention of a Llama-like layer without RoPE, one head, one query and one key at a time: x, (B, T, D)."""
    B, T, _ = x.shape
    H, G, E = layer.heads, layer.kv_heads, layer.head_dim
    q, k, v = (x @ layer.qkv.weight.T).split([H * E, G * E, G * E], dim=-1)
    heads = torch.zeros(B, T, H, E)
    for h in range(H):
        g = h * G // H  # query heads 0..H/G-1 share key/value head 0, and so on
        scores = torch.einsum("bte,bse->bts", q[..., h * E : (h + 1) * E], k[..., g * E : (g + 1) * E]) / E**0.5
        for b in range(B):
            for t in range(T):
                seen = [s for s in range(t + 1) if mask[b, s]] or [t]
                weights = scores[b, t, seen].exp() / scores[b, t, seen].exp().sum()
                heads[b, t, h] = torch.einsum("s,se->e", weights, v[b, seen, g * E : (g + 1) * E])
    return heads.reshape(B, T, H * E) @ layer.out.weight.T


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_equals_attention_written_out(kv_heads, kind):
    model = make(kind, n_kv_heads=kv_heads)
    layer = model.blocks[0].attn
    x = torch.randn(2, 6, 24, generator=torch.Generator().manual_seed(1))
    mask = left_padded([6, 4], 6)
    assert close(layer(x, None, model._allowed(x, mask, None), None, 0), attention_written_out(layer, x, mask))
    causal = layer(x, None, None, None, 0)
    assert close(causal, attention_written_out(layer, x, torch.ones_like(mask)))


def test_rope_is_multiplication_by_a_unit_complex_number():
    model = make(d_model=32, rope_theta=100.0)  # E = 8
    x = torch.randn(1, 4, 5, 8, generator=torch.Generator().manual_seed(2))  # (B, H, T, E)
    positions = torch.tensor([[0, 1, 2, 7, 30]])
    angles = positions[0, :, None] * torch.tensor([1.0, 100**-0.25, 100**-0.5, 100**-0.75])  # (T, E/2)
    turned = torch.complex(x[..., 0::2], x[..., 1::2]) * torch.polar(torch.ones(5, 4), angles)
    result = rotate(x, rope_table(model.config, x.device, 40)[positions][:, None])
    assert close(result[..., 0::2], turned.real, 1e-5) and close(result[..., 1::2], turned.imag, 1e-5)
    assert torch.equal(result[:, :, 0], x[:, :, 0]), "position 0 is not turned"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rope_keeps_the_dtype(dtype):
    turned = rotate(torch.tensor([1.0, 2.0], dtype=dtype).view(1, 1, 1, 2), torch.full((1, 1, 1, 1), 1j))
    assert turned.dtype == dtype and turned.flatten().tolist() == [-2.0, 1.0]


def test_rope_dot_products_depend_on_the_distance_only():
    model = make(d_model=32)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(3))

    def score(at_q: int, at_k: int) -> float:
        turn = lambda x, p: rotate(x, rope_table(model.config, x.device, 40)[torch.tensor([[p]])][:, None])
        return (turn(q, at_q) * turn(k, at_k)).sum().item()

    assert score(9, 4) == pytest.approx(score(25, 20), abs=1e-4) == pytest.approx(score(5, 0), abs=1e-4)
    assert abs(score(9, 4) - score(9, 7)) > 1e-2
    assert abs(score(9, 4) - score(4, 9)) > 1e-2


def test_the_table_of_rotations_is_made_once_for_a_shape():
    one, same, other = (make(rope_theta=theta) for theta in (100.0, 100.0, 200.0))
    cpu = torch.device("cpu")
    assert rope_table(one.config, cpu, 40) is rope_table(same.config, cpu, 40) is not rope_table(other.config, cpu, 40)
    assert rope_table(one.config, cpu, 40).shape == (40, 3)


def test_rms_norm_by_hand():
    norm = RMSNorm(2, eps=0.0)
    norm.weight.data = torch.tensor([1.0, 2.0])
    # rms of (3, 4) is sqrt(12.5) = 3.5355
    assert norm(torch.tensor([3.0, 4.0])).tolist() == pytest.approx([0.848528, 2.262742], abs=1e-5)
    assert norm(torch.tensor([3.0, 4.0], dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_parameter_counts_are_the_published_ones():
    with torch.device("meta"):
        gpt2 = Transformer(TransformerConfig(50257, d_model=768, n_layers=12, n_heads=12, max_len=1024, family="gpt2"))
        smollm2 = Transformer(
            TransformerConfig(49152, d_model=576, n_layers=30, n_heads=9, n_kv_heads=3, d_ff=1536, max_len=8192)
        )
        qwen2 = Transformer(
            TransformerConfig(151936, d_model=896, n_layers=24, n_heads=14, n_kv_heads=2, d_ff=4864, qkv_bias=True)
        )
    count = lambda model: sum(p.numel() for p in model.parameters())
    assert (count(gpt2), count(smollm2), count(qwen2)) == (124_439_808, 134_515_008, 494_032_768)


# ---------------------------------------------------------------- the same thing computed another way


def test_a_later_token_does_not_change_earlier_logits(model):
    ids = tokens(2, 10)
    changed = ids.clone()
    changed[:, 6] = (ids[:, 6] + 1) % 31
    for mask in (None, torch.ones_like(ids, dtype=torch.bool)):
        before, after = model(ids, mask), model(changed, mask)
        assert close(before[:, :6], after[:, :6], 1e-5)
        moved = (before - after)[:, 6:].abs().amax(dim=(0, 2))  # (4,)
        assert (moved > 1e-3).all(), "and it does change its own and all later ones"


def test_a_padded_row_equals_the_row_alone(model):
    ids, lengths = tokens(4, 12), [12, 7, 2, 1]
    mask = left_padded(lengths, 12)
    logits = model(ids, mask)
    assert logits.isfinite().all(), "padding must not make NaN, not even at positions that are not read"
    for row, length in enumerate(lengths):
        assert close(logits[row : row + 1, 12 - length :], model(ids[row : row + 1, 12 - length :]))
    other_padding = torch.where(mask, ids, (ids + 5) % 31)
    assert close(model(other_padding, mask)[mask], logits[mask], 1e-5)


def test_a_padded_query_sees_itself():
    """Without a key its softmax is over nothing: NaN, or whatever the kernel makes of it."""
    mask = torch.tensor([[False, False, True], [True, True, False]])
    allowed = make()._allowed(tokens(2, 3), mask, None)  # (B, 1, T, S)
    assert allowed.int().tolist() == [[[[1, 0, 0], [0, 1, 0], [0, 0, 1]]], [[[1, 0, 0], [1, 1, 0], [1, 1, 1]]]]


def test_right_padding_changes_nothing_either(model):
    ids = tokens(2, 8)
    mask = torch.arange(8) < torch.tensor([8, 5])[:, None]
    assert close(model(ids, mask)[1, :5], model(ids[1:, :5])[0])


@pytest.mark.parametrize("chunks", [[12], [7, 1, 1, 1, 1, 1], [1] * 12, [5, 4, 3]])
def test_cache_equals_recompute(model, chunks):
    ids, mask = tokens(3, 12), left_padded([12, 9, 6], 12)
    cache = KVCache(model.config, rows=3, max_len=14, like=model.embed.weight)
    cache.mask[:, :12] = mask
    parts = [model.hidden(piece, cache=cache) for piece in ids.split(chunks, dim=1)]  # (B, chunk, D) each
    assert cache.length == 12
    assert close(torch.cat(parts, dim=1)[mask], model.hidden(ids, mask)[mask])


@pytest.mark.parametrize("kind", [KVCache, SharedCache])
def test_rows_that_a_cache_keeps_go_on(model, kind):
    ids, mask = tokens(4, 10), left_padded([10, 6, 8, 5], 10)
    cache = kind(model.config, rows=4, max_len=10, like=model.embed.weight)
    cache.mask[:] = mask
    model.hidden(ids[:, :8], cache=cache)
    rows = torch.tensor([1, 3])
    cache.keep(rows)
    rest = model.hidden(ids[rows, 8:], cache=cache)  # (2, 2, D)
    assert close(rest, model.hidden(ids, mask)[rows, 8:])


def test_a_trunk_and_the_blocks_above_it_equal_the_whole_at_every_depth(model):
    ids, mask = tokens(3, 7), left_padded([7, 4, 2], 7)
    whole = model.hidden(ids, mask)
    assert close(model.unembed(whole), model(ids, mask), 1e-6)
    layers = model.config.n_layers
    for depth in range(1, layers + 1):
        trunk = model.hidden(ids, mask, stop=depth)
        assert torch.equal(model.hidden(trunk, mask, start=depth), whole)
        cache = KVCache(model.config, 3, 7, model.embed.weight)
        cache.mask[:] = mask
        pieces = []
        for piece in (ids[:, :4], ids[:, 4:]):
            trunk = model.hidden(piece, None, cache, stop=depth)
            pieces.append(model.hidden(trunk, None, cache, start=depth))
        assert close(torch.cat(pieces, dim=1)[mask], whole[mask])
    assert not torch.equal(model.hidden(ids, mask, stop=1), model.hidden(ids, mask, stop=2)), "a block does something"


# ---------------------------------------------------------------- settings, limits, first weights


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(family="mamba"), "gpt2, llama"),
        (dict(d_model=30), "d_model 30 is not a multiple of n_heads 4"),
        (dict(n_kv_heads=3), "n_heads 4 is not a multiple of n_kv_heads 3"),
        (dict(d_model=12), "head width 3 must be even"),
        (dict(family="gpt2", n_kv_heads=2), "no grouped heads"),
        (dict(family="gpt2", qk_norm=True), "no qk_norm, rope_scaling or head_dim"),
        (dict(family="gpt2", head_dim=8), "no qk_norm, rope_scaling or head_dim"),
        (dict(family="gpt2", rope_scaling=(8.0, 1.0, 4.0, 16)), "no qk_norm, rope_scaling or head_dim"),
        (dict(qkv_bias=True, qk_norm=True), "no published family has qkv_bias and qk_norm"),
        (dict(n_layers=0), "n_layers is 0"),
        (dict(vocab_size=-1), "vocab_size is -1"),
    ],
)
def test_config_errors_name_the_field(settings, words):
    with pytest.raises(ValueError, match=words):
        TransformerConfig(**(dict(vocab_size=31, d_model=24, n_heads=4) | settings))


def test_config_fills_in_what_was_left_out():
    assert TransformerConfig(9, d_model=16, n_heads=2).n_kv_heads == 2
    assert TransformerConfig(9, d_model=16, n_heads=2, family="gpt2").d_ff == 64
    assert TransformerConfig(9, d_model=16, n_heads=2, family="gpt2").qkv_bias
    assert not TransformerConfig(9, d_model=16, n_heads=2).qkv_bias


def test_rows_longer_than_the_context_are_refused(model):
    model(tokens(1, 40))
    with pytest.raises(ValueError, match="41 tokens do not fit the context of 40"):
        model(tokens(1, 41))
    cache = KVCache(model.config, 1, 50, model.embed.weight)
    cache.mask[:] = True
    model.hidden(tokens(1, 40), cache=cache)
    with pytest.raises(ValueError, match="41 tokens do not fit"):
        model.hidden(tokens(1, 1), cache=cache)


def test_first_weights_come_from_the_generator(model):
    start = lambda seed: Transformer(model.config, torch.Generator().manual_seed(seed)).state_dict()
    one, same, other = start(1), start(1), start(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["embed.weight"], other["embed.weight"])


def test_first_weights_at_gpt2s_width_have_gpt2s_spread():
    config = TransformerConfig(31, d_model=768, n_layers=2, n_heads=12, max_len=8, family="gpt2")
    weights = Transformer(config, torch.Generator().manual_seed(1)).state_dict()
    for name in ("embed.weight", "blocks.1.attn.qkv.weight", "blocks.1.mlp.up.weight"):
        assert weights[name].std().item() == pytest.approx(0.02, rel=0.05)
    for name in ("blocks.1.attn.out.weight", "blocks.1.mlp.down.weight"):  # 4 writers into the stream: 0.02 / sqrt(4)
        assert weights[name].std().item() == pytest.approx(0.01, rel=0.05)
    assert weights["blocks.0.attn.qkv.bias"].abs().max() == 0


def test_a_tied_model_has_one_matrix_for_both_ends():
    tied, untied = make(tied=True), make(tied=False)
    assert tied.unembed.weight is tied.embed.weight and untied.unembed.weight is not untied.embed.weight
    extra = sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters())
    assert extra == 31 * 24
