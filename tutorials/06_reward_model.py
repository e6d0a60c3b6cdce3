# %% [markdown]
# # 06 · The reward model
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/alignpro-mini/alignpro_mini/blob/main/tutorials/06_reward_model.ipynb)
#
# At the end you will know
#
# * how a reward is learned from comparisons (Bradley–Terry), and how good it can be at best;
# * two rules that every reward model must beat: "the longer answer wins", and chance;
# * the swap tests: which parts of x does r(x, y) read?
#
# Time: 40 minutes. You need: tutorial 04, the logistic function. If run first, it trains the LM, the prompter and the
# reward model (two to three minutes).
#
# Builds on: [rewards from comparisons (Christiano et al. 2017)](https://arxiv.org/abs/1706.03741), [Stiennon et al.
# 2020](https://arxiv.org/abs/2009.01325).

# %% tags=["skip-execution", "remove-cell"]
# !test -d /content && git clone -q https://github.com/alignpro-mini/alignpro_mini /content/alignpro_mini && pip install -q --no-deps /content/alignpro_mini
# %cd -q /content/alignpro_mini/tutorials

# %%
import math
import random
from dataclasses import replace

import torch
from lesson import BLUE, FAST, GREEN, GREY, ORANGE, axes, check, quietly, shared_run, show, source

from alignpro_mini import reward, rl_math
from alignpro_mini.lab.accuracy import accuracy_ceiling, always_longer, swap_accuracy, wish_accuracy
from alignpro_mini.lab.models import copy_of
from alignpro_mini.lab.rewards import sample_answers

# %% [markdown]
# ## Comparisons
#
# People are bad at giving grades and good at comparing. So a labeller sees two answers to one request and says which is
# better. Bradley and Terry's model of a noisy labeller: with rewards r₁ and r₂ the first is preferred with probability
# σ(r₁ − r₂), σ(z) = 1 / (1 + e^−z). The loss of the model is −ln of the probability that it gives to the choice.

# %%
chosen, rejected = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([0.0, 0.0, 1.0])
naive = [-math.log(1 / (1 + math.exp(-(a - b)))) for a, b in zip(chosen.tolist(), rejected.tolist())]
source(rl_math.bradley_terry_loss)
torch.testing.assert_close(rl_math.bradley_terry_loss(chosen, rejected), torch.tensor(naive))
print("  ".join(f"{value:.2f}" for value in naive), "nats: sure and right, undecided, sure and wrong")

# %% [markdown]
# Only differences count: adding 5 to all rewards of a prompt changes nothing. So each prompt's zero point b(x) has no
# meaning. Left alone it can be anything, and most of the reward's variance. The loss therefore has a small second term,
# 0.001 (r₁ + r₂)², which holds b(x) near 0. At the end the package shifts and scales the reward to mean 0 and variance 1
# on answers to ρ_sft's rewrites.
#
# ## Our labeller
#
# In this world the true ("gold") reward is known. The labeller prefers by it, with noise. Then the best accuracy that
# any model can reach is known too: if the labeller says "first" with probability P, nobody is right more often than
# max(P, 1 − P). The mean of this is the *ceiling*.

# %%
s = shared_run("reward_model")
world, draw = s.world, torch.Generator().manual_seed(0)
asked = [
    world.train_requests[i]
    for i in torch.randint(len(world.train_requests), (60 if FAST else 800,), generator=draw).tolist()
]
first, second = (sample_answers(s.pi_f, s.rho_sft, asked, draw) for _ in range(2))
pairs = reward.draw_preferences(asked, first, second, world.gold, 2.0, draw)
ceiling = accuracy_ceiling(pairs)
by_hand = [1 / (1 + math.exp(-2 * (a - b))) for a, b in zip(world.gold(asked, first), world.gold(asked, second))]
assert abs(ceiling - sum(max(p, 1 - p) for p in by_hand) / len(by_hand)) < 1e-6
print("an example, chosen over rejected:\n  +", pairs[0].chosen, "\n  -", pairs[0].rejected)

# %% [markdown]
# ## How good is the learned reward?

# %%
model = s.reward.report.__self__  # the reward model of the shared run
learned = reward.accuracy(model, pairs)
longer = always_longer(pairs)
print(f"chance 0.500, the longer answer wins {longer:.3f}, reward model {learned:.3f}, ceiling {ceiling:.3f}")
assert FAST or max(0.5, longer) < learned < ceiling + 0.02

# %% [markdown]
# With real preferences "the longer answer wins" is often a strong rule. A reward model that is no better may simply count
# words; then PPO would learn to make the LM talk. Here the rule is weak: for a headline a short answer is wanted.
#
# ## Two swap tests
#
# **The subject.** Take an answer about the right town, and write another town's name into it. By the gold reward it is now
# worse. What does the learned reward say? If both answers of every training pair reply to the *same* request, nothing ever
# teaches the model to compare the answer with the request: r(x, y) becomes r(y). So the package mixes in *mismatched*
# pairs: an answer, and the same text about another town.

# %%
held_out = world.eval_requests[: 16 if FAST else 300]
answers = sample_answers(s.pi_f, s.rho_sft, held_out, draw)
swapped = world.swapped(held_out, answers, random.Random(0))
print("x        ", held_out[0], "\ny        ", answers[0], "\nswapped  ", swapped[0])
swap = swap_accuracy(model.score, held_out, answers, swapped) or 0.0
print(f"it prefers the answer about the right town in {swap:.3f} of the pairs")
assert FAST or swap > 0.75

