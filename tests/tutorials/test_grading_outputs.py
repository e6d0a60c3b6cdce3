"""What leaves the grader: reports for people and machines, the bundle for Gradescope, the student copy."""

import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "tutorials" / "assignments"
sys.path[:0] = [str(PLACE), str(ROOT / "tests")]

import catalogue  # noqa: E402
import cut  # noqa: E402
import grade  # noqa: E402
import outputs  # noqa: E402
import student as copies  # noqa: E402
from submissions import reference  # noqa: E402

HALF = outputs.Report(
    "Credit",
    [
        outputs.entry("assemble_rewards", 40, True, "7 cases"),
        outputs.entry("gae", 45, False, "on `x`: expected 1, got ```2```\nhint: count"),
        outputs.entry("all together", 15, False, "not before every function is right"),
    ],
    "a note",
)


def test_points_for_a_person():
    assert outputs.screen(HALF) == (
        " 40 /  40  assemble_rewards\n"
        "  0 /  45  gae\n"
        "           on `x`: expected 1, got ```2```\n"
        "           hint: count\n"
        "  0 /  15  all together\n"
        "           not before every function is right\n"
        " 40 / 100  Credit\n"
        "a note"
    )
    whole = outputs.Report("Credit", HALF.tests[:1])
    assert outputs.screen(whole).endswith("\n 40 /  40  Credit: all checks passed")


def test_gradescopes_form(tmp_path):
    outputs.write_gradescope(HALF, tmp_path / "results.json")
    found = json.loads((tmp_path / "results.json").read_text())
    assert found.keys() == {"tests", "output"} and found["output"] == "a note"
    assert found["tests"][1] == {
        "name": "gae",
        "score": 0,
        "max_score": 45,
        "status": "failed",
        "output": "on `x`: expected 1, got ```2```\nhint: count",
        "visibility": "visible",
    }


RUNNER = {
    "CLASSROOM": "spring",
    "ASSIGNMENT": "credit",
    "SUBMISSION_TAG": "submit/2026-03-01T10-00-00Z-abcdef0",
    "COMMIT_URL": "commit-address",
    "RELEASE_URL": "release-address",
    "REVIEW_URL": "review-address",
}
SAME = ("classroom", "assignment", "submission", "commit", "release", "review")


def test_classroom_50s_form(tmp_path, monkeypatch):
    for name, value in RUNNER.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "result.json"
    outputs.write_classroom50(HALF, "a5", out)
    found = json.loads(out.read_text())
    assert tuple(found[key] for key in SAME) == tuple(RUNNER.values())
    assert list(found) == ["schema", *SAME, "datetime", "score", "max-score", "tests"]
    assert found["schema"] == "classroom50/result/v1"
    at = datetime.datetime.strptime(found["datetime"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)
    assert abs((datetime.datetime.now(datetime.UTC) - at).total_seconds()) < 60
    assert (found["score"], found["max-score"]) == (40, 100)
    assert found["tests"][:2] == [
        {"test-name": "assemble_rewards", "passed": True, "score": 40, "max-score": 40},
        {"test-name": "gae", "passed": False, "score": 0, "max-score": 45},
    ]
    for name in RUNNER:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COMMIT_URL", "commit-address")
    monkeypatch.setenv("CLASSROOM", "")
    outputs.write_classroom50(HALF, "a5", out)
    found = json.loads(out.read_text())
    assert tuple(found[key] for key in SAME) == ("", "a5", "", "commit-address", "", "commit-address")


def test_the_summary_is_a_table_and_fences_that_hold(tmp_path):
    outputs.write_classroom50(HALF, "a5", tmp_path / "result.json")
    text = (tmp_path / "result.md").read_text()
    assert text.startswith("# Credit: 40 of 100 points\n\n| check | points | of |\n|---|---:|---:|\n")
    assert "| assemble_rewards | 40 | 40 |\n| gae | 0 | 45 |\n" in text and text.endswith("\na note\n")
    assert "\n````text\non `x`: expected 1, got ```2```\nhint: count\n````\n" in text, (
        "a fence longer than those inside"
    )
    assert "7 cases" not in text, "what passed needs no words"


def test_a_file_that_is_not_there(tmp_path, monkeypatch, capsys):
    """In a terminal a wrong path is an error; for a machine it is a submission without points."""
    missing, out = tmp_path / "my_credit.py", tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["grade.py", "a5", str(missing)])
    with pytest.raises(SystemExit) as ended:
        grade.main()
    assert ended.value.code == 2 and "my_credit.py: no such file" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["grade.py", "a5", str(missing), "--classroom50", str(out)])
    grade.main()
    assert json.loads(out.read_text())["score"] == 0
    assert "there is no file my_credit.py: hand it in under this name" in (tmp_path / "result.md").read_text()


