# %% [markdown]
# # 11 · Align-Pro, end to end
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/alignpro-mini/alignpro_mini/blob/main/tutorials/11_align_pro.ipynb)
#
# At the end you will know
#
# * how rewrite, answer and score become one number that PPO can maximise;
# * how to train a prompter with a few lines of library calls;
# * how to read the curves of such a run.
#
# Time: 30 minutes. You need: tutorials 05 to 10. If run first, it trains everything up to the prompter (about nine
# minutes).
#
# Builds on: [Align-Pro (Trivedi et al. 2025)](https://arxiv.org/abs/2501.03486); RL on a prompter before it: [Promptist
# (Hao et al. 2022)](https://arxiv.org/abs/2212.09611).

# %% tags=["skip-execution", "remove-cell"]
# !test -d /content && git clone -q https://github.com/alignpro-mini/alignpro_mini /content/alignpro_mini && pip install -q --no-deps /content/alignpro_mini
# %cd -q /content/alignpro_mini/tutorials

# %%
import copy
from dataclasses import replace

import torch
from lesson import BLUE, FAST, GREEN, ORANGE, Log, axes, check, shared_run, show, source

from alignpro_mini.alignpro import PromptScore, train_align_pro
from alignpro_mini.ppo import PPOTrainer

# %% [markdown]
# ## One score for a rewrite
#
# PPO knows prompts, completions and a score. In Align-Pro the completion is the *rewrite*, and its score is what happens
# next: the frozen LM answers it, and the reward model rates the answer **against the original request x**. If it rated
# the answer against x′, the prompter could change the question to one that is easy to answer.

# %%
s = shared_run("align_pro")
requests = s.world.train_requests[:3]
rewrites = [f"{x} Answer like a friendly guide." for x in requests]


def naive_score(requests, rewrites, generator):
    scores = []
    for x, x_prime in zip(requests, rewrites):
        [answer] = s.pi_f.answer([x_prime], generator)  # the LM sees x'
        scores.append(float(s.reward.train([x], [answer.text])))  # the reward sees x
    return scores


source(PromptScore.__call__)
# Greedy answers, so that both give the same: sampling would draw other numbers one by one than in a batch.
greedy = type(s.pi_f)(s.pi_f.model, s.tokenizer, replace(s.pi_f.sampling, temperature=0.0))
s.pi_f, sampled = greedy, s.pi_f
by_hand = naive_score(requests, rewrites, None)
torch.testing.assert_close(
    PromptScore(greedy, s.reward.train)(requests, rewrites), torch.tensor(by_hand), rtol=1e-3, atol=1e-3
)
s.pi_f = sampled

# %% [markdown]
# The training is a score, a trainer and one call. The trainer gets a copy of ρ_sft, which it changes, and ρ_sft itself as the
# reference of the KL. `Log` is a *stage*: where a trainer reports. Here PPO runs for few iterations, so that you can change
# things and try again.

# %%


def short_run(answers=1):
    curve = Log()
    generator = torch.Generator().manual_seed(0)
    config = replace(s.config.ppo, iterations=4 if FAST else 60, batch_size=16 if FAST else 64, lr=1.2e-3)
    score = PromptScore(s.pi_f, s.reward.train, generator, answers)
    rho, rho_sft = copy.deepcopy(s.rho_sft.model), s.rho_sft.model
    trainer = PPOTrainer(rho, rho_sft, s.tokenizer, score, config, generator)
    train_align_pro(trainer, s.world.train_requests, curve, s.world.gold)
    return curve.rows


def mean_of(rows, key):
    """One batch is noisy: the mean over some iterations."""
    return sum(row[key] for row in rows) / len(rows)


