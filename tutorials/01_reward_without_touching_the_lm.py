# %% [markdown]
# # 01 · The reward rises, and the LM stays as it is
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/alignpro-mini/alignpro_mini/blob/main/tutorials/01_reward_without_touching_the_lm.ipynb)
#
# One of the eight requests that `python train.py` shows before and after training (`samples.jsonl`, `report.html`). The LM is the
# same in both lines. Only what it is asked has changed. The reward is in standard deviations: 1 is one standard deviation of
# the rewards of answers to rewrites of the prompter before it was trained with rewards.
#
# | | | reward |
# |---|---|---|
# | request x | Could you help me with Brookside for our guests? | |
# | the LM answers x | Look it up yourself. Brookside is a town. It lies by the moor. Go there in summer. | −1.17 |
# | rewrite x′ of the prompter | Please describe Brookside for our guests. Answer like a friendly guide. | |
# | the LM answers x′ | Happy to help! Brookside is a town. It lies by the moor. People there make glass. Go there in winter. You can see the market. Enjoy your visit! | 1.71 |
#
# At the end you will know
#
# * what a *prompter* is, and why it can raise the reward of a language model whose weights are frozen;
# * the objective of Align-Pro, and its exact optimum ρ\*;
# * what the KL coefficient λ does.
#
# Time: 20 minutes. You need: expectations, the logarithm, a little Python.
#
# Builds on: [Align-Pro (Trivedi et al. 2025)](https://arxiv.org/abs/2501.03486); the same optimum, read by Bayes' rule:
# [Korbak et al. 2022](https://arxiv.org/abs/2205.11275).

# %% tags=["skip-execution", "remove-cell"]
# !test -d /content && git clone -q https://github.com/alignpro-mini/alignpro_mini /content/alignpro_mini && pip install -q --no-deps /content/alignpro_mini
# %cd -q /content/alignpro_mini/tutorials

# %%
import math

import torch
from lesson import (
    BLUE,
    GREY,
    ORANGE,
    axes,
    check,
    show,
    source,
)  # `source` prints the package's code, `check` an exercise

from alignpro_mini import theory

# %% [markdown]
# ## A frozen LM that fits on a page
#
# A user asks x = "Tell me about Oakdale." There are six ways to put the request. Each of them is a *rewrite* x′. The
# first one is x itself. The LM is a table: for each rewrite x′, the probability π_F(y|x′) of each of three answers y. Nobody
# will change this table. That is what *frozen* means; hence the F.

# %%
rewrites = ["(as it is)", "Be kind.", "Give every detail.", "Be a friendly guide.", "Keep it short.", "Be frank."]
answers = ["curt", "complete", "complete and kind"]
frozen_lm = [  # one row a rewrite, one column an answer
    [0.5, 0.4, 0.1],
    [0.4, 0.2, 0.4],
    [0.1, 0.8, 0.1],
    [0.1, 0.2, 0.7],
    [0.9, 0.1, 0.0],
    [0.6, 0.4, 0.0],
]
reward = [0.0, 1.0, 2.0]  # r(x, y) of each answer. It sees the request x and the answer, never x'.

# %% [markdown]
# The mean reward of a rewrite is the sum over its answers, R(x, x′) = Σ_y π_F(y|x′) r(x, y).

# %%
R = [sum(p * r for p, r in zip(row, reward)) for row in frozen_lm]
for text, value in zip(rewrites, R):
    print(f"{text:22} R = {value:.1f}")
assert [round(value, 1) for value in R] == [0.6, 1.0, 1.0, 1.6, 0.1, 0.4]

# %% [markdown]
# ## A prompter chooses among rewrites
#
# A **prompter** ρ(x′|x) (the letter is "rho") gives each rewrite a probability. It is trained in two steps. First it imitates
# examples of rewrites: *supervised fine-tuning*, SFT. The result is ρ_sft. It knows what rewrites look like, and not which of
# them is good. The second step uses the reward. The mean reward of a prompter is J(ρ) = Σ_x′ ρ(x′|x) R(x, x′).

