"""PPO's bookkeeping: which log-prob belongs to which token, what a mask keeps, where each number is put.

The oracle is one row alone, unpadded, through the plain forward pass. Rewards are exact functions of the text.

Shape legend:  B rows   P longest prompt   T longest completion
"""

import copy
import math
from dataclasses import replace

import pytest
import torch
from doubles import FakeStage, Letters, lookup_lm, random_lm

from alignpro_mini import ppo, rl_math
from alignpro_mini.frozen import checksum
from alignpro_mini.generation import generate
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.run import Run, RunStage
from alignpro_mini.options import UserError
from alignpro_mini.ppo import PPOConfig, PPOTrainer, Rollout, kl_schedule, learning_rate, train_ppo
from alignpro_mini.transformer import Transformer, TransformerConfig

PROMPTS = ["a", "bcdefgh", "hh", "gabcabcagb", "cd", "e"]
SMALL = PPOConfig(iterations=1, batch_size=6, ppo_epochs=1, num_minibatches=1, max_new_tokens=6, lr=1e-3)


def length_score(prompts, completions) -> torch.Tensor:
    return torch.tensor([len(y) - 2.0 * y.count("a") for y in completions])


def trainer(
    score=length_score,
    lm=None,
    reference=None,
    tokenizer=None,
    seed=0,
    family="llama",
    kind=PPOTrainer,
    sampler=generate,
    **options,
) -> PPOTrainer:
    """A trainer whose policy is already far from its reference, and whose value head is not zero."""
    lm = lm if lm is not None else random_lm(family, seed=1, spread=0.3)
    reference = reference if reference is not None else random_lm(family, seed=2, spread=0.3)
    config = replace(SMALL, **options)
    made = kind(lm, reference, tokenizer or Letters(), score, config, torch.Generator().manual_seed(seed), sampler)
    with torch.no_grad():
        made.policy.value_head.weight.copy_(torch.linspace(-1, 1, 16))
    return made


def rolled(t: PPOTrainer, prompts=PROMPTS) -> Rollout:
    """A rollout with everything that `update` needs."""
    r = t.rollout(prompts)
    r.scores = t.scores(r)
    t.estimate_advantages(r, t.assemble_rewards(r))
    return r


def lengths(r: Rollout) -> list[int]:
    return r.action.sum(1).tolist()


def alone(t: PPOTrainer, r: Rollout, i: int):
    """Row i by itself: (prompt ids, sampled ids, index of the states that predict them)."""
    prompt, new = t.tokenizer.chat(r.prompts[i]), r.tokens[i, : lengths(r)[i]].tolist()
    first = len(prompt) - 1  # token t is predicted from the state at t - 1
    return torch.tensor([prompt + new]), new, slice(first, first + len(new))


def log_softmax_alone(lm, t: PPOTrainer, r: Rollout, i: int):
    """(n, V) log-probabilities under `lm` of what may follow each prefix of row i, at the sampling temperature."""
    ids, new, where = alone(t, r, i)
    return (lm(ids)[0, where].double() / t.config.temperature).log_softmax(-1), new


def near(got, want, tolerance=2e-5):
    torch.testing.assert_close(
        torch.as_tensor(got).double(), torch.as_tensor(want).double(), rtol=tolerance, atol=tolerance
    )


