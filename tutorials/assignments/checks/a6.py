"""Checks of a6: signs worked by hand, loops over single tokens, and each row alone through the model, unpadded.

Shape legend:  B rows   n tokens of one row   P longest prompt   T longest completion   D width
"""

from __future__ import annotations

import math
from functools import partial

import torch
from doubles import Letters, random_lm
from torch import Tensor

from alignpro_mini.options import UserError
from alignpro_mini.ppo import PPOConfig, PPOTrainer
from alignpro_mini.rollout import Policy, Rollout
from alignpro_mini.training import trunk
from alignpro_mini.transformer import Transformer
from checks.a5 import f64, oracle_assemble, oracle_gae
from checks.base import WRONG_SHAPES, Case, known, number, sentences

TRAINS = True  # some case makes an optimiser
GARBAGE = (7.0, math.inf, math.nan)
Row = tuple[list[int], list[int], bool]  # prompt and sampled tokens (Letters: 1 user, 2 assistant, 3 end), finished
ONE: list[Row] = [([1, 4, 2], [3], True)]
ROWS: list[Row] = [
    ([1, 4, 5, 6, 7, 2], [8, 4, 9, 3], True),
    ([1, 11, 2], [3], True),
    ([1, 5, 4, 2], [10, 7], False),
    ([1, 5, 4, 2], [6, 9, 3], True),
]


def cases(path: str, rng: torch.Generator) -> list[Case]:
    """The cases of a function, the smallest first."""
    made = {
        "policy_loss": _policy_loss,
        "value_loss": _value_loss,
        "explained_variance": _explained_variance,
        "adaptive_kl_coef": _adaptive_kl_coef,
        "states": _states,
        "scores": _scores,
        "assemble_rewards": _assemble_rewards,
        "estimate_advantages": _estimate_advantages,
        "extra_loss": _extra_loss,
        "loss": _loss,
    }
    return made[path.rpartition(".")[2]](rng)


# ---------------------------------------------------------------- pure functions


