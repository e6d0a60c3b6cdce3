"""The process that a submission runs in: it makes the calls, and judge.py, in the grader's process, compares.

judge.py copies this file, and the few that it needs, into a folder of its own. Neither the oracles nor the assigned
functions are there, and the results are not written here. A job comes in on standard input; each outcome goes out on what
was standard output. Every check has a process of its own, a fork of this one, so that nothing is left of it when the next
check begins.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import pickle
import sys
import tempfile
from pathlib import Path

PLACE = Path(__file__).resolve().parent
SUBMISSION = PLACE / "submission.py"
# What a submission needs for no assignment: to start a process, to leave something for the process of another check.
REFUSED = ("os.fork", "os.forkpty", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.")
REFUSED += ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.utime", "os.chmod", "os.setxattr")


def fence(hidden: list[str]):
    """An audit hook of Python that refuses to write a file, and to read one in the folders `hidden`."""
    hidden = [Path(folder) for folder in (*hidden, "/proc")]
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC

    def hook(event: str, args: tuple) -> None:
        if event.startswith(REFUSED):
            raise PermissionError(f"a submission may not do this: {event}")
        if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
            path = Path(os.path.realpath(os.fsdecode(args[0])))
            writes = isinstance(args[2], int) and args[2] & writing and str(path) != os.devnull
            if writes or any(path.is_relative_to(folder) for folder in hidden):
                raise PermissionError(f"a submission may not open this file: {args[0]}")

    return hook


def receive(stream) -> dict:
    """The next job; {} where there is no more."""
    size = int.from_bytes(stream.read(8), "big")
    return pickle.loads(stream.read(size)) if size else {}


def send(stream, message) -> None:
    """As bytes that can be read without running anything: the reader must not trust them."""
    import torch

    data = io.BytesIO()
    torch.save(message, data)
    stream.write(len(data.getvalue()).to_bytes(8, "big") + data.getvalue())
    stream.flush()


def main() -> None:
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    for descriptor in (0, 1, 2):  # what the submission prints is not shown
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    sys.dont_write_bytecode = True
    import torch

    torch.set_num_threads(1)
    from graft import Places

    start = receive(jobs)
    sys.path.insert(0, str(PLACE))
    checks = importlib.import_module(f"checks.{start['assignment']}")
    tempfile.tempdir = str(PLACE)  # to look for one is to write files
    if getattr(checks, "TRAINS", False):  # PyTorch imports much for the first optimiser: once, and not in every fork
        torch.optim.SGD([torch.zeros(1)])
    places = Places(start["functions"])
    send(answers, "ready")
    while job := receive(jobs):
        if sys.platform == "linux":  # elsewhere a fork after the import of PyTorch is not safe
            if worker := os.fork():
                os.waitpid(worker, 0)
                send(answers, "ended")
                continue
            jobs.close()
        run(job, checks, places, lambda message: send(answers, message))
        os._exit(0)  # without a fork the grader starts this process anew


def run(job: dict, checks, places, answer) -> None:
    """One check. Answers ("import", why not), ("missing", what), or "begins", the outcome of each case, and "done"."""
    import torch
    from checks import base
    from graft import told

    sys.addaudithook(fence(job["hidden"]))
    where = importlib.util.spec_from_file_location("submission", SUBMISSION)
    module = importlib.util.module_from_spec(where)
    sys.modules["submission"] = module
    try:
        where.loader.exec_module(module)
    except BaseException as error:  # sys.exit, too
        answer(("import", f"your file does not import: {type(error).__name__}: {error}"))
        return
    # The other functions of the assignment are the right ones: each is judged alone.
    for path, text in job["others"].items():
        places.put(path, places.compiled(path, text))
        if (name := ".".join(places.names[path])) in vars(module):
            setattr(module, name, places.current[path])
    try:
        mine = {path: places.put_submitted(path, module) for path in job["mine"]}
    except LookupError as error:
        answer(("missing", str(error)))
        return
    function = mine[job["check"]] if job["check"] in mine else None
    rng = torch.Generator().manual_seed(job["seed"])
    base.known.told = True
    base.known[:] = job["known"]
    try:
        cases = checks.whole(rng) if function is None else checks.cases(job["check"], rng)
    except Exception as error:
        answer(("import", f"no check can be made beside your file: {told(error, checks.__file__)}"))
        return
    answer("begins")
    for case in cases:
        try:
            found = base.outcome(function, case, str(SUBMISSION))
        except BaseException as error:  # sys.exit, too
            found = ("raised", type(error).__name__, told(error, str(SUBMISSION)))
        answer(found)
    answer("done")


if __name__ == "__main__":
    main()
