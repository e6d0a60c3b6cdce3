"""The trainers' gradient against the enumerated one, on a problem whose rewrites are few enough to list all of them.

2 requests, rewrites of at most 2 tokens over a vocabulary of 6 (31 of them), and a frozen LM that answers 1 with a
probability that depends on the rewrite's text, else 0. So

    J_lam(theta) = E_x [ sum_x' rho_theta(x'|x) R(x, x') - lam KL(rho_theta(.|x) || rho_sft(.|x)) ]

and its gradient in all weights are sums over 31 terms. There is no value loss: the values stay 0.

Shape legend:  N requests   L rewrites   P parameters
"""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from doubles import Letters, random_lm
from torch import Tensor

from alignpro_mini import theory
from alignpro_mini.alignpro import PromptScore
from alignpro_mini.frozen import Answer
from alignpro_mini.generation import sampling_logprobs
from alignpro_mini.ppo import PPOConfig
from alignpro_mini.variants import VARIANTS

REQUESTS = ["a", "ba"]
LETTERS = Letters(letters="ab")
COMPLETIONS = [(3,), *itertools.product((0, 1, 2, 4, 5), range(6))]  # all of at most 2 tokens
CHANCE = {"": 0.5, "a": 0.1, "b": 0.95, "aa": 0.7, "ab": 0.3, "ba": 0.4, "bb": 0.05}  # of an answer "1"
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
BATCH = 512


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


def rewards() -> Tensor:
    """R(x, x') of every completion, (N, L): an empty rewrite is answered as x itself."""
    rows = [[CHANCE[LETTERS.decode(c) or x] * len(x) for c in COMPLETIONS] for x in REQUESTS]
    return torch.tensor(rows, dtype=torch.float64)


def enumerated_logprobs(lm) -> Tensor:
    """log rho(x'|x) of every completion, with gradients: (N, L)."""
    rows = []
    for x in REQUESTS:
        chat = LETTERS.chat(x)
        ids = torch.tensor([chat + list((c + (0,))[:2]) for c in COMPLETIONS])  # (L, P+2)
        logp = sampling_logprobs(lm(ids)[:, len(chat) - 1 : -1])  # (L, 2, V)
        taken = logp.gather(2, ids[:, len(chat) :, None])[..., 0]  # (L, 2)
        real = torch.tensor([[True, len(c) > 1] for c in COMPLETIONS])
        rows.append(torch.where(real, taken, 0.0).sum(1))
    return torch.stack(rows).double()


def models():
    """(reference, the policy that samples, the same a few steps on)."""
    reference = random_lm(
        seed=20, vocab_size=6, d_model=8, n_layers=1, n_heads=2, n_kv_heads=2, max_len=12
    ).eval()  # a seed whose estimates have little noise
    steps = torch.Generator().manual_seed(20)
    made = [reference]
    for distance in (0.1, 0.02):
        made.append(copy.deepcopy(made[-1]))
        with torch.no_grad():
            for p in made[-1].parameters():
                p.add_(distance * torch.randn(p.shape, generator=steps))
    return made


def flat_gradient(lm) -> Tensor:
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in lm.parameters()]
    return torch.cat([gradient.flatten() for gradient in gradients]).double()


def exact_gradient(lm, reference, R: Tensor, reverse: bool = False) -> Tensor:
    """The enumerated gradient of J_lam, (P,); `reverse`: with KL(rho_sft || rho)."""
    lm.zero_grad()
    rho_sft = enumerated_logprobs(reference).detach().exp()
    rho = enumerated_logprobs(lm).exp()
    lam = CONFIG.kl_coef
    if reverse:
        (theory.value(rho, R) - lam * theory.kl(rho_sft, rho).mean()).backward()
    else:
        theory.regularised_value(rho, rho_sft, R, lam).backward()
    return flat_gradient(lm)


