# %% [markdown]
# # 12 · How far is PPO from the exact optimum?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/alignpro-mini/alignpro_mini/blob/main/tutorials/12_the_exact_optimum.ipynb)
#
# At the end you will know
#
# * the identity behind this package's strictest check: gap = λ · KL(ρ ‖ ρ\*);
# * how near PPO comes to ρ\*, as three numbers, and what each of them leaves out;
# * what an estimate of "the best possible" does when its numbers are noisy;
# * when a prompter is worth it: what the best fixed sentence achieves, without any training.
#
# Time: 40 minutes. You need: tutorials 01 and 11. If run first, it trains everything (about ten minutes on two cores).
#
# Builds on: [Align-Pro (Trivedi et al. 2025)](https://arxiv.org/abs/2501.03486); the closed form of the optimum:
# [Rafailov et al. 2023](https://arxiv.org/abs/2305.18290), appendix A.1.

# %% tags=["skip-execution", "remove-cell"]
# !test -d /content && git clone -q https://github.com/alignpro-mini/alignpro_mini /content/alignpro_mini && pip install -q --no-deps /content/alignpro_mini
# %cd -q /content/alignpro_mini/tutorials

# %%
import numpy as np
from lesson import BLUE, FAST, GREEN, GREY, ORANGE, axes, check, shared_run, show, source

from alignpro_mini import theory
from alignpro_mini.lab import optimum

# %% [markdown]
# ## The identity
#
# J_λ(ρ) = J(ρ) − λ KL(ρ‖ρ_sft) has the maximiser ρ\* = ρ_sft exp(R/λ) / Z (tutorial 01). Take the logarithm, and solve for R:
# R = λ ln(ρ\*/ρ_sft) + λ ln Z. Let μ be *any* prompter, for instance a trained one. Put this R into J_λ(μ). The two terms
# with ln ρ_sft cancel, and Σ μ = 1:
#
# $$J_\lambda(\mu) = \sum \mu \left(\lambda \ln \frac{\rho^*}{\rho_\mathrm{sft}} + \lambda \ln Z\right) - \lambda \sum \mu \ln \frac{\mu}{\rho_\mathrm{sft}} = \lambda \ln Z - \lambda \thinspace \mathrm{KL}(\mu \Vert \rho^*)$$
#
# At μ = ρ\* the KL is 0, so J_λ(ρ\*) = λ ln Z. What any prompter lacks to the best one, the *gap*, is exactly
#
# $$J_\lambda(\rho^*) - J_\lambda(\mu) = \lambda \thinspace \mathrm{KL}(\mu \Vert \rho^*)$$
#
# The two sides can be computed by different routes. If they differ, there is a bug. Three rewrites, by hand:

# %%
lam, R = 0.5, np.array([0.0, 1.0, 0.4])
rho_sft, mu = np.array([0.5, 0.2, 0.3]), np.array([0.2, 0.5, 0.3])
star = rho_sft * np.exp(R / lam) / (rho_sft * np.exp(R / lam)).sum()
objective = lambda rho: (rho * R).sum() - lam * (rho * np.log(rho / rho_sft)).sum()
left, right = objective(star) - objective(mu), lam * (mu * np.log(mu / star)).sum()
print(f"gap {left:.6f} = λ KL {right:.6f}")
assert abs(left - right) < 1e-12
source(theory.closeness)
distance = theory.closeness(mu[None], rho_sft[None], R[None], lam)
assert abs(distance["regularised_gap"] - left) < 1e-12
assert abs(distance["lambda_kl_to_optimum"] - right) < 1e-12

# %% [markdown]
# ## The trained prompter
#
# Each held-out request (not used in training) has 24 listed rewrites: three phrasings, each with one of eight cues. A *cue* is a
# sentence at the end, such as "Be kind."; one of the eight is empty. The frozen LM answers each rewrite many times, the mean
# reward is R, and the probabilities under ρ_sft and ρ are computed by the models.
#
# The *attainable gain* is J_λ(ρ\*) − J_λ(ρ_sft). The share says how much of it PPO took.

# %%
s = shared_run("listing")
listing, lam = s.listing, s.config.ppo.kl_coef
facts = optimum.describe(listing, lam)
assert abs(facts["regularised_gap"] - facts["lambda_kl_to_optimum"]) < 1e-6
print(f"gap {facts['regularised_gap']:.6f} = λ KL {facts['lambda_kl_to_optimum']:.6f}")
share = facts["attainable_gain_share"]
print(f"share of the attainable gain: {share:.2f}")
assert FAST or share > 0.8

