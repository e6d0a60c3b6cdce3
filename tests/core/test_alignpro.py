"""Align-Pro's own part: what is sent, what is rated, what is averaged; and that the frozen LM does not change."""

import copy
from dataclasses import replace

import pytest
import torch
from doubles import FakeStage, Letters, lookup_lm, random_lm

from alignpro_mini.alignpro import Prompter, PromptScore, train_align_pro, train_rlhf_oracle, usable_rewrites
from alignpro_mini.frozen import Answer, FrozenLM, SamplingConfig, checksum
from alignpro_mini.generation import generate
from alignpro_mini.options import UserError
from alignpro_mini.ppo import PPOConfig, PPOTrainer
from alignpro_mini.transformer import Transformer, TransformerConfig

SMALL = PPOConfig(iterations=2, batch_size=6, max_new_tokens=3, lr=1e-2)


class FakeFrozen:
    """Answers "<prompt>#<how many were asked before>"; prompts of more than five letters do not fit."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.generators: list = []

    def fits(self, prompt: str) -> bool:
        return len(prompt) <= 5

    def answer(self, prompts, generator=None) -> list[Answer]:
        self.generators.append(generator)
        before = len(self.asked)
        self.asked += prompts
        return [Answer(f"{p}#{before + i}", False) for i, p in enumerate(prompts)]


class FakeReward:
    """Rewards 1, 10, 100, ... in the order of the calls' rows; records what it was given."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def __call__(self, prompts, completions) -> torch.Tensor:
        self.seen += zip(prompts, completions, strict=True)
        return torch.tensor([10.0**i for i in range(len(prompts))])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- the score of a rewrite


def test_the_reward_sees_the_request_and_the_frozen_lm_the_rewrite():
    frozen, reward, generator = FakeFrozen(), FakeReward(), rng()
    score = PromptScore(frozen, reward, generator)
    got = score(["x1", "x2"], ["new1", "new2"])
    assert frozen.asked == ["new1", "new2"] and frozen.generators == [generator]
    assert reward.seen == [("x1", "new1#0"), ("x2", "new2#1")], "r(x, y) of the original x, never of x'"
    assert got.tolist() == [1.0, 10.0] and score.fallbacks == 0


def test_m_answers_are_averaged_for_each_request():
    frozen, reward = FakeFrozen(), FakeReward()
    score = PromptScore(frozen, reward, rng(), answers=3)
    got = score(["x1", "x2"], ["a", "b"])
    assert frozen.asked == ["a", "a", "a", "b", "b", "b"]
    assert [x for x, _ in reward.seen] == ["x1"] * 3 + ["x2"] * 3
    assert got.tolist() == pytest.approx([111 / 3, 111_000 / 3])
    assert score.r.tolist() == [[1, 10, 100], [1000, 10_000, 100_000]] and score.x_prime == ["a", "b"]
    assert [a.text for a in score.y] == [f"{p}#{i}" for i, p in enumerate("aaabbb")]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0, 2.0], r"shape \(2,\); one per answer is \(4,\)"),
        (torch.ones(2, 2), r"shape \(2, 2\); one"),  # request by request, or draw by draw? nobody can tell
        (3.0, r"shape \(\); one"),
    ],
)
def test_a_reward_that_is_not_one_number_for_each_answer_is_named(returned, said):
    score = PromptScore(FakeFrozen(), lambda prompts, completions: returned, rng(), answers=2)
    with pytest.raises(UserError, match=f"the reward returned .*{said}"):
        score(["x1", "x2"], ["a", "b"])


def test_an_empty_or_too_long_rewrite_falls_back_to_the_request_and_is_counted():
    frozen, reward = FakeFrozen(), FakeReward()
    score = PromptScore(frozen, reward, rng())
    score(["x1", "x2", "x3", "x4"], ["", " \n\t", "short", "much too long"])
    assert frozen.asked == ["x1", "x2", "short", "x4"] == score.x_prime
    assert [x for x, _ in reward.seen] == ["x1", "x2", "x3", "x4"]
    assert score.fallbacks == 3
    score(["x1"], ["fine"])
    assert score.fallbacks == 0, "the count is that of the last call"
    assert usable_rewrites(["x"], ["x"], frozen.fits) == (["x"], 0)  # a rewrite that says the same is not empty
    with pytest.raises(ValueError):
        usable_rewrites(["x", "y"], ["a"], frozen.fits)


