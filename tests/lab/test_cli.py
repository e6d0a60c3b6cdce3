"""What a program does with its console: output in any encoding, and Ctrl-C. The options are in test_config.py."""

import io
import os
import signal
import subprocess
import sys

import pytest
from doubles import ROOT

from alignpro_mini.lab.cli import one_line_errors, parse_command_line
from alignpro_mini.sft import SFTConfig


@pytest.fixture
def console(monkeypatch):
    """console(encoding): stdout becomes a console of this encoding; returns what was written to it."""

    def set_up(encoding: str) -> io.BytesIO:
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding, write_through=True))
        return written

    return set_up


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "latin-1", "utf-8"])
@pytest.mark.parametrize("program", ["run", "help"])
def test_what_the_consoles_encoding_lacks_is_replaced(console, encoding, program):
    """minimaxir/gpt-2-simple #192, openai/gpt-2 #52, tensorflow/nmt #402: a run died of a sample that it printed."""
    written, text = console(encoding), "é λ – \u2028 \ufffd 日本 \U0001f600 \udc80."
    if program == "run":
        with one_line_errors("train.py"):
            print(text)
    else:
        parse_command_line(["--preset", "micro"])
        print(text)
    assert written.getvalue().decode(encoding).strip() == text.encode(encoding, "replace").decode(encoding)


def test_a_stream_without_an_encoding_is_left_alone(monkeypatch):
    stream = io.StringIO()  # as in a notebook
    monkeypatch.setattr(sys, "stdout", stream)
    with one_line_errors("train.py"):
        print("λ")
    assert stream.getvalue() == "λ\n"


def test_a_program_without_a_console_goes_on(monkeypatch):
    """`train.py >&- 2>&-`: then there are no such streams, and tqdm would write to None."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with one_line_errors("train.py"):
        sys.stdout.write("λ")
        sys.stderr.flush()


@pytest.mark.parametrize("word", ["--name=caf\udce9", "--api.system", "half \ud83d"])
def test_an_argument_that_is_no_text_is_told(capsys, word):
    with pytest.raises(SystemExit):
        parse_command_line(["--out", "x", word, "y"])
    err = capsys.readouterr().err
    assert ("is no whole text: is it UTF-8?" in err) == (not word.isprintable()), err
    assert err.count("\n") <= 2


def test_help_needs_no_docstrings(monkeypatch, capsys):
    """`python -OO` leaves them out."""
    monkeypatch.setattr(SFTConfig, "__doc__", None)
    with pytest.raises(SystemExit) as stopped:
        parse_command_line(["--help", "all"])
    assert stopped.value.code == 0 and "--prompter_sft.lr" in capsys.readouterr().out


# ---------------------------------------------------------------- Ctrl-C


@pytest.fixture
def own_handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("resumes", [True, False])
def test_ctrl_c_is_one_line_and_the_second_one_ends_at_once(capfd, monkeypatch, own_handler, resumes):
    ends = []
    monkeypatch.setattr(os, "_exit", ends.append)
    with pytest.raises(SystemExit) as stopped, one_line_errors("train.py", resumes):
        try:
            signal.raise_signal(signal.SIGINT)
        finally:  # what is under way is finished
            signal.raise_signal(signal.SIGINT)
            assert ends == [130]
    assert stopped.value.code == 130
    go_on = "; to go on, give the same command with --resume" if resumes else ""
    assert capfd.readouterr().err == f"\ntrain.py: stopped{go_on}\n"


def test_ctrl_c_is_as_before_after_a_good_end_and_ignored_where_it_was(own_handler):
    with one_line_errors("train.py"):
        assert signal.getsignal(signal.SIGINT) is not own_handler
    assert signal.getsignal(signal.SIGINT) is own_handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a shell's background command
    with one_line_errors("train.py"):
        signal.raise_signal(signal.SIGINT)


def test_of_several_processes_one_speaks(capfd, monkeypatch, own_handler):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit), one_line_errors("train.py"):
        signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == ""


def test_ctrl_c_while_torch_is_imported_is_one_line(tmp_path):
    (tmp_path / "torch.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    listens = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it
    how = {"env": environment, "capture_output": True, "text": True, "preexec_fn": listens}
    done = subprocess.run([sys.executable, ROOT / "train.py"], **how)
    assert done.returncode == 130 and done.stdout == ""
    assert done.stderr.strip() == "train.py: stopped before anything began; --resume is not needed"
