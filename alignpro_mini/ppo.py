"""PPO for text: sample completions, score each at its end, stay near a reference, clipped steps.

PPO gets a policy, a reference, prompts and `score(prompts, completions)`: one number for each whole
completion. *Rewards* are per token: the KL penalty, and on the last token the score too. Align-Pro,
RLHF and a user's own reward function differ only in the score. `PPOTrainer.step` lists the parts of
one iteration in their order. Other ways to do some of them are subclasses, in variants.py.

Shape legend:  B rows   b rows of a micro-batch   n sampled tokens of all rows   V vocabulary
               P longest prompt   T longest completion   D width
(the columns of a row are drawn in rollout.py)
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignpro_mini import rl_math
from alignpro_mini.generation import Sampler, generate, pad_left, pad_right, sampling_logprobs
from alignpro_mini.options import (
    MAX_GRAD_NORM,
    MICRO_BATCH,
    TRAIN_LAYERS,
    UserError,
    check_ranges,
    option,
    require,
)
from alignpro_mini.rollout import Policy, Rollout
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.training import (
    Score,
    SilentStage,
    Stage,
    Truncated,
    make_optimizer,
    optimizer_step,
    trainable,
    trunk,
)
from alignpro_mini.transformer import Transformer


@dataclass(frozen=True, slots=True)
class PPOConfig:
    """PPO with GAE and a KL penalty, for the prompter (ppo) and for the RLHF oracle (oracle)."""

    variant: str = option("ppo", "the trainer: PPO with GAE, or one of variants.py")
    iterations: int = option(400, "rollouts, each followed by its update", least=1)
    batch_size: int = option(64, "completions an iteration", least=1)
    rewrites_per_request: int = option(1, "K, completions of each prompt of a batch", least=1)
    # Read by Align-Pro's score (`alignpro.PromptScore`), not by PPO itself:
    answers: int = option(1, "M, answers per rewrite; their rewards are averaged", least=1)
    ppo_epochs: int = option(2, "passes over each rollout", least=1)
    num_minibatches: int = option(2, "optimiser steps a pass", least=1)
    micro_batch_size: int = option(32, MICRO_BATCH.format("rows"), least=1)
    lr: float = option(5e-4, "learning rate; it rises to this, then falls to 0", above=0)
    warmup_ratio: float = option(0.2, "share of the iterations over which the rate rises")
    kl_coef: float = option(0.1, "lambda: reward paid per nat of KL to the SFT policy", least=0)
    kl_start: float = option(1.0, "lambda falls from kl_start x kl_coef to kl_coef", least=1)
    adaptive_kl_target: float = option(0.0, "nats: adapt kl_coef to this KL (0: do not)", least=0)
    adaptive_kl_horizon: float = option(10_000.0, "episodes over which it adapts", above=0)
    gamma: float = option(1.0, "discount; 1, as the score comes once, after a short text")
    gae_lambda: float = option(0.95, "lambda of GAE: 1 is unbiased, lower relies on the values")
    clip_range: float = option(0.2, "epsilon: a ratio beyond 1 +- epsilon earns nothing", above=0)
    value_clip_range: float = option(0.4, "how far a value may move in an iteration", above=0)
    vf_coef: float = option(0.1, "weight of the value loss, which moves the blocks too", least=0)
    whiten_advantages: bool = option(True, "scale a rollout's advantages to mean 0, variance 1")
    max_grad_norm: float = option(1.0, MAX_GRAD_NORM, above=0)
    missing_eos_penalty: float = option(1.0, "subtracted if a completion lacks its EOS", least=0)
    temperature: float = option(1.0, "of the policy's sampling, and of PPO's log-probs")
    max_new_tokens: int = option(48, "longest completion of the policy", least=1)
    train_layers: int = option(0, TRAIN_LAYERS, least=0)

    def __post_init__(self) -> None:
        check_ranges(self)
        rows = self.batch_size
        parts = self.num_minibatches
        group = self.rewrites_per_request
        require(
            parts <= rows,
            f"num_minibatches is {parts}; a batch of {rows} cannot be cut into more parts",
        )
        require(
            self.temperature > 0,
            f"temperature is {self.temperature}; it must be above 0: greedy explores nothing",
        )
        for name in ("gamma", "gae_lambda", "warmup_ratio"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} is {value}; it must lie in 0..1")
        require(
            rows % group == 0,
            f"batch_size is {rows}; it must be a multiple of rewrites_per_request, {group}",
        )
        if self.adaptive_kl_target > 0:
            require(
                self.kl_coef > 0, "kl_coef is 0; adaptive_kl_target multiplies it: start above 0"
            )
            require(
                self.adaptive_kl_horizon >= rows,
                f"adaptive_kl_horizon must be at least batch_size, {rows}",
            )


class PPOTrainer:
    """Trains `lm` to raise `score`, with a KL penalty to `reference`, a frozen copy of its start.

    lm, reference  two transformers of one shape (UserError for one object); with `train_layers`
                   equal lower blocks
    score          any callable (prompts, completions) -> scores (B,)
    generator      draws the rollouts, prompts and minibatches (None: PyTorch's global one)
    sampler        samples the completions: `generate`, or a faster function of its signature
    """

    # Subclasses in variants.py set these two:
    variant = "ppo"  # its name as `PPOConfig.variant`
    unread: tuple[str, ...] = ()  # options that this trainer does not read

    def __init__(
        self,
        lm: Transformer,
        reference: Transformer,
        tokenizer: Tokenizer,
        score: Score,
        config: PPOConfig = PPOConfig(),
        generator: torch.Generator | None = None,
        sampler: Sampler = generate,
    ) -> None:
        require(
            lm is not reference,
            "lm and reference are one model: give copy.deepcopy(lm) as the reference",
        )
        self.check(config)
        self.policy = Policy(lm, config.train_layers)
        self.reference = reference.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.score = score
        self.config = config
        self.generator = generator or torch.default_generator
        self.sampler = sampler
        self.parameters = [
            *trainable(lm, config.train_layers),
            *self.policy.value_head.parameters(),
        ]
        self.optimizer = make_optimizer(self.parameters, config.lr, weight_decay=0.0)
        self.kl_coef = config.kl_coef  # lambda now: `train_ppo` and `adapt_kl_coef` change it
        self.lr = config.lr  # of this iteration: `train_ppo` sets it
        self.last_rollout: Rollout | None = None  # for logging

    @classmethod
    def check(cls, config: PPOConfig) -> None:
        """Raises UserError for options that this trainer cannot train with."""
        message = f"variant is {config.variant}, but this trainer is {cls.__name__}"
        advice = "take VARIANTS[variant] of variants.py"
        require(config.variant in ("ppo", cls.variant), f"{message}: {advice}")

    def step(self, prompts: Sequence[str]) -> dict[str, float]:
        """One iteration: roll out, score, assemble rewards, GAE, PPO epochs. Returns its metrics.

        Raises UserError for fewer prompts than minibatches, or prompts that do not come in groups
        of `rewrites_per_request` equal ones.
        """
        self._check_prompts(prompts)
        clock = [time.perf_counter()]
        rollout = self.rollout(prompts)
        clock.append(time.perf_counter())
        rollout.scores = self.scores(rollout)
        clock.append(time.perf_counter())
        rewards = self.assemble_rewards(rollout)
        self.estimate_advantages(rollout, rewards)
        update = self.update(rollout)
        clock.append(time.perf_counter())
        metrics = self.describe(rollout, update, clock)
        self.adapt_kl_coef(metrics["kl_k1"], len(prompts))
        self.last_rollout = rollout
        return metrics

    def _check_prompts(self, prompts: Sequence[str]) -> None:
        K = self.config.rewrites_per_request
        parts = self.config.num_minibatches
        alike = all(prompts[i] == prompts[i - i % K] for i in range(len(prompts)))
        require(
            len(prompts) % K == 0 and alike,
            f"rewrites_per_request is {K}: give each prompt {K} times, side by side",
        )
        require(
            len(prompts) >= parts, f"{len(prompts)} prompts cannot be cut into {parts} minibatches"
        )

    # ------------------------------------------------------------ rollout and score

    @torch.no_grad()
    def rollout(self, prompts: Sequence[str]) -> Rollout:
        """Sample one completion per prompt, with log-probs, values, exact KL and entropy."""
        lm = self.policy.lm
        chats = [self.tokenizer.chat(prompt) for prompt in prompts]
        completions = self.sampler(
            lm,
            chats,
            self.config.max_new_tokens,
            temperature=self.config.temperature,
            eos_id=self.tokenizer.end_ids,
            generator=self.generator,
        )
        pad_id = self.tokenizer.pad_id
        prompt_ids, prompt_mask = pad_left(chats, pad_id, lm.device)  # (B, P)
        tokens, action = pad_right([c.tokens for c in completions], pad_id, lm.device)  # (B, T)
        ids = torch.cat((prompt_ids, tokens), dim=1)  # (B, P+T)
        mask = torch.cat((prompt_mask, action), dim=1)  # (B, P+T)
        logp = torch.zeros(action.shape, device=lm.device)  # (B, T)
        logp[action] = torch.tensor([p for c in completions for p in c.logprobs], device=lm.device)
        texts = [self.tokenizer.decode(c.tokens) for c in completions]
        rollout = Rollout(
            prompts=list(prompts),
            completions=[
                text if c.finished else Truncated(text) for text, c in zip(texts, completions)
            ],
            finished=torch.tensor([c.finished for c in completions], device=lm.device),
            features=trunk(lm, ids, mask, self.config.train_layers),
            mask=mask,
            tokens=tokens,
            action=action,
            logp=logp,
            logp_ref=torch.zeros_like(logp),  # this one and those below: see _annotate
            logp_gap=torch.zeros_like(logp),
            values=torch.zeros_like(logp),
            kl_exact=torch.zeros_like(logp),
            entropy=torch.zeros_like(logp),
        )
        rows = torch.arange(len(prompts), device=lm.device)  # (B,)
        for index in self._micro_batches(rows, rollout):
            self._annotate(rollout, index)
        return rollout

    def _annotate(self, rollout: Rollout, index: Tensor) -> None:
        """Fill in what policy and reference say of the sampled tokens of the rows of `index`."""
        part = rollout.rows(index)
        T = part.action.shape[1]
        temperature = self.config.temperature
        logits, values = self.policy(part.features, part.mask, part.action)  # (n, V), (b, T)
        states = self.policy.states(self.reference, part.features, part.mask, T)  # (b, T, D)
        logits_ref = self.reference.unembed(states[part.action])  # (n, V)
        policy = sampling_logprobs(logits, temperature)  # (n, V)
        reference = sampling_logprobs(logits_ref, temperature)  # (n, V)
        taken = part.tokens[part.action][:, None]  # (n, 1)
        # Where the n tokens are in the whole batch. Boolean indexing runs in row order, so the rows
        # of `index` must be in ascending order too.
        place = torch.zeros_like(rollout.action)  # (B, T)
        place[index, :T] = part.action
        rollout.logp_ref[place] = reference.gather(1, taken)[:, 0]
        rollout.logp_gap[place] = (policy.gather(1, taken)[:, 0] - part.logp[part.action]).abs()
        rollout.values[place] = values[part.action]
        rollout.kl_exact[place] = rl_math.exact_kl(policy, reference)
        rollout.entropy[place] = rl_math.entropy(policy)

    def scores(self, rollout: Rollout) -> Tensor:
        """The score of each completion, (B,).

        Raises UserError for another shape, FloatingPointError for a score that is not finite.
        """
        scores = torch.as_tensor(self.score(rollout.prompts, rollout.completions))
        scores = scores.to(rollout.logp)  # (B,)
        if scores.shape != rollout.finished.shape:
            wanted = f"one reward per completion is {tuple(rollout.finished.shape)}"
            raise UserError(f"score returned shape {tuple(scores.shape)}; {wanted}")
        if not bool(torch.isfinite(scores).all()):
            raise FloatingPointError("score returned a reward that is not finite")
        return scores

    def assemble_rewards(self, rollout: Rollout) -> Tensor:
        """(B, T): the KL penalty on every token; on the last one the score too.

        A completion without EOS pays a penalty at its end.
        """
        kl = rl_math.kl_estimate(rollout.logp, rollout.logp_ref, "k1")  # (B, T)
        scores = rollout.scores - self.config.missing_eos_penalty * (~rollout.finished)  # (B,)
        return rl_math.assemble_rewards(scores, kl, rollout.action, self.kl_coef)

    def estimate_advantages(self, rollout: Rollout, rewards: Tensor) -> None:
        """Set advantages and returns (B, T) and the advantages' standard deviation.

        Whitening scales the advantages only: the value head learns returns.
        """
        c = self.config
        mask = rollout.action
        advantages, rollout.returns = rl_math.gae(
            rewards, rollout.values, mask, c.gamma, c.gae_lambda
        )
        rollout.advantage_std = float(rl_math.masked_var(advantages, mask).sqrt())
        rollout.advantages = rl_math.whiten(advantages, mask) if c.whiten_advantages else advantages

    # ------------------------------------------------------------ update

    def update(self, rollout: Rollout) -> dict[str, float]:
        """`ppo_epochs` passes of `num_minibatches` clipped steps; returns their mean metrics."""
        c = self.config
        sums: dict[str, float] = defaultdict(float)
        ratio_max = 0.0
        for _ in range(c.ppo_epochs):
            order = torch.randperm(len(rollout.prompts), generator=self.generator)  # (B,)
            for minibatch in order.to(rollout.mask.device).tensor_split(c.num_minibatches):
                # Each token weighs the same however the minibatch is cut: all of its micro-batches
                # are divided by its own count.
                tokens = int(rollout.action[minibatch].sum())
                for index in self._micro_batches(minibatch.sort().values, rollout):
                    loss, logged = self.loss(rollout.rows(index))
                    (loss / tokens).backward()
                    ratio_max = max(ratio_max, logged.pop("ratio_max"))
                    for name, value in logged.items():
                        sums[name] += value / tokens
                if any(math.isnan(value) for value in sums.values()):
                    advice = f"lower the learning rate (now {self.lr:.1e})"
                    raise FloatingPointError(f"PPO loss is NaN: {advice}")
                sums["grad_norm"] += optimizer_step(
                    self.optimizer, self.parameters, c.max_grad_norm, self.lr
                )
        steps = c.ppo_epochs * c.num_minibatches
        return {name: value / steps for name, value in sums.items()} | {"ratio_max": ratio_max}

    def loss(self, part: Rollout) -> tuple[Tensor, dict[str, float]]:
        """Policy loss + `extra_loss`, and what is logged; sums over the tokens of the micro-batch.

        The caller divides them by the tokens of the whole minibatch. `ratio_max` is no sum.
        """
        c = self.config
        logits, values = self.policy(part.features, part.mask, part.action)  # (n, V), (b, T)
        taken = part.tokens[part.action][:, None]  # (n, 1)
        chosen = sampling_logprobs(logits, c.temperature).gather(1, taken)[:, 0]  # (n,)
        logp = torch.zeros_like(part.logp).masked_scatter(part.action, chosen)  # (b, T)
        new, old = self.ratio_logprobs(logp, part)  # (b, T)
        surrogate, per_token = rl_math.policy_loss(
            new, old, part.advantages, part.action, c.clip_range
        )  # (b, T)
        before = part.logp[part.action]  # (n,)
        approx_kl = rl_math.kl_estimate(before, chosen.detach(), "k3")  # (n,) KL of old to new
        extra, extra_logged = self.extra_loss(part, logp, values)
        logged = {
            "policy_loss": surrogate.sum().item(),
            "clip_fraction": per_token["clipped"].sum().item(),
            "approx_kl": approx_kl.sum().item(),
            "ratio_max": per_token["ratio"][part.action].max().item(),
        }
        return surrogate.sum() + extra, logged | extra_logged

    def ratio_logprobs(self, logp: Tensor, part: Rollout) -> tuple[Tensor, Tensor]:
        """The log-probs whose ratio is clipped, new and old (b, T): those of each token."""
        return logp, part.logp

    def extra_loss(
        self, part: Rollout, logp: Tensor, values: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """vf_coef x the value loss, a sum over the tokens, and the sums that are logged.

        logp, values (b, T) are those of the policy now; they carry gradients.
        """
        loss, clipped = rl_math.value_loss(
            values, part.values, part.returns, part.action, self.config.value_clip_range
        )  # (b, T)
        logged = {"value_loss": loss.sum().item(), "value_clip_fraction": clipped.sum().item()}
        return self.config.vf_coef * loss.sum(), logged

    def _micro_batches(self, index: Tensor, rollout: Rollout) -> Iterator[Tensor]:
        """Cut `index` into micro-batches of rows of similar length, each in ascending order."""
        length = rollout.mask[index].sum(1)
        by_length = index[length.argsort(stable=True)]
        for part in by_length.split(self.config.micro_batch_size):
            yield part.sort().values

    # ------------------------------------------------------------ control and report

    def adapt_kl_coef(self, kl: float, episodes: int) -> None:
        """Adapt lambda to the KL target, if there is one.

        kl is policy to *reference*, in nats, summed over a completion.
        """
        c = self.config
        if c.adaptive_kl_target > 0:
            self.kl_coef = rl_math.adaptive_kl_coef(
                self.kl_coef, kl, c.adaptive_kl_target, c.adaptive_kl_horizon, episodes
            )

    def describe(
        self, rollout: Rollout, update: dict[str, float], clock: Sequence[float]
    ) -> dict[str, float]:
        """Metrics of an iteration; KL is per completion, entropy per token, both in nats.

        clock: the time before the rollout, after it, after the scores and after the update.
        """
        mask = rollout.action
        score = rollout.scores.mean().item()
        kl = rollout.kl.mean().item()
        k3 = rl_math.kl_estimate(rollout.logp, rollout.logp_ref, "k3")  # (B, T)
        tokens = mask.sum().item()
        missing_eos = (~rollout.finished).float().mean().item()
        penalty = self.config.missing_eos_penalty * missing_eos
        metrics = update | {
            "score_mean": score,
            "score_std": rollout.scores.std(unbiased=False).item(),
            "reward_mean": score - penalty - self.kl_coef * kl,
            "kl_k1": kl,
            "kl_k3": rl_math.masked_sum(k3, mask).mean().item(),
            "kl_exact": rl_math.masked_sum(rollout.kl_exact, mask).mean().item(),
            "kl_coef": self.kl_coef,
            "entropy": rl_math.masked_mean(rollout.entropy, mask).item(),
            "logp_gap": rollout.logp_gap[mask].max().item(),
            "advantage_std": rollout.advantage_std,
            "missing_eos": missing_eos,
            "completion_length": tokens / len(mask),
            "lr": self.lr,
            "rollout_s": clock[1] - clock[0],
            "score_s": clock[2] - clock[1],
            "update_s": clock[3] - clock[2],
            "tokens_per_s": tokens / (clock[3] - clock[0]),
        }
        if rollout.returns is not None:
            explained = rl_math.explained_variance(rollout.values, rollout.returns, mask)
            metrics["explained_variance"] = explained.item()
        return metrics


def learning_rate(config: PPOConfig, step: int) -> float:
    """Learning rate of an iteration (from 0): a linear rise over the warm-up x a linear fall."""
    rise = min(1.0, (step + 1) / (1 + config.warmup_ratio * config.iterations))
    fall = 1 - step / config.iterations
    return config.lr * rise * fall


def kl_schedule(config: PPOConfig, step: int) -> float:
    """Lambda of an iteration (from 0): kl_start x kl_coef falls linearly to kl_coef at 3/4 of them.

    A policy learns what is good for all prompts first, and what is good for one prompt later. With
    a small lambda it has given up everything else by then. What it never samples, it cannot learn.
    """
    left = max(0.0, 1 - step / (0.75 * config.iterations))
    return config.kl_coef * (1 + (config.kl_start - 1) * left)


def train_ppo(
    trainer: PPOTrainer,
    prompts: Sequence[str],
    stage: Stage = SilentStage(),
    observe: Callable[[PPOTrainer], tuple[dict, list[dict]]] = lambda trainer: ({}, []),
    show_every: int = 100,
) -> Transformer:
    """`config.iterations` of `trainer.step` over random batches of `prompts`; returns the model.

    Metrics, samples and states go through `stage`. `observe(trainer)` adds metrics and sample rows
    (x, x_prime, y, reward, kl) after an iteration. Raises UserError for no prompts.
    """
    c = trainer.config
    K = c.rewrites_per_request
    require(len(prompts) > 0, "no prompts: PPO needs at least one to draw from")
    start, meta = stage.restore(trainer.policy, trainer.optimizer, trainer.generator)
    trainer.kl_coef = meta.get("kl_coef", trainer.kl_coef)
    for step in stage.progress(start, c.iterations):
        trainer.lr = learning_rate(c, step)
        if c.adaptive_kl_target == 0:
            trainer.kl_coef = kl_schedule(c, step)
        picked = torch.randint(len(prompts), (c.batch_size // K,), generator=trainer.generator)
        metrics = trainer.step([prompts[i] for i in picked.tolist() for _ in range(K)])
        extra, samples = observe(trainer)
        done = step + 1
        shown = step == 0 or done % show_every == 0 or done == c.iterations
        stage.log(done, metrics | extra, samples if shown else ())
        stage.save(
            done, trainer.policy, trainer.optimizer, trainer.generator, kl_coef=trainer.kl_coef
        )
    return trainer.policy.lm.eval()