@pytest.mark.parametrize("answers", [1, 3])
def test_the_metrics_of_a_score_are_those_of_the_last_call(answers):
    class Counted(FakeFrozen):
        def answer(self, prompts, generator=None):
            return [Answer(p, False, [7] * (2 * len(p))) for p in prompts]

    score = PromptScore(Counted(), lambda xs, ys: [0.0] * len(xs), rng(), answers)
    score(["x"], [""])
    score(["x1", "x2", "x3", "x4"], ["", "abc", "much too long", "abcde"])
    assert score.metrics() == {"fallback_rate": 0.5, "answer_length": 2 * (2 + 3 + 2 + 5) / 4}
    score = PromptScore(FakeFrozen(), lambda xs, ys: [0.0] * len(xs), rng(), answers)
    score(["x1"], ["abc"])
    assert score.metrics() == {"fallback_rate": 0.0, "answer_length": None}, "a model that returns text only"


# ---------------------------------------------------------------- training


def letter_b(prompts, completions) -> torch.Tensor:
    """Asserts that only original requests come in; rewards answers that contain a b."""
    assert set(prompts) <= {"a", "cd"}
    return torch.tensor([float("b" in y) for y in completions])


def trainer_of(reference: Transformer, score, config: PPOConfig = SMALL) -> PPOTrainer:
    """A trainer of a copy of the reference."""
    return PPOTrainer(copy.deepcopy(reference), reference, Letters(), score, config, rng())


def pi_f() -> FrozenLM:
    return FrozenLM(random_lm(seed=3).train().requires_grad_(True), Letters(), SamplingConfig(max_new_tokens=4))


def test_training_the_prompter_leaves_the_frozen_lm_and_rho_sft_alone(monkeypatch):
    frozen, rho_sft, stage = pi_f(), random_lm(seed=4), FakeStage()
    before = checksum(frozen.model), checksum(rho_sft)
    answered, answer = [], frozen.answer
    monkeypatch.setattr(frozen, "answer", lambda prompts, g: (answered.append(len(prompts)), answer(prompts, g))[1])
    score = PromptScore(frozen, letter_b, rng(1), answers=2)
    trainer = trainer_of(rho_sft, score)
    held = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    rho = train_align_pro(trainer, ["a", "cd"], stage)
    assert rho is trainer.policy.lm and not rho.training
    assert (checksum(frozen.model), checksum(rho_sft)) == before != (checksum(frozen.model), checksum(rho))
    frozen.assert_unchanged("ppo")
    assert all(p.grad is None and not p.requires_grad for p in frozen.model.parameters())
    assert held and not {p.data_ptr() for p in held} & {p.data_ptr() for p in frozen.model.parameters()}
    assert answered == [SMALL.batch_size * score.answers] * SMALL.iterations
    assert [row["step"] for row in stage.rows] == [1, 2]
    assert {"fallback_rate", "answer_length", "kl_exact", "score_mean"} <= stage.rows[0].keys()
    assert "gold_mean" not in stage.rows[0]
    last = stage.shown[-SMALL.batch_size :]
    assert [list(row) for row in last] == [["x", "x_prime", "y", "reward", "kl"]] * SMALL.batch_size
    rollout = trainer.last_rollout
    for i, row in enumerate(last):  # the first of each rewrite's two answers
        assert (row["x"], row["x_prime"], row["y"]) == (rollout.prompts[i], score.x_prime[i], score.y[2 * i].text)
        assert (row["reward"], row["kl"]) == (score.r[i, 0].item(), rollout.kl[i].item())
    assert {row["x"] for row in stage.shown} <= {"a", "cd"}


def test_the_gold_reward_is_logged_and_not_trained_on():
    def gold(requests, answers):
        asked.append((list(requests), list(answers)))
        return [float(i) for i in range(len(answers))]

    weights, asked = [], []
    for known in (None, gold):
        stage = FakeStage()
        score = PromptScore(pi_f(), letter_b, rng(1), answers=2)
        weights.append(checksum(train_align_pro(trainer_of(random_lm(seed=4), score), ["a", "cd"], stage, known)))
        assert [row.get("gold_mean") for row in stage.rows] == [None if known is None else 5.5] * 2
    assert weights[0] == weights[1]
    assert asked[-1] == (score.x, [answer.text for answer in score.y])


