"""A run's folder: what it refuses, which files a kill leaves, and that a stage goes on where it stopped, bit for bit."""

import ctypes
import inspect
import json
import math
import os
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from warm import PROCESSES

from alignpro_mini.lab.config import preset
from alignpro_mini.lab.run import Run, RunStage
from alignpro_mini.options import UserError
from alignpro_mini.training import SilentStage, Stage
from alignpro_mini.weights import tensors
from alignpro_mini.weights.tensors import write_json


@pytest.fixture
def config(tmp_path):
    return replace(preset("tiny"), out=str(tmp_path), name="r")


@pytest.fixture
def run(config):
    return Run(config)


# ---------------------------------------------------------------- the folder


def test_a_new_run_writes_every_option(run, config):
    saved = json.loads((run.path / "config.json").read_text())
    assert (
        saved["seed"] == 0 and saved["ppo"]["lr"] == config.ppo.lr and saved["world"]["follow"] == config.world.follow
    )
    assert (run.path / "checkpoints").is_dir()


def test_an_existing_run_is_refused_without_resume_and_found_again_with_it(run, config):
    write_json(run.path / "stages.json", {"frozen_lm": {"seconds": 1.0}})
    with pytest.raises(FileExistsError, match="already holds a run.*--resume.*--name"):
        Run(config)
    assert Run(config, resume=True).stages == {"frozen_lm": {"seconds": 1.0}}


def test_resuming_without_a_run_starts_one(config):
    assert Run(config, resume=True).stages == {}


def test_other_options_on_resume_are_named_and_nothing_is_overwritten(run, config):
    other = replace(config, ppo=replace(config.ppo, lr=9e-4), seed=3)
    with pytest.raises(UserError, match=r"ppo\.lr was 0\.0005, now 0\.0009.*seed was 0, now 3"):
        Run(other, resume=True)
    assert json.loads((run.path / "config.json").read_text())["seed"] == 0