# ---------------------------------------------------------------- the rollout, row by row


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@torch.no_grad()
def test_every_number_of_a_rollout_is_that_of_the_row_alone(family, temperature):
    t = trainer(family=family, temperature=temperature, micro_batch_size=4)
    r = t.rollout(PROMPTS)
    assert len(set(lengths(r))) > 1, "rows must end at different steps"
    for i, n in enumerate(lengths(r)):
        ours, new = log_softmax_alone(t.policy.lm, t, r, i)
        theirs, _ = log_softmax_alone(t.reference, t, r, i)
        step = torch.arange(n)
        near(r.logp[i, :n], ours[step, new])
        near(r.logp_ref[i, :n], theirs[step, new])
        near(r.kl_exact[i, :n], (ours.exp() * (ours - theirs)).sum(1))
        near(r.entropy[i, :n], -(ours.exp() * ours).sum(1))
        ids, _, where = alone(t, r, i)
        near(r.values[i, :n], t.policy.value_head(t.policy.lm.hidden(ids))[0, where, 0])
        near(r.kl[i], (ours - theirs)[step, new].sum())
        for blank in (r.logp, r.logp_ref, r.logp_gap, r.kl_exact, r.entropy, r.values):
            assert not blank[i, n:].any()
    assert r.kl_exact[r.action].min() > 1e-4, "policy and reference must differ here"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7}, {"temperature": 1.6, "micro_batch_size": 2}, {"train_layers": 1}]
)
def test_the_first_ratio_is_one_against_the_sampling_logprobs(family, options):
    lm = random_lm(family, seed=1, spread=0.3)
    metrics = trainer(lm=lm, reference=copy.deepcopy(lm), family=family, **options).step(PROMPTS)
    assert metrics["ratio_max"] == pytest.approx(1, abs=1e-5)
    assert metrics["approx_kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["clip_fraction"] == 0
    assert metrics["kl_k1"] == pytest.approx(0, abs=1e-4) and metrics["kl_exact"] == pytest.approx(0, abs=1e-5)


def test_the_gap_between_sampled_and_scored_log_probs_is_logged():
    t = trainer(micro_batch_size=2)
    assert t.step(PROMPTS)["logp_gap"] < 1e-5, "one path for both, but for rounding"
    told = {(0, 0): 0.25, (3, 1): -0.5}  # what the sampler says too much: (row, token)

    def careless(*args, **options):
        completions = generate(*args, **options)
        for (i, j), error in told.items():
            completions[i].logprobs[j] += error
        return completions

    t = trainer(micro_batch_size=2, sampler=careless)
    assert t.step(PROMPTS)["logp_gap"] == pytest.approx(0.5, abs=1e-5)
    gap = t.last_rollout.logp_gap
    for (i, j), error in told.items():
        assert gap[i, j] == pytest.approx(abs(error), abs=1e-5)
        gap[i, j] = 0.0
    assert gap.max() < 1e-5


def test_later_ratios_leave_one():
    assert trainer(ppo_epochs=3, lr=5e-3).step(PROMPTS)["ratio_max"] > 1.01


def test_longer_companions_change_nothing():
    """Left padding by a longer prompt, right padding by a longer completion: each row's loss stays what it was."""
    t = trainer()
    r = rolled(t)
    every = torch.arange(len(PROMPTS))
    whole, parts = t.loss(r.rows(every))
    single = [t.loss(r.rows(every[i : i + 1])) for i in range(len(PROMPTS))]
    near(whole.detach(), sum(loss.detach() for loss, _ in single), 1e-4)
    for name in ("policy_loss", "value_loss", "approx_kl"):
        near(parts[name], math.fsum(p[name] for _, p in single), 1e-4)
    padded = widened(r, before=3, after=4, fill=7)
    near(t.loss(padded)[0].detach(), whole.detach(), 1e-4)
    assert {k: pytest.approx(v, abs=1e-4) for k, v in t.loss(padded)[1].items()} == parts


def widened(r: Rollout, before: int, after: int, fill: int) -> Rollout:
    """The rollout with more padding columns on both sides, holding arbitrary tokens and numbers."""
    pad = torch.nn.functional.pad
    right = {
        n: pad(getattr(r, n), (0, after), value=float(fill))
        for n in ("logp", "logp_ref", "logp_gap", "values", "kl_exact", "entropy", "advantages", "returns")
    }
    return replace(
        r,
        features=pad(r.features, (before, after), value=fill),
        mask=pad(r.mask, (before, after)),
        tokens=pad(r.tokens, (0, after), value=fill),
        action=pad(r.action, (0, after)),
        **right,
    )


def test_metrics_are_over_sampled_tokens_only():
    t = trainer()
    r = rolled(t)
    clock = (0.0, 1.0, 2.0, 3.0)
    plain, padded = (t.describe(x, {}, clock) for x in (r, widened(r, before=2, after=5, fill=9)))
    assert padded == {k: pytest.approx(v, rel=1e-5, abs=1e-6) for k, v in plain.items()}
    each = [log_softmax_alone(t.policy.lm, t, r, i)[0] for i in range(len(PROMPTS))]
    entropy = torch.cat([-(p.exp() * p).sum(1) for p in each])
    assert plain["entropy"] == pytest.approx(entropy.mean().item(), rel=1e-4)
    assert plain["completion_length"] == pytest.approx(sum(lengths(r)) / len(PROMPTS))
    assert plain["kl_k1"] == pytest.approx(r.kl.mean().item())


def test_rows_cuts_the_columns_that_are_padding_in_all_of_them():
    mask = torch.tensor([[0, 0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]]).bool()  # P = 3, T = 4
    numbers = torch.arange(12.0).view(3, 4)
    r = Rollout(
        prompts=["x", "y", "z"],
        completions=["", "", ""],
        finished=torch.ones(3).bool(),
        features=torch.arange(21).view(3, 7),
        mask=mask,
        tokens=numbers.long(),
        action=mask[:, 3:],
        logp=numbers,
        logp_ref=numbers + 100,
        logp_gap=numbers + 700,
        values=numbers + 200,
        kl_exact=numbers + 300,
        entropy=numbers + 400,
        advantages=numbers + 500,
        advantage_std=0.5,
        returns=numbers + 600,
    )
    part = r.rows(torch.tensor([0, 1]))
    assert part.features.tolist() == [[1, 2, 3, 4], [8, 9, 10, 11]]  # one leading and two trailing columns gone
    assert part.mask.tolist() == [[False, True, True, True], [True] * 4]
    assert part.tokens.tolist() == [[0, 1], [4, 5]] and part.action.tolist() == [[True] * 2] * 2
    assert part.logp.tolist() == [[0, 1], [4, 5]] and part.values.tolist() == [[200, 201], [204, 205]]
    assert part.advantages.tolist() == [[500, 501], [504, 505]] and part.returns.tolist() == [[600, 601], [604, 605]]
    assert part.logp_gap.tolist() == [[700, 701], [704, 705]] and part.advantage_std == 0.5 and part.scores is None
    assert r.rows(torch.tensor([0])).features.tolist() == [[2, 3, 4]]
    assert r.rows(torch.tensor([2])).features.tolist() == [list(range(14, 21))]  # a full row keeps all


def test_a_long_prompt_is_not_cut_to_the_completion():
    seen = []
    t = trainer(lambda xs, ys: seen.append(xs) or torch.zeros(len(xs)), max_new_tokens=2)
    prompts = ["abcdefghabcdefghabcdefgh", "h"]
    r = t.rollout(prompts)
    t.scores(r)
    assert seen == [prompts]
    assert r.features[0, : r.mask.shape[1] - r.action.shape[1]].tolist() == [1, *t.tokenizer.encode(prompts[0]), 2]
    changed = t.policy(r.features.clone().index_fill_(1, torch.tensor([1]), 11), r.mask, r.action)[0]
    assert (changed[0] - t.policy(r.features, r.mask, r.action)[0][0]).abs().max() > 1e-3, "the first letter must count"


# ---------------------------------------------------------------- EOS, scores, rewards


@pytest.mark.parametrize(
    "tokenizer", [Letters(), Letters(pad_id=3), Letters(pad_id=11, eos_id=11)], ids=["own", "pad-is-eos", "custom"]
)
def test_eos_is_a_sampled_token_and_carries_the_score(tokenizer):
    t = trainer(tokenizer=tokenizer, max_new_tokens=8, kl_coef=0.0)
    r = rolled(t, PROMPTS * 3)
    eos = tokenizer.eos_id
    assert 3 < int(r.finished.sum()) < len(r.prompts), "some rows must end, some be truncated"
    rewards = t.assemble_rewards(r)
    for i, row in enumerate(r.tokens.tolist()):
        on = r.action[i].tolist()
        n = row.index(eos) + 1 if r.finished[i] else 8
        assert on == [True] * n + [False] * (len(row) - n)
        assert (row[n - 1] == eos) == bool(r.finished[i]) and eos not in row[: n - 1]
        paid = r.scores[i].item() - t.config.missing_eos_penalty * (not r.finished[i])
        assert rewards[i].tolist() == [0.0] * (n - 1) + [pytest.approx(paid)] + [0.0] * (len(row) - n)
        assert r.completions[i] == tokenizer.decode(row[:n])
        assert r.logp[i, n - 1] < 0, "the EOS is an action, with a log-probability"


@pytest.mark.parametrize("ends", [(11,), (11, 3)])
def test_the_missing_eos_penalty_knows_a_custom_stop_token(ends):
    # after <assistant> (2): stop with "h" (11), or "a" for ever, or the usual <|end|> (3), which may be any token here
    tokenizer = Letters(eos_id=11)
    tokenizer.end_ids = ends
    lm = lookup_lm({2: {11: 1 / 3, 4: 1 / 3, 3: 1 / 3}, 4: {4: 1.0}, 3: {4: 1.0}})
    t = PPOTrainer(
        lm,
        copy.deepcopy(lm),
        tokenizer,
        lambda xs, ys: torch.full((len(xs),), 5.0),
        replace(SMALL, missing_eos_penalty=2.5, max_new_tokens=3),
        torch.Generator().manual_seed(0),
    )
    t.kl_coef = 0.0
    r = t.rollout(["b"] * 30)
    r.scores = t.scores(r)
    want = [5.0 if row[0] in ends else 2.5 for row in r.tokens.tolist()]
    assert [int(n) for n in r.action.sum(1)] == [1 if row[0] in ends else 3 for row in r.tokens.tolist()]
    assert t.assemble_rewards(r).sum(1).tolist() == want and set(want) == {5.0, 2.5}
    assert set(r.scores.tolist()) == {5.0}, "the penalty is no part of the score"
    assert {row[0] for row in r.tokens.tolist()} == {3, 4, 11}
    assert t.describe(replace(rolled(t, ["b"] * 30)), {}, (0, 1, 2, 3))["missing_eos"] > 0


@torch.no_grad()
def test_rewards_of_a_row_sum_to_its_score_minus_lambda_times_its_log_ratio():
    t = trainer(kl_coef=0.7, temperature=1.3)
    r = t.rollout(PROMPTS)
    r.scores = t.scores(r)
    total = t.assemble_rewards(r).sum(1)
    for i, n in enumerate(lengths(r)):
        ours, new = log_softmax_alone(t.policy.lm, t, r, i)
        theirs, _ = log_softmax_alone(t.reference, t, r, i)
        ratio = (ours - theirs)[torch.arange(n), new].sum()
        score = len(r.completions[i]) - 2.0 * r.completions[i].count("a") - (0.0 if r.finished[i] else 1.0)
        near(total[i], score - 0.7 * ratio, 1e-4)


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (lambda xs, ys: torch.zeros(len(xs), 1), ValueError, "shape"),
        (lambda xs, ys: torch.zeros(1), ValueError, "shape"),
        (lambda xs, ys: torch.zeros(()), ValueError, "shape"),
        (lambda xs, ys: torch.tensor([0.0] * (len(xs) - 1) + [math.nan]), FloatingPointError, "not finite"),
        (lambda xs, ys: torch.tensor([math.inf] + [0.0] * (len(xs) - 1)), FloatingPointError, "not finite"),
    ],
)
def test_a_bad_score_stops_the_round_before_any_weight_moves(bad, error, words):
    t = trainer(bad)
    before = checksum(t.policy)
    with pytest.raises(error, match=words):
        t.step(PROMPTS)
    assert checksum(t.policy) == before


