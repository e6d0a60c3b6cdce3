# %% [markdown]
# # 02 · The transformer: a padded row equals the row alone
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/alignpro-mini/alignpro_mini/blob/main/tutorials/02_transformer.ipynb)
#
# At the end you will know
#
# * what attention computes, on three tokens, in ten lines;
# * how RoPE tells the model where a token stands;
# * why positions and the mask must be right, and how to test it in one line;
# * how one method serves training, a frozen trunk and sampling with a cache.
#
# Time: 50 minutes. You need: matrix products, softmax, complex numbers (a little).
#
# Builds on: [attention (Vaswani et al. 2017)](https://arxiv.org/abs/1706.03762), [RoPE (Su et al.
# 2021)](https://arxiv.org/abs/2104.09864).

# %% tags=["skip-execution", "remove-cell"]
# !test -d /content && git clone -q https://github.com/alignpro-mini/alignpro_mini /content/alignpro_mini && pip install -q --no-deps /content/alignpro_mini
# %cd -q /content/alignpro_mini/tutorials

# %%
import copy
import math

import torch
from lesson import BLUE, GREEN, ORANGE, PINK, axes, check, show, source

from alignpro_mini.generation import pad_left
from alignpro_mini.transformer import Attention, KVCache, Transformer, TransformerConfig, rope_table, rotate

# %% [markdown]
# ## Attention on three tokens
#
# Each token has a query q, a key k and a value v, of E numbers each. Token t looks at all tokens s ≤ t. It weighs
# them by softmax(q_t · k_s / √E), and takes the weighted mean of their values. That it may not look ahead is what makes
# the model *causal*: it predicts the next token, and must not see it. `Attention.attend` uses PyTorch's fused function.

# %%
torch.manual_seed(0)
config = TransformerConfig(vocab_size=24, d_model=8, n_layers=2, n_heads=2, max_len=32)
attention = Attention(config)
x = torch.randn(1, 3, 8)  # three tokens, 8 numbers each


def naive_attention(x, attention):
    T, heads, E = x.shape[1], attention.heads, attention.head_dim
    q, k, v = (part.view(T, heads, E) for part in attention.qkv(x[0]).split(heads * E, dim=-1))
    rows = []
    for t in range(T):
        mixed = []
        for h in range(heads):
            scores = torch.tensor([float(q[t, h] @ k[s, h]) / math.sqrt(E) for s in range(t + 1)])  # never s > t
            weights = scores.softmax(0)
            mixed.append(sum(w * v[s, h] for s, w in enumerate(weights)))
        rows.append(torch.cat(mixed))
    return attention.out(torch.stack(rows))[None]


source(Attention.forward)
source(Attention.attend)
with torch.no_grad():
    ours, theirs = naive_attention(x, attention), attention(x, None, None, None, 0)
torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)

# %% [markdown]
# ## Where does a token stand?
#
# Attention does not know the order: it is a sum. RoPE turns each pair of numbers of q and k by an angle that grows with
# the position. The score q_t · k_s then depends on how far apart t and s are, and on nothing else about their places.

# %%


def naive_rotate(pair, position, frequency):
    turned = complex(*pair) * complex(math.cos(position * frequency), math.sin(position * frequency))
    return [turned.real, turned.imag]


angles = torch.tensor([0.0, 1.0, 2.0])[None, None, :, None]  # positions 0, 1, 2, frequency 1
rope = torch.polar(torch.ones_like(angles), angles)
pairs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 2.0]])
by_hand = torch.tensor([naive_rotate(pair, t, 1.0) for t, pair in enumerate(pairs.tolist())])
torch.testing.assert_close(rotate(pairs[None, None], rope)[0, 0], by_hand)

q, k = torch.randn(2), torch.randn(2)
turn = lambda v, t: torch.tensor(naive_rotate(v.tolist(), t, 1.0))
print("q at 5, k at 3:", f"{turn(q, 5) @ turn(k, 3):.4f}", "   q at 12, k at 10:", f"{turn(q, 12) @ turn(k, 10):.4f}")
assert abs(turn(q, 5) @ turn(k, 3) - turn(q, 12) @ turn(k, 10)) < 1e-5

# %% [markdown]
# Pair i turns by θ^(−2i/E) at each step (θ = 10,000). `rope_table` holds the rotations of the first positions, complex numbers of
# length 1, and is made once for a shape of model.
#
# ## Padding
#
# A batch is a rectangle, and prompts are not equally long. So short ones are padded on the left. The mask is True on real
# tokens. Two things must hold, or the padding changes the answer:
#
# 1. nobody looks at padding: the key of a pad is masked;
# 2. positions are counted *along the mask*: the first real token has position 0, wherever it stands.

# %%
model = Transformer(config, torch.Generator().manual_seed(1)).eval()
with torch.no_grad():
    for p in model.parameters():
        p.mul_(4 if p.dim() > 1 else 1)  # freshly drawn weights are small, and hide bugs
prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
ids, mask = pad_left(prompts, pad_id=0)
print("positions\n", model._positions(ids, mask, None), sep="")
with torch.no_grad():
    batch = model(ids, mask)
    for row, prompt in zip(batch, prompts):
        alone = model(torch.tensor([prompt]))[0]
        torch.testing.assert_close(row[-len(prompt) :], alone, rtol=1e-4, atol=1e-4)
