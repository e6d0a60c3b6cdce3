"""Runs of `train.py --preset micro`: their options, and processes that run it."""

import os
import subprocess
import sys
from pathlib import Path

from doubles import ROOT
from warm import Program

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


def command(out: Path, *more: str) -> list[str]:
    options = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
    return [str(ROOT / "train.py"), "--preset", "micro", "--device", "cpu", "--out", str(out), *options, *more]


def start(out: Path, *more: str, cores: int = 1, **kwargs) -> subprocess.Popen:
    """A fresh `python train.py`."""
    argv = command(out, *more)
    argv = argv if cores == 1 else ["-c", FORCED.format(argv[0]), *argv[1:]]
    # PYTHONPATH: the package of this checkout.
    env = os.environ | {"OMP_NUM_THREADS": str(cores), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    merged = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([sys.executable, *argv], cwd=out, env=env, text=True, **merged, **kwargs)


def finish(out: Path, *more: str, cores: int = 1) -> str:
    """What a run printed that went to its end."""
    forked = lambda: Program(command(out, *more), out, {"PYTHONPATH": str(ROOT)}, merged=True)
    process = forked() if cores == 1 else start(out, *more, cores=cores)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed[-3000:]
    return printed
