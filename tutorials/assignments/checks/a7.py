"""Checks of a7: models that differ in one thing, a frozen model and a reward that record what they were given."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from alignpro_mini.options import UserError
from checks.base import WRONG_SHAPES, Case, sentences

TRAINS = True  # some case makes an optimiser


def seed(rng: torch.Generator) -> int:
    return int(torch.randint(10**6, (), generator=rng))


# ---------------------------------------------------------------- checksum


class Box(nn.Module):
    """A model made of given tensors: Box(w=..., scale=buffer(...))."""

    def __init__(self, **tensors) -> None:
        super().__init__()
        for name, x in tensors.items():
            if isinstance(x, nn.Module):
                self.add_module(name, x)
            elif isinstance(x, Buffer):
                self.register_buffer(name, x.tensor)
            else:
                self.register_parameter(name, nn.Parameter(x, requires_grad=x.is_floating_point()))


class Buffer:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def nested(draw) -> Box:
    """Parameters on two levels, and buffers of numbers, of integers, of booleans and of no axis at all."""
    inside = Box(w=draw(5, 4), b=draw(4), mean=Buffer(draw(())))
    steps, mask = Buffer(torch.tensor([3, 1, 2])), Buffer(torch.tensor([True, False]))
    return Box(inside=inside, w=draw(5, 4), steps=steps, mask=mask)


DIFFERENT, SAME = "two different checksums", "the same checksum twice"


def compared(function, a: nn.Module, b: nn.Module) -> tuple[str, str]:
    return function(a), function(b)


def same_or_not(a: str, b: str) -> str:
    return SAME if a == b else DIFFERENT


def moved_by_one_ulp(x: Tensor, index: tuple[int, ...]) -> None:
    """The smallest step that the number can make."""
    integers = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16}
    x.data.view(integers[x.dtype])[index] += 1


def form_is_right(found: str) -> str:
    """64 hexadecimal digits."""
    text = isinstance(found, str)
    return sentences(
        (text, "it is not a string"),
        (not text or (len(found) == 64 and set(found) <= set("0123456789abcdef")), "it is not 64 hexadecimal digits"),
    )


def _checksum(rng: torch.Generator) -> list[Case]:
    draw = lambda shape, *more: torch.randn((shape, *more) if isinstance(shape, int) else shape, generator=rng)
    found = []

    def add(about: str, a: nn.Module, b: nn.Module, want: str = DIFFERENT) -> None:
        found.append(Case(about, (a, b), lambda a, b: want, call=compared, view=same_or_not))

    def changed(about: str, model: nn.Module, change) -> None:
        other = copy.deepcopy(model)
        with torch.no_grad():
            change(other)
        add(about, model, other)

    nan = Box(w=torch.tensor([1.0, float("nan"), float("inf")]))
    changed("a model with a NaN, and a 0 in its place", nan, lambda m: m.w[1].fill_(0.0))
    changed(
        "a model with an infinite weight, and the largest number in its place",
        nan,
        lambda m: m.w[2].fill_(torch.finfo(torch.float32).max),
    )
    smallest = [found.pop(), found.pop()]
    w, one = Box(w=draw(3)), lambda model: model.w
    found.append(Case("a model of one weight (3,)", (w,), lambda model: "all is right", view=form_is_right))
    add("a copy of it", w, copy.deepcopy(w), SAME)
    changed("the model and a copy in which a weight is greater by 1", w, lambda m: m.w[2].add_(1.0))
    changed("the model and a copy whose last weight differs in its last bit", w, lambda m: moved_by_one_ulp(m.w, (2,)))
    changed("the model and a copy with weights 0 and 2 exchanged", w, lambda m: m.w.copy_(m.w[[2, 1, 0]]))
    add("a weight 0.0 and a weight -0.0", Box(w=torch.zeros(1)), Box(w=-torch.zeros(1)))
    add("two models that differ only in the name of the weight", w, Box(v=one(w).detach().clone()))
    six = draw(6)
    add("the same bytes as (2, 3) and as (3, 2)", Box(w=six.view(2, 3)), Box(w=six.view(3, 2).clone()))
    zeros = lambda dtype: Box(w=torch.zeros(2, dtype=dtype))
    add("the same bytes as float32 and as int32", zeros(torch.float32), zeros(torch.int32))
    add("float32 weights and the same ones as float64", w, copy.deepcopy(w).double())
    for dtype in (torch.float64, torch.bfloat16):
        model = Box(w=draw(2, 3).to(dtype))
        add(f"a {str(dtype)[6:]} model and its copy", model, copy.deepcopy(model), SAME)
        changed(
            f"a {str(dtype)[6:]} model and a copy with one last bit", model, lambda m: moved_by_one_ulp(m.w, (1, 0))
        )
    changed("a model of 2000 weights and a copy with one in the middle changed", Box(w=draw(2000)), _middle)
    tall = draw(4, 3)
    add("a weight and its transpose's transpose (not contiguous)", Box(w=tall), Box(w=tall.T.contiguous().T), SAME)
    found += smallest
    deep = nested(draw)
    add("a model with modules and buffers, and its copy", deep, copy.deepcopy(deep), SAME)
    flipped = copy.deepcopy(deep).eval()
    flipped.w.requires_grad_(False)
    flipped.inside.w.grad = torch.ones(5, 4)
    add("a copy in eval mode, one weight without a gradient, another with one", deep, flipped, SAME)
    for name in ("w", "inside.w"):
        for row in range(5):
            about = f"a model and a copy with one last bit in row {row} of {name}"
            changed(about, deep, lambda m, name=name, row=row: moved_by_one_ulp(m.get_parameter(name), (row, 3)))

    changed("a model and a copy with two weights of one shape exchanged", deep, _exchanged)
    changed("a model and a copy with another buffer of numbers", deep, lambda m: m.inside.mean.add_(0.5))
    changed("a model and a copy with another buffer of integers", deep, lambda m: m.steps[1].add_(1))
    changed("a model and a copy with another buffer of booleans", deep, lambda m: m.mask[1].fill_(True))
    return found


def _exchanged(model: nn.Module) -> None:
    model.w.data, model.inside.w.data = model.inside.w.data, model.w.data


def _middle(model: nn.Module) -> None:
    model.w[1000] += 1.0


# ---------------------------------------------------------------- FrozenLM.assert_unchanged


class Normed(nn.Module):
    """A layer whose running mean is a buffer."""

    def __init__(self, rng: torch.Generator) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)
        nn.init.normal_(self.linear.weight, generator=rng)


def complaint(function, frozen, after: str) -> str:
    """What it raises, or that it returns."""
    try:
        found = function(frozen, after)
    except (NotImplementedError, RecursionError):
        raise  # not written yet, or it calls itself: RuntimeErrors, too
    except RuntimeError as error:
        return f"RuntimeError: {error}"
    return "no error" if found is None else "it returned something"


def named(after: str, *complaints: str) -> str:
    """What was raised, each time; the error must hold the name of the stage."""
    kinds = {True: "a RuntimeError that names the stage", False: "a RuntimeError without the stage"}
    return " and ".join(kinds[after in c] if c.startswith("RuntimeError") else c for c in complaints)


def twice(function, frozen, after: str) -> tuple[str, str]:
    return complaint(function, frozen, after), complaint(function, frozen, after)


def _assert_unchanged(rng: torch.Generator) -> list[Case]:
    from doubles import Letters, random_lm

    from alignpro_mini.frozen import FrozenLM

    number = seed(rng)
    found, noticed, quiet = [], "a RuntimeError that names the stage", "no error"

    def add(about: str, change, want: str, after: str = "ppo", make=lambda: random_lm(seed=number), call=complaint):
        def args() -> tuple:
            frozen = FrozenLM(make(), Letters())
            with torch.no_grad():
                change(frozen.model)
            return frozen, after

        found.append(Case(about, args, lambda *args: want, call=call, view=partial(named, after)))

    def back(m) -> None:
        before = m.norm.weight[3].clone()
        m.norm.weight[3] += 1
        m.norm.weight[3] = before

    def scaled(m) -> None:
        for p in m.parameters():
            p.mul_(1.5)
        m.requires_grad_(True)

    normed = lambda: Normed(torch.Generator().manual_seed(number))
    add("an untouched model", lambda m: None, quiet)
    add("a model with one changed weight", lambda m: m.norm.weight[3].add_(1e-3), noticed)
    add("one weight changed in its last bit, the stage is called reward_model", _last_bit, noticed, "reward_model")
    add("one parameter requires gradients again", lambda m: m.norm.requires_grad_(True), noticed)
    add("all parameters require gradients again", lambda m: m.requires_grad_(True), noticed, "oracle")
    add("a weight that was changed and set back", back, quiet)
    add("weights changed, gradients required", scaled, noticed)
    add("an untouched model with buffers", lambda m: None, quiet, make=normed)
    add("a model with another running mean (a buffer)", lambda m: m.norm.running_mean[0].add_(1), noticed, make=normed)
    add("a changed model, asked twice", lambda m: m.norm.weight[0].add_(1), f"{noticed} and {noticed}", call=twice)
    return found


def _last_bit(model: nn.Module) -> None:
    moved_by_one_ulp(model.embed.weight, (11, 15))


# ---------------------------------------------------------------- usable_rewrites


class Room:
    """fits(prompt): at most `most` characters."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, prompt: str) -> bool:
        return len(prompt) <= self.most


