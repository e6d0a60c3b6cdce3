"""Align-Pro itself: rewrite -> answer -> score. The same PPO trains the prompter (Align-Pro) or the LLM (RLHF oracle).

    x --> prompter rho --> x' --> frozen LLM pi_F --> y --> r(x, y)      the reward sees x, never x'

Align-Pro: the score of a rewrite x' is the mean reward of the frozen LM's answers to it. RLHF oracle: the score of an
answer is its reward, and PPO trains a copy of the LM. Nothing else differs.

Shape legend:  B requests   M answers to each rewrite
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignpro_mini import guards
from alignpro_mini.frozen import Answer, FrozenModel
from alignpro_mini.generation import Completion, generate
from alignpro_mini.options import UserError
from alignpro_mini.ppo import PPOConfig, PPOTrainer, train_ppo
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.training import Score, SilentStage, Stage
from alignpro_mini.transformer import Transformer

Gold = Callable[[Sequence[str], Sequence[str]], list[float]]  # (requests, answers) -> true rewards
SAMPLE = ("x", "x_prime", "y", "reward", "kl")  # what a logged sample holds


def usable_rewrites(
    requests: Sequence[str], rewrites: Sequence[str], fits: Callable[[str], bool]
) -> tuple[list[str], int]:
    """Rewrites that can be sent: an empty one, or one too long for the frozen LM, becomes x. And how many changed."""
    sent = [x_prime if x_prime.strip() and fits(x_prime) else x for x, x_prime in zip(requests, rewrites, strict=True)]
    return sent, sum(a != b for a, b in zip(sent, rewrites))


def answer_length(answers: Sequence[Answer]) -> float | None:
    """Mean tokens of the answers, EOS included; None where the model does not return them."""
    lengths = [len(a.tokens) for a in answers if a.tokens is not None]
    return sum(lengths) / len(lengths) if lengths else None


class PromptScore:
    """score(x, x') = mean over M answers y ~ pi_F(. | x') of r(x, y): the score that makes PPO into Align-Pro.

    `reward(prompts, completions)` scores the answers against the *original* request. The objective contains
    R(x, x') = E_y[r(x, y)], so r is averaged over the answers before anything else.
    The last call's rewrites, answers and rewards stay in `x_prime`, `y`, `r` (M per request, request by request).
    """

    def __init__(
        self, frozen: FrozenModel, reward: Score, generator: torch.Generator | None = None, answers: int = 1
    ) -> None:
        self.frozen, self.reward, self.generator, self.answers = frozen, reward, generator, answers
        self.fallbacks = 0
        self.x: list[str] = []
        self.x_prime: list[str] = []
        self.y: list[Answer] = []
        self.r = torch.zeros(0)

    def __call__(self, requests: Sequence[str], rewrites: Sequence[str]) -> Tensor:
        """Requests x and rewrites x', B each -> scores (B,), float32; sets what the class says that it keeps.

        Raises UserError where the reward does not return one number for each answer.
        """
        self.x_prime, self.fallbacks = usable_rewrites(requests, rewrites, self.frozen.fits)
        asked = [x_prime for x_prime in self.x_prime for _ in range(self.answers)]  # (B*M)
        self.x = [x for x in requests for _ in range(self.answers)]  # (B*M)
        self.y = self.frozen.answer(asked, self.generator)
        r = torch.as_tensor(self.reward(self.x, [a.text for a in self.y]), dtype=torch.float32)  # (B*M,)
        if r.shape != (len(self.x),):
            raise UserError(f"the reward returned shape {tuple(r.shape)}; one per answer is ({len(self.x)},)")
        self.r = r.view(len(requests), self.answers)  # (B, M)
        return self.r.mean(1)  # (B,)


def train_align_pro(
    rho_sft: Transformer,
    frozen: FrozenModel,
    reward: Score,
    requests: Sequence[str],
    tokenizer: Tokenizer,
    config: PPOConfig = PPOConfig(),
    stage: Stage = SilentStage(),
    generator: torch.Generator | None = None,
    gold: Gold | None = None,
    guard: bool = False,
    trainer_class: type[PPOTrainer] = PPOTrainer,
) -> Transformer:
    """PPO on a copy of the prompter in front of the frozen LM; returns rho. rho_sft, the reference, does not change.

    `gold`, the true reward where it is known, is logged and never trained on. With `guard` a rewrite to which
    `guards.objection` objects is not sent: its score is that of the request.
    """
    score = PromptScore(frozen, reward, generator, config.answers)
    sent = (lambda x, x_prime: score(x, guards.kept(x, x_prime))) if guard else score
    trainer = trainer_class(copy.deepcopy(rho_sft), rho_sft, tokenizer, sent, config, generator)

    def observe(trainer: PPOTrainer) -> tuple[dict, list[dict]]:
        """Metrics and sample rows of the last rollout, as `train_ppo` asks for them."""
        kl = trainer.last_rollout.kl.tolist()
        texts = [a.text for a in score.y]
        fallback_rate = score.fallbacks * config.answers / len(score.y)
        extra = {"fallback_rate": fallback_rate, "answer_length": answer_length(score.y)}
        extra["objection_rate"] = guards.objection_rate(trainer.last_rollout.prompts, trainer.last_rollout.completions)
        if gold is not None:
            extra["gold_mean"] = sum(gold(score.x, texts)) / len(texts)
        first = texts[:: config.answers]  # of each rewrite's answers
        rows = zip(trainer.last_rollout.prompts[:8], score.x_prime, first, score.r[:, 0].tolist(), kl)
        return extra, [dict(zip(SAMPLE, row)) for row in rows]

    return train_ppo(trainer, requests, stage, observe)


def train_rlhf_oracle(
    pi_f: Transformer,
    reward: Score,
    requests: Sequence[str],
    tokenizer: Tokenizer,
    config: PPOConfig = PPOConfig(),
    stage: Stage = SilentStage(),
    generator: torch.Generator | None = None,
    gold: Gold | None = None,
    trainer_class: type[PPOTrainer] = PPOTrainer,
) -> Transformer:
    """The comparator that may change the LLM: the same PPO on a copy of it, score(x, y) = r(x, y). Returns the copy."""
    trainer = trainer_class(copy.deepcopy(pi_f), pi_f, tokenizer, reward, config, generator)

    def observe(trainer: PPOTrainer) -> tuple[dict, list[dict]]:
        """The same of answers: there is no rewrite."""
        r = trainer.last_rollout
        extra = {} if gold is None else {"gold_mean": sum(gold(r.prompts, r.completions)) / len(r.prompts)}
        rows = zip(r.prompts[:8], [""] * 8, r.completions, r.scores.tolist(), r.kl.tolist())
        return extra, [dict(zip(SAMPLE, row)) for row in rows]

    return train_ppo(trainer, requests, stage, observe)


@dataclass(frozen=True, slots=True)
class Prompter:
    """rho with its tokenizer and sampling: `rewrite(requests)` gives the texts x', `complete` their tokens too."""

    model: Transformer
    tokenizer: Tokenizer
    max_new_tokens: int
    temperature: float = 1.0

    def rewrite(self, requests: Sequence[str], generator: torch.Generator | None = None) -> list[str]:
        """One rewrite for each request, as sampled: `usable_rewrites` replaces those that cannot be sent."""
        return [self.tokenizer.decode(c.tokens) for c in self.complete(requests, generator)]

    def complete(self, requests: Sequence[str], generator: torch.Generator | None = None) -> list[Completion]:
        """Like `rewrite`, as tokens with their log-probs."""
        chats = [self.tokenizer.chat(x) for x in requests]
        how = {"temperature": self.temperature, "eos_id": self.tokenizer.eos_id, "generator": generator}
        return generate(self.model, chats, self.max_new_tokens, **how)