# %%
rho_sft = [0.3, 0.14, 0.14, 0.14, 0.14, 0.14]


def mean_reward(rho):
    return sum(p * value for p, value in zip(rho, R))


print(f"no fine-tuning (x itself): {R[0]:.3f}")
print(f"SFT prompter:              {mean_reward(rho_sft):.3f}")
print(f"always the best rewrite:   {max(R):.3f}")

# %% [markdown]
# "Always the best rewrite" has the largest reward. Why not ask for that? In the real problem the reward is a model too. It was
# trained on few comparisons of two answers, so its largest value is often an error. And a prompter that may write anything
# soon writes text that no person would. So Align-Pro subtracts a penalty: λ ("lambda") times the *Kullback–Leibler divergence*
# KL, which says how different ρ is from ρ_sft. It is 0 if they are equal, and positive otherwise.
#
# $$J_\lambda(\rho) = J(\rho) - \lambda \thinspace \mathrm{KL}(\rho \Vert \rho_\mathrm{sft})$$
#
# $$\mathrm{KL}(\rho \Vert \rho_\mathrm{sft}) = \sum_{x'} \rho(x'|x) \ln \frac{\rho(x'|x)}{\rho_\mathrm{sft}(x'|x)}$$
#
# λ is the KL coefficient: so much reward is given up for one unit of KL. (With the natural logarithm ln the unit is called a
# *nat*.)

# %%


def kl(rho):
    return sum(p * math.log(p / q) for p, q in zip(rho, rho_sft) if p > 0)


def objective(rho, lam):
    return mean_reward(rho) - lam * kl(rho)


# %% [markdown]
# ## The optimum by hand
#
# Which ρ is best? Take a little probability from one rewrite and give it to another: the sum stays 1. At the best ρ this
# changes nothing, to first order. So the derivative of J_λ with respect to ρ(x′|x) is the same number for all rewrites:
#
# $$R(x, x') - \lambda \ln \frac{\rho(x'|x)}{\rho_\mathrm{sft}(x'|x)} - \lambda = \text{const}$$
#
# (The last λ comes from the product rule: the derivative of ρ ln ρ is ln ρ + 1.) Solve for ρ. All that does not depend on x′
# goes into one number Z(x), which makes the probabilities sum to 1:
#
# $$\rho^*(x'|x) = \frac{\rho_\mathrm{sft}(x'|x) \thinspace e^{R(x, x') / \lambda}}{Z(x)} \qquad Z(x) = \sum_{x'} \rho_\mathrm{sft}(x'|x) \thinspace e^{R(x, x') / \lambda}$$
#
# In words: multiply ρ_sft by a factor that is larger for better rewrites. The smaller λ is, the more the factors differ. Below
# is your own version, then the package's. There `_tables` checks the arguments, and `_log_optimum` is the same formula in
# logarithms, because e^(R/λ) can be too large for a computer.

# %%


def best_prompter(lam):
    weights = [q * math.exp(value / lam) for q, value in zip(rho_sft, R)]
    return [w / sum(weights) for w in weights]


source(theory.optimal_prompter)
for lam in (0.1, 0.3, 1.0):
    by_hand = torch.tensor([best_prompter(lam)], dtype=torch.float64)
    torch.testing.assert_close(theory.optimal_prompter([rho_sft], [R], lam), by_hand)

# %% [markdown]
# Is it really the best? Try ten thousand other prompters at λ = 0.3.

# %%
generator = torch.Generator().manual_seed(0)
others = torch.rand(10_000, 6, generator=generator) ** 4
others = (others / others.sum(1, keepdim=True)).tolist()
best = max(objective(rho, 0.3) for rho in others)
print(f"the best of 10,000 others: J_λ = {best:.3f}")
print(f"ρ*:                        J_λ = {objective(best_prompter(0.3), 0.3):.3f}")
assert objective(best_prompter(0.3), 0.3) > best

# %% [markdown]
# ## What λ does

