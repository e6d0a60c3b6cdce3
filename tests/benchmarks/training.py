"""A training step on ragged texts: ours against the plain padded loop, and against the arithmetic bound.

    python tests/benchmarks/training.py --size 124m              # minutes on two cores
    python tests/benchmarks/training.py --size tiny --rounds 7   # the model of `python train.py`

Two steps, each forward, backward and AdamW, on the same texts and equal weights:

    sft     next-token loss on the answers (`sft.answer_loss` in micro-batches of similar length)
    reward  Bradley-Terry loss on pairs of answers to one prompt (`reward.RewardModel`, the same micro-batches)

The padded loop does what a first version would: one batch, padded to its longest row, with a mask, the logits (rewards)
of all positions, then the loss on those that count. Checked first: equal gradients. Prompts have 8 to 48 tokens, answers
4 to 96, short ones more often (log-uniform). A full batch (rows of one length) is timed as well: that is where "share of
the GEMM peak" says how much is lost beside the matrix products. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time

import torch
import torch.nn.functional as F
from machine import device_name, forward_flops, gemm_peak

from alignpro_mini import rl_math, training
from alignpro_mini.fast.transformer import FastTransformer
from alignpro_mini.generation import by_length, pad_right
from alignpro_mini.reward import RewardModel
from alignpro_mini.sft import Encoded, answer_loss, micro_batches
from alignpro_mini.transformer import Transformer, TransformerConfig

SHAPES = {
    "tiny": TransformerConfig(640, d_model=96, n_layers=2, n_heads=4, max_len=160),
    "toy": TransformerConfig(2_048, d_model=128, n_layers=4, n_heads=4, max_len=160, family="gpt2"),
    "124m": TransformerConfig(50_257, d_model=768, n_layers=12, n_heads=12, max_len=1024, family="gpt2"),
}
ROWS = {"tiny": (32, 16), "toy": (32, 16), "124m": (16, 4)}  # of a batch, of a micro-batch


class NoTokenizer:
    """A reward model needs one for texts only; these rows are ids."""

    pad_id = 0


def texts(vocab_size: int, count: int, draw: random.Random, full: bool = False) -> list[Encoded]:
    ids = lambda length: [draw.randrange(1, vocab_size) for _ in range(length)]
    answer = lambda: round(math.exp(draw.uniform(math.log(4), math.log(96))))
    return [(ids(32), ids(32)) if full else (ids(draw.randint(8, 48)), ids(answer())) for _ in range(count)]


def our_sft(model: Transformer, batch: list[Encoded], micro: int) -> None:
    for part, share in micro_batches(batch, micro):
        (answer_loss(model, part) * share).backward()


def plain_sft(model: Transformer, batch: list[Encoded], micro: int) -> None:
    ids, mask = pad_right([[*p, *a] for p, a in batch], 0, model.device)  # (B, T)
    answer = torch.zeros_like(mask)
    for row, (p, a) in zip(answer, batch):
        row[len(p) : len(p) + len(a)] = True
    logits = model(ids, mask)[:, :-1]  # (B, T - 1, V)
    loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none").view_as(ids[:, 1:])
    ((loss * answer[:, 1:]).sum() / answer.sum()).backward()


def pairs_of(batch: list[Encoded]) -> list[tuple[list[int], list[int]]]:
    """Rows (chosen, rejected): the first half of a batch answers its prompts, the second half's answers lose."""
    half = len(batch) // 2
    return [([*p, *a], [*p, *b]) for (p, a), (_, b) in zip(batch[:half], batch[half:])]


