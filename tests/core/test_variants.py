"""PPO's variants: their advantages row by row, one ratio for a completion, and where a KL penalty goes.

The oracles are loops over completions and tokens, and each row alone through the plain forward pass.

Shape legend:  B rows   T tokens of the completion   N prompts   K completions of each
"""

import copy
import math
import statistics
from types import SimpleNamespace

import pytest
import torch
from doubles import random_lm
from test_ppo import PROMPTS, gradients, lengths, log_softmax_alone, near, rolled, trainer, widened
from test_rl_math import GARBAGE, bools, close, f64, ragged

from alignpro_mini import rl_math
from alignpro_mini.frozen import checksum
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.run import Run, RunStage
from alignpro_mini.options import UserError
from alignpro_mini.ppo import PPOTrainer
from alignpro_mini.variants import VARIANTS, CriticFree, Grouped, KLInLoss, KLInReward, SequenceRatio, grpo, rloo
from alignpro_mini.weights.tensors import load_state

CRITIC_FREE = [name for name, kind in VARIANTS.items() if issubclass(kind, CriticFree)]
GROUPED = [name for name, kind in VARIANTS.items() if issubclass(kind, Grouped)]
IN_LOSS = [name for name, kind in VARIANTS.items() if issubclass(kind, KLInLoss)]
PAIRS = [x for x in PROMPTS[:3] for _ in range(2)]


def variant(name: str, **options) -> PPOTrainer:
    """A trainer of this variant: its policy is far from its reference."""
    return trainer(kind=VARIANTS[name], variant=name, **{"rewrites_per_request": 2} | options)


def test_the_names():
    names = "ppo reinforce reinforce++ rloo grpo grpo-unscaled reinforce-sequence rloo-sequence grpo-sequence"
    assert list(VARIANTS) == [*names.split(), "kl-k2", "kl-k3", "kl-loss-k1", "kl-loss-k2", "kl-loss-k3"]
    assert all(kind.variant == name and issubclass(kind, PPOTrainer) for name, kind in VARIANTS.items())
    assert len(set(VARIANTS.values())) == len(VARIANTS)


# ---------------------------------------------------------------- advantages without a value head


def test_rloo_against_the_mean_of_the_others():
    rewards = f64([[0.0, 1.0, 2.0], [5.0, 5.0, -1.0]])
    want = [[r - (sum(row) - r) / 2 for r in row] for row in rewards.tolist()]
    close(rloo(rewards), f64(want))
    close(rloo(f64([[0.0, 1.0, 2.0]])), f64([[-1.5, 0.0, 1.5]]))


def test_grpo_by_hand_with_and_without_its_standard_deviation():
    rewards = f64([[0.0, 1.0, 2.0], [10.0, 10.0, 40.0], [3.0, 3.0, 3.0]])
    close(grpo(rewards, scale=False), f64([[-1.0, 0.0, 1.0], [-10.0, -10.0, 20.0], [0.0] * 3]))
    s = statistics.stdev([10.0, 10.0, 40.0])
    want = f64([[-1.0, 0.0, 1.0], [-10 / s, -10 / s, 20 / s], [0.0] * 3])
    close(grpo(rewards), want, atol=2e-4)  # its eps
    close(grpo(rewards, eps=0.0)[:2], want[:2])


@pytest.mark.parametrize("shape", [(4,), (3, 1), (2, 2, 2)])
@pytest.mark.parametrize("f", [rloo, grpo])
def test_group_advantages_need_two_completions_a_prompt(f, shape):
    with pytest.raises(ValueError, match=r"\(N prompts, K >= 2 completions\)"):
        f(torch.zeros(shape))


