"""The fixed rewrite: successive halving by hand and by its guarantees, the search on fakes, and its arm."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from doubles import Letters, random_lm

from alignpro_mini.alignpro import Prompter
from alignpro_mini.frozen import Answer
from alignpro_mini.lab import assess, pipeline
from alignpro_mini.lab.cli import with_options
from alignpro_mini.lab.config import EvalConfig, preset
from alignpro_mini.lab.evaluation import Evaluator
from alignpro_mini.lab.fixed import find_fixed_rewrite, successive_halving
from alignpro_mini.lab.rewards import Reward
from alignpro_mini.lab.run import Run

# ---------------------------------------------------------------- successive halving


def exactly(values):
    """Rewards without noise."""
    return lambda arms, each: [float(values[arm]) for arm in arms]


def cost(rounds: list[dict]) -> int:
    return sum(len(row["arms"]) * row["each"] for row in rounds)


def test_halving_by_hand():
    """Six arms and 60 rewards: three rounds of 20; 3 each for six, 6 each for three, 10 each for two."""
    asked = []

    def rate(arms, each):
        asked.append((list(arms), each))
        return [float("512034"[arm]) for arm in arms]

    best, rounds = successive_halving(6, 60, rate)
    assert best == 0 and asked == [([0, 1, 2, 3, 4, 5], 3), ([0, 4, 5], 6), ([0, 5], 10)]
    assert [(row["arms"], row["each"]) for row in rounds] == asked
    assert [row["means"] for row in rounds] == [[5, 1, 2, 0, 3, 4], [5, 3, 4], [5, 4]]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 8, 24, 33])
@pytest.mark.parametrize("budget", [0, 1, 10, 100, 4321])
def test_without_noise_the_best_arm_is_found_with_any_budget(count, budget):
    for seed in range(5):
        values = np.random.default_rng(seed).permutation(count) - 3
        best, rounds = successive_halving(count, budget, exactly(values))
        assert best == values.argmax()
        assert len(rounds) == math.ceil(math.log2(count)), "one arm is left after so many halvings"


@pytest.mark.parametrize("count", [2, 3, 8, 24, 33])
@pytest.mark.parametrize("budget", [200, 1000, 4321])
def test_every_round_costs_the_same_and_all_together_no_more_than_the_budget(count, budget):
    _, rounds = successive_halving(count, budget, exactly(range(count)))
    share = budget / len(rounds)
    for row in rounds:  # but for what cannot be shared out
        assert share - len(row["arms"]) < len(row["arms"]) * row["each"] <= share
        assert len(row["means"]) == len(row["arms"])
    assert cost(rounds) <= budget
    arms = [len(row["arms"]) for row in rounds] + [1]
    assert all(after == math.ceil(before / 2) for before, after in zip(arms, arms[1:]))


def test_of_a_power_of_two_of_arms_the_whole_budget_is_spent():
    _, rounds = successive_halving(8, 240, exactly(range(8)))
    assert [(len(row["arms"]), row["each"]) for row in rounds] == [(8, 10), (4, 20), (2, 40)] and cost(rounds) == 240


def test_a_budget_smaller_than_the_arms_still_asks_each_once():
    best, rounds = successive_halving(24, 5, exactly([0] * 17 + [1] + [0] * 6))
    assert best == 17 and [(len(row["arms"]), row["each"]) for row in rounds] == [
        (24, 1),
        (12, 1),
        (6, 1),
        (3, 1),
        (2, 1),
    ]


def test_of_equal_arms_the_first_is_taken():
    assert successive_halving(24, 1000, exactly([7] * 24))[0] == 0
    best, rounds = successive_halving(6, 60, exactly([0, 3, 3, 3, 3, 0]))
    assert best == 1 and [row["arms"] for row in rounds[1:]] == [[1, 2, 3], [1, 2]]


def test_one_arm_needs_no_rewards():
    assert successive_halving(1, 100, lambda arms, each: pytest.fail("it was asked")) == (0, [])


def test_with_noise_halving_finds_the_best_arm_more_often_than_equal_shares():
    """24 arms, one of them better by 0.3 standard deviations, 40 rewards for each on average."""
    rng, values, hits, naive, count = np.random.default_rng(0), np.zeros(24), 0, 0, 1000
    values[13] = 0.3
    noisy = lambda arms, each: (values[arms] + rng.normal(size=len(arms)) / math.sqrt(each)).tolist()
    for _ in range(count):
        hits += successive_halving(24, 960, noisy)[0] == 13
        naive += int(np.argmax(noisy(list(range(24)), 40))) == 13
    assert 0.55 * count < hits and naive + 0.05 * count < hits


# ---------------------------------------------------------------- the search, on fakes


class FourLetters:
    """A world whose rewrites of a request are the request and one of the letters a to d behind it."""

    train_requests = [f"x{i}" for i in range(50)]
    eval_requests = [f"e{i}" for i in range(6)]
    gold = None

    def rewrites(self, x):
        return [f"{x} {letter}" for letter in "abcd"]

    def describe(self, requests, rewrites, answers):
        return {}


class Echo:
    """Answers with the prompt, and keeps what it was asked."""

    def __init__(self):
        self.asked: list[list[str]] = []

    def fits(self, prompt):
        return True

    def answer(self, prompts, generator=None):
        self.asked.append(list(prompts))
        return [Answer(p, truncated=False) for p in prompts]


def by_letter(value: dict, ease=lambda x: 0.0, noise=lambda: 0.0, kind=torch.tensor):
    """A reward of the letter in the answer; requests may be easy or hard. It must be given the request."""

    def reward(prompts, completions):
        assert all(y.startswith(f"{x} ") and " " not in x for x, y in zip(prompts, completions, strict=True))
        return kind([value[y[-1]] + ease(x) + noise() for x, y in zip(prompts, completions)])

    return reward


def search(reward, budget=80, seed=0, requests=FourLetters.train_requests):
    frozen = Echo()
    draw = torch.Generator().manual_seed(seed)
    return find_fixed_rewrite(FourLetters(), requests, frozen, reward, budget, draw), frozen.asked


@pytest.mark.parametrize(
    ("values", "best"), [((0, 1, 2, 3), 3), ((0, 9, 2, 3), 1), ((5, 5, 5, 5), 0), ((1, 0, 0, 0), 0)]
)
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_the_kind_with_the_best_mean_reward_is_found(values, best, kind):
    found, asked = search(by_letter(dict(zip("abcd", values)), kind=kind))
    assert found["kind"] == best
    assert list(found) == ["kind", "answers", "rounds"]
    # two rounds of 40 answers: 10 for each of four kinds, 20 for each of two
    assert [(len(row["arms"]), row["each"]) for row in found["rounds"]] == [(4, 10), (2, 20)]
    assert found["answers"] == 80 == sum(map(len, asked)) and len(asked) == 2
    assert found["rounds"][0]["means"] == [float(v) for v in values]


def test_in_a_round_all_kinds_rewrite_the_same_requests_and_another_round_draws_others():
    found, asked = search(by_letter(dict(zip("abcd", range(4)))))
    drawn = []
    for row, texts in zip(found["rounds"], asked, strict=True):
        of_kind = {"abcd"[arm]: [text[:-2] for text in texts if text[-1] == "abcd"[arm]] for arm in row["arms"]}
        assert sum(map(len, of_kind.values())) == len(texts)
        assert len({tuple(requests) for requests in of_kind.values()}) == 1
        drawn.append(next(iter(of_kind.values())))
        assert len(drawn[-1]) == row["each"] and set(drawn[-1]) <= set(FourLetters.train_requests)
    assert drawn[0] != drawn[1][:10] and len(set(drawn[0] + drawn[1])) > 15, "drawn at random"
    assert search(by_letter(dict(zip("abcd", range(4)))), seed=0)[1] == asked
    assert search(by_letter(dict(zip("abcd", range(4)))), seed=1)[1] != asked
    few, texts = search(by_letter(dict(zip("abcd", range(4)))), requests=["only"])
    assert few["kind"] == 3 and {text[:-2] for row in texts for text in row} == {"only"}


def test_requests_that_are_easy_do_not_decide():
    """They differ by thousands, and the kinds by 1: with requests of its own each kind would win by luck."""
    value = dict(zip("abcd", (0.0, 0.0, 1.0, 0.0)))
    found = [
        search(by_letter(value, ease=lambda x: 1000.0 * int(x[1:]) ** 2), 16, seed)[0]["kind"] for seed in range(20)
    ]
    assert found == [2] * 20


def test_noise_of_the_answers_is_averaged_away():
    rng = np.random.default_rng(0)
    value = dict(zip("abcd", (0.0, 0.4, 0.0, 0.0)))
    found = [search(by_letter(value, noise=rng.normal), 2000, seed)[0] for seed in range(10)]
    assert [row["kind"] for row in found] == [1] * 10
    assert all(row["rounds"][0]["means"] == pytest.approx([0, 0.4, 0, 0], abs=0.3) for row in found)


# ---------------------------------------------------------------- the stage, and its arm


def config_of(tmp_path, **options):
    return with_options(preset("tiny"), {"out": str(tmp_path), "device": "cpu"} | options)


@pytest.mark.parametrize("answers", [1, 3])
def test_the_search_gets_as_many_answers_as_ppo_on_training_requests_and_its_reward(tmp_path, answers, capsys):
    """It is judged as PPO is, and sees no held-out request; a resumed run loads what was found."""
    options = {"ppo.iterations": 5, "ppo.batch_size": 16, "ppo.answers": answers}
    run, frozen, best = Run(config_of(tmp_path, **options)), Echo(), dict(zip("abcd", (0, 1, 5, 2)))
    never = lambda x, y: pytest.fail("the reward as it is reported was asked")
    reward = Reward(never, by_letter(best))
    found = pipeline.fixed_rewrite(run, FourLetters(), frozen, reward)
    assert found["kind"] == 2 and found["answers"] == 5 * 16 * answers == sum(map(len, frozen.asked))
    assert {text[:-2] for row in frozen.asked for text in row} <= set(FourLetters.train_requests)
    assert (found["x"], found["text"]) == ("e0", "e0 c")
    again = pipeline.fixed_rewrite(Run(run.config, resume=True), FourLetters(), Echo(), Reward(never, never))
    assert again == found
    capsys.readouterr()


def test_there_is_no_fixed_rewrite_where_it_is_left_out_or_rewrites_are_not_listed(tmp_path):
    class Unlisted(FourLetters):
        def rewrites(self, x):
            return []

    nobody = Reward(None, None)
    run = Run(config_of(tmp_path))
    assert pipeline.fixed_rewrite(run, Unlisted(), None, nobody) is None
    run = Run(config_of(tmp_path, **{"eval.untrained_arms": False, "name": "without"}))
    assert pipeline.fixed_rewrite(run, FourLetters(), None, nobody) is None
    assert "fixed_rewrite" not in run.stages


def log_probability(prompter: Prompter, x: str, x_prime: str) -> float:
    """log rho(x'|x), a token at a time, EOS included."""
    ids, total = Letters().chat(x), 0.0
    for token in [*Letters().encode(x_prime), Letters().eos_id]:
        with torch.no_grad():
            logits = prompter.model(torch.tensor([ids]))[0, -1].double() / prompter.temperature
        total += logits.log_softmax(0)[token].item()
        ids = [*ids, token]
    return total


class Endings(FourLetters):
    train_requests, eval_requests = ["a", "b"], ["c", "de", "f"]

    def rewrites(self, x):
        return [x, f"{x}g", f"{x}hb"]


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_the_arm_of_a_fixed_rewrite_has_the_kl_of_a_prompter_that_always_writes_it(kind):
    """KL of a point mass on x' to rho_sft: -log rho_sft(x'|x), of each request and never negative."""
    rho_sft = Prompter(random_lm(seed=3), Letters(), 8, 0.7)
    config = EvalConfig(inputs=3, rewrites=2, answers=2)
    evaluator = Evaluator(Endings.eval_requests, Echo(), lambda x, y: [float(len(t)) for t in y], None, config, None)
    arm = assess._fixed(evaluator, Endings(), rho_sft, kind)
    rewrites = [Endings().rewrites(x)[kind] for x in Endings.eval_requests]
    want = [[-log_probability(rho_sft, x, y)] for x, y in zip(Endings.eval_requests, rewrites)]
    np.testing.assert_allclose(arm.kl, want, rtol=1e-4)
    assert arm.kl.shape == (3, 1) and (arm.kl > 0).all() and arm.kl.std() > 0.1
    assert arm.x_prime == [[y] for y in rewrites]
    assert arm.reward.tolist() == [[[float(len(y))] * 4] for y in rewrites]


def test_the_fixed_rewrite_is_an_arm_only_where_one_was_found(tmp_path, capsys):
    options = {"eval.inputs": 3, "eval.rewrites": 2, "eval.answers": 1, "eval.best_of_n": 2, "ppo.max_new_tokens": 4}
    rho = Prompter(random_lm(seed=3), Letters(), 4, 1.0)
    other = replace(rho, model=random_lm(seed=4))
    reward = Reward(lambda x, y: torch.tensor([float(t.endswith("g")) for t in y]), None)
    for name, fixed in (("with", {"kind": 1}), ("without", None)):
        run = Run(config_of(tmp_path, name=name, **options))
        arms = assess.evaluate_prompters(run, Endings(), Echo(), rho, other, reward, fixed, None)
        assert list(arms) == ["untrained_prompter", "best_of_n", "align_pro", *["fixed_rewrite"] * (fixed is not None)]
        if fixed:
            assert arms["fixed_rewrite"].reward.tolist() == [[[1.0, 1.0]]] * 3
            want = [-log_probability(rho, x, f"{x}g") for x in Endings.eval_requests]
            np.testing.assert_allclose(arms["fixed_rewrite"].kl[:, 0], want, rtol=1e-4)  # to rho_sft, not to rho
    arms = assess.evaluate_plain(Run(config_of(tmp_path, name="plain", **options)), Endings(), Echo(), None, reward)
    assert list(arms) == ["no_finetuning", "best_of_n_answers"] and arms["best_of_n_answers"].reward.shape == (3, 1, 2)
    capsys.readouterr()
