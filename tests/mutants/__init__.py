"""The source broken on purpose, one known defect at a time: the tests must notice each of them.

A test that passes on broken code tests nothing. Each mutant is a defect that a well-known project really had (or one
that our own code could easily grow). Those of a module stand in the file of its name here, those of a sub-package in
one file; `runner.py` breaks a copy of the source and runs the tests.

To add a mutant of, say, ppo.py, append to MUTANTS in tests/mutants/ppo.py

    of("its-name", ("exact source", "what to put there"), "test_that_must_fail")

with as many (source, replacement) pairs as it takes, each source found exactly once, and as many tests: bare names
live in test_ppo.py, others are `test_file.py::test`, and `test[param]` names a single case. Take the snippet as
short as it can be while unique: tests/test_bug_zoo.py fails once the source has moved on.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    file: str  # relative to the repository
    edits: tuple[tuple[str, str], ...]  # (exact source, found exactly once; its replacement)
    killed_by: tuple[str, ...]  # test_file.py::test, wherever below tests/ that file is; each must fail


# The file that tests a module, where it is not test_<module>.py.
TESTED_IN = {
    "training": "sft",
    "rollout": "ppo",
    "pretrained": "checkpoint",
    "tensors": "checkpoint",
    "towns": "toyworld",
    "sums": "toyworld",
    "toy": "toyworld",
    "world": "toyworld",
    "files": "data",
    "callables": "reward",
    "cli": "config",
    "options": "config",
    "statistics": "evaluation",
    "assess": "end_to_end",
}


def mutant(module: str, name: str, *edits_and_tests: str | tuple[str, str]) -> Mutant:
    """One mutant: the edits are pairs, the tests are strings; a bare test lives in the module's test file."""
    edits = tuple(item for item in edits_and_tests if isinstance(item, tuple))
    tests = [item for item in edits_and_tests if isinstance(item, str)]
    stem = Path(module).stem
    own = f"test_{TESTED_IN.get(stem, stem)}.py"
    nodes = tuple(node if "::" in node else f"{own}::{node}" for node in tests)
    return Mutant(name, f"alignpro_mini/{module}", edits, nodes)


def mutate(m: Mutant, source: str) -> str:
    """The source with the mutant's edits; ValueError unless each snippet stands there exactly once."""
    for before, after in m.edits:
        if (found := source.count(before)) != 1:
            raise ValueError(f"mutant {m.name}: found {found} times, not once, in {m.file}:\n{before}")
        source = source.replace(before, after)
    return source


TABLES = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in ("__init__", "__main__", "runner"))
MUTANTS: tuple[Mutant, ...] = tuple(m for name in TABLES for m in importlib.import_module(f"mutants.{name}").MUTANTS)
