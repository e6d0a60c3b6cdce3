# %% [markdown]
# # 13 · The variance result, and the world where it fails
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/alignpro-mini/alignpro_mini/blob/main/tutorials/13_the_variance_result.ipynb)
#
# At the end you will know
#
# * Align-Pro's two claims, mean and variance, with intervals, against the baselines that a referee (who judges whether a paper
#   is printed) asks for;
# * which of the three variance components falls, and why;
# * that "prompt optimisation lowers the variance" is a property of a world, not a theorem.
#
# Time: 40 minutes. You need: tutorials 07, 11 and 12. If run first, it trains everything (about ten minutes on two cores).
#
# Builds on: [Align-Pro (Trivedi et al. 2025)](https://arxiv.org/abs/2501.03486); [the bootstrap (Efron
# 1979)](https://doi.org/10.1214/aos/1176344552).

# %% tags=["skip-execution", "remove-cell"]
# !test -d /content && git clone -q https://github.com/alignpro-mini/alignpro_mini /content/alignpro_mini && pip install -q --no-deps /content/alignpro_mini
# %cd -q /content/alignpro_mini/tutorials

# %%
import numpy as np
from lesson import BLUE, FAST, ORANGE, PINK, axes, check, shared_run, show, source

from alignpro_mini import theory
from alignpro_mini.lab.glossary import ARMS
from alignpro_mini.lab.statistics import resampled_moments

# %% [markdown]
# ## All arms, one set of requests
#
# An *arm* is one way to answer the requests. All arms get the same 512 held-out requests (the closed form the first 64 of them).
#
# | arm | why it must be there |
# |---|---|
# | no fine-tuning | what the user has today |
# | fixed rewrite | one sentence for all requests, found by as many answers as PPO used: is reading the request worth it? |
# | SFT prompter | is it RL that helps, or any rewriting? |
# | best-of-n rewrites, best-of-n answers | gains that cost no training, but n answers to every request |
# | Align-Pro | the method: a prompter trained by PPO |
# | oracle | RLHF of the LM itself: the same PPO, the same KL coefficient |
# | closed form | the best that is possible with the enumerated rewrites |

# %%
s = shared_run("evaluation")
arms, results = s.arms, s.results
names = [arm for arm in ARMS if arm in arms]

# %% [markdown]
# ## Intervals by request
#
# How far could a mean be off by chance? The *bootstrap* answers this from the data alone: draw as many requests as there are,
# with replacement (some come twice, some not at all), and compute the mean again. Do that 2,000 times. From the 2.5 % to the
# 97.5 % quantile of these means is the 95 % interval. Variances and ratios get theirs in the same way.
#
# Four answers to one request are not four independent numbers: the request is easy or hard for all of them. So what is drawn
# are *requests*, each with all its answers. On three requests by hand:

# %%
r = np.array([[[1.0, 2.0]], [[4.0, 4.0]], [[7.0, 9.0]]])  # (3 requests, 1, 2 answers)


def naive_resample(r, picks):
    drawn = np.concatenate([r[i].ravel() for i in picks])
    return drawn.mean(), drawn.var(ddof=1)


source(resampled_moments)
# The package draws with this generator. w says how often each request was drawn.
weights = np.random.default_rng(0).multinomial(3, [1 / 3] * 3, size=5)
for w, mean, variance in zip(weights, *resampled_moments(r, 5)):
    assert np.allclose(naive_resample(r, np.repeat([0, 1, 2], w)), (mean, variance))

# %% [markdown]
# A ratio of two variances is resampled with the *same* draws for both arms: it is paired. Where the whole interval is below 1,
# another choice of requests would hardly have given a rise.
#
# ## The result

# %%
figure, grid = axes(1, 3, (12, 3.8))
for i, name in enumerate(names):
    a, (label, colour) = results["arms"][name], ARMS[name]
    for ax, key in ((grid[0, 0], "mean"), (grid[0, 1], "variance")):
        low, high = a["ci95" if key == "mean" else "variance_ci95"]
        ax.bar(i, a[key], 0.7, color=colour)
        ax.errorbar(i, (low + high) / 2, (high - low) / 2, color="black", capsize=3, linewidth=1)
    bottom = 0.0
    for part, shade in (("between_inputs", ORANGE), ("between_rewrites", PINK), ("within", BLUE)):
        height = max(a["variance_parts"][part], 0.0)  # an estimate near 0 may be negative: no bar
        grid[0, 2].bar(i, height, 0.7, bottom=bottom, color=shade, label=part.replace("_", " ") if i == 0 else None)
        bottom += height
