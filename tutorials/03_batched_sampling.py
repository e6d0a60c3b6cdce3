# %% [markdown]
# # 03 · Batched sampling: log the distribution you drew from
#
# At the end you will know
#
# * temperature and nucleus (top-p): which distribution is sampled;
# * why prompts are padded on the left, and why finished rows should leave the batch;
# * the commonest bug of RLHF code: sampling from one distribution and scoring with another.
#
# Time: 30 minutes. You need: tutorial 02, softmax.

# %% tags=["skip-execution"]
# !test -d /content && git clone -q https://github.com/alignpro-mini/alignpro_mini /content/alignpro_mini && pip install -q --no-deps /content/alignpro_mini
# %cd -q /content/alignpro_mini/tutorials

# %%
import math

import torch
from lesson import BLUE, GREY, ORANGE, axes, show, source

from alignpro_mini.generation import generate, pad_left, sampling_logprobs, sequence_logprobs
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
# ## A batch of prompts of different lengths
#
# New tokens are appended on the right. If the *last* prompt token of every row stands in the same column, one index
# serves all rows. So prompts are padded on the left:

# %%
prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
ids, mask = pad_left(prompts, pad_id=0)
print(ids)
print(mask.int())

# %% [markdown]
# A tiny model with random weights. Each row of the batch must get exactly what it would get alone. Otherwise the answer
# to your question would depend on who else asks.

# %%
draw = torch.Generator().manual_seed(0)
model = Transformer(TransformerConfig(vocab_size=24, d_model=32, n_layers=2, n_heads=4, max_len=64), draw)
with torch.no_grad():
    for p in model.parameters():
        p.mul_(8 if p.dim() > 1 else 1)  # larger weights: clear favourites
EOS = 3


def sample(prompts, seed=0, **how):
    return generate(model, prompts, 12, eos_id=EOS, generator=torch.Generator().manual_seed(seed), **how)


together = sample(prompts, temperature=0.0)  # greedy
for prompt, completion in zip(prompts, together):
    alone = sample([prompt], temperature=0.0)[0]
    assert completion.tokens == alone.tokens
    print(prompt, "→", completion.tokens, "" if completion.finished else " (truncated: no EOS)")

# %% [markdown]
# ## Score what you sampled
#
# PPO samples first and trains later. The log-probability of each sampled token is kept, and after the rollout the
# trainer computes it again. Both must come from the *same* distribution: then the first ratio π/π_old is exactly 1.

# %%
many = [[4 + i % 20] for i in range(64)]
rollout = sample(many, temperature=0.7)
kept = torch.tensor([sum(c.logprobs) for c in rollout])
tokens = [c.tokens for c in rollout]
again = sequence_logprobs(model, many, tokens, temperature=0.7)
torch.testing.assert_close(again, kept, rtol=1e-4, atol=1e-4)
print(
    f"largest difference: {(again - kept).abs().max():.0e}"
    if (again - kept).abs().max() > 1e-3
    else "equal to rounding"
)

# %% [markdown]
# Now the bug. Somebody samples at temperature 0.7 and scores at 1, because "the model is the model".

# %%
wrong = sequence_logprobs(model, many, tokens, temperature=1.0)
ratio_right, ratio_wrong = (again - kept).exp(), (wrong - kept).exp()
print(f"ratios, right: {ratio_right.min():.2f} to {ratio_right.max():.2f}")
assert (ratio_right - 1).abs().max() < 1e-3
assert (ratio_wrong < 0.9).float().mean() > 0.5, "most first ratios are far from 1 before any training"

# %% [markdown]
# Before the first optimiser step most ratios are far below 1: PPO's clip then throws away the gradient of a good part of
# the batch, and the KL to the reference is wrong by the same amount. No error is raised, and the loss goes down. It only
# learns worse. This is why the sampler and the scorer of this package call one function.
#
# ## Finished rows leave
#
# Rows end at different times. A row that has written its EOS and stays in the batch costs as much as one that goes on.

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
# Left: the area under the curve is the work if finished rows leave, under the dashed line if all stay. Right: with
# the right temperature all 64 ratios are 1.
#
# On a GPU it takes longer to start the small operations of one token from Python than to run them. So the GPU records
# them once and repeats the recording (a CUDA graph). For this every token needs the same shapes: attention goes over all
# slots of the cache, and the mask hides the empty ones. When rows leave, a new recording is needed.
#
# ## Exercise
#
# A token has logits (1, 0), and it was sampled at temperature 0.5. Predict the first ratio of token 1 if it is scored at
# temperature 1.
# <details><summary>Solution</summary>
#
# Sampled: softmax(2, 0) gives 0.881. Scored: softmax(1, 0) gives 0.731. Ratio 0.731 / 0.881 = 0.83.
# </details>

# %%
two = torch.tensor([1.0, 0.0])
ratio = (sampling_logprobs(two, 1.0) - sampling_logprobs(two, 0.5)).exp()[0]
print(f"ratio {ratio:.2f}")
assert abs(ratio - 0.83) < 0.005

# %% [markdown]
# ## Questions
#
# 1. Two rows have the same prompt. Do they get the same completion?
# <details><summary>Answer</summary>
# No: each row has its own stream of random numbers. The prompt goes through the model only once, though, and on a CPU
# two equal rows are computed once until they draw different tokens.
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
