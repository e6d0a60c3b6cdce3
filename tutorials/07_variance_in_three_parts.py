# %% [markdown]
# # 07 · Variance in three parts, before any RL
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/alignpro-mini/alignpro_mini/blob/main/tutorials/07_variance_in_three_parts.ipynb)
#
# At the end you will know
#
# * where the variance of a reward comes from: requests, rewrites, or the LM's own sampling;
# * how to estimate the three parts without bias;
# * how to see, before spending an hour on RL, whether a prompter can help at all (ICC).
#
# Time: 30 minutes. You need: variance, tutorials 05 and 06. If run first, it trains the LM, the prompter and the reward model
# (two to three minutes).
#
# Builds on: [intraclass correlation (Shrout and Fleiss 1979)](https://doi.org/10.1037/0033-2909.86.2.420).

# %% tags=["skip-execution", "remove-cell"]
# !test -d /content && git clone -q https://github.com/alignpro-mini/alignpro_mini /content/alignpro_mini && pip install -q --no-deps /content/alignpro_mini
# %cd -q /content/alignpro_mini/tutorials

# %%
import numpy as np
import torch
from lesson import BLUE, FAST, GREY, ORANGE, PINK, axes, check, shared_run, show, source

from alignpro_mini.lab.config import EvalConfig
from alignpro_mini.lab.evaluation import Evaluator, headroom
from alignpro_mini.lab.statistics import variance_parts

# %% [markdown]
# ## Three sources
#
# Ask N requests, write K rewrites of each, let the LM answer each rewrite M times: an array of rewards (N, K, M).
#
# $$r(i, j, m) = \text{request } i \text{ is easy or hard} + \text{rewrite } j \text{ is good or bad} + \text{the LM's luck in answer } m$$
#
# The variance of r is the sum of the three variances. The tempting estimate of the second part is the variance of the
# rewrites' mean rewards. It is too large: a mean of M answers still has luck in it, within / M. An example with numbers
# that anyone can check: two requests, two rewrites, two answers.

# %%
r = np.array([[[1.0, 3.0], [5.0, 7.0]], [[0.0, 2.0], [2.0, 4.0]]])  # (N, K, M)


def naive_parts(r):
    N, K, M = r.shape
    per_rewrite, per_input = r.mean(2), r.mean((1, 2))
    within = sum((r[i, j, m] - per_rewrite[i, j]) ** 2 for i in range(N) for j in range(K) for m in range(M)) / (
        N * K * (M - 1)
    )
    rewrites = sum((per_rewrite[i, j] - per_input[i]) ** 2 for i in range(N) for j in range(K)) / (N * (K - 1))
    inputs = sum((per_input[i] - r.mean()) ** 2 for i in range(N)) / (N - 1)
    # Each mean square holds the luck of the levels below it: take it off.
    return {"between_inputs": inputs - rewrites / K, "between_rewrites": rewrites - within / M, "within": within}


source(variance_parts)
print({part: float(value) for part, value in naive_parts(r).items()})
for part, value in naive_parts(r).items():
    assert abs(variance_parts(r)[part] - value) < 1e-12

# %% [markdown]
# Unbiased, so a part whose true value is 0 comes out a little below 0 half of the time. Check it where the truth is
# known: parts 1, 0 and 4.

# %%
rng = np.random.default_rng(0)
drawn = [variance_parts(rng.normal(size=(50, 1, 1)) + 2 * rng.normal(size=(50, 3, 2))) for _ in range(400)]
means = {part: np.mean([d[part] for d in drawn]) for part in drawn[0]}
print("  ".join(f"{part} {abs(value):.1f}" for part, value in means.items()))
assert (
    abs(means["between_inputs"] - 1) < 0.1 and abs(means["between_rewrites"]) < 0.1 and abs(means["within"] - 4) < 0.1
)

# %% [markdown]
# ## The frozen LM under ρ_sft
#
# RL on the prompter can change which rewrites are written. It cannot change the LM's luck within a rewrite, except by
# choosing rewrites under which the LM is steadier. So the share
#
# $$\mathrm{ICC} = \frac{\text{between rewrites}}{\text{between rewrites} + \text{within}}$$
#
# says how much there is to choose from. Near 0, RL sees only noise; above 0.2 it is worth trying.

# %%
s = shared_run("reward_model")
many = EvalConfig(inputs=16 if FAST else 128, rewrites=2 if FAST else 6, answers=2 if FAST else 4)
requests = s.world.eval_requests[: many.inputs]
evaluator = Evaluator(requests, s.pi_f, s.reward.report, s.world.gold, many, torch.Generator().manual_seed(0))
sft, plain = evaluator.prompter(s.rho_sft, None), evaluator.plain()
parts = {"no fine-tuning": variance_parts(plain.reward), "SFT prompter": variance_parts(sft.reward)}
icc = parts["SFT prompter"]["between_rewrites"] / (
    parts["SFT prompter"]["between_rewrites"] + parts["SFT prompter"]["within"]
)
print(f"ICC {icc:.3f}")
assert FAST or icc > 0.2

