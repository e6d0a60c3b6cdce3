"""The reward model: where it reads, what it learns, and a user's own reward function."""

import copy
import math
import random

import pytest
import torch
from doubles import FakeStage, Letters, random_lm

from alignpro_mini import reward
from alignpro_mini.fast.reward import TrunkCache
from alignpro_mini.frozen import Answer, checksum
from alignpro_mini.generation import pad_right
from alignpro_mini.lab.accuracy import accuracy_ceiling, always_longer, swap_accuracy
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.run import Run, RunStage
from alignpro_mini.options import UserError
from alignpro_mini.reward import (
    Preference,
    RewardConfig,
    RewardModel,
    accuracy,
    batches_of,
    by_prompt,
    draw_preferences,
    rewards_of_pairs,
    split_by_prompt,
    train_reward_model,
    training_batches,
    usable_pairs,
)
from alignpro_mini.training import Truncated
from alignpro_mini.transformer import Transformer, TransformerConfig
from alignpro_mini.variants import MeanRewardModel
from alignpro_mini.worlds.callables import load_callable

PROMPTS = ["a", "bcdefgh", "hh", "gab", "cd"]
ANSWERS = ["bc", "", "gabcgggg", "h", "dd"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rated(train_layers: int = 0, tokenizer=None, **shape) -> RewardModel:
    """A reward model whose head is no longer zero."""
    model = RewardModel(random_lm(**shape), tokenizer or Letters(), train_layers)
    torch.nn.init.normal_(model.head.weight, generator=rng(8))
    return model


# ---------------------------------------------------------------- where the reward is read


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("train_layers", [0, 1, 2])
@pytest.mark.parametrize("pad_id", [0, 3])  # 3: the padding looks like another EOS
@torch.no_grad()
def test_the_reward_is_read_at_the_eos_whoever_shares_the_batch(family, train_layers, pad_id):
    model = rated(train_layers, Letters(pad_id=pad_id), family=family)
    want = []
    for x, y in zip(PROMPTS, ANSWERS):
        row = [1, *Letters().encode(x), 2, *Letters().encode(y), 3]
        want.append(model.lm.hidden(torch.tensor([row]))[0, -1] @ model.head.weight[0])
    want = torch.stack(want)
    assert want.std() > 0.1
    for batch in (1, 2, 64):
        torch.testing.assert_close(model.raw(PROMPTS, ANSWERS, batch), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.raw(PROMPTS[::-1], ANSWERS[::-1]).flip(0), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.score(PROMPTS, ANSWERS), want, rtol=1e-4, atol=1e-4)  # mean 0, std 1 so far


@torch.no_grad()
def test_a_truncated_answer_is_read_at_its_last_token_without_an_eos():
    model = rated()
    row = [1, *Letters().encode("gab"), 2, *Letters().encode("hh")]
    want = model.lm.hidden(torch.tensor([row]))[0, -1] @ model.head.weight[0]
    truncated, ended = model.raw(["gab", "gab"], [Truncated("hh"), "hh"])
    assert truncated == pytest.approx(want.item(), abs=1e-4) and abs(truncated - ended) > 0.01
    cut, whole = (Answer("hh", truncated=end, tokens=[11, 11]) for end in (True, False))
    assert isinstance(cut.text, Truncated) and cut.text == "hh" and type(whole.text) is str


@torch.no_grad()
@pytest.mark.parametrize("train_layers", [0, 1])
def test_the_mean_of_the_rows_states_whoever_shares_the_batch(train_layers):
    model = MeanRewardModel(random_lm(), Letters(), train_layers)
    torch.nn.init.normal_(model.head.weight, generator=rng(8))
    answers = [Truncated(ANSWERS[0]), *ANSWERS[1:]]
    rows = [
        [1, *Letters().encode(x), 2, *Letters().encode(y), *[3][isinstance(y, Truncated) :]]
        for x, y in zip(PROMPTS, answers)
    ]
    want = torch.stack([model.lm.hidden(torch.tensor([row]))[0].mean(0) @ model.head.weight[0] for row in rows])
    assert want.std() > 0.05
    for batch in (1, 64):
        torch.testing.assert_close(model.raw(PROMPTS, answers, batch), want, rtol=1e-4, atol=1e-4)


def test_rewards_are_float32():
    """Bradley-Terry's differences of rewards have two digits in bfloat16."""
    model = rated().bfloat16()
    assert model(*model.trunk([model.encode("a", "bc"), model.encode("gab", "h")])).dtype == torch.float32


def test_a_fresh_head_says_nothing_yet():
    assert RewardModel(random_lm(), Letters()).raw(PROMPTS, ANSWERS).tolist() == [0.0] * 5


def test_an_answer_beyond_the_context_is_rated_without_its_end_and_says_so():
    model = rated(max_len=16)
    with pytest.warns(UserWarning, match="context of 16 tokens"):
        long = model.raw(["ab"], ["bc" * 10])  # 2 + 2 tokens of prompt and turn: 12 letters of the answer fit
    hidden = model.lm.hidden(torch.tensor([model.encode("ab", "bc" * 10)[:16]]))[0, -1]
    torch.testing.assert_close(long[0], hidden @ model.head.weight[0])


def test_prompts_and_completions_must_match_in_number():
    with pytest.raises(ValueError):
        rated().raw(PROMPTS, ANSWERS[:3])


def test_normalise_gives_mean_zero_and_std_one_and_keeps_the_order():
    model = rated()
    raw = model.raw(PROMPTS, ANSWERS)
    model.normalise(PROMPTS, ANSWERS)
    score = model.score(PROMPTS, ANSWERS)
    assert score.mean().item() == pytest.approx(0, abs=1e-5) and score.std().item() == pytest.approx(1, abs=1e-5)
    assert score.argsort().tolist() == raw.argsort().tolist()
    assert {"mean", "std"} <= model.state_dict().keys(), "the scale must be saved with the weights"
    with pytest.raises(ValueError, match="reward"):
        RewardModel(random_lm(), Letters()).normalise(PROMPTS, ANSWERS)


@pytest.mark.parametrize("train_layers", [0, 1, 2, 3])
@torch.no_grad()
def test_the_trunk_cache_gives_the_direct_rewards(train_layers):
    """Of rows in any order and together with others than when they were computed."""
    model = rated(train_layers, n_layers=3)
    pairs = [Preference(x, y, y + "ab") for x, y in zip(PROMPTS, ANSWERS)]
    cache = TrunkCache(model, pairs)
    picked = [3, 0, 4, 1]
    answers = [ANSWERS[3], ANSWERS[0] + "ab", ANSWERS[4], ANSWERS[1] + "ab"]
    rows = [model.encode(PROMPTS[i], y) for i, y in zip(picked, answers)]
    features, mask = cache(rows)
    assert mask.tolist() == [[t < len(row) for t in range(max(map(len, rows)))] for row in rows]
    direct = model.raw([PROMPTS[i] for i in picked], answers)
    torch.testing.assert_close(model(features, mask), direct, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_trunk_cache_computes_each_row_once_and_before_the_training():
    model = rated(1, n_layers=3)
    runs = []
    trunk = model.trunk
    model.trunk = lambda rows: runs.append(sorted(map(tuple, rows))) or trunk(rows)
    pairs = [Preference("a", "b", "c"), Preference("a", "d", "c"), Preference("a", "b", "d")]
    cache = TrunkCache(model, pairs)
    assert runs == [sorted(tuple(model.encode("a", y)) for y in "bcd")]
    for pair in pairs:
        cache([model.encode("a", pair.chosen), model.encode("a", pair.rejected)])
    assert len(runs) == 1


def test_training_on_a_trunk_cache_is_the_same_training():
    def trained(cached: bool) -> list[float]:
        model, stage = fresh(train_layers=1), FakeStage()
        pairs = about_h(64)
        config = RewardConfig(epochs=2, batch_size=16, lr=1e-2, train_layers=1)
        trunk = TrunkCache(model, pairs) if cached else None
        train_reward_model(model, pairs, pairs, config, stage, rng(), trunk)
        figures = [value for row in stage.rows for value in row.values()]
        return figures + [p.double().sum().item() for p in model.parameters()]

    assert trained(True) == pytest.approx(trained(False), rel=1e-3, abs=1e-3)


# ---------------------------------------------------------------- preferences


def test_preferences_follow_bradley_terry():
    n = 20_000
    gold = lambda xs, ys: [{"good": 2.0, "bad": 0.5}[y] for y in ys]  # noqa: E731
    pairs = draw_preferences(["x"] * n, ["good"] * n, ["bad"] * n, gold, 0.8, rng())
    p = 1 / (1 + math.exp(-0.8 * 1.5))
    share = sum(pair.chosen == "good" for pair in pairs) / n
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / n)
    for pair in pairs[:50]:
        assert {pair.chosen, pair.rejected} == {"good", "bad"} and pair.prompt == "x"
        assert pair.certainty == pytest.approx(p if pair.chosen == "good" else 1 - p)
    assert accuracy_ceiling(pairs) == pytest.approx(p)
    sure = draw_preferences(["x"] * 200, ["bad"] * 200, ["good"] * 200, gold, 100.0, rng())
    assert {pair.chosen for pair in sure} == {"good"}
    assert draw_preferences(["x"] * n, ["good"] * n, ["bad"] * n, gold, 0.8, rng(1)) != pairs


def test_the_generator_decides_the_labels():
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(drawn))
        equal = lambda xs, ys: [0.5] * len(ys)  # noqa: E731
        drawn.append(draw_preferences(["x"] * 40, ["a"] * 40, ["b"] * 40, equal, 1.0, rng(seed)))
    assert drawn[0] == drawn[1] != drawn[2]


