"""The benchmarks run to their last line, which is JSON. Their numbers mean nothing here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CALLS = {
    "generation.py": ("--tiny", "--rounds", "1", "--skip-hf", "--batch", "8", "--pieces"),
    "ppo.py": ("--size", "toy", "--rounds", "1"),
    "training.py": ("--size", "tiny", "--rounds", "1"),
    "decode.py": ("--size", "tiny", "--batches", "1,4"),
    "processes.py": ("--preset", "tiny", "--iterations", "2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_a_benchmark_ends_with_one_json_object(name):
    command = [sys.executable, str(ROOT / "tests" / "benchmarks" / name), *CALLS[name]]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"ratio", "dtype", "device"} <= found.keys() and found["benchmark"] == name.removesuffix(".py")