@pytest.mark.parametrize("kind", ["list", "integers", "double"])
def test_a_plain_python_callable_is_a_score(kind):
    make = {
        "list": lambda ys: [float(len(y)) for y in ys],
        "integers": lambda ys: [len(y) for y in ys],
        "double": lambda ys: torch.tensor([len(y) for y in ys], dtype=torch.float64),
    }[kind]
    t = trainer(lambda xs, ys: make(ys), missing_eos_penalty=0.0)
    assert t.step(PROMPTS)["score_mean"] == pytest.approx(sum(map(len, t.last_rollout.completions)) / len(PROMPTS))


# ---------------------------------------------------------------- the update


def gradients(t: PPOTrainer, r: Rollout, monkeypatch) -> list[torch.Tensor]:
    """What `update` hands to its one optimiser step."""
    seen: list[torch.Tensor] = []

    def record(optimizer, parameters, grad_clip, lr):
        seen.extend(torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters)
        return 0.0

    monkeypatch.setattr(ppo, "optimizer_step", record)
    t.update(r)
    return seen


@pytest.mark.parametrize("train_layers", [0, 1])
@pytest.mark.parametrize("micro_batch", [2, 128])
def test_the_gradient_is_that_of_the_rows_one_by_one(monkeypatch, micro_batch, train_layers):
    """At ratio 1 the objective is A log pi and the squared value error, a mean over all tokens of the minibatch."""
    lm = random_lm(seed=1, spread=0.3)
    t = trainer(lm=lm, reference=copy.deepcopy(lm), micro_batch_size=micro_batch, train_layers=train_layers)
    r = rolled(t)
    got = gradients(t, r, monkeypatch)
    for p in t.parameters:
        p.grad = None
    total = torch.zeros((), dtype=torch.float64)
    for i, n in enumerate(lengths(r)):
        logp, new = log_softmax_alone(t.policy.lm, t, r, i)
        ids, _, where = alone(t, r, i)
        values = t.policy.value_head(t.policy.lm.hidden(ids))[0, where, 0]
        total = total - (r.advantages[i, :n] * logp[torch.arange(n), new]).sum()
        total = total + t.config.vf_coef * ((values - r.returns[i, :n]) ** 2).sum() / 2
    (total / sum(lengths(r))).backward()
    assert len(got) == len(t.parameters) and max(g.abs().max() for g in got) > 1e-3
    for mine, p in zip(got, t.parameters):
        near(mine, p.grad, 1e-4)