def test_no_prompt_is_on_both_sides_of_the_split():
    pairs = [Preference(f"prompt {i % 40}", f"a{i}", f"b{i}") for i in range(200)]
    train, heldout = split_by_prompt(pairs, 0.25, rng())
    assert not {p.prompt for p in train} & {p.prompt for p in heldout}
    assert sorted(map(repr, train + heldout)) == sorted(map(repr, pairs)), "no pair may be lost"
    assert len({p.prompt for p in heldout}) == 10
    assert split_by_prompt(pairs, 0.25, rng()) == (train, heldout) != split_by_prompt(pairs, 0.25, rng(1))
    assert len({p.prompt for p in split_by_prompt(pairs, 0.001, rng())[1]}) == 1  # never none


def test_mismatched_pairs_teach_but_are_not_held_out():
    pairs = [Preference(f"x{i}", "a", "b") for i in range(20)]
    mixed = (
        pairs
        + [Preference(f"x{i}", "c", "d", mismatched=True) for i in range(20)]
        + [Preference("only mismatched", "c", "d", mismatched=True)]
    )
    train, heldout = split_by_prompt(mixed, 0.25, rng())
    assert len(heldout) == 5 and not any(p.mismatched for p in heldout)
    assert {p.prompt for p in train}.isdisjoint(p.prompt for p in heldout)
    assert len(train) == 15 + 15 + 1, "a mismatched pair of a held-out prompt is on neither side"
    assert [p for p in heldout] == split_by_prompt(pairs, 0.25, rng())[1], "they do not move the split"


