"""The bug hunt, a9: which bugs are drawn, the rules for the tests that are handed in, and their points.

A bug is a mutant of tests/mutants/. The tests run on a copy of the right package, then on five copies with one bug
each, every copy in a process of its own (bug_child.py). The rules keep a test a test; they stop no one who cheats.
"""

from __future__ import annotations

import ast
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "tests")]

import cut  # noqa: E402
from mutants import MUTANTS, Mutant, mutate  # noqa: E402
from outputs import entry  # noqa: E402
from watch import watch  # noqa: E402

KEY, TITLE = "a9", "Bug hunt"
BUGS = 5
TESTS = [f"test_bug_{k}" for k in range(1, BUGS + 1)]
CHECKS = [name for k in range(1, BUGS + 1) for name in (f"bug {k}", f"bug {k} alone")]
SEEN, ALONE = 14, 6  # points: the test sees its bug; it passes on the packages of the other four
LIMIT_S = 10.0  # for one test on one package

# The mutants that are drawn from, and what their curves show. A change here changes every draw: draw the pictures anew.
POOL = {
    "k1-swapped": "KL: k1 falls to -7 nats while the exact KL rises to 7",
    "score-in-the-last-column": "score: hardly rises, though the KL does; the value loss starts at half the right one",
    "gae-bootstraps-past-a-full-row": "value loss: rises from iteration 15 on; rewrites of the full length",
    "entropy-divided-twice": "entropy: 0.26 instead of 1.57 at the start, all else as it should be",
    "ratio-upside-down": "entropy: falls to 0 by iteration 20 while the score falls",
    "no-penalty-for-a-missing-eos": "length: above 4, never falls; the score rises as it should",
    "noted-without-the-temperature": "clip fraction: about 0.2; the score rises slowly",
    "one-draw-for-all-rows": "length, score and KL jump from iteration to iteration",
    "results-in-sorted-order": "score: about 0.5 while the KL and the clip fraction grow",
    "logits-one-to-the-right": "KL: k1 is -1 in the first iteration; clip fraction above 0.3",
    "the-request-is-sent": "score: below the start's, no matter what; the KL stays at 0.7",
    "the-rewrite-is-rated": "score: starts at 0.22, stops at 0.62; short rewrites",
    "query-sees-the-future": "KL: k1 above the exact one, 0.2 in the first iteration; rewrites of 1.5 tokens",
}

MAX_LINES, MAX_COLUMNS = 10, 120
MAY_IMPORT = ("__future__", "alignpro_mini", "doubles", "torch", "numpy", "math", "copy", "pytest")
FORBIDDEN = ("inspect", "getsource", "getsourcelines")
BUILTINS = ("open", "exec", "eval", "compile", "globals")  # as names only: `lm.eval()` is a method of a model


def bugs(seed: int) -> list[Mutant]:
    """The five mutants of this seed; bug 1 is the first."""
    known = {mutant.name: mutant for mutant in MUTANTS}
    return [known[name] for name in random.Random(seed).sample(list(POOL), BUGS)]


def package(place: Path, bug: Mutant | None) -> None:
    """Copy the package into `place`, with the bug in it."""
    shutil.copytree(cut.PACKAGE, place / "alignpro_mini", ignore=shutil.ignore_patterns("__pycache__"))
    if bug is not None:
        file = place / bug.file
        file.write_text(mutate(bug, file.read_text(encoding="utf-8")), encoding="utf-8")


# ---------------------------------------------------------------- rules


def broken_rules(source: str) -> dict[str, str]:
    """{test: the rule that it breaks}; the key "" is for the whole file, and then nothing of it is run."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return {"": f"your file cannot be read: {type(error).__name__}: {error}"}
    first = tree.body[0] if ast.get_docstring(tree) is not None else None
    seen: dict[str, ast.FunctionDef] = {}
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            if said := _wrong_words(node):
                return {"": said}
        elif isinstance(node, ast.FunctionDef):
            if node.name not in TESTS:
                return {"": f"line {node.lineno}: {node.name} is none of {TESTS[0]} to {TESTS[-1]}"}
            if node.name in seen:
                return {"": f"line {node.lineno}: {node.name} is there twice"}
            seen[node.name] = node
        elif node is not first:
            return {"": f"line {node.lineno}: only imports and the functions {TESTS[0]} to {TESTS[-1]} may stand here"}
    found = {name: _broken(node, source.splitlines()) for name, node in seen.items()}
    found |= {name: f"{name} is not in your file" for name in TESTS if name not in seen}
    return {name: said for name, said in found.items() if said}


def _broken(node: ast.FunctionDef, lines: list[str]) -> str:
    """The rule that this test breaks, "" if none."""
    if node.decorator_list or ast.unparse(node.args):
        return f"line {node.lineno}: a test has no arguments and no decorators"
    if (count := node.end_lineno - node.lineno) > MAX_LINES:
        return f"line {node.lineno}: {count} lines after the def; at most {MAX_LINES}"
    for number in range(node.lineno, node.end_lineno + 1):
        if len(lines[number - 1]) > MAX_COLUMNS:
            return f"line {number}: {len(lines[number - 1])} columns; at most {MAX_COLUMNS}"
    return _wrong_words(node)


def _wrong_words(tree: ast.AST) -> str:
    """The first import or name in this part of the file that a test may not use, "" if there is none."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names]
            modules = names if isinstance(node, ast.Import) else [node.module or ""]
            for module in modules:
                if module.split(".")[0] not in MAY_IMPORT or getattr(node, "level", 0):
                    return f"line {node.lineno}: a test imports only {', '.join(MAY_IMPORT[1:])}"
            words = [word for name in names for word in name.split(".")]
        else:
            words = [getattr(node, "id", None) or getattr(node, "attr", None) or ""]
        for word in words:
            if word in (FORBIDDEN if isinstance(node, ast.Attribute) else FORBIDDEN + BUILTINS) or (
                word.startswith("__") and word != "__future__"
            ):
                return f"line {node.lineno}: {word} is not allowed: a test calls the code, it does not read it"
    return ""


