"""Several runs of `train.py` side by side, each in a process of its own with its share of the cores.

Small models gain little from a second thread: on two cores, two single-threaded runs finish sooner than one after the
other with two threads each.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from alignpro_mini.config import RunConfig


def run_side_by_side(
    script: Path, argv: Sequence[str], configs: Sequence[RunConfig], jobs: int
) -> tuple[list[dict], list[Path]]:
    """Run `script` once per config, at most `jobs` at a time; returns the results.json of those that ended well, in the
    order of `configs`, and the logs of the others.

    Each writes its output to `<out>/<run name>.log`. With --resume a finished run only loads what it left. Whatever ends
    this function (an error, Ctrl-C, SIGTERM) ends the runs too: two processes must not write to one folder. Raises
    OSError when the folder of the logs cannot be written.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    waiting, running, failed = list(configs), {}, []
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                config = waiting.pop(0)
                log = _log(config)
                command = [
                    sys.executable,
                    str(script),
                    *_without(argv),
                    "--task",
                    config.task,
                    "--seed",
                    str(config.seed),
                ]
                with log.open("a", encoding="utf-8") as out:
                    process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
                running[process] = (config, log, time.perf_counter())
            time.sleep(0.5)
            for process in [p for p in running if p.poll() is not None]:
                config, log, started = running.pop(process)
                verdict = "done" if process.returncode == 0 else "FAILED"
                print(f"{config.run_name}: {verdict} in {time.perf_counter() - started:.0f} s, log {log}", flush=True)
                if process.returncode:
                    failed.append(log)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        signal.signal(signal.SIGTERM, before)
    well = [config for config in configs if _log(config) not in failed]
    return [json.loads((Path(c.out) / c.run_name / "results.json").read_text(encoding="utf-8")) for c in well], failed


def _log(config: RunConfig) -> Path:
    """Where a run's output goes. Raises OSError naming the folder that cannot be made."""
    try:
        Path(config.out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{config.out} cannot be written ({error.strerror}): choose another folder with --out") from None
    return Path(config.out) / f"{config.run_name}.log"


def _without(argv: Sequence[str]) -> list[str]:
    """The command line without --task, --seed and --jobs, which differ from run to run."""
    kept, skip = [], False
    for word in argv:
        if skip:
            skip = False
        elif word in ("--task", "--seed", "--jobs"):
            skip = True
        elif not word.startswith(("--task=", "--seed=", "--jobs=")):
            kept.append(word)
    return kept
