"""Grade one assignment.

    python tutorials/assignments/grade.py a5 my_gae.py                    # points, the smallest counterexample, a hint
    python tutorials/assignments/grade.py a5 my_gae.py --json out.json    # Gradescope's form; --classroom50: that form
    python tutorials/assignments/grade.py a5 my_gae.py --seed 7           # other hidden inputs
    python tutorials/assignments/grade.py a5 --bundle a5.zip --seed 7     # the autograder to upload to Gradescope
    python tutorials/assignments/grade.py a9 my_tests.py                  # the bug hunt: see bug_hunt.py
    python tutorials/assignments/grade.py --graft my_work --out my_copy   # a10: a package with your functions
    python tutorials/assignments/grade.py a10 my_copy/runs                # a10: points of its five runs
    python tutorials/assignments/grade.py --board runs                    # who has the best prompter: see board.py
    python tutorials/assignments/grade.py --strip student --only a1 a3    # a copy for students; it cannot grade
    python tutorials/assignments/grade.py --stubs                         # write all submission.py anew

How it works: the package is copied without the bodies of *all* assigned functions, and the submission's functions are
put in their place, one at a time over the reference (partial credit), then all together. So a function that only calls
the package's own is a function that calls itself, or an empty one. Every check is a call on small inputs, compared
with an oracle. On the first difference the grader also runs known mistakes (tests/mutants/) on the same input: the
one that gives the same wrong result provides the hint.

The submission runs in a process of its own (child.py), without oracles and with a time limit for each check; what it
returns is compared here (judge.py). Exit status 0 means that the grader worked, whatever the score.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "tests")]

import board  # noqa: E402
import cut  # noqa: E402
import outputs  # noqa: E402
import own_run  # noqa: E402
from catalogue import ASSIGNMENTS  # noqa: E402

LIMIT_S = 20.0  # for one check


def run_checks(key: str, submission: Path, seed: int, limit_s: float = LIMIT_S) -> dict[str, dict]:
    """{check: result} for every function, and all together ("whole"), see judge.py."""
    import judge  # it imports torch, which a10 and the copies do without

    return judge.run_checks(key, submission, seed, limit_s)


def write_stubs() -> None:
    for assignment in ASSIGNMENTS.values():
        place = HERE / assignment.folder / "submission.py"
        place.parent.mkdir(exist_ok=True)
        place.write_text(cut.stubs(assignment.functions, assignment.imports, assignment.title), encoding="utf-8")


def graded(key: str, place: Path, seed: int) -> outputs.Report:
    """The points of a submission: of one file, or in a10 of a folder with finished runs."""
    if key == "a10":
        return own_run.graded(place)
    if not (HERE / "checks").is_dir():
        sys.exit("grade.py: error: a student copy has no grader and nothing to compare with; see tutorials/STUDENT.md")
    told = {
        "ok": False,
        "message": f"there is no file {place.name}: hand it in under this name",
        "hint": "",
        "share": (0, 1),
    }
    if key == "a9":
        import bug_hunt  # it reads tests/mutants/, which a student copy has not

        results = bug_hunt.run_checks(place, seed) if place.is_file() else dict.fromkeys(bug_hunt.CHECKS, told)
        return outputs.Report(bug_hunt.TITLE, bug_hunt.scored(results))
    assignment = ASSIGNMENTS[key]
    wanted = [*assignment.functions, "whole"]
    results = run_checks(key, place, seed) if place.is_file() else dict.fromkeys(wanted, told)
    return outputs.Report(assignment.title, outputs.scored(assignment, results))


def main() -> None:
    usage = (__doc__ or "").split("\n\nHow it works")[0]  # python -OO takes it away
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assignment", nargs="?", choices=[*ASSIGNMENTS, "a9", "a10"], help="a1, a5, ...")
    parser.add_argument("place", nargs="?", type=Path, help="the submission: a file; for a10 the folder of the runs")
    parser.add_argument("--seed", type=int, default=0, help="of the hidden inputs; with --board: of the runs")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write Gradescope's results.json here")
    parser.add_argument("--classroom50", type=Path, metavar="OUT", help="also write Classroom 50's result.json here")
    parser.add_argument("--bundle", type=Path, metavar="OUT", help="write the zip file for Gradescope, of a1 to a9")
    parser.add_argument("--graft", type=Path, metavar="FOLDER", help="a10: a package with the functions of FOLDER")
    parser.add_argument("--board", type=Path, metavar="FOLDER", help="a leaderboard: a folder in it for each student")
    parser.add_argument("--kl", type=float, default=2.0, help="with --board: nats of KL that a prompter may spend")
    parser.add_argument("--answers", type=int, default=25600, help="with --board: answers that PPO may ask for")
    parser.add_argument("--out", type=Path, metavar="OUT", help="where --graft writes; with --board: a page besides")
    strip = "write a copy for students without the assigned functions and without the grader: it cannot grade"
    parser.add_argument("--strip", type=Path, metavar="OUT", help=strip)
    only = "with --strip: only the functions of these assignments are taken out"
    parser.add_argument("--only", nargs="+", choices=list(ASSIGNMENTS), metavar="KEY", help=only)
    parser.add_argument("--stubs", action="store_true", help="write every submission.py anew, from the package")
    args = parser.parse_args()
    if args.stubs:
        return write_stubs()
    if args.strip:
        import student  # a student copy has it not

        return print(student.strip(args.strip, args.only or ()))
    if args.board:
        if not args.board.is_dir():
            parser.error(f"{args.board}: no such folder")
        page = board.board(args.board, args.seed, args.kl, args.answers)
        if args.out:
            args.out.write_text(page + "\n", encoding="utf-8")
        return print(page)
    if args.graft:
        if args.out is None:
            parser.error("--graft FOLDER needs --out OUT")
        return print(own_run.graft(args.graft, args.out))
    if args.assignment and args.bundle:
        if args.assignment == "a10":
            parser.error("a10 is graded from its runs: there is no bundle")
        return print(outputs.bundle(args.assignment, args.bundle, args.seed))
    if args.assignment is None or args.place is None:
        parser.error("give an assignment and a file, such as a5 my_gae.py")
    there = args.place.is_dir() if args.assignment == "a10" else args.place.is_file()
    if not there and not (args.json or args.classroom50):  # in a report for a machine it is a submission without points
        parser.error(f"{args.place}: no such {'folder' if args.assignment == 'a10' else 'file'}")
    report = graded(args.assignment, args.place, args.seed)
    if args.json:
        outputs.write_gradescope(report, args.json)
    if args.classroom50:
        outputs.write_classroom50(report, args.assignment, args.classroom50)
    print(outputs.screen(report))


if __name__ == "__main__":
    main()
