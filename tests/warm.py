"""Python programs in processes of their own that do not import PyTorch anew: an import of two to three seconds.

A process that has imported it once, and nothing of this package, is forked for each program ("forkserver" of
multiprocessing). Where a fork is not safe, as on a Mac, each program is a fresh process.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

PROCESSES = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
# torch._dynamo: the first optimiser imports it. pytest: the main program of the process that asks.
PROCESSES.set_forkserver_preload(["torch", "torch._dynamo", "matplotlib.backends.backend_agg", "tokenizers", "pytest"])


class Program:
    """`python *argv` (a script or `-m module`) with one thread; what `subprocess.Popen` offers, as far as tests use it.

    variables   of the environment, besides those of this process; PYTHONPATH counts
    merged      standard error goes where standard output goes
    """

    def __init__(self, argv: list, cwd: Path, variables: dict[str, str], merged: bool = False) -> None:
        self._place = tempfile.TemporaryDirectory()
        self._files = [Path(self._place.name, name) for name in ("out", "out" if merged else "err")]
        variables = {"OMP_NUM_THREADS": "1"} | variables
        given = [str(word) for word in argv], str(cwd), variables, [str(file) for file in self._files]
        self._process = PROCESSES.Process(target=_run, args=given)
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    returncode = property(poll)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a program", timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return tuple(file.read_text(encoding="utf-8", errors="replace") for file in self._files)

    def send_signal(self, sent: int) -> None:
        if self.poll() is None:
            os.kill(self._process.pid, sent)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(argv: list, cwd: Path, variables: dict[str, str]) -> subprocess.CompletedProcess:
    program = Program(argv, cwd, variables)
    out, err = program.communicate()
    return subprocess.CompletedProcess(argv, program.returncode, out, err)


def _run(argv: list[str], cwd: str, variables: dict[str, str], files: list[str]) -> None:
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # a killed program's lines are not lost
    os.chdir(cwd)
    os.environ.update(variables)
    tempfile.tempdir = None  # TMPDIR may be another one
    is_module = argv[0] == "-m"
    sys.argv[:] = argv[is_module:]
    name = sys.argv[0]
    beside = cwd if is_module else str(Path(name).resolve().parent)
    sys.path[:0] = [beside, *filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))]
    import torch

    torch.set_num_threads(1)  # OMP_NUM_THREADS was read when torch was imported
    if is_module:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(name, run_name="__main__")