titles = (
    "mean of the learned reward, 95 % interval",
    "its variance, 95 % interval",
    "the three components of the variance",
)
for ax, title in zip(grid[0], titles):
    ax.set_xticks(range(len(names)), [ARMS[name][0] for name in names], rotation=35, ha="right", fontsize=8)
    ax.set_title(title, fontsize=10)
grid[0, 2].legend(frameon=False, fontsize=8)
show(figure)
gain, over = results["arms"]["align_pro"]["difference"]["ci95"], results["over_fixed_ci95"]
print(
    f"mean: gain over no fine-tuning [{gain[0]:.2f}, {gain[1]:.2f}], over the fixed rewrite [{over[0]:.2f}, {over[1]:.2f}]"
)
ratios = {"variance": "variance_ratio_ci95", "variance within requests": "variance_ratio_within_requests_ci95"}
for name, key in ratios.items():
    low, high = results[key]
    print(f"{name}: ratio [{low:.2f}, {high:.2f}]:", "falls" if high < 1 else "rises" if low > 1 else "no clear change")
for name in ("no_finetuning", "untrained_prompter", "align_pro"):
    parts = results["arms"][name]["variance_parts"]
    print(f"{ARMS[name][0]:15}", "  ".join(f"{part.replace('_', ' ')} {value:.2f}" for part, value in parts.items()))
assert FAST or (gain[0] > 0 and over[0] > 0 and results["variance_ratio_within_requests_ci95"][1] < 1)

# %% [markdown]
# Two ratios, because the learned reward is known only up to an offset b(x) for each request: it was learned from comparisons of
# two answers to the same x (tutorial 06). The variance *between* requests ("inputs") is therefore partly arbitrary, and it may
# grow where some requests gain more than others: here from 0.11 to 0.26. No offset changes the variance *within* requests:
# between the rewrites of one request, and within each rewrite.
#
# The part that falls is *within* a rewrite, from 0.88 to 0.40: the LM's own sampling. A good cue fixes the style of an answer,
# and what is fixed cannot vary. The variance between rewrites is 0 without a prompter, 0.51 for ρ_sft, and 0.05 after RL.
#
# And the gold reward (the true one of this small world), which nothing was trained on?

# %%
gold = results["gold_variance_ratio_ci95"]
print(f"gold variance: ratio [{gold[0]:.2f}, {gold[1]:.2f}]:", "falls too" if gold[1] < 1 else "no clear fall")

# %% [markdown]
# ## When does it fall, and when not?
#
# Take one request. R is the mean reward of a rewrite, and V the variance of the rewards of its answers. Look at the optima
# ρ_η = ρ_sft exp(ηR) / Z, η = 1/λ ("eta"): η = 0 is ρ_sft, and a larger η means a smaller penalty. E, Var and Cov are over
# rewrites drawn from ρ_η. The derivative of ln ρ_η with respect to η is R − d ln Z/dη, and d ln Z/dη = E[R]. So for any
# number f of a rewrite
#
# $$\frac{d E[f]}{d\eta} = \sum \rho_\eta (R - E[R]) f = \mathrm{Cov}(f, R)$$
#
# With f = R this is Var(R), with f = V it is Cov(V, R). For Var(R) = E[R²] − E[R]² it gives Cov(R², R) − 2 E[R] Var(R), which
# is the third cumulant κ₃(R) = E[(R − E[R])³]:
#
# $$\frac{d E[R]}{d\eta} = \mathrm{Var}(R) \ge 0 \qquad \frac{d \mathrm{Var}(R)}{d\eta} = \kappa_3(R) \qquad \frac{d E[V]}{d\eta} = \mathrm{Cov}(V, R)$$
#
# The mean can only rise. The variance *between* rewrites rises at first where good rewrites are rare: then κ₃ > 0 at η = 0. The
# variance *within* falls only if better rewrites are also steadier, with a smaller V: Cov(V, R) < 0. Two worlds with the same
# means R. In one the better rewrites are steadier, in the other they are gambles: better on average, but their answers vary
# more.

