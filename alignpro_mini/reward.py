"""The reward model: one number read off a transformer's last token, learned from preferences.

    r(x, y) = w . h(x, y)[last]
    P(chosen over rejected) = sigmoid(r(x, chosen) - r(x, rejected))          (Bradley-Terry)

[last] is the EOS, or the last token of an answer that was truncated before its EOS.

Where both answers of every pair reply to the same x, nothing teaches the model to read x: r(x, y)
becomes r(y). So some pairs are *mismatched*: their second answer belongs to another request.
`lab.accuracy.swap_accuracy` measures whether the model reads x.

The likelihood fixes r only up to an offset b(x) for each prompt. A small penalty on
(r_chosen + r_rejected)^2 holds b(x) near 0 (Eisenstein et al. 2023, arXiv 2312.09244): else
offsets that mean nothing would be most of the reward's variance. Nor does the likelihood fix the
scale. So after the training r is shifted and scaled to mean 0 and variance 1 over answers to the
SFT prompter's rewrites. The KL coefficient lambda is in these units.

Shape legend:  B rows   T tokens   D width
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from alignpro_mini import options, rl_math, training
from alignpro_mini.generation import by_length, pad_right
from alignpro_mini.options import UserError, check_ranges, option, require
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.training import LOG_EVERY, SilentStage, Stage, Truncated
from alignpro_mini.transformer import Transformer

LOGGED_PAIRS = 256  # held-out pairs whose accuracy is logged during the training
Row = list[int]  # the ids of a prompt and its completion
Trunk = Callable[[Sequence[Row]], tuple[Tensor, Tensor]]  # as `RewardModel.trunk`


@dataclass(frozen=True, slots=True)
class RewardConfig:
    """The training of the reward model."""

    heldout_share: float = option(
        0.1, "share of the prompts whose pairs are kept out to measure accuracy"
    )
    epochs: float = option(1.0, "passes over the pairs", above=0)
    batch_size: int = option(
        16, "pairs a step, or a few more: neighbouring pairs of a prompt stay together", least=1
    )
    micro_batch_size: int = option(16, options.MICRO_BATCH.format("pairs"), least=1)
    lr: float = option(7e-4, "peak learning rate", above=0)
    center_coef: float = option(
        0.001, "weight of (r_chosen + r_rejected)^2: holds each prompt's rewards near 0", least=0
    )
    weight_decay: float = option(0.05, "AdamW's decoupled weight decay", least=0)
    max_grad_norm: float = option(1.0, options.MAX_GRAD_NORM, above=0)
    train_layers: int = option(0, options.TRAIN_LAYERS, least=0)
    max_tokens: int = option(
        256, "pairs longer than this, prompt and answer, are left out and counted", least=1
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        share = self.heldout_share
        require(0 < share < 1, f"heldout_share is {share}; it is a share in (0, 1)")


# ---------------------------------------------------------------- the model


class RewardModel(nn.Module):
    """A transformer with a linear reward head; its `score` is a `Score` for PPO.

    Scores are normalised by `mean` and `std` (0 and 1 until `normalise` sets them).
    """

    def __init__(self, lm: Transformer, tokenizer: Tokenizer, train_layers: int = 0) -> None:
        super().__init__()
        self.lm = lm
        self.tokenizer = tokenizer
        self.train_layers = train_layers  # of the top; 0: all
        training.trainable(lm, train_layers)  # what trains becomes float32, as saved weights are
        # No bias: Bradley-Terry sees only differences of rewards. Its gradient would be noise.
        self.head = nn.Linear(lm.config.d_model, 1, bias=False, device=lm.device)
        # Zero: the first preferences are then fifty-fifty.
        nn.init.zeros_(self.head.weight)
        self.register_buffer("mean", torch.zeros((), device=lm.device))
        self.register_buffer("std", torch.ones((), device=lm.device))

    def encode(self, prompt: str, completion: str) -> Row:
        """The row that is rated: the prompt's turn, the completion, and EOS.

        A `Truncated` completion gets no EOS: its model did not write one.
        """
        prompt_ids, answer_ids = self.tokenizer.chat_with_answer(prompt, completion)
        if isinstance(completion, Truncated):
            answer_ids = answer_ids[:-1]
        return prompt_ids + answer_ids

    def trunk(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """The frozen blocks' states (B, T, D) and the rows' mask (B, T).

        In place of states the ids (B, T) where no block is frozen.
        """
        ids, mask = pad_right(rows, self.tokenizer.pad_id, self.lm.device)  # (B, T), (B, T)
        # Right padding needs no mask: a causal query never reaches it, and it is not read.
        return training.trunk(self.lm, ids, None, self.train_layers), mask

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Raw rewards (B,) of right-padded rows, read at each row's last real token."""
        frozen = training.frozen_blocks(self.lm, self.train_layers)
        hidden = self.lm.hidden(features, start=frozen)  # (B, T, D)
        last = mask.sum(1) - 1  # (B,)
        ends = hidden[torch.arange(len(last), device=last.device), last]  # (B, D)
        return self.head(ends.to(self.head.weight.dtype)).squeeze(-1).float()  # (B,)

    @torch.no_grad()
    def raw(self, prompts: Sequence[str], completions: Sequence[str], batch: int = 64) -> Tensor:
        """Rewards before normalisation, (B,) on the CPU; rows of similar length share a batch.

        A row longer than the context loses its completion's end, with a warning: decoded and
        encoded again, garbled text can have more tokens than were sampled.
        """
        longest = self.lm.config.max_len
        rows = [self.encode(x, y) for x, y in zip(prompts, completions, strict=True)]
        if any(len(row) > longest for row in rows):
            # Without a count: Python shows the same text once a run, not once a batch.
            warnings.warn(
                f"answers beyond the reward model's context of {longest} tokens are rated without "
                "their ends",
                stacklevel=2,
            )
            rows = [row[:longest] for row in rows]
        rewards = torch.empty(len(rows))
        for part in by_length([len(row) for row in rows], batch):
            features, mask = self.trunk([rows[i] for i in part])
            rewards[part] = self(features, mask).cpu()
        return rewards

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """Normalised rewards (B,) on the CPU."""
        return (self.raw(prompts, completions) - self.mean.cpu()) / self.std.cpu()

    def normalise(self, prompts: Sequence[str], completions: Sequence[str]) -> None:
        """Set mean and std from these samples. Raises UserError when the rewards do not vary."""
        scale = moments(self.raw(prompts, completions))
        self.mean.fill_(scale["mean"])
        self.std.fill_(scale["std"])


