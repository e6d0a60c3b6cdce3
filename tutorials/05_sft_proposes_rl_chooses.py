# %% [markdown]
# # 05 · SFT proposes, RL chooses
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/alignpro-mini/alignpro_mini/blob/main/tutorials/05_sft_proposes_rl_chooses.ipynb)
#
# At the end you will know
#
# * what the SFT prompter ρ_sft is, and that it does *not* know which rewrite is good;
# * how to read the exact probability of a rewrite off a model;
# * why a rewrite that SFT never offers is out of RL's reach.
#
# Time: 30 minutes. You need: tutorials 01 and 04. If run first, it trains the LM and the prompter (one to two minutes).
#
# Builds on: [Align-Pro (Trivedi et al. 2025)](https://arxiv.org/abs/2501.03486); SFT before RL: [Ouyang et al.
# 2022](https://arxiv.org/abs/2203.02155).

# %% tags=["skip-execution", "remove-cell"]
# !test -d /content && git clone -q https://github.com/alignpro-mini/alignpro_mini /content/alignpro_mini && pip install -q --no-deps /content/alignpro_mini
# %cd -q /content/alignpro_mini/tutorials

# %%
import random
from collections import Counter

import torch
from lesson import BLUE, FAST, GREY, ORANGE, axes, check, shared_run, show, source

from alignpro_mini import theory
from alignpro_mini.alignpro import Prompter
from alignpro_mini.lab.optimum import log_probabilities
from alignpro_mini.sft import SFTConfig, encode_pairs, train_sft
from alignpro_mini.transformer import Transformer

# %% [markdown]
# ## What SFT shows the prompter
#
# A training pair is a request and *some* rewrite of it: one of three phrasings, one of eight cues, drawn at random. The
# prompter learns what rewrites look like: they keep the town and the purpose, and may end with a cue. Nobody tells it
# that one cue is better than another.

# %%
s = shared_run("prompter_sft")
world, cues = s.world, s.world.cues
for request, rewrite in world.rewrite_pairs(4, random.Random(1)):
    print(f"x   {request}\nx'  {rewrite}\n")


def cue_of(rewrite):
    """The cue that a rewrite ends with; "" for none."""
    return next((cue for cue in cues if cue and rewrite.endswith(cue)), "")


requests = [x for x in world.eval_requests[:100] for _ in range(4)]  # held out: no pair of them was trained on
written = Counter(cue_of(text) for text in s.rho_sft.rewrite(requests, torch.Generator().manual_seed(0)))

# %% [markdown]
# ## The exact probability of a rewrite
#
# A rewrite is a sequence of tokens. Its probability is the product of its tokens' probabilities, with the end token:
# ln ρ(x′|x) = Σ_t ln ρ(x′_t | x, x′_<t).

# %%


def naive_log_probability(prompter, x, rewrite):
    prompt_ids, rewrite_ids = prompter.tokenizer.chat_with_answer(x, rewrite)
    logp = prompter.model(torch.tensor([prompt_ids + rewrite_ids]))[0].log_softmax(-1)
    return sum(logp[len(prompt_ids) + i - 1, token] for i, token in enumerate(rewrite_ids))


source(log_probabilities)
few = world.eval_requests[:4]
table = log_probabilities(s.rho_sft, few, [world.rewrites(x) for x in few])  # (4 requests, 24 rewrites)
with torch.no_grad():
    by_hand = naive_log_probability(s.rho_sft, few[0], world.rewrites(few[0])[5]).double()
torch.testing.assert_close(table[0, 5], by_hand, rtol=1e-3, atol=1e-3)

# %% [markdown]
# The 24 probabilities of a request sum to almost 1. What is missing goes to texts that are not in the list: a garbled
# town, a cue that does not exist.

# %%
on_list = table.exp().sum(1).mean().item()
print(f"on the list of 24 rewrites: {on_list:.3f}")
assert FAST or on_list > 0.9

# %% [markdown]
# ## A prompter that was never shown a cue
#
# Now a second prompter, trained on the same pairs without "Answer like a friendly guide.". Who plans a holiday wants this
# cue: many facts and warm words. Who needs a headline wants another one.

# %%
missing = "Answer like a friendly guide."
pairs = [p for p in world.rewrite_pairs(600 if FAST else 20_000, random.Random(0)) if cue_of(p[1]) != missing]
model = Transformer(s.rho_sft.model.config, torch.Generator().manual_seed(1))
config = SFTConfig(steps=30 if FAST else 600, batch_size=8 if FAST else 32, heldout_examples=32)
train_sft(model, encode_pairs(pairs, s.tokenizer, 160), config, generator=torch.Generator().manual_seed(1))
poor = Prompter(model, s.tokenizer, s.rho_sft.max_new_tokens)
poor_table = log_probabilities(poor, few, [world.rewrites(x) for x in few])