def test_a_moved_run_may_be_resumed_elsewhere(run, config, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    run.path.rename(tmp_path / "elsewhere" / "r")
    moved = Run(replace(config, out=str(tmp_path / "elsewhere")), resume=True)
    assert moved.path == tmp_path / "elsewhere" / "r"


@pytest.mark.parametrize("place", ["out", "name"])
def test_a_file_in_the_way_is_told_with_the_mend(config, tmp_path, place):
    (tmp_path / "taken").write_text("I was here first")
    blocked = replace(config, out=str(tmp_path / "taken")) if place == "out" else replace(config, name="taken")
    with pytest.raises(OSError, match="taken.*cannot be written.*--out"):
        Run(blocked)
    assert (tmp_path / "taken").read_text() == "I was here first"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_told_with_the_mend(config, tmp_path):
    (tmp_path / "sealed").mkdir(mode=0o500)
    with pytest.raises(OSError, match="cannot be written.*--out"):
        Run(replace(config, out=str(tmp_path / "sealed")))


# ---------------------------------------------------------------- a folder belongs to one process

needs_locks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no locks on folders here")


def hold(line, config) -> None:
    """In another process: say what became of the folder's claim, and keep it until told otherwise."""
    try:
        run = Run(config, resume=True)
        line.send(f"holds {run.path.name}")
        line.poll(300)  # no test waits longer
    except UserError as error:
        line.send(str(error))


@contextmanager
def another_process(config):
    """(what it says, the process, where to tell it to end) of a process that takes the run's folder."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=hold, args=(theirs, config), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours.recv() if ours.poll(300) else "waits", process, ours
    finally:
        process.kill()
        process.join()


@needs_locks
@pytest.mark.parametrize("ends", ["by itself", "by SIGKILL"])
def test_a_folder_that_another_process_works_in_is_refused_until_that_ends(config, tmp_path, ends):
    half = tmp_path / "r" / ".stages.json.tmp"
    with another_process(config) as (said, process, line):
        assert said == "holds r"
        half.write_text("half of what the other process wri")
        for resume in (False, True):
            with pytest.raises(UserError, match="r is in use by another process: wait, or use another --name"):
                Run(config, resume)
        assert half.exists(), "the other one is writing it"
        line.send("end") if ends == "by itself" else process.kill()
        process.join()
        Run(config, resume=True)
    assert not half.exists(), "nobody is writing it any more"


@needs_locks
def test_a_run_that_may_wait_begins_when_the_other_process_ends(config):
    begun = threading.Event()
    waits = threading.Thread(target=lambda: Run(config, resume=True, wait=True) and begun.set(), daemon=True)
    with another_process(config) as (_, _, line):
        waits.start()
        assert not begun.wait(0.2)
        line.send("end")
        assert begun.wait(300)


@needs_locks
def test_a_process_may_have_several_runs_of_its_folder_and_holds_it_until_the_last_is_gone(config):
    first, second = Run(config), Run(config, resume=True)
    del first
    with another_process(config) as (said, _, _):
        assert "r is in use by another process" in said
    assert second.path.is_dir()
    del second
    with another_process(config) as (said, _, _):
        assert said == "holds r"


# ---------------------------------------------------------------- files that survive a kill


class Killed(BaseException):
    """A stand-in for SIGKILL: nothing in the code may catch it."""


def test_write_json_killed_before_the_rename_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "v.json"
    write_json(path, {"a": 1})

    def killed(*_):
        raise Killed

    monkeypatch.setattr(tensors.os, "replace", killed)
    with pytest.raises(Killed):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


def test_write_json_refuses_nan_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "v.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.parametrize("text", ["a\u2028b", "a\x85b", "a\x1cb", "a\r\nb", "\u2029", "日本 🙂 \ufffd"])
def test_a_text_with_odd_line_breaks_is_one_row(run, text):
    """str.splitlines breaks at U+2028 and U+0085 too, which a model that samples single bytes prints now and then."""
    run.append("samples.jsonl", [{"stage": "s", "step": 1, "y": text}, {"stage": "s", "step": 2, "y": "next"}])
    assert [r["y"] for r in run.rows("samples.jsonl")] == [text, "next"]
    run.forget_after("s", 1)
    assert [r["y"] for r in run.rows("samples.jsonl")] == [text]


def test_forget_after_drops_only_later_rows_of_that_stage(run):
    rows = [{"stage": s, "step": i, "v": 10 * i} for s in ("a", "b") for i in (1, 2, 3)]
    for file in ("metrics.jsonl", "samples.jsonl", "snapshots.jsonl"):
        run.append(file, rows)
        (run.path / file).open("a").write('{"stage": "b", "st')  # and a line that a kill cut
    run.forget_after("b", 1)
    for file in ("metrics.jsonl", "samples.jsonl", "snapshots.jsonl"):
        assert [(r["stage"], r["step"]) for r in run.rows(file)] == [("a", 1), ("a", 2), ("a", 3), ("b", 1)]
        run.append(file, [{"stage": "b", "step": 2, "v": 0}])
        assert len(run.rows(file)) == 5  # the cut line is gone from the file: what follows it is readable


# ---------------------------------------------------------------- stages


def test_a_finished_stage_is_loaded_not_done_again(run, config, capsys):
    calls = []

    def make(stage):
        calls.append("make")
        stage.state_path.write_text("state")
        return 7

    done = lambda r: r.once("s", make, lambda: calls.append("load") or 8, lambda v: calls.append(f"save {v}"))
    assert done(run) == 7 and calls == ["make", "save 7"]
    assert not (run.path / "checkpoints" / "s.state.safetensors").exists()
    assert done(run) == 8 and done(Run(config, resume=True)) == 8
    assert calls == ["make", "save 7", "load", "load"]
    assert "already done" in capsys.readouterr().out


def test_a_stage_killed_in_its_work_or_while_saving_is_done_again(run, config):
    def killed(*_):
        raise Killed

    with pytest.raises(Killed):
        run.once("s", killed, lambda: 0, lambda v: None)
    with pytest.raises(Killed):
        run.once("s", lambda stage: 1, lambda: 0, killed)
    again = Run(config, resume=True)
    assert "s" not in again.stages
    assert again.once("s", lambda stage: 2, lambda: 0, lambda v: None) == 2


def test_a_stage_without_a_state_starts_with_a_clean_log(run, config):
    """The evaluation logs samples at step 0 and keeps no state: killed after that, it must not log them twice."""

    def make(stage, die):
        stage.samples(0, [{"x": "a"}], show=False)
        if die:
            raise Killed
        return {"ok": 1}

    with pytest.raises(Killed):
        run.json("evaluation", lambda stage: make(stage, True))
    run.append("samples.jsonl", [{"stage": "other", "step": 4, "x": "kept"}])
    (run.path / "samples.jsonl").open("a").write('{"stage": "eval')
    assert Run(config, resume=True).json("evaluation", lambda stage: make(stage, False)) == {"ok": 1}
    assert [(r["stage"], r["x"]) for r in run.rows("samples.jsonl")] == [("other", "kept"), ("evaluation", "a")]


def test_json_stages_come_back_as_written(run, config):
    made = run.json("facts", lambda stage: {"a": [1, 2.5, None], "b": "é"})
    assert Run(config, resume=True).json("facts", lambda stage: pytest.fail("made again")) == made


def test_tensor_stages_come_back_as_written(run, config):
    made = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([True, False])}
    first = run.tensors("arms", lambda stage: (made, {"n": 3, "names": ["x", "é"]}))
    assert (run.path / "checkpoints" / "arms.safetensors").exists()
    again = Run(config, resume=True).tensors("arms", lambda stage: pytest.fail("made again"))
    for found, facts in (first, again):
        assert found.keys() == made.keys() and all(torch.equal(found[k], made[k]) for k in made)
        assert facts == {"n": 3, "names": ["x", "é"]}


def test_a_runs_stage_offers_what_the_trainers_call(run):
    """`RunStage`, `SilentStage` and the protocol agree on names and arguments."""
    methods = ("progress", "log", "save", "restore")
    assert set(methods) == {name for name in vars(Stage) if not name.startswith("_")}
    for name in methods:
        wanted = list(inspect.signature(getattr(Stage, name)).parameters)
        for kind in (RunStage, SilentStage):
            assert list(inspect.signature(getattr(kind, name)).parameters) == wanted, (kind, name)
    assert list(RunStage(run, "s").progress(2, 5)) == list(SilentStage().progress(2, 5)) == [2, 3, 4]
    assert SilentStage().restore(nn.Linear(1, 1)) == (0, {})


def test_a_stage_without_steps_says_that_it_is_at_work_until_it_ends(run, monkeypatch, capsys):
    """The headroom and an arm of the evaluation are one batch of answers each: minutes with a real model."""
    monkeypatch.setattr("alignpro_mini.lab.run.SILENCE", 0.01)
    said = []

    def wait(stage) -> dict:
        stage.doing = "arm align_pro"
        until = time.monotonic() + 30
        while "arm align_pro" not in "".join(said) and time.monotonic() < until:
            time.sleep(0.01)
            said.append(capsys.readouterr().out)
        return {}

    run.json("s", wait)
    assert re.search(r"^\[s\] arm align_pro: at work for \d+ s$", "".join(said), re.MULTILINE)
    assert not [thread for thread in threading.enumerate() if thread.name.endswith("(watch)")]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's count of resident pages")
def test_memory_that_a_step_freed_goes_back_to_the_system(run, monkeypatch):
    """glibc keeps what lies below a block that is still in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        pytest.skip("this C library has no malloc_trim")
    resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr("alignpro_mini.lab.run.TRIM_EVERY", 0.0)
    torch.ones(2**22)  # freed at once: from here on blocks of up to 16 MB come from the heap
    trim(0)
    before, held = resident(), []
    for step in RunStage(run, "s").progress(0, 2):
        if step == 0:
            blocks = [torch.ones(2**18) for _ in range(200)]  # 1 MB each
            held, peak = blocks[-1:], resident()
            del blocks
            kept = resident()
    assert peak - before > 150e6 and kept - before > 150e6 and len(held) == 1
    assert resident() - before < 50e6


def test_samples_are_kept_with_their_step_and_the_first_three_shown(run, capsys):
    stage = RunStage(run, "s")
    rows = [{"x": f"x{i}", "x_prime": f"r{i}", "y": f"y{i}", "reward": 0.5, "kl": 1.0} for i in range(4)]
    stage.log(1, {"loss": 1.0}, rows)
    stage.log(2, {"loss": 0.5})
    assert run.rows("samples.jsonl") == [{"stage": "s", "step": 1, **row} for row in rows]
    assert [r["step"] for r in run.rows("metrics.jsonl")] == [1, 2]
    out = capsys.readouterr().out
    assert all(f"x{i}" in out and f"r{i}" in out and f"y{i}" in out for i in range(3)) and "x3" not in out


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_stops_the_run_by_name(run, bad):
    stage = RunStage(run, "align_pro")
    stage.log(1, {"loss": 0.5, "gold_mean": None, "note": "fine"})
    with pytest.raises(FloatingPointError, match="align_pro step 2: entropy is"):
        stage.log(2, {"loss": 0.5, "entropy": bad})
    assert [r["step"] for r in run.rows("metrics.jsonl")] == [1]


def toy(seed: int):
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == d], "weight_decay": w} for d, w in ((2, 0.1), (1, 0.0))
    ]
    return model, torch.optim.AdamW(groups, lr=0.1, betas=(0.7, 0.95)), g


