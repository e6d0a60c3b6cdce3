"""PPO for text: sample completions, score them once at the end, keep near a reference, improve by clipped steps.

It knows a policy, a reference, prompts and `score(prompts, completions) -> rewards`, and nothing else: whether the score
asks a frozen LM (Align-Pro), a reward model (RLHF) or a student's own function is not its business.

Shape legend:  B rows   P longest prompt   T longest completion   V vocabulary   D width

    columns of a row      0 ........ P-1 | P ............ P+T-1
    prompt, left-padded   _ _ Tell me .  |                                _ is padding
    completion                           | Please tell me . <end> _ _     the action mask (B, T) is True up to <end>
    predicted from               column P-1 ............ P+T-2            token t's log-prob comes from the state at t-1
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from alignpro_mini import rl_math
from alignpro_mini.config import PPOConfig
from alignpro_mini.generation import generate, pad_left, pad_right, sampling_logprobs
from alignpro_mini.run import Stage
from alignpro_mini.sft import make_optimizer, optimizer_step, trainable
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.transformer import Transformer

Score = Callable[[Sequence[str], Sequence[str]], Tensor]  # (prompts, completions) -> rewards (B,)


class Policy(nn.Module):
    """A language model with a value head: V(s_t), the return expected from the state before token t."""

    def __init__(self, lm: Transformer, train_layers: int = 0) -> None:
        super().__init__()
        self.lm = lm
        self.value_head = nn.Linear(lm.config.d_model, 1, device=lm.device)
        nn.init.zeros_(self.value_head.weight)  # nothing is expected yet: no state is better than another
        nn.init.zeros_(self.value_head.bias)
        self.depth = lm.config.n_layers - train_layers if train_layers else 0  # blocks of the frozen trunk

    def trunk(self, ids: Tensor, mask: Tensor) -> Tensor:
        """What lies below the trained blocks, computed once a rollout: (B, P+T, D), or the ids if everything trains."""
        if self.depth == 0:
            return ids
        with torch.no_grad():
            return self.lm.lower(ids, mask, self.depth)

    def forward(self, features: Tensor, mask: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, V) of the n sampled tokens, in row order, and values (B, T)."""
        states = self.states(self.lm, features, mask, action.shape[1])  # (B, T, D)
        return self.lm.unembed(states[action]).float(), self.value_head(states).squeeze(-1).float()

    def states(self, lm: Transformer, features: Tensor, mask: Tensor, T: int) -> Tensor:
        """The hidden states (B, T, D) that the completion's tokens are predicted from: one column to their left."""
        hidden = lm.upper(features, mask, self.depth) if self.depth else lm.hidden(features, mask)  # (B, P+T, D)
        return hidden[:, -T - 1 : -1]


@dataclass(slots=True)
class Rollout:
    """One batch of sampled completions and all that is known about them. Tensors are (B, T) unless told."""

    prompts: list[str]
    completions: list[str]
    finished: Tensor  # (B,) ended with EOS
    features: Tensor  # (B, P+T) ids or (B, P+T, D) trunk outputs
    mask: Tensor  # (B, P+T) real tokens
    tokens: Tensor
    action: Tensor  # True on sampled tokens, EOS included
    logp: Tensor  # when sampled
    logp_ref: Tensor
    values: Tensor
    kl_exact: Tensor
    entropy: Tensor
    scores: Tensor | None = None  # (B,)
    advantages: Tensor | None = None
    returns: Tensor | None = None

    @property
    def kl(self) -> Tensor:
        """(B,) log rho/rho_ref of each whole completion: the KL's k1 estimate, summed over its tokens."""
        return rl_math.masked_sum(rl_math.kl_estimate(self.logp, self.logp_ref, "k1"), self.action)

    def rows(self, index: Tensor) -> Rollout:
        """The rows of `index`, without the columns that are padding in all of them."""
        P = self.mask.shape[1] - self.action.shape[1]
        action = self.action[index]  # (b, T)
        T = int(action.sum(1).max())
        lead = int(self.mask[index].any(0).float().argmax())
        cut = lambda x: None if x is None else x[index][:, :T]  # noqa: E731
        return replace(
            self,
            features=self.features[index][:, lead : P + T],
            mask=self.mask[index][:, lead : P + T],
            tokens=cut(self.tokens),
            action=action[:, :T],
            logp=cut(self.logp),
            values=cut(self.values),
            advantages=cut(self.advantages),
            returns=cut(self.returns),
        )


