"""What leaves the grader: points on the screen, for Gradescope and for Classroom 50; a bundle."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
import tomllib
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import cut
from catalogue import Assignment


@dataclass(frozen=True, slots=True)
class Report:
    """`tests` in Gradescope's form, see `entry`; `notes`: what else a person should know."""

    title: str
    tests: list[dict]
    notes: str = ""

    def total(self, key: str = "score") -> int:
        return sum(test[key] for test in self.tests)


def entry(name: str, most: int, ok: bool, output: str, some: int = 0) -> dict:
    """One of Gradescope's tests; `some` points if it is not ok."""
    points = {"name": name, "score": most if ok else some, "max_score": most, "status": "passed" if ok else "failed"}
    return points | {"output": output, "visibility": "visible"}


LEAST_SHARE = 0.75  # of the cases: below it there are no points, because a constant is right in some cases, too


def points(most: int, right: int, cases: int) -> int:
    """Of a function that is right in so many cases: their share, rounded down. All points are for all cases alone."""
    return most * right // cases if right >= LEAST_SHARE * cases else 0


def scored(assignment: Assignment, results: dict[str, dict]) -> list[dict]:
    """Gradescope's tests from the results of the checks, see grade.run_checks."""
    found = []
    for check, most in (assignment.functions | {"whole": assignment.whole}).items():
        result = results[check]
        right, cases = result["share"]
        some = points(most, right, cases) if check != "whole" and not result["ok"] else 0
        output = result["message"] + (f"\nhint: {result['hint']}" if result["hint"] else "")
        output += f"\n{right} of {cases} cases are right" if some else ""
        found.append(
            entry("all together" if check == "whole" else cut.name_of(check), most, result["ok"], output, some)
        )
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


def fresh(out: Path) -> None:
    """End the program unless `out` is a place where nothing can be lost."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        sys.exit(f"grade.py: error: {out} is there and not empty: name a folder that is not there yet")


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