def test_a_batch_holds_each_prompt_k_times_side_by_side():
    lm = random_lm(seed=1)
    t = trainer(lm=lm, reference=copy.deepcopy(lm), rewrites_per_request=3, batch_size=12, iterations=1)
    train_ppo(t, PROMPTS)
    asked = t.last_rollout.prompts
    assert len(asked) == 12 and all(asked[i] == asked[i - i % 3] for i in range(12)) and len(set(asked)) > 1
    assert len({tuple(row) for row in t.last_rollout.tokens.tolist()}) > len(set(asked)), "completions of their own"
    for wrong in (PROMPTS[:2], ["a", "a", "b"], ["a", "b", "b"]):
        with pytest.raises(UserError, match="rewrites_per_request is 3: give each prompt 3 times"):
            t.step(wrong)


def test_the_adapted_coefficient_is_the_one_that_is_paid():
    paid = {}
    for coef in (0.0, 0.9):
        t = trainer(kl_coef=0.1)
        t.kl_coef = coef  # as the controller leaves it; config.kl_coef is where it started
        r = rolled(t)
        paid[coef] = -t.assemble_rewards(r).sum().item()
        price = 0.9 * (rl_math.kl_estimate(r.logp, r.logp_ref) * r.action).sum().item()
    assert paid[0.9] - paid[0.0] == pytest.approx(price, rel=1e-4) and abs(price) > 0.01


