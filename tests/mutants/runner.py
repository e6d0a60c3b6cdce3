"""Break a copy of the repository by each mutant, run the tests that it names, and demand that every one fails.

    python tests/mutants                 # every mutant: about 4 s each on one core
    python tests/mutants k1-swapped ...  # these only

First the same tests must pass unbroken. Exit status 1 if a mutant survives, or does not run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from mutants import MUTANTS, ROOT, Mutant, mutate

COPIED = ("alignpro_mini", "tests", "tutorials", "pyproject.toml")
TIMEOUT_S = 600  # a mutant may loop for ever

# `python -c` puts the working directory, the copy, first on sys.path, before the editable install. Trust, but verify.
DRIVER = """
import importlib, pathlib, sys, pytest
copy = pathlib.Path.cwd().resolve()
for name in sys.argv.pop(1).split(','):
    path = pathlib.Path(importlib.import_module(name).__file__).resolve()
    assert path.is_relative_to(copy), f'{path} is imported, not the copy in {copy}'
sys.exit(pytest.main(sys.argv[1:]))
"""


def path_of(node: str) -> str:
    """`test_file.py::test` with the file's path from the repository. ValueError unless there is one such file."""
    file, _, test = node.partition("::")
    found = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob(file)]
    if len(found) != 1:
        raise ValueError(f"{file} is {len(found)} files below tests/")
    return f"{found[0]}::{test}"


def run_tests(nodes: Iterable[str], broken: Mutant | None = None) -> tuple[dict[str, str], str]:
    """Run tests in a copy of the repository, broken by a mutant. Returns ({node: outcome}, pytest's output).

    A node's outcome is `failed` if one of its cases failed, else `passed` if one passed, else `not run`.
    """
    nodes = list(nodes)
    module = Path(broken.file).with_suffix("").as_posix().replace("/", ".") if broken else "alignpro_mini"
    if not module.startswith("alignpro_mini"):
        module = "alignpro_mini"  # a script is no module: its tests start it from the copy
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        copy = Path(name)
        for item in COPIED:
            source = ROOT / item
            if source.is_dir():
                shutil.copytree(source, copy / item, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, copy / item)
        if broken:
            path = copy / broken.file
            path.write_text(mutate(broken, path.read_text()))
        env = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "300"}
        env.pop("PYTEST_ADDOPTS", None)
        # -m "" : a mutant may name a slow test, which pyproject.toml deselects
        flags = ["-m", "", "-rA", "--tb=line", "-p", "no:cacheprovider", "--rootdir", str(copy)]
        command = [sys.executable, "-c", DRIVER, module, *flags, *map(path_of, nodes)]
        try:
            done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return dict.fromkeys(nodes, "not run"), f"no end after {TIMEOUT_S} s"
    summary = [line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("PASSED ", "FAILED "))]

    def outcome(node: str) -> str:
        own = (f"{path_of(node)} ", f"{path_of(node)}[")  # the whole id, or one case of it, not a longer name
        seen = {status for status, rest in summary if f"{rest} ".startswith(own)}
        return "failed" if "FAILED" in seen else "passed" if "PASSED" in seen else "not run"

    return {node: outcome(node) for node in nodes}, done.stdout + done.stderr


# A mutant that crashes on a name it does not have proves nothing about the tests.
BROKEN = re.compile(
    r"(NameError|UnboundLocalError|SyntaxError|IndentationError|ImportError|ModuleNotFoundError|AttributeError)\b"
    r"|TypeError: .*(unexpected keyword argument|positional argument|multiple values for argument)"
)


def verdict(m: Mutant) -> tuple[str, str]:
    """(killed | SURVIVED | BROKEN, what to look at)."""
    try:
        outcomes, output = run_tests(m.killed_by, m)
    except (ValueError, OSError) as error:  # the snippet has gone, or the file
        return "BROKEN", str(error)
    if crash := BROKEN.search(output):
        return "BROKEN", f"the mutant does not run: {crash[0]}"
    if alive := [node for node, outcome in outcomes.items() if outcome == "passed"]:
        return "SURVIVED", "passes: " + ", ".join(alive)
    if lost := [node for node, outcome in outcomes.items() if outcome == "not run"]:
        return "BROKEN", f"not run: {', '.join(lost)}\n{output[-1500:]}"
    return "killed", f"{len(outcomes)} tests"


def main(names: list[str], mutants: tuple[Mutant, ...] = MUTANTS) -> int:
    known = {m.name: m for m in mutants}
    if unknown := [n for n in names if n not in known]:
        print(f"no mutant {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    chosen = [known[n] for n in names] if names else list(mutants)
    baseline, output = run_tests(dict.fromkeys(node for m in chosen for node in m.killed_by))
    if bad := [f"{node}: {outcome}" for node, outcome in baseline.items() if outcome != "passed"]:
        print("these must pass on the unbroken source:", *bad, output[-1500:], sep="\n", file=sys.stderr)
        return 1
    print(f"{len(baseline)} tests pass on the unbroken source\n\n| mutant | file | verdict | |\n|---|---|---|---|")
    survivors = 0
    for m in chosen:
        result, detail = verdict(m)
        survivors += result != "killed"
        print(f"| {m.name} | {Path(m.file).name} | {result} | {detail} |", flush=True)
    print(f"\n{len(chosen) - survivors} of {len(chosen)} killed")
    return 1 if survivors else 0