def test_mismatched_pairs_teach_the_model_to_read_the_request():
    """Right is the prompt's own letter. Same-request pairs alone (which differ in length) cannot show it."""
    draw = random.Random(0)
    letters = "abcdefgh"

    def trained(with_mismatched: bool) -> float | None:
        model, pairs = RewardModel(random_lm(spread=0.1), Letters()), []
        for _ in range(400):
            x, other = draw.sample(letters, 2)
            pairs.append(Preference(x, x + x, x))
            if with_mismatched:
                pairs.append(Preference(x, x + x, other + other, mismatched=True))
        config = RewardConfig(epochs=8, batch_size=32, lr=1e-2)
        train, heldout = split_by_prompt(pairs, 0.1, generator := rng(1))
        train_reward_model(model, train, heldout, config, generator=generator)
        assert accuracy(model, heldout) > 0.95
        return swap_accuracy(model.score, list(letters), [x + x for x in letters], [x + x for x in letters[1:] + "a"])

    assert trained(True) > 0.8 and trained(False) < 0.7


def test_accuracy_counts_a_tie_as_half():
    blank = RewardModel(random_lm(), Letters())
    assert accuracy(blank, [Preference("a", "b", "c")] * 3) == 0.5
    model = rated()
    low, high = sorted(("b", "cc"), key=lambda y: model.raw(["a"], [y]).item())
    right, wrong = Preference("a", high, low), Preference("a", low, high)
    assert accuracy(model, [right, right, wrong, Preference("a", low, low)]) == (2 + 0.5) / 4


