"""The benchmarks run to their last line, which is JSON. Their numbers mean nothing here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from api_server import serving
from real_model import command

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


@pytest.mark.slow
def test_a_served_model_is_measured_beside_ours(tmp_path):
    with serving() as server:
        options = {"base_url": server.url, "weights": "model", "at_a_time": "1,3", "rounds": 1}
        told = command(tmp_path, [ROOT / "tests" / "benchmarks" / "served.py"], options)
        assert sum(server.answered.values()) == 2 * (1 + 3), "a round to warm up, and one that counts"
    found = json.loads(told.splitlines()[-1])
    assert found["benchmark"] == "served" and list(found["ratio"]) == ["1", "3"] and min(found["ratio"].values()) > 0
