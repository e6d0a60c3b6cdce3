"""Known mistakes of transformer.py, each with the tests that must fail (see tests/mutants/__init__.py)."""

from functools import partial

from mutants import Mutant, mutant

of = partial(mutant, "transformer.py")
FIRST_RATIO = "test_ppo.py::test_the_first_ratio_is_one_against_the_sampling_logprobs"
GREEDY = "test_greedy_equals_each_row_alone_without_a_cache"
CACHE = "test_cache_equals_recompute"
PADDED = "test_a_padded_row_equals_the_row_alone"
LOGITS = "test_logits_equal_those_of_transformers"
WRITTEN_OUT = "test_attention_equals_attention_written_out"
VISIBLE = "(real & (key <= query)) | (key == query)"
LATER = "test_a_later_token_does_not_change_earlier_logits"
PADDED_QUERY = "test_a_padded_query_sees_itself"
ROPE = "test_rope_is_multiplication_by_a_unit_complex_number"
ROPE_DTYPE = "test_rope_keeps_the_dtype"
KEPT = "test_rows_that_a_cache_keeps_go_on"
TRUNK = "test_a_trunk_and_the_blocks_above_it_equal_the_whole_at_every_depth"

MUTANTS: tuple[Mutant, ...] = (
    # positions not counted along the mask: old against new with left padding
    of(
        "positions-along-the-columns",
        ("return (mask.cumsum(1) - 1).clamp(min=0)", "return torch.arange(T, device=x.device).expand(B, T)"),
        "test_ppo.py::test_every_number_of_a_rollout_is_that_of_the_row_alone[1.0-gpt2]",
        f"{FIRST_RATIO}[options0-gpt2]",
        "test_transformer.py::test_a_padded_row_equals_the_row_alone",
    ),
    of(
        "positions-along-the-columns-of-the-cache",
        (
            "(cache.mask[:, : cache.length + T].cumsum(1) - 1).clamp(min=0)[:, cache.length :]",
            "torch.arange(cache.length, cache.length + T, device=x.device).expand(B, T)",
        ),
        f"test_generation.py::{GREEDY}[readable-1-gpt2]",
        f"{FIRST_RATIO}[options0-gpt2]",
    ),
    of(
        "positions-of-new-tokens-from-0",
        (
            "(cache.mask[:, : cache.length + T].cumsum(1) - 1).clamp(min=0)[:, cache.length :]",
            "(cache.mask[:, cache.length : cache.length + T].cumsum(1) - 1).clamp(min=0)",
        ),
        f"{CACHE}[Transformer-llama-chunks1]",
        f"{CACHE}[Transformer-gpt2-chunks1]",
    ),
    of(
        "positions-from-1",
        ("return (mask.cumsum(1) - 1).clamp(min=0)", "return mask.cumsum(1)"),
        f"{PADDED}[Transformer-gpt2]",
        f"{LOGITS}[gpt2]",
    ),
    of(
        "padding-at-position-minus-1",
        ("return (mask.cumsum(1) - 1).clamp(min=0)", "return mask.cumsum(1) - 1"),
        f"{PADDED}[Transformer-gpt2]",
    ),
    # who may look at whom
    of(
        "query-sees-the-future",
        (VISIBLE, "real | (key == query)"),
        f"{LOGITS}[llama]",
        f"{LATER}[Transformer-gpt2]",
        WRITTEN_OUT,
    ),
    of("query-sees-the-next-token", (VISIBLE, "(real & (key <= query + 1)) | (key == query)"), LATER, WRITTEN_OUT),
    of(
        "query-without-itself",
        (VISIBLE, "real & (key < query)"),
        f"{LOGITS}[llama]",
        f"{PADDED}[Transformer-gpt2]",
        WRITTEN_OUT,
    ),
    of(
        "padding-attended-to",
        (VISIBLE, "(key <= query).expand(len(real), 1, T, S)"),
        f"{LOGITS}[gpt2]",
        f"{PADDED}[Transformer-llama]",
        WRITTEN_OUT,
    ),
    of("padded-query-without-itself", (VISIBLE, "real & (key <= query)"), PADDED_QUERY),
    of(
        "queries-from-0-beside-a-cache",
        ("torch.arange(S - T, S, device", "torch.arange(T, device"),
        f"{CACHE}[Transformer-llama-chunks1]",
        f"{CACHE}[Transformer-gpt2-chunks3]",
        f"test_generation.py::{GREEDY}[readable-1-llama]",
    ),
    of("no-axis-for-the-heads", (f"return {VISIBLE}", f"return ({VISIBLE})[:, 0]"), LOGITS, PADDED_QUERY),
    # RoPE
    of("rotated-the-wrong-way", ("pairs * rope)", "pairs * rope.conj())"), ROPE),
    of(
        "halves-rotated-for-neighbouring-pairs",
        ("x.float().unflatten(-1, (-1, 2))", "x.float().unflatten(-1, (2, -1)).transpose(-1, -2).contiguous()"),
        (
            "torch.view_as_real(pairs * rope).flatten(-2)",
            "torch.view_as_real(pairs * rope).transpose(-1, -2).flatten(-2)",
        ),
        ROPE,
        f"{LOGITS}[llama]",
    ),
    of(
        "rotated-parts-one-after-the-other",
        (
            "torch.view_as_real(pairs * rope).flatten(-2)",
            "torch.view_as_real(pairs * rope).transpose(-1, -2).flatten(-2)",
        ),
        ROPE,
    ),
    of("rotation-loses-the-dtype", (".flatten(-2).to(x.dtype)", ".flatten(-2)"), ROPE_DTYPE),
    of("only-queries-rotated", ("            k = rotate(k, rope)\n", ""), f"{LOGITS}[llama]"),
    of(
        "values-rotated",
        ("            k = rotate(k, rope)\n", "            k = rotate(k, rope)\n            v = rotate(v, rope)\n"),
        f"{LOGITS}[llama]",
        f"{LOGITS}[qwen2]",
    ),
    # the cache
    of(
        "cache-writes-from-slot-0",
        ("self.k[layer, :, :, self.length : end] = k", "self.k[layer, :, :, : k.shape[2]] = k"),
        ("self.v[layer, :, :, self.length : end] = v", "self.v[layer, :, :, : v.shape[2]] = v"),
        f"{CACHE}[Transformer-llama-chunks1]",
        f"test_generation.py::{GREEDY}[readable-1-gpt2]",
    ),
    of(
        "cache-returns-empty-slots",
        ("return self.k[layer, :, :, :end], self.v[layer, :, :, :end]", "return self.k[layer], self.v[layer]"),
        CACHE,
    ),
    of(
        "cache-returns-the-new-ones-only",
        ("return self.k[layer, :, :, :end], self.v[layer, :, :, :end]", "return k, v"),
        f"{CACHE}[Transformer-llama-chunks1]",
    ),
    of(
        "cache-moves-on-in-every-layer",
        (
            "        return self.k[layer, :, :, :end]",
            "        self.length = end\n        return self.k[layer, :, :, :end]",
        ),
        CACHE,
    ),
    of(
        "every-layer-in-the-first-ones-cache",
        ("cache.append(layer, k, v)", "cache.append(0, k, v)"),
        f"{CACHE}[Transformer-llama-chunks1]",
    ),
    of("a-cache-keeps-the-first-rows", ("self.v = self.v[:, rows]", "self.v = self.v[:, : len(rows)]"), KEPT),
    of(
        "a-cache-keeps-the-mask-of-the-first-rows",
        ("self.mask = self.mask[rows]", "self.mask = self.mask[: len(rows)]"),
        KEPT,
    ),
    # a range of blocks
    of("every-block-above-a-trunk", ("range(start, last)", "range(last)"), TRUNK),
    of(
        "the-last-norm-on-a-trunk",
        ("            return x\n        if cache", "            return self.norm(x)\n        if cache"),
        TRUNK,
    ),
    of(
        "a-cache-moves-on-with-the-trunk",
        (
            "        if stop is not None:\n            return x\n        if cache is not None:\n            cache.length = S\n",
            "        if cache is not None:\n            cache.length = S\n        if stop is not None:\n            return x\n",
        ),
        TRUNK,
    ),
    # heads
    of(
        "heads-not-transposed-back",
        ("y.transpose(1, 2).reshape(B, T, H * E)", "y.reshape(B, T, H * E)"),
        f"{LOGITS}[gpt2]",
        WRITTEN_OUT,
    ),
    of(
        "tokens-cut-into-heads",
        ("self.q_norm(q.view(B, T, H, E)).transpose(1, 2)", "self.q_norm(q.view(B, H, T, E))"),
        f"{LOGITS}[gpt2]",
        WRITTEN_OUT,
    ),
    of(
        "scores-without-their-scale",
        ("attn_mask=allowed,", "attn_mask=allowed, scale=1.0,"),
        f"{LOGITS}[llama]",
        WRITTEN_OUT,
    ),
    of(
        "scores-scaled-by-the-width-of-the-model",
        ("attn_mask=allowed,", "attn_mask=allowed, scale=(q.shape[1] * q.shape[3]) ** -0.5,"),
        f"{LOGITS}[llama]",
        WRITTEN_OUT,
    ),
    of(
        "grouped-heads-in-the-wrong-order",
        (
            "            k,\n            v,\n            attn_mask",
            "            *(x.repeat(1, q.shape[1] // x.shape[1], 1, 1) for x in (k, v)),\n            attn_mask",
        ),
        f"{LOGITS}[llama]",
        f"{WRITTEN_OUT}[2-Transformer]",
    ),
    of(
        "allowed-ignored",
        ("attn_mask=allowed,\n            is_causal=allowed is None", "is_causal=True"),
        PADDED,
        f"{WRITTEN_OUT}[4-Transformer]",
    ),
    of("not-causal-without-a-mask", ("is_causal=allowed is None", "is_causal=False"), LATER, WRITTEN_OUT),
    of(
        "no-output-matrix",
        ("return self.out(y.transpose(1, 2).reshape(B, T, H * E))", "return y.transpose(1, 2).reshape(B, T, H * E)"),
        f"{LOGITS}[gpt2]",
        WRITTEN_OUT,
    ),
    of(
        "slow-rotations-stay",
        ("frequency * (keep + (1 - keep) / factor)", "frequency * (keep + (1 - keep))"),
        f"{LOGITS}[llama3]",
    ),
)