def test_the_loss_is_a_function_of_its_arguments():
    """Another rollout in between, of another spread and with another coefficient, changes nothing."""
    t = trainer()
    r = rolled(t)
    before = t.loss(r)
    other = rolled(t, PROMPTS[::-1])
    assert other.advantage_std != r.advantage_std
    t.update(other)
    t.policy.load_state_dict(trainer().policy.state_dict())
    t.kl_coef = 7.0
    t.lr = 1e-9
    after = t.loss(r)
    assert torch.equal(before[0], after[0]) and before[1] == after[1]


def test_advantages_are_whitened_over_the_tokens_but_returns_are_not():
    t = trainer()
    r = rolled(t)
    near(r.advantages[r.action].mean(), 0.0)
    near(r.advantages[r.action].std(unbiased=False), 1.0, 1e-4)
    raw = trainer(whiten_advantages=False)
    same = rolled(raw)
    near(same.returns[same.action], same.advantages[same.action] + same.values[same.action])
    near(r.returns, same.returns)
    assert r.advantage_std == pytest.approx(same.advantages[same.action].std(unbiased=False).item(), rel=1e-4)
    assert abs(r.advantage_std - 1) > 0.1


@pytest.mark.parametrize("grad_clip", [0.05, 1e6])
def test_the_gradient_is_clipped_to_the_promised_norm(grad_clip):
    """With plain gradient descent at rate 1 the weights move by the clipped gradient itself."""
    t = trainer(lambda xs, ys: 100.0 * length_score(xs, ys), max_grad_norm=grad_clip)
    t.optimizer, t.lr = torch.optim.SGD(t.parameters, lr=1.0), 1.0
    before = [p.detach().clone() for p in t.parameters]
    norm = t.step(PROMPTS)["grad_norm"]
    moved = math.sqrt(sum(((p.detach() - b).double() ** 2).sum().item() for p, b in zip(t.parameters, before)))
    assert norm > 1.0, "the gradient must be longer than the norm it is clipped to"
    assert moved == pytest.approx(min(grad_clip, norm), rel=1e-3)