def estimates(batches: int = 25, moved: bool = False, kl_only: bool = False, **options) -> Tensor:
    """(batches, P) estimates of the gradient, each from 512 episodes.

    `moved`: the policy is no longer the one that sampled (PPO's later steps). `kl_only`: the score is 0.
    """
    reference, policy, later = models()
    generator = torch.Generator().manual_seed(0)
    config = replace(CONFIG, **options)
    score = PromptScore(Coin(generator), rate, generator, config.answers)
    if kl_only:
        score = lambda requests, rewrites: torch.zeros(len(requests))
    trainer = VARIANTS[config.variant](policy, reference, LETTERS, score, config, generator)
    learner = later if moved else policy
    requests = [REQUESTS[i // config.rewrites_per_request % 2] for i in range(BATCH)]
    rows = []
    for _ in range(batches):
        trainer.policy.lm = policy
        rollout = trainer.rollout(requests)
        rollout.scores = trainer.scores(rollout)
        trainer.estimate_advantages(rollout, trainer.assemble_rewards(rollout))
        trainer.policy.lm = learner
        learner.zero_grad()
        # Per episode: the trainer's own divisor, the batch's tokens, is a step size.
        (-trainer.loss(rollout)[0] / BATCH).backward()
        rows.append(flat_gradient(learner))
    return torch.stack(rows)


def noise(found: Tensor, exact: Tensor) -> float:
    """By how much one batch is off, in lengths of the exact gradient."""
    return float(found.var(0).sum().sqrt() / exact.norm())


def error(found: Tensor, exact: Tensor) -> float:
    """|mean estimate - exact gradient| in lengths of the exact one. Without a bias: about noise / sqrt(batches)."""
    return float((found.mean(0) - exact).norm() / exact.norm())


def cosine(found: Tensor, exact: Tensor) -> float:
    return float(torch.cosine_similarity(found.mean(0), exact, dim=0))


def of_the_policy(reverse: bool = False, kl_only: bool = False) -> Tensor:
    reference, policy, _ = models()
    return exact_gradient(policy, reference, 0 * rewards() if kl_only else rewards(), reverse)


def test_the_list_is_complete():
    for lm in models():
        torch.testing.assert_close(enumerated_logprobs(lm).exp().sum(1), torch.ones(2).double(), rtol=0, atol=1e-5)


def test_the_exact_gradient_equals_finite_differences():
    reference, policy, _ = models()
    policy, reference = policy.double(), reference.double()
    rho_sft = enumerated_logprobs(reference).exp().detach()
    gradient = exact_gradient(policy, reference, rewards())
    weights = torch.nn.utils.parameters_to_vector(policy.parameters()).detach()
    direction = torch.randn(weights.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = []
    for step in (1e-3, -1e-3):
        torch.nn.utils.vector_to_parameters(weights + step * direction, policy.parameters())
        values.append(theory.regularised_value(enumerated_logprobs(policy).exp(), rho_sft, rewards(), 0.2).item())
    slope = float(direction @ gradient)
    assert abs(slope) > 0.1 and (values[0] - values[1]) / 2e-3 == pytest.approx(slope, rel=0.02)


@pytest.mark.parametrize(
    "options",
    [
        {"batches": 60},
        {"batches": 60, "answers": 4},
        {"variant": "reinforce++"},
        {"variant": "rloo", "rewrites_per_request": 4},
    ],
    ids=["PPO", "PPO with 4 answers", "REINFORCE++", "RLOO"],
)
def test_the_expected_first_step_is_along_the_exact_gradient(options):
    exact = of_the_policy()
    found = estimates(**options)
    floor = noise(found, exact) / len(found) ** 0.5
    assert floor < 0.08, "enough batches to tell"
    assert error(found, exact) < 2 * floor and cosine(found, exact) > 0.997


def test_more_answers_a_rewrite_lower_the_noise():
    one, four = (noise(estimates(answers=m), of_the_policy()) for m in (1, 4))
    assert four < 0.95 * one


def test_a_low_lambda_of_gae_is_seen_as_bias():
    """Without a value head it takes credit from a rewrite's first token."""
    assert error(estimates(gae_lambda=0.5), of_the_policy()) > 0.15


def test_whitening_keeps_the_direction():
    exact = of_the_policy()
    found = estimates(whiten_advantages=True)
    assert cosine(found, exact) > 0.99 and error(found, exact) > 0.1, "a change of step size"


def test_later_steps_point_the_right_way_and_clipping_adds_bias():
    reference, _, later = models()
    exact = exact_gradient(later, reference, rewards())
    none, wide, narrow = (estimates(moved=True, clip_range=clip) for clip in (1e6, 0.2, 0.05))
    assert cosine(none, exact) > 0.97 and cosine(wide, exact) > 0.9
    assert error(none, exact) < error(wide, exact) < 0.5 * error(narrow, exact)


def test_k3_in_the_loss_has_the_gradient_of_the_other_kl():
    right, reverse = of_the_policy(kl_only=True), of_the_policy(reverse=True, kl_only=True)
    k3 = estimates(kl_only=True, variant="kl-loss-k3")
    assert cosine(k3, reverse) > 0.98 > 0.96 > cosine(k3, right)
    k1 = estimates(kl_only=True)
    assert cosine(k1, right) > 0.99 > 0.97 > cosine(k1, reverse)
