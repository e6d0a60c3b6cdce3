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


# train.py for which a second process pays also where a run takes seconds
FORCED = """
import runpy, sys
from alignpro_mini.lab import device
device.LEAST_ANSWERS = 0
sys.argv[0] = {!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def command(out: Path, *more: str, cores: int = 1) -> list[str]:
    train = str(ROOT / "train.py")
    options = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
    return [
        sys.executable,
        *([train] if cores == 1 else ["-c", FORCED.format(train)]),
        "--preset",
        "micro",
        "--device",
        "cpu",
        "--out",
        str(out),
        *options,
        *more,
    ]


def start(out: Path, *more: str, cores: int = 1, **kwargs) -> subprocess.Popen:
    # PYTHONPATH: the package of this checkout.
    env = os.environ | {"OMP_NUM_THREADS": str(cores), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command(out, *more, cores=cores),
        cwd=out,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **kwargs,
    )


def finish(out: Path, *more: str, cores: int = 1) -> str:
    process = start(out, *more, cores=cores)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed[-3000:]
    return printed
