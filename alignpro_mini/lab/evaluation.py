"""The arms on one fixed set of held-out requests, and their comparison.

    no_finetuning        x straight to pi_F                               K = 1 rewrite (x itself), K x M answers
    fixed_rewrite        one kind of rewrite for every request, the best one on training requests (fixed.py)
    untrained_prompter   x' ~ rho_sft
    best_of_n            n rewrites of rho_sft, one answer each; the best answer's rewrite is answered again
    best_of_n_answers    n answers to x itself; the reward picks one of them
    align_pro            x' ~ rho
    rlhf_oracle          x straight to the RLHF-trained copy of pi_F
    closed_form          x' ~ rho*, the exact optimum over the enumerated rewrites, for the first requests (optimum.py)

Rewards of an arm are an array (N inputs, K rewrites, M answers). Every arm but the closed form has the same N inputs
and K x M answers. Best-of-n is rated on a *new* answer: the first one was selected for its reward and would be biased.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from alignpro_mini.alignpro import Gold, Prompter, answer_length, usable_rewrites
from alignpro_mini.frozen import Answer, FrozenLM, FrozenModel
from alignpro_mini.generation import Completion, sequence_logprobs
from alignpro_mini.lab import guards
from alignpro_mini.lab.config import EvalConfig
from alignpro_mini.lab.statistics import (
    Groups,
    bootstrap_interval,
    interval,
    resampled_moments,
    variance_parts,
    win_shares,
    within_requests,
)
from alignpro_mini.training import Score
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


def sequence_kl(
    model: Transformer,
    reference: Transformer,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Completion | Answer],
    temperature: float,
) -> list[float]:
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
    frozen: FrozenModel
    reward: Score
    gold: Gold | None
    config: EvalConfig
    generator: torch.Generator
    guard: bool = False  # whether a rewrite with an objection is replaced by the request

    def _arm(
        self, model: FrozenModel, x_prime: list[list[str]], M: int, kl: np.ndarray, extra: dict
    ) -> tuple[Arm, list[Answer]]:
        """Answer every rewrite M times: the arm with (N, K, M) rewards, gold and texts; the answers in that order."""
        N, K = len(x_prime), len(x_prime[0])
        asked = [text for row in x_prime for text in row for _ in range(M)]
        answers = model.answer(asked, self.generator)
        x, y = [x for x in self.requests for _ in range(K * M)], [a.text for a in answers]
        reward = np.asarray(self.reward(x, y), dtype=np.float64).reshape(N, K, M)
        gold = None if self.gold is None else np.array(self.gold(x, y), dtype=np.float64).reshape(N, K, M)
        truncated = float(np.mean([a.truncated for a in answers]))
        extra = {"rewrite_length": None, **extra, "answer_length": answer_length(answers), "truncated": truncated}
        return Arm(reward, gold, kl, extra, self.requests, x_prime, np.array(y, dtype=object).reshape(N, K, M)), answers

    def plain(self) -> Arm:
        """No fine-tuning: x straight to the frozen model."""
        M, kl = self.config.rewrites * self.config.answers, np.zeros((len(self.requests), 1))
        return self._arm(self.frozen, [[x] for x in self.requests], M, kl, {})[0]

    def fixed(self, rewrites: list[str], kl: np.ndarray) -> Arm:
        """One given rewrite of each request; `kl` (N, 1) is -log rho_sft of it: that of a prompter that writes it."""
        M = self.config.rewrites * self.config.answers
        return self._arm(self.frozen, [[x_prime] for x_prime in rewrites], M, kl, {})[0]

    def best_of_n_answers(self) -> Arm:
        """The best of n answers to x itself, by the reward: n times the answers. KL of answers <= log n - (n-1)/n."""
        n, M = self.config.best_of_n, self.config.rewrites * self.config.answers
        N = len(self.requests)
        bound = np.full((N, 1), np.log(n) - (n - 1) / n)
        arm, answers = self._arm(self.frozen, [[x] for x in self.requests], M * n, bound, {})
        best = arm.reward.reshape(N, M, n).argmax(2)  # (N, M)
        flat = (np.arange(N * M) * n + best.ravel()).tolist()  # their places among all N * M * n answers
        pick = lambda values: None if values is None else values.ravel()[flat].reshape(N, 1, M)
        chosen = [answers[i] for i in flat]
        extra = {"answer_length": answer_length(chosen), "truncated": float(np.mean([a.truncated for a in chosen]))}
        picked = {part: pick(getattr(arm, part)) for part in ("reward", "gold", "y")}
        return replace(arm, **picked, extra=arm.extra | extra)

    def oracle(self, oracle: FrozenLM, reference: FrozenLM) -> Arm:
        """x straight to the RLHF-trained copy, with its KL to `reference`, the frozen LM it is a copy of."""
        M, kl = self.config.rewrites * self.config.answers, np.zeros((len(self.requests), 1))
        arm, answers = self._arm(oracle, [[x] for x in self.requests], M, kl, {})
        prompts = [oracle.tokenizer.chat(x) for x in self.requests for _ in range(M)]
        logs = sequence_kl(oracle.model, reference.model, prompts, answers, oracle.sampling.temperature or 1.0)
        return replace(arm, kl=np.array(logs).reshape(-1, M))

    def prompter(self, prompter: Prompter, reference: Prompter | None) -> Arm:
        """K rewrites of each request, M answers each; the KL is to `reference` (None: no KL)."""
        K = self.config.rewrites
        asked = [x for x in self.requests for _ in range(K)]
        completions, texts, extra = self._rewrite(prompter, asked)
        kl = np.zeros(len(asked))
        if reference is not None:
            chats = [prompter.tokenizer.chat(x) for x in asked]
            kl = np.array(sequence_kl(prompter.model, reference.model, chats, completions, prompter.temperature))
        x_prime = [texts[i : i + K] for i in range(0, len(texts), K)]
        return self._arm(self.frozen, x_prime, self.config.answers, kl.reshape(-1, K), extra | _length(completions))[0]

    def _rewrite(self, prompter: Prompter, asked: list[str]) -> tuple[list[Completion], list[str], dict]:
        """A rewrite for each request, as tokens and as the text that is sent; and the share that fell back to x."""
        completions = prompter.complete(asked, self.generator)
        texts = [prompter.tokenizer.decode(c.tokens) for c in completions]
        objections = guards.objection_rate(asked, texts)
        texts = guards.kept(asked, texts) if self.guard else texts
        texts, fallbacks = usable_rewrites(asked, texts, self.frozen.fits)
        return completions, texts, {"fallback_rate": fallbacks / len(asked), "objection_rate": objections}

    def enumerated(self, rewrites: list[list[str]], rho: torch.Tensor, rho_sft: torch.Tensor) -> Arm:
        """4K rewrites of each of the first requests, drawn from a table: rho, rho_sft (N', L) over L rewrites.

        Four times as many as elsewhere, because these requests are few.
        """
        K = 4 * self.config.rewrites
        picks = torch.multinomial(rho, K, replacement=True, generator=self.generator)  # (N', 4K)
        x_prime = [[row[j] for j in pick] for row, pick in zip(rewrites, picks.tolist())]
        kl = (rho.gather(1, picks) / rho_sft.gather(1, picks)).log().numpy()  # (N', 4K)
        local = replace(self, requests=self.requests[: len(rewrites)])
        return local._arm(self.frozen, x_prime, self.config.answers, kl, {})[0]

    def best_of_n(self, rho_sft: Prompter) -> Arm:
        """K independent picks, each the best of n rewrites by the reward of one answer. KL <= log n - (n-1)/n."""
        n, K = self.config.best_of_n, self.config.rewrites
        asked = [x for x in self.requests for _ in range(K * n)]
        completions, texts, extra = self._rewrite(rho_sft, asked)
        first = self.reward(asked, [a.text for a in self.frozen.answer(texts, self.generator)])  # (N*K*n,)
        best = torch.as_tensor(first).view(-1, n).argmax(1).tolist()  # (N*K)
        picks = [i * n + b for i, b in enumerate(best)]
        x_prime = [[texts[j] for j in picks[i : i + K]] for i in range(0, len(picks), K)]
        bound = np.full((len(self.requests), K), np.log(n) - (n - 1) / n)
        extra |= _length([completions[j] for j in picks])
        return self._arm(self.frozen, x_prime, self.config.answers, bound, extra)[0]


def _length(rewrites: Sequence[Completion]) -> dict[str, float]:
    return {"rewrite_length": float(np.mean([len(c.tokens) for c in rewrites]))}


def paired(arm: Arm, base: Arm, resamples: int, groups: Groups = None) -> dict:
    """Mean of arm - base over their common first inputs, and its 95 % interval from resampling these."""
    n = min(len(arm.reward), len(base.reward))
    difference = arm.reward[:n].mean((1, 2)) - base.reward[:n].mean((1, 2))  # (n,) the same inputs
    return {"mean": float(difference.mean()), "ci95": bootstrap_interval(difference, resamples, groups and groups[:n])}


def summarise(arms: dict[str, Arm], config: EvalConfig, groups: Groups = None) -> dict:
    """The arms and their comparisons for `results.json` (`glossary.METRICS` explains each entry).

    A ratio is None where its denominator is (nearly) 0: an oracle whose gain was not shown, a constant reward of no
    fine-tuning. Every interval is over resampled requests, or `groups` of them, paired where two arms are compared.
    """
    base, count = arms["no_finetuning"], config.bootstrap
    table = {name: _measured(name, arm, base, count, groups) for name, arm in arms.items()}
    pro, oracle = arms["align_pro"], arms.get("rlhf_oracle")
    found = {"arms": table, "judge": "gold" if base.gold is not None else "reward"}
    for prefix, ours, plain in (("", pro.reward, base.reward), ("gold_", pro.gold, base.gold)):
        found |= ratio_of_variances(f"{prefix}variance_ratio", ours, plain, count, groups)
        found |= ratio_within_requests(f"{prefix}variance_ratio_within_requests", ours, plain, count, groups)
    found |= against_fixed(arms, count, groups)
    found |= dict.fromkeys(("gap_closed", "gap_closed_ci95", "difference_to_oracle"))
    if oracle is not None:
        found["difference_to_oracle"] = paired(pro, oracle, count, groups)
        if table["rlhf_oracle"]["difference"]["ci95"][0] > 0:
            none, ours, theirs = (resampled_moments(arm.reward, count, groups)[0] for arm in (base, pro, oracle))
            gain, best = (table[name]["difference"]["mean"] for name in ("align_pro", "rlhf_oracle"))
            found |= {"gap_closed": gain / best, "gap_closed_ci95": interval((ours - none) / (theirs - none))}
    return found


FIXED = ("over_fixed", "over_fixed_ci95", "gold_over_fixed", "gold_over_fixed_ci95")
SHARE = ("request_share", "request_share_ci95")


def against_fixed(arms: dict[str, Arm], count: int, groups: Groups = None) -> dict:
    """Align-Pro against the best fixed rewrite: what a prompter gains by reading the request.

        over_fixed      Align-Pro - fixed rewrite, paired; of the gold reward too
        request_share   its part of what can be gained, where there is a closed form
    None where there is no such arm.
    """
    found = dict.fromkeys(FIXED + SHARE)
    pro, fixed, star = (arms.get(name) for name in ("align_pro", "fixed_rewrite", "closed_form"))
    if fixed is None:
        return found
    lead = paired(pro, fixed, count, groups)
    found |= {"over_fixed": lead["mean"], "over_fixed_ci95": lead["ci95"]}
    if pro.gold is not None:
        on_gold = (replace(arm, reward=arm.gold) for arm in (pro, fixed))
        lead = paired(*on_gold, count, groups)
        found |= {"gold_over_fixed": lead["mean"], "gold_over_fixed_ci95": lead["ci95"]}
    return found if star is None else found | request_share(pro.reward, fixed.reward, star.reward, count, groups)


def request_share(
    pro: np.ndarray, fixed: np.ndarray, star: np.ndarray, count: int, groups: Groups = None
) -> dict[str, float | list[float] | None]:
    """Of what can be gained by reading the request, the share that Align-Pro took, and its interval.

        request_share = (mean of pro - mean of fixed) / (mean of star - mean of fixed)
    Rewards (N, K, M) of Align-Pro, the fixed rewrite and the closed form, each with its own K and M. The closed form has
    only the first requests, so all three means are over these. Numerator and denominator have the same resamples. Both
    values are None where the lead of the closed form is not shown (its paired interval reaches 0 or below): one sentence
    is then enough.
    """
    ours, theirs, best = (rewards[: len(star)].mean((1, 2)) for rewards in (pro, fixed, star))  # (n,) each
    few = groups and groups[: len(star)]
    if bootstrap_interval(best - theirs, count, few)[0] <= 0:
        return dict.fromkeys(SHARE)
    gained, possible = (resampled_moments((x - theirs)[:, None, None], count, few)[0] for x in (ours, best))  # (count,)
    share = float((ours - theirs).mean() / (best - theirs).mean())
    return {"request_share": share, "request_share_ci95": interval(gained / possible)}


def _measured(name: str, arm: Arm, base: Arm, count: int, groups: Groups) -> dict:
    """One arm alone, and against no fine-tuning; the closed form has fewer inputs, and is compared on its own."""
    n, known = len(arm.reward), arm.gold is not None
    wins, ties = win_shares(arm.gold, base.gold[:n]) if known else win_shares(arm.reward, base.reward[:n])
    groups = groups and groups[:n]
    mean, variance = resampled_moments(arm.reward, count, groups)
    found = {
        "inputs": n,
        "mean": float(arm.reward.mean()),
        "ci95": interval(mean),
        "variance": float(arm.reward.var(ddof=1)),
        "variance_ci95": interval(variance),
        "variance_parts": variance_parts(arm.reward),
        "variance_within_requests": float(within_requests(arm.reward).mean()),
        **dict.fromkeys(("gold_mean", "gold_ci95", "gold_variance", "gold_variance_ci95")),
        "gold_variance_within_requests": float(within_requests(arm.gold).mean()) if known else None,
        "kl": float(arm.kl.mean()),
        "win_rate": float(wins.mean()),
        "win_rate_ci95": bootstrap_interval(wins, count, groups),
        "tie_rate": float(ties.mean()),
        "difference": None if name == "no_finetuning" else paired(arm, base, count, groups),
    }
    if known:
        mean, variance = resampled_moments(arm.gold, count, groups)
        found |= {"gold_mean": float(arm.gold.mean()), "gold_ci95": interval(mean)}
        found |= {"gold_variance": float(arm.gold.var(ddof=1)), "gold_variance_ci95": interval(variance)}
    return found | arm.extra


def ratio_of_variances(
    name: str, ours: np.ndarray | None, base: np.ndarray | None, count: int, groups: Groups = None
) -> dict:
    """The ratio of two arms' variances over the same requests, and its interval."""
    if base is None or not base.std() > 1e-9 * max(1.0, float(np.abs(base).max())):  # constant, but for rounding
        return {name: None, f"{name}_ci95": None}
    (_, a), (_, b) = (resampled_moments(rewards, count, groups) for rewards in (ours, base))
    defined = b > 0  # a resample of a nearly constant baseline may have no variance at all
    return {name: float(ours.var(ddof=1) / base.var(ddof=1)), f"{name}_ci95": interval(a[defined] / b[defined])}


def ratio_within_requests(
    name: str, ours: np.ndarray | None, base: np.ndarray | None, count: int, groups: Groups = None
) -> dict:
    """The same of the variances within requests, which no offset b(x) of a learned reward changes."""
    if base is None or not within_requests(base).mean() > 1e-12:
        return {name: None, f"{name}_ci95": None}
    a, b = (within_requests(rewards)[:, None, None] for rewards in (ours, base))  # (N, 1, 1)
    means, bases = (resampled_moments(values, count, groups)[0] for values in (a, b))
    defined = bases > 0
    return {name: float(a.mean() / b.mean()), f"{name}_ci95": interval(means[defined] / bases[defined])}


def headroom(evaluator: Evaluator, rho_sft: Prompter, K: int = 8, M: int = 4) -> dict[str, float]:
    """Before any RL: how much of the reward's variance lies between rewrites. Only by these can RL gain.

    ICC = between rewrites / (between rewrites + within). Near 0, the frozen LM's own sampling hides the signal: then
    more answers per rewrite are needed, or another reward. `best_rewrite_gain` is the mean gain of the best of K
    rewrites, chosen by one half of its answers and measured on the other half, so that selection does not bias it.
    """
    few = evaluator.requests[: evaluator.config.headroom_inputs]
    config = EvalConfig(inputs=len(few), rewrites=K, answers=M)
    local = replace(evaluator, requests=few, gold=None, config=config)
    rewards = local.prompter(rho_sft, None).reward  # (N, K, M)
    parts = variance_parts(rewards)
    spread = max(parts["between_rewrites"], 0.0)
    picked = rewards[:, :, : M // 2].mean(2).argmax(1)  # (N,)
    held_out = rewards[np.arange(len(few)), picked, M // 2 :].mean(1)  # (N,)
    gain = float(held_out.mean() - rewards.mean())
    return parts | {"icc": spread / max(spread + parts["within"], 1e-12), "best_rewrite_gain": gain}
