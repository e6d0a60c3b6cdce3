"""Is the policy gradient right? PPO's and REINFORCE's estimates against the exact gradient of J_lam, by enumeration.

    python -m alignpro_mini.experiments.gradient            # minutes on one core; the table, then one JSON line
    python -m alignpro_mini.experiments.gradient --batches 25 --model 8      # another random model, roughly

The problem can be enumerated: 2 requests, rewrites of at most 2 tokens over a vocabulary of 6 (31 of them), and a
frozen LM that answers 1 with a probability that depends on the rewrite's text, else 0. So

    J_lam(theta) = E_x [ sum_x' rho_theta(x'|x) R(x, x') - lam KL(rho_theta(.|x) || rho_sft(.|x)) ]

and its gradient in all the transformer's weights are sums over 31 terms, and need no sampling. The estimates come from
`PPOTrainer` itself (rollout, score, assembled rewards, GAE, loss), many batches of them; REINFORCE is written out here.
GAE's lambda is 1 unless a row says otherwise, and there is no value loss: the values stay 0. What is reported, with 95
% intervals from resampling the batches:

    cosine    between the mean estimate and the exact gradient       (1 = the right direction)
    length    |mean estimate| / |exact gradient|                     (1 = the right length)
    bias      |mean estimate - exact gradient| / |exact gradient|, less what the batches' noise explains
    noise     sqrt(trace of the estimates' covariance) / |exact gradient|: by how much one batch is off

Shape legend:  B rows   N requests   L rewrites   P parameters
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from alignpro_mini import theory
from alignpro_mini.alignpro import PromptScore
from alignpro_mini.frozen import Answer
from alignpro_mini.generation import sampling_logprobs
from alignpro_mini.ppo import PPOConfig, PPOTrainer
from alignpro_mini.transformer import Transformer, TransformerConfig
from alignpro_mini.variants import VARIANTS


class Letters:
    """A tokenizer of one token a letter: 0 pad, 1 user, 2 assistant, 3 end, then a = 4, b = 5, ... h = 11."""

    def __init__(self, pad_id: int = 0, eos_id: int = 3, letters: str = "abcdefgh") -> None:
        self.letters, self.pad_id, self.eos_id, self.vocab_size = letters, pad_id, eos_id, 4 + len(letters)

    def encode(self, text: str) -> list[int]:
        return [4 + self.letters.index(c) for c in text]

    def decode(self, ids) -> str:
        return "".join(self.letters[i - 4] for i in ids if i >= 4 and i != self.eos_id)

    def chat(self, prompt: str) -> list[int]:
        return [1, *self.encode(prompt), 2]

    def chat_with_answer(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        return self.chat(prompt), [*self.encode(answer), self.eos_id]


def random_lm(family: str = "llama", seed: int = 5, spread: float = 0.4, **changes) -> Transformer:
    """A tiny model with large, uneven weights: with freshly drawn ones attention is flat and hides its bugs."""
    settings = dict(vocab_size=12, d_model=16, n_layers=2, n_heads=4, max_len=40, family=family) | changes
    if family == "llama":
        settings.setdefault("n_kv_heads", 2)
    draw = torch.Generator().manual_seed(seed)
    model = Transformer(TransformerConfig(**settings), draw)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(spread * torch.randn(p.shape, generator=draw))
            if p.dim() == 1:  # a norm's scale lies about 1; a large last bias would drown what the text says
                p.copy_(1 + p if name.endswith("weight") else p / 4)
    return model.eval()


REQUESTS = ["a", "ba"]
LETTERS = Letters(letters="ab")  # ids 0 pad, 1 user, 2 assistant, 3 end, 4 a, 5 b
COMPLETIONS = [(3,), *itertools.product((0, 1, 2, 4, 5), range(6))]  # all of at most 2 tokens
CONFIG = PPOConfig(max_new_tokens=2, kl_coef=0.2, micro_batch_size=4096, num_minibatches=1)
CONFIG = replace(CONFIG, gae_lambda=1.0, whiten_advantages=False, vf_coef=0.0, missing_eos_penalty=0.0)
# A random model whose estimates have little noise. What a clip does to later steps differs from model to model.
MODEL = 20
# The chance of a good answer, by the rewrite's text.
CHANCE = dict(zip(("", "a", "b", "aa", "ab", "ba", "bb"), (0.5, 0.1, 0.95, 0.7, 0.3, 0.4, 0.05), strict=True))


class Coin:
    """A frozen LM that answers "1" with the chance its prompt has, else "0"."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def fits(self, prompt: str) -> bool:
        return True

    def answer(self, prompts, generator=None) -> list[Answer]:
        draws = torch.rand(len(prompts), generator=self.generator)
        return [Answer("1" if u < CHANCE[p] else "0", truncated=False) for p, u in zip(prompts, draws.tolist())]