def test_only_the_top_block_the_last_norm_and_the_value_head_train():
    base = random_lm(n_layers=3, seed=1, spread=0.3)
    rounds = []
    for train_layers in (1, 0):
        t = trainer(lm=copy.deepcopy(base), reference=copy.deepcopy(base), train_layers=train_layers)
        r = rolled(t)
        rounds.append((t, r, t.loss(r.rows(torch.arange(len(PROMPTS))))))
    (top, r, (loss, parts)), (_, everything, (full_loss, full_parts)) = rounds
    assert r.tokens.tolist() == everything.tokens.tolist()
    near(loss.detach(), full_loss.detach(), 1e-4)
    assert parts == {k: pytest.approx(v, abs=1e-4) for k, v in full_parts.items()}
    before = {k: v.clone() for k, v in top.policy.state_dict().items()}
    top.update(r)
    after = top.policy.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {k for k in before if k.startswith(("lm.blocks.2.", "lm.norm.", "value_head."))}


def test_a_copy_of_a_frozen_model_trains_and_the_reference_does_not():
    frozen = random_lm().requires_grad_(False)
    before = checksum(frozen)
    t = trainer(lm=copy.deepcopy(frozen), reference=frozen)
    start = {k: v.clone() for k, v in t.policy.state_dict().items()}
    t.step(PROMPTS)
    assert all(not torch.equal(v, start[k]) for k, v in t.policy.state_dict().items())
    assert checksum(frozen) == before and not any(p.requires_grad for p in frozen.parameters())
    held = {id(p) for group in t.optimizer.param_groups for p in group["params"]}
    assert not held & {id(p) for p in frozen.parameters()}
    assert all(p.grad is None for p in frozen.parameters())


def test_more_top_layers_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="train_layers is 5"):
        trainer(train_layers=5)


# ---------------------------------------------------------------- the KL controller


