"""The fast transformer: the plain one's logits, and float32 weights that train above a trunk in bfloat16."""

import pytest
import torch
import torch.nn.functional as F

from alignpro_mini.fast.sampling import generate
from alignpro_mini.fast.transformer import FastAttention, FastTransformer
from alignpro_mini.options import UserError
from alignpro_mini.ppo import PPOConfig, PPOTrainer
from alignpro_mini.reward import RewardModel
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.training import trainable
from alignpro_mini.transformer import KVCache, Transformer, TransformerConfig

FAMILIES = ("llama", "gpt2")
TEXTS = ["how do I begin", "tell me more about it", "why", "be brief please"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- the plain transformer's logits


def plain_and_fast(family: str = "llama", kv_heads: int = 2) -> tuple[Transformer, FastTransformer]:
    """Two models of the same weights, large and uneven: where attention is almost uniform, mistakes do not show."""
    heads = {} if family == "gpt2" else {"n_kv_heads": kv_heads}
    config = TransformerConfig(31, d_model=24, n_layers=2, n_heads=4, max_len=20, family=family, **heads)
    plain = Transformer(config).eval().requires_grad_(False)
    for p in plain.parameters():
        p.copy_(0.4 * torch.randn(p.shape, generator=rng(p.numel())) + (1.0 if p.dim() == 1 else 0.0))
    fast = FastTransformer(config).eval().requires_grad_(False)
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def left_padded(lengths: list[int], width: int) -> torch.Tensor:
    return torch.arange(width) >= (width - torch.tensor(lengths))[:, None]  # (B, T)


def cached(model: Transformer, ids: torch.Tensor, mask: torch.Tensor, chunks: list[int]) -> torch.Tensor:
    """The logits of rows that go through the model in pieces."""
    cache = KVCache(model.config, *ids.shape, model.embed.weight)
    cache.mask[:] = mask
    return model.unembed(torch.cat([model.hidden(piece, cache=cache) for piece in ids.split(chunks, 1)], 1))


def assert_close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert b.std() > 0.1, "a comparison that would show nothing"
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("family", "kv_heads"), [("gpt2", 4), ("llama", 4), ("llama", 2), ("llama", 1)])
def test_the_fast_transformer_gives_the_plain_ones_logits(family, kv_heads):
    """Whole rows and pieces of a cache, with padding and without, rows of one token among them."""
    plain, fast = plain_and_fast(family, kv_heads)
    assert all(isinstance(block.attn, FastAttention) for block in fast.blocks)
    ids = torch.randint(31, (3, 9), generator=rng(1))
    for mask in (left_padded([9, 6, 1], 9), torch.ones(3, 9, dtype=torch.bool)):
        want = plain(ids, mask)
        assert_close(fast(ids, mask), want)
        for chunks in ([9], [4, 4, 1], [1] * 9):
            assert_close(cached(fast, ids, mask, chunks)[mask], want[mask])
    assert_close(fast(ids), plain(ids))
    assert_close(fast(ids[:, :1]), plain(ids[:, :1]))
    one_real = torch.ones(3, 1, dtype=torch.bool)
    assert_close(fast(ids[:, :1], one_real), plain(ids[:, :1], one_real))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_a_step_of_one_token_equals_the_plain_ones(kv_heads):
    """Queries that share a key head are rows of one product: the right rows, and never on padding."""
    ids, mask = torch.randint(31, (4, 8), generator=rng(2)), left_padded([8, 5, 2, 1], 8)
    plain, fast = (cached(model, ids, mask, [7, 1])[:, -1] for model in plain_and_fast("llama", kv_heads))
    assert_close(fast, plain)


# ---------------------------------------------------------------- mixed precision


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, vocab_size=280)


def coarse(family: str = "llama", vocab: int = 280) -> FastTransformer:
    kv = {"n_kv_heads": 2} if family == "llama" else {}
    config = TransformerConfig(vocab, d_model=32, n_layers=3, n_heads=4, max_len=96, family=family, **kv)
    return FastTransformer(config, rng()).to(torch.bfloat16).eval()


def copied(model: FastTransformer) -> FastTransformer:
    twin = FastTransformer(model.config).to(model.embed.weight.dtype)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_trains_has_float32_weights_and_computes_as_before(family):
    whole, mixed = coarse(family), copied(coarse(family))
    found = trainable(mixed, 1)
    assert {p.dtype for p in found} == {torch.float32} and mixed.embed.weight.dtype == torch.bfloat16
    assert all(p.dtype == torch.bfloat16 for p in mixed.blocks[1].parameters())
    ids = torch.randint(280, (2, 9), generator=rng(1))
    ours, theirs = mixed(ids), whole(ids)
    assert ours.dtype == torch.bfloat16
    # A norm with float32 weights may round in another place: no more than one unit in the last place of a logit.
    assert torch.allclose(ours.float(), theirs.float(), rtol=2**-6, atol=2**-6)
    ours.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in found)