def oracle_usable(requests: list[str], rewrites: list[str], fits: Room) -> tuple:
    if len(requests) != len(rewrites):
        raise ValueError("another number of rewrites")
    sent, replaced = [], 0
    for x, x_prime in zip(requests, rewrites):
        empty = all(c in " \n\t" for c in x_prime)
        if empty or len(x_prime) > fits.most:
            replaced += 1
        sent.append(x if empty or len(x_prime) > fits.most else x_prime)
    return (sent, replaced)


def _usable(rng: torch.Generator) -> list[Case]:
    word = lambda k: "".join("abcdefgh"[i] for i in torch.randint(8, (k,), generator=rng).tolist())
    requests = [f"request {i}" for i in range(12)]
    lengths = torch.randint(0, 9, (12,), generator=rng).tolist()
    told = [
        ("one usable rewrite", ["x1"], ["new"], 8),
        ("an empty rewrite", ["x1"], [""], 8),
        ("a rewrite of white space", ["x1"], [" \n\t"], 8),
        ("a rewrite that is too long", ["x1"], ["nine char"], 8),
        ("a rewrite that just fits", ["x1"], ["8 chars!"], 8),
        ("a rewrite that says the same as the request", ["x1"], ["x1"], 8),
        ("a rewrite with spaces around it", ["x1"], [" new "], 8),
        ("a request longer than any prompt may be", ["a very long request"], [""], 8),
        ("three requests, the second rewrite is empty", ["x1", "x2", "x3"], ["a", "", "c"], 8),
        ("twelve requests", requests, [word(k) for k in lengths], 4),
        ("two requests and one rewrite", ["x1", "x2"], ["a"], 8),
        ("one request and two rewrites", ["x1"], ["a", "b"], 8),
    ]
    return [Case(about, (x, x_prime, Room(most)), oracle_usable) for about, x, x_prime, most in told]