# %% [markdown]
# ## What the share leaves out
#
# **Noise.** R is a mean of 16 to 96 answers (the best third of a request's rewrites gets the further 80). ρ\* prefers what came
# out high by chance, so on average the estimated optimum is too high, and the share too low. The remedy is *cross-fitting*:
# compute ρ\* from one half of the answers, and rate it by the other half. Such a ρ\* could really be built, but it was chosen by
# fewer answers, so on average its value is too low, and the share too high. So the two shares enclose the true one, on average.
# A demonstration where the truth is known: 200 requests, 24 rewrites, and the noise of one answer has standard deviation 1.

# %%
rng = np.random.default_rng(0)
true_R, even = rng.normal(size=(200, 24)), np.full((200, 24), 1 / 24)
best = float(theory.regularised_value(theory.optimal_prompter(even, true_R, 0.3), even, true_R, 0.3))
noisy, crossed = [], []
counts = (2, 4, 8, 16, 32, 64)
for M in counts:
    halves = [true_R + rng.normal(size=true_R.shape) / np.sqrt(M / 2) for _ in range(2)]
    both = sum(halves) / 2
    noisy.append(float(theory.regularised_value(theory.optimal_prompter(even, both, 0.3), even, both, 0.3)))
    pairs = [
        theory.regularised_value(theory.optimal_prompter(even, a, 0.3), even, b, 0.3) for a, b in (halves, halves[::-1])
    ]
    crossed.append(float(sum(pairs)) / 2)
assert all(a > best > b for a, b in zip(noisy, crossed))

# %% [markdown]
# **Rewrites that are not in the list.** A prompter also writes texts that are not among the 24. The share is computed on the 24
# alone. If ρ gives another total probability to all other texts than ρ_sft does, that costs KL, too, and `..._less_unlisted`
# takes it off.

# %%
names = ("attainable_gain_share", "attainable_gain_share_cross_fitted", "attainable_gain_share_less_unlisted")
figure, ((left, right),) = axes(1, 2, (10, 3.5))
left.plot(counts, noisy, "o-", color=ORANGE, label="rated by the answers that chose it")
left.plot(counts, crossed, "o-", color=BLUE, label="rated by other answers")
left.axhline(best, color=GREEN, label="the true optimum")
left.set(xscale="log", xlabel="answers to a rewrite", ylabel="J_λ of the optimum", title="200 requests with known R")
left.set_xticks(counts, [str(M) for M in counts])
left.minorticks_off()
left.legend(frameon=False, fontsize=8)
star = theory.optimal_prompter(listing.rho_sft, listing.R, lam)
cues = s.world.cues
by_cue = lambda table: table.mean(0).view(-1, len(cues)).sum(0)  # the three phrasings together: (8,)
order = by_cue(star).argsort(descending=True).tolist()
for shift, table, colour, label in (
    (-0.27, listing.rho_sft, GREY, "ρ_sft"),
    (0, listing.rho, BLUE, "ρ (PPO)"),
    (0.27, star, GREEN, "ρ*"),
):
    right.bar([i + shift for i in range(len(cues))], by_cue(table)[order], 0.25, color=colour, label=label)
right.set_xticks(range(len(cues)), [cues[i] or "(no cue)" for i in order], rotation=35, ha="right", fontsize=8)
right.set(ylabel="probability of the cue", title=f"mean of {len(listing.requests)} held-out requests")
right.legend(frameon=False, fontsize=8)
show(figure)
for name in names:
    print(f"{name} {facts[name] or 0:.2f}")
phrasing = lambda table: table.view(len(table), -1, len(cues)).sum(2)  # (N, 3), all cues together
for name, table in (("ρ_sft", listing.rho_sft), ("PPO", listing.rho), ("ρ*", star)):
    print(f"{name:5} keeps the phrasing of x: {float(phrasing(table)[:, 0].mean()):.2f}")
print("mean R of each phrasing:", [round(float(r) / len(cues), 3) for r in phrasing(listing.R).mean(0)])
print(f"λ KL of the phrasings: {lam * float(theory.kl(phrasing(listing.rho), phrasing(star)).mean()):.3f}")

# %% [markdown]
# Left: with few answers the optimum that is rated by its own answers has a J_λ that no prompter reaches. Right: PPO writes the
# cues nearly as often as the exact optimum does. It never saw this table. Where is the gap, then? ρ\* keeps the phrasing of x
# about as often as ρ_sft does (0.51), PPO seldom (0.19). The phrasing changes the mean reward by less than 0.01, so leaving it
# costs KL and gains nothing. KL(ρ‖ρ\*) is the KL of the phrasings plus the mean KL of the cues given the phrasing (the chain
# rule). The first part alone is 0.056 of the gap of 0.073.
#
# ## When is a prompter worth it?
#
# A fixed sentence after every request needs no training and no prompter. Before you read on, write the best one that you can
# think of. The requests are about towns: for a school report, for a holiday, for a birthday card, for a headline.
#
# ## Exercise ★ (5 minutes): your own sentence
#
# It is right if the mean reward rises by more than 0.2. From here on rewards have no KL taken off. The LM samples its answers, so
# your numbers differ from those below by a few hundredths.

