"""Runs side by side: what they leave, what a failed one costs, and that none outlives the command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignpro_mini import jobs
from alignpro_mini.cli import parse_command_line

RUN = """
import json, os, pathlib, sys
task, seed = sys.argv[sys.argv.index("--task") + 1], sys.argv[sys.argv.index("--seed") + 1]
print("threads", os.environ["OMP_NUM_THREADS"], *sys.argv[1:])
if seed == "1":
    sys.exit("seed 1 is unlucky")
folder = pathlib.Path(sys.argv[sys.argv.index("--out") + 1], f"tiny-{task}-seed{seed}")
folder.mkdir()
(folder / "results.json").write_text(json.dumps({"task": task, "seed": int(seed)}))
"""


def test_a_failed_run_is_named_and_the_others_count(tmp_path, capsys):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    argv = ["--seed=0-2", "--task", "quality", "--jobs", "2", "--out", str(tmp_path)]
    results, failed = jobs.run_side_by_side(script, argv, parse_command_line(argv)[0], 2)
    assert [r["seed"] for r in results] == [0, 2] and failed == [tmp_path / "tiny-quality-seed1.log"]
    assert "seed 1 is unlucky" in failed[0].read_text() and "tiny-quality-seed1: FAILED" in capsys.readouterr().out
    said = (tmp_path / "tiny-quality-seed2.log").read_text().split()
    assert said == [
        "threads",
        str(max(1, os.cpu_count() // 2)),
        "--out",
        str(tmp_path),
        "--task",
        "quality",
        "--seed",
        "2",
    ]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_what_ends_the_command_ends_its_runs(tmp_path, how):
    (tmp_path / "run.py").write_text("import os, sys, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n")
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import pathlib, signal, sys\nfrom alignpro_mini import jobs\nfrom alignpro_mini.cli import parse_command_line\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # what a shell puts into the background ignores it
        "jobs.run_side_by_side(pathlib.Path(sys.argv[1]), sys.argv[2:], parse_command_line(sys.argv[2:])[0], 2)\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, str(parent), str(tmp_path / "run.py"), "--seed", "0,1", "--out", str(out)]
    process = subprocess.Popen(command, cwd=Path(__file__).resolve().parent.parent, stderr=subprocess.DEVNULL)
    logs, until = [out / f"tiny-quality-seed{seed}.log" for seed in (0, 1)], time.monotonic() + 60
    while not all(log.exists() and log.read_text().strip() for log in logs) and time.monotonic() < until:
        time.sleep(0.1)
    children = [int(log.read_text()) for log in logs]
    process.send_signal(how)
    assert process.wait(30) != 0
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    argv = ["--out", str(tmp_path / "file" / "runs")]
    with pytest.raises(OSError, match="cannot be written .* choose another folder with --out"):
        jobs.run_side_by_side(tmp_path / "run.py", argv, parse_command_line(argv)[0], 2)
