"""One decoder-only transformer; GPT-2, Llama/SmolLM2, Qwen2 and Qwen3 are settings of it, not classes.

Shape legend:  B rows   T new tokens   S tokens attended to (cache + new)   V vocabulary
               D width   H query heads   G key/value heads   E width of a head

              GPT-2 family                          Llama family
    norm      LayerNorm (scale and shift)           RMSNorm (scale only)
    position  a learned vector added at the bottom  RoPE: q and k rotated in every layer
    MLP       up -> GELU -> down                    down(SiLU(gate) * up)
    heads     H key/value heads                     G <= H key/value heads, each shared by H/G queries

A mask is True on real tokens. Positions are counted *along the mask*, so a left-padded row gets the
same positions, and therefore the same logits, as the row alone.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignpro_mini.options import UserError, require

# For the whole process: new GPUs prefer cuDNN's attention, which plans anew for each shape, and so at every new token.
torch.backends.cuda.enable_cudnn_sdp(False)

FAMILIES = ("gpt2", "llama")


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """The shape of a `Transformer`; everything a checkpoint needs besides its weights."""

    vocab_size: int
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: int = 0  # 0: as many as n_heads
    head_dim: int = 0  # 0: d_model / n_heads
    d_ff: int = 0  # 0: 4 x d_model (GPT-2), or about 8/3 x d_model (Llama: three matrices instead of two)
    max_len: int = 256
    family: str = "llama"
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = True  # the output matrix is the embedding matrix
    qkv_bias: bool = False  # GPT-2 and Qwen2 have one, Llama has none
    qk_norm: bool = False  # Qwen3: an RMSNorm on each head's q and k
    rope_scaling: tuple[float, ...] = ()  # Llama 3: factor, low and high frequency factor, context before

    def __post_init__(self) -> None:
        set_ = lambda name, value: object.__setattr__(self, name, value)  # frozen: only here, once
        require(self.family in FAMILIES, f"family is {self.family!r}; it must be one of {', '.join(FAMILIES)}")
        if self.n_kv_heads == 0:
            set_("n_kv_heads", self.n_heads)
        if self.d_ff == 0:
            set_("d_ff", 4 * self.d_model if self.family == "gpt2" else (8 * self.d_model // 3 + 7) // 8 * 8)
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "max_len"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.head_dim == 0:
            told = f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}"
            require(self.d_model % self.n_heads == 0, told)
            set_("head_dim", self.d_model // self.n_heads)
        told = f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}"
        require(self.n_heads % self.n_kv_heads == 0, told)
        even = self.family == "gpt2" or self.head_dim % 2 == 0
        require(even, f"RoPE rotates pairs, so the head width {self.head_dim} must be even")
        require(not (self.qkv_bias and self.qk_norm), "no published family has qkv_bias and qk_norm: leave one out")
        if self.family == "gpt2":
            require(self.n_kv_heads == self.n_heads, "the GPT-2 family has no grouped heads: leave n_kv_heads out")
            own = self.qk_norm or self.rope_scaling or self.head_dim * self.n_heads != self.d_model
            require(not own, "the GPT-2 family has no qk_norm, rope_scaling or head_dim of its own: leave them out")
            set_("qkv_bias", True)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32 whatever the dtype (bf16 squares lose the small ones)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class KVCache:
    """Keys and values of the tokens seen so far, preallocated and written by index.

    Prompts are left-padded, so all rows share one write index `length`; `mask` (B, S_max) tells which
    slots hold real tokens. The caller sets it, for the new tokens too, before they go through the model
    (which then ignores its `mask` argument).
    """

    def __init__(self, config: TransformerConfig, rows: int, max_len: int, like: Tensor) -> None:
        shape = (2, config.n_layers, rows, config.n_kv_heads, max_len, config.head_dim)
        self.whole = torch.empty(shape, dtype=like.dtype, device=like.device)  # k and v, with room for more rows
        self.k, self.v = self.whole  # (layers, B, G, S_max, E) each
        self.mask = torch.zeros(rows, max_len, dtype=torch.bool, device=like.device)  # (B, S_max)
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new (B, G, T, E) keys and values of one layer; return all of them, (B, G, S, E)."""
        end = self.length + k.shape[2]
        self.k[layer, :, :, self.length : end] = k
        self.v[layer, :, :, self.length : end] = v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def spread(self, rows: Tensor, room: int, most: int) -> None:
        """Row i becomes a copy of what row rows[i] was (B',), with `room` slots after those in use (mask True).

        `keep` can make up to `most` rows of them.
        """
        used = self.whole[:, :, rows, :, : self.length]  # (2, layers, B', G, S, E)
        layers, _, heads, length, width = used.shape[1:]
        self.whole = used.new_empty(2, layers, most, heads, length + room, width)
        self.whole[:, :, : len(rows), :, :length] = used
        self.k, self.v = self.whole[:, :, : len(rows)]
        self.mask = F.pad(self.mask[rows, :length], (0, room), value=True)  # (B', S_max)

    def keep(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was (B'); leading slots that are padding in all of these are dropped.

        In place: only the rows that change their number are copied.
        """
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        self.whole[:, :, moved, :, : self.length] = self.whole[:, :, rows[moved], :, : self.length]
        mask = self.mask[rows]  # (B', S_max)
        lead = int(mask.any(dim=0).float().argmax())
        self.whole, self.mask = self.whole[..., lead:, :], mask[:, lead:]
        self.k, self.v = self.whole[:, :, : len(rows)]
        self.length -= lead


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        width = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
        self.qkv = nn.Linear(config.d_model, width, bias=config.qkv_bias)
        self.out = nn.Linear(config.n_heads * config.head_dim, config.d_model, bias=config.family == "gpt2")
        norm = lambda: RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.q_norm, self.k_norm = norm(), norm()

    def forward(self, x: Tensor, rope, allowed: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        """Causal self-attention, (B, T, D) -> (B, T, D); `layer` names this block's place in the cache."""
        B, T, D = x.shape
        q, k, v = self.qkv(x).split([n * self.head_dim for n in (self.heads, self.kv_heads, self.kv_heads)], dim=-1)
        q = self.q_norm(q.view(B, T, self.heads, self.head_dim)).transpose(1, 2)  # (B, H, T, E)
        k = self.k_norm(k.view(B, T, self.kv_heads, self.head_dim)).transpose(1, 2)  # (B, G, T, E)
        v = v.view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)  # (B, G, T, E)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (B, G, S, E)
            if T == 1:  # the H/G queries that share a key head go as rows of one product: no copies of k and v
                q = q.reshape(B, self.kv_heads, -1, self.head_dim)  # (B, G, H/G, E)
        y = attend(
            q, k, v, attn_mask=allowed, is_causal=allowed is None, enable_gqa=self.kv_heads != self.heads
        ).reshape(B, self.heads, T, self.head_dim)  # (B, H, T, E)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))


def attend(q: Tensor, k: Tensor, v: Tensor, **how) -> Tensor:
    """`F.scaled_dot_product_attention(q, k, v, **how)`; where a CPU trains in bfloat16, its gradient in float32."""
    y = F.scaled_dot_product_attention(q, k, v, **how)
    if q.dtype != torch.bfloat16 or q.device.type != "cpu" or not y.requires_grad:
        return y
    with torch.autocast("cpu", enabled=False):  # the kernel's own backward pass takes 4 times as long as this one
        exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), **how)
    return (exact + (y - exact).detach()).to(y.dtype)  # the value is y, bit by bit