def steps(model, optimizer, generator, count):
    for _ in range(count):
        for group in optimizer.param_groups:
            group["lr"] *= 0.9  # a schedule whose state is in the optimiser
        optimizer.zero_grad()
        (model(torch.randn(8, 3, generator=generator)) ** 2).mean().backward()
        optimizer.step()


def everything(model, optimizer, generator) -> dict:
    moments = {f"{p}.{k}": v for p, m in optimizer.state_dict()["state"].items() for k, v in m.items()}
    groups = optimizer.state_dict()["param_groups"]
    return (
        dict(model.state_dict())
        | moments
        | {"generator": generator.get_state()}
        | {
            f"lr{i}": torch.tensor([g["lr"], g["weight_decay"], *g["betas"]], dtype=torch.float64)
            for i, g in enumerate(groups)
        }
    )


def test_weights_moments_and_generator_come_back_to_the_bit(run, config):
    straight = toy(0)
    steps(*straight, 7)

    first = toy(0)
    steps(*first, 4)
    RunStage(run, "s").save(4, *first, kl_coef=0.123)
    second = toy(99)  # another process: other weights, an optimiser without moments, a generator in another state
    assert RunStage(Run(config, resume=True), "s").restore(*second) == (4, {"kl_coef": 0.123})
    steps(*second, 3)

    want, got = everything(*straight), everything(*second)
    assert want.keys() == got.keys() and any(k.endswith("exp_avg_sq") for k in want)
    for key in want:
        assert torch.equal(want[key], got[key]), key


