"""What is told or refused before anything is trained: rewards, rewrites, pairs, and how many answers are to come."""

from types import SimpleNamespace

import pytest
import torch

from alignpro_mini.frozen import Answer
from alignpro_mini.lab import preflight
from alignpro_mini.lab.cli import with_options
from alignpro_mini.lab.config import RunConfig, preset
from alignpro_mini.options import UserError
from alignpro_mini.worlds.callables import load_callable
from alignpro_mini.worlds.everyday import EverydayRequests
from alignpro_mini.worlds.files import DataConfig, PreferencePairs

# ---------------------------------------------------------------- rewards

REWARDS = """
def good(prompts, completions): return [len(y) for y in completions]
def by_name(*, prompts, completions): return [0.0] * len(prompts)
def one(prompt): return 0.0
def three(a, b, c): return 0.0
def turned(completions, prompts): return [0.0] * len(prompts)
def of_one_answer(prompts, completions): return [1.0]
def no_number(prompts, completions): return ["a"] * len(prompts)
def mean(prompts, completions): return [1 / len(y.split()) for y in completions]
def typo(prompts, completions): return [lenght(y) for y in completions]
def spare(prompts, completions, scale=2.0, **more): return [scale] * len(prompts)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "my_rewards", raising=False)
    return lambda name: preflight.try_reward(load_callable(f"my_rewards:{name}"), ["Why?", "How?"])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("by_name", "is called with (prompts, completions): too many positional arguments"),
        ("one", "takes (prompt), and is called with (prompts, completions): too many positional arguments"),
        ("three", "missing a required argument: 'c'"),
        ("turned", "takes (completions, prompts), and is called with (prompts, completions): turn them round"),
        ("of_one_answer", "returned shape (1,) for 3 answers"),
        ("no_number", "that is no list of numbers"),
    ],
)
def test_a_reward_that_cannot_be_called_is_one_line(mine, name, told):
    with pytest.raises(UserError) as error:
        mine(name)
    assert told in str(error.value) and f"--reward my_rewards:{name}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "error"), [("mean", ZeroDivisionError), ("typo", NameError)])
def test_a_bug_in_a_reward_keeps_its_traceback_and_says_with_what_it_was_called(mine, name, error):
    with pytest.raises(error) as raised:
        mine(name)
    assert "tried before the run, on the requests ['Why?', 'How?', 'Why?'] and" in raised.value.__notes__[0]


def test_good_rewards_pass(mine):
    mine("good")
    mine("spare")


# ---------------------------------------------------------------- rewrites

WORDS = SimpleNamespace(encode=str.split)


def world(requests, pairs):
    return SimpleNamespace(train_requests=list(requests), rewrite_pairs=lambda count, rng: pairs[:count])


def config(**options) -> RunConfig:
    return with_options(preset("smollm2"), {"frozen": "api:m", "reward": "a:b", "device": "cpu"} | options)


def asked(count, times, ending=" Be brief and kind."):
    """`times` rewrites of each of `count` requests, by turns."""
    return [
        (f"Explain topic number {i} to me.", f"Explain topic number {i} to me.{ending}") for i in range(count)
    ] * times


def test_most_own_requests_are_seen_by_sft(capsys):
    """With 90 requests of one's own 64 held-out examples took 45 of 86 away."""
    pairs = asked(86, 40)
    preflight.check_rewrites(config(), world(dict(pairs), pairs), WORDS)
    said = capsys.readouterr().out
    assert said == (
        "rewrites: SFT sees 78 of 86 training requests; the longest rewrite has 11 tokens (--ppo.max_new_tokens 48)\n"
    )


def test_few_requests_are_enough_and_too_few_rewrites_are_told(capsys):
    pairs = asked(16, 25)
    preflight.check_rewrites(config(), world(dict(pairs), pairs), WORDS)
    assert "SFT sees 15 of 16" in capsys.readouterr().out
    for few, left in ((asked(1, 400), 0), (asked(12, 1), 11)):
        with pytest.raises(UserError, match=rf"leave {left} to train on, .*lower --prompter_sft.heldout_examples"):
            preflight.check_rewrites(config(), world(dict(few), few), WORDS)


def test_rewrites_that_ppo_would_cut_are_refused_or_told(capsys):
    long = asked(40, 4, ending=" " + "word " * 60)  # 66 words and EOS
    with pytest.raises(UserError, match=r"100 % of the rewrites .*: give --ppo.max_new_tokens 67, or --data.rewrites"):
        preflight.check_rewrites(
            config(**{"data.prompts": "p", "ppo.max_new_tokens": 48}), world(dict(long), long), WORDS
        )
    capsys.readouterr()
    preflight.check_rewrites(config(), world(dict(long), long), WORDS)  # composed by the package, and asked for
    assert (
        "warning: 100 % of the rewrites that SFT teaches have more than --ppo.max_new_tokens 48"
        in capsys.readouterr().out
    )
    few = asked(40, 4) + asked(2, 4, ending=" " + "word " * 60)
    preflight.check_rewrites(config(**{"data.prompts": "p"}), world(dict(few), few), WORDS)
    assert "give --ppo.max_new_tokens 67\n" not in capsys.readouterr().out, "by default there is room for the request"


