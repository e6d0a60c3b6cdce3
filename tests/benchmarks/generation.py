"""Rollout speed: our fast sampler against `transformers` on the same weights, the same prompts, in one run.

    pip install -e '.[compare]'
    python tests/benchmarks/generation.py                    # GPT-2 124M shape, CPU: some 5 minutes on two cores
    python tests/benchmarks/generation.py --skip-hf          # ours alone, without `transformers`
    python tests/benchmarks/generation.py --tiny             # models of the size that `python train.py` has
    python tests/benchmarks/generation.py --tiny --pieces    # and what each piece of the sampler saves

The batch is ragged, as PPO's is: 64 prompts of 8 to 64 random tokens, and answers that end by themselves
after 24 tokens on average, 64 at most. Both sides sample (temperature 1, the whole vocabulary) with a KV cache
and left padding, from lists of ids to lists of ids; a round times one call of each, in alternating order.
Tokens per second counts new tokens, EOS included, per wall-clock second; the result is the median of the rounds
(one round varies by about a tenth with the lengths of its answers). Checked first: weights and greedy answers.
The bound (`machine.sampling_bound`) is of our first round's lengths.

Random weights would never end an answer. So one coordinate of the last norm is a constant 1 that only EOS reads:
its logit never changes, and gives EOS a probability of about 1/26. Cut at 64, such answers have 23.9 tokens on
average; the run fails when either side's are not near that.

`--pieces` samples another batch, which has what each piece saves: all prompts begin with the same 24 tokens, and each stands
there four times, as PPO's do. Every row is the sampler without one of its pieces; the last one is the readable sampler of
`generation.py` with the plain transformer. All start from the same seed in each round: they sample the same tokens.

It leaves out loading and tokenising; long prompts; top-p; `torch.compile` and static caches (the peer runs with
its defaults); engines that serve (vLLM); and answers of one length, where no row leaves the batch early and less
is gained. Ours also returns log-probabilities, the peer does not. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import random
import statistics
import sys
import tempfile
import time
from dataclasses import fields
from functools import partial

import torch
from machine import device_name, sampling_bound

from alignpro_mini import generation
from alignpro_mini.fast.sampling import FastSampler
from alignpro_mini.fast.transformer import FastTransformer
from alignpro_mini.generation import Sampler, pad_left
from alignpro_mini.transformer import Transformer, TransformerConfig
from alignpro_mini.weights.pretrained import BUFFERS, save_pretrained, to_published

FULL = TransformerConfig(50_257, d_model=768, n_layers=12, n_heads=12, max_len=1024, family="gpt2")
TINY = TransformerConfig(640, d_model=96, n_layers=2, n_heads=4, max_len=160, family="gpt2")
CAP = 64  # new tokens
P_EOS = 1 / 26
MEAN_LENGTH = (1 - (1 - P_EOS) ** CAP) / P_EOS  # of a geometric length cut at CAP: 23.9
Rows = list[list[int]]


def make_prompts(count: int, vocab_size: int) -> Rows:
    draw = random.Random(0)  # below: every token but EOS
    return [[draw.randrange(vocab_size - 1) for _ in range(draw.randint(8, 64))] for _ in range(count)]


@torch.no_grad()
def make_model(config: TransformerConfig, prompts: Rows) -> FastTransformer:
    """Random weights under which the last token of the vocabulary, EOS, comes with probability P_EOS."""
    model = FastTransformer(config, torch.Generator().manual_seed(0)).eval()
    for parameter in model.blocks.parameters():
        parameter *= 3.0  # or a greedy answer repeats its last token, whatever came before
    model.norm.weight *= 6.0  # or it is EOS at once: all others are about as unlikely
    model.norm.weight[0], model.norm.bias[0] = 0.0, 1.0
    model.embed.weight[:, 0], model.embed.weight[-1] = 0.0, 0.0  # EOS alone reads the constant, and nothing else
    ids, mask = pad_left(prompts, 0)
    others = model.unembed(model.hidden(ids, mask)[:, -1])[:, :-1].logsumexp(-1)  # (B,)
    model.embed.weight[-1, 0] = math.log(P_EOS / (1 - P_EOS)) - (-others).exp().mean().log()
    return model


def load_peer(model: Transformer):
    """The same weights in `transformers`, through a folder that `save_pretrained` wrote."""
    from transformers import GPT2LMHeadModel, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        peer = GPT2LMHeadModel.from_pretrained(folder, local_files_only=True).eval()
    loaded = peer.transformer.state_dict()
    for name, tensor in to_published(model).items():
        assert torch.equal(tensor, loaded.pop(name)), f"{name}: the weights differ"
    assert all(map(BUFFERS.fullmatch, loaded)) and peer.lm_head.weight is peer.transformer.wte.weight
    return peer


def ours(sampler: Sampler, model: Transformer, prompts: Rows, limit: int, temperature: float = 1.0, seed=None) -> Rows:
    options = {"temperature": temperature, "eos_id": model.config.vocab_size - 1}
    options["generator"] = None if seed is None else torch.Generator().manual_seed(seed)
    return [completion.tokens for completion in sampler(model, prompts, limit, **options)]


def theirs(peer, prompts: Rows, limit: int, temperature: float = 1.0) -> Rows:
    eos = peer.config.vocab_size - 1
    ids, mask = pad_left(prompts, eos, peer.device)
    request = {"max_new_tokens": limit, "use_cache": True, "eos_token_id": eos, "pad_token_id": eos, "do_sample": False}
    if temperature:
        request |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    out = peer.generate(ids, attention_mask=mask.long(), **request)
    rows = out[:, ids.shape[1] :].tolist()
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


def measure(sides: dict, prompts: Rows, rounds: int) -> dict[str, tuple[list[float], list[int]]]:
    """side -> (tokens per second of each round, length of each answer of all rounds)."""
    speeds, lengths = {name: [] for name in sides}, {name: [] for name in sides}
    [call(prompts, 8) for call in sides.values()]  # warm up: the first call allocates and picks kernels
    for round_ in range(rounds):
        for name in list(sides)[:: 1 if round_ % 2 == 0 else -1]:
            start = time.perf_counter()
            rows = sides[name](prompts, CAP)  # lists: a GPU has finished when they are there
            seconds = time.perf_counter() - start
            lengths[name] += map(len, rows)
            speeds[name].append(sum(map(len, rows)) / seconds)
            print(f"round {round_ + 1}: {name:26} {speeds[name][-1]:9.1f} tokens/s, {seconds:.2f} s", flush=True)
    return {name: (speeds[name], lengths[name]) for name in sides}


def without_each_piece(model: FastTransformer) -> dict:
    """{row: sampler} of the pieces that do something on this device."""
    on_gpu = model.device.type == "cuda"
    only_one_device = {"recorded_steps": on_gpu, "shared_rows": not on_gpu, "draw_in_parts": not on_gpu}
    pieces = [field.name for field in fields(FastSampler) if only_one_device.get(field.name, True)]
    sides = {"all pieces": partial(ours, FastSampler(), model, seed=0)}
    for piece in pieces:
        sides[f"without {piece}"] = partial(ours, FastSampler(**{piece: False}), model, seed=0)
    plain = Transformer(model.config).to(model.device, model.embed.weight.dtype).eval()
    plain.load_state_dict(model.state_dict())
    return sides | {"readable": partial(ours, generation.generate, plain, seed=0)}


def measure_pieces(model: FastTransformer, batch: int, rounds: int) -> dict[str, float]:
    """{row: tokens per second}, printed as a table."""
    vocab_size = model.config.vocab_size
    beginning = [random.Random(1).randrange(vocab_size - 1)] * 24
    prompts = [beginning + prompt for prompt in make_prompts(max(1, batch // 4), vocab_size) for _ in range(4)]
    measured = measure(without_each_piece(model), prompts, rounds)
    speed = {name: round(statistics.median(speeds), 1) for name, (speeds, _) in measured.items()}
    print(f"\n{'':26} {'tokens/s':>10} {'of all':>8}")
    for name, tokens_per_s in speed.items():
        print(f"{name:26} {tokens_per_s:10.1f} {tokens_per_s / speed['all pieces']:8.2f}")
    return speed


def main() -> None:
    parser = argparse.ArgumentParser(description="our generate against transformers' on a ragged batch")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each side (default 5)")
    parser.add_argument("--batch", type=int, default=64, help="prompts in a batch (default 64)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--skip-hf", action="store_true", help="time ours alone")
    parser.add_argument("--pieces", action="store_true", help="also time the sampler without each of its pieces")
    parser.add_argument("--tiny", action="store_true", help="the size of the models of `python train.py`")
    args = parser.parse_args()
    if min(args.rounds, args.batch, args.threads or 1) < 1:
        parser.error("--rounds, --batch and --threads must be at least 1")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU that PyTorch can use; leave it out to run on the CPU")
    if not args.skip_hf and importlib.util.find_spec("transformers") is None:
        sys.exit("the comparison needs transformers: pip install -e '.[compare]' (or time ours alone: --skip-hf)")
    torch.set_num_threads(args.threads or torch.get_num_threads())
    torch.manual_seed(0)

    config = TINY if args.tiny else FULL
    prompts = make_prompts(args.batch, config.vocab_size)
    model = make_model(config, prompts)
    sides = {"ours": partial(ours, FastSampler(), model)}
    if not args.skip_hf:
        peer = load_peer(model)
        greedy = prompts[:4], 16, 0.0  # in float32 on the CPU, whatever is timed: a coarser dtype has ties
        assert ours(FastSampler(), model, *greedy) == theirs(peer, *greedy), "greedy answers differ"
        print("same weights bit for bit, same greedy answers", flush=True)
        peer.to(args.device, getattr(torch, args.dtype))
        sides["transformers"] = partial(theirs, peer)
    model.to(args.device, getattr(torch, args.dtype))
    found = measure(sides, prompts, args.rounds)

    print(f"\n{'':12} {'tokens/s':>10} {'slowest':>10} {'fastest':>10} {'mean length':>12}   (of {CAP} at most)")
    mean = {name: statistics.mean(lengths) for name, (_, lengths) in found.items()}
    for name, (speeds, _) in found.items():
        told = f"{name:12} {statistics.median(speeds):10.1f} {min(speeds):10.1f} {max(speeds):10.1f}"
        print(f"{told} {mean[name]:12.1f}")
    slack = 2 + 4 * 19.4 / (args.batch * args.rounds) ** 0.5  # four standard errors, and P_EOS is only about right
    if off := [name for name, length in mean.items() if abs(length - MEAN_LENGTH) > slack]:
        sys.exit(f"mean length of {' and '.join(off)} is not {MEAN_LENGTH:.1f} +- {slack:.1f}: speeds not comparable")
    speed = {name: round(statistics.median(speeds), 1) for name, (speeds, _) in found.items()}
    first = found["ours"][1][: args.batch]  # lengths of the first round's answers
    seconds = sampling_bound(config, list(map(len, prompts)), first, getattr(torch, args.dtype), args.device)
    print(f"bound: {sum(first) / seconds:.0f} tokens/s, of which ours are {speed['ours'] * seconds / sum(first):.2f}")
    hf = speed.get("transformers")
    result = {
        "benchmark": "generation",
        "ours_tokens_per_s": speed["ours"],
        "hf_tokens_per_s": hf,
        "ratio": hf and round(speed["ours"] / hf, 2),
        "bound_tokens_per_s": round(sum(first) / seconds, 1),
        "share_of_bound": round(speed["ours"] * seconds / sum(first), 3),
        "mean_lengths": {name: round(length, 2) for name, length in mean.items()},
        "pieces_tokens_per_s": measure_pieces(model, args.batch, args.rounds) if args.pieces else None,
        "device": device_name(args.device),
        "torch": torch.__version__,
        "transformers": hf and importlib.metadata.version("transformers"),
        "threads": torch.get_num_threads(),
        "shape": "tiny" if args.tiny else "124m",
        "dtype": args.dtype,
        "batch": args.batch,
        "rounds": args.rounds,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
