"""Is the policy gradient right? PPO's, its variants' and REINFORCE's estimates against the exact gradient of J_lam.

    python -m alignpro_mini.experiments.gradient            # minutes on one core; two tables, then one JSON line
    python -m alignpro_mini.experiments.gradient --batches 25 --model 8      # another random model, roughly

The problem can be enumerated: 2 requests, rewrites of at most 2 tokens over a vocabulary of 6 (31 of them), and a
frozen LM that answers 1 with a probability that depends on the rewrite's text, else 0. So

    J_lam(theta) = E_x [ sum_x' rho_theta(x'|x) R(x, x') - lam KL(rho_theta(.|x) || rho_sft(.|x)) ]

and its gradient in all the transformer's weights are sums over 31 terms, and need no sampling. The estimates come from
the trainer itself, many batches of them; REINFORCE is written out here. There is no value loss: the values stay 0.

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
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from alignpro_mini import theory
from alignpro_mini.alignpro import PromptScore
from alignpro_mini.frozen import Answer
from alignpro_mini.generation import sampling_logprobs
from alignpro_mini.lab.tables import num
from alignpro_mini.ppo import PPOConfig, PPOTrainer
from alignpro_mini.transformer import Transformer, TransformerConfig
from alignpro_mini.variants import VARIANTS


class Letters:
    """A tokenizer of one token a letter: 0 pad, 1 user, 2 assistant, 3 end, 4 a, 5 b."""

    pad_id = 0
    eos_id = 3
    end_ids = (3,)
    vocab_size = 6

    def chat(self, prompt: str) -> list[int]:
        return [1, *(4 + "ab".index(letter) for letter in prompt), 2]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("ab"[i - 4] for i in ids if i >= 4)


REQUESTS = ["a", "ba"]
LETTERS = Letters()
COMPLETIONS = [(3,), *itertools.product((0, 1, 2, 4, 5), range(6))]  # all of at most 2 tokens
CONFIG = PPOConfig(
    max_new_tokens=2,
    kl_coef=0.2,
    micro_batch_size=4096,
    num_minibatches=1,
    gae_lambda=1.0,
    whiten_advantages=False,
    vf_coef=0.0,
    missing_eos_penalty=0.0,
)
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
    rows = [[CHANCE[LETTERS.decode(c) or x] * len(x) for c in COMPLETIONS] for x in REQUESTS]
    return torch.tensor(rows, dtype=torch.float64)


def flat_gradient(lm: Transformer) -> np.ndarray:
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in lm.parameters()]
    return torch.cat([gradient.flatten() for gradient in gradients]).double().numpy()


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


def _variant(name: str, K: int = 1) -> dict:
    return {"variant": name, "rewrites_per_request": K}


AS_IT_IS = "PPO with GAE"
VARIED: dict[str, dict] = {  # what `estimators.py` trains with: the options of PPO that differ
    AS_IT_IS: {},
    "GAE, lambda 1": {"gae_lambda": 1.0},
    "GAE, K 4": {"rewrites_per_request": 4},
    "REINFORCE, batch baseline": _variant("reinforce"),
    "REINFORCE++": _variant("reinforce++"),
    "RLOO, K 2": _variant("rloo", 2),
    "RLOO, K 4": _variant("rloo", 4),
    "RLOO, K 8": _variant("rloo", 8),
    "GRPO, K 4": _variant("grpo", 4),
    "GRPO without its std, K 4": _variant("grpo-unscaled", 4),
    "RLOO, K 4, sequence ratio": _variant("rloo-sequence", 4),
    "GRPO, K 4, sequence ratio": _variant("grpo-sequence", 4),
    "REINFORCE, sequence ratio": _variant("reinforce-sequence"),
    "KL as k2 in the reward": _variant("kl-k2"),
    "KL as k3 in the reward": _variant("kl-k3"),
    "KL as k1 in the loss": _variant("kl-loss-k1"),
    "KL as k2 in the loss": _variant("kl-loss-k2"),
    "KL as k3 in the loss": _variant("kl-loss-k3"),
    "clip 0.05": {"clip_range": 0.05},
    "clip 0.1": {"clip_range": 0.1},
    "clip 0.4": {"clip_range": 0.4},
}
# But for the value head: it has learned nothing yet, and its loss is no part of the estimate.
AS_TRAINED = {"gae_lambda": PPOConfig().gae_lambda, "whiten_advantages": True}
ESTIMATORS = (  # GAE's lambda is 1 and nothing is whitened, unless a name says otherwise
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
    *(Estimator(name, AS_TRAINED | options) for name, options in VARIED.items()),
    *(Estimator(f"{name}, later step", AS_TRAINED | options, moved=True) for name, options in VARIED.items()),
)
PENALTIES = tuple(
    Estimator(name, options, kl_only=True)
    for name, options in VARIED.items()
    if name == AS_IT_IS or name.startswith("KL")
)


def models(seed: int = MODEL) -> tuple[Transformer, Transformer, Transformer]:
    """(reference, the policy that samples, the same a few steps on)."""
    shape = TransformerConfig(6, d_model=8, n_layers=1, n_heads=2, n_kv_heads=2, max_len=12)
    weights = torch.Generator().manual_seed(seed)
    reference = Transformer(shape, weights).eval()
    with torch.no_grad():
        for name, p in reference.named_parameters():  # large, uneven weights: with freshly drawn ones attention is flat
            p.copy_(0.4 * torch.randn(p.shape, generator=weights))
            if p.dim() == 1:  # a norm's scale lies about 1; a large last bias would drown what the text says
                p.copy_(1 + p if name.endswith("weight") else p / 4)
    steps = torch.Generator().manual_seed(seed)
    policy = _moved(reference, 0.1, steps)
    return reference, policy, _moved(policy, 0.02, steps)


def _moved(lm: Transformer, distance: float, draw: torch.Generator) -> Transformer:
    """A copy with noise of this standard deviation on all weights."""
    twin = copy.deepcopy(lm)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(distance * torch.randn(p.shape, generator=draw))
    return twin


def estimates(
    estimator: Estimator, batches: int, batch: int, seed: int = 0, model: int = MODEL
) -> tuple[np.ndarray, np.ndarray]:
    """(batches, P) estimates of the gradient of J_lam, each from `batch` episodes, and the exact one (P,)."""
    reference, policy, later = models(model)
    generator = torch.Generator().manual_seed(seed)
    config = replace(CONFIG, **estimator.options)
    score = PromptScore(Coin(generator), rate, generator, config.answers)
    if estimator.kl_only:
        score = lambda requests, rewrites: torch.zeros(len(requests))
    trainer = VARIANTS[config.variant](policy, reference, LETTERS, score, config, generator)
    learner = later if estimator.moved else policy
    requests = [REQUESTS[i // config.rewrites_per_request % 2] for i in range(batch)]
    rows = []
    for _ in range(batches):
        trainer.policy.lm = policy
        rollout = trainer.rollout(requests)
        rollout.scores = trainer.scores(rollout)
        trainer.estimate_advantages(rollout, trainer.assemble_rewards(rollout))
        trainer.policy.lm = learner
        learner.zero_grad()
        loss = reinforce_loss(trainer, rollout) if estimator.reinforce else trainer.loss(rollout)[0]
        (-loss / batch).backward()  # per episode: the trainer's own divisor, the batch's tokens, is a step size
        rows.append(flat_gradient(learner))
    return np.stack(rows), exact_gradient(learner, reference, CONFIG.kl_coef, estimator.kl_only)


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


def compare(gradients: np.ndarray, exact: np.ndarray, resamples: int = 400) -> dict:
    """Cosine, length and bias of the mean estimate with 95 % intervals, and one batch's noise."""
    n = len(gradients)
    draw = np.random.default_rng(0)
    size = np.linalg.norm(exact)
    noise2 = float(gradients.var(0, ddof=1).sum() / size**2)

    def measure(mean: np.ndarray, noises: int) -> tuple[float, float, float]:
        # E|mean - exact|^2 = |bias|^2 + noise^2 / n, so the rest is the bias; a resampled mean has that noise twice.
        bias2 = float(((mean - exact) ** 2).sum() / size**2) - noises * noise2 / n
        length = float(np.linalg.norm(mean))
        return float(mean @ exact) / length / size, length / size, max(0.0, bias2) ** 0.5

    resampled = [measure(gradients[draw.integers(0, n, n)].mean(0), 2) for _ in range(resamples)]
    intervals = np.quantile(resampled, (0.025, 0.975), axis=0).T.tolist()
    names = ("cosine", "length", "bias")
    values = dict(zip(names, measure(gradients.mean(0), 1)))
    values |= {f"{name}_ci95": ci95 for name, ci95 in zip(names, intervals)}
    return values | {"noise": noise2**0.5, "noise_floor": (noise2 / n) ** 0.5}


