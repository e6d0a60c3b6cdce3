"""Snapshots of the prompter in training: what a row says, and that training does not notice them."""

import copy
from types import SimpleNamespace

import pytest
import torch
from doubles import FakeStage, Letters, random_lm

from alignpro_mini.lab.snapshots import REQUESTS, REWRITES, Snapshots
from alignpro_mini.ppo import PPOConfig, PPOTrainer, train_ppo

CONFIG = PPOConfig(iterations=3, batch_size=4, num_minibatches=1, ppo_epochs=1, max_new_tokens=4, lr=0.05)


class RunDouble(FakeStage):
    """A stage of a run that keeps what is appended."""

    name = "align_pro"

    def __init__(self):
        super().__init__()
        self.kept = []
        generator = lambda name: torch.Generator().manual_seed(len(name))
        self.run = SimpleNamespace(generator=generator, append=lambda file, rows: self.kept.extend(rows))


def trained(watch: bool) -> tuple[PPOTrainer, list[dict]]:
    lm = random_lm()
    score = lambda prompts, completions: [float(len(text)) for text in completions]
    trainer = PPOTrainer(lm, copy.deepcopy(lm), Letters(), score, CONFIG, torch.Generator().manual_seed(0))
    stage = RunDouble()
    train_ppo(trainer, list("abcdefgh"), Snapshots(stage, trainer, list("abcdefgh")) if watch else stage)
    return trainer, stage.kept


@pytest.fixture(scope="module")
def watched():
    return trained(True)


def test_training_is_the_same_to_the_bit_with_and_without_snapshots(watched):
    (with_them, _), (without, _) = watched, trained(False)
    assert torch.equal(with_them.generator.get_state(), without.generator.get_state())
    pairs = zip(with_them.policy.parameters(), without.policy.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_row_is_a_rewrite_of_one_of_the_first_requests_token_by_token(watched):
    rows = watched[1]
    assert [row["step"] for row in rows] == [step for step in range(4) for _ in range(REQUESTS * REWRITES)]
    assert [row["x"] for row in rows[: REQUESTS * REWRITES]] == [x for x in "abcdef" for _ in range(REWRITES)]
    assert all("".join(row["tokens"]) == row["x_prime"] and row["stage"] == "align_pro" for row in rows)
    assert all(len(row["tokens"]) == len(row["log_ratio"]) for row in rows)


def test_log_ratios_are_zero_before_training_and_not_after(watched):
    start, end = ([v for row in watched[1] if row["step"] == step for v in row["log_ratio"]] for step in (0, 3))
    assert max(map(abs, start)) < 1e-4 and max(map(abs, end)) > 1e-2


def test_a_long_training_has_twenty_snapshots_besides_the_first():
    trainer = SimpleNamespace(config=SimpleNamespace(iterations=400))
    snapshots = Snapshots(RunDouble(), trainer, ["a"])
    taken = []
    snapshots._take = taken.append
    list(snapshots.progress(0, 400))
    for step in range(1, 401):
        snapshots.log(step, {})
    assert taken == list(range(0, 401, 20))
    list(snapshots.progress(200, 400))  # resumed: the first one is in the file
    assert len(taken) == 21