rows = short_run()
few = max(1, len(rows) // 6)
first, last = mean_of(rows[:few], "score_mean"), mean_of(rows[-few:], "score_mean")
print(f"score: {first:.2f} in the first iterations, {last:.2f} in the last ones")
assert FAST or last > first + 0.1
s.pi_f.assert_unchanged("align_pro")
print("and not one weight of the LM has changed")

# %% [markdown]
# ## The whole run
#
# The shared run has trained for longer. Its log has everything. These four curves belong on every page about RLHF:

# %%
log = [row for row in s.run.rows("metrics.jsonl") if row["stage"] == "align_pro"]
steps = [row["step"] for row in log]
figure, grid = axes(2, 2, (10, 5.4))
for ax, keys, label in (
    (grid[0, 0], ("score_mean",), "learned reward of the answers"),
    (grid[0, 1], ("gold_mean",), "gold reward, never trained on"),
    (grid[1, 0], ("kl_k1", "kl_k3", "kl_exact"), "KL to ρ_sft, nats a rewrite"),
    (grid[1, 1], ("clip_fraction", "explained_variance"), "clip fraction, explained variance"),
):
    for key, colour in zip(keys, (BLUE, ORANGE, GREEN)):
        values = [max(row[key], -1.0) for row in log]
        ax.plot(steps, values, color=colour, label=key)
    ax.set(xlabel="iteration", title=label)
    ax.legend(frameon=False, fontsize=8)
show(figure)

# %% [markdown]
# * The learned reward rises and levels off. Rising for ever would be suspicious.
# * The **gold** reward rises with it. If it fell while the learned one rises, the prompter would be exploiting errors of
#   the reward model: over-optimisation.
# * The KL rises from 0 and levels off where one more nat would cost more (λ) than it earns. Its three estimates agree; if
#   they did not, tokens would be scored in another way than they were sampled.
# * The clip fraction is small: the steps are not too large. The explained variance rises as the critic learns which
#   requests, and which rewrites, earn much. The rest is the LM's luck, which no value head can know beforehand.

# %%
if not FAST:
    begin, end = log[:20], log[-20:]
    assert mean_of(end, "gold_mean") > mean_of(begin, "gold_mean") + 0.4 and mean_of(end, "kl_k1") > 0.5
    assert abs(mean_of(end, "kl_k1") - mean_of(end, "kl_exact")) < 0.3

# %% [markdown]
# ## Before and after

# %%
x = s.world.eval_requests[:3]
for name, prompter in (("ρ_sft", s.rho_sft), ("ρ", s.rho)):
    texts = prompter.rewrite(x, torch.Generator().manual_seed(3))
    for request, text in zip(x, texts):
        print(f"{name:5}  {request}  →  {text}")

# %% [markdown]
# ## Exercise ★★ (15 minutes): two answers a rewrite
#
# `answers=2` lets the LM answer each rewrite twice; the score is the mean of both rewards. Scores of one request vary for two
# reasons (tutorial 07): `between` is the variance between its rewrites, `within` the variance of the answers to one of them.
# PPO learns from the mean over a batch. How large is the variance of this mean with `answers` answers to each rewrite,
# divided by that with one? Return two numbers: for as many rewrites in the batch, and for as many *answers* in the batch.

# %% tags=["stub"]


def noise(between, within, answers):
    return None  # your code


# %%
check(noise, [(0.75, 1.5), (0.5645, 2.2581)], (1.0, 1.0, 2), (0.39, 0.54, 4), within=1e-4)

# %%
twice = short_run(answers=2)
with_two = mean_of(twice[-few:], "score_mean")
print(f"after as many iterations: {last:.2f} with one answer a rewrite, {with_two:.2f} with two")

# %% [markdown]
# <details><summary>Solution</summary>
#
# A score has the variance between + within / answers. With as many rewrites this is divided by between + within. With as many
# answers there are fewer rewrites, `answers` times fewer, and the variance of the mean is as many times larger.
#
# ```python
# def noise(between, within, answers):
#     few = (between + within / answers) / (between + within)
#     return few, answers * few
# ```
#
# With ρ_sft's parts, about 0.4 and 0.5, a second answer takes away a quarter of the variance. For the price of that answer
# another rewrite takes away half of it: at an equal number of answers one answer each is best, whatever the two parts are. The
# two runs under the stub are one each; they show no small difference.
# </details>
#
# ## Questions
#
# 1. The prompter writes an empty rewrite. What is sent to the LM?
# <details><summary>Answer</summary>
# The request x itself, and the share of such fallbacks is logged. An empty prompt has no answer that could be rated.
# </details>
#
# 2. How does the RLHF oracle of `train.py` differ from Align-Pro?
# <details><summary>Answer</summary>
# Its policy is a copy of the LM, its completion is the answer, its score is the reward of that answer. PPO is the same
# code, with the same options.
# </details>
#
# 3. Why may the frozen LM be a model behind an API?
# <details><summary>Answer</summary>
# Align-Pro needs its answers only: no weights, no gradients, no log-probabilities.
# </details>
