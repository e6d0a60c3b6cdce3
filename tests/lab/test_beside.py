"""Two stages of a run at a time: one folder, one log, one error; and no second process outlives the first.

The second process is here a fork, which knows what the tests gave it to do. Whole runs: test_end_to_end.py.
"""

import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch

from alignpro_mini.lab import beside, device
from alignpro_mini.lab.cli import with_options
from alignpro_mini.lab.config import preset
from alignpro_mini.lab.run import Run
from alignpro_mini.options import UserError
from alignpro_mini.ppo import PPOConfig

FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
needs_fork = pytest.mark.skipif(FORK is None, reason="no fork and no locks here")


@pytest.fixture
def run(tmp_path):
    return Run(replace(preset("micro"), out=str(tmp_path), name="r"))


@pytest.fixture
def second(monkeypatch):
    """second(work): what a second process does up to the stage "theirs"."""
    monkeypatch.setattr(beside, "shares", lambda config: (1, 2))
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: FORK)
    return lambda work: monkeypatch.setitem(beside.WORK, "theirs", work)


def nobody(*args, **kwargs):
    raise AssertionError("this was done already, or should not be done")


def logged(run: Run, name: str, steps: int) -> dict:
    """A stage that writes to the log, and begins it anew now and then, as a stage does that starts."""

    def make(stage):
        for step in range(steps):
            stage.log(step, {"loss": 0.0})
            run.forget_after("another", -1)
        return {"by": os.getpid()}

    return run.json(name, make)


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# ---------------------------------------------------------------- what they leave


@needs_fork
def test_both_write_one_log_and_nothing_is_lost(run, second, capsys):
    second(lambda run: logged(run, "theirs", 30))
    with beside.meanwhile(run, "theirs"):
        mine = logged(run, "mine", 30)
    theirs = run.json("theirs", nobody)
    assert mine["by"] == os.getpid() != theirs["by"]
    assert run.stages.keys() == run.finished().keys() == {"mine", "theirs"}
    run.in_order()
    expected = [(name, step) for name in ("mine", "theirs") for step in range(30)]
    assert [(row["stage"], row["step"]) for row in run.rows("metrics.jsonl")] == expected
    assert list(run.finished()) == list(run.stages) == ["mine", "theirs"]
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split(" in ")[0] for line in lines if "done in" in line) == ["[mine] done", "[theirs] done"]
    assert not any("already done" in line for line in lines), "it was done by this very command"


def test_the_order_is_that_of_the_stages_whoever_was_first(run):
    for name in ("second", "first"):
        logged(run, name, 2)
    again = Run(run.config, resume=True)
    for name in ("first", "second"):
        again.json(name, nobody)
    again.in_order()
    assert [row["stage"] for row in again.rows("metrics.jsonl")] == ["first", "first", "second", "second"]
    assert list(again.finished()) == ["first", "second"]


@needs_fork
def test_its_lines_are_shown_whole(run, second, capsys):
    def speak(run):
        print("one", end=" ")
        print("two\nthr\u00e9e \ud800")  # no UTF-8 file can hold the last character

    second(speak)
    with beside.meanwhile(run, "theirs"):
        pass
    assert capsys.readouterr().out == "one two\nthr\u00e9e ?\n"


@pytest.mark.parametrize("why", ["it does not pay", "it is done", "the folder cannot be locked"])
def test_without_a_second_process_the_stages_come_in_order(run, monkeypatch, why):
    monkeypatch.setattr(beside, "shares", lambda config: (1, 1 if why == "it does not pay" else 2))
    monkeypatch.setattr(multiprocessing, "get_context", nobody)
    if why == "it is done":
        run.json("theirs", lambda stage: {})
    if why == "the folder cannot be locked":
        run._claim.held = False
    with beside.meanwhile(run, "theirs"):
        pass


# ---------------------------------------------------------------- what ends them


@needs_fork
@pytest.mark.parametrize(
    "error", [UserError("--a: b"), OSError(28, "No space left"), FloatingPointError("loss is nan")]
)
def test_the_second_ones_error_is_told_when_the_first_has_done_its_stage(run, second, capsys, error):
    def fail(run):
        raise error

    second(fail)
    with pytest.raises(UserError) as told:
        with beside.meanwhile(run, "theirs"):
            logged(run, "mine", 1)
    assert str(told.value) == str(error)
    assert "mine" in run.finished()
    assert f"error: {error}; this run ends after the stage at work" in capsys.readouterr().out