# ---------------------------------------------------------------- training


def about_h(n: int = 240) -> list[Preference]:
    """The answer with an h is preferred; the other is never shorter, so length predicts the opposite or nothing."""
    draw = rng(2)
    letters = lambda k: "".join("abcdefg"[i] for i in torch.randint(7, (k,), generator=draw).tolist())  # noqa: E731
    pairs = []
    for i in range(n):
        prompt, chosen = letters(3), letters(2)
        pairs.append(Preference(prompt, chosen[: i % 3] + "h" + chosen[i % 3 :], letters(3 + i % 2)))
    return pairs


def fresh(train_layers: int = 0) -> RewardModel:
    shape = TransformerConfig(12, d_model=16, n_layers=2, n_heads=2, max_len=24)
    return RewardModel(Transformer(shape, rng(4)), Letters(), train_layers)


def test_bradley_terry_training_learns_a_preference():
    stage = FakeStage()
    model, pairs = fresh(), about_h()
    train, heldout = pairs[24:], pairs[:24]
    train_reward_model(model, train, heldout, RewardConfig(epochs=6, batch_size=16, lr=1e-2), stage, rng())
    assert accuracy(model, heldout) > 0.9 and always_longer(heldout) <= 0.5
    assert stage.rows[0]["loss"] < math.log(2) + 0.1 and stage.rows[-1]["loss"] < 0.2
    last = stage.rows[-1]
    assert last["step"] == math.ceil(6 * 216 / 16) == 81
    assert accuracy(model, heldout) == last["heldout_accuracy"], "the last logged one is that of the finished model"
    fair = model.raw(["abc"] * 2, ["ahb", "acb"])
    assert fair[0] > fair[1] + 1


@pytest.mark.parametrize("coef", [0.0, 0.3])
def test_the_gradient_is_that_of_bradley_terry_and_of_the_squared_sums(monkeypatch, coef):
    """Of one batch of 4 pairs, against autograd on the formula: -ln sigmoid(c - r) + coef (c + r)^2, the mean of them."""
    model, pairs = rated(), about_h(4)
    seen = []
    keep = lambda optimizer, parameters, *rest: seen.append([p.grad.clone() for p in parameters]) or 0.0
    monkeypatch.setattr(reward.training, "optimizer_step", keep)
    config = RewardConfig(epochs=1, batch_size=4, micro_batch_size=3, center_coef=coef)
    train_reward_model(model, pairs, pairs, config, generator=rng())
    model.zero_grad()
    rows = lambda end: pad_right([model.encode(p.prompt, getattr(p, end)) for p in pairs], 0)
    chosen, rejected = (model(*rows(end)) for end in ("chosen", "rejected"))
    assert (chosen + rejected).abs().min() > 0.01
    (-(chosen - rejected).sigmoid().log() + coef * (chosen + rejected) ** 2).mean().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    for ours, p in zip(seen[0], trained, strict=True):
        torch.testing.assert_close(ours, p.grad, rtol=1e-4, atol=1e-5)  # sums of float32 in another order