# ---------------------------------------------------------------- PromptScore.__call__


class Counting:
    """A frozen model: answers "<prompt>#<number of the answer>", every third one truncated; records what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.generators: list = []

    def fits(self, prompt: str) -> bool:
        return len(prompt) <= 5

    def answer(self, prompts, generator=None) -> list:
        from alignpro_mini.frozen import Answer

        self.generators.append(generator)
        start = len(self.asked)
        self.asked += prompts
        return [Answer(f"{p}#{i}", truncated=i % 3 == 2) for i, p in enumerate(prompts, start)]


class Noted:
    """A reward: the square of the answer's number, and 1000 for each letter of the prompt that it was given."""

    def __init__(self, form) -> None:
        self.form = form
        self.seen: list[tuple[str, str]] = []

    def __call__(self, prompts, completions):
        from alignpro_mini.training import Truncated

        texts = [f"{y} (truncated)" if isinstance(y, Truncated) else y for y in completions]
        self.seen += zip(prompts, texts, strict=True)
        return self.form([int(y.rpartition("#")[2]) ** 2 + 1000.0 * len(x) for x, y in zip(prompts, completions)])


def told_by(function, score, *calls) -> tuple:
    """Run it on these (requests, rewrites), one after another: the last scores and r, what it left, what it asked."""
    for requests, rewrites in calls:
        found = function(score, requests, rewrites)
    frozen, reward = score.frozen, score.reward
    same = set(map(id, frozen.generators)) == {id(score.generator)}
    texts, r = [a.text for a in score.y], score.r
    return (found, r, *shown(score.x_prime, score.x, texts, int(score.fallbacks), frozen.asked, reward.seen, same))


