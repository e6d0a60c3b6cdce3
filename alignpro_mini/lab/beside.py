"""Two stages of a run at a time, each in a process with one thread, where that pays (`device.shares`).

    with meanwhile(run, "prompter_sft"):
        pi_f = pipeline.frozen_lm(...)        # made by this process
    rho_sft = pipeline.prompter_sft(...)      # loaded, if the second process has made it; else made now, in order

* **What the second process does.** It is a new interpreter with the same configuration. It makes the world again, loads
  the finished stages that it needs, as `--resume` does, and makes its own ones (`WORK`) in the same folder.
* **Why the results are the same.** A stage depends on its inputs and on random streams of its own (`Run.generator`).
* **Files.** Each stage has its own checkpoints. The log and `stages.json` belong to both: they are changed in turn
  (`claim.turn`), and brought into the order of the stages at the end (`Run.in_order`).
* **Ends.** When the first process ends in any way, the second one ends too. When the second one fails, the first one
  finishes its stage, then ends with the other's error. `--resume` goes on in both.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection

from tqdm import tqdm

from alignpro_mini.lab import assess, pipeline
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.device import shares
from alignpro_mini.lab.run import Run
from alignpro_mini.lab.setup import setup_of
from alignpro_mini.options import UserError

GO_ON = "to go on, give the same command with --resume"

# ---------------------------------------------------------------- what the second process makes


def _prompter_sft(run: Run) -> None:
    setup = setup_of(run.config)
    with redirect_stdout(io.StringIO()):  # the first process has told of the world and of finished stages
        world = setup.make_world()
        tokenizer = setup.tokenizer(run, world)
    pipeline.prompter_sft(run, setup, world, tokenizer)


def _all_but_align_pro(run: Run) -> None:
    """What needs the reward, but no trained prompter."""
    setup = setup_of(run.config)
    with redirect_stdout(io.StringIO()):
        world = setup.make_world()
        tokenizer = setup.tokenizer(run, world)
        pi_f = pipeline.frozen_lm(run, setup, world, tokenizer)
        rho_sft = pipeline.prompter_sft(run, setup, world, tokenizer)
        reward = pipeline.reward_model(run, setup, world, pi_f, rho_sft)
    pipeline.fixed_rewrite(run, world, pi_f, reward)
    oracle = pipeline.rlhf_oracle(run, world, pi_f, reward)
    rated = assess.rate_rewrites(run, setup, world, pi_f, reward)
    assess.sample_oracle(run, pi_f, oracle, reward, rated)
    assess.evaluate_plain(run, world, pi_f, oracle, reward)


WORK = {"prompter_sft": _prompter_sft, "evaluation_plain": _all_but_align_pro}  # by the stage that ends it

# ---------------------------------------------------------------- the first process


@contextmanager
def meanwhile(run: Run, until: str) -> Iterator[None]:
    """While the block runs, a second process makes the stages up to `until`, where that pays; else nobody.

    Waits for it at the end of the block. Raises UserError with its error, or where it was killed.
    """
    _, number = shares(run.config)
    if number == 1 or until in run.stages or not run.may_share:
        yield
        return
    spawn = multiprocessing.get_context("spawn")
    shown, printed = spawn.Pipe(duplex=False)
    told, failure = spawn.Pipe(duplex=False)
    second = spawn.Process(target=_second, args=(until, run.config, printed, failure), daemon=True)
    _start_without_ctrl_c(second)
    printed.close()
    failure.close()
    show = threading.Thread(target=_show, args=(shown,), daemon=True)
    show.start()
    before = set(run.stages)
    try:
        yield
        second.join()
    finally:
        second.kill()
        second.join()
        show.join()
    if second.exitcode:
        raise UserError(_received(told) or f"the second process of this run ended ({second.exitcode}); {GO_ON}")
    run.told |= run.finished().keys() - before
    run.stages = run.finished()


def _start_without_ctrl_c(process: multiprocessing.Process) -> None:
    """A terminal sends Ctrl-C to both processes. The first one answers it, and ends the second one."""
    resource_tracker.ensure_running()  # `start` would do it, and unblock the signal
    if not hasattr(signal, "pthread_sigmask"):
        process.start()
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    process.start()  # with the signal blocked for good
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _show(lines: Connection) -> None:
    """Print the lines of the second process, beside the progress bar of this one."""
    with open(lines.fileno(), encoding="utf-8", closefd=False) as text:
        for line in text:
            tqdm.write(line, file=sys.stdout, end="")
            sys.stdout.flush()


def _received(line: Connection) -> str:
    try:
        return line.recv()
    except EOFError:  # it could not say anything
        return ""


# ---------------------------------------------------------------- the second process


def _second(until: str, config: RunConfig, printed: Connection, failure: Connection) -> None:
    """Its whole life. A bug's traceback goes to stderr; what a user can correct goes to the first process."""
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # tqdm's own is a semaphore, of which Python complains when its process is killed
    out = open(printed.fileno(), "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)
    with out, redirect_stdout(out):
        try:
            WORK[until](Run(config, second=True))
        except (UserError, OSError, FloatingPointError) as error:
            failure.send(str(error))
            print(f"error: {error}; this run ends after the stage at work", flush=True)
            sys.exit(1)


def _end_with_the_first() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