# %%
lams = np.geomspace(5, 0.05, 40)
R = np.array([[0.0, 0.3, 0.6, 1.0]])
steady, gamble = np.array([[0.9, 0.7, 0.5, 0.2]]), np.array([[0.2, 0.5, 0.7, 0.9]])  # V: variance within each rewrite
even = np.full((1, 4), 0.25)
curves = {}
for name, V in (("good rewrites are steady", steady), ("good rewrites are gambles", gamble)):
    along = [theory.along_eta(even, R, V, 1 / lam) for lam in lams]
    curves[name] = [a["between_rewrites"] + a["within"] for a in along]
figure, ((left, right),) = axes(1, 2, (10, 3.4))
for (name, values), colour, V in zip(curves.items(), (BLUE, ORANGE), (steady, gamble)):
    left.plot(1 / lams, values, color=colour, label=name)
    left.axhline(V[0, 0], color=colour, linestyle="--", linewidth=0.8)
left.set(
    xscale="log", xlabel="η = 1 / λ", ylabel="Var(R) + E[V], one request", title="dashed: no fine-tuning (rewrite 1)"
)
left.legend(frameon=False, fontsize=8)
flat = {name: np.ravel(arms[name].reward) for name in ("no_finetuning", "align_pro")}
bins = np.histogram_bin_edges(np.concatenate(list(flat.values())), 40)
for name, values in flat.items():
    right.hist(values, bins, density=True, alpha=0.6, color=ARMS[name][1], label=ARMS[name][0])
right.set(xlabel="learned reward of an answer", ylabel="density", title="the shared run")
right.legend(frameon=False, fontsize=8)
show(figure)
assert curves["good rewrites are steady"][-1] < steady[0, 0] and curves["good rewrites are gambles"][-1] > gamble[0, 0]

# %% [markdown]
# Left: both worlds gain the same mean. Compare the right end of each curve with the dashed line of its colour. In one world
# the variance falls from 0.9 to 0.2, in the other it rises from 0.2 to 0.9. Right: low rewards have become rare, and one peak
# near 1.7 is new.
#
# ## Exercise ★★ (15 minutes): which way, before any RL
#
# Cov(V, R) can be computed from rewrites that are rated once, before anything is trained. Write it: rho, R and V are numpy arrays
# (N requests, K rewrites). Take the covariance under ρ(·|x) for each request, and return the mean over requests, one number.

# %% tags=["stub"]


def slope(rho, R, V):
    return None  # your code


# %%
h = 1e-4
within = lambda V, eta: theory.along_eta(even, R, V, eta)["within"]
check(slope, [(within(V, h) - within(V, -h)) / (2 * h) for V in (steady, gamble)], (even, R, steady), (even, R, gamble))
tables = [table.numpy() for table in (s.listing.rho_sft, s.listing.R, s.listing.V)]
if slope(*tables) is not None:
    print(f"24 listed rewrites of the shared run, under ρ_sft: slope {slope(*tables):.3f}")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def slope(rho, R, V):
#     mean = (rho * R).sum(1, keepdims=True)
#     return (rho * (R - mean) * V).sum(1).mean()
# ```
#
# −0.096 and 0.094; on the shared run −0.052: better rewrites are steadier. So the variance within falls at first as η grows from
# 0. At the end of the run it is lower, too: 0.40 for Align-Pro, 0.51 for ρ_sft.
# </details>
#
# ## Exercise ★ (5 minutes): another world
#
# In the world `--world.spread cue` plain requests get average answers, all of one kind, and an answer to a cue is of random
# style where the cue leaves it open. There, does the variance fall or rise?

# %% tags=["stub"]

prediction = None  # "falls" or "rises"

# %%
check(prediction, "rises")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# prediction = "rises"
# ```
#
# There good rewrites are gambles. [Twelve worlds](results/earlier-world.md) were measured, three seeds and three λ each: with
# `--world.spread cue` the variance rose in 52 of 54 prompters. `python train.py --world.spread cue --name cue` is one of them.
# </details>
#
# ## Questions
#
# 1. A variance ratio of 0.93 with the interval [0.80, 1.09]. What may you write?
# <details><summary>Answer</summary>
# "No evidence of a fall." Not "falls by 7 %", and not "does not fall" either.
# </details>
#
# 2. Suppose a paper says: Align-Pro reaches 0.9 of the oracle's gain. Which number must stand beside it?
# <details><summary>Answer</summary>
# The oracle's KL coefficient. With a larger one the oracle gains less, and the share grows.
# </details>
#
# 3. Why is the variance of the *learned* reward alone not convincing?
# <details><summary>Answer</summary>
# PPO was trained on it. A reward model with blind spots can report a small variance of answers that do vary.
# </details>
