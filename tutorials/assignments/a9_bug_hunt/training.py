"""The small training run whose curves a bug hunt shows: PPO on a prompter of a few letters, 7 s on one core.

    python tutorials/assignments/a9_bug_hunt/training.py [SEED]      # one JSON line of metrics for each iteration

Requests and rewrites are short words of the letters a and b. The frozen model answers "1" with a chance that grows with
the letters b of the rewrite, else "0". A request that begins with a wants "1", one that begins with b wants "0"; a
wanted answer earns 1. The package that is imported may have a bug in it.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[3] / "tests"))

from doubles import Letters, random_lm

from alignpro_mini.alignpro import PromptScore
from alignpro_mini.frozen import Answer
from alignpro_mini.ppo import PPOConfig, PPOTrainer, train_ppo
from alignpro_mini.training import SilentStage

REQUESTS = ["a", "ab", "b", "bab"]
LETTERS = Letters(letters="ab")
CONFIG = PPOConfig(
    iterations=60, batch_size=128, answers=2, max_new_tokens=5, lr=3e-3, temperature=0.8, kl_coef=0.05, vf_coef=0.5
)


class Answerer:
    """A frozen model: the more letters b a prompt has, the more often its answer is "1"."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def fits(self, prompt: str) -> bool:
        return True

    def answer(self, prompts, generator=None) -> list[Answer]:
        draws = torch.rand(len(prompts), generator=self.generator).tolist()
        return [Answer("1" if u < 0.05 + 0.3 * x.count("b") else "0", False) for x, u in zip(prompts, draws)]


def reward(requests, answers) -> torch.Tensor:
    return torch.tensor([float(y == ("1" if x.startswith("a") else "0")) for x, y in zip(requests, answers)])


class Printed(SilentStage):
    def log(self, step: int, metrics: dict, samples=()) -> None:
        print(json.dumps({"step": step} | {k: v for k, v in metrics.items() if not k.endswith("_s")}), flush=True)


def main(seed: int) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    shape = dict(vocab_size=6, d_model=16, n_layers=2, n_heads=2, n_kv_heads=2, max_len=16)
    reference = random_lm(seed=3, spread=0.2, **shape)
    score = PromptScore(Answerer(generator), reward, generator, CONFIG.answers)
    trainer = PPOTrainer(copy.deepcopy(reference), reference, LETTERS, score, CONFIG, generator)
    train_ppo(trainer, REQUESTS, Printed())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
