"""Checks of a4: each row alone through a tiny transformer, loops, labels drawn with Python's `math`, and properties."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from checks.base import WRONG_SHAPES, Case, number, sentences

TRAINS = True  # some case makes an optimiser
WEIGHTS = ("blocks.0.norm1.weight", "blocks.1.norm2.weight", "norm.weight")  # their gradients are compared


def f64(rows) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def seed(rng: torch.Generator) -> int:
    return int(torch.randint(10**6, (), generator=rng))


def language_model(rng: torch.Generator, family: str = "llama"):
    """Two blocks of width 16, a vocabulary of 12, random weights."""
    from doubles import random_lm

    return random_lm(family, seed(rng))


def gradients(total, module, names: tuple[str, ...]) -> list[Tensor]:
    """d total / d weight for the first four numbers of each weight; zeros where it does not depend on them."""
    weights = [module.get_parameter(name) for name in names]
    found: tuple = (None,) * len(weights)
    if isinstance(total, Tensor) and total.requires_grad:
        found = torch.autograd.grad(total, weights, allow_unused=True)
    return [torch.zeros(4) if g is None else g.flatten()[:4] for g in found]


def trained_only(found: list[Tensor], names: tuple[str, ...], train_layers: int, layers: int) -> list[Tensor]:
    """Zeros for the weights below the top `train_layers` blocks."""
    below = {f"blocks.{i}." for i in range(layers - train_layers)} if train_layers else set()
    return [torch.zeros_like(g) if any(b in name for b in below) else g for g, name in zip(found, names)]


# ---------------------------------------------------------------- answer_loss


def oracle_answer_loss(model, batch, train_layers: int = 0) -> tuple:
    """Row by row, unpadded; each answer token's -log softmax from a sum over the vocabulary; then autograd."""
    nats = []
    for prompt, answer in batch:
        logits = model(torch.tensor([[*prompt, *answer]]))[0].double()
        for t, token in enumerate(answer):
            z = logits[len(prompt) + t - 1]
            nats.append(sum((v - z.max()).exp() for v in z).log() + z.max() - z[token])
    loss = sum(nats) / len(nats)
    found = gradients(loss, model, WEIGHTS)
    return (loss.detach(), *trained_only(found, WEIGHTS, train_layers, model.config.n_layers))


def loss_and_gradients(function, model, batch, *train_layers) -> tuple:
    loss = function(model, batch, *train_layers)
    return (loss, *gradients(loss, model, WEIGHTS))


def loss_alone(function, model, batch) -> tuple:
    return (function(model, batch),)


def _answer_loss(rng: torch.Generator) -> list[Case]:
    llama, gpt2 = language_model(rng), language_model(rng, "gpt2")
    letters = lambda k: torch.randint(4, 12, (k,), generator=rng).tolist()
    row = lambda prompt, answer: ([1, *letters(prompt), 2], [*letters(answer), 3])
    ragged = [row(3, 5), row(7, 1), row(1, 0)]
    pad_like = ([1, 0, 5, 2], [0, 6, 0, 3])
    first = lambda *args: oracle_answer_loss(*args)[:1]
    numbers = [
        ("one row, its answer is EOS alone", llama, [row(1, 0)]),
        ("one row with an answer of two tokens", llama, [row(2, 1)]),
        ("two rows of the same length", llama, [row(2, 2), row(2, 2)]),
        ("two rows, answers of 1 and 4 tokens", llama, [row(2, 0), row(2, 3)]),
        ("two rows, one is padded", llama, [row(1, 1), row(4, 3)]),
        ("a row that holds token 0 as text", llama, [pad_like, row(4, 3)]),
        ("two rows of another family (gpt2)", gpt2, ragged[:2]),
    ]
    found = [Case(about, (model, batch), first, call=loss_alone, tolerance=1e-4) for about, model, batch in numbers]
    for train_layers in (0, 1, 2):
        about = f"four rows, train_layers {train_layers}: the loss and the gradients of three weights"
        args = (llama, [*ragged, pad_like], train_layers)
        found.append(Case(about, args, oracle_answer_loss, call=loss_and_gradients, tolerance=1e-3))
    sure = language_model(rng)
    with torch.no_grad():
        sure.norm.weight.mul_(10)
    found.append(Case("three rows, a model that is very sure", (sure, ragged), first, call=loss_alone, tolerance=1e-4))
    coarse = language_model(rng).bfloat16()
    in_float32 = lambda *args: "torch.float32"
    dtype = lambda function, *args: str(function(*args).dtype)
    found.append(Case("a model in bfloat16: the dtype of the loss", (coarse, ragged), in_float32, call=dtype))
    return found


