"""One decoder-only transformer; GPT-2, Llama, SmolLM2, Qwen2 and Qwen3 are settings of it.

Shape legend:  B rows   T new tokens   S tokens attended to (cache + new)   V vocabulary
               D width   H query heads   G key/value heads   E width of a head

              GPT-2 family                          Llama family
    norm      LayerNorm (scale and shift)           RMSNorm (scale only)
    position  a learned vector added at the bottom  RoPE: q and k rotated in every layer
    MLP       up -> GELU -> down                    down(SiLU(gate) * up)
    heads     H key/value heads                     G <= H of them, each shared by H/G query heads

There is no dropout: a model computes the same in training mode and in eval mode.

A mask is True on real tokens. Positions are counted *along the mask*, so a left-padded row gets the
same positions, and therefore the same logits, as the row alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignpro_mini.options import UserError, require

FAMILIES = ("gpt2", "llama")


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """The shape of a `Transformer`; everything a checkpoint needs besides its weights."""

    vocab_size: int
    d_model: int = 128  # D
    n_layers: int = 4
    n_heads: int = 4  # H
    n_kv_heads: int = 0  # G; 0: as many as n_heads
    head_dim: int = 0  # E; 0: d_model / n_heads
    d_ff: int = 0  # width of the MLP; 0: 4 x D (GPT-2), about 8/3 x D (Llama: a third matrix)
    max_len: int = 256  # the context: longest row in tokens
    family: str = "llama"
    rope_theta: float = 10_000.0  # see `rope_table`
    norm_eps: float = 1e-5
    tied: bool = True  # the output matrix is the embedding matrix
    qkv_bias: bool = False  # GPT-2 and Qwen2 have one, Llama has none
    qk_norm: bool = False  # Qwen3: an RMSNorm on each head's q and k
    rope_scaling: tuple[float, ...] = ()  # Llama 3's four numbers: see `rope_table`

    def __post_init__(self) -> None:
        require(
            self.family in FAMILIES, f"family is {self.family!r}; use one of {', '.join(FAMILIES)}"
        )
        self._fill_in("n_kv_heads", self.n_heads)
        gpt2_width = 4 * self.d_model
        llama_width = (8 * self.d_model // 3 + 7) // 8 * 8
        self._fill_in("d_ff", gpt2_width if self.family == "gpt2" else llama_width)
        for name in "vocab_size d_model n_layers n_heads n_kv_heads d_ff max_len".split():
            value = getattr(self, name)
            require(value >= 1, f"{name} is {value}; it must be at least 1")
        if self.head_dim == 0:
            uneven = f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}"
            require(self.d_model % self.n_heads == 0, uneven)
            self._fill_in("head_dim", self.d_model // self.n_heads)
        uneven = f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}"
        require(self.n_heads % self.n_kv_heads == 0, uneven)
        if self.family == "gpt2":
            self._check_gpt2()
        else:
            odd = f"RoPE rotates pairs, so the head width {self.head_dim} must be even"
            require(self.head_dim % 2 == 0, odd)
        both = "no published family has qkv_bias and qk_norm: leave one out"
        require(not (self.qkv_bias and self.qk_norm), both)

    def _check_gpt2(self) -> None:
        grouped = "the GPT-2 family has no grouped heads: leave n_kv_heads out"
        require(self.n_kv_heads == self.n_heads, grouped)
        foreign = self.qk_norm or self.rope_scaling or self.head_dim * self.n_heads != self.d_model
        message = (
            "the GPT-2 family has no qk_norm, rope_scaling or head_dim of its own: leave them out"
        )
        require(not foreign, message)
        object.__setattr__(self, "qkv_bias", True)

    def _fill_in(self, name: str, default: int) -> None:
        """Replace a 0 by its default, once: afterwards the configuration is frozen."""
        if getattr(self, name) == 0:
            object.__setattr__(self, name, default)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in float32 whatever the dtype: squares in bfloat16 lose small ones."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class KVCache:
    """Keys and values of the tokens seen so far, preallocated and written by index.

    Prompts are left-padded, so all rows share one write index `length`; `mask` (B, S_max) is True
    on slots that hold real tokens. The caller sets it, for the new tokens too, before they go
    through the model (which then ignores its `mask` argument). `like` gives device and dtype.
    """

    def __init__(self, config: TransformerConfig, rows: int, max_len: int, like: Tensor) -> None:
        # (layers, B, G, S_max, E)
        shape = (config.n_layers, rows, config.n_kv_heads, max_len, config.head_dim)
        self.k = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.v = torch.empty_like(self.k)
        self.mask = torch.zeros(rows, max_len, dtype=torch.bool, device=like.device)  # (B, S_max)
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values (B, G, T, E); return all of them, (B, G, S, E)."""
        end = self.length + k.shape[2]
        self.k[layer, :, :, self.length : end] = k
        self.v[layer, :, :, self.length : end] = v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Only the rows of `rows` (B',) stay, in this order."""
        self.k = self.k[:, rows]  # (layers, B', G, S_max, E)
        self.v = self.v[:, rows]  # (layers, B', G, S_max, E)
        self.mask = self.mask[rows]  # (B', S_max)


class Attention(nn.Module):
    """Causal self-attention of H query heads over G key/value heads."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.n_heads
        self.kv_heads = config.n_kv_heads
        self.head_dim = config.head_dim
        width = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
        self.qkv = nn.Linear(config.d_model, width, bias=config.qkv_bias)
        bias = config.family == "gpt2"
        self.out = nn.Linear(config.n_heads * config.head_dim, config.d_model, bias=bias)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None,
        allowed: Tensor | None,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D); `layer` names this block's place in the cache.

        rope (B, 1, T, E/2): see `rotate`; None: positions were added at the bottom.
        allowed (B, 1, T, S): True where query t may look at key s; None: s <= t.
        """
        B, T, D = x.shape
        H = self.heads
        G = self.kv_heads
        E = self.head_dim
        q, k, v = self.qkv(x).split([H * E, G * E, G * E], dim=-1)  # (B, T, H*E), (B, T, G*E) twice
        q = self.q_norm(q.view(B, T, H, E)).transpose(1, 2)  # (B, H, T, E)
        k = self.k_norm(k.view(B, T, G, E)).transpose(1, 2)  # (B, G, T, E)
        v = v.view(B, T, G, E).transpose(1, 2)  # (B, G, T, E)
        if rope is not None:
            q = rotate(q, rope)
            k = rotate(k, rope)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (B, G, S, E)
        y = self.attend(q, k, v, allowed)  # (B, H, T, E)
        return self.out(y.transpose(1, 2).reshape(B, T, H * E))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
        """softmax(q k^T / sqrt(E)) v over the allowed keys; a key head serves H/G query heads.

        q (B, H, T, E), k and v (B, G, S, E), allowed (B, 1, T, S) -> (B, H, T, E).
        """
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=allowed,
            is_causal=allowed is None,
            enable_gqa=self.kv_heads != self.heads,
        )