def test_cutting_a_batch_into_micro_batches_changes_nothing(monkeypatch):
    monkeypatch.setattr(reward, "LOG_EVERY", 1)

    def trained(pairs):
        stage, model = FakeStage(), fresh()
        config = RewardConfig(epochs=1, batch_size=16, lr=1e-2, micro_batch_size=pairs)
        train_reward_model(model, about_h(80), about_h(8), config, stage, rng())
        found = [row[key] for row in stage.rows for key in ("loss", "accuracy", "margin")]
        return found + [p.double().sum().item() for p in model.parameters()]

    want = trained(16)
    for pairs in (1, 5, 64):
        assert trained(pairs) == pytest.approx(want, rel=1e-3, abs=1e-3)


def test_only_the_top_block_the_norm_and_the_head_train():
    model = fresh(train_layers=1)
    before = copy.deepcopy(model.state_dict())
    config = RewardConfig(epochs=1, batch_size=16, lr=1e-2, train_layers=1)
    train_reward_model(model, about_h(64), about_h(8), config, FakeStage(), rng())
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if k.startswith(("lm.blocks.1.", "lm.norm.", "head.weight"))}


def test_pairs_that_cannot_teach_are_left_out():
    pairs = about_h(80)
    same, long = Preference("a", "b", "b"), Preference("a", "b", "c" * 12)  # 1 + 1 + 1 + 12 + 1 tokens
    config = RewardConfig(batch_size=16, max_tokens=15)
    assert usable_pairs(fresh(), [*pairs, same, long], config) == pairs
    assert usable_pairs(fresh(), pairs[:32], config) == pairs[:32]
    with pytest.raises(UserError, match="only 31 of 31 preference pairs .* two batches take 32"):
        usable_pairs(fresh(), pairs[:31], config)
    with pytest.raises(UserError, match="only 0 of 80 preference pairs"):
        usable_pairs(fresh(), pairs, RewardConfig(max_tokens=3))


def test_pairs_beyond_the_models_context_are_left_out_too():
    """A model of 24 tokens reads pairs of at most 24, whatever `max_tokens` allows."""
    pairs, config = about_h(80), RewardConfig(batch_size=16, max_tokens=200)
    just, long = Preference("a", "b", "c" * 20), Preference("a", "c" * 21, "b")  # 1 + 1 + 1 + 20 + 1 tokens, one more
    assert len(fresh().encode("a", just.rejected)) == fresh().lm.config.max_len
    assert usable_pairs(fresh(), [*pairs, just, long], config) == [*pairs, just]
    with pytest.raises(UserError, match="only 0 of 40 preference pairs differ and fit 24 tokens"):
        usable_pairs(fresh(), [long] * 40, config)


def test_a_killed_run_goes_on_bit_for_bit(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reward, "LOG_EVERY", 2)

    def go(name, resume=False, kill_at=-1):
        run = Run(RunConfig(out=str(tmp_path), name=name), resume)
        stage = RunStage(run, "reward_model")
        steps = stage.progress

        def progress(start, stop):
            for step in steps(start, stop):
                if step == kill_at:
                    raise KeyboardInterrupt
                yield step

        stage.progress = progress
        model = fresh()
        config = RewardConfig(epochs=2, batch_size=8, lr=1e-2)
        train_reward_model(model, about_h(64), about_h(8), config, stage, rng(1))
        return checksum(model), run.rows("metrics.jsonl")

    whole = go("whole")
    with pytest.raises(KeyboardInterrupt):
        go("cut", kill_at=7)
    assert go("cut", resume=True) == whole
    capsys.readouterr()


# ---------------------------------------------------------------- a user's own reward function