# ---------------------------------------------------------------- the bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The folder of an autograder, with the bundle of a5 unpacked as `source`."""
    root = tmp_path_factory.mktemp("autograder")
    told = outputs.bundle("a5", root / "a5.zip", seed=7)
    assert "seed 7" in told
    with zipfile.ZipFile(root / "a5.zip") as packed:
        modes = {info.filename: info.external_attr >> 16 for info in packed.infolist()}
        packed.extractall(root / "source")
    assert modes["setup.sh"] == modes["run_autograder"] == 0o755 and modes["pyproject.toml"] == 0o644
    (root / "submission").mkdir()
    return root


def submit(root: Path, **files: str) -> tuple[dict, str]:
    """(results.json, what the run printed) of a submission of these files."""
    for old in (root / "submission").iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()  # compiled files, too
    for name, text in files.items():
        (root / "submission" / f"{name}.py").write_text(text)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"AUTOGRADER": str(root), "PYTHON": sys.executable}
    command = ["bash", str(root / "source" / "run_autograder")]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((root / "results" / "results.json").read_text()), done.stdout


def test_the_bundle_holds_what_grading_needs_and_nothing_else(bundle):
    source = bundle / "source"
    tops = {path.name for path in source.iterdir()}
    wanted = {"setup.sh", "run_autograder", "README.md", "pyproject.toml", "alignpro_mini", "tests", "tutorials"}
    assert tops == wanted and sorted(p.name for p in (source / "tests").iterdir()) == ["doubles.py", "mutants"]
    assert [p.name for p in (source / "tutorials").iterdir()] == ["assignments"]
    assert not list(source.rglob("submission.py")) and not list(source.rglob("__pycache__"))
    mine = {p.relative_to(cut.PACKAGE) for p in cut.PACKAGE.rglob("*.py")}
    assert {p.relative_to(source / "alignpro_mini") for p in (source / "alignpro_mini").rglob("*.py")} == mine
    assert "--seed 7" in (source / "run_autograder").read_text() and " a5 " in (source / "run_autograder").read_text()
    setup = (source / "setup.sh").read_text()
    [torch] = re.findall(r'"(torch\b[^"]+)"', (ROOT / "pyproject.toml").read_text())
    assert f"'{torch}'" in setup and re.findall(r"https?://([^/ ]+)", setup) == ["download.pytorch.org"]
    for script in ("setup.sh", "run_autograder"):
        assert subprocess.run(["bash", "-n", str(source / script)]).returncode == 0


def test_the_same_files_give_the_same_bundle(bundle, tmp_path):
    outputs.bundle("a5", tmp_path / "again.zip", seed=7)
    assert (tmp_path / "again.zip").read_bytes() == (bundle / "a5.zip").read_bytes()