# %% [markdown]
# Without a prompter there is one rewrite, x itself: nothing between rewrites, and all the luck is within. The SFT prompter
# turns a part of it into differences between rewrites. Those can be chosen.
#
# ## Cue by cue
#
# Let the LM answer the same requests under each cue. A good cue has a high mean. A *useful* one has a low variance too.
# Which cue is best? Ask for all requests together, and then for each kind of wish: many facts or few, warm words or none.

# %%
cues = s.world.cues
wishes = [str(s.world.kind.wishes[s.world.fills[x]["purpose"]]) for x in requests]  # what each request's purpose wants
means, spreads, by_wish = [], [], {wish: [] for wish in sorted(set(wishes))}
for cue in cues:
    asked = [x for x in requests for _ in range(4)]  # (N * 4)
    answers = s.pi_f.answer([f"{x} {cue}".rstrip() for x in asked], torch.Generator().manual_seed(1))
    rewards = s.reward.report(asked, [a.text for a in answers]).numpy().reshape(-1, 1, 4)  # (N, 1, 4)
    means.append(rewards.mean())
    for wish, of_wish in by_wish.items():
        of_wish.append(rewards[[wish == own for own in wishes]].mean())
    spreads.append(variance_parts(rewards)["within"])
figure, ((left, right),) = axes(1, 2, (10, 3.6))
bottom = np.zeros(2)
for part, colour in (("between_inputs", ORANGE), ("between_rewrites", PINK), ("within", BLUE)):
    heights = np.array([max(p[part], 0.0) for p in parts.values()])
    left.bar(list(parts), heights, 0.5, bottom=bottom, color=colour, label=part.replace("_", " "))
    bottom += heights
left.set(ylabel="variance of the reward", ylim=(0, 1.45 * bottom.max()))
left.legend(frameon=False, fontsize=8, ncols=3, loc="upper center")
right.plot(spreads, means, "o", color=BLUE)
for cue, x, y in zip(cues, spreads, means):
    right.annotate(cue or "(no cue)", (x, y), xytext=(5, 4), textcoords="offset points", fontsize=7)
right.axhline(plain.reward.mean(), color=GREY, linestyle="--")
right.set(xlabel="variance within the cue", ylabel="mean reward", xlim=(0, 1.5 * max(spreads)))
show(figure)
print(f"best cue for all requests: {cues[int(np.argmax(means))]!r}")
for wish, of_wish in by_wish.items():
    print(f"best cue for {wish}: {cues[int(np.argmax(of_wish))]!r}")
assert FAST or len({int(np.argmax(of_wish)) for of_wish in by_wish.values()}) >= 3

# %% [markdown]
# No cue is best for all wishes. So one fixed sentence cannot do what a prompter can, which reads the request.
#
# A cue that fixes what is wanted has a high mean *and* a small variance. That is why Align-Pro will lower the variance
# within requests in this world. It is a property of the world: what a cue fixes cannot vary. In a world whose good cues
# are gambles the variance rises (tutorial 13).
#
# ## Exercise ★★ (10 minutes): M answers
#
# PPO may let the LM answer each rewrite M times and average the rewards. Write the ICC of that averaged reward. At which M
# would half of the variance of a request's rewards come from its rewrites, if ICC is 0.2 for M = 1?

# %% tags=["stub"]


def icc_of_mean(between, within, M):
    return None  # your code


half = None  # your M

# %%
check(icc_of_mean, [0.2, 0.5, 0.8], (1.0, 4.0, 1), (2.0, 4.0, 2), (0.5, 1.0, 8))
check(half, 4)
between, within = parts["SFT prompter"]["between_rewrites"], parts["SFT prompter"]["within"]
for M in (1, 2, 4):
    print(f"M = {M}: ICC {icc_of_mean(between, within, M) or 'not solved yet'}")
found = headroom(evaluator, s.rho_sft, K=4, M=2)
print(
    "`headroom`, which train.py prints before PPO:", ", ".join(f"{name} {value:.2f}" for name, value in found.items())
)

# %% [markdown]
# <details><summary>Solution</summary>
#
# The variance of a mean of M answers is within / M:
#
# ```python
# def icc_of_mean(between, within, M):
#     return between / (between + within / M)
#
#
# half = 4
# ```
#
# ICC 0.2 means within = 4 · between. It is 0.5 where within / M = between.
# </details>
#
# ## Questions
#
# 1. The reported "between rewrites" is −0.003. A bug?
# <details><summary>Answer</summary>
# No: an unbiased estimate of a number near 0. Cutting it off at 0 would make the mean over many runs too high.
# </details>
#
# 2. Why can "no fine-tuning" have more variance within than the SFT prompter?
# <details><summary>Answer</summary>
# A plain request leaves the style open, so the LM draws it at random. A cue fixes parts of it.
# </details>
#
# 3. Best-of-n on *answers* would also raise the reward. Why does RL on the prompter need "between rewrites"?
# <details><summary>Answer</summary>
# It only chooses rewrites. If all rewrites of a request have the same mean, every choice earns the same.
# </details>