class MLP(nn.Module):
    """(B, T, D) -> (B, T, D), each token by itself; the module's table has the two formulas."""

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
    """x + attention(norm(x)), then x + MLP(norm(x)): gradients reach the bottom along the sums."""

    attention: type[Attention] = Attention  # fast/transformer.py puts another class here

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = make_norm(config)
        self.attn = self.attention(config)
        self.norm2 = make_norm(config)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None,
        allowed: Tensor | None,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        x = x + self.attn(self.norm1(x), rope, allowed, cache, layer)  # (B, T, D)
        return x + self.mlp(self.norm2(x))  # (B, T, D)


def make_norm(config: TransformerConfig) -> nn.Module:
    if config.family == "gpt2":
        return nn.LayerNorm(config.d_model, eps=config.norm_eps)
    return RMSNorm(config.d_model, config.norm_eps)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate the pairs (x_{2i}, x_{2i+1}) of each head by position x frequency_i.

    A pair is a complex number: rotating it is a product. x (B, H, T, E) -> (B, H, T, E);
    rope (B, 1, T, E/2), complex, of length 1. Published checkpoints pair x_i with x_{i+E/2};
    weights/pretrained.py reorders the rows of q and k.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # (B, H, T, E/2)
    return torch.view_as_real(pairs * rope).flatten(-2).to(x.dtype)  # (B, H, T, E)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a table made in inference mode could not be used in training