# ---------------------------------------------------------------- bradley_terry_loss


def oracle_bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """ln(1 + e^-d), without an overflow for a large -d."""
    if chosen.shape != rejected.shape:
        raise ValueError(WRONG_SHAPES)
    d = [a - b for a, b in zip(chosen.tolist(), rejected.tolist())]
    return f64([v if math.isnan(v) else math.log1p(math.exp(-v)) if v > 0 else -v + math.log1p(math.exp(v)) for v in d])


def _bradley_terry(rng: torch.Generator) -> list[Case]:
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)
    found = [
        ("one pair, ln 3 against 0", (f64([math.log(3)]), f64([0.0])), False),
        ("two pairs", (f64([2.0, -1.0]), f64([0.0, 1.0])), False),
        ("five pairs, with the gradient", (draw(5), draw(5)), True),
        ("rewards far apart", (f64([800.0, -800.0]), f64([-800.0, 800.0])), True),
        ("a reward that is NaN", (f64([math.nan, 1.0]), f64([0.0, 0.0])), False),
        ("chosen (3, 1) against rejected (3,)", (draw(3, 1), draw(3)), False),
    ]
    return [Case(about, args, oracle_bradley_terry, gradient=gradient) for about, args, gradient in found]


# ---------------------------------------------------------------- RewardModel.forward

HEAD = ("head.weight", *(f"lm.{name}" for name in WEIGHTS))


def reward_model(rng: torch.Generator, train_layers: int = 0):
    """A reward model over `language_model`, with a head that is not zero, and a mean and std that are not 0 and 1."""
    from doubles import Letters

    from alignpro_mini.reward import RewardModel

    model = RewardModel(language_model(rng), Letters(), train_layers)
    torch.nn.init.normal_(model.head.weight, generator=rng)
    model.mean.fill_(3.0)
    model.std.fill_(2.0)
    return model


def oracle_rewards(model, rows: list[list[int]]) -> tuple:
    """w . h of each row alone, at its last token; then autograd."""
    rewards = []
    for row in rows:
        h = model.lm.hidden(torch.tensor([row]))[0, len(row) - 1]
        rewards.append(sum(w * v for w, v in zip(model.head.weight[0], h)))
    total = sum((i + 1) * r for i, r in enumerate(rewards))
    found = gradients(total, model, HEAD)
    found = trained_only(found, HEAD, model.train_layers, model.lm.config.n_layers)
    return (torch.stack(rewards).detach(), *found)


def rewards_and_gradients(function, model, features: Tensor, mask: Tensor) -> tuple:
    rewards = function(model, features, mask)
    if not isinstance(rewards, Tensor) or rewards.shape != (len(mask),):
        return (rewards,)
    total = (rewards * torch.arange(1, len(mask) + 1)).sum()
    return (rewards, *gradients(total, model, HEAD))


def padded(rows: list[list[int]], fill: int, columns: int = 0) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows)) + columns
    ids = torch.tensor([row + [fill] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[t < len(row) for t in range(width)] for row in rows])