def moments(rewards: Tensor) -> dict[str, float]:
    """Mean and standard deviation of rewards (B,).

    Raises UserError when they do not vary: nothing could be learned.
    """
    mean = rewards.mean().item()
    std = rewards.std().item()
    if not std >= 1e-6:  # a NaN too: a single answer has no spread
        raise UserError(
            f"every one of {len(rewards)} answers got the reward {mean:.4g}: "
            "there is nothing to optimise"
        )
    return {"mean": mean, "std": std}


# ---------------------------------------------------------------- preferences


@dataclass(frozen=True, slots=True)
class Preference:
    """One comparison: `chosen` was preferred over `rejected` as an answer to `prompt`.

    `certainty` is the probability that a labeller prefers `chosen` again, where the world knows it.
    `mismatched`: one of the two answers belongs to another request.
    """

    prompt: str
    chosen: str
    rejected: str
    certainty: float | None = None
    mismatched: bool = False


def draw_preferences(
    prompts: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    gold: Callable[[Sequence[str], Sequence[str]], list[float]],
    scale: float,
    generator: torch.Generator,
    mismatched: bool = False,
) -> list[Preference]:
    """A noisy labeller's choices between two answers to each prompt, by the true reward `gold`.

        P(first over second) = sigmoid(scale x (gold of first - gold of second))     (Bradley-Terry)

    `mismatched` marks the pairs as such: the labels are drawn in the same way.
    """
    difference = torch.tensor(gold(prompts, first)) - torch.tensor(gold(prompts, second))  # (B,)
    p_first = torch.sigmoid(scale * difference.float())  # (B,)
    first_wins = torch.rand(len(prompts), generator=generator) < p_first  # (B,)
    pairs = []
    for x, a, b, p, won in zip(prompts, first, second, p_first.tolist(), first_wins.tolist()):
        if won:
            pairs.append(Preference(x, a, b, p, mismatched))
        else:
            pairs.append(Preference(x, b, a, 1 - p, mismatched))
    return pairs