@pytest.mark.parametrize(("target", "factor"), [(0.01, 1 + 0.2 * 6 / 60), (50.0, 1 - 0.2 * 6 / 60), (0.0, 1.0)])
def test_the_controller_is_fed_the_kl_to_the_reference(target, factor):
    """The policy is far from the reference and takes no step: old-vs-new KL is 0, the KL to the reference is not."""
    t = trainer(lr=1e-12, adaptive_kl_target=target, adaptive_kl_horizon=60.0, kl_coef=0.3)
    metrics = t.step(PROMPTS)
    assert abs(metrics["approx_kl"]) < 1e-6 and 0.1 < metrics["kl_k1"] < 40
    assert metrics["kl_coef"] == 0.3, "the iteration is reported with the coefficient that it used"
    assert t.kl_coef == pytest.approx(0.3 * factor)
    penalty = t.config.missing_eos_penalty * metrics["missing_eos"]
    assert metrics["reward_mean"] == pytest.approx(metrics["score_mean"] - penalty - 0.3 * metrics["kl_k1"], rel=1e-5)


# ---------------------------------------------------------------- whole runs


def fresh_lm(n_layers: int = 1) -> Transformer:
    return Transformer(
        TransformerConfig(12, d_model=16, n_layers=n_layers, n_heads=2, max_len=16), torch.Generator().manual_seed(0)
    )


def test_ppo_learns_to_write_the_rewarded_letter_first():
    """The reward depends on the prompt: copy its letter. Chance is about 1 in 12."""
    lm = fresh_lm()
    stage = FakeStage()
    t = PPOTrainer(
        lm,
        copy.deepcopy(lm),
        Letters(),
        lambda xs, ys: [float(y[:1] == x) for x, y in zip(xs, ys)],
        PPOConfig(iterations=20, batch_size=64, max_new_tokens=2, lr=1e-2, kl_coef=0.01, missing_eos_penalty=0.0),
        torch.Generator().manual_seed(0),
    )
    trained = train_ppo(t, ["a", "b"], stage)
    means = [row["score_mean"] for row in stage.rows]
    assert means[0] < 0.3 and sum(means[-3:]) / 3 > 0.85, means
    assert stage.rows[-1]["kl_exact"] > 0.5 > stage.rows[0]["kl_exact"] and not trained.training
    assert stage.rows[0]["lr"] == pytest.approx(1e-2 / 5) and stage.rows[-1]["lr"] == pytest.approx(1e-2 / 20)


@pytest.mark.parametrize(
    ("warmup", "want"),
    [(0.0, [1, 0.8, 0.6, 0.4, 0.2]), (0.4, [1 / 3, 2 / 3 * 0.8, 0.6, 0.4, 0.2])],
    ids=["no-warm-up", "warm-up"],
)
def test_learning_rate_by_hand(warmup, want):
    config = PPOConfig(iterations=5, lr=2.0, warmup_ratio=warmup)
    assert [learning_rate(config, step) for step in range(5)] == pytest.approx([2 * share for share in want])


@pytest.mark.parametrize(("start", "want"), [(4.0, [0.8, 0.6, 0.4, 0.2]), (1.0, [0.2] * 4)])
def test_kl_schedule_by_hand(start, want):
    config = PPOConfig(iterations=4, kl_coef=0.2, kl_start=start)
    assert [kl_schedule(config, step) for step in range(4)] == pytest.approx(want)


def test_training_follows_the_schedule_unless_a_kl_target_leads():
    for target, want in ((0.0, [0.4, 0.3, 0.2, 0.1]), (5.0, [0.1])):
        stage = FakeStage()
        t = trainer(iterations=4, kl_coef=0.1, kl_start=4.0, adaptive_kl_target=target, lr=1e-12)
        train_ppo(t, PROMPTS, stage)
        assert [row["kl_coef"] for row in stage.rows][: len(want)] == pytest.approx(want)


