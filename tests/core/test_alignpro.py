"""Align-Pro's own part: what is sent, what is rated, what is averaged; and that the frozen LM does not change."""

import copy
from dataclasses import replace

import pytest
import torch
from doubles import FakeStage, Letters, lookup_lm, random_lm

from alignpro_mini import alignpro, guards
from alignpro_mini.alignpro import Prompter, PromptScore, train_align_pro, train_rlhf_oracle, usable_rewrites
from alignpro_mini.frozen import Answer, FrozenLM, SamplingConfig, checksum
from alignpro_mini.options import UserError
from alignpro_mini.ppo import PPOConfig
from alignpro_mini.transformer import Transformer, TransformerConfig

SMALL = PPOConfig(iterations=2, batch_size=6, answers=2, max_new_tokens=3, lr=1e-2)


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


# ---------------------------------------------------------------- training


def letter_b(prompts, completions) -> torch.Tensor:
    """Asserts that only original requests come in; rewards answers that contain a b."""
    assert set(prompts) <= {"a", "cd"}
    return torch.tensor([float("b" in y) for y in completions])


def pi_f() -> FrozenLM:
    return FrozenLM(random_lm(seed=3).train().requires_grad_(True), Letters(), SamplingConfig(max_new_tokens=4))


def test_training_the_prompter_leaves_the_frozen_lm_and_rho_sft_alone(monkeypatch):
    frozen, rho_sft, stage = pi_f(), random_lm(seed=4), FakeStage()
    before = checksum(frozen.model), checksum(rho_sft)
    held: list = []
    answered, answer = [], frozen.answer
    monkeypatch.setattr(frozen, "answer", lambda prompts, g: (answered.append(len(prompts)), answer(prompts, g))[1])

    class Watched(alignpro.PPOTrainer):
        def __init__(self, *args) -> None:
            super().__init__(*args)
            held.extend(p for group in self.optimizer.param_groups for p in group["params"])

    rho = train_align_pro(rho_sft, frozen, letter_b, ["a", "cd"], Letters(), SMALL, stage, rng(), trainer_class=Watched)
    assert (checksum(frozen.model), checksum(rho_sft)) == before != (checksum(frozen.model), checksum(rho))
    frozen.assert_unchanged("ppo")
    assert all(p.grad is None and not p.requires_grad for p in frozen.model.parameters())
    assert held and not {p.data_ptr() for p in held} & {p.data_ptr() for p in frozen.model.parameters()}
    assert answered == [SMALL.batch_size * SMALL.answers] * SMALL.iterations
    assert [row["step"] for row in stage.rows] == [1, 2]
    assert {"fallback_rate", "answer_length", "kl_exact", "score_mean"} <= stage.rows[0].keys()
    assert {row["x"] for row in stage.shown} <= {"a", "cd"} and {"x_prime", "y", "reward", "kl"} <= stage.shown[
        0
    ].keys()


def test_the_oracle_trains_a_copy_of_the_lm():
    frozen, stage = pi_f(), FakeStage()
    trained = train_rlhf_oracle(
        frozen.model, letter_b, ["a", "cd"], Letters(), SMALL, stage, rng(), gold=lambda xs, ys: [2.0] * len(xs)
    )
    frozen.assert_unchanged("oracle")
    assert all(p.grad is None for p in frozen.model.parameters())
    start, end = frozen.model.state_dict(), trained.state_dict()
    assert all(not torch.equal(start[k], end[k]) for k in start), "a copy of a frozen model must be made trainable"
    assert stage.rows[-1]["gold_mean"] == 2.0 and stage.shown[0]["x_prime"] == ""


def test_the_prompter_learns_what_makes_the_frozen_lm_earn_a_reward():
    """The frozen LM answers with its prompt's last letter: b if, and only if, the prompt ends in b."""

    class Echo(FrozenLM):
        def answer(self, prompts, generator=None):
            return [Answer(p[-1], False) for p in prompts]

    frozen = Echo(lookup_lm({}), Letters(), SamplingConfig(max_new_tokens=2))
    shape = TransformerConfig(12, d_model=16, n_layers=1, n_heads=2, max_len=16)
    rho_sft, stage = Transformer(shape, rng()), FakeStage()
    config = replace(SMALL, iterations=20, batch_size=64, answers=1, missing_eos_penalty=0.0, kl_coef=0.02)
    rho = train_align_pro(copy.deepcopy(rho_sft), frozen, letter_b, ["a", "cd"], Letters(), config, stage, rng())
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


@pytest.mark.parametrize("guard", [False, True])
def test_a_rewrite_with_an_objection_is_counted_and_sent_only_without_the_guard(monkeypatch, guard):
    monkeypatch.setattr(guards, "objection", lambda x, x_prime: "content" if "b" in x_prime else None)
    frozen, stage, sent = pi_f(), FakeStage(), []
    answer = frozen.answer
    monkeypatch.setattr(frozen, "answer", lambda prompts, g: (sent.extend(prompts), answer(prompts, g))[1])
    train_align_pro(random_lm(seed=4), frozen, letter_b, ["a", "cd"], Letters(), SMALL, stage, rng(), guard=guard)
    assert 0 < max(row["objection_rate"] for row in stage.rows) < 1
    assert any("b" in prompt for prompt in sent) != guard