# %% tags=["stub"]

own = None  # your sentence, in quotes

# %%
requests = listing.requests[: 8 if FAST else 64]


def reward_of(prompter, answers=4 if FAST else 16):
    """Mean reward of the answers to prompter(x), and half of its 95 % interval over the requests."""
    asked = [x for x in requests for _ in range(answers)]
    texts = [answer.text for answer in s.pi_f.answer([prompter(x) for x in asked])]
    each = s.reward.train(asked, texts).view(len(requests), answers).mean(1)
    return float(each.mean()), 1.96 * float(each.std()) / len(requests) ** 0.5


plain, about = reward_of(lambda x: x)
print(f"{plain:6.2f} ± {about:.2f}  nothing added")
mine = None
if own is not None:
    mine, about = reward_of(lambda x: f"{x} {own}")
    print(f"{mine:6.2f} ± {about:.2f}  your sentence")
check(mine and (FAST or mine > plain + 0.2), True)
R = listing.R
fixed, ours, best = R.mean(0).max(), theory.value(listing.rho, R), theory.value(star, R)
print(f"{float(fixed):6.2f}  the best of the 24 fixed rewrites: {listing.rewrites[0][int(R.mean(0).argmax())]}")
print(f"{float(ours):6.2f}  PPO\n{float(best):6.2f}  ρ*")
print(f"request share, (PPO - fixed) / (ρ* - fixed): {float((ours - fixed) / (best - fixed)):.2f}")
assert FAST or ours > fixed + 0.1

# %% [markdown]
# <details><summary>Solution</summary>
#
# Of ten sentences that we tried, this one is the best:
#
# ```python
# own = "Just the facts."
# ```
#
# It has 0.32; "Just the facts. Be kind." has 0.30, "Be kind and tell me everything." 0.17. No sentence suits a headline (one
# fact, no warmth) *and* a holiday (all facts, much warmth).
# </details>
#
# The difference between the best fixed rewrite and ρ\* is what can be gained by reading the request, and the *request share*
# says how much of it PPO took. (Here PPO and ρ\* write one of the 24 rewrites, for 64 requests. Tutorial 13 has what the prompter
# really wrote, for 512 requests: the reward is a little lower, and the request share of the same 64 is 0.90.) In the world
# `--world.wishes false` the purpose decides nothing, and one sentence is enough: measure it before you train anything.
#
# ## Exercise ★★ (15 minutes): a rule of your own
#
# A prompter may also be written by hand. `rule(x)` gets the request, a string, and returns the string that is sent to the LM,
# such as f"{x} Be kind." Each purpose is named in the request: `print("\n".join(requests))`. The cues that the LM knows are in
# `s.world.cues`. It is right if the mean reward is more than 0.3 above that of the best fixed rewrite.

# %% tags=["stub"]


def rule(x):
    return None  # your code


# %%
mine = None
if rule(requests[0]) is not None:
    mine, about = reward_of(rule)
    print(f"{mine:6.2f} ± {about:.2f}  your rule; PPO {float(ours):.2f}")
check(mine and (FAST or mine > float(fixed) + 0.3), True)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def rule(x):
#     warm = any(word in x for word in ("holiday", "guests", "family", "card", "friend", "sister"))
#     long = any(word in x for word in ("report", "boss", "quiz", "holiday", "guests", "family"))
#     if warm:
#         return f"{x} Answer like a friendly guide." if long else f"{x} Be kind."
#     return f"{x} Give every detail." if long else f"{x} Just the facts."
# ```
#
# It has 1.01 ± 0.11: as much as ρ\* with 1.00, and not less than PPO with 0.96. So a prompter is worth its training where the
# best rewrite depends on the request *and* nobody can write the rule down. Here you could, because you were told what people
# want, and you knew the LM's cues. ρ_sft knew the cues, too. When to write which was found by PPO, from the reward alone.
# </details>
#
# ## Questions
#
# 1. In the task `attributes`, seed 0, the share is 0.89, and 1.07 if it is cross-fitted (see [results](results/README.md)). Is PPO
#    better than the optimum?
# <details><summary>Answer</summary>
# No: the cross-fitted optimum is a little worse than the true one, because half of the answers chose it.
# </details>
#
# 2. Is λ KL(ρ\*‖ρ) the gap, too? What does it punish?
# <details><summary>Answer</summary>
#
# It is not. It punishes ρ for giving up what ρ\* does, and is infinite where ρ gives such a rewrite 0. Try it on the three
# rewrites of the beginning.
# </details>
#
# 3. Why average R over answers, and not exp(r/λ)?
# <details><summary>Answer</summary>
# J contains E[r]. exp(r/λ) would favour rewrites whose answers vary (tutorial 01).
# </details>