print("every padded row equals the row alone")

figure, ((left, right),) = axes(1, 2, (9.5, 3.6))
allowed = model._allowed(ids, mask, None)[0, 0]  # row 1: two pads, then three tokens
left.imshow(allowed, cmap="Blues", vmin=0, vmax=1.4)
left.grid(False)
names = ["pad", "pad", "5", "6", "7"]
left.set_xticks(range(5), names)
left.set_yticks(range(5), names)
left.set(xlabel="key: who is looked at", ylabel="query: who looks", title="allowed, prompt [5, 6, 7]")
shape = TransformerConfig(vocab_size=24, d_model=8, n_layers=1, n_heads=1, max_len=64)
for i, colour in enumerate((BLUE, ORANGE, GREEN, PINK)):
    turned = rope_table(shape, torch.device("cpu"), 40)[:, i]
    assert abs(turned[3].item() - complex(*naive_rotate([1.0, 0.0], 3, 10_000 ** (-2 * i / 8)))) < 1e-5
    right.plot(turned.real, color=colour, label=f"pair {i}")
right.set(xlabel="position", ylabel="cosine of the angle", title="RoPE: each pair turns at its own speed")
right.legend(frameon=False, fontsize=8, ncols=2, loc="lower left")
show(figure)

# %% [markdown]
# A padded row must equal the row alone: that is the one-line test of a transformer for RLHF. Much published code fails it.
#
# Left: a dark square means "may look". No real token looks at a pad. (A pad looks at itself: softmax over nothing would be
# NaN.) Right: fast pairs tell neighbours apart, slow ones tell near from far.
#
# ## One pass, for training, a frozen trunk and sampling
#
# `hidden` finds positions and mask, then runs the blocks. `forward` multiplies its result with the output matrix.

# %%
source(Transformer.hidden)

# %% [markdown]
# `start` and `stop` cut the pass in two: where the lower blocks are frozen, their states are computed once for many steps
# of training. A `cache` keeps the keys and values of earlier tokens: a row may go through the model in pieces.

# %%
with torch.no_grad():
    whole = model.hidden(ids, mask)  # (3, 5, 8)
    trunk = model.hidden(ids, mask, stop=1)  # below block 1
    torch.testing.assert_close(model.hidden(trunk, mask, start=1), whole)

    cache = KVCache(config, rows=3, max_len=5, like=model.embed.weight)
    cache.mask[:] = mask
    pieces = [model.hidden(piece, cache=cache) for piece in ids.split([3, 1, 1], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1)[mask], whole[mask], rtol=1e-4, atol=1e-4)
print("in two halves of the blocks, or in three pieces of the row: the same states")

# %% [markdown]
# ## Exercise ★★ (10 minutes): break the positions
#
# A common bug: positions are counted from the left edge of the row, pads included. Write it, with the arguments of
# `model._positions`. And predict: how many of the three prompts get other logits, in a model with RoPE ("llama"), and in one
# with a learned vector for each position that is added to the input ("gpt2")?

# %% tags=["stub"]


def broken_positions(x, mask, cache):
    return None  # integers, of the shape of `mask`


changed_prompts = {"llama": None, "gpt2": None}  # your prediction: 0 to 3 each

# %%
check(broken_positions(ids, mask, None), [[0, 1, 2, 3, 4]] * 3)
for family, predicted in changed_prompts.items():
    shape = TransformerConfig(24, 8, 2, 2, max_len=32, family=family)
    model = Transformer(shape, torch.Generator().manual_seed(1)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4 if p.dim() > 1 else 1)
    broken = copy.deepcopy(model)
    if broken_positions(ids, mask, None) is None:
        break  # not solved yet
    broken._positions = broken_positions
    with torch.no_grad():
        moved = (broken(ids, mask) - model(ids, mask))[:, -1].abs().amax(1)  # (3,) at the last token
    print(family, ["changed" if m > 1e-3 else "the same" for m in moved.tolist()])
    check(predicted, int((moved > 1e-3).sum()))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def broken_positions(x, mask, cache):
#     return torch.arange(mask.shape[1]).expand(mask.shape)
#
#
# changed_prompts = {"llama": 0, "gpt2": 2}
# ```
#
# With RoPE none changes: a shift of all positions of a row changes no distance. With GPT-2's learned positions the two padded
# rows change, and the longest prompt, which has no pads, does not. So this bug hides in one family of models and breaks the
# other.
# </details>
#
# ## Questions
#
# 1. Why do the logits at t predict token t + 1, and not token t?
# <details><summary>Answer</summary>
# The state at t has seen the tokens up to t. It may predict what comes next, never what it has seen.
# </details>
#
# 2. What does the cache keep during sampling, and what need not be kept?
# <details><summary>Answer</summary>
# Keys and values of all earlier tokens. Their queries are never asked again.
# </details>
#
# 3. A row consists of padding only. What does the model return for it?
# <details><summary>Answer</summary>
# Finite numbers that mean nothing: each pad looks at itself. Nobody reads them.
# </details>