def test_attention_in_bfloat16_keeps_its_value_and_has_a_gradient_as_in_float32():
    draw = rng(4)
    q, k, v, g = (torch.randn(2, 4, 9, 8, generator=draw).bfloat16().requires_grad_() for _ in range(4))
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    attend = coarse("gpt2").blocks[0].attn.attend  # of 4 heads, each with keys of its own
    with torch.autocast("cpu", torch.bfloat16):
        y = attend(q, k, v, mask)
        assert torch.equal(y, F.scaled_dot_product_attention(q, k, v, attn_mask=mask)) and y.dtype == torch.bfloat16
    exact = [x.detach().float().requires_grad_() for x in (q, k, v)]
    wanted = torch.autograd.grad(F.scaled_dot_product_attention(*exact, attn_mask=mask), exact, g.float())
    for got, right in zip(torch.autograd.grad(y, (q, k, v), g), wanted, strict=True):
        assert torch.equal(got, right.bfloat16()), "rounded once, at the end"


def test_a_mixed_model_sees_a_step_of_the_optimiser_inside_an_autocast():
    """Autocast keeps converted weights until the outermost one ends: a step in between would be lost."""
    model = coarse()
    weights = trainable(model, 1)
    ids = torch.randint(280, (2, 9), generator=rng(1))
    with torch.autocast("cpu", torch.bfloat16):
        before = model.hidden(ids)
        for p in weights:
            p.data += 0.1 * torch.randn(p.shape, generator=rng(2))
        inside = model.hidden(ids)
    assert torch.equal(inside, model.hidden(ids)) and not torch.equal(inside, before)


def test_sampling_takes_a_copy_in_one_dtype():
    """No step of sampling converts weights; the weights that train stay as they are."""
    model = coarse()
    assert model.in_one_dtype() is model and not model.is_mixed
    trainable(model, 1)
    assert model.is_mixed
    copy = model.in_one_dtype()
    assert {p.dtype for p in copy.parameters()} == {torch.bfloat16} and model.is_mixed
    for (name, got), want in zip(copy.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(got, want.bfloat16()), name
    sampled = [generate(one, [[5, 6], [7]], 6, temperature=0.0) for one in (model, copy)]
    assert sampled[0] == sampled[1] and model.is_mixed
    assert {p.dtype for p in model.blocks[-1].parameters()} == {torch.float32}


def test_a_small_step_is_not_lost():
    """1e-5 of a weight near 0.1 is below the spacing of bfloat16: such a weight would never move."""
    model = coarse()
    weight = next(p for p in trainable(model, 1) if p.dim() == 2)
    before = weight.detach().clone()
    weight.data += 1e-5
    assert ((weight - before).abs() > 5e-6).all() and (
        before.bfloat16() + 1e-5 == before.bfloat16()
    ).float().mean() > 0.5


def test_a_weight_in_float64_stays_there():
    model = coarse().double()
    assert {p.dtype for p in trainable(model, 0)} == {torch.float64}


def test_the_first_ratios_are_near_1_and_the_kl_starts_at_0(tokenizer):
    """Sampling and scoring take different ways through bfloat16: how far apart they come out, if at all, is logged."""
    config = PPOConfig(batch_size=8, micro_batch_size=4, max_new_tokens=12, train_layers=1, lr=1e-3, ppo_epochs=1)
    vocab = tokenizer.vocab_size
    trainer = PPOTrainer(
        coarse(vocab=vocab), coarse(vocab=vocab), tokenizer, lambda x, y: torch.arange(len(x)).float(), config, rng()
    )
    rollout = trainer.rollout(TEXTS * 2)
    apart = (rollout.logp - rollout.logp_ref).abs()
    assert torch.equal(apart, rollout.logp_gap) and apart.max() < 0.05, "policy and reference are still one"
    assert rollout.kl_exact.abs().max() == 0
    assert {p.dtype for p in trainer.parameters} == {torch.float32}
    rollout.scores = torch.arange(8.0)
    trainer.estimate_advantages(rollout, trainer.assemble_rewards(rollout))
    _, parts = trainer.loss(rollout.rows(torch.arange(8)))
    assert parts["ratio_max"] == pytest.approx(1, abs=0.05)
    metrics = trainer.step(TEXTS * 2)
    assert metrics["grad_norm"] > 0 and 0 <= metrics["logp_gap"] < 0.05


def test_a_reward_model_rates_the_same_after_it_is_loaded(tokenizer):
    vocab = tokenizer.vocab_size
    first = RewardModel(coarse(vocab=vocab), tokenizer, 1)
    trainable(first.lm, 1)  # as training does
    for p in (*first.lm.blocks[-1].parameters(), first.head.weight):
        p.data += 1e-3 * torch.randn(p.shape, generator=rng(3))
    first.normalise(TEXTS, TEXTS[::-1])
    again = RewardModel(coarse(vocab=vocab), tokenizer, 1)
    again.load_state_dict(first.state_dict())
    assert torch.equal(first.score(TEXTS, TEXTS), again.score(TEXTS, TEXTS))


def test_float32_blocks_above_a_bfloat16_trunk_are_refused_for_the_plain_transformer():
    model = Transformer(coarse().config).to(torch.bfloat16)
    with pytest.raises(UserError, match="model_class=FastTransformer, or in float32"):
        trainable(model, 1)
    assert {p.dtype for p in trainable(model, 0)} == {torch.float32}