def by_cue(table):
    """Probability of each cue, over phrasings and requests, of what is on the list."""
    p = table.softmax(1).mean(0)  # (24,): phrasing by phrasing, the cues in the same order
    return [float(p[i :: len(cues)].sum()) for i in range(len(cues))]


figure, ((ax,),) = axes(1, 1, (8.5, 3.4))
places = range(len(cues))
ax.bar(
    [i - 0.27 for i in places], [written[cue] / len(requests) for cue in cues], 0.25, color=GREY, label="ρ_sft, sampled"
)
ax.bar(places, by_cue(table), 0.25, color=BLUE, label="ρ_sft, exact")
ax.bar([i + 0.27 for i in places], by_cue(poor_table), 0.25, color=ORANGE, label="without one cue")
ax.axhline(1 / len(cues), color="black", linewidth=0.6, linestyle="--")
ax.set_xticks(list(places), [cue or "(no cue)" for cue in cues], rotation=25, ha="right", fontsize=8)
ax.set(ylabel="probability of the cue")
ax.legend(frameon=False, fontsize=8)
show(figure)

# %% [markdown]
# ρ_sft writes each cue about equally often (the dashed line is 1/8). It proposes, and has no opinion. The other prompter
# gives the missing cue next to nothing.
#
# ## What RL can do with each of them
#
# By tutorial 01, ρ\*(x′|x) ∝ ρ_sft(x′|x) exp(R/λ). Suppose this cue is worth R = 1 and every other 0, λ = 0.1. The
# tilt is e¹⁰ ≈ 22,000. It turns 1/8 into almost 1. What does it turn "next to nothing" into?

# %%
R = torch.zeros(len(few), 24)
R[:, cues.index(missing) :: len(cues)] = 1.0
rich_share = theory.value(theory.optimal_prompter(table.softmax(1), R, 0.1), R)
poor_gain = theory.value(theory.optimal_prompter(poor_table.softmax(1), R, 0.1), R)
cost = theory.kl(theory.optimal_prompter(poor_table.softmax(1), R, 0.1), poor_table.softmax(1)).mean()
print(f"optimum from ρ_sft: probability of this cue {rich_share:.3f}")
print(f"optimum from the other: {poor_gain:.3f}, at a KL of {cost:.1f} nats")
assert FAST or rich_share > 0.95

# %% [markdown]
# Even where the optimum could still reach the cue, PPO could not: it learns from what it *samples*, and it would wait for
# thousands of rollouts until the cue is drawn once. So the SFT prompter must offer what you hope for. This is the most
# useful practical rule of this page.
#
# ## Exercise ★★ (15 minutes): remove a cue
#
# SFT may leave out one of four cues. Then ρ_sft is shared out among the other three, and RL starts from there. By how much
# does J_λ(ρ\*) change, for each cue that could be left out? Predict the signs first. (`theory.regularised_value` and
# `theory.optimal_prompter` take tables with a row for each request: here one row, (1, 4).)

# %% tags=["stub"]


def change(rho_sft, R, lam):
    return None  # your code: a list of four numbers, J_λ(ρ*) without cue i, minus J_λ(ρ*) with all


# %%
cues_R = [1.0, 0.9, 0.2, 0.0]
check(
    change, [[-0.1025, -0.0025, 0.0287, 0.0288]], (torch.full((1, 4), 0.25), torch.tensor([cues_R]), 0.1), within=1e-4
)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def change(rho_sft, R, lam):
#     def best(p):
#         return float(theory.regularised_value(theory.optimal_prompter(p, R, lam), p, R, lam))
#
#     kept = [rho_sft * (torch.arange(4) != i) for i in range(4)]
#     return [best(p / p.sum()) - best(rho_sft) for p in kept]
# ```
#
# Without the best cue J_λ falls by 0.1025, about its distance to the second one. Without the second it falls by 0.0025: ρ\*
# gives it little. Without one of the others it even rises, because the rest begins with a larger share.
# </details>
#
# ## Questions
#
# 1. Half of ρ_sft's training pairs keep the user's own phrasing. Why offer the plain request at all?
# <details><summary>Answer</summary>
# It is a floor: with ρ_sft(x|x) = p₀ > 0 the optimum cannot do worse than no fine-tuning by more than λ ln(1/p₀).
# </details>
#
# 2. Is a rewrite that answers the request itself a good one?
# <details><summary>Answer</summary>
# No. The frozen LM should answer; a rewrite that contains the answer moves the task into the small prompter, and the
# reward would praise it.
# </details>
#
# 3. ρ_sft names another town in some rewrites. Will RL remove this?
# <details><summary>Answer</summary>
# Only if the reward notices, that is if the reward model reads x. Tutorial 06 is about that.
# </details>