def shown(x_prime, x, texts, fallbacks, asked, seen, with_generator=True) -> list[str]:
    """What a call left in the object and what it asked for, as text with names."""
    left = [f"x_prime {list(x_prime)}", f"x {list(x)}", f"y {texts}", f"fallbacks {fallbacks}"]
    how = "with self.generator" if with_generator else "without self.generator"
    return [*left, f"asked {how} {asked}", f"the reward was given {seen}"]


def oracle_score(score, *calls) -> tuple:
    """Loops over requests and answers."""
    for requests, _ in calls:
        count = len(requests) * score.answers
        if torch.as_tensor(score.reward.form([0.0] * count)).shape != (count,):
            raise UserError(WRONG_SHAPES)
    number, M, asked, seen = 0, score.answers, [], []
    for requests, rewrites in calls:
        x_prime, x_all, texts, r, fallbacks = [], [], [], [], 0
        for x, new in zip(requests, rewrites):
            usable = new.strip() != "" and len(new) <= 5
            fallbacks += not usable
            x_prime.append(new if usable else x)
            rewards = []
            for _ in range(M):
                asked.append(x_prime[-1])
                x_all.append(x)
                texts.append(f"{x_prime[-1]}#{number}")
                seen.append((x, f"{texts[-1]} (truncated)" if number % 3 == 2 else texts[-1]))
                rewards.append(number**2 + 1000.0 * len(x))
                number += 1
            r.append(rewards)
        given = [float(x) for x in score.reward.form([x for row in r for x in row])]
        r = [given[i : i + M] for i in range(0, len(given), M)]
    means = torch.tensor([sum(row) / M for row in r])
    return (means, torch.tensor(r), *shown(x_prime, x_all, texts, fallbacks, asked, seen))


def _score(rng: torch.Generator) -> list[Case]:
    from alignpro_mini.alignpro import PromptScore

    def case(about: str, answers: int, *calls, form=list) -> Case:
        args = lambda: (PromptScore(Counting(), Noted(form), torch.Generator(), answers), *calls)
        return Case(about, args, oracle_score, call=told_by)

    three = ["x", "xx", "xxx"], ["one", "two", "three"]
    mixed = ["x", "xx", "xxx", "xxxx"], ["", "two", " \n", "much too long"]
    many = [f"x{i}" for i in range(6)], ["abcde"[: k + 1] for k in torch.randint(5, (6,), generator=rng).tolist()]
    in_double = lambda rows: torch.tensor(rows, dtype=torch.float64)
    with_nan = lambda rows: [float("nan"), *rows[1:]]
    return [
        case("one request, one answer", 1, (["x"], ["new"])),
        case("two requests, one answer each", 1, (["x", "xxx"], ["new", "other"])),
        case("one request, three answers", 3, (["x"], ["new"])),
        case("two requests, three answers each", 3, (["x", "xx"], ["new", "other"])),
        case("four requests, three of their rewrites cannot be sent, two answers each", 2, mixed),
        case("a reward that returns a float64 tensor", 2, three, form=in_double),
        case(
            "rewards of 200000, and of -200000",
            1,
            (["x" * 200, "y" * 200], ["new", "old"]),
            form=lambda r: [r[0], -r[1]],
        ),
        case("a reward that is NaN", 2, three, form=with_nan),
        case("a second call after one with fallbacks", 2, mixed, three),
        case("a reward of shape (M, B)", 2, three, form=lambda rows: torch.tensor(rows).view(2, -1)),
        case("a reward with too few numbers", 2, three, form=lambda rows: rows[:3]),
        case("a second call with fallbacks", 1, mixed, mixed),
        case("six requests, four answers each", 4, many, form=torch.tensor),
    ]