def expected(name: str, rewards: torch.Tensor, mask: torch.Tensor, K: int) -> torch.Tensor:
    """The advantage of each token, completion by completion."""
    name = name.removesuffix("-sequence")
    rows = [[r for r, real in zip(*row) if real] for row in zip(rewards.tolist(), mask.tolist())]
    totals = [math.fsum(row) for row in rows]
    found = torch.zeros(mask.shape, dtype=torch.float64)
    for b, row in enumerate(rows):
        first = 0 if name == "reinforce" else b - b % K
        together = totals if name == "reinforce" else totals[first : first + K]
        others = [total for i, total in enumerate(together, first) if i != b]
        off = totals[b] - math.fsum(together) / len(together)
        if name in ("reinforce", "rloo"):
            off = totals[b] - math.fsum(others) / len(others)
        elif name == "grpo":
            off /= statistics.stdev(together) + 1e-4
        for t in range(len(row)):
            found[b, t] = math.fsum(row[t:]) if name == "reinforce++" else off
    return found


def test_the_expected_advantages_by_hand():
    rewards = f64([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0], [0.0, 0.0, 1.0], [7.0, 9.0, 9.0]])
    mask = bools([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0]])  # sums 3, 4, 1, 7: two prompts, two completions each
    on = lambda column: torch.where(mask, f64(column)[:, None], 0.0)
    close(expected("rloo", rewards, mask, 2), on([-1.0, 1.0, -6.0, 6.0]))
    close(expected("grpo-unscaled", rewards, mask, 2), on([-0.5, 0.5, -3.0, 3.0]))
    close(expected("grpo", rewards, mask, 2), on([-(0.5**0.5), 0.5**0.5] * 2), atol=2e-4)
    close(expected("reinforce", rewards, mask, 2), on([3 - 12 / 3, 4 - 11 / 3, 1 - 14 / 3, 7 - 8 / 3]))
    close(expected("reinforce++", rewards, mask, 2), [[3, 2, 0], [4, 0, 0], [1, 1, 1], [7, 0, 0]])


@pytest.mark.parametrize("garbage", GARBAGE, ids=str)
@pytest.mark.parametrize("name", CRITIC_FREE)
def test_advantages_row_by_row_whatever_stands_in_the_padding(name, garbage):
    case, mask, _ = ragged()
    t = variant(name)
    got = t.advantages(case["rewards"].where(mask, garbage), mask)
    close(got, expected(name, case["rewards"], mask, 2), atol=1e-9)
    single = t.advantages(case["rewards"].float(), mask)
    assert single.dtype == torch.float32
    close(single, got, atol=1e-5)


@pytest.mark.parametrize("name", CRITIC_FREE)
def test_order_of_the_prompts_does_not_matter(name):
    case, mask, _ = ragged()
    order = torch.tensor([3, 2, 0, 1])  # whole groups, and inside one of them
    t = variant(name)
    close(t.advantages(case["rewards"][order], mask[order]), t.advantages(case["rewards"], mask)[order])


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("name", CRITIC_FREE)
def test_whitening_is_for_those_that_no_group_has_centred(name, whiten):
    t = variant(name, whiten_advantages=whiten)
    r = rolled(t, PAIRS)
    raw = expected(name, t.assemble_rewards(r), r.action, 2)
    kept = raw[r.action]
    assert r.returns is None and r.advantage_std == pytest.approx(kept.std(unbiased=False).item(), rel=1e-4)
    if whiten and name not in GROUPED:
        raw = torch.where(r.action, (raw - kept.mean()) / kept.std(unbiased=False), 0.0)
    near(r.advantages, raw, 1e-4)
    assert ("whiten_advantages" in t.unread) == (name in GROUPED)


@pytest.mark.parametrize("name", CRITIC_FREE)
def test_without_gae_there_is_no_value_loss(monkeypatch, name):
    t = variant(name)
    r = rolled(t, PAIRS)
    total, parts = t.loss(r)
    assert total.item() == parts["policy_loss"] and not parts.keys() & {"value_loss", "value_clip_fraction"}
    found = dict(zip(map(id, t.parameters), gradients(t, r, monkeypatch)))
    assert max(found[id(p)].abs().max() for p in t.policy.value_head.parameters()) == 0
    assert max(g.abs().max() for g in found.values()) > 0


