# %% [markdown]
# # 09 · Credit: which token earned the reward?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/alignpro-mini/alignpro_mini/blob/main/tutorials/09_credit.ipynb)
#
# At the end you will know
#
# * where the score and the KL penalty of a completion go, and why EOS is a token like any other;
# * what generalised advantage estimation (GAE) computes, and what its λ trades;
# * why no padded number may ever reach a result.
#
# Time: 30 minutes. You need: tutorial 08 (KL), sums.
#
# Builds on: [GAE (Schulman et al. 2016)](https://arxiv.org/abs/1506.02438).
#
# Open [pages/gae.html](pages/gae.html) in a browser to move γ and λ.

# %% tags=["skip-execution", "remove-cell"]
# !test -d /content && git clone -q https://github.com/alignpro-mini/alignpro_mini /content/alignpro_mini && pip install -q --no-deps /content/alignpro_mini
# %cd -q /content/alignpro_mini/tutorials

# %%
import torch
from lesson import axes, check, show, source

from alignpro_mini import rl_math

# %% [markdown]
# ## One number for a whole text
#
# The reward model rates a finished answer: one number. But the prompter chose token after token. PPO needs a reward for
# every token. The rule is simple:
#
# * the score is added at the **last sampled token**, which is EOS if the model ended the text;
# * every token pays its own KL penalty, λ·log(ρ/ρ_sft) of that token.
#
# Two completions stand in one batch, padded on the right to the same length. The *mask* is 1 on sampled tokens.

# %%
tokens = [["Tell", "me", "more", "<end>"], ["More", "<end>", "_", "_"]]
mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
log_ratio = torch.tensor([[0.2, -0.1, 0.3, 0.0], [0.5, 0.1, 9.0, 9.0]])  # 9.0: garbage in the padding
scores = torch.tensor([1.0, -0.5])
lam = 0.1


def naive_rewards(score, ratios):
    """Of one completion, without its padding: a list."""
    row = [-lam * k for k in ratios]
    row[-1] += score  # the last sampled token
    return row


lengths = mask.sum(1).tolist()
source(rl_math.assemble_rewards)
rewards = rl_math.assemble_rewards(scores, log_ratio, mask, lam)
print(rewards)
for b, n in enumerate(lengths):
    by_hand = naive_rewards(float(scores[b]), log_ratio[b, :n].tolist())
    torch.testing.assert_close(rewards[b], torch.tensor([*by_hand, *[0.0] * (4 - n)]))

# %% [markdown]
# The mistake that many implementations have made: to leave EOS out of the mask, so that the score lands one token too
# early, or to write the score into the padding. Then the model never learns when to stop. Here EOS is sampled, so it has a
# log-probability, a value, an advantage, and it can be wrong.
#
# ## From rewards to advantages
#
# The value V_t is a guess, made before token t, of the sum of all rewards from t on. How surprising was token t? Its
# *TD error* says: the reward that came, plus the next guess, minus the guess before.
#
# $$\delta_t = r_t + \gamma V_{t+1} - V_t \qquad (V \text{ after the last token is 0: the episode is over})$$
#
# GAE adds up the surprises from t on, each further one weighing γλ times as much:
#
# $$A_t = \delta_t + \gamma \lambda A_{t+1}$$
#
# So it is computed from the last token to the first. (This λ is GAE's. It has nothing to do with the KL coefficient.)

# %%
values = torch.tensor([[0.5, 0.6, 0.7, 0.8], [0.0, -0.2, 7.0, 7.0]])


def naive_gae(rewards, values, gae_lambda):
    """Of one completion, γ = 1: a list."""
    advantages, following, next_value = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values)):
        following = reward + next_value - value + gae_lambda * following
        next_value = value
        advantages.insert(0, following)
    return advantages


source(rl_math.gae)
for gae_lambda in (0.0, 0.95, 1.0):
    ours, returns = rl_math.gae(rewards, values, mask, 1.0, gae_lambda)
    for b, n in enumerate(lengths):
        by_hand = torch.tensor(naive_gae(rewards[b, :n].tolist(), values[b, :n].tolist(), gae_lambda))
        torch.testing.assert_close(ours[b, :n], by_hand)
        torch.testing.assert_close(returns[b, :n], by_hand + values[b, :n])
print(ours)

# %% [markdown]
# The two ends of λ:
#
# * λ = 1: A_t = (all rewards from t on) − V_t. Right on average whatever V says, but noisy: every later token's luck
#   is in it.
# * λ = 0: A_t = δ_t. Little noise, but the score reaches an early token only through V. As long as V has learned
#   nothing, the first tokens of a text learn nothing.