def _forward(rng: torch.Generator) -> list[Case]:
    from alignpro_mini.training import trunk

    letters = lambda k: [1, *torch.randint(4, 12, (k,), generator=rng).tolist(), 3]
    ragged = [letters(4), letters(1), letters(7)]
    found = []

    def add(about: str, rows, fill: int, columns: int = 0, train_layers: int = 0) -> None:
        model = reward_model(rng, train_layers)
        ids, mask = padded(rows, fill, columns)
        features = trunk(model.lm, ids, None, train_layers)
        oracle = lambda model, features, mask: oracle_rewards(model, rows)
        args = (model, features, mask)
        found.append(Case(about, args, oracle, call=rewards_and_gradients, tolerance=1e-3))

    add("one row without padding", [letters(2)], 0)
    add("two rows, one of them padded", [letters(3), letters(1)], 0)
    add("padding that looks like another EOS", ragged, 3)
    add("padding that looks like text, two columns more than any row needs", ragged, 7, columns=2)
    add("three rows, train_layers 1: features, not ids", ragged, 0, train_layers=1)
    add("three rows, train_layers 2 of 2 blocks: ids", ragged, 0, train_layers=2)
    far = reward_model(rng)
    with torch.no_grad():
        far.head.weight.mul_(100)
    oracle = lambda model, features, mask: oracle_rewards(model, ragged)
    args = (far, *padded(ragged, 0))
    found.append(Case("three rows, large rewards", args, oracle, call=rewards_and_gradients, tolerance=1e-3))
    coarse = reward_model(rng).bfloat16()
    in_float32 = lambda *args: "torch.float32"
    dtype = lambda function, *args: str(function(*args).dtype)
    args = (coarse, *padded(ragged, 0))
    return [*found, Case("a model in bfloat16: the dtype of the rewards", args, in_float32, call=dtype)]


# ---------------------------------------------------------------- draw_preferences


@dataclass
class Worth:
    """The true reward as a table: (prompt, answer) -> number."""

    table: dict[tuple[str, str], float]

    def __call__(self, prompts, answers) -> list[float]:
        return [self.table[x, y] for x, y in zip(prompts, answers, strict=True)]


def oracle_preferences(prompts, first, second, gold: Worth, scale: float, generator, mismatched: bool = False) -> tuple:
    draws = torch.rand(len(prompts), generator=generator).tolist()
    labels, certainties = [], []
    for x, a, b, u in zip(prompts, first, second, draws):
        p = 1 / (1 + math.exp(-scale * (gold.table[x, a] - gold.table[x, b])))
        labels.append((x, a, b, mismatched) if u < p else (x, b, a, mismatched))
        certainties.append(p if u < p else 1 - p)
    return (labels, certainties)


def preferences(function, *args) -> tuple:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2**40)  # who draws from the global generator gets the same numbers each time, and other ones
        found = function(*args)
    return ([(p.prompt, p.chosen, p.rejected, p.mismatched) for p in found], [p.certainty for p in found])


def _draw_preferences(rng: torch.Generator) -> list[Case]:
    def case(about: str, differences: list[float], scale: float, *mismatched: bool) -> Case:
        names = [(f"x{i}", f"a{i}", f"b{i}") for i in range(len(differences))]
        gold = Worth({(x, b): 0.25 * i for i, (x, _, b) in enumerate(names)})
        gold.table |= {(x, a): gold.table[x, b] + d for (x, a, b), d in zip(names, differences)}
        prompts, first, second = map(list, zip(*names))
        drawn = seed(rng)
        args = lambda: (prompts, first, second, gold, scale, torch.Generator().manual_seed(drawn), *mismatched)
        return Case(about, args, oracle_preferences, call=preferences, tolerance=1e-5)

    many, small = torch.randn(40, generator=rng).tolist(), [0.3, -0.2, 0.1, -0.4, 0.2, -0.1, 0.15, -0.25]
    return [
        case("one pair, answer a is better by far", [9.0], 1.0),
        case("one pair, answer b is better by far", [-9.0], 1.0),
        case("eight pairs, one answer is a little better", small, 1.0),
        case("eight pairs, scale 3", small, 3.0),
        case("forty pairs, scale 1", many, 1.0),
        case("forty pairs, scale 3", many, 3.0),
        case("twenty equal pairs", [0.0] * 20, 2.0),
        case("three mismatched pairs", many[:3], 2.0, True),
    ]


