"""What leaves the grader: points on the screen and for Gradescope and Classroom 50; a bundle; a student copy."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import cut
from catalogue import ASSIGNMENTS, Assignment


@dataclass(frozen=True, slots=True)
class Report:
    """`tests` in Gradescope's form, see `entry`; `notes`: what else a person should know."""

    title: str
    tests: list[dict]
    notes: str = ""

    def total(self, key: str = "score") -> int:
        return sum(test[key] for test in self.tests)


def entry(name: str, most: int, ok: bool, output: str) -> dict:
    """One of Gradescope's tests."""
    points = {"name": name, "score": most if ok else 0, "max_score": most, "status": "passed" if ok else "failed"}
    return points | {"output": output, "visibility": "visible"}


def scored(assignment: Assignment, results: dict[str, dict]) -> list[dict]:
    """Gradescope's tests from the results of the checks, see grade.run_checks."""
    found = []
    for check, most in (assignment.functions | {"whole": assignment.whole}).items():
        result = results[check]
        output = result["message"] + (f"\nhint: {result['hint']}" if result["hint"] else "")
        found.append(entry("all together" if check == "whole" else cut.name_of(check), most, result["ok"], output))
    return found


# ---------------------------------------------------------------- reports


def screen(report: Report) -> str:
    """Points for a person; what failed says why."""
    lines = []
    for test in report.tests:
        lines.append(f"{test['score']:3} / {test['max_score']:3}  {test['name']}")
        if test["status"] == "failed":
            lines.append(textwrap.indent(test["output"], " " * 11))
    total, most = report.total(), report.total("max_score")
    lines.append(f"{total:3} / {most:3}  {report.title}" + ("" if total < most else ": all checks passed"))
    return "\n".join([*lines, report.notes] if report.notes else lines)


def write_gradescope(report: Report, out: Path) -> None:
    notes = {"output": report.notes} if report.notes else {}
    out.write_text(json.dumps({"tests": report.tests} | notes, indent=2), encoding="utf-8")


def write_classroom50(report: Report, key: str, out: Path) -> None:
    """result.json, and a summary in Markdown beside it. Who handed in what comes from the runner's environment."""
    told = lambda name, otherwise="": os.environ.get(name) or otherwise
    result = {
        "schema": "classroom50/result/v1",
        "classroom": told("CLASSROOM"),
        "assignment": told("ASSIGNMENT", key),
        "submission": told("SUBMISSION_TAG"),
        "commit": told("COMMIT_URL"),
        "release": told("RELEASE_URL"),
        "review": told("REVIEW_URL", told("COMMIT_URL")),
        "datetime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "score": report.total(),
        "max-score": report.total("max_score"),
    }
    result["tests"] = [
        {"test-name": t["name"], "passed": t["status"] == "passed", "score": t["score"], "max-score": t["max_score"]}
        for t in report.tests
    ]
    out.write_text(json.dumps(result, indent=2), encoding="utf-8")
    out.with_suffix(".md").write_text(markdown(report), encoding="utf-8")


def markdown(report: Report) -> str:
    """A table of points; under it, what failed says why."""
    lines = [f"# {report.title}: {report.total()} of {report.total('max_score')} points", ""]
    lines += ["| check | points | of |", "|---|---:|---:|"]
    lines += [f"| {test['name']} | {test['score']} | {test['max_score']} |" for test in report.tests]
    for test in report.tests:
        if test["status"] == "failed":
            # A fence that is longer than any in the text: the text may come from the submission.
            longest = max((len(run) for run in re.findall("`+", test["output"])), default=0)
            fence = "`" * max(3, longest + 1)
            lines += ["", f"## {test['name']}", "", f"{fence}text", test["output"], fence]
    return "\n".join([*lines, *(["", report.notes] if report.notes else [])]) + "\n"


# ---------------------------------------------------------------- a bundle for Gradescope

SETUP = """\
#!/usr/bin/env bash
# Gradescope runs this once, when the image is built. The package needs Python 3.11 or newer.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
root="${AUTOGRADER:-/autograder}"
apt-get update
apt-get install -y python3 python3-pip python3-venv
python=python3
if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    apt-get install -y python3.11 python3.11-venv
    python=python3.11
fi
"$python" -m venv "$root/venv"
"$root/venv/bin/pip" install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu '{torch}'  # without CUDA: 2 GB less
"$root/venv/bin/pip" install --no-cache-dir "$root/source{extra}"
"""