def ragged(rng: torch.Generator, *lengths: int) -> tuple[Tensor, Tensor]:
    """Numbers (B, T) and a mask of rows of these lengths."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randn(mask.shape, generator=rng, dtype=torch.float64), mask


def tokens(mask: Tensor) -> list[tuple[int, int]]:
    """(row, column) of each True entry."""
    return [(b, t) for b, row in enumerate(mask.tolist()) for t, real in enumerate(row) if real]


def oracle_surrogate(ratio, advantage: float, clip: float) -> tuple:
    """(loss of one token, whether the clip stops its gradient): case by case, without a minimum."""
    if advantage > 0 and ratio > 1 + clip:
        return -(1 + clip) * advantage, True
    if advantage < 0 and ratio < 1 - clip:
        return -(1 - clip) * advantage, True
    return -ratio * advantage, False


def oracle_policy_loss(logp, logp_old, advantages, mask, clip) -> tuple:
    if not logp.shape == logp_old.shape == advantages.shape == mask.shape:
        raise ValueError(WRONG_SHAPES)
    loss, clipped, ratios = torch.zeros(mask.shape, dtype=torch.float64), torch.zeros_like(mask), []
    for b, t in tokens(mask):
        ratios.append(math.exp(float(logp[b, t]) - float(logp_old[b, t])))
        loss[b, t], clipped[b, t] = oracle_surrogate(ratios[-1], float(advantages[b, t]), clip)
    return "loss", loss, "clipped", clipped, "ratio of the sampled tokens", f64(ratios)


def _seen(function, logp, logp_old, advantages, mask, clip) -> tuple:
    loss, seen = function(logp, logp_old, advantages, mask, clip)
    return "loss", loss, "clipped", seen["clipped"], "ratio of the sampled tokens", seen["ratio"][mask]


def _policy_loss(rng: torch.Generator) -> list[Case]:
    case = partial(Case, oracle=oracle_policy_loss, call=_seen)
    one, found = torch.ones(1, 1, dtype=torch.bool), []
    for advantage in (2.0, -2.0):
        for ratio in (0.5, 0.9, 1.1, 1.5):
            about = f"one token, A = {advantage:g}, ratio {ratio:g}, clip 0.2"
            found.append(case(about, (f64([[math.log(ratio)]]), f64([[0.0]]), f64([[advantage]]), one, 0.2)))
    (draw, mask), (advantages, _) = ragged(rng, 4, 1, 2), ragged(rng, 4, 1, 2)
    logp, step = -draw.abs() - 0.1, f64([[0.5, -0.45, 0.06, 0.3], [-0.6] * 4, [0.31, 0.4, 0, 0]])
    for garbage in GARBAGE:
        fill = lambda x, g=garbage: torch.where(mask, x, g)
        args = (fill(logp), fill(logp - step), fill(advantages), mask, 0.2)
        found.append(case(f"three rows, {garbage} in the padding", args))
        # A gradient by logp alone: `ratio` is for the log, its gradient is not asked for.
        alone = lambda *a: oracle_policy_loss(*a)[1]
        about = f"the gradient by logp of three rows, {garbage} in the padding"
        found.append(Case(about, args, alone, gradient=True, call=lambda function, *a: function(*a)[0]))
    for advantage in (2.0, -2.0):
        for far in (7.0, 30.0, -7.0, -30.0):
            about = f"one token, A = {advantage:g}, a log-ratio of {far:g}, clip 0.2"
            found.append(case(about, (f64([[-0.5]]), f64([[-0.5 - far]]), f64([[advantage]]), one, 0.2)))
    found.append(
        case("a sampled token whose log-prob is NaN", (f64([[math.nan]]), f64([[0.0]]), f64([[1.0]]), one, 0.2))
    )
    found += [
        case("another clip, 0.5", (logp, logp - step, advantages, mask, 0.5)),
        case("logp (B, 1) instead of (B, T)", (logp[:, :1], logp, advantages, mask, 0.2)),
        case("advantages (B, 1) instead of (B, T)", (logp, logp, advantages[:, :1], mask, 0.2)),
    ]
    return found


def oracle_square(v, old: float, target: float, clip: float) -> tuple:
    """(half the squared error of one token, whether the clipped branch was larger)."""
    plain, now = (v - target) ** 2 / 2, torch.as_tensor(v).item()
    if abs(now - old) <= clip:
        return plain, False
    limited = (old + math.copysign(clip, now - old) - target) ** 2 / 2
    return (limited, True) if limited > (now - target) ** 2 / 2 else (plain, False)


def oracle_value_loss(values, values_old, returns, mask, clip) -> tuple[Tensor, Tensor]:
    if not values.shape == values_old.shape == returns.shape == mask.shape:
        raise ValueError(WRONG_SHAPES)
    loss, clipped = torch.zeros(mask.shape, dtype=torch.float64), torch.zeros_like(mask)
    for b, t in tokens(mask):
        numbers = (float(x[b, t]) for x in (values, values_old, returns))
        loss[b, t], clipped[b, t] = oracle_square(*numbers, clip)
    return loss, clipped


def _value_loss(rng: torch.Generator) -> list[Case]:
    case = partial(Case, oracle=oracle_value_loss)
    one, found = torch.ones(1, 1, dtype=torch.bool), []
    for v, target in ((0.5, 1.0), (0.5, -1.0), (0.1, 1.0), (-0.5, -1.0)):
        about = f"one token, V = {v:g}, V_old = 0, R = {target:g}, clip 0.2"
        found.append(case(about, (f64([[v]]), f64([[0.0]]), f64([[target]]), one, 0.2)))
    about = "one token inside the clip, V = 0.1, V_old = -0.2, R = 0, clip 0.5"
    found.append(case(about, (f64([[0.1]]), f64([[-0.2]]), f64([[0.0]]), one, 0.5)))
    found.append(
        case("one token, V = 100, V_old = 99.9, R = -50", (f64([[100.0]]), f64([[99.9]]), f64([[-50.0]]), one, 0.2))
    )
    found.append(
        case(
            "one token, V = 100, V_old = 0, R = 300, clip 50", (f64([[100.0]]), f64([[0.0]]), f64([[300.0]]), one, 50.0)
        )
    )
    found.append(case("a sampled token whose value is NaN", (f64([[math.nan]]), f64([[0.0]]), f64([[1.0]]), one, 0.2)))
    (values, mask), (old, _), (returns, _) = (ragged(rng, 4, 1, 2) for _ in range(3))
    for garbage in GARBAGE:
        fill = lambda x, g=garbage: torch.where(mask, x, g)
        about = f"three rows, {garbage} in the padding of the values"
        found.append(case(about, (fill(values), old, returns, mask, 0.4), gradient=True))
        about = f"three rows, {garbage} in all padding"
        found.append(case(about, (fill(values), fill(old), fill(returns), mask, 0.4), gradient=True))
    found.append(case("returns (B, 1) instead of (B, T)", (values, old, returns[:, :1], mask, 0.4)))
    return found


def variance(numbers: list[float]) -> float:
    mean = math.fsum(numbers) / len(numbers)
    return math.fsum((x - mean) ** 2 for x in numbers) / len(numbers)


def oracle_explained(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    pairs = [(float(values[i]), float(returns[i])) for i in tokens(mask)]
    return f64(1 - variance([r - v for v, r in pairs]) / max(variance([r for _, r in pairs]), 1e-8))


def _explained_variance(rng: torch.Generator) -> list[Case]:
    returns, mask = f64([[1, 2, 3, -6]]), torch.ones(1, 4, dtype=torch.bool)
    told = lambda x: "a tensor" if isinstance(x, Tensor) else f"a {type(x).__name__}, not a tensor"
    call = lambda function, *args: (found := function(*args), told(found))
    case = partial(Case, oracle=partial(call, oracle_explained), call=call)
    found = [
        case("values = returns / 2", (returns / 2, returns, mask)),
        case("values = returns", (returns.clone(), returns, mask)),
        case("values = returns + 10", (returns + 10, returns, mask)),
        case("values all 4", (torch.full_like(returns, 4), returns, mask)),
        case("values = -returns", (-returns, returns, mask)),
        case("values = 100 returns", (100 * returns, returns, mask)),
        case("returns that hardly vary, by 0.0001", (1e-5 * returns, 1e-4 * returns / 5, mask)),
        case("values and returns all 4", (torch.full_like(returns, 4), torch.full_like(returns, 4), mask)),
    ]
    (values, mask), (returns, _) = ragged(rng, 4, 1, 2), ragged(rng, 4, 1, 2)
    for garbage in GARBAGE:
        fill = lambda x, g=garbage: torch.where(mask, x, g)
        found.append(case(f"three rows, {garbage} in the padding", (fill(values), fill(returns), mask)))
    return found


def oracle_coef(coef: float, kl: float, target: float, horizon: float, steps: float) -> float:
    error = (kl - target) / target
    error = 0.2 if error > 0.2 else -0.2 if error < -0.2 else error
    return coef + coef * error * steps / horizon


def _adaptive_kl_coef(rng: torch.Generator) -> list[Case]:
    told = ((4.4, "above it"), (3.6, "below it"), (4.0, "equal to it"), (400.0, "far above it"), (0.0, "far below it"))
    call = lambda function, *args: number(function(*args))
    case = partial(Case, oracle=partial(call, oracle_coef), call=call)
    found = [case(f"coef 10, target 4, kl {kl:g}: {how}", (10.0, kl, 4.0, 640.0, 64.0)) for kl, how in told]
    found.append(case("another horizon", (0.1, 6.5, 6.0, 10_000.0, 128)))
    found.append(case("as many steps as the horizon", (0.1, 6.5, 6.0, 128.0, 128)))
    found += [case(f"coef {coef:g}", (coef, 6.5, 6.0, 10_000.0, 128)) for coef in (1e-5, 1e3)]
    return found


# ---------------------------------------------------------------- rows for the policy and the trainer


def tiny(family: str, seed: int) -> Transformer:
    return random_lm(family, seed=seed, spread=0.3, d_model=8, n_heads=2)


def trainer(score=None, family: str = "llama", kind: type[PPOTrainer] = PPOTrainer, **options) -> PPOTrainer:
    """A trainer far from its reference, with a value head that is not zero."""
    lm, reference = (tiny(family, seed) for seed in (1, 2))
    config = PPOConfig(iterations=1, **({"batch_size": 4, "num_minibatches": 1, "ppo_epochs": 1} | options))
    made = kind(lm, reference, Letters(), score or (lambda xs, ys: [0.0] * len(xs)), config)
    with torch.no_grad():
        made.policy.value_head.weight.copy_(torch.linspace(-1, 1, lm.config.d_model))
        made.policy.value_head.bias.fill_(0.3)
    return made


def batch(rows: list[Row], **numbers: Tensor) -> Rollout:
    """These rows as the trainer has them: prompts left-padded, completions right-padded with a letter."""
    P, T = (max(len(row[i]) for row in rows) for i in (0, 1))
    ids = torch.full((len(rows), P + T), 7)
    mask = torch.zeros(len(rows), P + T, dtype=torch.bool)
    for b, (prompt, new, _) in enumerate(rows):
        real = slice(P - len(prompt), P + len(new))
        ids[b, real], mask[b, real] = torch.tensor(prompt + new), True
    blanks = {name: torch.zeros(len(rows), T) for name in ("logp", "logp_ref", "logp_gap", "values")}
    blanks |= {name: torch.zeros(len(rows), T) for name in ("kl_exact", "entropy")}
    return Rollout(
        prompts=[Letters().decode(prompt) for prompt, _, _ in rows],
        completions=[Letters().decode(new) for _, new, _ in rows],
        finished=torch.tensor([finished for _, _, finished in rows]),
        features=ids,
        mask=mask,
        tokens=ids[:, P:],
        action=mask[:, P:],
        **blanks | {name: value.clone() for name, value in numbers.items()},
    )


def filled(rows: list[Row], x: Tensor, garbage: float) -> Tensor:
    """x (B, T) with garbage in the padding of these rows."""
    return torch.where(batch(rows).action, x, garbage)


def oracle_states(lm: Transformer, row: Row) -> Tensor:
    """(n, D): the states that predict the sampled tokens of one row, which goes through the model alone."""
    prompt, new, _ = row
    first = len(prompt) - 1  # token 0 is predicted from the prompt's last state
    return lm.hidden(torch.tensor([prompt + new]))[0, first : first + len(new)]


def _states(rng: torch.Generator) -> list[Case]:
    found = []
    for family, train_layers, rows in (("llama", 0, ONE), ("llama", 0, ROWS), ("gpt2", 0, ROWS), ("llama", 1, ROWS)):
        lm, other = (tiny(family, seed) for seed in (3, 4))
        part = batch(rows)
        T = part.action.shape[1]

        def call(function, policy, lm, features, mask, T, action=part.action):
            found = function(policy, lm, features, mask, T)
            about = f"shape {tuple(found.shape)}, gradients flow: {found.requires_grad}, states of the sampled tokens"
            return about, found[action].detach()

        def oracle(policy, lm, features, mask, T, rows=rows):
            alone = [oracle_states(lm, row) for row in rows]
            shape = (len(rows), T, alone[0].shape[1])
            return f"shape {shape}, gradients flow: True, states of the sampled tokens", torch.cat(alone)

        for asked, told in ((lm, "its own model"), (other, "another model")):
            args = (Policy(lm, train_layers), asked, trunk(asked, part.features, part.mask, train_layers), part.mask, T)
            about = f"{len(rows)} row(s), {family}, {told}, train_layers {train_layers}"
            found.append(Case(about, args, torch.no_grad()(oracle), call=call, tolerance=1e-4))
    return found


# ---------------------------------------------------------------- scores, rewards, advantages


def oracle_scores(t: PPOTrainer, rollout: Rollout) -> tuple[Tensor, str]:
    found = t.score(rollout.prompts, rollout.completions)
    if torch.as_tensor(found).shape != (len(rollout.prompts),):
        raise UserError(WRONG_SHAPES)
    numbers = [float(x) for x in found]
    if not all(map(math.isfinite, numbers)):
        raise FloatingPointError("not finite")
    return f64(numbers), str(rollout.logp.dtype)


def _scores(rng: torch.Generator) -> list[Case]:
    length = lambda xs, ys: [len(y) - 10.0 * len(x) for x, y in zip(xs, ys)]
    kinds = [
        ("a list of floats", length),
        ("a list of integers", lambda xs, ys: [int(s) for s in length(xs, ys)]),
        ("a float64 tensor", lambda xs, ys: f64(length(xs, ys))),
        ("scores of some thousands", lambda xs, ys: [1000 * s for s in length(xs, ys)]),
        ("scores (B, 1)", lambda xs, ys: f64(length(xs, ys))[:, None]),
        ("one score for all", lambda xs, ys: torch.zeros(())),
        ("scores of too few completions", lambda xs, ys: torch.zeros(len(xs) - 1)),
        ("a score that is nan", lambda xs, ys: [math.nan, *length(xs, ys)[1:]]),
        ("a score that is infinite", lambda xs, ys: [*length(xs, ys)[1:], -math.inf]),
    ]

    def call(function, t, rollout):
        found = function(t, rollout)
        return found, str(found.dtype)

    made = lambda score: (trainer(score), batch(ROWS))
    return [Case(about, partial(made, score), oracle_scores, call=call) for about, score in kinds]


def oracle_rewards(t: PPOTrainer, rollout: Rollout) -> Tensor:
    kl = torch.zeros(rollout.action.shape, dtype=torch.float64)
    for i in tokens(rollout.action):
        kl[i] = float(rollout.logp[i]) - float(rollout.logp_ref[i])
    ends = zip(rollout.scores.tolist(), rollout.finished.tolist())
    scores = f64([s if finished else s - t.config.missing_eos_penalty for s, finished in ends])
    return oracle_assemble(scores, kl, rollout.action, t.kl_coef)


def _assemble_rewards(rng: torch.Generator) -> list[Case]:
    def case(about: str, rows: list[Row], garbage: float = 0.0, coef: float | None = None, size=1.0, **options) -> Case:
        draw = lambda *shape: size * torch.randn(*shape, generator=rng, dtype=torch.float64)
        shape = batch(rows).action.shape
        numbers = {name: filled(rows, draw(*shape), garbage) for name in ("logp", "logp_ref")}
        numbers["scores"] = draw(len(rows))

        def args() -> tuple:
            t = trainer(**options)
            t.kl_coef = t.kl_coef if coef is None else coef
            return t, batch(rows, **numbers)

        return Case(about, args, oracle_rewards)

    truncated = [([1, 4, 2], [5, 6], False)]
    found = [
        case("one token", ONE),
        case("one row that ended without EOS", truncated, missing_eos_penalty=2.5),
        case("an adapted coefficient: kl_coef of the trainer 0.9, of the config 0.1", ONE, coef=0.9),
        case("four rows", ROWS, kl_coef=0.4),
        case("four rows, log-probs and scores of some tens", ROWS, size=30.0, kl_coef=0.4),
        case("four rows, kl_coef 3", ROWS, kl_coef=3.0),
    ]
    return found + [case(f"four rows, {g} in the padding", ROWS, g, kl_coef=0.4) for g in GARBAGE]


def oracle_advantages(t: PPOTrainer, rollout: Rollout, rewards: Tensor) -> tuple:
    c, mask = t.config, rollout.action
    raw, returns = oracle_gae(rewards, rollout.values, mask, c.gamma, c.gae_lambda)
    kept = [float(raw[i]) for i in tokens(mask)]
    spread, mean = math.sqrt(variance(kept)), math.fsum(kept) / len(kept)
    advantages = raw
    if c.whiten_advantages:
        advantages = torch.where(mask, (raw - mean) / math.sqrt(spread**2 + 1e-8), 0.0)
    return "advantages", advantages, "returns", returns, "advantage_std", *number(spread, "advantage_std")


def _estimated(function, t: PPOTrainer, rollout: Rollout, rewards: Tensor) -> tuple:
    """What the method left in the rollout."""
    function(t, rollout, rewards)
    spread = number(rollout.advantage_std, "advantage_std")
    return "advantages", rollout.advantages, "returns", rollout.returns, "advantage_std", *spread


def _estimate_advantages(rng: torch.Generator) -> list[Case]:
    def case(about: str, rows: list[Row], garbage: float = 0.0, best: float = 0.0, **options) -> Case:
        shape = batch(rows).action.shape
        draw = lambda fill: filled(rows, torch.randn(shape, generator=rng, dtype=torch.float64), fill)
        rewards, values = draw(0.0), draw(garbage)
        rewards[0, 0] += best
        args = lambda: (trainer(**options), batch(rows, values=values), rewards.clone())
        return Case(about, args, oracle_advantages, call=_estimated)

    two = [([1, 4, 2], [5, 3], True)]
    found = [
        case("one row of two tokens, not whitened", two, whiten_advantages=False),
        case("one row of two tokens, whitened", two),
        case("four rows, not whitened", ROWS, whiten_advantages=False, gamma=0.9, gae_lambda=0.6),
        case("four rows, not whitened, one reward of 100", ROWS, best=100.0, whiten_advantages=False),
        case("120 rows of one token, one reward of 100", ONE * 120, best=100.0),
    ]
    found += [case(f"four rows, whitened, {g} in the padding", ROWS, g, gamma=0.9, gae_lambda=0.6) for g in GARBAGE]
    return found


# ---------------------------------------------------------------- the loss


def oracle_extra_loss(t: PPOTrainer, part: Rollout, logp: Tensor, values: Tensor) -> tuple:
    """(loss, what is logged, gradient by the values), token by token."""
    gradient, sums = torch.zeros(values.shape, dtype=torch.float64), [0.0, 0.0]
    for i in tokens(part.action):
        v = torch.tensor(float(values[i]), dtype=torch.float64, requires_grad=True)
        loss, clipped = oracle_square(v, float(part.values[i]), float(part.returns[i]), t.config.value_clip_range)
        loss = torch.as_tensor(loss)
        if loss.requires_grad:
            gradient[i] = t.config.vf_coef * torch.autograd.grad(loss, v)[0]
        sums[0] += loss.item()
        sums[1] += clipped
    return _extra(t.config.vf_coef * sums[0], {"value_loss": sums[0], "value_clip_fraction": sums[1]}, gradient)


def _extra(total, parts: dict[str, float], gradient: Tensor) -> tuple:
    wrong = "".join(f"; {number(x, name)[1]}" for name, x in parts.items() if not isinstance(x, (int, float)))
    names = sorted(parts)
    logged = f64([float(parts[name]) for name in names])
    return "loss", f64(float(total)), f"logged ({', '.join(names)}{wrong})", logged, "gradient by the values", gradient


def _extra_loss(rng: torch.Generator) -> list[Case]:
    def call(function, t, part, logp, values):
        values = values.requires_grad_()
        total, parts = function(t, part, logp, values)
        (gradient,) = torch.autograd.grad(total, values) if total.requires_grad else (torch.zeros_like(values),)
        return _extra(total.detach(), parts, gradient)

    def case(about: str, rows: list[Row], garbage: float = 0.0, **options) -> Case:
        shape = batch(rows).action.shape
        draw = lambda fill: filled(rows, torch.randn(shape, generator=rng), fill)
        old, returns, logp = draw(garbage), draw(garbage), draw(0.0)
        values = torch.where(batch(rows).action, old + draw(0.0) / 2, 7.0)  # no garbage: they come from the model
        args = lambda: (trainer(**options), batch(rows, values=old, returns=returns), logp.clone(), values.clone())
        return Case(about, args, oracle_extra_loss, call=call, tolerance=1e-5)

    found = [
        case("one row of one token", ONE),
        case("one row of one token, vf_coef 0.5", ONE, vf_coef=0.5),
        case("four rows", ROWS),
        case("four rows, value clip range 0.15", ROWS, value_clip_range=0.15),
        case("four rows, advantages not whitened", ROWS, whiten_advantages=False),
    ]
    return found + [case(f"four rows, {g} in the padding", ROWS, g) for g in GARBAGE]


def weights(t: PPOTrainer) -> list[Tensor]:
    """Two small weights whose gradients are compared: one below both losses, one of the value head alone."""
    return [t.policy.lm.norm.weight, t.policy.value_head.weight]


def with_gradients(total: Tensor, parts: dict[str, float], t: PPOTrainer) -> tuple:
    """The loss, what is logged, and the gradients of two weights; each after its name."""
    names = sorted(parts)
    wrong = "".join(f"; {number(x, name)[1]}" for name, x in parts.items() if not isinstance(x, (int, float)))
    found = torch.autograd.grad(total, weights(t), allow_unused=True) if total.requires_grad else (None, None)
    gradients = [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights(t))]
    logged = f64([float(parts[name]) for name in names])
    told = ("gradient of the last norm", gradients[0], "gradient of the value head", gradients[1])
    return "loss", total.detach(), f"logged ({', '.join(names)}{wrong})", logged, *told


class Halved(PPOTrainer):
    """Another variant: its log-ratio is half of a token's."""

    def ratio_logprobs(self, logp: Tensor, part: Rollout) -> tuple[Tensor, Tensor]:
        return logp / 2, part.logp / 2


