# %% [markdown]
# # 14 · A real model: predicted, then measured
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/alignpro-mini/alignpro_mini/blob/main/tutorials/14_a_real_model.ipynb)
#
# At the end you will know
#
# * how to learn what a prompter could do to a real model's rewards before any training;
# * the difference between a confidence interval and a prediction interval;
# * what SmolLM2-135M's runs show, and what they do not.
#
# Time: 30 minutes. You need: tutorials 12 and 13. Nothing is trained here: it reads the results of finished runs, which
# lie in `tutorials/results/real`. [results/real-model.md](results/real-model.md) has the commands that made them.
#
# Builds on: [SmolLM2 (Allal et al. 2025)](https://arxiv.org/abs/2502.02737), [VADER (Hutto and Gilbert
# 2014)](https://doi.org/10.1609/icwsm.v8i1.14550).

# %% tags=["skip-execution", "remove-cell"]
# !test -d /content && git clone -q https://github.com/alignpro-mini/alignpro_mini /content/alignpro_mini && pip install -q --no-deps /content/alignpro_mini
# %cd -q /content/alignpro_mini/tutorials

# %%
import json

import numpy as np
import torch
from lesson import BLUE, GREEN, GREY, HERE, ORANGE, PINK, axes, check, show, source

from alignpro_mini.experiments.listing import Rated, optimum
from alignpro_mini.lab.glossary import ARMS

here = HERE / "results" / "real"
read = lambda name: json.loads((here / name).read_text(encoding="utf-8"))

# %% [markdown]
# ## Try all endings, train nothing
#
# In the embedded world every rewrite of a request can be listed. For a real model nobody can list all rewrites. But one
# can decide *which rewrites the SFT prompter learns to offer*: here the request, word for word, and one of 24 endings
# ("Be brief.", "I love it. Tell me why it is great.", ...). RL only chooses among what SFT offers (tutorial 05). So the
# 24 endings can be listed, and the frozen model can answer each of them, several times, on some training requests.
#
# The optimum is ρ\*(ending) ∝ ρ_sft(ending) exp(R(ending)/λ), with R the mean reward over all requests. The SFT
# prompter was taught all endings equally often, so ρ_sft is taken as uniform and cancels. By hand, for two requests,
# three endings and two answers each:

# %%
r = torch.tensor([[[0.0, 0.2], [0.5, 0.7], [1.0, -1.0]], [[0.1, 0.1], [0.8, 0.4], [1.0, -0.6]]])  # (2, 3, 2)


def naive_optimum(r, lam):
    R = [sum(float(r[n, k, m]) for n in range(2) for m in range(2)) / 4 for k in range(3)]
    weights = [2.718281828459045 ** (value / lam) for value in R]
    return [w / sum(weights) for w in weights]


source(optimum)
for lam in (1.0, 0.3, 0.1):
    by_hand = torch.tensor(naive_optimum(r, lam), dtype=torch.float64)
    rated = Rated(r, torch.zeros(r.shape), ["…", "… one", "… two"])  # all requests of one kind, named ""
    torch.testing.assert_close(optimum(rated, lam)[""], by_hand, rtol=1e-4, atol=1e-6)

# %% [markdown]
# ## What the listing says of five rewards
#
# The same 18,432 answers, five rewards. VADER is a sentiment score from a list of words, between −1 and 1. It adds the
# scores of the words, $s$, and reports $s / \sqrt{s^2 + 15}$. The second reward is $s$ itself: it puts all answers into
# the same order, and has no ceiling. A ratio below 1 means that answers to the best endings vary less than answers to
# the plain request. Guess first: what is the ratio under $s$? The last reward is learned from comparisons of the
# model's own answers, which the gold reward judged.

# %%
listing = read("listing.json")
names = {
    "tutorials.vader_reward:sentiment": ("VADER of the answer", BLUE),
    "tutorials.vader_reward:valence": ("VADER without its ceiling, s", GREEN),
    "tutorials.vader_reward:per_sentence": ("VADER, mean over sentences", ORANGE),
    "alignpro_mini.worlds.gold:friendly": ("the package's gold reward", PINK),
    "learned": ("learned from gold's judgements", GREY),
}
prediction, summary = read("prediction.json"), read("summary.json")
figure, ((left, right),) = axes(1, 2, (11, 3.8))
for key, (name, colour) in names.items():
    found = listing["rewards"][key]
    x = [1 / p["lam"] for p in found["smooth"]]
    left.plot(x, [p["ratio"] for p in found["smooth"]], color=colour, label=name)
    for p in found["curve"]:
        left.plot([1 / p["lam"]] * 2, p["ratio_ci95"], color=colour, linewidth=1)
    right.plot(x, [p["gain"] for p in found["smooth"]], color=colour, label=name)
left.axhline(1, color="grey", linestyle="--", linewidth=0.8)
left.set(xscale="log", xlabel="1 / λ", ylabel="variance ratio to the plain request")
right.set(xscale="log", xlabel="1 / λ", ylabel="gain of the mean, standard deviations")
left.legend(frameon=False, fontsize=8)
show(figure)

# %% [markdown]
# Five rewards of the *same* answers: the variance falls under VADER and rises under two others. Under the gold reward
# and the learned one there is no evidence of either. VADER and $s$ agree about every pair of answers, and one falls
# where the other rises: near 1 a large difference in $s$ is a very small one in VADER. So "prompt optimisation lowers
# the variance" is a statement about a model, a set of rewrites, a reward *and the scale of that reward*. The mean rises
# on both scales.
#
# ## The prediction, and what was measured
#
# The **confidence interval** of the listing's ratio shows how uncertain the ratio is when it is estimated from 192
# requests (64 for VADER without its ceiling). A run uses other requests and few answers, so its result has noise of its
# own. A **prediction interval** holds both, and a measurement can be compared with it. It was written down before the
# first PPO run with that reward: for three seeds (1,536 requests) under VADER and the learned reward, for one seed
# (512) under VADER without its ceiling.