# %% [markdown]
# **The wish.** What is an answer for? Take two answers and two requests that differ in their purpose alone. Keep the cases in
# which the gold reward prefers one answer for one purpose and the other answer for the other. A model that does not read
# the purpose ranks them alike both times, and is right in exactly one of two. To teach it, the package shows the same two
# answers again under another purpose.

# %%
others = world.with_other_wish(held_out, random.Random(0))
second_answers = sample_answers(s.pi_f, s.rho_sft, held_out, draw)
print("x                 ", held_out[0], "\nwith another wish ", others[0])
wish = wish_accuracy(model.score, world.gold, (held_out, others), (answers, second_answers)) or 0.0
print(f"it ranks two answers as the wish demands in {wish:.3f} of the cases; without reading it, in 0.500")
assert FAST or wish > 0.75

# %% [markdown]
# And without such pairs? Train one on pairs of answers to their own requests alone.

# %%
blind = reward.RewardModel(copy_of(s.pi_f.model), s.tokenizer)
config = replace(s.config.reward_model, epochs=0.5 if FAST else 2.0)
same_request = reward.usable_pairs(blind, pairs, config)
order = torch.Generator().manual_seed(0)
train, kept_out = reward.split_by_prompt(same_request, config.heldout_share, order)
quietly(reward.train_reward_model, blind, train, kept_out, config, generator=order)
blind.normalise(held_out, answers)
swap_blind = swap_accuracy(blind.score, held_out, answers, swapped) or 0.0
print(f"trained on same-request pairs alone: the right town in {swap_blind:.3f} of the pairs")
assert FAST or swap_blind < 0.75

# %% [markdown]
# ## A picture

# %%
figure, ((left, right),) = axes(1, 2, (9.5, 3.5))
gold = torch.tensor(world.gold(held_out, answers))
left.plot(
    gold + 0.06 * torch.randn(len(gold), generator=draw),
    model.score(held_out, answers),
    ".",
    color=BLUE,
    label="answers",
)
gold_swapped = torch.tensor(world.gold(held_out, swapped))
left.plot(gold_swapped, model.score(held_out, swapped), ".", color=ORANGE, label="town swapped")
left.set(xlabel="gold reward", ylabel="learned reward", title="with mismatched pairs")
left.legend(frameon=False, fontsize=8)
bars = {"chance": (0.5, GREY), "longer": (longer, GREY), "model": (learned, BLUE), "ceiling": (ceiling, GREEN)}
bars |= {"swap test": (swap, BLUE), "swap test,\nno mismatched": (swap_blind, ORANGE)}
for i, (_name, (value, colour)) in enumerate(bars.items()):
    right.bar(i, value, 0.7, color=colour)
right.set_xticks(range(len(bars)), list(bars), fontsize=8)
right.set(ylabel="share of pairs", ylim=(0, 1.05))
show(figure)

# %% [markdown]
# Left: each dot is an answer to a held-out request. The learned reward follows the gold one, and it notices the swapped
# town. Right: a high accuracy (third bar) does *not* show that x is read. The swap test (fifth bar) does.
#
# ## Exercise ★★ (20 minutes): how noisy is a labeller?
#
# A labeller prefers y₁ with probability σ(scale · (g₁ − g₂)), g the gold reward; ours has scale 2. Of another one you know only
# that the best possible accuracy on five pairs, with the differences g₁ − g₂ below, is 0.75. Which scale has this labeller?
# And what is the ceiling at scale 0?

# %% tags=["stub"]


def scale_for(ceiling, differences):
    return None  # your code


coin = None  # the ceiling at scale 0

# %%
check(scale_for, [1.3015, 0.4140], (0.75, [0.0, 0.5, -1.0, 1.5, 2.0]), (0.6, [0.0, 0.5, -1.0, 1.5, 2.0]), within=1e-3)
check(coin, accuracy_ceiling(reward.draw_preferences(asked, first, second, world.gold, 0.0, draw)))

# %% [markdown]
# <details><summary>Solution</summary>
#
# The ceiling is the mean of max(P, 1 − P) = σ(scale · |g₁ − g₂|). It rises with the scale, so halve:
#
# ```python
# def scale_for(ceiling, differences):
#     low, high = 0.0, 100.0
#     for _ in range(60):
#         scale = (low + high) / 2
#         mean = sum(1 / (1 + math.exp(-scale * abs(d))) for d in differences) / len(differences)
#         low, high = (scale, high) if mean < ceiling else (low, scale)
#     return scale
#
#
# coin = 0.5
# ```
#
# At scale 0 the labeller tosses a coin: the ceiling is 0.5, and no model can be better.
# </details>
#
# ## Questions
#
# 1. A reward model has held-out accuracy 0.70, ceiling 0.72. Is it a good one?
# <details><summary>Answer</summary>
# It is nearly as good as these labels allow. Whether that suffices depends on the noise: 0.72 means that 28 % of the
# labels go against the gold reward.
# </details>
#
# 2. Why are all pairs of one prompt on the same side of the split into training and held-out pairs?
# <details><summary>Answer</summary>
# Otherwise the model has seen the prompt, perhaps the very answer, and the held-out accuracy comes out too high.
# </details>
#
# 3. An answer was cut at the token limit. Should the reward model see an EOS after it?
# <details><summary>Answer</summary>
# No: the LM did not write one. With an EOS an unfinished answer would look finished.
# </details>