# %%
total = rewards.sum(1, keepdim=True) - torch.cat((torch.zeros(2, 1), rewards.cumsum(1)[:, :-1]), 1)  # rewards from t on
torch.testing.assert_close(rl_math.gae(rewards, values, mask, 1.0, 1.0)[0], torch.where(mask, total - values, 0.0))

# %% [markdown]
# ## A picture: how far does a score reach?
#
# A rewrite of twelve tokens earns the score 1 at its end, and V is 0 everywhere, as at the start of training.

# %%
T = 12
end = torch.zeros(1, T)
end[0, -1] = 1.0
everywhere = torch.ones(1, T, dtype=torch.bool)
lambdas = (0.0, 0.5, 0.8, 0.95, 1.0)
heat = torch.cat([rl_math.gae(end, torch.zeros(1, T), everywhere, 1.0, each)[0] for each in lambdas])
figure, ((left, right),) = axes(1, 2, (10, 3.2))
for ax, data, title in (
    (left, torch.stack((rewards[0], ours[0])), "one completion"),
    (right, heat, "advantage of each token, V = 0"),
):
    bound = data.abs().max()
    picture = ax.imshow(data, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto")
    ax.grid(False)
    figure.colorbar(picture, ax=ax)
    ax.set_title(title, fontsize=10)
left.set_xticks(range(4), tokens[0])
left.set_yticks(range(2), ["reward", "advantage, λ = 1"])
right.set_yticks(range(len(lambdas)), [f"λ = {each}" for each in lambdas])
right.set_xlabel("token of the rewrite")
show(figure)

# %% [markdown]
# Left: three tokens got almost no reward of their own. Their advantages say what each of them did for the end of the
# text. Right: at λ = 0.95 the first token gets 0.95¹¹ = 0.57 of the credit, at λ = 0.5 nothing that can be seen.

# %%
assert abs(heat[3, 0] - 0.95**11) < 1e-6 and heat[1, 0] < 0.001

# %% [markdown]
# ## Padding must not matter
#
# Whatever stands in the padding, no result may change. Not even infinity: 0 · ∞ is not 0 but NaN. So the package
# *selects* by the mask (`torch.where`) and never multiplies by it.

# %%
for garbage in (0.0, 1e30, float("inf"), float("nan")):
    dirty = (torch.where(mask, x, garbage) for x in (rewards, values))
    again, _ = rl_math.gae(*dirty, mask, 1.0, 0.95)
    torch.testing.assert_close(again, rl_math.gae(rewards, values, mask, 1.0, 0.95)[0])
print("multiplied by the mask:", (torch.tensor([1.0, float("inf")]) * torch.tensor([1.0, 0.0])).tolist())

# %% [markdown]
# ## Exercise ★ (10 minutes): three tokens by hand
#
# Three tokens, rewards (0, 0, 3), values (1, 2, 2), γ = 1. Work out the advantages for λ = 0, 1 and 0.5 on paper: three numbers
# each.

# %% tags=["stub"]
on_paper = {0.0: None, 1.0: None, 0.5: None}  # λ: [first, second, third]

# %%
three = torch.tensor([[0.0, 0.0, 3.0]]), torch.tensor([[1.0, 2.0, 2.0]]), torch.ones(1, 3, dtype=torch.bool)
for gae_lambda, mine in on_paper.items():
    check(mine, rl_math.gae(*three, 1.0, gae_lambda)[0][0])

# %% [markdown]
# <details><summary>Solution</summary>
#
# δ = (0 + 2 − 1, 0 + 2 − 2, 3 + 0 − 2) = (1, 0, 1). Then from the last token to the first, A = δ + λ · (the next A):
#
# ```python
# on_paper = {0.0: [1, 0, 1], 1.0: [2, 1, 1], 0.5: [1.25, 0.5, 1]}
# ```
# </details>
#
# ## Questions
#
# 1. A completion was truncated at the token limit, so it has no EOS. Where does its score go?
# <details><summary>Answer</summary>
# To its last sampled token. PPO here also subtracts a fixed penalty, because the model failed to stop.
# </details>
#
# 2. Advantages are scaled to mean 0 and variance 1 ("whitened"). Why are the returns, which the value head learns, not?
# <details><summary>Answer</summary>
# The value head must predict rewards in their own unit. A whitened target would change its meaning in every batch.
# </details>
#
# 3. Why is γ = 1 here, when games use 0.99?
# <details><summary>Answer</summary>
# A text is short and its score comes once, at the end. With γ < 1 longer rewrites would earn less for the same answer.
# </details>