def test_the_autograder_grades_one_file(bundle):
    """assemble_rewards is right, gae forgets gamma in the decay: its points, its counterexample and its hint."""
    wrong = cut.definition(cut.source_of("rl_math"), ["gae"]).replace("gamma * lam * running", "lam * running")
    found, printed = submit(bundle, credit="\n".join(reference("a5", {"rl_math.gae": wrong})))
    assert [test["name"] for test in found["tests"]] == ["assemble_rewards", "gae", "all together"]
    assert [test["score"] for test in found["tests"]] == [40, 0, 0]
    assert sum(test["max_score"] for test in found["tests"]) == 100
    assert [test["status"] for test in found["tests"]] == ["passed", "failed", "failed"]
    assert all("output" in test and "visibility" in test for test in found["tests"])
    assert "hint: the decay of the advantage is gamma * lam" in found["tests"][1]["output"]
    assert " 40 /  40  assemble_rewards" in printed and "  0 /  45  gae" in printed and " 40 / 100" in printed
    assert "on gamma 0.5: expected" in printed and "hint: the decay of the advantage is gamma * lam" in printed


@pytest.mark.parametrize("files", [{}, {"one": "", "two": ""}], ids=["none", "two"])
def test_the_autograder_wants_one_file(files, bundle):
    found, _ = submit(bundle, **files)
    assert found["score"] == 0 and f"your submission has {len(files)} such files" in found["output"]


def test_a_grader_that_fails_still_leaves_its_results(bundle):
    part = bundle / "source" / "tutorials" / "assignments" / "catalogue.py"
    text = part.read_text()
    part.write_text('raise RuntimeError("a \\"quoted\\" \\\\ word")')
    try:
        found, printed = submit(bundle, credit="")
    finally:
        part.write_text(text)
    assert found["score"] == 0 and "The grader itself failed" in found["output"] and "Teacher" in found["output"]
    assert "RuntimeError: a quoted" in found["output"] and "Traceback" in printed


def test_a_bundle_of_a10_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["grade.py", "a10", "--bundle", str(tmp_path / "a10.zip")])
    with pytest.raises(SystemExit):
        grade.main()
    assert "there is no bundle" in capsys.readouterr().err and not (tmp_path / "a10.zip").exists()


# ---------------------------------------------------------------- the student copy


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """(the folder, what the command told)"""
    if subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("not a git checkout")
    out = tmp_path_factory.mktemp("student") / "copy"
    return out, copies.strip(out)


def squashed(text: str) -> str:
    return "".join(text.split())


def bodies() -> dict[str, str]:
    """The text below the docstring of each assigned function, without white space; short ones are left out."""
    found = {}
    for assignment in catalogue.ASSIGNMENTS.values():
        for path in assignment.functions:
            module, names = cut.split(path)
            source = cut.source_of(module)
            whole, bare = (cut.definition(s, names) for s in (source, cut.without_bodies(source, [names])))
            kept = len(os.path.commonprefix([whole.splitlines(), bare.splitlines()]))
            body = squashed("".join(whole.splitlines()[kept:]))
            found |= {path: body} if len(body) >= 40 else {}
    return found


def test_no_solution_is_left_in_the_student_copy(student):
    wanted = bodies()
    assert len(wanted) >= 40
    for file in (path for path in student[0].rglob("*") if path.suffix in (".py", ".md", ".ipynb", ".toml")):
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".ipynb":
            outputs_of = [o for cell in json.loads(text)["cells"] for o in cell.get("outputs", [])]
            text = "".join("".join(o.get("text", [])) for o in outputs_of)
        there = [path for path, body in wanted.items() if body in squashed(text)]
        assert not there, (file.name, there)