def usable_pairs(
    model: RewardModel, pairs: Sequence[Preference], config: RewardConfig
) -> list[Preference]:
    """The pairs whose answers differ and whose rows fit `config.max_tokens` and the context.

    Raises UserError when fewer than two batches remain.
    """
    longest = min(config.max_tokens, model.lm.config.max_len)

    def fits(pair: Preference) -> bool:
        answers = (pair.chosen, pair.rejected)
        return all(len(model.encode(pair.prompt, answer)) <= longest for answer in answers)

    usable = [pair for pair in pairs if pair.chosen != pair.rejected and fits(pair)]
    least = 2 * config.batch_size
    require(
        len(usable) >= least,
        f"only {len(usable)} of {len(pairs)} preference pairs differ and fit {longest} tokens, "
        f"two batches take {least}: add pairs, raise --reward_model.max_tokens, "
        "lower --reward_model.batch_size",
    )
    return usable


def split_by_prompt(
    pairs: Sequence[Preference], share: float, generator: torch.Generator | None
) -> tuple[list[Preference], list[Preference]]:
    """(train, held out): all pairs of a prompt are on one side.

    Otherwise the held-out accuracy is too high. No mismatched pair is held out: they are easy, and
    would raise the accuracy too. Those of a held-out prompt are dropped. At least one prompt is
    held out.
    """
    prompts = sorted({pair.prompt for pair in pairs if not pair.mismatched})
    count = max(1, round(share * len(prompts)))
    order = torch.randperm(len(prompts), generator=generator).tolist()
    heldout_prompts = {prompts[i] for i in order[:count]}
    train = [pair for pair in pairs if pair.prompt not in heldout_prompts]
    heldout = [pair for pair in pairs if pair.prompt in heldout_prompts and not pair.mismatched]
    return train, heldout


# ---------------------------------------------------------------- training


def accuracy(model: RewardModel, pairs: Sequence[Preference]) -> float:
    """Share of pairs whose chosen answer gets the higher reward (equal: half)."""
    prompts = [pair.prompt for pair in pairs]
    chosen = model.raw(prompts, [pair.chosen for pair in pairs])  # (B,)
    rejected = model.raw(prompts, [pair.rejected for pair in pairs])  # (B,)
    right = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()  # (B,)
    return right.mean().item()


def by_prompt(pairs: Sequence[Preference]) -> list[list[Preference]]:
    """Neighbouring pairs of one prompt together: they are likely to share answers."""
    return [list(group) for _, group in groupby(pairs, key=lambda pair: pair.prompt)]


def batches_of(
    groups: Sequence[Sequence[Preference]], size: int
) -> Iterator[list[Sequence[Preference]]]:
    """The groups in this order, so many at a time that they hold `size` pairs or just more."""
    batch: list[Sequence[Preference]] = []
    for group in groups:
        batch.append(group)
        if sum(map(len, batch)) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


