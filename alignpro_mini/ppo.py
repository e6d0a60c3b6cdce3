"""PPO for text: sample completions, score each once at its end, stay near a reference, improve by clipped steps.

PPO gets a policy, a reference, prompts and `score(prompts, completions) -> rewards`. Align-Pro, RLHF and a user's own
reward function differ only in that score. `PPOTrainer.step` lists the parts of one iteration in their order.

Shape legend:  B rows   n sampled tokens of all rows   P longest prompt   T longest completion   V vocabulary
(the columns of a row are drawn in rollout.py)
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignpro_mini import rl_math
from alignpro_mini.generation import generate, pad_left, pad_right, sampling_logprobs
from alignpro_mini.options import MAX_GRAD_NORM, MICRO_BATCH, TRAIN_LAYERS, UserError, check_ranges, option, require
from alignpro_mini.rollout import Policy, Rollout
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.training import Score, SilentStage, Stage, Truncated, make_optimizer, optimizer_step, trainable
from alignpro_mini.transformer import Transformer

KL_PLACES = ("reward", "loss")


@dataclass(frozen=True, slots=True)
class PPOConfig:
    """PPO with GAE and a KL penalty; the same for the prompter (ppo) and the RLHF oracle (oracle)."""

    iterations: int = option(60, "rollouts, each followed by its update", least=1)
    batch_size: int = option(128, "completions an iteration", least=1)
    rewrites_per_request: int = option(1, "K, completions of each prompt of a batch; batch_size / K prompts", least=1)
    answers: int = option(1, "M, answers of the frozen LM per rewrite; their rewards are averaged", least=1)
    ppo_epochs: int = option(2, "passes over each rollout", least=1)
    num_minibatches: int = option(2, "optimiser steps a pass", least=1)
    micro_batch_size: int = option(32, MICRO_BATCH.format("rows"), least=1)
    lr: float = option(4e-4, "learning rate, before warm-up and annealing scale it", above=0)
    warmup_ratio: float = option(0.2, "share of the iterations over which the learning rate rises")
    anneal: bool = option(True, "lower the learning rate linearly to 0 over the run")
    kl_coef: float = option(0.1, "lambda, the KL penalty coefficient: reward per nat of KL to the SFT policy", least=0)
    adaptive_kl_target: float = option(0.0, "if above 0, kl_coef is adapted to this KL of a completion, nats", least=0)
    adaptive_kl_horizon: float = option(10_000.0, "episodes over which the adaptive controller reacts", above=0)
    gamma: float = option(1.0, "discount; 1, because the score comes once, at the end of a short text")
    kl_estimator: str = option("k1", "estimator of that KL on each token", rl_math.KL_KINDS)
    kl_placement: str = option("reward", "KL penalty in the reward, or (k2, k3) as a loss token by token", KL_PLACES)
    advantage: str = option("gae", "how advantages are estimated; all but gae need no value head", rl_math.ADVANTAGES)
    gae_lambda: float = option(0.95, "lambda of GAE: 1 is unbiased, lower values rely more on the value head")
    ratio: str = option("token", "probability ratio of each token, or one for the completion", ("token", "sequence"))
    clip_range: float = option(0.2, "epsilon: a probability ratio beyond 1 +- epsilon earns no credit", above=0)
    value_clip_range: float = option(0.4, "how far a value may move from the rollout's in one iteration", above=0)
    vf_coef: float = option(0.1, "weight of the value loss, which moves the policy's blocks too", least=0)
    whiten_advantages: bool = option(True, "scale the advantages of a rollout to mean 0, variance 1 (not of a group)")
    max_grad_norm: float = option(1.0, MAX_GRAD_NORM, above=0)
    missing_eos_penalty: float = option(1.0, "subtracted where a completion is truncated before its EOS", least=0)
    temperature: float = option(1.0, "temperature of the policy's sampling, and of the log-probs that PPO uses")
    max_new_tokens: int = option(48, "longest completion of the policy", least=1)
    train_layers: int = option(0, TRAIN_LAYERS, least=0)
    checkpoint_every: int = option(10, "iterations between saved states, more if a save takes seconds", least=1)

    def __post_init__(self) -> None:
        check_ranges(self)
        parts, rows, group = self.num_minibatches, self.batch_size, self.rewrites_per_request
        require(parts <= rows, f"num_minibatches is {parts}; a batch of {rows} cannot be cut into more parts")
        require(self.temperature > 0, f"temperature is {self.temperature}; it must be above 0: greedy explores nothing")
        for name in ("gamma", "gae_lambda", "warmup_ratio"):
            require(0 <= getattr(self, name) <= 1, f"{name} is {getattr(self, name)}; it must lie in 0..1")
        require(rows % group == 0, f"batch_size is {rows}; it must be a multiple of rewrites_per_request, {group}")
        alone = f"rewrites_per_request is {group}; advantage {self.advantage} compares at least 2"
        require(group >= 2 or self.advantage not in rl_math.GROUPED, alone)
        require(rows >= 2 or self.advantage != "reinforce", "batch_size is 1; advantage reinforce compares at least 2")
        by_token = f"ratio is sequence; advantage {self.advantage} differs from token to token"
        require(self.ratio == "token" or self.advantage in ("reinforce", *rl_math.GROUPED), by_token)
        if self.adaptive_kl_target > 0:
            require(self.kl_coef > 0, "kl_coef is 0; adaptive_kl_target multiplies it: start above 0")
            require(self.adaptive_kl_horizon >= rows, f"adaptive_kl_horizon must be at least batch_size, {rows}")

    @property
    def whitens(self) -> bool:
        """Whether advantages are whitened: those that compare the completions of one prompt never are."""
        return self.whiten_advantages and self.advantage not in rl_math.GROUPED


class PPOTrainer:
    """Trains `lm` to raise `score`, with a KL penalty to `reference` (a frozen copy of where it started).

    lm, reference  two transformers of one shape (UserError for one object); with `train_layers` equal lower blocks
    score          any callable (prompts, completions) -> rewards (B,)
    generator      draws the rollouts, the prompts and the minibatches (None: PyTorch's global one)
    """

    def __init__(
        self,
        lm: Transformer,
        reference: Transformer,
        tokenizer: Tokenizer,
        score: Score,
        config: PPOConfig = PPOConfig(),
        generator: torch.Generator | None = None,
    ) -> None:
        require(lm is not reference, "lm and reference are one model: give copy.deepcopy(lm) as the reference")
        self.policy, self.tokenizer, self.score, self.config = Policy(lm, config.train_layers), tokenizer, score, config
        self.policy.value_head.requires_grad_(config.advantage == "gae")  # for others no gradient ever comes to it
        self.reference = reference.eval().requires_grad_(False)
        self.generator, self.kl_coef, self.lr = generator or torch.default_generator, config.kl_coef, config.lr
        self.parameters = [*trainable(lm, config.train_layers), *self.policy.value_head.parameters()]
        self.optimizer = make_optimizer(self.parameters, config.lr, weight_decay=0.0)
        self.advantage_std = 1.0  # of the last rollout, before whitening
        self.last_rollout: Rollout | None = None  # for logging

    def step(self, prompts: Sequence[str]) -> dict[str, float]:
        """One iteration: roll out, score, assemble rewards, GAE, PPO epochs. Returns its metrics.

        Raises UserError for fewer prompts than minibatches, or prompts that do not come in groups of
        `rewrites_per_request` equal ones.
        """
        K, parts = self.config.rewrites_per_request, self.config.num_minibatches
        grouped = len(prompts) % K == 0 and all(prompts[i] == prompts[i - i % K] for i in range(len(prompts)))
        require(grouped, f"rewrites_per_request is {K}: give each prompt {K} times, side by side")
        require(len(prompts) >= parts, f"{len(prompts)} prompts cannot be cut into {parts} minibatches")
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

    # ------------------------------------------------------------ rollout and score

    @torch.no_grad()
    def rollout(self, prompts: Sequence[str]) -> Rollout:
        """Sample one completion per prompt, with the log-probs, values, exact KL and entropy of every token."""
        chats = [self.tokenizer.chat(p) for p in prompts]
        how = {"temperature": self.config.temperature, "eos_id": self.tokenizer.eos_id, "generator": self.generator}
        completions = generate(self._sampler(), chats, self.config.max_new_tokens, **how)
        device = self.policy.lm.device
        prompt_ids, prompt_mask = pad_left(chats, self.tokenizer.pad_id, device)  # (B, P)
        tokens, action = pad_right([c.tokens for c in completions], self.tokenizer.pad_id, device)  # (B, T)
        ids, mask = torch.cat((prompt_ids, tokens), 1), torch.cat((prompt_mask, action), 1)  # (B, P+T)
        logp = torch.zeros(action.shape, device=device)  # (B, T)
        logp[action] = torch.tensor([p for c in completions for p in c.logprobs], device=device)
        decoded = [self.tokenizer.decode(c.tokens) for c in completions]
        texts = [text if c.finished else Truncated(text) for text, c in zip(decoded, completions)]
        finished = torch.tensor([c.finished for c in completions], device=device)  # (B,)
        blanks = [torch.zeros_like(logp) for _ in range(4)]  # (B, T) each, filled below
        features = self.policy.lm.trunk(ids, mask, self.config.train_layers)  # (B, P+T) or (B, P+T, D)
        rollout = Rollout(list(prompts), texts, finished, features, mask, tokens, action, logp, *blanks)
        for index in self._micro_batches(torch.arange(len(prompts), device=device), rollout):
            self._annotate(rollout, index)
        return rollout

    @property
    def _coarse(self) -> bool:
        """Whether the model computes in bfloat16, where two ways to the same log-prob differ by more than rounding."""
        return self.policy.lm.embed.weight.dtype != torch.float32

    def _sampler(self) -> Transformer:
        """The policy; above a trunk in bfloat16 a copy of it in one dtype, so that no step converts weights again."""
        lm = self.policy.lm
        return copy.deepcopy(lm).to(lm.embed.weight.dtype) if self._coarse else lm

    def _annotate(self, rollout: Rollout, index: Tensor) -> None:
        """Fill in values, reference log-probs, exact KL and entropy of the rows of `index`."""
        part = rollout.rows(index)
        logits, values = self.policy(part.features, part.mask, part.action)  # (n, V), (b, T)
        states = self.policy.states(self.reference, part.features, part.mask, part.action.shape[1])  # (b, T, D)
        ours = sampling_logprobs(logits, self.config.temperature)  # (n, V)
        reference = sampling_logprobs(self.reference.unembed(states[part.action]), self.config.temperature)  # (n, V)
        taken = part.tokens[part.action][:, None]  # (n, 1)
        found = {
            "logp_ref": reference.gather(1, taken)[:, 0],
            "kl_exact": rl_math.exact_kl(ours, reference),
            "entropy": rl_math.entropy(ours),
            "values": values[part.action],
        }
        if self._coarse:
            found["logp"] = ours.gather(1, taken)[:, 0]
        for name, value in found.items():
            where = torch.zeros_like(rollout.action)  # (B, T)
            where[index, : part.action.shape[1]] = part.action
            # Boolean indexing runs in row order, so the rows of `index` must be in ascending order too.
            getattr(rollout, name)[where] = value

    def scores(self, rollout: Rollout) -> Tensor:
        """The score of each completion, (B,). Raises UserError for another shape, FloatingPointError for inf or NaN."""
        scores = torch.as_tensor(self.score(rollout.prompts, rollout.completions)).to(rollout.logp)  # (B,)
        if scores.shape != rollout.finished.shape:
            wanted = f"one reward per completion is {tuple(rollout.finished.shape)}"
            raise UserError(f"score returned shape {tuple(scores.shape)}; {wanted}")
        if not bool(torch.isfinite(scores).all()):
            raise FloatingPointError("score returned a reward that is not finite")
        return scores

    def assemble_rewards(self, rollout: Rollout) -> Tensor:
        """(B, T): the KL penalty on every token; on the last one the score too, less a penalty for a missing EOS."""
        kl = rl_math.kl_estimate(rollout.logp, rollout.logp_ref, self.config.kl_estimator)  # (B, T)
        scores = rollout.scores - self.config.missing_eos_penalty * (~rollout.finished)  # (B,)
        coef = self.kl_coef if self.config.kl_placement == "reward" else 0.0
        return rl_math.assemble_rewards(scores, kl, rollout.action, coef)

    def estimate_advantages(self, rollout: Rollout, rewards: Tensor) -> None:
        """Set advantages and returns (B, T); whitening scales the advantages only: the value head learns returns.

        Advantages that compare the completions of one prompt are centred already and are not whitened.
        """
        c, mask = self.config, rollout.action
        if c.advantage == "gae":
            advantages, rollout.returns = rl_math.gae(rewards, rollout.values, mask, c.gamma, c.gae_lambda)
        else:
            advantages = rl_math.critic_free(c.advantage, rewards, mask, c.rewrites_per_request)
        self.advantage_std = float(rl_math.masked_var(advantages, mask).sqrt())
        rollout.advantages = rl_math.whiten(advantages, mask) if c.whitens else advantages

    # ------------------------------------------------------------ update

    def update(self, rollout: Rollout) -> dict[str, float]:
        """`ppo_epochs` passes of `num_minibatches` clipped steps over the rollout; returns their mean metrics."""
        sums, ratio_max = defaultdict(float), 0.0
        self.policy.lm.train()
        for _ in range(self.config.ppo_epochs):
            order = torch.randperm(len(rollout.prompts), generator=self.generator).to(rollout.mask.device)
            for minibatch in order.tensor_split(self.config.num_minibatches):
                tokens = int(rollout.action[minibatch].sum())
                for index in self._micro_batches(minibatch.sort().values, rollout):
                    # Each token weighs the same however the minibatch is cut: the divisor is the minibatch's count.
                    loss, parts = self.loss(rollout.rows(index))
                    (loss / tokens).backward()
                    ratio_max = max(ratio_max, parts.pop("ratio_max"))
                    for name, value in parts.items():
                        sums[name] += value / tokens
                if not all(value == value for value in sums.values()):
                    raise FloatingPointError(f"PPO loss is NaN: lower the learning rate (now {self.lr:.1e})")
                sums["grad_norm"] += optimizer_step(self.optimizer, self.parameters, self.config.max_grad_norm, self.lr)
        self.policy.lm.eval()
        steps = self.config.ppo_epochs * self.config.num_minibatches
        return {name: value / steps for name, value in sums.items()} | {"ratio_max": ratio_max}

    def loss(self, part: Rollout) -> tuple[Tensor, dict[str, float]]:
        """Sum over the tokens of policy loss + vf_coef x value loss, and the sums that are logged (clipped: counts)."""
        c = self.config
        logits, values = self.policy(part.features, part.mask, part.action)  # (n, V), (b, T)
        chosen = sampling_logprobs(logits, c.temperature).gather(1, part.tokens[part.action][:, None])[:, 0]  # (n,)
        logp = torch.zeros_like(part.logp).masked_scatter(part.action, chosen)  # (b, T)
        clip, by_row = c.clip_range, c.ratio == "sequence"
        policy, seen = rl_math.policy_loss(logp, part.logp, part.advantages, part.action, clip, by_row)  # (b, T)
        update_kl = rl_math.kl_estimate(part.logp[part.action], chosen.detach(), "k3")  # (n,) old to new
        parts = {
            "policy_loss": policy.sum().item(),
            "clip_fraction": seen["clipped"].sum().item(),
            "approx_kl": update_kl.sum().item(),
            "ratio_max": seen["ratio"][part.action].max().item(),
        }
        total = policy.sum()
        if c.advantage == "gae":  # the others have no value head to train
            value, clipped = rl_math.value_loss(values, part.values, part.returns, part.action, c.value_clip_range)
            parts |= {"value_loss": value.sum().item(), "value_clip_fraction": clipped.sum().item()}
            total = total + c.vf_coef * value.sum()
        if c.kl_placement == "loss":
            kl = rl_math.kl_estimate(logp, part.logp_ref, c.kl_estimator)  # (b, T)
            # Whitening divides the reward's gradient by this standard deviation: lambda must keep its meaning.
            scale = 1 / max(self.advantage_std, 1e-4) if c.whitens else 1.0
            total = total + scale * self.kl_coef * rl_math.masked_sum(kl, part.action).sum()
        return total, parts

    def _micro_batches(self, index: Tensor, rollout: Rollout) -> Iterator[Tensor]:
        """Cut `index` into micro-batches of rows of similar length, each in ascending order."""
        length = rollout.mask[index].sum(1)
        for part in index[length.argsort(stable=True)].split(self.config.micro_batch_size):
            yield part.sort().values

    # ------------------------------------------------------------ control and report

    def adapt_kl_coef(self, kl: float, episodes: int) -> None:
        """Adapt lambda to the KL target, if there is one; kl is policy to *reference*, summed over a completion."""
        target, horizon = self.config.adaptive_kl_target, self.config.adaptive_kl_horizon
        if target > 0:
            self.kl_coef = rl_math.adaptive_kl_coef(self.kl_coef, kl, target, horizon, episodes)

    def describe(self, rollout: Rollout, update: dict[str, float], clock: Sequence[float]) -> dict[str, float]:
        """Metrics of an iteration; KL is per completion (summed over tokens), entropy per token, both in nats."""
        mask, scores = rollout.action, rollout.scores
        k3 = rl_math.masked_sum(rl_math.kl_estimate(rollout.logp, rollout.logp_ref, "k3"), mask)  # (B,)
        kl, tokens, missing_eos = rollout.kl.mean().item(), mask.sum().item(), (~rollout.finished).float().mean().item()
        found = update | {
            "score_mean": scores.mean().item(),
            "score_std": scores.std(unbiased=False).item(),
            "reward_mean": scores.mean().item() - self.config.missing_eos_penalty * missing_eos - self.kl_coef * kl,
            "kl_k1": kl,
            "kl_k3": k3.mean().item(),
            "kl_exact": rl_math.masked_sum(rollout.kl_exact, mask).mean().item(),
            "kl_coef": self.kl_coef,
            "entropy": rl_math.masked_mean(rollout.entropy, mask).item(),
            "advantage_std": self.advantage_std,
            "missing_eos": missing_eos,
            "completion_length": tokens / len(mask),
            "lr": self.lr,
            "rollout_s": clock[1] - clock[0],
            "score_s": clock[2] - clock[1],
            "update_s": clock[3] - clock[2],
            "tokens_per_s": tokens / (clock[3] - clock[0]),
        }
        if self.config.advantage == "gae":
            found["explained_variance"] = rl_math.explained_variance(rollout.values, rollout.returns, mask).item()
        return found


def learning_rate(config: PPOConfig, step: int) -> float:
    """Learning rate of an iteration (from 0): a linear rise over the warm-up, times a linear fall to 0 (`anneal`)."""
    rise = min(1.0, (step + 1) / (1 + config.warmup_ratio * config.iterations))
    return config.lr * rise * (1 - step / config.iterations if config.anneal else 1.0)


def train_ppo(
    trainer: PPOTrainer,
    prompts: Sequence[str],
    stage: Stage = SilentStage(),
    observe: Callable[[PPOTrainer], tuple[dict, list[dict]]] = lambda trainer: ({}, []),
    show_every: int = 20,
) -> Transformer:
    """`config.iterations` of `trainer.step` over random batches of `prompts`; returns the trained model in eval mode.

    Metrics, samples and saved states go through `stage`. `observe(trainer)` adds metrics and sample rows
    (x, x_prime, y, reward, kl) after an iteration. Raises UserError for no prompts.
    """
    c, K = trainer.config, trainer.config.rewrites_per_request
    require(len(prompts) > 0, "no prompts: PPO needs at least one to draw from")
    start, meta = stage.restore(trainer.policy, trainer.optimizer, trainer.generator)
    trainer.kl_coef = meta.get("kl_coef", trainer.kl_coef)
    for step in stage.progress(start, c.iterations):
        trainer.lr = learning_rate(c, step)
        picked = torch.randint(len(prompts), (c.batch_size // K,), generator=trainer.generator).tolist()
        metrics = trainer.step([prompts[i] for i in picked for _ in range(K)])
        extra, samples = observe(trainer)
        shown = step == 0 or (step + 1) % show_every == 0 or step + 1 == c.iterations
        stage.log(step + 1, metrics | extra, samples if shown else ())
        if (step + 1) % c.checkpoint_every == 0 or step + 1 == c.iterations:
            stage.save(step + 1, trainer.policy, trainer.optimizer, trainer.generator, kl_coef=trainer.kl_coef)
    return trainer.policy.lm.eval()