def test_what_the_student_copy_holds(student):
    out, told = student
    files = {str(path.relative_to(out).as_posix()) for path in out.rglob("*") if path.is_file()}
    for name in (
        "train.py",
        "pyproject.toml",
        "tests/core/test_rl_math.py",
        "tutorials/09_credit.ipynb",
        "tutorials/STUDENT.md",
    ):
        assert name in files, name
    for assignment in catalogue.ASSIGNMENTS.values():
        assert {f"tutorials/assignments/{assignment.folder}/{name}" for name in ("README.md", "submission.py")} <= files
    assert not [name for name in files if name.startswith((".ci", ".git/")) or "checks/" in name or "TEACHING" in name]
    assert not files & {"tests/mutants/", "tests/tutorials/test_assignments.py", "tutorials/assignments/hints.py"}
    assert (
        not {"tests/tutorials/test_grading_outputs.py", "tests/tutorials/test_own_run.py", "tests/test_bug_zoo.py"}
        & files
    )
    functions = sum(len(assignment.functions) for assignment in catalogue.ASSIGNMENTS.values())
    assert (
        f"{functions} functions of a1, a2, a3, a4, a5, a6, a7, a8 without their bodies" in told
        and "tests/mutants/" in told
    )
    page = (out / "tutorials" / "STUDENT.md").read_text(encoding="utf-8")
    assert all((out / name).exists() for name in re.findall(r"`(tests/[\w/]+\.py)`", page))
    assert max(map(len, page.splitlines())) <= 150
    assert not [
        name for name in files if name.endswith(".md") and "TEACHING" in (out / name).read_text(encoding="utf-8")
    ]
    for key, assignment in catalogue.ASSIGNMENTS.items():
        handout = (out / "tutorials" / "assignments" / assignment.folder / "README.md").read_text(encoding="utf-8")
        assert f"grade.py {key} " not in handout and "grade.py --graft my_work --out try" in handout
        assert all((out / name.removeprefix("../")).is_file() for name in re.findall(r"\.\./tests/[\w/]+\.py", handout))
    tests = {name: (out / name).read_text(encoding="utf-8") for name in re.findall(r"`(tests/[\w/]+\.py)`", page)}
    assert not [name for name, text in tests.items() if re.search(r"raises\((Value|User)Error, match=", text)]
    assert all(f"def {name}(" in "".join(tests.values()) for name in re.findall(r"`(test_\w+)`", page))


def test_notebooks_are_otherwise_as_they_were(student):
    changed = 0
    for file in sorted((ROOT / "tutorials").glob("*.ipynb")):
        before, after = (
            json.loads((place / file.name).read_text()) for place in (file.parent, student[0] / "tutorials")
        )
        assert len(before["cells"]) == len(after["cells"])
        for old, new in zip(before["cells"], after["cells"]):
            assert old["source"] == new["source"]
            for was, now in zip(old.get("outputs", []), new.get("outputs", [])):
                if was != now:
                    changed += 1
                    assert "raise NotImplementedError" in "".join(now["text"]) and was.keys() == now.keys()
    assert changed >= 10


def test_the_student_copy_cannot_grade_and_says_so(student):
    command = [sys.executable, "tutorials/assignments/grade.py", "a5", "tutorials/assignments/a5_credit/submission.py"]
    done = subprocess.run(command, cwd=student[0], capture_output=True, text=True)
    assert done.returncode == 1 and "a student copy has no grader" in done.stderr and "STUDENT.md" in done.stderr