# %%
figure, ((left, right),) = axes(1, 2, (9.5, 3.4))
places = range(len(rewrites))
left.bar([i - 0.3 for i in places], rho_sft, 0.25, color=GREY, label="ρ_sft")
for shift, lam, colour in ((0.0, 1.0, ORANGE), (0.3, 0.3, BLUE)):
    left.bar([i + shift for i in places], best_prompter(lam), 0.25, color=colour, label=f"ρ*, λ = {lam}")
left.set_xticks(list(places), rewrites, rotation=35, ha="right", fontsize=8)
left.set(ylabel="probability of the rewrite")
left.legend(frameon=False, fontsize=8)
lams = [10 ** (2 - i / 10) for i in range(36)]  # 100 down to 0.03
right.plot([kl(best_prompter(lam)) for lam in lams], [mean_reward(best_prompter(lam)) for lam in lams], color=BLUE)
for lam in (1.0, 0.3, 0.1):
    point = kl(best_prompter(lam)), mean_reward(best_prompter(lam))
    right.plot(*point, "o", color=BLUE)
    right.annotate(f"λ = {lam}", point, xytext=(6, -12), textcoords="offset points", fontsize=8)
right.axhline(R[0], color=GREY, linestyle="--", label="no fine-tuning")
right.set(xlabel="KL to ρ_sft, nats", ylabel="mean reward")
right.legend(frameon=False, fontsize=8)
show(figure)

# %% [markdown]
# Left: with a large λ ρ\* stays near ρ_sft, with a small one almost all probability is on one rewrite. Right: the mean reward
# against the KL, for λ from 100 to 0.03. The first nat gains 0.65 of the 0.85 that can be gained over ρ_sft. The curve ends at
# 1.6, the best that any rewrite makes *this* LM do. RLHF (reinforcement learning from human feedback) changes the LM itself,
# and could reach 2.
#
# At λ = 0.03 the mean has risen from 0.6 to 1.6, and not one number of the LM's table has changed.

# %%
assert mean_reward(best_prompter(0.03)) > 1.59 > mean_reward(best_prompter(1.0)) > mean_reward(rho_sft) > R[0]

# %% [markdown]
# ## Exercise ★★ (10 minutes): a budget of KL
#
# You may spend `budget` nats: KL(ρ\*‖ρ_sft) ≤ budget, where ρ\* is `best_prompter(lam)`. Which λ reaches the largest mean
# reward? Return it; an error of 0.005 is allowed. You have `kl` and `mean_reward`. (Hint: how does KL(ρ\*) change with λ?)

# %% tags=["stub"]


def lam_for(budget):
    return None  # your code


# %%
check(lam_for, [0.463, 0.298], (0.5,), (1.0,), within=0.005)

# %% [markdown]
# <details><summary>Solution</summary>
#
# KL(ρ\*) falls as λ rises, and the reward rises with the KL. So spend the whole budget: halve [0.1, 10] until KL(ρ\*) is the
# budget.
#
# ```python
# def lam_for(budget):
#     low, high = 0.1, 10.0
#     for _ in range(40):
#         middle = (low + high) / 2
#         low, high = (middle, high) if kl(best_prompter(middle)) > budget else (low, middle)
#     return middle
# ```
#
# Half a nat: λ = 0.46, mean reward 1.22. A whole nat: λ = 0.30, mean reward 1.41. No other prompter with this KL has more
# reward: its J_λ would be larger than that of ρ\*.
# </details>
#
# ## Questions
#
# 1. A rewrite has ρ_sft = 0. What is its ρ\*?
# <details><summary>Answer</summary>
# 0, for every λ. RL can only choose among what SFT offers.
# </details>
#
# 2. Why is R averaged over answers *before* it is exponentiated?
# <details><summary>Answer</summary>
# J contains the expectation E[r]. E[exp(r/λ)] is another objective: of two rewrites with the same mean it prefers the one whose
# answers vary more.
# </details>
#
# 3. The LM never changes, yet its users get other answers. What has been aligned?
# <details><summary>Answer</summary>
#
# The *induced* policy Σ_x′ ρ(x′|x) π_F(y|x′): prompter and LM together.
# </details>