# %%
figure, ((ax,),) = axes(1, 1, (8, 0.9 + 0.7 * len(summary)))
for i, (name, found) in enumerate(summary.items()):
    told = prediction[name]
    label = "predicted" * (i == 0)
    ax.plot(told["variance_ratio_pi95"], [i + 0.12] * 2, color=BLUE, linewidth=6, alpha=0.4, label=label)
    ax.plot(found["variance_ratio_ci95"], [i - 0.12] * 2, color=ORANGE, linewidth=2)
    ax.plot(found["variance_ratio"], i - 0.12, "o", color=ORANGE, label="measured" * (i == 0))
    low, high = told["variance_ratio_pi95"]
    inside = "inside" if low <= found["variance_ratio"] <= high else "outside"
    seeds = ", ".join(map(str, found["seeds"]))
    print(f"{name}, seeds {seeds}: measured {found['variance_ratio']:.2f}, predicted [{low:.2f}, {high:.2f}]: {inside}")
ax.axvline(1, color="grey", linestyle="--", linewidth=0.8)
ax.set_yticks(range(len(summary)), list(summary))
ax.set(xlabel="variance ratio, Align-Pro to no fine-tuning", ylim=(-0.6, len(summary) - 0.4))
ax.legend(frameon=False, fontsize=8)
show(figure)

# %% [markdown]
# ## One run in full
#
# The arms of tutorial 13, on 512 held-out requests about topics that training never saw.

# %%
run = read("vader-seed0.json")
print(f"{'arm':18} {'mean':>6} {'variance':>9} {'inputs + rewrites + within':>28} {'truncated':>10}")
for arm, a in run["arms"].items():
    parts = " + ".join(f"{a['variance_parts'][p] or 0:.3f}" for p in ("between_inputs", "between_rewrites", "within"))
    print(f"{ARMS[arm][0]:18} {a['mean']:6.2f} {a['variance']:9.3f} {parts:>28} {a['truncated']:10.2f}")
gain = run["arms"]["align_pro"]["difference"]
print(f"gain {gain['mean']:.2f}, 95 % interval [{gain['ci95'][0]:.2f}, {gain['ci95'][1]:.2f}]")
parts = run["arms"]["no_finetuning"]["variance_parts"]
assert abs(sum(v for v in parts.values() if v is not None) - run["arms"]["no_finetuning"]["variance"]) < 0.02

# %% [markdown]
# ## Exercise ★★ (15 minutes): a scale of your own
#
# Take the mean and the variance of $s$ that were measured for two arms, and pretend that $s$ is normal. On VADER's scale the
# ratio of the variances is below 1, on $s$ it is above. Write an increasing function of $s$ (any two answers stay in their
# order) on which it rises to more than 20 times.

# %%
arms = read("valence-seed0.json")["arms"]
z = np.random.default_rng(0).normal(size=100_000)
plain, trained = (arms[a]["mean"] + arms[a]["variance"] ** 0.5 * z for a in ("no_finetuning", "align_pro"))
ratio = lambda f: float(f(trained).var() / f(plain).var())
increasing = lambda f: bool((np.diff(f(np.linspace(-40, 60, 1001))) > 0).all())
print(f"s {ratio(lambda s: s):.2f}, VADER {ratio(lambda s: s / np.sqrt(s**2 + 15)):.2f}")

# %% tags=["stub"]


def scale(s):
    return None  # your code


# %%
mine = None
if scale(z) is not None:
    mine = increasing(scale) and ratio(scale) > 20
    print(f"ratio {ratio(scale):.2f}, increasing: {increasing(scale)}")
check(mine, True)

# %% [markdown]
# <details><summary>Solution</summary>
#
# Let the scale be steep where only trained answers are.
#
# ```python
# def scale(s):
#     return np.exp(s / 5)
# ```
#
# The ratio is 24; with `np.exp(s / 4)` it is 71. Downwards there is a limit here: of all steps (0 below a value of s, 1 above it)
# the one at −1.25 gives the smallest ratio, 0.51. The answers are the same on every scale. So a fall of the variance is worth
# something only on a scale that was chosen before, for a reason: a probability, euros, minutes.
# </details>
#
# With SmolLM2 installed you can rate its answers by a reward of your own. Write `mine.py` beside `train.py`, with
# `def reward(prompts, completions): return [...]`, and guess its ratio first:
# `python -m alignpro_mini.experiments.real --step listing --preset smollm2 --reward mine:reward`. The first time it answers all
# endings (some 13 minutes on two cores). The answers are kept: another reward costs seconds.
#
# ## Questions
#
# 1. Why does VADER's variance fall?
# <details><summary>Answer</summary>
#
# Because it has a ceiling. Under $s$, the same score without the ceiling, the same answers vary 1.71 times as much as
# the plain ones, not 0.53 times. The mean over sentences also varies more under its best endings; but these ask for one
# sentence, so its mean is over fewer.
# </details>
#
# 2. The measured ratio lies inside the prediction interval. What does that show, and what not?
# <details><summary>Answer</summary>
# That PPO got about where the listing said, on new requests. Not that the interval was right 95 times of 100: it is one
# draw, and a wide interval is easy to hit. Three hits of three say more, above all where they predict different
# things: a fall, a ratio near 1, a rise.
# </details>
#
# 3. Why is the prediction written down before the run?
# <details><summary>Answer</summary>
# After the run any result can be explained. A prediction that could have failed, and did not, says more.
# </details>
