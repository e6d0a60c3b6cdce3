"""One decoding step with a KV cache against its bound: weights and keys read once, or the matrix products.

    python tests/benchmarks/decode.py --size 124m                          # minutes on two cores
    python tests/benchmarks/decode.py --size smollm2 --dtype bfloat16      # the shape of SmolLM2-135M, random weights

A step takes one new token of each row through all blocks and gives its logits; it is what the fast sampler repeats. Sampling
from the logits is timed beside it. Bytes: the weights of blocks and output matrix once, and the cache's keys and values
once. FLOPs: the matrix products at the peak measured for these rows. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json

import torch
from machine import bandwidth, device_name, forward_flops, gemm_peak, median_seconds, weights

from alignpro_mini.fast.sampling import FixedCache, SharedCache, recorded
from alignpro_mini.fast.transformer import FastTransformer
from alignpro_mini.generation import sampling_logprobs
from alignpro_mini.transformer import TransformerConfig

SHAPES = {
    "tiny": TransformerConfig(640, d_model=96, n_layers=2, n_heads=4, max_len=256),
    "124m": TransformerConfig(50_257, d_model=768, n_layers=12, n_heads=12, max_len=1024, family="gpt2"),
    "smollm2": TransformerConfig(49_152, d_model=576, n_layers=30, n_heads=9, n_kv_heads=3, d_ff=1536, max_len=2048),
}
CONTEXT = 64  # tokens in the cache before the step


@torch.no_grad()
def step_seconds(model: FastTransformer, rows: int, device: str) -> tuple[float, float]:
    """Seconds of a step up to the logits, and of drawing the next tokens from them; on a GPU both are replayed."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (rows, CONTEXT), generator=draw).to(device)
    where = torch.device(device)
    cache = SharedCache(model.config, rows, CONTEXT + 1, model.embed.weight)
    cache.mask.fill_(True)
    for part in ids.split(16, dim=1):  # in parts: a long prompt at once would take gigabytes at 512 rows
        model.hidden(part, cache=cache)

    if where.type == "cuda":
        cache = FixedCache(cache)

    def step() -> None:
        cache.length = CONTEXT  # every step writes the same slot
        logits.copy_(model.unembed(model.hidden(ids[:, :1], cache=cache)[:, -1]))

    few = rows if where.type == "cuda" else max(1, 2**20 // model.config.vocab_size)  # as the fast sampler does

    def sample() -> None:
        for part in logits.split(few):
            sampling_logprobs(part).exp().cumsum(-1)

    logits = torch.empty(rows, model.config.vocab_size, device=device, dtype=model.embed.weight.dtype)
    return median_seconds(recorded(step, where), device), median_seconds(recorded(sample, where), device)


def main() -> None:
    parser = argparse.ArgumentParser(description="a decoding step against the bound by bandwidth and arithmetic")
    parser.add_argument("--size", choices=tuple(SHAPES), default="124m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", default="1,8,64,512", help="rows, a list (default 1,8,64,512)")
    args = parser.parse_args()
    dtype, config = getattr(torch, args.dtype), SHAPES[args.size]
    model = FastTransformer(config, torch.Generator().manual_seed(0)).to(args.device, dtype).eval()
    speed, (blocks, output) = bandwidth(args.device), weights(config)
    print(
        f"memory: {speed / 1e9:.1f} GB/s\n\n  rows  step ms   bound ms  of the bound  bound by    sampling ms   tokens/s"
    )
    found = []
    for rows in map(int, args.batches.split(",")):
        seconds, sampling = step_seconds(model, rows, args.device)
        cached = 2 * config.n_layers * rows * (CONTEXT + 1) * config.n_kv_heads * config.head_dim
        reading = (blocks + output + cached) * dtype.itemsize / speed
        flops = rows * (forward_flops(config, [CONTEXT + 1], 1) - forward_flops(config, [CONTEXT], 0))
        peak = gemm_peak(dtype, args.device, rows, config.d_model, config.d_ff)
        counting = flops / peak
        bound, what = max((reading, "bandwidth"), (counting, "arithmetic"))
        row = {"rows": rows, "step_ms": 1e3 * seconds, "bound_ms": 1e3 * bound, "share": bound / seconds}
        row |= {"sampling_ms": 1e3 * sampling, "gemm_gflops": peak / 1e9}
        found.append({name: round(value, 3) for name, value in row.items()} | {"bound_by": what})
        told = f"{rows:6}{1e3 * seconds:9.2f}{1e3 * bound:11.2f}{bound / seconds:14.2f}  {what:10}"
        print(f"{told}{1e3 * sampling:13.2f}{rows / (seconds + sampling):11.0f}", flush=True)
    same = {"size": args.size, "dtype": args.dtype, "device": device_name(args.device)}
    same |= {"threads": torch.get_num_threads(), "gigabytes_per_s": round(speed / 1e9, 1)}
    print(json.dumps({"benchmark": "decode", "ratio": found[-1]["share"], "steps": found} | same))


if __name__ == "__main__":
    main()