def training_batches(
    pairs: Sequence[Preference], config: RewardConfig, generator: torch.Generator | None
) -> list[list[Sequence[Preference]]]:
    """The batches of the whole training; every pass has the groups of `by_prompt` in a new order.

    Raises UserError for fewer pairs than one batch.
    """
    least = config.batch_size
    require(
        len(pairs) >= least,
        f"{len(pairs)} preference pairs, those held out not counted, do not fill one batch of "
        f"{least}: add pairs or lower --reward_model.batch_size",
    )
    groups = by_prompt(pairs)
    count = math.ceil(config.epochs * len(groups))
    order: list[int] = []
    while len(order) < count:
        order += torch.randperm(len(groups), generator=generator).tolist()
    return list(batches_of([groups[i] for i in order[:count]], config.batch_size))


def longest_answer(pairs: Sequence[Preference]) -> int:
    """Characters of the longest answer of these pairs."""
    return max(len(answer) for pair in pairs for answer in (pair.chosen, pair.rejected))


def rewards_of_pairs(
    model: RewardModel, trunk: Trunk, pairs: Sequence[Preference]
) -> tuple[Tensor, Tensor]:
    """Raw rewards of the chosen and the rejected answers, (b,) each; equal rows are rated once."""
    chosen = [tuple(model.encode(pair.prompt, pair.chosen)) for pair in pairs]
    rejected = [tuple(model.encode(pair.prompt, pair.rejected)) for pair in pairs]
    place = {row: i for i, row in enumerate(dict.fromkeys(chosen + rejected))}
    features, mask = trunk(list(place))
    rewards = model(features, mask)  # (rows,)
    return rewards[[place[row] for row in chosen]], rewards[[place[row] for row in rejected]]


def train_reward_model(
    model: RewardModel,
    train: Sequence[Preference],
    heldout: Sequence[Preference],
    config: RewardConfig = RewardConfig(),
    stage: Stage = SilentStage(),
    generator: torch.Generator | None = None,
    trunk: Trunk | None = None,
) -> None:
    """Bradley-Terry training on the pairs `train`; those held out are only rated, for the log.

    Neighbouring pairs of a prompt are in one batch, and an answer of several pairs is rated once
    (Ouyang et al. 2022, arXiv 2203.02155, section 3.5).

    `generator` draws the order of the batches (None: PyTorch's global one). `trunk` is called in
    the place of `model.trunk`, where it gives the same sooner (`fast.reward.TrunkCache`).
    """
    trunk = trunk or model.trunk
    parameters = [*training.trainable(model.lm, config.train_layers), *model.head.parameters()]
    optimizer = training.make_optimizer(parameters, config.lr, config.weight_decay)
    # They follow from the seed alone: a resumed run skips those that it has trained on.
    batches = training_batches(train, config, generator)
    steps = len(batches)
    start, _ = stage.restore(model, optimizer)
    log_every = max(LOG_EVERY, steps // 20)
    losses: list[float] = []  # of each pair since the last log row
    margins: list[float] = []
    for step in stage.progress(start, steps):
        pairs_of_step = sum(map(len, batches[step]))
        by_size = sorted(batches[step], key=longest_answer)  # little padding
        for part in batches_of(by_size, config.micro_batch_size):
            pairs = [pair for group in part for pair in group]
            chosen, rejected = rewards_of_pairs(model, trunk, pairs)  # (b,), (b,)
            loss = rl_math.bradley_terry_loss(chosen, rejected)  # (b,)
            centered = (chosen + rejected) ** 2  # (b,)
            ((loss + config.center_coef * centered).sum() / pairs_of_step).backward()
            losses += loss.tolist()
            margins += (chosen - rejected).tolist()
        lr = training.warmup_cosine(step, steps, config.lr)
        training.optimizer_step(optimizer, parameters, config.max_grad_norm, lr)
        if (step + 1) % log_every == 0 or step + 1 == steps:
            metrics = {
                "loss": sum(losses) / len(losses),
                "accuracy": sum(margin > 0 for margin in margins) / len(margins),
                "margin": sum(margins) / len(margins),
                "heldout_accuracy": accuracy(model, heldout[:LOGGED_PAIRS]),
                "lr": lr,
            }
            stage.log(step + 1, metrics)
            stage.save(step + 1, model, optimizer)
            losses = []
            margins = []