def oracle_loss(t: PPOTrainer, part: Rollout, rows: list[Row]) -> tuple:
    c, total = t.config, torch.zeros((), dtype=torch.float64)
    sums = dict.fromkeys(["policy_loss", "clip_fraction", "approx_kl", "ratio_max"], 0.0)
    sums |= {"value_loss": 0.0, "value_clip_fraction": 0.0}
    for b, row in enumerate(rows):
        logp, values = oracle_alone(t, row)
        for i, new in enumerate(logp):
            d = new - float(part.logp[b, i])
            ratio = torch.exp(d / 2 if isinstance(t, Halved) else d)
            loss, clipped = oracle_surrogate(ratio, float(part.advantages[b, i]), c.clip_range)
            total = total + loss
            sums["policy_loss"] += torch.as_tensor(loss).item()
            sums["clip_fraction"] += clipped
            sums["ratio_max"] = max(sums["ratio_max"], ratio.item())
            sums["approx_kl"] += math.exp(d.item()) - 1 - d.item()
            numbers = float(part.values[b, i]), float(part.returns[b, i])
            loss, clipped = oracle_square(values[i], *numbers, c.value_clip_range)
            total = total + c.vf_coef * loss
            sums["value_loss"] += torch.as_tensor(loss).item()
            sums["value_clip_fraction"] += clipped
    return with_gradients(total, sums, t)