def our_reward(model: RewardModel, batch: list[Encoded], micro: int) -> None:
    pairs = pairs_of(batch)
    for index in by_length([max(map(len, pair)) for pair in pairs], max(1, micro // 2)):
        rows = [pairs[i][0] for i in index] + [pairs[i][1] for i in index]
        chosen, rejected = model(*model.trunk(rows)).chunk(2)  # (b,), (b,)
        (rl_math.bradley_terry_loss(chosen, rejected).sum() / len(pairs)).backward()


def plain_reward(model: RewardModel, batch: list[Encoded], micro: int) -> None:
    pairs = pairs_of(batch)
    ids, mask = pad_right([pair[0] for pair in pairs] + [pair[1] for pair in pairs], 0, model.lm.device)  # (2B, T)
    rewards = model.head(model.lm.hidden(ids, mask).to(model.head.weight.dtype))[..., 0]  # (2B, T)
    last = rewards.gather(1, mask.sum(1, keepdim=True) - 1)[:, 0]  # (2B,)
    rl_math.bradley_terry_loss(*last.chunk(2)).mean().backward()


def same_gradients(model: torch.nn.Module, batch: list[Encoded], micro: int, sides: dict) -> None:
    found = {}
    for name, step in sides.items():
        model.zero_grad(set_to_none=True)
        step(model, batch, micro)
        found[name] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    apart = (found["ours"] - found["padded"]).norm() / found["padded"].norm()
    assert apart < 1e-4, f"the gradients differ by {apart:.1e} of their length"
    model.zero_grad(set_to_none=True)


def useful_flops(config: TransformerConfig, kind: str, batch: list[Encoded]) -> float:
    if kind == "sft":
        return 3 * forward_flops(config, [len(p) + len(a) for p, a in batch], sum(len(a) for _, a in batch))
    return 3 * forward_flops(config, [len(row) for pair in pairs_of(batch) for row in pair], 0)


def main() -> None:
    parser = argparse.ArgumentParser(description="a training step on ragged texts against a plain padded loop")
    parser.add_argument("--size", choices=tuple(SHAPES), default="tiny")
    parser.add_argument("--step", choices=("sft", "reward"), help="one of the two (default: both)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each (default 5)")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    config, (rows, micro), draw = SHAPES[args.size], ROWS[args.size], random.Random(0)
    batches = {"ragged": [texts(config.vocab_size, rows, draw) for _ in range(4)]}
    batches["full"] = [texts(config.vocab_size, rows, draw, full=True)]
    lm = lambda: FastTransformer(config, torch.Generator().manual_seed(0)).to(args.device)
    models = {"sft": lm(), "reward": RewardModel(lm(), NoTokenizer()).to(args.device)}
    # At 0 no gradient would reach the blocks; far larger ones make gradients so small that a CPU computes them slowly.
    torch.nn.init.normal_(models["reward"].head.weight, std=config.d_model**-0.5)
    sides = {"sft": {"ours": our_sft, "padded": plain_sft}, "reward": {"ours": our_reward, "padded": plain_reward}}
    peak, result = gemm_peak(torch.float32, args.device), {"benchmark": "training", "size": args.size}
    print(
        f"GEMM 2048 x 2048 x 2048 in float32: {peak / 1e9:.0f} GFLOP/s\n\n{'step':18}{'ours':>10}{'padded':>10}  ratio"
    )
    kinds = [args.step] if args.step else list(models)
    for kind in kinds:
        model = models[kind].eval()
        same_gradients(model, batches["ragged"][0], micro, sides[kind])
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = training.make_optimizer(parameters, 1e-6, 0.0)
        for shape, several in batches.items():
            seconds = {name: [] for name in sides[kind]}
            for round_ in range(1 + args.rounds):  # the first allocates
                for name in list(seconds)[:: 1 if round_ % 2 == 0 else -1]:
                    start = time.perf_counter()
                    for batch in several:
                        sides[kind][name](model, batch, micro)
                        training.optimizer_step(optimizer, parameters, 1.0, 1e-6)
                    seconds[name].append((time.perf_counter() - start) / len(several))
            ours, padded = (statistics.median(seconds[name][1:]) for name in ("ours", "padded"))
            flops = statistics.mean(useful_flops(config, kind, batch) for batch in several)
            found = {"ours_s": ours, "padded_s": padded, "ratio": padded / ours, "share_of_peak": flops / ours / peak}
            result[f"{kind}_{shape}"] = {name: round(value, 4) for name, value in found.items()}
            told = f"{kind + ', ' + shape:18}{1000 * ours:8.1f}ms{1000 * padded:8.1f}ms  {padded / ours:.2f}"
            print(f"{told}   useful FLOPs at {flops / ours / peak:.2f} of the peak", flush=True)
    same = {"dtype": "float32", "device": device_name(args.device), "threads": torch.get_num_threads()}
    print(
        json.dumps(result | {"ratio": result[f"{kinds[0]}_ragged"]["ratio"], "gemm_gflops": round(peak / 1e9)} | same)
    )


if __name__ == "__main__":
    main()
