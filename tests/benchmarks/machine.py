"""What a machine can do, and what a model's pass must do at least: the two sides of every bound in these benchmarks.

    bound = max(FLOPs / GEMM peak, bytes / memory bandwidth)        useful tokens only

Both peaks are measured in the run that uses them: the machines that we have differ from day to day.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from alignpro_mini.fast.sampling import recorded
from alignpro_mini.transformer import TransformerConfig


def median_seconds(call: Callable[[], object], device: str = "cpu", rounds: int = 7, least: float = 0.1) -> float:
    """Median seconds of a call; each round repeats it until it takes `least` seconds."""

    def timed(repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / repeats

    timed(1)  # the first call allocates and picks kernels
    repeats = max(1, round(least / max(timed(1), 1e-6)))
    return statistics.median(timed(repeats) for _ in range(rounds))


@torch.no_grad()
def gemm_peak(dtype: torch.dtype, device: str, m: int = 2048, k: int = 2048, n: int = 2048) -> float:
    """FLOP/s of (m, k) times (k, n), as `nn.Linear` computes it."""
    x, w = torch.randn(m, k, device=device, dtype=dtype), torch.randn(n, k, device=device, dtype=dtype)
    many = 50 if device.startswith("cuda") else 1  # recorded together: starting a small one takes longer than it runs

    def products() -> None:
        for _ in range(many):
            torch.nn.functional.linear(x, w)

    return 2 * m * k * n * many / median_seconds(recorded(products, torch.device(device)), device)


def bandwidth(device: str, mebibytes: int = 512) -> float:
    """Bytes/s read from memory by a sum over more than any cache holds."""
    x = torch.ones(mebibytes * 2**18, device=device)
    return x.numel() * x.element_size() / median_seconds(x.sum, device)


def weights(config: TransformerConfig) -> tuple[int, int]:
    """Numbers in the matrices of all blocks, and in the output matrix."""
    head = config.head_dim * config.d_model
    attention = head * (2 * config.n_heads + 2 * config.n_kv_heads)
    matrices = 2 if config.family == "gpt2" else 3
    return config.n_layers * (attention + matrices * config.d_model * config.d_ff), config.vocab_size * config.d_model


def forward_flops(config: TransformerConfig, lengths: Sequence[int], predicted: int) -> float:
    """FLOPs of a forward pass over rows of these lengths, whose logits are needed at `predicted` positions in all.

    Attention counts what a causal query reaches. A training step takes three times as many.
    """
    blocks, output = weights(config)
    pairs = sum(length * (length + 1) / 2 for length in lengths)  # (query, key)
    attention = 4 * pairs * config.n_heads * config.head_dim * config.n_layers
    return 2 * blocks * sum(lengths) + 2 * output * predicted + attention


def sampling_bound(
    config: TransformerConfig, prompts: Sequence[int], answers: Sequence[int], dtype: torch.dtype, device: str
) -> float:
    """Seconds that sampling answers of these lengths to prompts of these lengths takes at least.

    One pass over all prompts at the peak of a large product; then, for each new token, the larger of two: weights of
    blocks and output and the cache of unfinished rows read once; their FLOPs at the peak measured for so many rows.
    """
    blocks, output = weights(config)
    speed, peaks, rows = bandwidth(device), {}, 1
    while rows < 2 * len(prompts):  # by powers of two: the next one above is used
        peaks[rows] = gemm_peak(dtype, device, rows, config.d_model, config.d_ff)
        rows *= 2
    seconds = forward_flops(config, prompts, len(prompts)) / gemm_peak(dtype, device)
    for step in range(1, max(answers)):  # the first token comes from the prompts' pass
        lengths = [p + step for p, a in zip(prompts, answers) if a > step]
        cached = 2 * config.n_layers * sum(lengths) * config.n_kv_heads * config.head_dim
        reading = (blocks + output + cached) * dtype.itemsize / speed
        flops = forward_flops(config, lengths, len(lengths)) - forward_flops(config, [n - 1 for n in lengths], 0)
        seconds += max(reading, flops / peaks[1 << (len(lengths) - 1).bit_length()])
    return seconds


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device