def oracle_alone(t: PPOTrainer, row: Row) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probability and value of each sampled token of one row, which goes through the model alone."""
    states = oracle_states(t.policy.lm, row)  # (n, D)
    logits = t.policy.lm.unembed(states).double() / t.config.temperature  # (n, V)
    values = states.double() @ t.policy.value_head.weight[0].double() + t.policy.value_head.bias.double()  # (n,)
    return [z[token] - torch.logsumexp(z, 0) for z, token in zip(logits, row[1])], list(values)


@torch.no_grad()
def oracle_numbers(t: PPOTrainer, row: Row) -> list[list[float]]:
    return [[float(x) for x in numbers] for numbers in oracle_alone(t, row)]


def _loss(rng: torch.Generator) -> list[Case]:
    # How far the policy has moved since the rollout: ratios below, inside and above the clip of 0.2.
    moved = torch.tensor([[0.6, -0.5, 0.06, 0.5], [-0.6] * 4, [0.4, 0.31, 0, 0], [-0.1, 0.1, 0.05, 0]])
    drift = torch.tensor([[0.7, -0.9, 0.1, -0.1], [0.5] * 4, [-0.2, -0.8, 0, 0], [0.6, 0.3, -0.6, 0]])

    def case(about: str, rows: list[Row], garbage=0.0, falls=False, **options):
        shape = batch(rows).action.shape
        draw = lambda: torch.randn(shape, generator=rng)
        t = trainer(**options)
        logp, values = torch.zeros(shape), torch.zeros(shape)
        alone = known(rng, lambda: [oracle_numbers(t, row) for row in rows])
        for b, numbers in enumerate(alone):
            for x, ours in zip((logp, values), numbers):
                x[b, : len(ours)] = torch.tensor(ours)
        step = moved[: shape[0], : shape[1]]
        numbers = {
            "logp": logp - (-step.abs() if falls else step),
            "logp_ref": logp - 0.5 * draw(),
            "values": values - drift[: shape[0], : shape[1]],
            "advantages": draw(),
            "returns": values + draw(),
        }
        numbers = {name: filled(rows, x, garbage) for name, x in numbers.items()}

        def args() -> tuple:
            made = trainer(**options)
            part = batch(rows, **numbers)
            part.features = trunk(made.policy.lm, part.features, part.mask, made.config.train_layers)
            return made, part

        call = lambda function, t, part: with_gradients(*function(t, part), t)
        return Case(about, args, partial(oracle_loss, rows=rows), call=call, tolerance=1e-3)

    found = [
        case("one row of one token", ONE),
        case("one row of one token, vf_coef 0.5", ONE, vf_coef=0.5),
        case("one row of one token, temperature 0.7", ONE, temperature=0.7),
        case("four rows", ROWS),
        case("four rows, GPT-2, temperature 1.6", ROWS, family="gpt2", temperature=1.6),
        case("four rows, only the top block trains", ROWS, train_layers=1),
        case("four rows, all ratios below 1", ROWS, falls=True),
        case("four rows, clip ranges 0.45 and 0.15", ROWS, clip_range=0.45, value_clip_range=0.15),
        case("four rows, temperature 0.15: tokens that hardly ever come", ROWS, temperature=0.15),
        case("four rows, a variant whose ratio_logprobs are other ones", ROWS, kind=Halved),
    ]
    return found + [case(f"four rows, {g} in the padding", ROWS, g) for g in GARBAGE]


# ---------------------------------------------------------------- all together


def whole(rng: torch.Generator) -> list[Case]:
    """A rollout and the loss on it, row by row; then some iterations that must raise the score."""
    number = int(torch.randint(10**6, (), generator=rng))
    right = lambda *args: "all is right"
    return [
        Case("a rollout of 32 rows", (number,), oracle_rollout, call=_rollout, tolerance=1e-3),
        Case("13 iterations", (number,), right, call=_iterations, view=_rises),
    ]


LEARNERS = ["a", "bcdefgh", "hh", "gab"] * 8


def learner(number: int) -> PPOTrainer:
    """It is rewarded for each letter a."""
    score = lambda xs, ys: [float(y.count("a")) for y in ys]
    options = {"batch_size": 32, "max_new_tokens": 4, "missing_eos_penalty": 0.0, "kl_coef": 0.01, "ppo_epochs": 2}
    t = trainer(score, **options, lr=1e-2)
    t.generator, t.lr = torch.Generator().manual_seed(number), 1e-2
    return t


def _rollout(_, number: int) -> tuple:
    t = learner(number)
    rollout = t.rollout(LEARNERS)
    rollout.scores = t.scores(rollout)
    rewards = t.assemble_rewards(rollout)
    t.estimate_advantages(rollout, rewards)
    return "rewards", rewards, "advantages", rollout.advantages, *with_gradients(*t.loss(rollout), t)


def oracle_rollout(number: int) -> tuple:
    t = learner(number)
    rollout = t.rollout(LEARNERS)
    rollout.scores = f64([float(y.count("a")) for y in rollout.completions]).float()
    rewards = oracle_rewards(t, rollout)
    _, advantages, _, rollout.returns, _, rollout.advantage_std, _ = oracle_advantages(t, rollout, rewards)
    rollout.advantages = advantages.float()
    lengths = rollout.action.sum(1).tolist()
    rows = [(t.tokenizer.chat(x), new[:n], True) for x, new, n in zip(LEARNERS, rollout.tokens.tolist(), lengths)]
    return "rewards", rewards, "advantages", advantages, *oracle_loss(t, rollout, rows)


def _iterations(_, number: int) -> tuple[float, float]:
    """The mean score of the first and of the last of 13 iterations."""
    t = learner(number)
    scores = [t.step(LEARNERS)["score_mean"] for _ in range(13)]
    return scores[0], scores[-1]


def _rises(before: float, after: float) -> str:
    return sentences((after > before + 0.5, f"the score did not rise: {before:.2f} at first, {after:.2f} at last"))
