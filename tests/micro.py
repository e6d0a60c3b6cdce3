"""A run of train.py on models far too small to learn: its options, and processes that run it."""

import os
import subprocess
import sys
from pathlib import Path

from doubles import ROOT

TINY = {
    "vocab_size": 400,
    "world.eval_requests": 40,
    "sampling.max_new_tokens": 20,
    "frozen_lm.steps": 60,
    "frozen_lm.examples": 600,
    "frozen_lm.heldout_examples": 32,
    "frozen_lm.batch_size": 8,
    "frozen_model.d_model": 32,
    "frozen_model.n_layers": 1,
    "frozen_model.n_heads": 2,
    "prompter_sft.steps": 60,
    "prompter_sft.examples": 600,
    "prompter_sft.heldout_examples": 32,
    "prompter_sft.batch_size": 8,
    "prompter_model.d_model": 32,
    "prompter_model.n_layers": 1,
    "prompter_model.n_heads": 2,
    "reward_model.pairs": 80,
    "reward_model.batch_size": 16,
    "ppo.iterations": 5,
    "ppo.batch_size": 16,
    "ppo.max_new_tokens": 20,
    "oracle.iterations": 5,
    "oracle.batch_size": 16,
    "oracle.max_new_tokens": 20,
    "oracle.adaptive_kl_target": 1.0,
    "eval.inputs": 24,
    "eval.headroom_inputs": 8,
    "eval.bootstrap": 200,
    "theory.inputs": 4,
    "theory.answers": 4,
    "theory.more_answers": 4,
}


def command(out: Path, *more: str) -> list[str]:
    options = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    return [sys.executable, str(ROOT / "train.py"), "--device", "cpu", "--out", str(out), *options, *more]


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