def rope_table(config: TransformerConfig, device: torch.device, length: int) -> Tensor:
    """exp(i position frequency) of the first positions: (length, E/2), complex. Made once.

    frequency_i = theta^(-2i/E) (Su et al. 2021). `rope_scaling` is Llama 3's way to a longer
    context: (factor, low, high, former context). A rotation that turns more than `high` times
    within the former context stays. One that turns less than `low` times gets slower by `factor`.
    Those between get a mixture of both.
    """
    half = config.head_dim // 2
    exponent = torch.arange(half, device=device, dtype=torch.float32) / half  # (E/2,)
    frequency = config.rope_theta**-exponent  # (E/2,)
    if config.rope_scaling:
        factor, low, high, former_context = config.rope_scaling
        turns = former_context * frequency / (2 * torch.pi)  # (E/2,)
        keep = ((turns - low) / (high - low)).clamp(0, 1)  # (E/2,)
        frequency = frequency * (keep + (1 - keep) / factor)
    positions = torch.arange(length, device=device, dtype=torch.float32)  # (length,)
    angles = positions[:, None] * frequency  # (length, E/2)
    return torch.polar(torch.ones_like(angles), angles)


class Transformer(nn.Module):
    """Decoder-only language model: `Transformer(config)(ids, mask) -> logits (B, T, V)`.

    ids (B, T) integers; mask (B, T), True on real tokens (None: all real). The logits at t predict
    the token at t+1. `generator` draws the initial weights (None: PyTorch's global one).
    Raises UserError for rows longer than `config.max_len`.
    """

    block: type[Block] = Block  # fast/transformer.py puts others in the place of these two
    mixes_dtypes = False  # whether upper blocks may have another dtype than the lower ones

    def __init__(self, config: TransformerConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        learned = config.family == "gpt2"
        self.positions = nn.Embedding(config.max_len, config.d_model) if learned else None
        self.blocks = nn.ModuleList(self.block(config) for _ in range(config.n_layers))
        self.norm = make_norm(config)
        self.unembed = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied:
            self.unembed.weight = self.embed.weight
        self._init_weights(generator)

    def _init_weights(self, generator: torch.Generator | None) -> None:
        # GPT-2's rule: N(0, 0.02) at width 768 (narrower models wider, as 1/sqrt(D)), and the two
        # matrices that write into the residual stream smaller by sqrt(2 x layers), so that its
        # variance does not grow with depth.
        base = 0.02 * (768 / self.config.d_model) ** 0.5
        into_stream = base / (2 * self.config.n_layers) ** 0.5
        for name, p in self.named_parameters():
            if p.dim() == 2:
                std = into_stream if name.endswith(("out.weight", "down.weight")) else base
                nn.init.normal_(p, 0.0, std, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.unembed(self.hidden(ids, mask))  # (B, T, V)

    def hidden(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> Tensor:
        """Blocks `start` to `stop` (excluded) of the model: states (B, T, D).

        x: ids (B, T); for `start` > 0 the states (B, T, D) that block `start` reads.
        Without `stop` all blocks up to the top, and the last norm: the states that predict the next
        tokens. With it, the lower blocks can run once, and those above them many times:
        hidden(hidden(ids, mask, stop=k), mask, start=k) == hidden(ids, mask).
        With a cache, the rows continue what it holds. Raises UserError when they do not fit the
        context.
        """
        T = x.shape[1]
        S = T if cache is None else cache.length + T
        if S > self.config.max_len:
            raise UserError(
                f"{S} tokens do not fit the context of {self.config.max_len}: shorten the prompt"
            )
        positions = self._positions(x, mask, cache)  # (B, T)
        if start == 0:
            x = self.embed(x)  # (B, T, D)
            if self.positions is not None:
                x = x + self.positions(positions)  # (B, T, D)
        rope = None
        if self.config.family == "llama":
            length = 2 ** (S - 1).bit_length()  # few lengths, so that few tables are made
            rope = rope_table(self.config, x.device, length)[positions][:, None]  # (B, 1, T, E/2)
        allowed = self._allowed(x, mask, cache)  # (B, 1, T, S)
        last = self.config.n_layers if stop is None else stop
        for layer in range(start, last):
            x = self.blocks[layer](x, rope, allowed, cache, layer)  # (B, T, D)
        if stop is not None:
            return x
        if cache is not None:
            cache.length = S
        return self.norm(x)

    def _positions(self, x: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        """(B, T) index of each token among the real ones of its row; padding before them gets 0."""
        B, T = x.shape[:2]
        if cache is not None:
            return (cache.mask[:, : cache.length + T].cumsum(1) - 1).clamp(min=0)[:, cache.length :]
        if mask is None:
            return torch.arange(T, device=x.device).expand(B, T)
        return (mask.cumsum(1) - 1).clamp(min=0)

    def _allowed(self, x: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor | None:
        """(B, 1, T, S), True where query t may look at key s: s real and not later.

        None means plain causal. A padded query sees itself, too: a row of the softmax without any
        key would be NaN.
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

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device