def rate(prompts, completions) -> Tensor:
    """An answer "1" earns 1, and 2 where the request was longer."""
    return torch.tensor([float(y) * len(x) for x, y in zip(prompts, completions)])


def enumerated_logprobs(lm: Transformer) -> Tensor:
    """log rho(x'|x) of every completion, with gradients: (N, L)."""
    rows = []
    for x in REQUESTS:
        chat = LETTERS.chat(x)
        ids = torch.tensor([chat + list((c + (0,))[:2]) for c in COMPLETIONS])  # (L, P+2)
        logp = sampling_logprobs(lm(ids)[:, len(chat) - 1 : -1])  # (L, 2, V)
        taken = logp.gather(2, ids[:, len(chat) :, None])[..., 0]  # (L, 2)
        real = torch.tensor([[True, len(c) > 1] for c in COMPLETIONS])
        rows.append(torch.where(real, taken, 0.0).sum(1))
    return torch.stack(rows)


def rewards() -> Tensor:
    """R(x, x') of every completion, (N, L): an empty rewrite is answered as x itself."""
    found = [[CHANCE[LETTERS.decode(c) or x] * len(x) for c in COMPLETIONS] for x in REQUESTS]
    return torch.tensor(found, dtype=torch.float64)


def flat_gradient(lm: Transformer) -> np.ndarray:
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in lm.parameters()]
    return torch.cat([gradient.flatten() for gradient in found]).double().numpy()


def exact_gradient(
    lm: Transformer, reference: Transformer, lam: float, kl_only: bool = False, reverse: bool = False
) -> np.ndarray:
    """The enumerated gradient of J_lam, (P,); `kl_only`: without the reward; `reverse`: with KL(rho_sft || rho)."""
    lm.zero_grad()
    with torch.no_grad():
        rho_sft = enumerated_logprobs(reference).double().exp()
    rho = enumerated_logprobs(lm).double().exp()
    R = torch.zeros_like(rewards()) if kl_only else rewards()
    # The float32 rows sum to 1 only to 1e-7, which `theory` accepts; J_lam's own formula does the rest.
    if reverse:
        (theory.value(rho, R) - lam * theory.kl(rho_sft, rho).mean()).backward()
    else:
        theory.regularised_value(rho, rho_sft, R, lam).backward()
    return flat_gradient(lm)


@dataclass(frozen=True, slots=True)
class Estimator:
    """One way to estimate the gradient: what differs from CONFIG, and what else is special.

    `moved`: the policy is no longer the one that sampled (PPO's later steps). `kl_only`: the score is 0, so the
    gradient is that of the KL penalty alone. `reinforce`: the estimate that is written out here, not PPO's.
    """

    name: str
    options: dict = field(default_factory=dict)
    moved: bool = False
    kl_only: bool = False
    reinforce: bool = False


ESTIMATORS = (
    Estimator("REINFORCE, M = 1", reinforce=True),
    Estimator("PPO, first step, M = 1"),
    Estimator("PPO, first step, M = 2", {"answers": 2}),
    Estimator("PPO, first step, M = 4", {"answers": 4}),
    Estimator("PPO, first step, whitened", {"whiten_advantages": True}),
    Estimator("PPO, first step, GAE's λ 0.95", {"gae_lambda": 0.95}),
    Estimator("PPO, first step, GAE's λ 0.5", {"gae_lambda": 0.5}),
    Estimator("PPO, later step, no clip", {"clip_range": 1e6}, moved=True),
    Estimator("PPO, later step, clip 0.2", moved=True),
    Estimator("PPO, later step, clip 0.05", {"clip_range": 0.05}, moved=True),
)


def models(seed: int = MODEL) -> tuple[Transformer, Transformer, Transformer]:
    """(reference, the policy that samples, the same a few steps on)."""
    shape = dict(vocab_size=6, d_model=8, n_layers=1, n_heads=2, n_kv_heads=2, max_len=12)
    reference = random_lm(seed=seed, **shape)
    policy = copy.deepcopy(reference)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=draw))
        later = copy.deepcopy(policy)
        for p in later.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=draw))
    return reference, policy, later