@pytest.mark.parametrize("name", VARIANTS)
def test_the_value_head_trains_only_where_gae_reads_it(name):
    t = variant(name)
    reads = name not in CRITIC_FREE
    assert {p.requires_grad for p in t.policy.value_head.parameters()} == {reads}
    before = t.policy.value_head.weight.clone()
    metrics = t.step(PAIRS)
    assert torch.equal(t.policy.value_head.weight, before) != reads
    assert len(metrics.keys() & {"explained_variance", "value_loss", "value_clip_fraction"}) == 3 * reads
    assert ("vf_coef" in t.unread) != reads


@pytest.mark.parametrize("name", GROUPED)
def test_a_variant_that_compares_completions_needs_two_of_each_prompt(name):
    with pytest.raises(UserError, match=f"rewrites_per_request is 1; variant {name} compares at least 2"):
        variant(name, rewrites_per_request=1)


@pytest.mark.parametrize("name", ["reinforce", "reinforce-sequence"])
def test_a_batch_baseline_needs_a_batch(name):
    with pytest.raises(UserError, match=f"batch_size is 1; variant {name} compares at least 2"):
        variant(name, rewrites_per_request=1, batch_size=1)
    assert variant(name, rewrites_per_request=1).step(PROMPTS)["grad_norm"] > 0


def test_a_state_goes_on_although_the_value_head_is_not_in_it(tmp_path, capsys):
    """It does not train, and `save` leaves out what does not."""
    stage = RunStage(Run(RunConfig(out=str(tmp_path), name="r")), "ppo")
    first = variant("rloo")
    other = variant("rloo", lm=random_lm(seed=9), seed=9)
    first.step(PAIRS)
    stage.save(1, first.policy, first.optimizer, first.generator)
    assert not any("value_head" in name for name in load_state(stage.state_path)[0])
    assert stage.restore(other.policy, other.optimizer, other.generator) == (1, {})
    for t in (first, other):
        t.step(PAIRS)
    assert checksum(other.policy) == checksum(first.policy)
    capsys.readouterr()


# ---------------------------------------------------------------- one ratio for a whole completion


def sequence_loss(logp, old, advantages, mask, clip: float = 0.2):
    """PPO's loss of the log-probs that `SequenceRatio` gives."""
    new, old = SequenceRatio().ratio_logprobs(logp, SimpleNamespace(logp=old, action=mask))
    return rl_math.policy_loss(new, old, advantages, mask, clip)


def test_one_ratio_a_row_is_the_geometric_mean_of_its_tokens():
    logp, old = f64([[-1.0, -2.0, 9.0], [-0.5, 9.0, 9.0]]), f64([[-1.3, -1.9, 9.0], [-0.8, 9.0, 9.0]])
    mask, advantages = bools([[1, 1, 0], [1, 0, 0]]), f64([[2.0, -1.0, 9.0], [3.0, 9.0, 9.0]])
    loss, seen = sequence_loss(logp, old, advantages, mask, 0.05)
    ratios = [math.exp((0.3 - 0.1) / 2), math.exp(0.3)]
    want = [[-min(2 * ratios[0], 2 * 1.05), ratios[0], 0.0], [-min(3 * ratios[1], 3 * 1.05), 0.0, 0.0]]
    close(loss, f64(want))
    assert seen["clipped"].tolist() == [[True, False, False], [True, False, False]]
    close(seen["ratio"][mask], f64([ratios[0], ratios[0], ratios[1]]))