RUN = """\
#!/usr/bin/env bash
# Gradescope runs this once for each submission. Whatever happens, it leaves a results.json.
root="${AUTOGRADER:-/autograder}"
python="${PYTHON:-$root/venv/bin/python}"
results="$root/results/results.json"
mkdir -p "$root/results"

say() {  # score 0 and a message
    printf '{"score": 0, "output": "%s"}\\n' "$1" > "$results"
    exit 0
}

shopt -s nullglob
files=("$root"/submission/*.py)
if [ ${#files[@]} -ne 1 ]; then
    say "Hand in one file that ends in .py, not in a folder: your submission has ${#files[@]} such files."
fi
if ! "$python" "$root/source/tutorials/assignments/grade.py" {key} "${files[0]}" --seed {seed} --json "$results" 2> "$root/results/errors.txt"
then
    cat "$root/results/errors.txt"
    last="$(tail -n 1 "$root/results/errors.txt" | tr -d '"\\\\' | tr -c '[:print:]' ' ')"
    say "The grader itself failed; this is not the fault of your file. Teacher: run it again, and see the output of this run. $last"
fi
"""

ABOUT = "Autograder of {key}, hidden inputs of seed {seed}: upload the whole zip file to Gradescope.\n"


def bundle(key: str, out: Path, seed: int) -> str:
    """Write the zip file that a teacher uploads to Gradescope; returns what to tell."""
    project = tomllib.loads((cut.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [torch] = [needed for needed in project["dependencies"] if re.match(r"torch\b", needed)]
    extra = "[test]" if key == "a9" else ""  # there the submission is a test
    place = cut.ROOT / "tutorials" / "assignments"
    files = [*cut.PACKAGE.rglob("*.py"), *place.glob("*.py"), *place.glob("checks/*.py")]
    tests = cut.ROOT / "tests"
    files += [*(tests / "mutants").glob("*.py"), tests / "doubles.py", cut.ROOT / "pyproject.toml"]
    texts = {file.relative_to(cut.ROOT).as_posix(): file.read_bytes() for file in sorted(files)}
    texts["README.md"] = ABOUT.format(key=key, seed=seed)  # pyproject.toml names it
    scripts = {
        "setup.sh": SETUP.replace("{torch}", torch).replace("{extra}", extra),
        "run_autograder": RUN.replace("{key}", key).replace("{seed}", str(seed)),
    }
    with zipfile.ZipFile(out, "w") as packed:
        for name, text in (scripts | texts).items():
            entry_of = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))  # the same files give the same bytes
            entry_of.external_attr = (0o755 if name in scripts else 0o644) << 16
            packed.writestr(entry_of, text, zipfile.ZIP_DEFLATED)
    size = out.stat().st_size / 1e3
    return (
        f"{out}: {len(scripts | texts)} files, {size:.0f} kB; run_autograder grades {key}, hidden inputs of seed {seed}"
    )


# ---------------------------------------------------------------- a student copy

# The grader itself: it needs the functions that a student copy has not, or tells which bug was drawn.
GRADER = (".ci/", "tests/mutants/", "tutorials/assignments/checks/", "tutorials/assignments/hints.py")
GRADER += ("tutorials/assignments/child.py", "tutorials/assignments/bug_", "tutorials/assignments/a9_bug_hunt/draw.py")
GRADERS_TESTS = re.compile(
    r"^\s*(?:from|import) (?:mutants|grade|catalogue|cut|outputs|own_run|bug_hunt)\b", re.MULTILINE
)
# The wording of an error, which students choose themselves. A RuntimeError keeps it: NotImplementedError is one.
WORDING = re.compile(r"(?<=raises\()((?!RuntimeError)\w+), match=.*(?=\):$)", re.MULTILINE)


def fresh(out: Path) -> None:
    """End the program unless `out` is a place where nothing can be lost."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        sys.exit(f"grade.py: error: {out} is there and not empty: name a folder that is not there yet")


def strip(out: Path) -> str:
    """Write a copy of the tracked files without the assigned functions' bodies; returns what to tell."""
    fresh(out)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=cut.ROOT, capture_output=True, text=True)
    if listed.returncode:
        sys.exit(f"grade.py: error: --strip copies the files that git tracks: {listed.stderr.strip()}")
    wanted, left_out = [], []
    for name in filter(None, listed.stdout.split("\0")):
        file = cut.ROOT / name
        if not file.is_file() or name.startswith("alignpro_mini/"):
            continue  # deleted but not committed; the package comes below
        grader = name.startswith(GRADER) or (
            name.startswith("tests/")
            and file.suffix == ".py"
            and GRADERS_TESTS.search(file.read_text(encoding="utf-8"))
        )
        (left_out if grader else wanted).append(name)
    functions = [path for each in ASSIGNMENTS.values() for path in each.functions]
    cut.stripped_package(out, functions)
    for name in wanted:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(cut.ROOT / name, out / name)
    for name in set(re.findall(r"`(tests/[\w/]+\.py)`", STUDENT)):
        file = out / name
        file.write_text(WORDING.sub(r"\1", file.read_text(encoding="utf-8")), encoding="utf-8")
    pairs = _printed(functions)
    shown = sum(_hide(path, pairs) for path in sorted((out / "tutorials").glob("*.ipynb")))
    (out / "tutorials" / "STUDENT.md").write_text(STUDENT, encoding="utf-8")
    return "\n".join(
        [
            f"{out}: a student copy, to begin with tutorials/STUDENT.md",
            f"  {len(functions)} functions of alignpro_mini/ without their bodies",
            f"  {shown} of them no longer shown in the notebooks' outputs",
            f"  {len(wanted)} other files; the assignments' tests accept any wording of an error; left out, because it is the grader: {', '.join(_short(left_out))}",
        ]
    )