def test_at_most_eight_samples_are_logged():
    config = replace(SMALL, iterations=1, batch_size=12)
    for train, score in ((train_align_pro, PromptScore(pi_f(), letter_b, rng())), (train_rlhf_oracle, letter_b)):
        stage = FakeStage()
        train(trainer_of(random_lm(seed=4), score, config), ["a", "cd"], stage)
        assert len(stage.shown) == 8


def test_the_oracle_trains_a_copy_of_the_lm():
    frozen, stage = pi_f(), FakeStage()
    trainer = trainer_of(frozen.model, letter_b)
    trained = train_rlhf_oracle(trainer, ["a", "cd"], stage, gold=lambda xs, ys: [2.0] * len(xs))
    frozen.assert_unchanged("oracle")
    assert all(p.grad is None for p in frozen.model.parameters())
    start, end = frozen.model.state_dict(), trained.state_dict()
    assert all(not torch.equal(start[k], end[k]) for k in start), "a copy of a frozen model must be made trainable"
    assert stage.rows[-1]["gold_mean"] == 2.0
    rollout = trainer.last_rollout
    rows = zip(rollout.prompts, [""] * 6, rollout.completions, rollout.scores.tolist(), rollout.kl.tolist())
    assert [tuple(row.values()) for row in stage.shown[-6:]] == list(rows)


def test_the_prompter_learns_what_makes_the_frozen_lm_earn_a_reward():
    """The frozen LM answers with its prompt's last letter: b if, and only if, the prompt ends in b."""

    class Echo(FrozenLM):
        def answer(self, prompts, generator=None):
            return [Answer(p[-1], False) for p in prompts]

    frozen = Echo(lookup_lm({}), Letters(), SamplingConfig(max_new_tokens=2))
    shape = TransformerConfig(12, d_model=16, n_layers=1, n_heads=2, max_len=16)
    rho_sft, stage = Transformer(shape, rng()), FakeStage()
    config = replace(SMALL, iterations=20, batch_size=64, missing_eos_penalty=0.0, kl_coef=0.02)
    rho = train_align_pro(trainer_of(rho_sft, PromptScore(frozen, letter_b), config), ["a", "cd"], stage)
    means = [row["score_mean"] for row in stage.rows]
    assert means[0] < 0.3 and sum(means[-3:]) / 3 > 0.85, means
    rewrites = Prompter(rho, Letters(), 3).rewrite(["a"] * 20, rng())
    assert sum(x_prime.endswith("b") for x_prime in rewrites) > 15


def test_a_prompter_rewrites_texts_with_its_own_settings():
    model = lookup_lm({2: {6: 0.9, 7: 0.1}, 6: {7: 0.5, 3: 0.5}, 7: {3: 1.0}})
    greedy = Prompter(lookup_lm({2: {6: 0.9, 7: 0.1}, 6: {7: 0.6, 3: 0.4}, 7: {7: 1.0}}), Letters(), 3, temperature=0.0)
    assert greedy.rewrite(["a", "bbb"]) == ["cdd", "cdd"]
    rewrites = Prompter(model, Letters(), 5).rewrite(["a"] * 100, rng())
    assert set(rewrites) == {"c", "cd", "d"}
    assert rewrites == Prompter(model, Letters(), 5).rewrite(["a"] * 100, rng())
    assert [c.finished for c in Prompter(model, Letters(), 5).complete(["a"] * 3, rng())] == [True] * 3


def test_a_prompter_samples_by_the_sampler_that_it_is_given():
    asked = []

    def sampler(*args, **options):
        asked.append((args, options))
        return generate(*args, **options)

    model, generator = random_lm(), rng()
    prompter = Prompter(model, Letters(), 3, 0.7, sampler)
    assert prompter.rewrite(["a", "bb"], generator) == Prompter(model, Letters(), 3, 0.7).rewrite(["a", "bb"], rng())
    options = {"temperature": 0.7, "eos_id": (3,), "generator": generator}
    assert asked == [((model, [[1, 4, 2], [1, 5, 5, 2]], 3), options)]