@pytest.mark.parametrize("garbage", GARBAGE, ids=str)
def test_padding_reaches_neither_the_ratio_of_a_row_nor_its_gradient(garbage):
    clean, mask, _ = ragged()
    names = ("logp", "logp_old", "advantages")
    want = sequence_loss(*(clean[name] for name in names), mask)[0]
    for dirty in [set(names), *({name} for name in names)]:  # all at once, or one alone: inf - inf is not inf - 0
        case = [clean[name].where(mask, garbage) if name in dirty else clean[name].clone() for name in names]
        case[0].requires_grad_()
        loss = sequence_loss(*case, mask)[0]
        close(loss.detach(), want)
        loss.sum().backward()
        grad = case[0].grad
        assert torch.isfinite(grad).all() and grad[~mask].eq(0).all() and grad[mask].ne(0).any()


def test_the_gradient_of_one_ratio_a_row_is_that_of_the_whole_sequence():
    """At ratio 1 with one advantage a row: A times the gradient of the row's summed log-probability."""
    case, mask, scores = ragged()
    logp = case["logp"].requires_grad_()
    advantages = torch.where(mask, scores[:, None], 0.0)
    sequence_loss(logp, logp.detach(), advantages, mask)[0].sum().backward()
    close(logp.grad, torch.where(mask, -scores[:, None], 0.0))