class PPOTrainer:
    """Trains `lm` towards `score`, staying near `reference` (a frozen copy of where it started).

    lm, reference  transformers of one shape; with `config.train_layers` their lower blocks must be equal
    score          any callable (prompts, completions) -> rewards (B,)
    generator      draws the rollouts, the prompts and the minibatches
    """

    def __init__(
        self,
        lm: Transformer,
        reference: Transformer,
        tokenizer: Tokenizer,
        score: Score,
        config: PPOConfig,
        generator: torch.Generator,
    ) -> None:
        self.policy, self.tokenizer, self.score, self.config = Policy(lm, config.train_layers), tokenizer, score, config
        self.reference = reference.eval().requires_grad_(False)
        self.generator, self.kl_coef, self.lr = generator, config.kl_coef, config.lr
        self.parameters = [*trainable(lm, config.train_layers), *self.policy.value_head.parameters()]
        self.optimizer = make_optimizer(self.parameters, config.lr, weight_decay=0.0)
        self.rollout_now: Rollout | None = None  # the last one, for whoever wants to look

    def step(self, prompts: Sequence[str]) -> dict[str, float]:
        """One round: roll out, score, assemble rewards, GAE, PPO epochs. Returns the round's metrics.

        Raises ValueError for fewer prompts than minibatches.
        """
        if len(prompts) < self.config.minibatches:
            raise ValueError(f"{len(prompts)} prompts cannot be cut into {self.config.minibatches} minibatches")
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
        self.rollout_now = rollout
        return metrics

    # ------------------------------------------------------------ rollout and score

    @torch.no_grad()
    def rollout(self, prompts: Sequence[str]) -> Rollout:
        """Sample one completion per prompt; note what policy, value head and reference think of every token."""
        chats = [self.tokenizer.chat(p) for p in prompts]
        completions = generate(
            self.policy.lm,
            chats,
            self.config.max_new_tokens,
            temperature=self.config.temperature,
            eos_id=self.tokenizer.eos_id,
            generator=self.generator,
        )
        device = self.policy.lm.device
        prompt_ids, prompt_mask = pad_left(chats, self.tokenizer.pad_id, device)  # (B, P)
        tokens, action = pad_right([c.tokens for c in completions], self.tokenizer.pad_id, device)  # (B, T)
        ids, mask = torch.cat((prompt_ids, tokens), 1), torch.cat((prompt_mask, action), 1)  # (B, P+T)
        logp = torch.zeros(action.shape, device=device)  # (B, T)
        logp[action] = torch.tensor([p for c in completions for p in c.logprobs], device=device)
        blank = torch.zeros_like(logp)  # (B, T)
        rollout = Rollout(
            list(prompts),
            [self.tokenizer.decode(c.tokens) for c in completions],
            torch.tensor([c.finished for c in completions], device=device),
            self.policy.trunk(ids, mask),
            mask,
            tokens,
            action,
            logp,
            blank.clone(),
            blank.clone(),
            blank.clone(),
            blank.clone(),
        )
        for index in self._micro_batches(torch.arange(len(prompts), device=device), rollout):
            self._annotate(rollout, index)
        return rollout

    def _annotate(self, rollout: Rollout, index: Tensor) -> None:
        """Fill in values, reference log-probs, exact KL and entropy of the rows of `index`."""
        part = rollout.rows(index)
        logits, values = self.policy(part.features, part.mask, part.action)  # (n, V), (b, T)
        states = self.policy.states(self.reference, part.features, part.mask, part.action.shape[1])  # (b, T, D)
        ours = sampling_logprobs(logits, self.config.temperature)  # (n, V)
        reference = sampling_logprobs(self.reference.unembed(states[part.action]), self.config.temperature)  # (n, V)
        taken = part.tokens[part.action][:, None]  # (n, 1)
        for name, value in (
            ("logp_ref", reference.gather(1, taken)[:, 0]),
            ("kl_exact", rl_math.exact_kl(ours, reference)),
            ("entropy", rl_math.entropy(ours)),
            ("values", values[part.action]),
        ):
            where = torch.zeros_like(rollout.action)  # (B, T)
            where[index, : part.action.shape[1]] = part.action
            # Boolean indexing runs in row order, so the rows of `index` must be in ascending order too.
            getattr(rollout, name)[where] = value

    def scores(self, rollout: Rollout) -> Tensor:
        """The score of each completion (B,), less the penalty where it was cut before its EOS."""
        scores = torch.as_tensor(self.score(rollout.prompts, rollout.completions)).to(rollout.logp)  # (B,)
        if scores.shape != rollout.finished.shape:
            raise ValueError(
                f"score returned shape {tuple(scores.shape)}; one reward per completion is {tuple(rollout.finished.shape)}"
            )
        if not bool(torch.isfinite(scores).all()):
            raise FloatingPointError("score returned a reward that is not finite")
        return scores - self.config.missing_eos_penalty * (~rollout.finished)

    def assemble_rewards(self, rollout: Rollout) -> Tensor:
        """(B, T): the KL's price on every token, the score on the last."""
        kl = rl_math.kl_estimate(rollout.logp, rollout.logp_ref, "k1")  # (B, T)
        return rl_math.assemble_rewards(rollout.scores, kl, rollout.action, self.kl_coef)

    def estimate_advantages(self, rollout: Rollout, rewards: Tensor) -> None:
        """Set advantages and returns (B, T); whitening scales the advantages only, the value head learns the returns."""
        c = self.config
        advantages, rollout.returns = rl_math.gae(rewards, rollout.values, rollout.action, c.gamma, c.gae_lam)
        rollout.advantages = rl_math.whiten(advantages, rollout.action) if c.whiten else advantages

    # ------------------------------------------------------------ update

    def update(self, rollout: Rollout) -> dict[str, float]:
        """`epochs` passes of `minibatches` clipped steps over the rollout; returns their mean metrics."""
        sums: dict[str, float] = defaultdict(float)
        ratio_max = 0.0
        self.policy.lm.train()
        for _ in range(self.config.epochs):
            order = torch.randperm(len(rollout.prompts), generator=self.generator).to(rollout.mask.device)
            for minibatch in order.tensor_split(self.config.minibatches):
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
                sums["grad_norm"] += optimizer_step(self.optimizer, self.parameters, self.config.grad_clip, self.lr)
        self.policy.lm.eval()
        steps = self.config.epochs * self.config.minibatches
        return {name: value / steps for name, value in sums.items()} | {"ratio_max": ratio_max}

    def loss(self, part: Rollout) -> tuple[Tensor, dict[str, float]]:
        """Sum over the tokens of policy loss + value_coef x value loss, and the sums of what is logged."""
        c = self.config
        logits, values = self.policy(part.features, part.mask, part.action)  # (n, V), (b, T)
        chosen = sampling_logprobs(logits, c.temperature).gather(1, part.tokens[part.action][:, None])[:, 0]  # (n,)
        logp = torch.zeros_like(part.logp).masked_scatter(part.action, chosen)  # (b, T)
        policy, seen = rl_math.policy_loss(logp, part.logp, part.advantages, part.action, c.clip)  # (b, T)
        value, value_clipped = rl_math.value_loss(values, part.values, part.returns, part.action, c.value_clip)
        update_kl = rl_math.kl_estimate(part.logp[part.action], chosen.detach(), "k3")  # (n,) old to new
        parts = {
            "policy_loss": policy.sum().item(),
            "value_loss": value.sum().item(),
            "clip_fraction": seen["clipped"].sum().item(),
            "value_clip_fraction": value_clipped.sum().item(),
            "approx_kl_update": update_kl.sum().item(),
            "ratio_max": seen["ratio"][part.action].max().item(),
        }
        return policy.sum() + c.value_coef * value.sum(), parts

    def _micro_batches(self, index: Tensor, rollout: Rollout) -> Iterator[Tensor]:
        """Cut `index` into micro-batches of rows of similar length, each in ascending order."""
        length = rollout.mask[index].sum(1)
        for part in index[length.argsort(stable=True)].split(self.config.micro_batch):
            yield part.sort().values

    # ------------------------------------------------------------ control and report

    def adapt_kl_coef(self, kl: float, episodes: int) -> None:
        """Move lambda towards the KL target, if there is one; kl is policy against *reference*, a whole completion's."""
        if self.config.kl_target > 0:
            c = self.config
            self.kl_coef = rl_math.adaptive_kl_coef(self.kl_coef, kl, c.kl_target, c.kl_horizon, episodes)

    def describe(self, rollout: Rollout, update: dict[str, float], clock: Sequence[float]) -> dict[str, float]:
        """The round's metrics; KL is per completion (summed over tokens), entropy per token, both in nats."""
        mask, scores = rollout.action, rollout.scores
        k3 = rl_math.masked_sum(rl_math.kl_estimate(rollout.logp, rollout.logp_ref, "k3"), mask)  # (B,)
        kl, tokens = rollout.kl.mean().item(), mask.sum().item()
        return {
            "score_mean": scores.mean().item(),
            "score_std": scores.std(unbiased=False).item(),
            "reward_mean": scores.mean().item() - self.kl_coef * kl,
            "kl_k1": kl,
            "kl_k3": k3.mean().item(),
            "kl_exact": rl_math.masked_sum(rollout.kl_exact, mask).mean().item(),
            "kl_coef": self.kl_coef,
            "entropy": rl_math.masked_mean(rollout.entropy, mask).item(),
            "advantage_std": rl_math.masked_var(rollout.returns - rollout.values, mask).sqrt().item(),
            "explained_variance": rl_math.explained_variance(rollout.values, rollout.returns, mask).item(),
            "missing_eos": (~rollout.finished).float().mean().item(),
            "rewrite_length": tokens / len(mask),
            "lr": self.lr,
            "rollout_s": clock[1] - clock[0],
            "score_s": clock[2] - clock[1],
            "update_s": clock[3] - clock[2],
            "tokens_per_s": tokens / (clock[3] - clock[0]),
        } | update