# ---------------------------------------------------------------- split_by_prompt


Side = list[tuple[str, str, str, bool]]


def sides(function, pairs: list, share: float, drawn: int) -> tuple[Side, ...]:
    """(train, held out), each pair as (prompt, chosen, rejected, mismatched)."""
    train, heldout = function(pairs, share, torch.Generator().manual_seed(drawn))
    return tuple([(p.prompt, p.chosen, p.rejected, p.mismatched) for p in side] for side in (train, heldout))


def split_is_right(pairs: list, share: float, found: tuple[Side, ...]) -> str:
    """What is wrong with this split of these pairs."""
    train, heldout = found
    whole = [(p.prompt, p.chosen, p.rejected, p.mismatched) for p in pairs]
    out = {prompt for prompt, *_ in heldout}
    prompts = {p.prompt for p in pairs if not p.mismatched}
    count = max(1, round(share * len(prompts)))
    kept = Counter(pair for pair in whole if not (pair[3] and pair[0] in out))
    return sentences(
        (not out & {prompt for prompt, *_ in train}, "a prompt is on both sides"),
        (not any(pair[3] for pair in heldout), "a mismatched pair is held out"),
        (len(out) == count, f"{len(out)} prompts of {len(prompts)} are held out, not {count}"),
        (not any(pair[3] and pair[0] in out for pair in train), "mismatched pairs of a held-out prompt are trained on"),
        (not kept - Counter([*train, *heldout]), "pairs are lost"),
        (not Counter([*train, *heldout]) - Counter(whole), "pairs were added"),
    )