def cases(path: str, rng: torch.Generator) -> list[Case]:
    """The cases of a function, the smallest first."""
    made = {
        "frozen.checksum": _checksum,
        "frozen.FrozenLM.assert_unchanged": _assert_unchanged,
        "alignpro.usable_rewrites": _usable,
        "alignpro.PromptScore.__call__": _score,
    }
    return made[path](rng)


def whole(rng: torch.Generator) -> list[Case]:
    """All together: a score around a real frozen model, then one iteration of Align-Pro, which does not change it."""
    return [
        Case("three requests, two of their rewrites cannot be sent", (seed(rng),), oracle_real_score, call=_real_score),
        Case("one iteration of Align-Pro", (seed(rng),), lambda *args: "all is right", call=_iteration, view=_iterated),
    ]


def _real(number: int):
    """(a frozen model, a prompter, a reward that counts the letters of the answer, a generator)."""
    from doubles import Letters, random_lm

    from alignpro_mini.frozen import FrozenLM, SamplingConfig

    frozen = FrozenLM(random_lm(seed=number), Letters(), SamplingConfig(max_new_tokens=4))
    reward = lambda prompts, completions: torch.tensor(
        [float(len(y)) + 10 * len(x) for x, y in zip(prompts, completions)]
    )
    return frozen, random_lm(seed=number + 1), reward, torch.Generator().manual_seed(number)


REAL = ["a", "cd", "bb"], ["ab", "", "c" * 60]


def _real_score(_, number: int) -> tuple:
    from alignpro_mini.alignpro import PromptScore

    frozen, _, reward, rng = _real(number)
    score = PromptScore(frozen, reward, rng, answers=3)
    return score(*REAL), score.r, score.x_prime, score.x, [str(a.text) for a in score.y], score.fallbacks


def oracle_real_score(number: int) -> tuple:
    frozen, _, reward, rng = _real(number)
    sent, x = ["ab", "cd", "bb"], ["a"] * 3 + ["cd"] * 3 + ["bb"] * 3
    texts = [str(a.text) for a in frozen.answer([x_prime for x_prime in sent for _ in range(3)], rng)]
    r = reward(x, texts).view(3, 3)
    return torch.tensor([sum(row) / 3 for row in r.tolist()]), r, sent, x, texts, 2


def _iteration(_, number: int) -> tuple:
    """Checksums before and after of pi_F and rho_sft, that of rho, and whether a change of pi_F is noticed."""
    from doubles import Letters

    from alignpro_mini.alignpro import PromptScore, train_align_pro
    from alignpro_mini.frozen import checksum
    from alignpro_mini.ppo import PPOConfig, PPOTrainer

    frozen, rho_sft, reward, rng = _real(number)
    before = checksum(frozen.model), checksum(rho_sft)
    config = PPOConfig(iterations=1, batch_size=6, max_new_tokens=3, lr=1e-2)
    score = PromptScore(frozen, reward, rng, answers=2)
    rho = train_align_pro(PPOTrainer(copy.deepcopy(rho_sft), rho_sft, Letters(), score, config, rng), REAL[0])
    frozen.assert_unchanged("ppo")
    after = checksum(frozen.model), checksum(rho_sft)
    with torch.no_grad():
        frozen.model.norm.weight[0] += 1
    complaints = complaint(lambda frozen, stage: frozen.assert_unchanged(stage), frozen, "ppo")
    return list(before), list(after), checksum(rho), complaints


def _iterated(before: list[str], after: list[str], rho: str, told: str) -> str:
    return sentences(
        (before == after, "the checksum of the frozen model or of rho_sft is another one after training"),
        (rho != before[1], "the checksum of the trained prompter is that of rho_sft"),
        (told.startswith("RuntimeError"), "a changed frozen model was not noticed"),
    )