class MLP(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        bias = config.family == "gpt2"
        self.gate = None if bias else nn.Linear(config.d_model, config.d_ff, bias=False)
        self.up = nn.Linear(config.d_model, config.d_ff, bias=bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(F.gelu(self.up(x), approximate="tanh"))
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1, self.attn = make_norm(config), Attention(config)
        self.norm2, self.mlp = make_norm(config), MLP(config)

    def forward(self, x: Tensor, rope, allowed: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        x = x + self.attn(self.norm1(x), rope, allowed, cache, layer)
        return x + self.mlp(self.norm2(x))


def make_norm(config: TransformerConfig) -> nn.Module:
    if config.family == "gpt2":
        return nn.LayerNorm(config.d_model, eps=config.norm_eps)
    return RMSNorm(config.d_model, config.norm_eps)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate the pairs (x_{2i}, x_{2i+1}) of each head by position x frequency_i: a product of complex numbers.

    x (B, H, T, E); rope (B, 1, T, E/2), complex, of length 1.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # (B, H, T, E/2)
    return torch.view_as_real(pairs * rope).flatten(-2).to(x.dtype)


class Transformer(nn.Module):
    """Decoder-only language model: `Transformer(config)(ids, mask) -> logits (B, T, V)`.

    ids (B, T) integers; mask (B, T), True on real tokens (None: all real). The logits at t predict the
    token at t+1. `generator` draws the initial weights (None: PyTorch's global one).
    Raises UserError for rows longer than `config.max_len`.
    """

    def __init__(self, config: TransformerConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = nn.Embedding(config.max_len, config.d_model) if config.family == "gpt2" else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = make_norm(config)
        self.unembed = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied:
            self.unembed.weight = self.embed.weight
        self._init_weights(generator)

    def _init_weights(self, generator: torch.Generator | None) -> None:
        # GPT-2's rule: N(0, 0.02) at width 768 (narrower models wider, as 1/sqrt(D)), and the two matrices that write
        # into the residual stream smaller by sqrt(2 x layers), so that its variance does not grow with depth.
        base = 0.02 * (768 / self.config.d_model) ** 0.5
        for name, p in self.named_parameters():
            if p.dim() == 2:
                std = base / (2 * self.config.n_layers) ** 0.5 if name.endswith(("out.weight", "down.weight")) else base
                nn.init.normal_(p, 0.0, std, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.unembed(self.hidden(ids, mask))  # (B, T, V)

    def hidden(
        self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None, start: int = 0, stop=None
    ) -> Tensor:
        """Blocks start to stop - 1 of ids (B, T) or states (B, T, D): (B, T, D); without `stop` with the last norm."""
        last = self.config.n_layers if stop is None else stop
        x = self.lower(x, mask, last, cache) if start == 0 else self._run(x, mask, start, last, cache)
        return x if stop is not None else self.upper(x, mask, last, cache)

    def lower(self, ids: Tensor, mask: Tensor | None, depth: int, cache: KVCache | None = None) -> Tensor:
        """Embedding and the first `depth` blocks: (B, T) ids -> (B, T, D). A frozen trunk is run once by this.

        Raises UserError when the rows do not fit the context.
        """
        S = ids.shape[1] + (cache.length if cache is not None else 0)
        if S > self.config.max_len:
            raise UserError(f"{S} tokens do not fit the context of {self.config.max_len}: shorten the prompt")
        x = self.embed(ids)  # (B, T, D)
        if self.positions is not None:
            x = x + self.positions(self._positions(ids, mask, cache))  # (B, T, D)
        return self._run(x, mask, 0, depth, cache)

    def upper(self, x: Tensor, mask: Tensor | None, depth: int, cache: KVCache | None = None) -> Tensor:
        """The blocks from `depth` on and the last norm: `upper(lower(ids, m, d), m, d) == hidden(ids, m)`."""
        x = self._run(x, mask, depth, self.config.n_layers, cache)
        if cache is not None:
            cache.length += x.shape[1]
        with self._precision():
            return self.norm(x).to(x.dtype)

    def trunk(self, ids: Tensor, mask: Tensor | None, train_layers: int) -> Tensor:
        """What lies below the top `train_layers` blocks, without gradients: (B, T, D); the ids if all train (0)."""
        if train_layers == 0:
            return ids
        with torch.no_grad():
            return self.lower(ids, mask, self.config.n_layers - train_layers)

    def top(self, features: Tensor, mask: Tensor | None, train_layers: int) -> Tensor:
        """Last hidden states (B, T, D) from what `trunk` returned: `top(trunk(ids, m, k), m, k) == hidden(ids, m)`."""
        if train_layers == 0:
            return self.hidden(features, mask)
        return self.upper(features, mask, self.config.n_layers - train_layers)

    def _run(self, x: Tensor, mask: Tensor | None, start: int, stop: int, cache: KVCache | None) -> Tensor:
        if start == stop:
            return x
        rope = self._rope(self._positions(x, mask, cache)) if self.config.family == "llama" else None
        allowed = self._allowed(x, mask, cache)
        with self._precision():
            for layer in range(start, stop):
                x = self.blocks[layer](x, rope, allowed, cache, layer)
        return x

    def _precision(self) -> AbstractContextManager:
        """Blocks that train have float32 weights, even above a frozen trunk in bfloat16, and compute as it does.

        Without autocast's cache of converted weights: it would outlive the optimiser's step.
        """
        dtype = self.embed.weight.dtype
        if dtype == self.blocks[-1].norm1.weight.dtype:
            return nullcontext()
        return torch.autocast(self.device.type, dtype, cache_enabled=False)

    def _positions(self, x: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        """(B, T) index of each token among the real tokens of its row; padding before the first of them gets 0."""
        B, T = x.shape[:2]
        if cache is not None:
            return (cache.mask[:, : cache.length + T].cumsum(1) - 1).clamp(min=0)[:, cache.length :]
        if mask is None:
            return torch.arange(T, device=x.device).expand(B, T)
        return (mask.cumsum(1) - 1).clamp(min=0)

    def _allowed(self, x: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor | None:
        """(B, 1, T, S), True where query t may look at key s: s real and not later; None means plain causal.

        A padded query sees itself, too: a row of the softmax without any key would be NaN.
        """
        T = x.shape[1]
        if cache is not None:
            S = cache.length + T
            real = cache.mask[:, None, None, :S]  # (B, 1, 1, S)
        elif mask is not None:
            S = T
            real = mask[:, None, None, :]  # (B, 1, 1, S)
        else:
            return None
        query = torch.arange(S - T, S, device=x.device)[:, None]  # (T, 1)
        key = torch.arange(S, device=x.device)[None, :]  # (1, S)
        return (real & (key <= query)) | (key == query)  # (B, 1, T, S)

    def _rope(self, positions: Tensor) -> Tensor:
        half = self.config.head_dim // 2
        exponent = torch.arange(half, device=positions.device, dtype=torch.float32) / half
        frequency = self.config.rope_theta**-exponent  # (E/2,)
        if self.config.rope_scaling:  # a longer context: slow rotations get slower, fast ones stay
            factor, low, high, before = self.config.rope_scaling
            turns = before * frequency / (2 * torch.pi)  # within the former context
            keep = ((turns - low) / (high - low)).clamp(0, 1)
            frequency = frequency * (keep + (1 - keep) / factor)
        angles = positions[:, None, :, None].float() * frequency  # (B, 1, T, E/2)
        return torch.polar(torch.ones_like(angles), angles)  # (B, 1, T, E/2)

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device