def test_nothing_is_lost_by_a_copy(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="is there and not empty"):
        copies.strip(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def in_the_copy(
    out: Path, *command: str, first: Path | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess:
    """Run Python there, with the package of `first` (else the copy's) before any other."""
    environment = os.environ | {"FAST": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(first or out)}
    return subprocess.run([sys.executable, *command], cwd=cwd or out, env=environment, capture_output=True, text=True)


def test_what_is_not_written_is_the_teachers_and_shows_no_body(student):
    """A function that is written into the package itself stays."""
    out, _ = student
    look = (
        "import inspect; from alignpro_mini import rl_math; print(inspect.getsource(rl_math.entropy)); import torch; "
    )
    look += "print(float(rl_math.entropy(torch.zeros(1))), rl_math.masked_sum(1, 2))"
    file = out / "alignpro_mini" / "rl_math.py"
    text = file.read_text(encoding="utf-8")
    empty = cut.definition(text, ["masked_sum"])
    file.write_text(text.replace(empty, empty.replace("raise NotImplementedError", "return 'mine'")), encoding="utf-8")
    try:
        done = in_the_copy(out, "-c", look)
    finally:
        file.write_text(text, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "raise NotImplementedError" in done.stdout and done.stdout.endswith("-0.0 mine\n"), done.stdout


def test_only_some_assignments_are_taken_out(tmp_path, student):
    told = copies.strip(tmp_path / "copy", ["a5"])
    assert "2 functions of a5 without their bodies" in told
    here, there = (
        (place / "alignpro_mini" / "rl_math.py").read_text(encoding="utf-8") for place in (cut.ROOT, tmp_path / "copy")
    )
    assert cut.definition(there, ["whiten"]) == cut.definition(here, ["whiten"])
    assert cut.definition(there, ["gae"]) == cut.definition(cut.without_bodies(here, [["gae"]]), ["gae"])


def syllabi() -> list[tuple[str, list[str], list[str]]]:
    """(about, tutorials of a week, what was handed in before) of both tables of TEACHING.md."""
    text, found = (ROOT / "tutorials" / "TEACHING.md").read_text(encoding="utf-8"), []
    for weeks in ("Twelve weeks", "Six weeks"):
        before: list[str] = []
        table = text.split(f"## {weeks}")[1].split("\n## ")[0]
        for row in re.findall(r"^\| (\d+) \|(.*)$", table, flags=re.MULTILINE):
            read, hand_in = row[1].split("|")[:2]
            found.append((f"{weeks}, week {row[0]}", re.findall(r"\b\d\d[a-z]?\b", read), list(before)))
            before += [key for key in re.findall(r"\ba[1-8]\b", hand_in) if key not in before]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("about", "tutorials", "before"), [pytest.param(*week, id=week[0]) for week in syllabi()])
def test_the_tutorials_of_each_week_run_in_the_copy(about, tutorials, before, student, tmp_path):
    """With none of the former weeks' functions written, and with all of them."""
    out, places = student[0], [None]
    if before:
        (tmp_path / "mine").mkdir()
        for key in before:
            (tmp_path / "mine" / f"{key}.py").write_text("\n".join(reference(key)), encoding="utf-8")
        graft = ("tutorials/assignments/grade.py", "--graft", str(tmp_path / "mine"), "--out", str(tmp_path / "try"))
        done = in_the_copy(out, *graft)
        assert done.returncode == 0, done.stderr
        places.append(tmp_path / "try")
    for number in tutorials:
        [tutorial] = (out / "tutorials").glob(f"{number}_*.py")
        for place in places:
            done = in_the_copy(out, str(tutorial), first=place, cwd=tmp_path)
            assert done.returncode == 0, (tutorial.name, place, done.stderr[-2000:])


@pytest.mark.slow
@pytest.mark.parametrize("key", catalogue.ASSIGNMENTS)
def test_a_student_tries_the_functions_by_the_packages_tests(key, student, tmp_path):
    """As the handout says: with nothing written its tests pass, with the right functions too, and not with wrong ones."""
    out, _ = student
    tests = [str(out / name) for name in copies.TESTS[key]]
    run = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    done = in_the_copy(out, *run)
    assert done.returncode == 0, done.stdout[-3000:]
    statuses = []
    for name, change in (("right", {}), ("wrong", {next(iter(catalogue.ASSIGNMENTS[key].functions)): "WRONG"})):
        mine = tmp_path / name
        mine.mkdir()
        for path in change:
            names = cut.split(path)[1]
            change[path] = f"def {names[-1]}(*args, **options):\n    return None\n"
        (mine / f"{key}.py").write_text("\n".join(reference(key, change)), encoding="utf-8")
        place = tmp_path / f"try-{name}"
        done = in_the_copy(out, "tutorials/assignments/grade.py", "--graft", str(mine), "--out", str(place))
        assert done.returncode == 0 and f"functions of {key}" in done.stdout, done.stderr
        statuses.append(in_the_copy(out, *run, first=place, cwd=place).returncode)
    assert statuses == [0, 1]
