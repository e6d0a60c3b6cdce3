"""What a second process brings: seconds of a PPO iteration by `torchrun` with one and with two processes.

    python tests/benchmarks/processes.py --preset tiny          # minutes on two cores
    python tests/benchmarks/processes.py --preset smollm2       # after `python -m alignpro_mini.weights.smollm2`

Each process has one thread, so that two have twice the cores of one, and not twice the threads. The stages before PPO
are cut short: what the prompter has learned does not change the time of an iteration much. Efficiency = seconds of one
process / (2 x seconds of two), medians over iterations after the first. Beside it, for smollm2, one process with both
threads, which is what `python train.py` uses there; tiny models get one thread. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("rollout_s", "score_s", "update_s")
SHORT = {"prompter_sft.steps": 20, "eval.inputs": 4, "eval.headroom_inputs": 2, "eval.oracle": "false"}
SHORT |= {"ppo.warmup_ratio": 0.0, "stop": "false", "theory.inputs": 2}
PRESETS = {
    "tiny": {"frozen_lm.steps": 200, "prompter_sft.steps": 200, "preferences.pairs": 256},
    "smollm2": {"reward": "alignpro_mini.worlds.vader:sentiment", "preferences.normalise_on": 8, "dtype": "bfloat16"},
}


def seconds(preset: str, processes: int, threads: int, iterations: int) -> dict[str, float]:
    """Median seconds of the parts of an iteration, and of all of it."""
    options = {"preset": preset, "name": "speed", "ppo.iterations": iterations} | SHORT | PRESETS[preset]
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
        how = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
        done = subprocess.run([*start, str(ROOT / "train.py"), *words], **how)
        if done.returncode:
            sys.exit(f"{processes} process(es) of train.py ended with {done.returncode}: {done.stderr[-1500:]}")
        lines = (Path(folder) / "runs" / "speed" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["stage"] == "align_pro"][1:]
    found = {part: statistics.median(row[part] for row in rows) for part in PARTS}
    return found | {"iteration_s": statistics.median(sum(row[part] for part in PARTS) for row in rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description="a PPO iteration by one process and by two")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="tiny")
    parser.add_argument("--iterations", type=int, default=6, help="PPO iterations of each (default 6)")
    args = parser.parse_args()
    if args.iterations < 2:
        parser.error("--iterations must be at least 2: the first is not counted")
    print(f"{'':28}{'rollout':>10}{'scores':>10}{'update':>10}{'iteration':>11}")
    found = {}
    both = [("one, two threads", 1, 2)] if args.preset == "smollm2" else []
    for name, count, threads in (("one", 1, 1), ("two", 2, 1), *both):
        found[name] = seconds(args.preset, count, threads, args.iterations)
        told = "".join(f"{value:9.2f}s" for value in found[name].values())
        print(f"{name + (' processes' if count > 1 else ' process'):28}{told}", flush=True)
    one, two, *both = (found[name]["iteration_s"] for name in found)
    result = {"benchmark": "processes", "preset": args.preset, "ratio": round(one / two, 2)}
    result |= {"efficiency": round(one / two / 2, 2), "ratio_to_two_threads": both and round(both[0] / two, 2)}
    rounded = {name: {part: round(value, 3) for part, value in parts.items()} for name, parts in found.items()}
    same = {"dtype": "float32" if args.preset == "tiny" else "bfloat16", "device": "cpu"}  # as `PRESETS` asks
    print(json.dumps(result | {"seconds": rounded} | same))


if __name__ == "__main__":
    main()
