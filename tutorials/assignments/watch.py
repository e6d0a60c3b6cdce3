"""Run untrusted code in a process of its own, with a time limit for each check.

The child writes one JSON line an event to a file: {"start": check}, then {"done": check, "ok", "message", "hint"}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

IMPORT_LIMIT_S = 60.0  # torch, on half a core


def watch(program: Path, spec: Path, out: Path, results: dict[str, dict], limit_s: float) -> str | None:
    """Run `program` on the file `spec` until it ends or a check takes too long; fill `results` from the file `out`.

    Returns the check that was stopped, None if none was. Raises RuntimeError where the child never began: that is the
    grader's own failure, not the submission's.
    """
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONOPTIMIZE"}  # it removes asserts
    process = subprocess.Popen([sys.executable, str(program), str(spec)], cwd=spec.parent, env=environment, **quiet)
    running, since = "import", time.monotonic()

    def read() -> str:
        now = "import"
        for line in out.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # being written
            if "start" in row:
                now = row["start"]
            elif "done" in row:
                results[row["done"]] = {key: row[key] for key in ("ok", "message", "hint")}
                now = "between"
        return now

    while process.poll() is None:
        time.sleep(0.05)
        now = read()
        if now != running:
            running, since = now, time.monotonic()
        limit = limit_s if running not in ("import", "between") else IMPORT_LIMIT_S
        if time.monotonic() - since > limit:
            process.kill()
            process.wait()
            read()
            results[running] = {"ok": False, "message": f"no end after {limit:.0f} s", "hint": "does a loop ever stop?"}
            return running
    now = read()
    if not out.read_text(encoding="utf-8"):
        raise RuntimeError(f"{program.name} ended with status {process.returncode} before it read the submission")
    if now not in ("between", "import") or (now == "import" and "import" not in results):
        results[now] = {"ok": False, "message": "it ended the process", "hint": ""}
        return now
    return None