def test_a_stage_without_moments_would_have_noticed(run):
    """The test above can fail only if losing the moments changes the weights."""
    whole, forgetful = toy(0), toy(0)
    for thing in (whole, forgetful):
        steps(*thing, 4)
    forgetful[1].state.clear()
    steps(*whole, 3)
    steps(*forgetful, 3)
    assert not torch.equal(whole[0][0].weight, forgetful[0][0].weight)


def test_restore_without_a_state_starts_at_zero_and_forgets_the_log(run):
    run.append("metrics.jsonl", [{"stage": "s", "step": 1}, {"stage": "t", "step": 1}])
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    assert RunStage(run, "s").restore(model) == (0, {})
    assert torch.equal(model.weight, before)
    assert [r["stage"] for r in run.rows("metrics.jsonl")] == ["t"]


def test_restore_drops_the_log_after_the_state(run):
    stage, model = RunStage(run, "s"), nn.Linear(2, 2)
    for step in (1, 2, 3):
        stage.log(step, {"loss": 1.0})
        if step == 2:
            stage.save(step, model)
    assert RunStage(run, "s").restore(model) == (2, {})
    assert [r["step"] for r in run.rows("metrics.jsonl")] == [1, 2]


@pytest.mark.parametrize(
    ("takes", "saved"), [(0.5, [1, 2, 3, 4, 5, 6, 7, 8]), (1.5, [1, 4, 7, 8]), (3.0, [1, 7, 8]), (9.0, [1, 8])]
)
def test_a_state_that_takes_long_to_write_is_saved_less_often(run, monkeypatch, takes, saved):
    """Every 5 seconds the trainer offers a state; writing takes at most a tenth of the time, but the last is written."""
    now, steps = [100.0], []
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def write(path, tensors, meta):
        steps.append(meta["step"])
        now[0] += takes

    monkeypatch.setattr("alignpro_mini.lab.run.save_state", write)
    stage = RunStage(run, "s")
    for step in stage.progress(0, 8):
        now[0] = 100.0 + 5 * step
        stage.save(step + 1, nn.Linear(1, 1))
    assert steps == saved