# ---------------------------------------------------------------- run and score


def run_checks(submission: Path, seed: int) -> dict[str, dict]:
    """{check: {"ok", "message", "hint"}}; the checks are "bug 1", "bug 1 alone", "bug 2" ..."""
    try:
        broken = broken_rules(submission.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        broken = {"": f"your file cannot be read: {error}"}
    wanted = [] if "" in broken else [test for test in TESTS if test not in broken]
    with tempfile.TemporaryDirectory(prefix="hunt-") as name:
        run = lambda folder, bug, tests: run_tests(Path(name) / folder, bug, submission, tests, seed) if tests else {}
        right = run("right", None, wanted)
        passing = [test for test in wanted if right[test]["ok"]]
        on_bugs = [run(f"bug-{k}", bug, passing) for k, bug in enumerate(bugs(seed), start=1)]
    failing = [{test for test, result in found.items() if not result["ok"]} for found in on_bugs]
    return judged(broken, right, failing)


def judged(broken: dict[str, str], right: dict[str, dict], failing: list[set[str]]) -> dict[str, dict]:
    """The checks from: rules that are broken, results on the right package, and the tests that fail on each bug's."""
    found = {}
    for k, (test, fails) in enumerate(zip(TESTS, failing), start=1):
        alone = _result(False, f"not before bug {k} has its {SEEN} points")
        if test not in right:
            seen = _result(False, broken.get("") or broken[test])
        elif not right[test]["ok"]:
            seen = _result(False, f"it fails on the right package: {right[test]['message']}")
        elif test not in fails:
            seen = _result(False, f"it passes on bug {k}'s package: it does not see the bug")
        elif all(test in tests for tests in failing):
            seen = _result(False, "it fails on all five packages with a bug: it says of none what is wrong")
        else:
            seen = _result(True, f"it passes on the right package and fails on bug {k}'s")
            also = ", ".join(str(j) for j, tests in enumerate(failing, start=1) if test in tests and j != k)
            alone = _result(not also, f"it fails on the package of bug {also}, too" if also else "no other one fails")
        found |= {f"bug {k}": seen, f"bug {k} alone": alone}
    return found


def _result(ok: bool, message: str) -> dict:
    return {"ok": ok, "message": message, "hint": ""}


def run_tests(place: Path, bug: Mutant | None, submission: Path, tests: list[str], seed: int) -> dict[str, dict]:
    """{test: {"ok", "message", "hint"}} on the package with this bug (None: the right one), a copy of it in `place`."""
    package(place, bug)
    spec = {"package": str(place.resolve()), "submission": str(submission.resolve()), "seed": seed}
    file, out = place / "spec.json", place / "results.jsonl"
    results: dict[str, dict] = {}
    while missing := [test for test in tests if test not in results]:
        file.write_text(json.dumps(spec | {"only": missing, "out": str(out)}), encoding="utf-8")
        out.write_text("", encoding="utf-8")
        stopped = watch(HERE / "bug_child.py", file, out, results, LIMIT_S)
        if stopped is None or not results["import"]["ok"]:
            break
    ended = results["import"] if not results.get("import", {"ok": True})["ok"] else _result(False, "the process ended")
    return {test: results.get(test, ended) for test in tests}


def scored(results: dict[str, dict]) -> list[dict]:
    """Gradescope's tests, see outputs.entry."""
    most = lambda name: ALONE if name.endswith("alone") else SEEN
    return [entry(name, most(name), result["ok"], result["message"]) for name, result in results.items()]
