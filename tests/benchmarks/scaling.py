"""What sampling and a training step cost by batch, length, width and vocabulary, with fitted exponents.

    python tests/benchmarks/scaling.py --to tutorials/results/scaling.png  # minutes on two cores

One of the four is changed at a time, from a base of 32 rows, 64 tokens, 2 blocks of width 128, vocabulary 2,048. The
exponent is the slope of log seconds over log size, in the upper half of the sizes: 1 is proportional, 0 free.
Sampling: as many new tokens as the prompt has (half the length each). Training: the loss on all tokens. The last line
printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
from machine import device_name, median_seconds

from alignpro_mini.fast.sampling import generate
from alignpro_mini.fast.transformer import FastTransformer
from alignpro_mini.sft import answer_loss
from alignpro_mini.transformer import TransformerConfig

BASE = {"batch": 32, "length": 64, "width": 128, "vocabulary": 2048}
SIZES = {
    "batch": (4, 8, 16, 32, 64, 128, 256),
    "length": (16, 32, 64, 128, 256, 512),
    "width": (32, 64, 128, 256, 512, 1024),
    "vocabulary": (512, 2048, 8192, 32768, 131072),
}


def costs(batch: int, length: int, width: int, vocabulary: int, device: str) -> dict[str, float]:
    """Seconds of sampling and of a training step (forward and backward) at these sizes."""
    config = TransformerConfig(vocabulary, d_model=width, n_layers=2, n_heads=4, max_len=length)
    model = FastTransformer(config, torch.Generator().manual_seed(0)).to(device)
    draw = torch.Generator().manual_seed(1)
    rows = torch.randint(vocabulary, (batch, length), generator=draw).tolist()
    half = length // 2
    sampled = median_seconds(lambda: generate(model, [row[:half] for row in rows], half), device, rounds=3)
    pairs = [(row[:1], row[1:]) for row in rows]

    def step() -> None:
        answer_loss(model, pairs).backward()
        model.zero_grad(set_to_none=True)

    return {"sampling": sampled, "training step": median_seconds(step, device, rounds=3)}


def exponent(sizes: list[int], seconds: list[float]) -> float:
    upper = slice(len(sizes) // 2, None)
    return float(np.polyfit(np.log(sizes[upper]), np.log(seconds[upper]), 1)[0])


def draw_figure(found: dict, path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(14, 3.6), sharey=True, layout="constrained")
    for axis, (name, kinds) in zip(axes, found.items()):
        for kind, one in kinds.items():
            axis.loglog(SIZES[name], one["seconds"], "o-", label=f"{kind}: exponent {one['exponent']:.2f}")
        axis.set_xlabel(name)
        axis.set_xticks(SIZES[name], map(str, SIZES[name]), fontsize=7)
        axis.minorticks_off()
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds")
    figure.suptitle("Cost by batch, length (tokens), width and vocabulary; exponents of the upper half of the sizes")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="cost by batch, length, width and vocabulary, with exponents")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--to", help="a PNG to draw the figure into")
    args = parser.parse_args()
    found: dict[str, dict] = {}
    for name, sizes in SIZES.items():
        each = [costs(**BASE | {name: size}, device=args.device) for size in sizes]
        found[name] = {
            kind: {"seconds": (s := [one[kind] for one in each]), "exponent": exponent(list(sizes), s)}
            for kind in each[0]
        }
        for kind, one in found[name].items():
            times = ", ".join(f"{size}: {1000 * s:.0f}" for size, s in zip(sizes, one["seconds"]))
            print(f"{name:11}{kind:14} exponent {one['exponent']:5.2f}   ms {times}", flush=True)
    if args.to:
        draw_figure(found, args.to)
    rounded = {name: {kind: round(one["exponent"], 3) for kind, one in kinds.items()} for name, kinds in found.items()}
    print(json.dumps({"benchmark": "scaling", "exponents": rounded, "device": device_name(args.device)}))


if __name__ == "__main__":
    main()