OWN = """
def length(prompts, completions):
    return [len(y) for y in completions]
def one_too_few(prompts, completions):
    return [0.0] * (len(prompts) - 1)
def column(prompts, completions):
    return [[0.0]] * len(prompts)
def nan(prompts, completions):
    return [1.0] * (len(prompts) - 1) + [float("nan")]
def nothing(prompts, completions):
    pass
def own_bug(prompts, completions):
    return [0.0][len(prompts)]
def huge(prompts, completions):
    return [10**400 for _ in completions]
def learned(prompts, completions):
    import torch
    return torch.ones(len(completions), requires_grad=True)
constant = 3.0
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "reward_of_a_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "reward_of_a_test"


def test_a_callable_is_loaded_by_name(own):
    got = load_callable(f"{own}:length")(["x", "y"], ["abc", ""])
    assert got.tolist() == [3.0, 0.0] and got.dtype == torch.float32
    assert not load_callable(f"{own}:learned")(["x"], ["y"]).requires_grad  # its graph would stay in memory


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("one_too_few", r"shape \(1,\) for 2 answers"),
        ("column", r"shape \(2, 1\) for 2 answers"),
        ("nan", "nan for the answer 'bad'"),
        ("nothing", "returned a NoneType that is no list of numbers"),
        ("huge", "returned a list that is no list of numbers"),
    ],
)
def test_wrong_rewards_are_refused_when_they_come(own, function, words):
    with pytest.raises(ValueError, match=words):
        load_callable(f"{own}:{function}")(["x", "y"], ["good", "bad"])


@pytest.mark.parametrize(
    "spec",
    [
        "no_such_module_anywhere:f",
        "reward_of_a_test:no_such_function",
        ":f",
        ".x:f",
        "garbled:f",
        "reward_of_a_test:constant",
        "no_colon",
        "two:co:lons",
    ],
)
def test_a_missing_callable_is_named(own, spec, tmp_path):
    (tmp_path / "garbled.py").write_text("def f(:")
    with pytest.raises(ValueError, match=spec):
        load_callable(spec)


def test_a_bug_in_the_function_keeps_its_own_error(own):
    with pytest.raises(IndexError):
        load_callable(f"{own}:own_bug")(["x"], ["y"])


# ---------------------------------------------------------------- which pairs make a step


def answers_to(prompt, count):
    return [Preference(prompt, f"{i}", f"{i + 1}") for i in range(count)]


def test_neighbouring_pairs_of_a_prompt_stay_together():
    pairs = answers_to("a", 3) + answers_to("b", 1) + answers_to("a", 2)
    groups = by_prompt(pairs)
    assert [[pair.prompt for pair in group] for group in groups] == [["a"] * 3, ["b"], ["a"] * 2]
    assert [pair for group in groups for pair in group] == pairs
    sizes = lambda size: [[len(group) for group in batch] for batch in batches_of(groups, size)]
    assert sizes(1) == [[3], [1], [2]] and sizes(4) == [[3, 1], [2]] and sizes(5) == sizes(6) == [[3, 1, 2]]


def test_every_pass_trains_on_all_pairs_in_a_new_order():
    pairs = [pair for prompt in "abcdefgh" for pair in answers_to(prompt, 2)]
    batches = training_batches(pairs, RewardConfig(epochs=2.5, batch_size=4), rng())
    assert [len(batch) for batch in batches] == [2] * 10  # 2.5 x 8 prompts, two of them a step
    order = [group[0].prompt for batch in batches for group in batch]
    assert sorted(order[:8]) == sorted(order[8:16]) == list("abcdefgh") and order[:8] != order[8:16]
    with pytest.raises(UserError, match="16 preference pairs, those held out not counted, do not fill one batch of 17"):
        training_batches(pairs, RewardConfig(batch_size=17), rng())


def test_an_answer_of_several_pairs_is_rated_once():
    """Five pairs of four different rows; a truncated answer and the same text with its end are two rows."""
    model, rated_rows = rated(), []
    whole = [Preference("a", "b", "c"), Preference("a", "c", "b"), Preference("a", "b", "hh")]
    pairs = [*whole, Preference("a", Truncated("b"), "c"), Preference("a", "b", Truncated("b"))]

    def trunk(rows):
        rated_rows.extend(rows)
        return model.trunk(rows)

    chosen, rejected = rewards_of_pairs(model, trunk, pairs)
    assert len(rated_rows) == 4
    for found, end in ((chosen, "chosen"), (rejected, "rejected")):
        torch.testing.assert_close(found, model.raw([p.prompt for p in pairs], [getattr(p, end) for p in pairs]))