@pytest.mark.parametrize("name", ["reinforce-sequence", "rloo-sequence", "grpo-sequence"])
def test_the_trainers_loss_takes_the_ratio_of_the_whole_completion(name):
    lm = random_lm(seed=1, spread=0.3)
    t = variant(name, lm=lm, reference=copy.deepcopy(lm))
    r = rolled(t, PAIRS)
    with torch.no_grad():
        for p in t.policy.lm.parameters():
            p.add_(0.03 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    total, parts = t.loss(r)
    want, ratios = 0.0, []
    for i, n in enumerate(lengths(r)):
        logp, new = log_softmax_alone(t.policy.lm, t, r, i)
        ratio = (logp[torch.arange(n), new] - r.logp[i, :n]).mean().exp().item()
        ratios.append(ratio)
        for advantage in r.advantages[i, :n].tolist():
            want -= min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
    assert total.item() == pytest.approx(want, rel=1e-4, abs=1e-4)
    assert parts["ratio_max"] == pytest.approx(max(ratios), rel=1e-5)
    by_token = variant(name.removesuffix("-sequence"), lm=lm, reference=copy.deepcopy(lm)).loss(r)[1]["ratio_max"]
    assert parts["ratio_max"] < 0.95 * by_token, "a mean over the tokens moves less than the largest of them"


# ---------------------------------------------------------------- the KL penalty


def token_kl(name: str, r) -> torch.Tensor:
    """The KL estimate of each token that the name says, from the definitions."""
    d = r.logp.double() - r.logp_ref.double()
    return {"k1": d, "k2": d**2 / 2, "k3": torch.exp(-d) - 1 + d}[name[-2:] if name[-2] == "k" else "k1"]


def without_advantages(t: PPOTrainer, prompts=PROMPTS):
    """A rollout on which the policy loss is 0: what is left of the loss are the other parts."""
    r = rolled(t, prompts)
    r.advantages = torch.zeros_like(r.advantages)
    return r


@pytest.mark.parametrize("name", VARIANTS)
def test_the_kl_penalty_is_in_the_reward_or_in_the_loss(name):
    t = variant(name, kl_coef=0.7, vf_coef=0.0, whiten_advantages=False)
    r = without_advantages(t, PAIRS)
    kl = torch.where(r.action, token_kl(name, r), 0.0)  # (B, T)
    ends = r.scores - t.config.missing_eos_penalty * (~r.finished)
    in_reward = 0.0 if name in IN_LOSS else 0.7
    near(t.assemble_rewards(r).sum(1), ends - in_reward * kl.sum(1), 1e-4)
    near(t.loss(r)[0].detach(), (0.7 - in_reward) * kl.sum(), 1e-3)
    assert kl.abs().sum() > 0.1


@pytest.mark.parametrize("name", IN_LOSS)
def test_the_gradient_of_a_kl_loss_is_that_of_the_policy_now(name):
    t = variant(name, kl_coef=0.7, vf_coef=0.0, whiten_advantages=False)
    r = without_advantages(t)
    with torch.no_grad():  # a later step: the policy is no longer the one that sampled
        for p in t.policy.lm.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    weight = t.policy.lm.norm.weight
    (got,) = torch.autograd.grad(t.loss(r)[0], weight)
    total = torch.zeros((), dtype=torch.float64)
    for i, n in enumerate(lengths(r)):
        logp, new = log_softmax_alone(t.policy.lm, t, r, i)
        now = SimpleNamespace(logp=logp[torch.arange(n), new], logp_ref=r.logp_ref[i, :n])
        total = total + 0.7 * token_kl(name, now).sum()
    near(got, torch.autograd.grad(total, weight)[0], 1e-4)
    assert got.abs().max() > 1e-3


@pytest.mark.parametrize("garbage", [7.0, math.inf, math.nan])
@pytest.mark.parametrize("name", IN_LOSS)
def test_padding_does_not_reach_a_kl_loss(name, garbage):
    t = variant(name, kl_coef=0.7)
    r = rolled(t)
    weight = t.policy.lm.norm.weight
    results = []
    for part in (r, widened(r, before=0, after=2, fill=0)):
        if part is not r:
            for field in ("logp", "logp_ref", "values", "advantages", "returns"):
                setattr(part, field, getattr(part, field).where(part.action, garbage))
        total, parts = t.loss(part)
        results.append([total.detach(), torch.autograd.grad(total, weight)[0], torch.tensor(list(parts.values()))])
    for clean, dirty in zip(*results):
        near(dirty, clean, 1e-4)


@pytest.mark.parametrize("name", IN_LOSS)
def test_a_kl_loss_keeps_its_weight_beside_whitened_advantages(name):
    """Whitening divides the reward's gradient by the advantages' standard deviation: the KL loss is divided too."""
    found = {}
    for whiten in (True, False):
        t = variant(name, whiten_advantages=whiten, kl_coef=0.7, vf_coef=0.0)
        r = without_advantages(t)
        found[whiten] = t.loss(r)[0].item() * (r.advantage_std if whiten else 1.0)
    assert found[True] == pytest.approx(found[False], rel=1e-4) and abs(found[True]) > 0.01
    r.advantage_std = 0.0
    t = variant(name, kl_coef=0.7, vf_coef=0.0)
    assert t.loss(r)[0].item() == pytest.approx(found[False] / 1e-4, rel=1e-3), "no division by 0"


@pytest.mark.parametrize("name", ["kl-k2", "kl-k3", *IN_LOSS])
def test_the_adapted_coefficient_is_the_one_that_is_paid(name):
    paid = {}
    for coef in (0.0, 0.9):
        t = variant(name, kl_coef=0.1, vf_coef=0.0, whiten_advantages=False)
        t.kl_coef = coef  # as the controller leaves it; config.kl_coef is where it started
        r = without_advantages(t)
        paid[coef] = (t.loss(r)[0] if name in IN_LOSS else -t.assemble_rewards(r).sum()).item()
        price = 0.9 * torch.where(r.action, token_kl(name, r), 0.0).sum().item()
    assert paid[0.9] - paid[0.0] == pytest.approx(price, rel=1e-4) and abs(price) > 0.01


def test_a_kl_loss_stands_beside_the_value_loss():
    t = variant("kl-loss-k2", kl_coef=0.0, vf_coef=0.5)
    r = without_advantages(t)
    total, parts = t.loss(r)
    assert total.item() == pytest.approx(0.5 * parts["value_loss"], rel=1e-4) and parts["value_loss"] > 0.1
    assert issubclass(VARIANTS["kl-k2"], KLInReward) and parts.keys() == trainer().loss(rolled(trainer()))[1].keys()