def test_own_requests_have_room_for_themselves_by_default():
    assert config(**{"data.prompts": "p"}).ppo.max_new_tokens == 48 + 24
    assert config(**{"data.prompts": "p", "data.max_prompt_tokens": 200}).ppo.max_new_tokens == 224
    assert config(**{"data.prompts": "p", "ppo.max_new_tokens": 9}).ppo.max_new_tokens == 9
    assert config().ppo.max_new_tokens == 48


def test_rewrites_that_would_not_be_sent_in_use_are_counted(capsys):
    pairs = asked(20, 3) + [(f"Explain topic number {i} to me.", "Sure!") for i in range(20)]
    preflight.check_rewrites(config(), world(dict(pairs), pairs), WORDS)
    assert (
        "warning: 25 % of the rewrites that SFT teaches would not be sent in use (content:" in capsys.readouterr().out
    )
    preflight.check_rewrites(config(), world(dict(pairs), pairs[:60]), WORDS)
    assert "warning" not in capsys.readouterr().out


# ---------------------------------------------------------------- pairs


@pytest.mark.parametrize(
    ("sizes", "fits"),
    [([100], False), ([60, 2], False), ([40, 40], True), ([1] * 64, True), ([1] * 63, False), ([64, 32], True)],
)
def test_pairs_of_too_few_requests_are_told_before_any_training(capsys, sizes, fits):
    """A batch is 32 here. Whichever request is held out, one batch must be left."""
    pairs = [(f"x{i}", f"a{k}", "b") for i, size in enumerate(sizes) for k in range(size)]
    c = with_options(preset("smollm2"), {"data.preferences": "f.jsonl", "device": "cpu"})
    if fits:
        preflight.check_preferences(c, PreferencePairs(pairs, {}, 0))
    else:
        with pytest.raises(UserError, match=rf"f.jsonl: {len(pairs)} pairs about {len(sizes)} requests can train"):
            preflight.check_preferences(c, PreferencePairs(pairs, {}, 0))
    assert capsys.readouterr().out == f"preference pairs: {len(pairs)} about {len(sizes)} requests\n"


# ---------------------------------------------------------------- answers


def test_how_many_answers_a_run_asks_for():
    """The counts of tutorials/your-model.md."""
    everyday = EverydayRequests(DataConfig(), 512, 0)
    with_function = 3840 + 384 + 768 + 10_240
    assert preflight.answers_to_come(config(), everyday) == with_function
    learned = with_options(preset("smollm2"), {"frozen": "api:m", "device": "cpu"})
    assert preflight.answers_to_come(learned, everyday) == with_function + 2400 + 512


def test_the_price_to_come_and_a_budget_that_is_too_small():
    c = config(**{"api.usd_per_million_prompt": 1.0, "api.usd_per_million_answer": 10.0, "api.token_budget": 9})
    everyday = EverydayRequests(DataConfig(), 512, 0)
    told = preflight.cost_line(c, everyday, {"answers": 2, "tokens": 200, "prompt_tokens": 150})
    assert told == (
        "to come: about 15,232 replies of the API, 1,523,200 tokens, 4.95 US dollars; --api.token_budget is 9: "
        "the run will stop before its end"
    )
    free = preflight.cost_line(config(), everyday, {"answers": 0, "tokens": 0, "prompt_tokens": 0})
    assert free == (
        "to come: about 15,232 replies of the API, 0 tokens, no price without --api.usd_per_million_prompt and ..._answer"
    )


def test_one_request_is_answered_and_rated_before_the_first_stage(capsys):
    kept = {}

    class Run:
        config = preset("smollm2")

        def generator(self, name):
            return torch.Generator().manual_seed(1)

        def json(self, name, make):
            return kept.setdefault(name, make(None))

    pi_f = SimpleNamespace(answer=lambda prompts, generator: [Answer(f"To {x}", True) for x in prompts])
    score = lambda prompts, completions: torch.tensor([float(len(y)) for y in completions])
    preflight.ask_once(Run(), world(["Why?"], []), pi_f, score)
    assert kept == {"preflight": {"x": "Why?", "y": "To Why?", "truncated": True, "reward": 7.0}}
    assert capsys.readouterr().out == "preflight: 'Why?' is answered by 'To Why?' (truncated, reward +7.00)\n"
    preflight.ask_once(Run(), world(["Why?"], []), pi_f, None)
