"""The reward model: a transformer with one number read off the last token, learned from preferences.

    r(x, y) = w . h(x, y)[last]        P(chosen over rejected) = sigmoid(r(x, chosen) - r(x, rejected))  (Bradley-Terry)

[last] is the EOS, or the last token of an answer that was truncated before its EOS. Where both answers of every pair
reply to the same x, nothing teaches the model to read x: r(x, y) becomes r(y). So some pairs are *mismatched*: their
second answer belongs to another request. `swap_accuracy` measures whether the model reads x.

The likelihood fixes r only up to a constant per prompt and does not fix its scale. So after training r is shifted and
scaled to mean 0 and variance 1 over answers to the SFT prompter's rewrites. The KL coefficient lambda is in these
units. (A real model's truncated answers count in full there, although they are rated by whole sentences later.)

Shape legend:  B rows   T tokens   D width
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alignpro_mini import rl_math, training
from alignpro_mini.generation import by_length, pad_right
from alignpro_mini.options import MAX_GRAD_NORM, MICRO_BATCH, TRAIN_LAYERS, UserError, check_ranges, option, require
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.training import LOG_EVERY, Score, SilentStage, Stage, Truncated
from alignpro_mini.transformer import Transformer


@dataclass(frozen=True, slots=True)
class RewardConfig:
    """The reward model and its preferences."""

    pairs: int = option(3000, "preference pairs of the frozen LM's answers (files bring their own)", least=1)
    answers_per_request: int = option(2, "answers to a request, each compared with each of the others", least=2)
    preference_scale: float = option(2.0, "P(a over b) = sigmoid(scale x gold difference); larger is cleaner", above=0)
    mismatched: float = option(1.5, "further pairs with an answer to another request, for each of `pairs`", least=0)
    heldout_share: float = option(0.1, "share of the prompts whose pairs are kept out to measure accuracy")
    epochs: float = option(3.0, "passes over the pairs", above=0)
    batch_size: int = option(64, "pairs a step", least=1)
    micro_batch_size: int = option(16, MICRO_BATCH.format("pairs"), least=1)
    lr: float = option(2e-3, "peak learning rate", above=0)
    weight_decay: float = option(0.05, "AdamW's decoupled weight decay", least=0)
    max_grad_norm: float = option(1.0, MAX_GRAD_NORM, above=0)
    train_layers: int = option(0, TRAIN_LAYERS, least=0)
    blocks: int = option(0, "blocks of the LM that the reward model keeps, the lower ones; 0: all", least=0)
    read: str = option("last", "state that the reward is read off: the last token's, or the mean", ("last", "mean"))
    normalise_on: int = option(1000, "answers to SFT rewrites that set the reward's mean and scale", least=2)
    max_tokens: int = option(256, "pairs longer than this, prompt and answer, are left out and counted", least=1)

    def __post_init__(self) -> None:
        check_ranges(self)
        require(0 < self.heldout_share < 1, f"heldout_share is {self.heldout_share}; it is a share in (0, 1)")
        most = 2 / (self.answers_per_request - 1)  # as many as there are answers
        require(self.mismatched <= most, f"mismatched is {self.mismatched}; each answer serves once, {most:g} at most")


@dataclass(frozen=True, slots=True)
class Preference:
    """One comparison: `chosen` was preferred over `rejected` as an answer to `prompt`.

    `certainty` is the probability that a labeller prefers `chosen` again, where the world knows it. `mismatched`: one
    of the two answers belongs to another request.
    """

    prompt: str
    chosen: str
    rejected: str
    certainty: float | None = None
    mismatched: bool = False


class RewardModel(nn.Module):
    """A transformer trunk with a linear reward head; its `score(prompts, completions) -> (B,)` is a PPO score.

    Scores are normalised by `mean` and `std` (0 and 1 until `normalise` sets them).
    """

    def __init__(self, lm: Transformer, tokenizer: Tokenizer, train_layers: int = 0) -> None:
        super().__init__()
        self.lm, self.tokenizer = lm, tokenizer
        training.trainable(lm, train_layers)  # their dtype, also where finished weights are loaded
        # No bias: Bradley-Terry sees only differences of rewards, so its gradient would be rounding noise.
        self.head = nn.Linear(lm.config.d_model, 1, bias=False, device=lm.device)
        # Zero: the first preferences are then fifty-fifty, and the first gradient comes from the trunk's features.
        nn.init.zeros_(self.head.weight)
        self.register_buffer("mean", torch.zeros((), device=lm.device))
        self.register_buffer("std", torch.ones((), device=lm.device))
        self.train_layers = train_layers  # of the top; 0: all

    def encode(self, prompt: str, completion: str) -> list[int]:
        """The row that is rated: the prompt's turn, the completion, and EOS unless the completion is `Truncated`."""
        prompt_ids, answer_ids = self.tokenizer.chat_with_answer(prompt, completion)
        return prompt_ids + (answer_ids[:-1] if isinstance(completion, Truncated) else answer_ids)

    def trunk(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """What lies below the trained blocks, without gradient: (B, T, D) and its mask; the ids (B, T) if all train."""
        ids, mask = pad_right(rows, self.tokenizer.pad_id, self.lm.device)  # (B, T), (B, T)
        return self.lm.trunk(ids, None, self.train_layers), mask

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Raw rewards (B,) of right-padded rows, read at each row's last real token."""
        # Right padding needs no mask: a causal query never reaches it, and it is not read.
        hidden = self.lm.top(features, None, self.train_layers)  # (B, T, D)
        last = mask.sum(1) - 1  # (B,)
        ends = hidden[torch.arange(len(last), device=last.device), last]  # (B, D)
        return self.head(ends.to(self.head.weight.dtype)).squeeze(-1).float()  # (B,)

    @torch.no_grad()
    def raw(self, prompts: Sequence[str], completions: Sequence[str], batch: int = 64) -> Tensor:
        """Rewards before normalisation, (B,) on the CPU; rows of similar length share a batch.

        A row longer than the context loses its completion's end, with a warning (decoded and encoded again,
        garbled text can have more tokens than were sampled).
        """
        longest = self.lm.config.max_len
        rows = [self.encode(x, y) for x, y in zip(prompts, completions, strict=True)]
        if any(len(row) > longest for row in rows):
            # Without a count: the same text is shown once a run, not once a batch.
            told = f"answers beyond the reward model's context of {longest} tokens are rated without their ends"
            warnings.warn(told, stacklevel=2)
            rows = [row[:longest] for row in rows]
        rewards = torch.empty(len(rows))
        for part in by_length([len(row) for row in rows], batch):
            rewards[part] = self(*self.trunk([rows[i] for i in part])).cpu()
        return rewards

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """Normalised rewards (B,) on the CPU."""
        return (self.raw(prompts, completions) - self.mean.cpu()) / self.std.cpu()

    def normalise(self, prompts: Sequence[str], completions: Sequence[str]) -> None:
        """Set mean and std from these samples. Raises UserError when the rewards do not vary at all."""
        found = moments(self.raw(prompts, completions))
        self.mean.fill_(found["mean"])
        self.std.fill_(found["std"])


class MeanRewardModel(RewardModel):
    """The same, read off the mean of the row's states: a truncated answer has no token that sums it up."""

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        hidden = self.lm.top(features, None, self.train_layers)  # (B, T, D)
        mean = (hidden * mask[..., None]).float().sum(1) / mask.sum(1, keepdim=True)  # (B, D)
        return self.head(mean.to(self.head.weight.dtype)).flatten().float()  # (B,)


READS = {"last": RewardModel, "mean": MeanRewardModel}


def moments(rewards: Tensor) -> dict[str, float]:
    """Mean and standard deviation of rewards (B,). Raises UserError when they do not vary: nothing could be learned."""
    mean, std = rewards.mean().item(), rewards.std().item()
    if not std >= 1e-6:  # a NaN too: a single answer has no spread
        raise UserError(f"every one of {len(rewards)} answers got the reward {mean:.4g}: there is nothing to optimise")
    return {"mean": mean, "std": std}


def draw_preferences(
    prompts: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    gold: Callable[[Sequence[str], Sequence[str]], list[float]],
    scale: float,
    generator: torch.Generator,
    mismatched: bool = False,
) -> list[Preference]:
    """A noisy labeller's choices: P(first over second) = sigmoid(scale x (gold difference)), Bradley-Terry noise.

    `mismatched` marks the pairs as such: the labels are drawn in the same way.
    """
    difference = torch.tensor(gold(prompts, first)) - torch.tensor(gold(prompts, second))  # (B,)
    p_first = torch.sigmoid(scale * difference.float())  # (B,)
    wins = torch.rand(len(prompts), generator=generator) < p_first
    return [
        Preference(x, *((a, b, p) if won else (b, a, 1 - p)), mismatched)
        for x, a, b, won, p in zip(prompts, first, second, wins.tolist(), p_first.tolist())
    ]


def split_by_prompt(pairs: Sequence[Preference], share: float, generator: torch.Generator) -> tuple[list, list]:
    """(train, held out): all pairs of a prompt are on the same side; otherwise the held-out accuracy is too high.

    No mismatched pair is held out: they are easy, and would raise the accuracy too. Those of a held-out prompt are
    dropped. At least one prompt is held out.
    """
    prompts = sorted({p.prompt for p in pairs if not p.mismatched})
    order = torch.randperm(len(prompts), generator=generator).tolist()
    kept_out = {prompts[i] for i in order[: max(1, round(share * len(prompts)))]}
    heldout = [p for p in pairs if p.prompt in kept_out and not p.mismatched]
    return [p for p in pairs if p.prompt not in kept_out], heldout


def accuracy(model: RewardModel, pairs: Sequence[Preference]) -> float:
    """Share of pairs whose chosen answer gets the higher reward (equal: half)."""
    chosen = model.raw([p.prompt for p in pairs], [p.chosen for p in pairs])
    rejected = model.raw([p.prompt for p in pairs], [p.rejected for p in pairs])
    return ((chosen > rejected).float() + 0.5 * (chosen == rejected).float()).mean().item()


def swap_accuracy(
    reward: Score, prompts: Sequence[str], answers: Sequence[str], swapped: Sequence[str]
) -> float | None:
    """Share of prompts with r(x, y) > r(x, y~), y~ the answer `swapped` for that of another request (equal: half).

    0.5: the reward does not read x. The gold reward's own share is the ceiling: it is below 1 where answers are often
    wrong. Prompts whose two answers are the same text are left out; None if all are.
    """
    kept = [(x, y, other) for x, y, other in zip(prompts, answers, swapped, strict=True) if y != other]
    if not kept:
        return None
    x, y, other = map(list, zip(*kept))
    apart = torch.as_tensor(reward(x, y)) - torch.as_tensor(reward(x, other))  # (B,)
    return ((apart > 0).float() + 0.5 * (apart == 0).float()).mean().item()


def always_longer(pairs: Sequence[Preference]) -> float:
    """Accuracy of the rule "the longer answer wins" (equal: half): what a reward model must beat."""
    longer = [(len(p.chosen) > len(p.rejected)) + 0.5 * (len(p.chosen) == len(p.rejected)) for p in pairs]
    return sum(longer) / len(longer)


def accuracy_ceiling(pairs: Sequence[Preference]) -> float | None:
    """Expected accuracy of the true reward on these noisy labels: mean of max(P, 1 - P); None if P is unknown."""
    if any(p.certainty is None for p in pairs):
        return None
    return sum(max(p.certainty, 1 - p.certainty) for p in pairs) / len(pairs)


def heldout_facts(model: RewardModel, pairs: Sequence[Preference]) -> dict:
    """Accuracy on held-out pairs, and what it must be compared with."""
    return {
        "accuracy": accuracy(model, pairs),
        "ceiling": accuracy_ceiling(pairs),
        "always_longer": always_longer(pairs),
    }


def train_reward_model(
    model: RewardModel,
    pairs: Sequence[Preference],
    config: RewardConfig = RewardConfig(),
    stage: Stage = SilentStage(),
    generator: torch.Generator | None = None,
    describe: Callable[[RewardModel, list[Preference]], dict] = heldout_facts,
) -> dict:
    """Bradley-Terry training; returns what `describe` finds on the held-out pairs, and how many pairs there were.

    The frozen trunk's outputs are computed once and kept in memory (2 x pairs x tokens x D numbers). Pairs longer than
    `config.max_tokens` or the context are left out and counted. `generator` draws the split and the order of the pairs
    (None: PyTorch's global one). Raises UserError when fewer than two batches of pairs remain.
    """
    most = min(config.max_tokens, model.lm.config.max_len)
    fits = lambda p: max(len(model.encode(p.prompt, y)) for y in (p.chosen, p.rejected)) <= most
    kept = [p for p in pairs if p.chosen != p.rejected and fits(p)]
    if len(kept) < 2 * config.batch_size:
        raise UserError(
            f"only {len(kept)} of {len(pairs)} preference pairs differ and fit {most} tokens, two batches "
            f"take {2 * config.batch_size}: add pairs, raise --reward_model.max_tokens, lower --reward_model.batch_size"
        )
    train, heldout = split_by_prompt(kept, config.heldout_share, generator)
    parameters = [*training.trainable(model.lm, config.train_layers), *model.head.parameters()]
    optimizer = training.make_optimizer(parameters, config.lr, config.weight_decay)
    steps = math.ceil(config.epochs * len(train) / config.batch_size)
    batches = training.shuffled_batches(len(train), config.batch_size, generator)
    start, _ = stage.restore(model, optimizer)
    for _ in range(start):
        next(batches)
    features = TrunkCache(model, train)
    recent: list[tuple[float, float, float]] = []  # loss, right, margin of each pair since the last log
    for step in stage.progress(start, steps):
        batch = next(batches)
        for index in by_length([features.length(i) for i in batch], config.micro_batch_size):
            chosen, rejected = model(*features.rows([batch[i] for i in index])).chunk(2)  # (b,), (b,)
            loss = rl_math.bradley_terry_loss(chosen, rejected)  # (b,)
            (loss.sum() / len(batch)).backward()
            recent += zip(loss.tolist(), (chosen > rejected).float().tolist(), (chosen - rejected).tolist())
        lr = training.warmup_cosine(step, steps, config.lr)
        training.optimizer_step(optimizer, parameters, config.max_grad_norm, lr)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == steps:
            row = dict(zip(("loss", "accuracy", "margin"), (sum(c) / len(recent) for c in zip(*recent))))
            stage.log(step + 1, row | {"heldout_accuracy": accuracy(model, heldout), "lr": lr})
            stage.save(step + 1, model, optimizer)
            recent = []
    counts = {"train_pairs": len(train), "heldout_pairs": len(heldout), "left_out": len(pairs) - len(kept)}
    return describe(model, heldout) | counts


class TrunkCache:
    """The trunk's outputs of every pair, computed once: row 2i is the chosen, row 2i + 1 the rejected answer."""

    def __init__(self, model: RewardModel, pairs: Sequence[Preference]) -> None:
        self.model = model
        self.ids = [model.encode(p.prompt, y) for p in pairs for y in (p.chosen, p.rejected)]
        self.kept: list[Tensor] = []
        if model.train_layers:
            distinct, found = list(dict.fromkeys(map(tuple, self.ids))), {}
            for part in by_length([len(row) for row in distinct], 16):
                features, _ = model.trunk([distinct[i] for i in part])  # (16, T, D)
                found |= {distinct[i]: features[j, : len(distinct[i])].clone() for j, i in enumerate(part)}
            self.kept = [found[tuple(row)] for row in self.ids]  # an answer of several pairs is kept once

    def length(self, pair: int) -> int:
        """Tokens of the longer of a pair's two rows."""
        return max(len(self.ids[2 * pair]), len(self.ids[2 * pair + 1]))

    def rows(self, pairs: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Features (2B, T, D) or ids (2B, T), and the mask, of these pairs: all chosen first, then all rejected."""
        index = [2 * i for i in pairs] + [2 * i + 1 for i in pairs]
        if not self.model.train_layers:
            return self.model.trunk([self.ids[i] for i in index])
        features = nn.utils.rnn.pad_sequence([self.kept[i] for i in index], batch_first=True)  # (2B, T, D)
        lengths = torch.tensor([len(self.kept[i]) for i in index], device=features.device)
        return features, torch.arange(features.shape[1], device=features.device) < lengths[:, None]
