"""Align-Pro itself: rewrite -> answer -> score. The same PPO trains the prompter, or the LM (RLHF).

    x --> prompter rho --> x' --> frozen LLM pi_F --> y --> r(x, y)      the reward sees x, never x'

Align-Pro: the score of a rewrite x' is the mean reward of the frozen LM's answers to it. RLHF
oracle: the score of an answer is its reward, and PPO trains a copy of the LM. Nothing else differs.

Shape legend:  B requests   M answers to each rewrite
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignpro_mini.frozen import Answer, FrozenModel
from alignpro_mini.generation import Completion, Sampler, generate
from alignpro_mini.options import UserError
from alignpro_mini.ppo import PPOTrainer, train_ppo
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.training import Score, SilentStage, Stage
from alignpro_mini.transformer import Transformer

Gold = Callable[[Sequence[str], Sequence[str]], list[float]]  # (requests, answers) -> true rewards
SAMPLE_FIELDS = ("x", "x_prime", "y", "reward", "kl")
LOGGED_SAMPLES = 8  # of a batch


def usable_rewrites(
    requests: Sequence[str], rewrites: Sequence[str], fits: Callable[[str], bool]
) -> tuple[list[str], int]:
    """Rewrites that can be sent, and how many had to be replaced.

    An empty rewrite, or one too long for the frozen LM, becomes x.
    """
    sent = [
        x_prime if x_prime.strip() and fits(x_prime) else x
        for x, x_prime in zip(requests, rewrites, strict=True)
    ]
    return sent, sum(a != b for a, b in zip(sent, rewrites))


def answer_length(answers: Sequence[Answer]) -> float | None:
    """Mean tokens of the answers, EOS included; None where the model does not return them."""
    lengths = [len(a.tokens) for a in answers if a.tokens is not None]
    return sum(lengths) / len(lengths) if lengths else None


class PromptScore:
    """score(x, x') = mean over M answers y ~ pi_F(. | x') of r(x, y): it makes PPO into Align-Pro.

    `reward(prompts, completions)` scores the answers against the *original* request. The objective
    contains R(x, x') = E_y[r(x, y)], so r is averaged over the answers before anything else.
    The attributes from `fallbacks` on are those of the last call, for the log.
    """

    def __init__(
        self,
        frozen: FrozenModel,
        reward: Score,
        generator: torch.Generator | None = None,
        answers: int = 1,
    ) -> None:
        self.frozen = frozen
        self.reward = reward
        self.generator = generator
        self.answers = answers  # M
        self.fallbacks = 0  # rewrites that were replaced by their request
        self.x_prime: list[str] = []  # B, as they were sent
        self.x: list[str] = []  # B*M, the request of each answer
        self.y: list[Answer] = []  # B*M, the answers to a rewrite side by side
        self.r = torch.zeros(0)  # (B, M)

    def __call__(self, requests: Sequence[str], rewrites: Sequence[str]) -> Tensor:
        """Requests x and rewrites x', B each -> scores (B,), float32; sets the attributes above.

        Raises UserError where the reward does not return one number for each answer.
        """
        self.x_prime, self.fallbacks = usable_rewrites(requests, rewrites, self.frozen.fits)
        asked = [x_prime for x_prime in self.x_prime for _ in range(self.answers)]  # (B*M)
        self.x = [x for x in requests for _ in range(self.answers)]  # (B*M)
        self.y = self.frozen.answer(asked, self.generator)
        rewards = self.reward(self.x, [a.text for a in self.y])
        r = torch.as_tensor(rewards, dtype=torch.float32)  # (B*M,)
        if r.shape != (len(self.x),):
            wanted = f"one per answer is ({len(self.x)},)"
            raise UserError(f"the reward returned shape {tuple(r.shape)}; {wanted}")
        self.r = r.view(len(requests), self.answers)  # (B, M)
        return self.r.mean(1)  # (B,)

    def metrics(self) -> dict[str, float | None]:
        """What is logged of the last call."""
        return {
            "fallback_rate": self.fallbacks / len(self.x_prime),
            "answer_length": answer_length(self.y),
        }


def train_align_pro(
    trainer: PPOTrainer,
    requests: Sequence[str],
    stage: Stage = SilentStage(),
    gold: Gold | None = None,
) -> Transformer:
    """PPO on the prompter in front of the frozen LM: returns rho.

    `trainer.score` is a `PromptScore`. `gold`, the true reward where it is known, is logged and
    never trained on.
    """
    score = trainer.score

    def observe(trainer: PPOTrainer) -> tuple[dict, list[dict]]:
        """Metrics and sample rows of the last rollout, as `train_ppo` asks for them."""
        rollout = trainer.last_rollout
        texts = [answer.text for answer in score.y]
        first = texts[:: score.answers]  # of each rewrite's answers
        rows = zip(
            rollout.prompts, score.x_prime, first, score.r[:, 0].tolist(), rollout.kl.tolist()
        )
        return score.metrics() | _gold_mean(gold, score.x, texts), _samples(rows)

    return train_ppo(trainer, requests, stage, observe)


def train_rlhf_oracle(
    trainer: PPOTrainer,
    requests: Sequence[str],
    stage: Stage = SilentStage(),
    gold: Gold | None = None,
) -> Transformer:
    """The comparator that may change the LLM: PPO on a copy of it. Returns the copy.

    `trainer.score` is the reward of an answer: score(x, y) = r(x, y).
    """

    def observe(trainer: PPOTrainer) -> tuple[dict, list[dict]]:
        """Metrics and sample rows of the last rollout: its completions are the answers."""
        rollout = trainer.last_rollout
        no_rewrites = [""] * len(rollout.prompts)
        answers = rollout.completions
        rows = zip(
            rollout.prompts, no_rewrites, answers, rollout.scores.tolist(), rollout.kl.tolist()
        )
        return _gold_mean(gold, rollout.prompts, answers), _samples(rows)

    return train_ppo(trainer, requests, stage, observe)


def _gold_mean(
    gold: Gold | None, requests: Sequence[str], answers: Sequence[str]
) -> dict[str, float]:
    """The mean true reward as a metric, where it is known."""
    return {} if gold is None else {"gold_mean": sum(gold(requests, answers)) / len(answers)}


def _samples(rows: Iterable[tuple]) -> list[dict]:
    """The first of these rows, (x, x', y, reward, kl) each, as they are logged."""
    return [dict(zip(SAMPLE_FIELDS, row)) for row in rows][:LOGGED_SAMPLES]


@dataclass(frozen=True, slots=True)
class Prompter:
    """rho with its tokenizer and sampling: requests in, rewrites out."""

    model: Transformer
    tokenizer: Tokenizer
    max_new_tokens: int
    temperature: float = 1.0
    sampler: Sampler = generate

    def rewrite(
        self, requests: Sequence[str], generator: torch.Generator | None = None
    ) -> list[str]:
        """One rewrite for each request, as sampled: see `usable_rewrites` for what can be sent."""
        return [self.tokenizer.decode(c.tokens) for c in self.complete(requests, generator)]

    def complete(
        self, requests: Sequence[str], generator: torch.Generator | None = None
    ) -> list[Completion]:
        """Like `rewrite`, as tokens with their log-probs."""
        return self.sampler(
            self.model,
            [self.tokenizer.chat(x) for x in requests],
            self.max_new_tokens,
            temperature=self.temperature,
            eos_id=self.tokenizer.end_ids,
            generator=generator,
        )