def estimates(
    how: Estimator, batches: int, batch: int, seed: int = 0, model: int = MODEL
) -> tuple[np.ndarray, np.ndarray]:
    """(batches, P) estimates of the gradient of J_lam, each from `batch` episodes, and the exact one (P,)."""
    reference, policy, later = models(model)
    generator = torch.Generator().manual_seed(seed)
    config = replace(CONFIG, **how.options)
    score = PromptScore(Coin(generator), rate, generator, config.answers)
    if how.kl_only:
        score = lambda requests, rewrites: torch.zeros(len(requests))
    trainer = VARIANTS[config.variant](policy, reference, LETTERS, score, config, generator)
    where = later if how.moved else policy
    K = config.rewrites_per_request
    rows = []
    for _ in range(batches):
        trainer.policy.lm = policy
        rollout = trainer.rollout([REQUESTS[i // K % 2] for i in range(batch)])
        rollout.scores = trainer.scores(rollout)
        trainer.estimate_advantages(rollout, trainer.assemble_rewards(rollout))
        trainer.policy.lm = where
        where.zero_grad()
        loss = reinforce_loss(trainer, rollout) if how.reinforce else trainer.loss(rollout)[0]
        (-loss / batch).backward()  # per episode: the trainer's own divisor, the batch's tokens, is a step size
        rows.append(flat_gradient(where))
    return np.stack(rows), exact_gradient(where, reference, CONFIG.kl_coef, how.kl_only)


def reinforce_loss(trainer: PPOTrainer, rollout) -> Tensor:
    """-sum over episodes of (r - lam log rho/rho_sft - b) log rho(x'|x): the others' mean is b."""
    logits, _ = trainer.policy(rollout.features, rollout.mask, rollout.action)
    chosen = sampling_logprobs(logits).gather(1, rollout.tokens[rollout.action][:, None])[:, 0]  # (n,)
    logp = torch.zeros_like(rollout.logp).masked_scatter(rollout.action, chosen).sum(1)  # (B,)
    worth = rollout.scores - trainer.kl_coef * rollout.kl  # (B,)
    B = len(worth)
    # The mean of the *others* is independent of an episode's own reward, so the baseline adds no bias.
    others = (worth.sum() - worth) / (B - 1)
    return -((worth - others) * logp).sum()


def compare(found: np.ndarray, exact: np.ndarray, resamples: int = 400) -> dict:
    """Cosine, length and bias of the mean estimate with 95 % intervals, and one batch's noise."""
    rng, n = np.random.default_rng(0), len(found)
    size = np.linalg.norm(exact)
    noise2 = float(found.var(0, ddof=1).sum() / size**2)

    def measure(mean: np.ndarray, noises: int) -> tuple[float, float, float]:
        # E|mean - exact|^2 = |bias|^2 + noise^2 / n, so the rest is the bias; a resampled mean has that noise twice.
        bias2 = float(((mean - exact) ** 2).sum() / size**2) - noises * noise2 / n
        length = float(np.linalg.norm(mean))
        return float(mean @ exact) / length / size, length / size, max(0.0, bias2) ** 0.5

    drawn = [measure(found[rng.integers(0, n, n)].mean(0), 2) for _ in range(resamples)]
    values, intervals = measure(found.mean(0), 1), np.quantile(drawn, (0.025, 0.975), axis=0).T.tolist()
    names = ("cosine", "length", "bias")
    table = dict(zip(names, values)) | {f"{name}_ci95": ci for name, ci in zip(names, intervals)}
    return table | {"noise": noise2**0.5, "noise_floor": (noise2 / n) ** 0.5}


def main(batch: int = 512) -> None:
    """The command at the top of this module."""
    parser = argparse.ArgumentParser(description="gradient estimates against the enumerated gradient")
    parser.add_argument("--batches", type=int, default=300, help="estimates of each kind")
    parser.add_argument("--model", type=int, default=MODEL, help="seed of the random model")
    args = parser.parse_args()
    table = {how.name: compare(*estimates(how, args.batches, batch, model=args.model)) for how in ESTIMATORS}
    print(f"model {args.model}, {args.batches} batches of {batch} episodes, lam {CONFIG.kl_coef}\n")
    print("| estimate | cosine, 95 % interval | length | bias | bias seen down to | noise of a batch |")
    print("|---" * 6 + "|")
    for name, t in table.items():
        told = []
        for key, d in (("cosine", 4), ("length", 3), ("bias", 3)):
            low, high = t[f"{key}_ci95"]
            told.append(f"{t[key]:.{d}f} [{low:.{d}f}, {high:.{d}f}]")
        print(f"| {name} | {' | '.join(told)} | {t['noise_floor']:.3f} | {t['noise']:.2f} |")
    print(json.dumps(table))


if __name__ == "__main__":
    torch.set_num_threads(1)  # the model is far too small for two
    main()
