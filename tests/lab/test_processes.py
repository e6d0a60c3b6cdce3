"""Several processes: the update is that of one process, and a run that a worker's death ended goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from doubles import ROOT, Letters, in_a_folder, random_lm
from micro import OPTIONS

from alignpro_mini.lab import processes
from alignpro_mini.lab.cli import parse_command_line
from alignpro_mini.lab.config import preset
from alignpro_mini.lab.glossary import ARMS
from alignpro_mini.options import UserError
from alignpro_mini.ppo import PPOConfig, PPOTrainer
from alignpro_mini.rollout import Rollout
from alignpro_mini.variants import VARIANTS

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PROMPTS = [p for p in 2 * ("a", "b", "cab", "abcd") for _ in range(2)]  # each of two processes gets the same ones
BASE = PPOConfig(
    batch_size=16, rewrites_per_request=2, num_minibatches=2, micro_batch_size=3, max_new_tokens=6, lr=1e-2
)
CONFIGS = {
    "gae": BASE,
    "rloo": replace(BASE, variant="rloo"),
    "kl in the loss": replace(BASE, variant="kl-loss-k2"),
    "top layer": replace(BASE, train_layers=1),
}


def score(prompts, completions):
    return [len(set(y)) - 0.3 * len(y) + 0.1 * len(x) for x, y in zip(prompts, completions)]


def trainer(kind: type, config: PPOConfig) -> PPOTrainer:
    lm, reference = random_lm(seed=3, n_layers=2), random_lm(seed=3, n_layers=2)
    return kind(lm, reference, Letters(), score, config, torch.Generator().manual_seed(5))


def worker() -> None:
    """In each of two processes: sample and score the shares, gather them, update; the first one keeps what came out."""
    found = {}
    with processes.joined([preset("tiny")]):
        for name, config in CONFIGS.items():
            sharded = trainer(processes.trainer_class(config), config)
            assert isinstance(sharded, processes.Sharded)
            rollout = sharded.rollout(PROMPTS)
            own = len(rollout.prompts)
            rollout.scores = sharded.scores(rollout)
            sharded.estimate_advantages(rollout, sharded.assemble_rewards(rollout))
            kept = {f.name: getattr(rollout, f.name) for f in fields(Rollout)}
            kept["completions"] = [str(text) for text in rollout.completions]  # plain: no class of ours in the file
            metrics = sharded.update(rollout)
            weights = {k: v.clone() for k, v in sharded.policy.state_dict().items()}
            found[name] = {"rollout": kept, "own": own, "metrics": metrics, "weights": weights}
        whole = [sharded.step(PROMPTS) for _ in range(2)]
        found["steps"] = whole
        if processes.rank() == 0:
            torch.save(found, sys.argv[1])


def started(options: dict, folder: Path, *more: str, torchrun: tuple[str, ...] = ()) -> subprocess.Popen:
    arguments = [word for k, v in options.items() for word in (f"--{k}", str(v))]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*TORCHRUN, *torchrun, str(ROOT / "train.py"), *arguments, *more]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def work(folder: Path) -> dict:
    """What two processes found."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*TORCHRUN, __file__, str(folder / "found.pt")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "found.pt", weights_only=True)


def compare(folder: Path) -> None:
    found = work(folder)
    for name in CONFIGS:
        the_update_is_that_of_one_process(found[name], name)
    halves = [found["gae"]["rollout"]["completions"][i : i + 8] for i in (0, 8)]
    assert halves[0] != halves[1], "the shares are sampled from streams of their own"
    assert found["steps"][0]["score_mean"] != found["steps"][1]["score_mean"]


def the_update_is_that_of_one_process(given: dict, name: str) -> None:
    """From equal weights and one given rollout: metrics after it agree to 1e-5, weights to a hundredth of a step.

    Adam divides a gradient by its own size, so a gradient near 0 makes rounding visible in a weight.
    """
    alone = trainer(VARIANTS[CONFIGS[name].variant], CONFIGS[name])
    rollout = Rollout(**given["rollout"])
    assert given["own"] == 8 and len(rollout.prompts) == 16 and rollout.prompts == PROMPTS
    again = score(rollout.prompts, rollout.completions)
    assert rollout.scores.tolist() == pytest.approx(again)
    # What one process makes of these completions: advantages, returns and every part of the rollout's annotation.
    fresh = replace(rollout, advantages=None, returns=None)
    alone.estimate_advantages(fresh, alone.assemble_rewards(fresh))
    torch.testing.assert_close(fresh.advantages, rollout.advantages, atol=1e-5, rtol=0)
    with torch.no_grad():
        alone._annotate(fresh, torch.arange(16))
    torch.testing.assert_close(fresh.logp_ref, rollout.logp_ref, atol=1e-5, rtol=0)
    # The sharded trainer drew one number more, for the shares' own streams.
    torch.randint(2**40, (), generator=alone.generator)
    metrics = alone.update(rollout)
    for key, value in alone.policy.state_dict().items():
        torch.testing.assert_close(given["weights"][key], value, atol=CONFIGS[name].lr / 100, rtol=0)
    assert given["metrics"] == pytest.approx(metrics, rel=1e-5, abs=1e-5)


