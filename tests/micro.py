"""Runs of `train.py --preset micro`: their options, and processes that run it."""

import os
import subprocess
import sys
from pathlib import Path

from doubles import ROOT

from alignpro_mini.lab.cli import with_options
from alignpro_mini.lab.config import preset

OPTIONS = {"oracle.adaptive_kl_target": 1.0}  # of one of the two PPOs
CONFIG = with_options(preset("micro"), OPTIONS)


def command(out: Path, *more: str) -> list[str]:
    options = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
    return [
        sys.executable,
        str(ROOT / "train.py"),
        "--preset",
        "micro",
        "--device",
        "cpu",
        "--out",
        str(out),
        *options,
        *more,
    ]


def start(out: Path, *more: str, **kwargs) -> subprocess.Popen:
    # One thread: another order of summation is another rounding. PYTHONPATH: the package of this checkout.
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command(out, *more), cwd=out, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs
    )


def finish(out: Path, *more: str) -> str:
    process = start(out, *more)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed[-3000:]
    return printed
