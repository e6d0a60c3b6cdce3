# %% [markdown]
# # 08 · KL three ways
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/alignpro-mini/alignpro_mini/blob/main/tutorials/08_kl_three_ways.ipynb)
#
# At the end you will know
#
# * what KL(ρ‖ρ_sft) measures, and why its two sides are not the same;
# * the three estimators k1, k2, k3 from samples: which of them are right on average, and how noisy they are;
# * why "the value is right" does not mean "its gradient is right": k1 as a loss teaches nothing.
#
# Time: 30 minutes. You need: tutorials 01 and 07a, the derivative of a logarithm.
#
# Builds on: [approximating KL divergence (Schulman 2020)](http://joschu.net/blog/kl-approx.html).

# %% tags=["skip-execution", "remove-cell"]
# !test -d /content && git clone -q https://github.com/alignpro-mini/alignpro_mini /content/alignpro_mini && pip install -q --no-deps /content/alignpro_mini
# %cd -q /content/alignpro_mini/tutorials

# %%
import math

import torch
from lesson import BLUE, GREEN, GREY, ORANGE, PINK, axes, check, show, source

from alignpro_mini import rl_math, theory

# %% [markdown]
# ## The exact number
#
# Four tokens, two distributions. p is the policy, q the reference. KL(p‖q) = Σ p ln(p/q): the mean of ln(p/q) when p
# draws. It is 0 only if p = q, and it is infinite if p does what q never does.

# %%
p = torch.tensor([0.50, 0.30, 0.15, 0.05], dtype=torch.float64)
q = torch.tensor([0.25, 0.25, 0.25, 0.25], dtype=torch.float64)


def kl_by_hand(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist()) if a > 0)


print(f"KL(p‖q) = {kl_by_hand(p, q):.4f}      KL(q‖p) = {kl_by_hand(q, p):.4f}")
torch.testing.assert_close(theory.kl(p, q).item(), kl_by_hand(p, q))
torch.testing.assert_close(rl_math.exact_kl(p.log(), q.log()).item(), kl_by_hand(p, q))
assert abs(kl_by_hand(p, q) - kl_by_hand(q, p)) > 0.05

# %% [markdown]
# The second one asks: how much does q do that p would not? It punishes p for *giving up* what q does. The first one
# punishes p for doing what q would not do. Align-Pro uses the first: ρ may give up most rewrites, but it may not invent
# new ones.
#
# ## From samples
#
# With a vocabulary of 50,000 tokens one sees only the tokens that were sampled. For a sampled token let
# d = ln p − ln q. Three estimators are in use (named k1, k2, k3 after a note by J. Schulman):
#
# $$\mathrm{k1} = d \qquad \mathrm{k2} = \frac{d^2}{2} \qquad \mathrm{k3} = e^{-d} - 1 + d$$

# %%
source(rl_math.kl_estimate)
d = p.log() - q.log()
naive = {"k1": d, "k2": d**2 / 2, "k3": torch.exp(-d) - 1 + d}
print("token   p      k1      k2      k3")
for i in range(4):
    print(f"{i:5}   {p[i]:.2f}  {naive['k1'][i]:+.3f}  {naive['k2'][i]:+.3f}  {naive['k3'][i]:+.3f}")
for kind, values in naive.items():
    torch.testing.assert_close(rl_math.kl_estimate(p.log(), q.log(), kind), values)

# %% [markdown]
# No luck is needed to judge them: the mean over all four tokens, each with its probability p, is exact.

# %%
for kind, values in naive.items():
    mean = float((p * values).sum())
    spread = math.sqrt(float((p * (values - mean) ** 2).sum()))
    print(f"{kind}: mean {mean:.4f} (KL is {kl_by_hand(p, q):.4f}), standard deviation {spread:.3f}")
assert abs(float((p * naive["k1"]).sum()) - kl_by_hand(p, q)) < 1e-12
assert abs(float((p * naive["k3"]).sum()) - kl_by_hand(p, q)) < 1e-12
assert abs(float((p * naive["k2"]).sum()) - kl_by_hand(p, q)) > 0.01

# %% [markdown]
# * k1 is right on average, but it can be negative, and its spread is the largest.
# * k3 is right on average and never negative.
# * k2 is not right on average; it is close where p and q are close.
#
# ## The value is not the gradient
#
# To *use* the KL, one needs its gradient with respect to the policy's weights. Here the weights are four logits z, with
# p = softmax(z). The exact gradient of KL(p‖q) with respect to z_j is p_j (ln(p_j/q_j) − KL).
#
# There are two places for an estimator:
#
# * **in the reward**: each token pays λ·k as a number, without a gradient. The policy gradient Σ p k ∇ln p
#   (tutorial 07a) does the rest.
# * **in the loss**: the estimator itself is differentiated, Σ p ∇k.

# %%
exact = p * (d - kl_by_hand(p, q))
reverse = p - q  # the gradient of KL(q‖p): the other direction
found = {}
for kind in ("k1", "k2", "k3"):
    for place in ("reward", "loss"):
        z = p.log().clone().requires_grad_()
        log_p = z.log_softmax(0)
        estimate = rl_math.kl_estimate(log_p, q.log(), kind)
        weights = p * (estimate.detach() * log_p if place == "reward" else estimate)
        weights.sum().backward()
        found[kind, place] = z.grad


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm())) if a.norm() > 1e-12 else float("nan")