def _short(names: Iterable[str]) -> list[str]:
    """Folders of the grader by their own name, once."""
    return sorted({next((g for g in GRADER if g.endswith("/") and name.startswith(g)), name) for name in names})


def _printed(functions: list[str]) -> list[tuple[str, str]]:
    """(the text of a function as a notebook prints it, the same without its body)."""
    pairs = []
    for path in functions:
        module, names = cut.split(path)
        source = cut.source_of(module)
        both = [cut.definition(text, names) for text in (source, cut.without_bodies(source, [names]))]
        indent = "    " * (len(names) - 1)  # a method is printed as it stands in its class
        pairs.append(tuple(textwrap.indent(text, indent).rstrip() for text in both))
    return pairs


def _hide(notebook: Path, pairs: list[tuple[str, str]]) -> int:
    """Take the bodies out of the functions that this notebook printed; returns how many."""
    content, count = json.loads(notebook.read_text(encoding="utf-8")), 0
    for output in (o for cell in content["cells"] for o in cell.get("outputs", []) if "text" in o):
        text = "".join(output["text"])
        for whole, bare in pairs:
            count += whole in text
            text = text.replace(whole, bare)
        output["text"] = text.splitlines(keepends=True)
    if count:
        notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return count


STUDENT = """\
# A student copy

In this copy of the package the functions that the assignments ask for have no bodies: they raise `NotImplementedError`. The grader
is not here either, because it compares with those functions: your teacher runs it. Everything else is as in the full package.

* **Read** the tutorials. The notebooks hold their output; they run only once the functions that they use are written.
* **Write**: copy `assignments/<assignment>/submission.py` to a folder of your own as `a1.py`, `a2.py`, ..., replace each
  `raise NotImplementedError`, and hand that file in.
* **Try** what you wrote. This makes a copy of the package with your functions in it, and runs the package's own tests of them:

```
python tutorials/assignments/grade.py --graft my_work --out try
cd try && python -m pytest -p no:cacheprovider ../tests/core/test_rl_math.py -k "gae or assemble"
```

Tests of what you have not written fail with `NotImplementedError`. Make `try` anew after each change, or go on with the file in
`try/alignpro_mini/yours/` and hand in that one.

| assignment | its tests | written before |
|---|---|---|
| a1 | `tests/core/test_rl_math.py` | |
| a2 | `tests/core/test_transformer.py` | |
| a3 | `tests/core/test_generation.py` | a2 |
| a4 | `tests/core/test_sft.py`, `tests/core/test_reward.py` | a1, a2, a3; for a few tests `checksum` of a7 |
| a5 | `tests/core/test_rl_math.py` | |
| a6 | `tests/core/test_ppo.py`, `tests/core/test_rl_math.py` | a1, a2, a3, a5; for a few tests `checksum` of a7 |
| a7 | `tests/core/test_frozen.py`, `tests/core/test_alignpro.py` | a1 to a6 |
| a8 | `tests/core/test_theory.py`, `tests/lab/test_evaluation.py` | |

Passing these tests is a good sign; the grader has inputs of its own. a10 needs all of a1 to a8. a9 is about bugs in right functions: it needs
the full package.

**A right solution may fail some of these tests**, because they were written for the package's own functions. In this copy they accept any wording
of an error, but for `RuntimeError`. These ask for more than the assignment does:

| test | what the assignment does not ask for |
|---|---|
| a4 `test_mismatched_pairs_teach_the_model_to_read_the_request` | below 0.7 without such pairs: another draw of the split may give more |
| a6 `test_policy_loss_sign_table` | a `ratio` without a gradient |
| a7 `test_a_changed_model_is_noticed_and_the_stage_named` | the package's words around the name of the stage |
| a7 `test_a_changed_model_stays_changed` | the same |
| a7 `test_a_model_set_free_is_noticed` | the same |
| a8 `test_tables_that_cannot_be_meant_are_refused` | an error for NaN or infinity in a table |
| a8 `test_an_interval_over_topics_covers_what_one_over_requests_does_not` | `groups` that are not None |

What counts is the assignment's `README.md`.
"""