def many_splits(function, pairs: list, share: float, drawn: int) -> tuple:
    """One generator twice, and the held-out prompts of 60 others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        once = sides(function, pairs, share, drawn)
        torch.manual_seed(1)
        again = sides(function, pairs, share, drawn)
    heldout = [[prompt for prompt, *_ in sides(function, pairs, share, drawn + by)[1]] for by in range(60)]
    return once, again, heldout


def splits_follow_the_generator(pairs: list, once: list[Side], again: list[Side], heldout: list[list[str]]) -> str:
    """Whether the split is a function of the generator alone, and every prompt has its chance."""
    heldout = [set(prompts) for prompts in heldout]
    return sentences(
        (once == again, "the same generator gave two splits"),
        (any(h != heldout[0] for h in heldout), "60 generators gave the same split"),
        (set().union(*heldout) == {p.prompt for p in pairs if not p.mismatched}, "some prompt was never held out"),
    )


class Hashed(str):
    """A text whose hash depends on `process`, as Python draws the hashes of texts anew in every process."""

    process = 0

    def __hash__(self) -> int:
        return hash((self.process, str(self)))


def of_ten_processes(function, pairs: list, share: float, drawn: int) -> list[list[str]]:
    """The prompts that each of them would hold out."""
    found = []
    for Hashed.process in range(10):
        these = [replace(p, prompt=Hashed(p.prompt)) for p in pairs]
        found.append([str(prompt) for prompt, *_ in sides(function, these, share, drawn)[1]])
    return found


def is_that_of_every_process(found: list[list[str]]) -> str:
    told = "other prompts are held out in another process: a set of texts has another order there, so sort it"
    return sentences((all(set(prompts) == set(found[0]) for prompts in found), told))


def _split(rng: torch.Generator) -> list[Case]:
    from alignpro_mini.reward import Preference

    drawn = seed(rng)
    right = lambda *args: "all is right"
    pairs = [Preference(f"prompt {i % 8}", f"a{i}", f"b{i}") for i in range(24)]
    uneven = [Preference("prompt 0", f"a{i}", f"b{i}") for i in range(30)] + pairs
    other = [Preference(f"prompt {i % 8}", f"c{i}", f"d{i}", mismatched=True) for i in range(16)]
    only = Preference("only mismatched", "c", "d", mismatched=True)
    told = [
        ("four pairs of two prompts, share 0.5", [p for p in pairs if p.prompt in ("prompt 0", "prompt 1")][:4], 0.5),
        ("24 pairs of 8 prompts, share 0.25", pairs, 0.25),
        ("24 pairs of 8 prompts, share 0.01", pairs, 0.01),
        ("24 pairs of 8 prompts, share 0.3, which is 2.4 prompts", pairs, 0.3),
        ("24 pairs of 8 prompts, share 0.45, which is 3.6 prompts", pairs, 0.45),
        ("8 prompts, one of them with 33 pairs, share 0.5", uneven, 0.5),
        ("8 prompts, each with two mismatched pairs besides, share 0.25", pairs + other, 0.25),
        ("a prompt that has a mismatched pair only, share 0.8", [only, *pairs], 0.8),
        ("a pair of each prompt is there twice, share 0.5", [*pairs, *pairs[::3]], 0.5),
    ]
    found = [
        Case(
            about,
            (list(these), share, drawn),
            right,
            call=sides,
            view=lambda *x, t=these, s=share: split_is_right(t, s, x),
        )
        for about, these, share in told
    ]
    for about, these in (("in halves", pairs[:12]), ("with mismatched pairs", [*pairs[:8], *other[:8], only])):
        view = partial(splits_follow_the_generator, these)
        found.append(Case(f"60 splits {about}", (these, 0.5, drawn), right, call=many_splits, view=view))
    about, args = "the same pairs in ten processes", (pairs[:12], 0.5, drawn)
    call = lambda *args: (of_ten_processes(*args),)
    return [*found, Case(about, args, right, call=call, view=is_that_of_every_process)]


# ---------------------------------------------------------------- accuracy


@dataclass
class Rated:
    """A reward model that looks its rewards up: (prompt, answer) -> number."""

    table: dict[tuple[str, str], float]

    def raw(self, prompts, completions, batch: int = 64) -> Tensor:
        return torch.tensor([self.table[x, y] for x, y in zip(prompts, completions, strict=True)])

    def score(self, prompts, completions) -> Tensor:
        return (self.raw(prompts, completions) - 1) / 2


def oracle_accuracy(model: Rated, pairs) -> tuple:
    points = 0.0
    for p in pairs:
        a, b = model.table[p.prompt, p.chosen], model.table[p.prompt, p.rejected]
        points += 1.0 if a > b else 0.5 if a == b else 0.0
    return number(points / len(pairs))


def _accuracy(rng: torch.Generator) -> list[Case]:
    from alignpro_mini.reward import Preference

    def case(about: str, rewards: list[tuple[float, float]]) -> Case:
        pairs = [Preference(f"x{i}", f"chosen {i}", f"rejected {i}") for i in range(len(rewards))]
        table = {(p.prompt, p.chosen): a for p, (a, _) in zip(pairs, rewards)}
        table |= {(p.prompt, p.rejected): b for p, (_, b) in zip(pairs, rewards)}
        call = lambda function, *args: number(function(*args))
        return Case(about, (Rated(table), pairs), oracle_accuracy, call=call)

    several = torch.randint(-3, 4, (25, 2), generator=rng).float().tolist()
    return [
        case("one pair, rewards 2 and 1", [(2.0, 1.0)]),
        case("one pair, rewards 1 and 2", [(1.0, 2.0)]),
        case("one pair with equal rewards", [(1.0, 1.0)]),
        case("three pairs: right, wrong by far, right", [(1.0, 0.5), (-90.0, 9.0), (2.0, 1.0)]),
        case("two pairs, rewards that hardly differ", [(1.0, 1.0005), (2.0, 2.00001)]),
        case("25 pairs", several),
    ]


def cases(path: str, rng: torch.Generator) -> list[Case]:
    """The cases of a function, the smallest first."""
    made = {
        "sft.answer_loss": _answer_loss,
        "rl_math.bradley_terry_loss": _bradley_terry,
        "reward.RewardModel.forward": _forward,
        "reward.draw_preferences": _draw_preferences,
        "reward.split_by_prompt": _split,
        "reward.accuracy": _accuracy,
    }
    return made[path](rng)


def whole(rng: torch.Generator) -> list[Case]:
    """All together: a language model learns its answers, a reward model the preferences of a labeller."""
    right = lambda *args: "all is right"
    return [
        Case(
            "a language model that learns to answer",
            (seed(rng),),
            right,
            call=_learns_to_answer,
            view=_learned_to_answer,
        ),
        Case(
            "a reward model that learns preferences", (seed(rng),), right, call=_learns_to_rate, view=_learned_to_rate
        ),
    ]


def _small(rng: torch.Generator):
    from alignpro_mini.transformer import Transformer, TransformerConfig

    return Transformer(TransformerConfig(12, d_model=16, n_layers=1, n_heads=2, max_len=24), rng)


def _letters(rng: torch.Generator, count: int) -> str:
    return "".join("abcdefg"[i] for i in torch.randint(7, (count,), generator=rng).tolist())


def _learns_to_answer(_, number: int) -> tuple[float, float]:
    """The loss before and after."""
    from doubles import Letters

    from alignpro_mini.sft import SFTConfig, answer_loss, train_sft

    rng = torch.Generator().manual_seed(number)
    lm = _small(rng)
    examples = [Letters().chat_with_answer(x, x[-1]) for x in (_letters(rng, 3) for _ in range(200))]
    before = answer_loss(lm, examples).item()
    train_sft(lm, examples, SFTConfig(steps=80, batch_size=32, heldout_examples=20, lr=1e-2), generator=rng)
    return before, answer_loss(lm, examples).item()


def _learned_to_answer(before: float, after: float) -> str:
    return sentences(
        (abs(before - math.log(12)) < 1.5, f"an untrained model knows nothing yet, but its loss is {before:.2f}"),
        (after < before / 2, f"the loss on answers is {before:.2f} before and {after:.2f} after: not less than half"),
    )


def _learns_to_rate(_, number: int) -> tuple:
    """(accuracy of a head of zeros, pairs after the split, accuracy after, share of pairs labelled by the true reward)."""
    from doubles import Letters

    from alignpro_mini import reward

    rng = torch.Generator().manual_seed(number)
    gold = lambda prompts, answers: [float(y.count("h")) for y in answers]
    prompts = [_letters(rng, 3) for _ in range(200)]
    plain = [_letters(rng, 4) for _ in prompts]
    pairs = reward.draw_preferences(prompts, [y[:2] + "h" + y[2:] for y in plain], plain, gold, 4.0, rng)
    model = reward.RewardModel(_small(rng), Letters())
    before = reward.accuracy(model, pairs)
    config = reward.RewardConfig(epochs=4, batch_size=16, lr=1e-2)
    train, heldout = reward.split_by_prompt(pairs, config.heldout_share, rng)
    reward.train_reward_model(model, train, heldout, config, generator=rng)
    right = [p.certainty > 0.5 for p in pairs]
    return before, len(train) + len(heldout), reward.accuracy(model, pairs), sum(right) / len(right)


def _learned_to_rate(before: float, pairs: int, after: float, labelled: float) -> str:
    return sentences(
        (before == 0.5, f"a head of zeros prefers nothing, but its accuracy is {before}"),
        (pairs == 200, f"{pairs} pairs of 200 are left after the split"),
        (abs(after - labelled) < 0.1, f"an h is better in {labelled:.2f} of the pairs; the accuracy is {after:.2f}"),
    )