def test_a_high_price_on_kl_holds_the_policy_at_the_reference():
    lm, ends = fresh_lm(), []
    for kl_coef in (0.0, 5.0):
        stage = FakeStage()
        t = PPOTrainer(
            copy.deepcopy(lm),
            lm,
            Letters(),
            lambda xs, ys: [float("a" in y) for y in ys],
            PPOConfig(iterations=12, batch_size=64, max_new_tokens=2, lr=5e-3, kl_coef=kl_coef),
            torch.Generator().manual_seed(0),
        )
        train_ppo(t, ["c"], stage)
        ends.append(stage.rows[-1]["kl_exact"])
    assert ends[0] > 5 * ends[1]


@pytest.mark.parametrize("train_layers", [0, 1])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, capsys, train_layers):
    class Seldom(RunStage):
        """Keeps every second state, however long writing took: the log is then ahead of the state."""

        def save(self, step, *things, **meta):
            if step % 2 == 0:
                self._next_save = 0.0
                super().save(step, *things, **meta)

    def go(
        name: str, resume: bool = False, kill_at: int = 0, seed: int = 3
    ) -> tuple[PPOTrainer, list[dict], list[dict]]:
        run = Run(RunConfig(out=str(tmp_path), name=name), resume)
        lm = fresh_lm(n_layers=2)
        config = PPOConfig(
            iterations=7,
            train_layers=train_layers,
            batch_size=8,
            num_minibatches=2,
            max_new_tokens=4,
            lr=1e-2,
            adaptive_kl_target=0.5,
            adaptive_kl_horizon=50.0,
        )
        t = PPOTrainer(lm, copy.deepcopy(lm), Letters(), length_score, config, torch.Generator().manual_seed(seed))
        calls = []

        def watch(_):
            calls.append(1)
            if len(calls) == kill_at:
                raise KeyboardInterrupt
            return {}, [{"x": "x", "x_prime": "", "y": "y", "reward": 0.0, "kl": 0.0}]

        train_ppo(t, ["a", "bc", "def", "gh", "cc"], Seldom(run, "ppo"), watch, show_every=3)
        return t, run.rows("metrics.jsonl"), run.rows("samples.jsonl")

    whole, rows, samples = go("whole")
    with pytest.raises(KeyboardInterrupt):
        go("cut", kill_at=6)  # in iteration 6; the last state saved is that after iteration 4
    resumed, again, shown = go("cut", resume=True, seed=99)  # the saved state, not the seed, sets the generator
    assert checksum(resumed.policy) == checksum(whole.policy)
    assert resumed.kl_coef == whole.kl_coef != 0.1
    drop = lambda rows: [{k: v for k, v in row.items() if not k.endswith("_s")} for row in rows]  # noqa: E731  seconds differ
    assert drop(again) == drop(rows) and [row["step"] for row in again] == [1, 2, 3, 4, 5, 6, 7]
    assert shown == samples
    assert len({row["kl_coef"] for row in again}) > 3, "the controller must have moved"
    capsys.readouterr()


def test_without_a_generator_the_global_one_draws_and_is_saved(tmp_path, capsys):
    def go(name: str) -> list[float]:
        torch.manual_seed(5)
        lm = fresh_lm()
        t = PPOTrainer(lm, copy.deepcopy(lm), Letters(), length_score, replace(SMALL, iterations=2))
        run = Run(RunConfig(out=str(tmp_path), name=name))
        train_ppo(t, ["a", "bc"], RunStage(run, "ppo"))
        return [row["score_mean"] for row in run.rows("metrics.jsonl")]

    assert go("one") == go("other")
    capsys.readouterr()


@pytest.mark.parametrize("variant", ["rloo", "rlo"])
def test_another_trainers_variant_is_refused(variant):
    with pytest.raises(UserError, match=f"variant is {variant}, but this trainer is PPOTrainer"):
        trainer(variant=variant)


def test_one_model_as_policy_and_reference_and_no_prompts_are_refused():
    lm = fresh_lm()
    with pytest.raises(UserError, match="give copy.deepcopy"):
        PPOTrainer(lm, lm, Letters(), length_score, SMALL)
    with pytest.raises(UserError, match="no prompts"):
        train_ppo(trainer(), [])
