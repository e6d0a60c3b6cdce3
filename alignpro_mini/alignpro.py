"""The pipeline's verbs: rewrite -> answer -> score; and the same PPO aimed at the prompter or at the LLM itself.

    x --> prompter rho --> x' --> frozen LLM pi_F --> y --> r(x, y)      the reward sees x, never x'

Align-Pro hands PPO the score "what reward does the frozen LM earn with this rewrite?"; the RLHF oracle hands it "what
reward does this answer earn?" and a copy of the LM to train. Nothing else differs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignpro_mini.config import PPOConfig
from alignpro_mini.frozen import FrozenLM
from alignpro_mini.generation import Completion, generate
from alignpro_mini.ppo import PPOTrainer, Score, train_ppo
from alignpro_mini.run import Stage
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.transformer import Transformer

Gold = Callable[[Sequence[str], Sequence[str]], list[float]]


def usable_rewrites(
    requests: Sequence[str], rewrites: Sequence[str], fits: Callable[[str], bool]
) -> tuple[list[str], int]:
    """Rewrites fit to be sent: an empty one, or one too long for the frozen LM, falls back to x. Also how many did."""
    sent = [x_prime if x_prime.strip() and fits(x_prime) else x for x, x_prime in zip(requests, rewrites, strict=True)]
    return sent, sum(a != b for a, b in zip(sent, rewrites))


class PromptScore:
    """score(x, x') = mean over M answers y ~ pi_F(. | x') of r(x, y): what makes PPO into Align-Pro.

    `reward(prompts, completions)` rates the answers against the *original* request. Averaging r over the answers before
    anything else is what the objective asks for: R(x, x') = E_y[r(x, y)].
    The last call's rewrites, answers and rewards stay in `x_prime`, `y`, `r` (M per request, request by request).
    """

    def __init__(self, frozen: FrozenLM, reward: Score, generator: torch.Generator, answers: int = 1) -> None:
        self.frozen, self.reward, self.generator, self.answers = frozen, reward, generator, answers
        self.empty = 0
        self.x: list[str] = []
        self.x_prime: list[str] = []
        self.y: list[str] = []
        self.r = torch.zeros(0)

    def __call__(self, requests: Sequence[str], rewrites: Sequence[str]) -> Tensor:
        self.x_prime, self.empty = usable_rewrites(requests, rewrites, self.frozen.fits)
        asked = [x_prime for x_prime in self.x_prime for _ in range(self.answers)]  # (B*M)
        self.x = [x for x in requests for _ in range(self.answers)]  # (B*M)
        self.y = self.frozen.answer(asked, self.generator)
        self.r = torch.as_tensor(self.reward(self.x, self.y), dtype=torch.float32).view(
            len(requests), self.answers
        )  # (B, M)
        return self.r.mean(1)  # (B,)


def train_align_pro(
    rho_sft: Transformer,
    frozen: FrozenLM,
    reward: Score,
    requests: Sequence[str],
    tokenizer: Tokenizer,
    config: PPOConfig,
    stage: Stage,
    generator: torch.Generator,
    gold: Gold | None = None,
) -> Transformer:
    """PPO on the prompter in front of the frozen LM; returns rho. rho_sft stays as it is (it is the reference)."""
    score = PromptScore(frozen, reward, generator, config.answers)
    trainer = PPOTrainer(copy.deepcopy(rho_sft), rho_sft, tokenizer, score, config, generator)

    def watch(trainer: PPOTrainer) -> tuple[dict, list[dict]]:
        kl = trainer.rollout_now.kl.tolist()
        extra = {
            "empty_rewrites": score.empty / len(kl),
            "answer_length": sum(len(frozen.tokenizer.encode(y)) for y in score.y) / len(score.y),
        }
        if gold is not None:
            extra["gold_mean"] = sum(gold(score.x, score.y)) / len(score.y)
        return extra, [
            {
                "x": x,
                "x_prime": score.x_prime[i],
                "y": score.y[i * config.answers],
                "reward": score.r[i, 0].item(),
                "kl": kl[i],
            }
            for i, x in enumerate(trainer.rollout_now.prompts[:8])
        ]

    return train_ppo(trainer, requests, stage, watch)


def train_rlhf_oracle(
    pi_f: Transformer,
    reward: Score,
    requests: Sequence[str],
    tokenizer: Tokenizer,
    config: PPOConfig,
    stage: Stage,
    generator: torch.Generator,
    gold: Gold | None = None,
) -> Transformer:
    """The comparator that may touch the LLM: the same PPO on a copy of it, score(x, y) = r(x, y). Returns the copy."""
    trainer = PPOTrainer(copy.deepcopy(pi_f), pi_f, tokenizer, reward, config, generator)

    def watch(trainer: PPOTrainer) -> tuple[dict, list[dict]]:
        r = trainer.rollout_now
        extra = {"answer_length": r.action.sum().item() / len(r.prompts)}
        if gold is not None:
            extra["gold_mean"] = sum(gold(r.prompts, r.completions)) / len(r.prompts)
        return extra, [
            {"x": x, "x_prime": "", "y": y, "reward": score, "kl": kl}
            for x, y, score, kl in zip(r.prompts[:8], r.completions, r.scores.tolist(), r.kl.tolist())
        ]

    return train_ppo(trainer, requests, stage, watch)


@dataclass(frozen=True, slots=True)
class Prompter:
    """rho with its tokenizer and sampling: `rewrite(requests)` -> completions and the texts x'."""

    model: Transformer
    tokenizer: Tokenizer
    max_new_tokens: int
    temperature: float = 1.0

    def rewrite(self, requests: Sequence[str], generator: torch.Generator | None = None) -> list[str]:
        """One rewrite for each request; not yet checked for emptiness (`usable_rewrites`)."""
        return [self.tokenizer.decode(c.tokens) for c in self.complete(requests, generator)]

    def complete(self, requests: Sequence[str], generator: torch.Generator | None = None) -> list[Completion]:
        """Like `rewrite`, as tokens with their log-probs."""
        return generate(
            self.model,
            [self.tokenizer.chat(x) for x in requests],
            self.max_new_tokens,
            temperature=self.temperature,
            eos_id=self.tokenizer.eos_id,
            generator=generator,
        )