def test_the_state_of_a_stage_that_ends_early_is_written_too(run, monkeypatch):
    monkeypatch.setattr("time.perf_counter", lambda: 100.0)
    steps = []
    monkeypatch.setattr("alignpro_mini.lab.run.save_state", lambda path, tensors, meta: steps.append(meta["step"]))
    monkeypatch.setattr("alignpro_mini.lab.run.runaway", lambda rows: "it ran away" if len(rows) == 3 else None)
    stage = RunStage(run, "s")
    stage._next_save = 1e9  # writing the last one took long
    for step in stage.progress(0, 8):
        stage.log(step + 1, {"kl_k1": 0.0})
        stage.save(step + 1, nn.Linear(1, 1))
    assert steps == [3]


def test_seconds_before_a_kill_are_counted(run):
    stage = RunStage(run, "s")
    stage._clock -= 100  # as if it had run for 100 seconds
    stage.save(1, nn.Linear(1, 1))
    again = RunStage(run, "s")
    again.restore(nn.Linear(1, 1))
    assert 100 <= again.seconds() < 110


def test_streams_are_repeatable_and_their_own(config, tmp_path):
    draw = lambda run, name: torch.rand(4, generator=run.generator(name)).tolist()
    a, b = Run(replace(config, name="a")), Run(replace(config, name="b", seed=1))
    assert draw(a, "preferences") == draw(a, "preferences")
    streams = [
        draw(r, n) for r in (a, b) for n in ("frozen_lm", "prompter_sft", "align_pro", "rlhf_oracle", "evaluation")
    ]
    assert len({tuple(s) for s in streams}) == len(streams)


def test_a_run_goes_on_with_options_that_change_no_result(tmp_path, capsys):
    config = replace(preset("smollm2"), out=str(tmp_path), frozen="api:m")
    Run(config)
    Run(replace(config, stop=False, api=replace(config.api, token_budget=5, retries=1, timeout=3.0)), resume=True)
    moved = replace(config, api=replace(config.api, base_url="http://127.0.0.1/v1"))
    Run(moved, resume=True)
    told = "--api.base_url was 'https://api.openai.com/v1', now 'http://127.0.0.1/v1': the answers that are kept still serve"
    assert capsys.readouterr().out.splitlines().count(told) == 1
    for other in (replace(config.api, extra='{"top_k": 9}'), replace(config.api, system="Be brief.")):
        with pytest.raises(UserError, match="was started with other options"):
            Run(replace(config, api=other), resume=True)
