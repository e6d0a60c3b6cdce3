"""Cells of studies on models far too small to learn, and their commands."""

import pytest

from alignpro_mini.experiments import study
from alignpro_mini.lab.cli import with_options
from alignpro_mini.lab.config import RunConfig, preset

FEW = {"ppo.iterations": 2, "oracle.iterations": 2, "frozen_lm.steps": 30, "prompter_sft.steps": 30}


def cell_config(out, **changes) -> RunConfig:
    """A cell's configuration, as `study.main` hands it to a study."""
    return with_options(preset("micro"), FEW | {"device": "cpu", "out": str(out), "name": "g"} | changes)


def started(monkeypatch, *studies, argv=(), module="") -> tuple:
    """What a command hands to `run_all`: the program, the names of the runs, whether to resume, the study's options."""
    calls = []

    def run_all(program, configs, given, one):
        calls.append((program, [c.run_name for c in configs], given.resume, one.args[1]))
        return [], []

    monkeypatch.setattr(study, "run_all", run_all)
    monkeypatch.setattr("sys.argv", ["command", *argv])
    study.main(*studies, module=module)
    (call,) = calls
    return call


def refused(monkeypatch, capsys, *studies, argv=(), module="") -> str:
    """The one line with which a command ends before any work."""
    monkeypatch.setattr(study, "run_all", lambda *given: pytest.fail("it began"))
    monkeypatch.setattr("sys.argv", ["command", *argv])
    with pytest.raises(SystemExit) as stop:
        study.main(*studies, module=module)
    text = capsys.readouterr().err if stop.value.code == 2 else stop.value.code
    (line,) = [line for line in text.splitlines() if line and not line.startswith("usage:")]
    return line