def table(rows: dict[str, dict], columns: Sequence[str] = ()) -> str:
    """A row an estimate; `columns` are further keys of the rows."""
    heads = ["estimate", "cosine, 95 % interval", "length", "bias", "bias seen down to", "noise of a batch", *columns]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in rows.items():
        cells = [
            f"{num(row[key], d)} {num(row[f'{key}_ci95'], d)}" for key, d in (("cosine", 5), ("length", 4), ("bias", 4))
        ]
        cells += [num(row["noise_floor"], 4), num(row["noise"]), *(num(row[key], 4) for key in columns)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(batch: int = 512) -> None:
    """The command at the top of this module. It trains nothing and has no run, so it is no `Study`."""
    parser = argparse.ArgumentParser(description="gradient estimates against the enumerated gradient")
    parser.add_argument("--batches", type=int, default=300, help="estimates of each kind")
    parser.add_argument("--model", type=int, default=MODEL, help="seed of the random model")
    args = parser.parse_args()
    rows = {each.name: compare(*estimates(each, args.batches, batch, model=args.model)) for each in ESTIMATORS}
    reference, policy, _ = models(args.model)
    reverse = exact_gradient(policy, reference, CONFIG.kl_coef, kl_only=True, reverse=True)
    penalties = {}
    for each in PENALTIES:
        gradients, exact = estimates(each, args.batches, batch, model=args.model)
        penalties[each.name] = compare(gradients, exact) | {
            "cosine to the reverse": compare(gradients, reverse)["cosine"]
        }
    print(f"model {args.model}, {args.batches} batches of {batch} episodes, lam {CONFIG.kl_coef}\n\n{table(rows)}")
    print(f"\nthe KL penalty alone\n\n{table(penalties, ['cosine to the reverse'])}")
    print(json.dumps({"estimates": rows, "penalties": penalties}))


if __name__ == "__main__":
    torch.set_num_threads(1)  # the model is far too small for two
    main()
