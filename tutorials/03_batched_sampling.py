# %% [markdown]
# # 03 · Batched sampling: log the distribution you drew from
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/alignpro-mini/alignpro_mini/blob/main/tutorials/03_batched_sampling.ipynb)
#
# At the end you will know
#
# * temperature and nucleus (top-p): which distribution is sampled;
# * how a batch is sampled: prefill, one token of each row after the other, rows that leave;
# * the commonest bug of RLHF code: sampling from one distribution and scoring with another.
#
# Time: 45 minutes. You need: tutorial 02, softmax.
#
# Builds on: [top-p sampling (Holtzman et al. 2020)](https://arxiv.org/abs/1904.09751).

# %% tags=["skip-execution", "remove-cell"]
# !test -d /content && git clone -q https://github.com/alignpro-mini/alignpro_mini /content/alignpro_mini && pip install -q --no-deps /content/alignpro_mini
# %cd -q /content/alignpro_mini/tutorials

# %%
import math

import torch
from lesson import BLUE, GREY, ORANGE, axes, check, show, source

from alignpro_mini.fast import sampling
from alignpro_mini.generation import decode, draw, generate, pad_left, prefill, sampling_logprobs, sequence_logprobs
from alignpro_mini.transformer import Transformer, TransformerConfig

# %% [markdown]
# ## From logits to a distribution
#
# The model gives a logit for each token. The temperature divides the logits before the softmax: below 1 the favourite
# gains, above 1 the others do. The nucleus keeps the smallest set of tokens whose mass reaches top_p, and nothing else.

# %%
logits = [2.0, 1.0, 0.5, -1.0]


def naive_distribution(logits, temperature, top_p):
    weights = [math.exp(z / temperature) for z in logits]
    p = [w / sum(weights) for w in weights]
    kept, mass = [], 0.0
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        if mass < top_p:  # the better tokens do not yet reach top_p
            kept.append(i)
        mass += p[i]
    total = sum(p[i] for i in kept)
    return [p[i] / total if i in kept else 0.0 for i in range(len(p))]


source(sampling_logprobs)
for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.8), (2.0, 0.9)):
    by_hand = torch.tensor(naive_distribution(logits, temperature, top_p))
    ours = sampling_logprobs(torch.tensor(logits), temperature, top_p).exp()
    torch.testing.assert_close(ours, by_hand)
    print(f"temperature {temperature}, top_p {top_p}: ", "  ".join(f"{v:.2f}" for v in ours.tolist()))

# %% [markdown]
# ## The whole sampler
#
# * **Prefill**: the prompts are padded on the left, so that the last token of each stands in the same column. They go through
#   the model once. Their keys and values stay in a cache; the last column gives the logits of the first new tokens.
# * **Draw**: lay the tokens side by side on a line from 0 to 1, each as wide as its probability. A uniform number hits one.
# * **Decode**: the new tokens go through the model alone; the cache has all that stands before them.
# * **Rows leave**: a row that wrote its EOS leaves the batch, and its keys and values leave the cache.
#
# All random numbers are drawn before the loop, and prompt i has a row of its own, `uniforms[i]`. So it does not matter
# which prompts share a batch, or when the others leave it.

# %%
prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
ids, mask = pad_left(prompts, pad_id=0)
print(ids, mask.int(), sep="\n")
source(generate)
source(prefill)
source(decode)
source(draw)

# %% [markdown]
# A tiny model with random weights. Each row must get exactly what it would get alone: no batch, no padding, no cache.

# %%
start = torch.Generator().manual_seed(0)
model = Transformer(TransformerConfig(vocab_size=24, d_model=32, n_layers=2, n_heads=4, max_len=64), start)
model = model.double()  # float64: rounding then decides no draw, so a batch and a row alone can be compared
with torch.no_grad():
    for parameter in model.parameters():
        parameter.mul_(8 if parameter.dim() > 1 else 1)  # larger weights: clear favourites
EOS = 3


def sample(prompts, seed=0, sampler=generate, **options):
    return sampler(model, prompts, 12, eos_id=EOS, generator=torch.Generator().manual_seed(seed), **options)


@torch.no_grad()
def naive_sample(prompt, uniforms, temperature):
    new = []
    while len(new) < len(uniforms) and EOS not in new:
        logits = model(torch.tensor([[*prompt, *new]]))[0, -1].tolist()  # everything again, for each token
        p = naive_distribution(logits, temperature, 1.0)
        new.append(next(i for i in range(len(p)) if sum(p[: i + 1]) > uniforms[len(new)]))
    return new


numbers = torch.rand(len(prompts), 12, generator=torch.Generator().manual_seed(0)).tolist()
for prompt, uniforms, completion in zip(prompts, numbers, sample(prompts, temperature=0.7)):
    assert naive_sample(prompt, uniforms, 0.7) == completion.tokens
    print(prompt, "→", completion.tokens, "" if completion.finished else " (truncated: no EOS)")

# %% [markdown]
# ## Score what you sampled
#
# PPO samples first and trains later. The log-probability of each sampled token is kept, and after the rollout the
# trainer computes it again. Both must come from the *same* distribution: then the first ratio π/π_old is exactly 1.

