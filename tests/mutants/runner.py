"""Break a copy of the repository by each mutant, run the tests that it names, and demand that every one fails.

    python tests/mutants                 # every mutant: about 2 s each on one core
    python tests/mutants k1-swapped ...  # these only

First the same tests must pass unbroken. Exit status 1 if a mutant survives, or does not run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from warm import Program

from mutants import MUTANTS, ROOT, Mutant, mutate

COPIED = ("alignpro_mini", "tests", "tutorials", "pyproject.toml")
TIMEOUT_S = 600  # a mutant may loop for ever
EACH_S = 10  # for each test besides: the unbroken copy runs those of all mutants

# The driver lies in the copy, so this comes first on sys.path, before the editable install. Trust, but verify.
DRIVER = """
import importlib, pathlib, sys, pytest
if __name__ == "__main__":  # and not in a process that a test starts
    sys.dont_write_bytecode = False
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


def copy(source: Path, place: Path) -> None:
    """The parts of a repository that tests need, with compiled modules: those of unchanged files are still valid."""
    for item in COPIED:
        if (source / item).is_dir():
            shutil.copytree(source / item, place / item)
        else:
            shutil.copy2(source / item, place / item)


def run_tests(nodes: Iterable[str], place: Path, broken: Mutant | None = None) -> tuple[dict[str, str], str]:
    """Run tests in a copy of the repository, broken by a mutant. Returns ({node: outcome}, pytest's output).

    A node's outcome is `failed` if one of its cases failed, else `passed` if one passed, else `not run`.
    """
    nodes = list(nodes)
    module = Path(broken.file).with_suffix("").as_posix().replace("/", ".") if broken else "alignpro_mini"
    if not module.startswith("alignpro_mini"):
        module = "alignpro_mini"  # a script is no module: its tests start it from the copy
    if broken:
        path = place / broken.file
        path.write_text(mutate(broken, path.read_text()))
    (place / "driver.py").write_text(DRIVER)
    variables = {"PYTHONPATH": str(place), "COLUMNS": "300", "PYTEST_ADDOPTS": ""}
    # -m "" : a mutant may name a slow test, which pyproject.toml deselects
    flags = ["-m", "", "-rA", "--tb=line", "-p", "no:cacheprovider", "--rootdir", str(place)]
    program = Program([place / "driver.py", module, *flags, *map(path_of, nodes)], place, variables, merged=True)
    try:
        output, _ = program.communicate(TIMEOUT_S + EACH_S * len(nodes))
    except subprocess.TimeoutExpired as late:
        program.kill()
        return dict.fromkeys(nodes, "not run"), f"no end after {late.timeout} s"
    summary = [line.split(" ", 1) for line in output.splitlines() if line.startswith(("PASSED ", "FAILED "))]

    def outcome(node: str) -> str:
        own = (f"{path_of(node)} ", f"{path_of(node)}[")  # the whole id, or one case of it, not a longer name
        seen = {status for status, rest in summary if f"{rest} ".startswith(own)}
        return "failed" if "FAILED" in seen else "passed" if "PASSED" in seen else "not run"

    return {node: outcome(node) for node in nodes}, output


# A mutant that crashes on a name it does not have proves nothing about the tests.
BROKEN = re.compile(
    r"(NameError|UnboundLocalError|SyntaxError|IndentationError|ImportError|ModuleNotFoundError|AttributeError)\b"
    r"|TypeError: .*(unexpected keyword argument|positional argument|multiple values for argument)"
)


def verdict(m: Mutant, unbroken: Path) -> tuple[str, str]:
    """(killed | SURVIVED | BROKEN, what to look at)."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as place:
        copy(unbroken, Path(place))
        try:
            outcomes, output = run_tests(m.killed_by, Path(place), m)
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
    with tempfile.TemporaryDirectory(prefix="unbroken-") as place:
        copy(ROOT, Path(place))
        return run_all(chosen, Path(place))


def run_all(chosen: list[Mutant], unbroken: Path) -> int:
    """The exit status; `unbroken` is a copy of the repository."""
    baseline, output = run_tests(dict.fromkeys(node for m in chosen for node in m.killed_by), unbroken)
    if bad := [f"{node}: {outcome}" for node, outcome in baseline.items() if outcome != "passed"]:
        print("these must pass on the unbroken source:", *bad, output[-1500:], sep="\n", file=sys.stderr)
        return 1
    print(f"{len(baseline)} tests pass on the unbroken source\n\n| mutant | file | verdict | |\n|---|---|---|---|")
    survivors = 0
    for m in chosen:
        result, detail = verdict(m, unbroken)
        survivors += result != "killed"
        print(f"| {m.name} | {Path(m.file).name} | {result} | {detail} |", flush=True)
    print(f"\n{len(chosen) - survivors} of {len(chosen)} killed")
    return 1 if survivors else 0
