"""Training above a trunk in bfloat16: float32 weights for what trains, one and the same policy everywhere."""

import pytest
import torch
import torch.nn.functional as F

from alignpro_mini.ppo import PPOConfig, PPOTrainer
from alignpro_mini.reward import RewardModel
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.training import trainable
from alignpro_mini.transformer import Transformer, TransformerConfig, attend

FAMILIES = ("llama", "gpt2")
TEXTS = ["how do I begin", "tell me more about it", "why", "be brief please"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, vocab_size=280)


def coarse(family: str = "llama", vocab: int = 280) -> Transformer:
    kv = {"n_kv_heads": 2} if family == "llama" else {}
    config = TransformerConfig(vocab, d_model=32, n_layers=3, n_heads=4, max_len=96, family=family, **kv)
    return Transformer(config, rng()).to(torch.bfloat16).eval()


def copied(model: Transformer) -> Transformer:
    twin = Transformer(model.config).to(model.embed.weight.dtype)
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
    with torch.autocast("cpu", torch.bfloat16):
        y = attend(q, k, v, attn_mask=mask)
        assert torch.equal(y, F.scaled_dot_product_attention(q, k, v, attn_mask=mask)) and y.dtype == torch.bfloat16
    exact = [x.detach().float().requires_grad_() for x in (q, k, v)]
    wanted = torch.autograd.grad(F.scaled_dot_product_attention(*exact, attn_mask=mask), exact, g.float())
    for got, right in zip(torch.autograd.grad(y, (q, k, v), g), wanted, strict=True):
        assert torch.equal(got, right.bfloat16()), "rounded once, at the end"


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
    """Sampling and scoring take different ways through bfloat16: how far apart they come out is logged."""
    config = PPOConfig(batch_size=8, micro_batch_size=4, max_new_tokens=12, train_layers=1, lr=1e-3, ppo_epochs=1)
    vocab = tokenizer.vocab_size
    trainer = PPOTrainer(
        coarse(vocab=vocab), coarse(vocab=vocab), tokenizer, lambda x, y: torch.arange(len(x)).float(), config, rng()
    )
    rollout = trainer.rollout(TEXTS * 2)
    apart = (rollout.logp - rollout.logp_ref).abs()
    assert torch.equal(apart, rollout.logp_gap) and 0 < apart.max() < 0.05, "policy and reference are still one"
    assert rollout.kl_exact.abs().max() == 0
    assert {p.dtype for p in trainer.parameters} == {torch.float32}
    rollout.scores = torch.arange(8.0)
    trainer.estimate_advantages(rollout, trainer.assemble_rewards(rollout))
    _, parts = trainer.loss(rollout.rows(torch.arange(8)))
    assert parts["ratio_max"] == pytest.approx(1, abs=0.05)
    metrics = trainer.step(TEXTS * 2)
    assert metrics["grad_norm"] > 0 and 0 < metrics["logp_gap"] < 0.05


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