# %%
single_tokens = [[4 + i % 20] for i in range(64)]
rollout = sample(single_tokens, temperature=0.7)
kept = torch.tensor([sum(c.logprobs) for c in rollout])
again, wrong = (sequence_logprobs(model, single_tokens, [c.tokens for c in rollout], temperature=t) for t in (0.7, 1.0))
torch.testing.assert_close(again, kept, rtol=1e-4, atol=1e-4)
# Now the bug: somebody samples at temperature 0.7 and scores at 1, because "the model is the model".
ratio_right, ratio_wrong = (again - kept).exp(), (wrong - kept).exp()
assert (ratio_right - 1).abs().max() < 1e-3
assert (ratio_wrong < 0.9).float().mean() > 0.5, "most first ratios are far from 1 before any training"

# %% [markdown]
# Before the first optimiser step most ratios are far below 1: PPO's clip then throws away the gradient of a good part of
# the batch, and the KL to the reference is wrong by the same amount. No error is raised, and the loss goes down. It only
# learns worse. This is why the sampler and the scorer of this package call one function.
#
# The picture also shows why finished rows leave: one that stays costs as much as one that goes on.

# %%
long_run = sample([[4 + i % 20] for i in range(200)], temperature=1.5)
lengths = [len(c.tokens) for c in long_run]
alive = [sum(length > t for length in lengths) for t in range(12)]
figure, ((left, right),) = axes(1, 2, (9.5, 3.2))
left.step(range(1, 13), alive, where="mid", color=BLUE, label="rows alive")
left.axhline(200, color=GREY, linestyle="--", label="if all stayed")
left.set(xlabel="new token", ylabel="rows in the batch", ylim=(0, 215))
left.legend(frameon=False)
bins = [i / 20 for i in range(31)]
right.hist(ratio_right.clamp(max=1.5).tolist(), bins, color=BLUE, alpha=0.7, label="scored at 0.7, as sampled")
right.hist(ratio_wrong.clamp(max=1.5).tolist(), bins, color=ORANGE, alpha=0.7, label="scored at 1.0")
right.set(xlabel="first ratio of a completion", ylabel="completions of 64")
right.legend(frameon=False)
show(figure)

# %% [markdown]
# Left: the area under the curve is the work if finished rows leave. Right: at the right temperature all 64 ratios are 1.
#
# ## The same, sooner
#
# `fast/sampling.py` has a second `generate` with the same signature; `train.py` samples with it. Equal prompts and what
# all prompts begin with go through the model once, and so do equal continuations of a prompt. Padding that nobody needs
# any more leaves the cache. A GPU records the operations of a step and repeats the recording (a CUDA graph), because to
# start them one by one from Python takes longer than to run them. None of this may change what is sampled.

# %%
plain, fast = (sample(single_tokens, sampler=sampler) for sampler in (generate, sampling.generate))
assert [c.tokens for c in fast] == [c.tokens for c in plain]
print(f"{sum(len(c.tokens) for c in fast)} tokens of {len(single_tokens)} rows: the same from both samplers")

# %% [markdown]
# ## Exercise ★★ (15 minutes): the first ratio
#
# A token was sampled from `sampled`, a pair (temperature, top_p), and is scored by `scored`, another pair. What is its ratio
# before any training? Work out the first case on paper: logits (1, 0), token 0, sampled at temperature 0.5, scored at 1.
# Then write the function. You may use what stands on this page.

# %% tags=["stub"]


def first_ratio(logits, token, sampled, scored):
    return None  # your code


# %%
two, four = [1.0, 0.0], [2.0, 1.0, 0.5, -1.0]
cases = [(two, 0, (0.5, 1.0), (1.0, 1.0)), (four, 1, (1.0, 1.0), (1.0, 1.0)), (four, 1, (1.0, 0.8), (1.0, 1.0))]
check(first_ratio, [0.8300, 1.0, 0.8337, 0.0], *cases, (four, 3, (2.0, 1.0), (1.0, 0.8)), within=1e-4)

# %% [markdown]
# <details><summary>Solution</summary>
#
# On paper: sampled, softmax(2, 0) gives 0.881; scored, softmax(1, 0) gives 0.731. The ratio is 0.731 / 0.881 = 0.830.
#
# ```python
# def first_ratio(logits, token, sampled, scored):
#     return naive_distribution(logits, *scored)[token] / naive_distribution(logits, *sampled)[token]
# ```
#
# In the third case the nucleus was used for sampling alone: every ratio is the mass of the nucleus, 0.834 here. In the fourth
# it was used for scoring alone: the token has probability 0 there, its ratio is 0, and its log-probability −∞.
# </details>
#
# ## Questions
#
# 1. Two rows have the same prompt. Do they get the same completion?
# <details><summary>Answer</summary>
# No: each row has its own stream of random numbers. In the fast sampler the prompt goes through the model only once,
# though, and on a CPU two equal rows are computed once until they draw different tokens.
# </details>
#
# 2. With top_p = 0.9 a token outside the nucleus has probability 0. What is the KL to a reference whose nucleus lacks a
#    sampled token?
# <details><summary>Answer</summary>
# Infinite. So this package leaves the nucleus out when it reports a KL, and PPO samples without one.
# </details>
#
# 3. Why is a prompt padded on the left, but a training example on the right?
# <details><summary>Answer</summary>
# Sampling needs the last prompt tokens in one column. Training appends nothing, and with right padding a causal model
# needs no mask: no token can see what stands to its right.
# </details>
