"""Runs of `train.py --preset micro`: their options, and processes that run it."""

from pathlib import Path

from doubles import ROOT
from warm import Program

from alignpro_mini.lab.cli import with_options
from alignpro_mini.lab.config import preset

OPTIONS = {"oracle.adaptive_kl_target": 1.0}  # of one of the two PPOs
CONFIG = with_options(preset("micro"), OPTIONS)


def command(out: Path, *more: str) -> list[str]:
    options = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
    return [str(ROOT / "train.py"), "--preset", "micro", "--device", "cpu", "--out", str(out), *options, *more]


def start(out: Path, *more: str) -> Program:
    # PYTHONPATH: the package of this checkout.
    return Program(command(out, *more), out, {"PYTHONPATH": str(ROOT)}, merged=True)


def finish(out: Path, *more: str) -> str:
    process = start(out, *more)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed[-3000:]
    return printed
