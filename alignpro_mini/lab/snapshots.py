"""What the prompter writes for a few requests, always the same, at intervals of its training: `snapshots.jsonl`.

A row is one rewrite, token by token, with log rho/rho_sft of each token: these add up to the KL (k1) that PPO charges.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

from alignpro_mini import rl_math
from alignpro_mini.lab.run import SNAPSHOTS, RunStage
from alignpro_mini.ppo import PPOTrainer

REQUESTS = 6
REWRITES = 3  # of each request
TIMES = 20  # snapshots in a training, besides the first


class Snapshots:
    """A `training.Stage` that passes everything on to `stage`, and takes snapshots of the trainer's policy.

    The rewrites are drawn from generators of their own, so that training is the same with and without snapshots.
    """

    def __init__(self, stage: RunStage, trainer: PPOTrainer, requests: Sequence[str]) -> None:
        self.stage = stage
        self.trainer = trainer
        self.requests = requests[:REQUESTS]
        self.save, self.restore = stage.save, stage.restore

    def progress(self, start: int, stop: int) -> Iterator[int]:
        if start == 0:
            self._take(0)
        return self.stage.progress(start, stop)

    def log(self, step: int, metrics: dict, samples: Sequence[dict] = ()) -> None:
        self.stage.log(step, metrics, samples)
        if step % max(1, self.trainer.config.iterations // TIMES) == 0:
            self._take(step)

    def _take(self, step: int) -> None:
        """Append a row for each rewrite. Of several processes all do this, and the first one writes."""
        trainer = copy.copy(self.trainer)
        trainer.generator = self.stage.run.generator(f"snapshot {step}")
        rollout = PPOTrainer.rollout(trainer, [x for x in self.requests for _ in range(REWRITES)])
        log_ratio = rl_math.kl_estimate(rollout.logp, rollout.logp_ref, "k1")  # (B, T)
        rows = []
        for x, x_prime, ids, ratios, sampled in zip(
            rollout.prompts, rollout.completions, rollout.tokens, log_ratio, rollout.action
        ):
            tokens = [trainer.tokenizer.decode([i]) for i in ids[sampled].tolist()]  # "": the EOS
            ratios = [round(value, 4) for value in ratios[sampled].tolist()]
            row = {"stage": self.stage.name, "step": step, "x": x, "x_prime": x_prime}
            rows.append(row | {"tokens": tokens, "log_ratio": ratios})
        self.stage.run.append(SNAPSHOTS, rows)
