"""The arms on one fixed set of requests nobody trained on: means, variances in three parts, win rates, intervals.

    no_finetuning        x straight to pi_F                               K = 1 rewrite (x itself), K x M answers
    untrained_prompter   x' ~ rho_sft
    best_of_n            n rewrites of rho_sft, one answer each, the reward model picks; the pick is answered afresh
    align_pro            x' ~ rho
    rlhf_oracle          x straight to the RLHF-trained copy of pi_F
    closed_form          x' ~ rho*, the exact optimum over the listed rewrites, for the first requests only (optimum.py)

Rewards of an arm are an array (N inputs, K rewrites, M answers); every arm but the closed form has the same N inputs and
K x M answers.
The pick of best-of-n is answered *again*: its first answer was chosen for being good, so counting it would flatter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from alignpro_mini.alignpro import Gold, Prompter, usable_rewrites
from alignpro_mini.config import EvalConfig
from alignpro_mini.frozen import FrozenLM
from alignpro_mini.generation import sequence_logprobs
from alignpro_mini.ppo import Score
from alignpro_mini.transformer import Transformer


@dataclass(slots=True)
class Arm:
    """What one arm did: (N, K, M) rewards and texts, K = 1 where there is no rewriting. A loaded arm has no texts."""

    reward: np.ndarray
    gold: np.ndarray | None
    kl: np.ndarray  # (N, K), oracle (N, M): log-ratio of each sampled sequence to its reference; best-of-n: its bound
    extra: dict = field(default_factory=dict)
    x: list[str] = field(default_factory=list)
    x_prime: list[list[str]] = field(default_factory=list)  # (N, K)
    y: np.ndarray | None = None  # (N, K, M)


# ---------------------------------------------------------------- statistics (numpy, no models)


def variance_parts(rewards: np.ndarray) -> dict[str, float]:
    """The three parts of Var(r) for a balanced (N, K, M) array, by nested ANOVA mean squares.

        Var(r) = between inputs + between rewrites of an input + within a rewrite (the LM's own sampling)
        within = MSW,  between_rewrites = (MSP - MSW) / M,  between_inputs = (MSX - MSP) / (K M)
    Unbiased, so a part whose true value is near 0 can come out slightly negative. With K = 1 there is nothing between
    rewrites and between_inputs = (MSX - MSW) / M. Raises ValueError for fewer than 2 inputs, or K = M = 1.
    """
    N, K, M = rewards.shape
    if N < 2 or K * M < 2:
        raise ValueError(f"variance parts need at least 2 inputs and 2 answers each, not {rewards.shape}")
    per_rewrite = rewards.mean(2)  # (N, K)
    per_input = per_rewrite.mean(1)  # (N,)
    ms_inputs = K * M * ((per_input - rewards.mean()) ** 2).sum() / (N - 1)
    ms_rewrites = M * ((per_rewrite - per_input[:, None]) ** 2).sum() / (N * (K - 1)) if K > 1 else None
    ms_within = ((rewards - per_rewrite[:, :, None]) ** 2).sum() / (N * K * (M - 1)) if M > 1 else None
    if K == 1:
        return {
            "between_inputs": float((ms_inputs - ms_within) / M),
            "between_rewrites": 0.0,
            "within": float(ms_within),
        }
    if M == 1:  # the two lower levels cannot be told apart: their sum is reported as the LM's own sampling
        return {
            "between_inputs": float((ms_inputs - ms_rewrites) / K),
            "between_rewrites": 0.0,
            "within": float(ms_rewrites),
        }
    return {
        "between_inputs": float((ms_inputs - ms_rewrites) / (K * M)),
        "between_rewrites": float((ms_rewrites - ms_within) / M),
        "within": float(ms_within),
    }


def bootstrap_interval(per_input: np.ndarray, resamples: int, seed: int = 0) -> list[float]:
    """95 % percentile interval of the mean of (N,) values, resampling inputs.

    Give it per-input *differences* of two arms and it is the paired interval; the fixed seed makes every arm draw the
    same resamples. Example: constant values give [c, c].
    """
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            per_input[rng.integers(0, len(per_input), (min(500, resamples - i), len(per_input)))].mean(1)
            for i in range(0, resamples, 500)
        ]
    )  # (resamples,) in chunks, so that memory stays small
    return [float(q) for q in np.quantile(means, (0.025, 0.975))]


def win_rate(judged: np.ndarray, baseline: np.ndarray) -> tuple[float, float]:
    """(wins + ties / 2, ties) as shares: answer j of an input against answer j of the baseline for the same input.

    A baseline with fewer answers is gone through again.
    """
    a, b = judged.reshape(len(judged), -1), baseline.reshape(len(baseline), -1)
    b = np.tile(b, (1, -(-a.shape[1] // b.shape[1])))[:, : a.shape[1]]
    tie = np.isclose(a, b, rtol=0, atol=1e-9)
    return float(((a > b) & ~tie).mean() + tie.mean() / 2), float(tie.mean())


# ---------------------------------------------------------------- running the arms


def sequence_kl(model: Transformer, reference: Transformer, prompts, completions, temperature: float) -> list[float]:
    """log pi/pi_ref, summed over each sampled completion's tokens: its mean estimates the KL (k1).

    Of the models at this temperature: a nucleus (top_p) is left out, because a token outside the reference's nucleus
    would make it infinite.
    """
    tokens = [c.tokens for c in completions]
    ours, theirs = (sequence_logprobs(lm, prompts, tokens, temperature) for lm in (model, reference))
    return (ours - theirs).tolist()


@dataclass(slots=True)
class Evaluator:
    """Runs the arms on fixed `requests`; `reward` is what was optimised, `gold` the true reward where it is known."""

    requests: list[str]
    frozen: FrozenLM
    reward: Score
    gold: Gold | None
    config: EvalConfig
    generator: torch.Generator

    def _answers(self, frozen: FrozenLM, x_prime: list[list[str]], M: int):
        """Answer every rewrite M times: texts, rewards and gold, each (N, K, M), and the completions in that order."""
        N, K = len(x_prime), len(x_prime[0])
        asked = [text for row in x_prime for text in row for _ in range(M)]
        x = [x for x in self.requests for _ in range(K * M)]
        completions = frozen.complete(asked, self.generator)
        y = [frozen.tokenizer.decode(c.tokens) for c in completions]
        reward = np.asarray(self.reward(x, y), dtype=np.float64).reshape(N, K, M)
        gold = None if self.gold is None else np.array(self.gold(x, y), dtype=np.float64).reshape(N, K, M)
        return np.array(y, dtype=object).reshape(N, K, M), reward, gold, asked, completions

    def plain(self, frozen: FrozenLM | None = None) -> Arm:
        """x straight to the model: no fine-tuning, or (given another model) the oracle, with its KL to pi_F."""
        model, M = frozen or self.frozen, self.config.rewrites * self.config.answers
        x_prime = [[x] for x in self.requests]
        y, reward, gold, asked, completions = self._answers(model, x_prime, M)
        kl = np.zeros((len(x_prime), 1))
        if frozen is not None:
            prompts = [frozen.tokenizer.chat(p) for p in asked]
            logs = sequence_kl(
                frozen.model, self.frozen.model, prompts, completions, frozen.sampling.temperature or 1.0
            )
            kl = np.array(logs).reshape(len(x_prime), M)
        return Arm(reward, gold, kl, _lengths([], completions), self.requests, x_prime, y)

    def prompter(self, prompter: Prompter, reference: Prompter | None) -> Arm:
        """K rewrites of each request, M answers each; the KL is to `reference` (None: no KL)."""
        K = self.config.rewrites
        asked = [x for x in self.requests for _ in range(K)]
        rewrites = prompter.complete(asked, self.generator)
        texts, empty = usable_rewrites(asked, [prompter.tokenizer.decode(c.tokens) for c in rewrites], self.frozen.fits)
        kl = np.zeros((len(self.requests), K))
        if reference is not None:
            chats = [prompter.tokenizer.chat(x) for x in asked]
            kl = np.array(sequence_kl(prompter.model, reference.model, chats, rewrites, prompter.temperature)).reshape(
                -1, K
            )
        x_prime = [texts[i * K : (i + 1) * K] for i in range(len(self.requests))]
        y, reward, gold, _, answers = self._answers(self.frozen, x_prime, self.config.answers)
        extra = _lengths(rewrites, answers) | {"empty_rewrites": empty / len(asked)}
        return Arm(reward, gold, kl, extra, self.requests, x_prime, y)

    def listed(self, rewrites: list[list[str]], rho: torch.Tensor, rho_sft: torch.Tensor) -> Arm:
        """4K rewrites of each of the first requests, drawn from a table: rho, rho_sft (N', L) over L listed rewrites.

        Four times as many as elsewhere, because these requests are few.
        """
        K, few = 4 * self.config.rewrites, len(rewrites)
        picks = torch.multinomial(rho, K, replacement=True, generator=self.generator)  # (N', 4K)
        x_prime = [[row[j] for j in pick] for row, pick in zip(rewrites, picks.tolist())]
        kl = (rho.gather(1, picks) / rho_sft.gather(1, picks)).log().numpy()  # (N', 4K)
        local = replace(self, requests=self.requests[:few])
        y, reward, gold, _, answers = local._answers(self.frozen, x_prime, self.config.answers)
        return Arm(reward, gold, kl, _lengths([], answers), local.requests, x_prime, y)

    def best_of_n(self, rho_sft: Prompter) -> Arm:
        """K independent picks, each the best of n rewrites by the reward of one answer. KL <= log n - (n-1)/n."""
        n, K = self.config.best_of, self.config.rewrites
        asked = [x for x in self.requests for _ in range(K * n)]
        rewrites = rho_sft.complete(asked, self.generator)
        texts, empty = usable_rewrites(asked, [rho_sft.tokenizer.decode(c.tokens) for c in rewrites], self.frozen.fits)
        first = torch.as_tensor(self.reward(asked, self.frozen.answer(texts, self.generator))).view(-1, n)  # (N*K, n)
        best = first.argmax(1).tolist()
        picks = [texts[i * n + b] for i, b in enumerate(best)]
        x_prime = [picks[i * K : (i + 1) * K] for i in range(len(self.requests))]
        y, reward, gold, _, answers = self._answers(self.frozen, x_prime, self.config.answers)
        bound = np.full((len(self.requests), K), np.log(n) - (n - 1) / n)
        chosen = [rewrites[i * n + b] for i, b in enumerate(best)]
        extra = _lengths(chosen, answers) | {"empty_rewrites": empty / len(asked)}
        return Arm(reward, gold, bound, extra, self.requests, x_prime, y)


def _lengths(rewrites: Sequence, answers: Sequence) -> dict:
    """Mean lengths in tokens and the share of answers cut at the limit."""
    return {
        "rewrite_length": float(np.mean([len(c.tokens) for c in rewrites])) if rewrites else None,
        "answer_length": float(np.mean([len(c.tokens) for c in answers])),
        "cut_answers": float(np.mean([not c.finished for c in answers])),
    }


def paired(arm: Arm, base: Arm, resamples: int) -> dict:
    """Mean of arm - base over their common first inputs, and its 95 % interval from resampling these."""
    n = min(len(arm.reward), len(base.reward))
    difference = arm.reward[:n].mean((1, 2)) - base.reward[:n].mean((1, 2))  # (n,) the same inputs
    return {"mean": float(difference.mean()), "ci95": bootstrap_interval(difference, resamples)}


def summarise(arms: dict[str, Arm], config: EvalConfig) -> dict:
    """`results.json`'s arms, gap_closed and variance_ratio from what the arms did (`tables.GLOSSARY` explains each entry)."""
    base = arms["no_finetuning"]
    table: dict[str, dict] = {}
    for name, arm in arms.items():
        n = len(arm.reward)  # the closed form has fewer: it is compared on its own inputs
        per_input = arm.reward.mean((1, 2))  # (N,)
        judged, judge_base = (arm.gold, base.gold[:n]) if arm.gold is not None else (arm.reward, base.reward[:n])
        wins, ties = win_rate(judged, judge_base)
        table[name] = {
            "inputs": n,
            "mean": float(arm.reward.mean()),
            "variance": float(arm.reward.var(ddof=1)),
            "variance_parts": variance_parts(arm.reward),
            "ci95": bootstrap_interval(per_input, config.bootstrap),
            "gold_mean": None if arm.gold is None else float(arm.gold.mean()),
            "gold_ci95": None if arm.gold is None else bootstrap_interval(arm.gold.mean((1, 2)), config.bootstrap),
            "gold_variance": None if arm.gold is None else float(arm.gold.var(ddof=1)),
            "kl": float(arm.kl.mean()),
            "win_rate": wins,
            "tie_rate": ties,
            "difference": None if name == "no_finetuning" else paired(arm, base, config.bootstrap),
            **arm.extra,
        }
    pro, none, oracle = (table.get(n) for n in ("align_pro", "no_finetuning", "rlhf_oracle"))
    gap = oracle["mean"] - none["mean"] if oracle else 0.0
    return {
        "arms": table,
        # The share means nothing when the oracle itself found no gain.
        "gap_closed": (pro["mean"] - none["mean"]) / gap if gap > 1e-3 else None,
        "variance_ratio": pro["variance"] / none["variance"],
        "judge": "gold" if base.gold is not None else "reward",
    }


def headroom(evaluator: Evaluator, rho_sft: Prompter, K: int = 8, M: int = 4) -> dict[str, float]:
    """Before any RL: how much of the reward's spread lies between rewrites, where only RL on the prompter can reach.

    ICC = between rewrites / (between rewrites + within). Near 0, the frozen LM's own sampling hides the signal: use
    several answers per rewrite, or give up. `best_rewrite_gain` is the mean gain of the best of K rewrites judged on
    one half of its answers and measured on the other half (so that it is not the winner's luck).
    """
    few = evaluator.requests[: evaluator.config.headroom_inputs]
    config = EvalConfig(inputs=len(few), rewrites=K, answers=M)
    local = Evaluator(few, evaluator.frozen, evaluator.reward, None, config, evaluator.generator)
    rewards = local.prompter(rho_sft, None).reward  # (N, K, M)
    parts = variance_parts(rewards)
    spread = max(parts["between_rewrites"], 0.0)
    picked = rewards[:, :, : M // 2].mean(2).argmax(1)  # (N,)
    fresh = rewards[np.arange(len(few)), picked, M // 2 :].mean(1)  # (N,)
    return parts | {
        "icc": spread / max(spread + parts["within"], 1e-12),
        "best_rewrite_gain": float(fresh.mean() - rewards.mean()),
    }