def learning_rate(config: PPOConfig, step: int) -> float:
    """The learning rate of a round (from 0): a linear rise over the warm-up, times a linear fall to 0 over all rounds (`anneal`)."""
    rise = min(1.0, (step + 1) / (1 + config.warmup * config.iterations))
    return config.lr * rise * (1 - step / config.iterations if config.anneal else 1.0)


def train_ppo(
    trainer: PPOTrainer,
    prompts: Sequence[str],
    stage: Stage,
    watch: Callable[[PPOTrainer], tuple[dict, list[dict]]] = lambda trainer: ({}, []),
    show_every: int = 20,
) -> Transformer:
    """All rounds of a PPO stage over random batches of `prompts`; logs, samples and saved states go through `stage`.

    `watch(trainer)` adds metrics and sample rows (x, x_prime, y, reward, kl) after a round. Returns the trained model.
    """
    c = trainer.config
    start = stage.restore(trainer.policy, trainer.optimizer, trainer.generator)
    trainer.kl_coef = stage.meta.get("kl_coef", trainer.kl_coef)
    for step in stage.progress(start, c.iterations):
        trainer.lr = learning_rate(c, step)
        picked = torch.randint(len(prompts), (c.batch,), generator=trainer.generator).tolist()
        metrics = trainer.step([prompts[i] for i in picked])
        extra, samples = watch(trainer)
        stage.log(step + 1, metrics | extra)
        if step == 0 or (step + 1) % show_every == 0 or step + 1 == c.iterations:
            stage.samples(step + 1, samples)
        if (step + 1) % c.checkpoint_every == 0 or step + 1 == c.iterations:
            stage.save(step + 1, trainer.policy, trainer.optimizer, trainer.generator, kl_coef=trainer.kl_coef)
    return trainer.policy.lm.eval()