@needs_fork
def test_a_second_process_that_was_killed_is_told_in_one_line(run, second):
    second(lambda run: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match=r"^the second process of this run ended \(-9\); to go on, give .* --resume$"):
        with beside.meanwhile(run, "theirs"):
            pass


@needs_fork
@pytest.mark.parametrize("error", [KeyboardInterrupt, FloatingPointError])
def test_what_ends_the_first_ends_the_second(run, second, tmp_path, error):
    def never_ends(run):
        (tmp_path / "pid").write_text(f"{os.getpid()}\n")
        time.sleep(60)
        (tmp_path / "ended by itself").touch()

    second(never_ends)
    with pytest.raises(error):
        with beside.meanwhile(run, "theirs"):
            wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"))
            raise error
    assert not running(int((tmp_path / "pid").read_text())) and not (tmp_path / "ended by itself").exists()


def first_process(config, line) -> None:
    def never_ends(run):
        line.send("at work")
        time.sleep(60)

    beside.WORK["theirs"] = never_ends
    with beside.meanwhile(Run(config), "theirs"):
        time.sleep(60)


@needs_fork
def test_a_second_process_does_not_outlive_a_first_that_is_killed(run, second, tmp_path):
    ours, theirs = FORK.Pipe()
    first = FORK.Process(target=first_process, args=(replace(run.config, name="killed"), theirs))
    first.start()
    theirs.close()
    assert ours.recv() == "at work"
    first.kill()
    first.join()
    assert ours.poll(30), "the second process still holds the other end"
    with pytest.raises(EOFError):
        ours.recv()


@needs_fork
def test_ctrl_c_is_for_the_first_process(run, second, tmp_path):
    """A terminal sends it to both."""

    def interrupted(run):
        os.kill(os.getpid(), signal.SIGINT)
        run.json("theirs", lambda stage: {})

    second(interrupted)
    with beside.meanwhile(run, "theirs"):
        pass
    assert "theirs" in run.stages
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@needs_fork
def test_a_run_waits_for_the_second_process_of_one_that_was_killed(run, tmp_path):
    """That one may still be writing a file."""
    config = run.config
    holds, end = FORK.Event(), FORK.Event()

    def hold() -> None:
        second = Run(config, second=True)
        holds.set()
        end.wait(30)
        del second

    process = FORK.Process(target=hold)
    process.start()
    assert holds.wait(30)
    begun = threading.Event()
    again = threading.Thread(target=lambda: Run(config, resume=True) and begun.set(), daemon=True)
    again.start()
    assert not begun.wait(0.2)
    end.set()
    assert begun.wait(30)
    process.join()


# ---------------------------------------------------------------- which cores

LARGE = {"frozen_model.d_model": 256}


@pytest.mark.parametrize(
    "name, options, cores, wanted",
    [
        ("tiny", {}, 2, (1, 2)),
        ("tiny", {}, 8, (1, 2)),
        ("tiny", {}, 1, (1, 1)),  # also OMP_NUM_THREADS=1, and --jobs with a core for each run
        ("tiny", {"ppo.iterations": 31}, 2, (1, 1)),
        ("tiny", {"ppo.iterations": 32}, 2, (1, 2)),
        ("micro", {}, 2, (1, 1)),
        ("tiny", LARGE, 2, (0, 1)),
        ("tiny", {"prompter_model.d_model": 256}, 2, (0, 1)),
        ("small", {}, 2, (0, 1)),
        ("smollm2", {}, 2, (0, 1)),
        ("smollm2", {"frozen": "api:m", "reward": "m:f"}, 2, (0, 1)),
    ],
)
def test_small_models_get_one_thread_and_where_it_pays_a_second_process(monkeypatch, name, options, cores, wanted):
    monkeypatch.setattr(device, "CORES", cores)
    assert device.shares(with_options(preset(name), {"device": "cpu", **options})) == wanted


def test_on_a_gpu_and_under_torchrun_stages_come_in_order(monkeypatch):
    monkeypatch.setattr(device, "CORES", 2)
    monkeypatch.setattr(device.dist, "is_initialized", lambda: True)
    assert device.shares(preset("tiny")) == (1, 1)
    monkeypatch.setattr(device, "resolve_device", torch.device)
    assert device.shares(replace(preset("tiny"), device="cuda")) == (0, 1)


def test_a_run_of_small_models_computes_with_one_thread(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    Run(with_options(preset("tiny"), {"out": str(tmp_path), "device": "cpu"}))
    Run(with_options(preset("small"), {"out": str(tmp_path), "device": "cpu"}))
    assert asked == [1]
    assert preset("tiny").ppo.batch_size == PPOConfig().batch_size == 64  # what the rule's example counts with