def test_batches_that_cannot_be_shared_are_refused(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    monkeypatch.setattr(processes, "rank", lambda: 0)
    with pytest.raises(UserError, match="batch_size is 16; 3 processes need a multiple of 6"):
        trainer(processes.trainer_class(BASE), BASE)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_can_be_shared(monkeypatch, name):
    config = replace(BASE, variant=name)
    assert processes.trainer_class(config) is VARIANTS[name]
    monkeypatch.setattr(processes, "count", lambda: 2)
    kind = processes.trainer_class(config)
    assert issubclass(kind, VARIANTS[name]) and kind.variant == name
    assert kind.__mro__.index(processes.Sharded) < kind.__mro__.index(VARIANTS[name])


SET_BY_TORCHRUN = {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    "variables, said",
    [
        ({}, ""),
        ({"WORLD_SIZE": ""}, ""),
        ({"WORLD_SIZE": " 1 ", "RANK": ""}, ""),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is '2', and RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set: start"),
        (SET_BY_TORCHRUN | {"MASTER_PORT": ""}, "WORLD_SIZE is '4', and MASTER_PORT not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two': unset it, or start the run by torchrun"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0': unset it"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1': unset it"),
    ],
)
def test_variables_of_a_cluster_without_torchrun(monkeypatch, variables, said):
    """As batch systems leave them: pytorch/ignite #2048, vllm-project/vllm #7074."""
    for name in SET_BY_TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ran = []
    try:
        with processes.joined([], 1):
            ran.append(processes.count())
    except UserError as error:
        assert said and said in str(error) and "\n" not in str(error)
    assert ran == ([] if said else [1])


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--seed", "0-1"], "several processes train one run"),
        (["--jobs", "2"], "several processes train one run"),
        (["--ppo.batch_size", "30", "--ppo.num_minibatches", "2"], "--ppo.batch_size is 30; 4 processes need"),
        (["--oracle.batch_size", "30"], "--oracle.batch_size is 30; 4 processes need a multiple of 8"),
        (["--preset", "smollm2", "--ppo.rewrites_per_request", "24"], "a multiple of 96"),
        (["--preset", "smollm2", "--frozen", "api:m", "--reward", "m:f", "--api.token_budget", "9"], "token_budget"),
        (["--preset", "smollm2", "--reward", "judge:m"], "judge:MODEL asks some questions twice"),
    ],
)
def test_what_several_processes_cannot_do_is_told_at_once(monkeypatch, argv, said):
    configs, how = parse_command_line(["--device", "cpu", *argv])
    for name, value in SET_BY_TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        with processes.joined(configs, how.jobs):
            pass


def test_a_run_that_several_processes_can_train_passes_the_checks():
    configs, how = parse_command_line(["--device", "cpu"])
    processes.check(configs, how.jobs, 2)


@pytest.mark.parametrize(
    "message, gone",
    [
        ("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:18582.", True),
        ("[/gloo/transport/tcp/pair.cc:300] Read error [127.0.0.1]:18582: Connection reset by peer", True),
        ("NCCL error in: /torch/NCCLUtils.hpp:268\nncclRemoteError: a network error or a remote process exiting", True),
        ("[/gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4", False),
        ("NCCL error in: /torch/NCCLUtils.hpp:268, invalid usage: Duplicate GPU detected", False),
        ("the size of tensor a (3) must match the size of tensor b (4)", False),
        ("I/O operation on a closed file", False),
    ],
)
def test_only_a_lost_process_is_told_in_one_line(message, gone):
    """A bug, of ours or in how we call torch, keeps its traceback."""
    assert bool(processes.GONE.search(message)) is gone


def ended(options: dict, folder: Path, worker: int, sent: signal.Signals, *more: str) -> list[list[str]]:
    """Send a worker a signal after two more steps of the arm; the errors that each of the two then tells on stderr.

    torchrun looks after its workers every 3 s only: until then each is left to itself.
    """
    logs = folder / sent.name
    torchrun = ("--redirects", "2", "--log-dir", str(logs), "--monitor-interval", "3")
    log = folder / "runs" / "two" / "metrics.jsonl"
    steps = lambda: log.read_text().count('"align_pro"') if log.exists() else 0
    before, deadline = steps(), time.time() + 120
    process = started(options, folder, *more, torchrun=torchrun)
    while steps() < before + 2:
        assert process.poll() is None and time.time() < deadline, process.communicate()
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[worker]), sent)
    process.communicate(timeout=60)
    assert process.returncode != 0
    said = [next(logs.glob(f"*/attempt_0/{i}/stderr.log")).read_text().splitlines() for i in range(2)]
    return [[line for line in lines if re.search("error|traceback", line, re.IGNORECASE)] for lines in said]


def a_worker_dies(tmp_path):
    """By SIGKILL: the other one notices. By SIGTERM, which torchrun sends those that have not noticed yet."""
    options = OPTIONS | {"preset": "micro", "ppo.iterations": 9, "device": "cpu", "name": "two"}
    log = tmp_path / "runs" / "two" / "metrics.jsonl"
    line = f"train.py: error: {processes.LOST}"
    assert ended(options, tmp_path, 1, signal.SIGKILL) == [[line], []]
    assert ended(options, tmp_path, 0, signal.SIGTERM, "--resume") == [[line], [line]]
    done = started(options, tmp_path, "--resume")
    out, err = done.communicate(timeout=180)
    assert done.returncode == 0, err[-3000:]
    assert "[align_pro] goes on from step" in out and out.count("report:") == 1
    results = json.loads((tmp_path / "runs" / "two" / "results.json").read_text())
    assert list(results["arms"]) == [*ARMS]
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [r["step"] for r in rows if r["stage"] == "align_pro"] == list(range(1, 10)), "one process writes"


@pytest.mark.slow
@pytest.mark.ahead(run=in_a_folder(compare))
def test_the_update_is_that_of_one_process(ahead):
    if ahead:
        raise ahead


@pytest.mark.slow
@pytest.mark.ahead(run=in_a_folder(a_worker_dies))
def test_a_run_of_two_processes_whose_worker_dies_goes_on(ahead):
    if ahead:
        raise ahead


if __name__ == "__main__":
    worker()
