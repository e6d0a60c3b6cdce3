"""Grade one assignment.

    python tutorials/assignments/grade.py a5 my_gae.py                  # points, the smallest counterexample, a hint
    python tutorials/assignments/grade.py a5 my_gae.py --json out.json  # Gradescope's form
    python tutorials/assignments/grade.py a5 my_gae.py --seed 7         # other hidden inputs
    python tutorials/assignments/grade.py --stubs                       # write all submission.py anew

How it works: the package is copied without the bodies of *all* assigned functions, and the submission's functions are
put in their place, one at a time over the reference (partial credit), then all together. So a function that only calls
the package's own is a function that calls itself, or an empty one. Every check is a call on small inputs, compared
with an oracle. On the first difference the grader also runs known mistakes (tests/mutants.py) on the same input: the
one that gives the same wrong result provides the hint.

The submission runs in a process of its own with a time limit for each check. Exit status 0 means that the grader
worked, whatever the score.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "tests")]

import cut  # noqa: E402
from catalogue import ASSIGNMENTS, Assignment  # noqa: E402
from hints import HINTS  # noqa: E402

LIMIT_S = 20.0  # for one check
IMPORT_LIMIT_S = 60.0  # torch, on half a core


def known_mistakes(functions: list[str]) -> dict[str, list[dict]]:
    """{function: [{"name", "hint", "source": the module's text with the mistake}]} from tests/mutants.py."""
    from mutants import MUTANTS

    found: dict[str, list[dict]] = {path: [] for path in functions}
    for mutant in MUTANTS:
        mine = [path for path in functions if mutant.file == f"alignpro_mini/{cut.split(path)[0].replace('.', '/')}.py"]
        if not mine or mutant.name not in HINTS:
            continue
        original, source = cut.source_of(cut.split(mine[0])[0]), mutated(mutant)
        for path in mine:
            if cut.definition(source, cut.split(path)[1]) != cut.definition(original, cut.split(path)[1]):
                found[path].append({"name": mutant.name, "hint": HINTS[mutant.name], "source": source})
    return found


def mutated(mutant) -> str:
    """The text of the mutant's module, with its mistake."""
    from mutants import mutate

    return mutate(mutant, (cut.ROOT / mutant.file).read_text(encoding="utf-8"))


def run_checks(key: str, submission: Path, seed: int, limit_s: float = LIMIT_S) -> dict[str, dict]:
    """{check: {"ok", "message", "hint"}} for the import, every function, and all together ("whole")."""
    wanted = [*ASSIGNMENTS[key].functions, "whole"]
    everything = [path for each in ASSIGNMENTS.values() for path in each.functions]
    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory(prefix="grade-") as name:
        place = Path(name)
        cut.stripped_package(place, everything)
        spec = {"package": str(place), "here": str(HERE), "assignment": key, "submission": str(submission.resolve())}
        spec |= {"seed": seed, "functions": everything, "assigned": list(ASSIGNMENTS[key].functions)}
        spec |= {"mutants": known_mistakes(list(ASSIGNMENTS[key].functions)), "out": str(place / "results.jsonl")}
        while missing := [check for check in wanted if check not in results]:
            file = place / "spec.json"
            file.write_text(json.dumps(spec | {"only": missing}), encoding="utf-8")
            (place / "results.jsonl").write_text("", encoding="utf-8")
            stopped = _watch(file, place / "results.jsonl", place, results, limit_s)
            if not results.get("import", {"ok": True})["ok"]:
                return results | {check: results["import"] for check in wanted}
            if stopped is None:
                break
    ended = {"ok": False, "message": "the process ended here", "hint": ""}
    found = {check: results.get(check, ended) for check in wanted}
    if found["whole"]["ok"] and not all(result["ok"] for result in found.values()):
        found["whole"] = {"ok": False, "message": "not before every function is right", "hint": ""}
    return found


def _watch(spec: Path, out: Path, place: Path, results: dict[str, dict], limit_s: float) -> str | None:
    """Run child.py until it ends or a check takes too long; the check that was stopped, None if none was."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, str(HERE / "child.py"), str(spec)], cwd=place, **quiet)
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
    if now not in ("between", "import") or (now == "import" and "import" not in results):
        results[now] = {"ok": False, "message": "it ended the process", "hint": ""}
        return now
    return None


def scored(assignment: Assignment, results: dict[str, dict]) -> list[dict]:
    """Gradescope's tests: name, score, max_score, status, output."""
    points = assignment.functions | {"whole": assignment.whole}
    found = []
    for check, most in points.items():
        result = results[check]
        output = result["message"] + (f"\nhint: {result['hint']}" if result["hint"] else "")
        status = "passed" if result["ok"] else "failed"
        name = "all together" if check == "whole" else cut.name_of(check)
        score = most if result["ok"] else 0
        found.append(
            {
                "name": name,
                "score": score,
                "max_score": most,
                "status": status,
                "output": output,
                "visibility": "visible",
            }
        )
    return found


def write_stubs() -> None:
    for assignment in ASSIGNMENTS.values():
        place = HERE / assignment.folder / "submission.py"
        place.parent.mkdir(exist_ok=True)
        place.write_text(cut.stubs(assignment.functions, assignment.imports, assignment.title), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="grade one assignment")
    parser.add_argument("assignment", nargs="?", choices=list(ASSIGNMENTS), help="a1, a5, ...")
    parser.add_argument("file", nargs="?", type=Path, help="the submission")
    parser.add_argument("--json", type=Path, help="also write Gradescope's results.json here")
    parser.add_argument("--seed", type=int, default=0, help="of the hidden inputs")
    parser.add_argument("--stubs", action="store_true", help="write every submission.py anew, from the package")
    args = parser.parse_args()
    if args.stubs:
        return write_stubs()
    if args.assignment is None or args.file is None:
        parser.error("give an assignment and a file, such as a5 my_gae.py")
    if not args.file.is_file():
        parser.error(f"{args.file}: no such file")
    tests = scored(ASSIGNMENTS[args.assignment], run_checks(args.assignment, args.file, args.seed))
    if args.json:
        args.json.write_text(json.dumps({"tests": tests}, indent=2), encoding="utf-8")
    for test in tests:
        print(f"{test['score']:3} / {test['max_score']:3}  {test['name']}")
        if test["status"] == "failed":
            print("           " + test["output"].replace("\n", "\n           "))
    total, most = (sum(test[key] for test in tests) for key in ("score", "max_score"))
    print(
        f"{total:3} / {most:3}  {ASSIGNMENTS[args.assignment].title}" + ("" if total < most else ": all checks passed")
    )


if __name__ == "__main__":
    main()