print("                cosine to ∇KL(p‖q)   to ∇KL(q‖p)    length / |∇KL(p‖q)|")
for (kind, place), gradient in found.items():
    told = cosine(gradient, exact), cosine(gradient, reverse), float(gradient.norm() / exact.norm())
    print(f"{kind} in the {place:6}        {told[0]:6.3f}          {told[1]:6.3f}         {told[2]:6.3f}")

# %% [markdown]
# Read the table slowly:
#
# * k1 in the reward is exactly the gradient of the KL. This is what PPO here does.
# * **k1 in the loss is 0.** The mean of ∇ln p is 0, always (tutorial 07a: the proof for the baseline). Code that does this
#   trains without any KL penalty, and its logged KL looks fine for a while.
# * k2 in the loss has the gradient of the KL, although its *value* is wrong.
# * k3 in the loss has the gradient of the *other* direction, KL(q‖p).
# * k3 in the reward is neither.

# %%
torch.testing.assert_close(found["k1", "reward"], exact)
assert found["k1", "loss"].abs().max() < 1e-12
torch.testing.assert_close(found["k2", "loss"], exact)
torch.testing.assert_close(found["k3", "loss"], reverse)
assert cosine(found["k3", "reward"], exact) < 0.9

# %% [markdown]
# ## A picture

# %%
figure, ((left, right),) = axes(1, 2, (9.5, 3.4))
x = torch.linspace(-2, 2, 81, dtype=torch.float64)  # d
for kind, colour in (("k1", BLUE), ("k2", ORANGE), ("k3", GREEN)):
    left.plot(x, rl_math.kl_estimate(x, torch.zeros_like(x), kind), color=colour, label=kind)
swapped = torch.exp(x) - 1 - x  # k3 with the ratio upside down
left.plot(x, swapped, color=PINK, linestyle=":", label="k3, ratio swapped")
left.axhline(0, color=GREY, linewidth=0.8)
left.set(xlabel="d = ln p − ln q of the sampled token", ylabel="estimate, nats", ylim=(-2.2, 4.5))
left.legend(frameon=False, fontsize=8)
bars = [("exact", exact), *((f"{kind}, {place}", g) for (kind, place), g in found.items())]
for i, (name, gradient) in enumerate(bars):
    right.bar(
        [j + 0.11 * i for j in range(4)],
        gradient,
        0.1,
        label=name,
        color=("black", *[BLUE] * 2, *[ORANGE] * 2, *[GREEN] * 2)[i],
        alpha=1 if i % 2 == 0 else 0.5,
    )
right.set_xticks([j + 0.33 for j in range(4)], [f"token {j}" for j in range(4)])
right.set(ylabel="gradient with respect to its logit")
right.legend(frameon=False, fontsize=7, ncols=2)
show(figure)

# %% [markdown]
# Left: near d = 0 k2 and k3 agree; k1 agrees with them only on average. The dotted line is a bug that is easy to write:
# exp(d) − 1 − d. Its mean under p is another divergence. Right: the bars of "k1, loss" are missing, because they are 0.
#
# ## Exercise ★★ (10 minutes): mend the loss
#
# `loss = policy_loss + lam * (logp - logp_ref).mean()`: somebody wrote this line, and the logged KL rises without end. Write
# what must stand in the place of `logp - logp_ref`, still as a part of the loss, so that the mean over the tokens has the
# gradient of KL(p‖q). One value a token. (Its value may be wrong: only the gradient trains.)

# %% tags=["stub"]


def penalty(logp, logp_ref):
    return None  # your code


# %%
z = p.log().clone().requires_grad_()
terms = penalty(z.log_softmax(0), q.log())
check(None if terms is None else torch.autograd.grad((p * terms).sum(), z)[0], exact)

# %% [markdown]
# <details><summary>Solution</summary>
#
# The line is k1 in the loss: its expected gradient is 0, so nothing holds the policy back. k2 does it:
#
# ```python
# def penalty(logp, logp_ref):
#     return (logp - logp_ref) ** 2 / 2
# ```
#
# The gradient of k2 is d ∇ln p: what k1 in the *reward* gives. That is the other mend: −λ (logp − logp_ref), detached, in the
# reward of each token.
# </details>
#
# ## Questions
#
# 1. The logged k1 of a batch is negative. Is that a bug?
# <details><summary>Answer</summary>
# Not for one batch: k1 of a sample may be negative. If it stays negative for long, it is: the mean under p is a KL, and
# a KL is not negative. Then tokens are scored in another way than they were sampled.
# </details>
#
# 2. A text has 20 tokens. Is its KL the mean or the sum over its tokens?
# <details><summary>Answer</summary>
# The sum: ln of a product of ratios. A mean would let long rewrites drift further for the same penalty.
# </details>
#
# 3. ρ gives probability 0 to a rewrite that ρ_sft likes. What is KL(ρ‖ρ_sft), and what KL(ρ_sft‖ρ)?
# <details><summary>Answer</summary>
# The first is finite: giving up is allowed. The second is infinite.
# </details>
