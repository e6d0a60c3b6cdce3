"""The bug hunt a9: the draw, the rules, what a test may do to the grader, and the points."""

import ast
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "tutorials" / "assignments"
sys.path[:0] = [str(PLACE), str(PLACE / "a9_bug_hunt"), str(ROOT / "tests")]

import bug_hunt  # noqa: E402
import draw  # noqa: E402
import grade  # noqa: E402
from mutants import MUTANTS, mutate  # noqa: E402

KNOWN = {mutant.name: mutant for mutant in MUTANTS}


def test_a_draw_is_five_different_bugs_of_the_pool_and_the_same_ones_again():
    draws = [[bug.name for bug in bug_hunt.bugs(seed)] for seed in range(20)]
    assert all(len(set(names)) == 5 and set(names) <= set(bug_hunt.POOL) for names in draws)
    random.seed(3)  # the draw has its own generator
    assert draws == [[bug.name for bug in bug_hunt.bugs(seed)] for seed in range(20)]
    assert len(set(map(tuple, draws))) > 10 and set().union(*draws) == set(bug_hunt.POOL)


def test_every_bug_of_the_pool_can_be_put_in():
    for name in bug_hunt.POOL:
        bug = KNOWN[name]
        source = (ROOT / bug.file).read_text(encoding="utf-8")
        assert ast.dump(ast.parse(mutate(bug, source))) != ast.dump(ast.parse(source)), name
    assert len({KNOWN[name].file for name in bug_hunt.POOL}) >= 5  # modules


@pytest.mark.slow
@pytest.mark.parametrize("name", bug_hunt.POOL)
def test_a_training_with_the_bug_runs_to_its_end(name):
    rows = draw.curves(KNOWN[name])
    assert [row["step"] for row in rows] == list(range(1, 61))
    shown = [key for _, _, keys in draw.PANELS for key in keys]
    assert all(math.isfinite(row[key]) for row in rows for key in shown)


@pytest.mark.slow
def test_the_pictures_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(draw, "RIGHT_SEEDS", [0])
    draw.draw({"bug 1": KNOWN[draw.EXAMPLE]}, tmp_path)
    assert (tmp_path / "bug-1.png").stat().st_size > 10_000


# ---------------------------------------------------------------- rules

ONE = "def test_bug_1():\n"


@pytest.mark.parametrize(
    ("source", "where", "told"),
    [
        ("def test_bug_1(:", "", "your file cannot be read: SyntaxError"),
        ("\0", "", "your file cannot be read"),
        ("limit = 3\n" + ONE + "    pass", "", "line 1: only imports and the functions test_bug_1 to test_bug_5"),
        ('"""Told."""\n"""Told again."""', "", "line 2: only imports"),
        ("class A:\n    pass", "", "line 1: only imports"),
        ("async def test_bug_1():\n    pass", "", "line 1: only imports"),
        ("def helper():\n    pass", "", "line 1: helper is none of test_bug_1 to test_bug_5"),
        ("def test_bug_6():\n    pass", "", "line 1: test_bug_6 is none of"),
        (ONE + "    pass\n" + ONE + "    pass", "", "line 3: test_bug_1 is there twice"),
        (
            "import torch, os",
            "",
            "line 1: a test imports only alignpro_mini, doubles, torch, numpy, math, copy, pytest",
        ),
        ("from . import torch", "", "line 1: a test imports only"),
        ("from torch._dynamo import inspect", "", "line 1: inspect is not allowed"),
        (ONE + "    import inspect", "test_bug_1", "line 2: a test imports only"),
        (ONE + "    pass\n" * 11, "test_bug_1", "line 1: 11 lines after the def; at most 10"),
        (ONE + "    x = '" + "x" * 120 + "'", "test_bug_1", "line 2: 130 columns; at most 120"),
        ("def test_bug_1(x):\n    pass", "test_bug_1", "line 1: a test has no arguments and no decorators"),
        ("import torch\n@torch.no_grad()\n" + ONE + "    pass", "test_bug_1", "line 3: a test has no arguments"),
        (
            ONE + "    open('x')",
            "test_bug_1",
            "line 2: open is not allowed: a test calls the code, it does not read it",
        ),
        (ONE + "    exec('x')", "test_bug_1", "line 2: exec is not"),
        (ONE + "    f = eval", "test_bug_1", "line 2: eval is not"),
        ("from torch import compile", "", "line 1: compile is not"),
        (ONE + "    f.__code__", "test_bug_1", "line 2: __code__ is not"),
        (ONE + "    __import__('os')", "test_bug_1", "line 2: __import__ is not"),
        (ONE + "    torch.inspect.getsource", "test_bug_1", "line 2: getsource is not"),
    ],
)
def test_each_rule_has_its_message(source, where, told):
    found = bug_hunt.broken_rules(source)
    assert told in found[where], found
    assert where == "" or set(found) == set(bug_hunt.TESTS)  # the others are missing, and that is said of them
    assert where == "" or found["test_bug_2"] == "test_bug_2 is not in your file"


def test_a_file_within_the_rules():
    head = '"""Mine."""\n\nfrom __future__ import annotations\nimport math, copy, pytest\nimport numpy as np\n'
    tests = [
        f"def {name}():\n" + "    import torch.nn as nn\n    lm.eval()\n" + "    pass\n" * 8 for name in bug_hunt.TESTS
    ]
    assert bug_hunt.broken_rules(head + "from alignpro_mini.ppo import PPOTrainer\n\n" + "\n".join(tests)) == {}
    assert set(bug_hunt.broken_rules("")) == set(bug_hunt.TESTS)


def test_a_file_that_breaks_a_rule_gets_nothing_and_says_why(tmp_path, monkeypatch, capsys):
    path, out = tmp_path / "mine.py", tmp_path / "out.json"
    path.write_bytes(b"x = '\xff'")
    assert "your file cannot be read" in bug_hunt.run_checks(path, 0)["bug 1"]["message"]
    path.write_text("import os\n")
    monkeypatch.setattr(sys, "argv", ["grade.py", "a9", str(path), "--json", str(out)])
    grade.main()
    tests = json.loads(out.read_text())["tests"]
    names = [f"bug {k}{more}" for k in range(1, 6) for more in ("", " alone")]
    assert [t["name"] for t in tests] == names and [t["max_score"] for t in tests] == [14, 6] * 5
    assert all(t["score"] == 0 and t["status"] == "failed" and t["visibility"] == "visible" for t in tests)
    said = capsys.readouterr().out
    assert "  0 /  14  bug 1\n           line 1: a test imports only" in said and "  0 / 100  Bug hunt" in said


# ---------------------------------------------------------------- run and score

FIRST = '''
    """The estimate of a likely token is positive."""
    p, q = torch.tensor([0.5]), torch.tensor([0.25])
    assert rl_math.kl_estimate(p.log(), q.log(), "k1") > 0
'''
SECOND = """
    assert torch.get_default_dtype() == torch.float32, "the test before changed it"
    assert abs(float(rl_math.entropy(torch.zeros(4))) - math.log(4)) < 1e-6
"""


def submission(tmp_path: Path, *bodies: str) -> Path:
    path = tmp_path / "mine.py"
    tests = [f"def test_bug_{k}():{body}" for k, body in enumerate(bodies, start=1)]
    path.write_text("\n\n".join(["import math\nimport torch\nfrom alignpro_mini import rl_math", *tests]))
    return path


def test_right_tests_get_their_points(tmp_path, monkeypatch):
    """With PYTHONOPTIMIZE, too, as some CI has it: it takes asserts away, and a test that asserts must still fail."""
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    monkeypatch.setattr(bug_hunt, "bugs", lambda seed: [KNOWN["k1-swapped"], KNOWN["entropy-divided-twice"]])
    changes = FIRST + "    torch.set_default_dtype(torch.float64)\n"
    tests = bug_hunt.scored(bug_hunt.run_checks(submission(tmp_path, changes, SECOND), seed=0))
    assert [t["score"] for t in tests] == [14, 6, 14, 6] and {t["status"] for t in tests} == {"passed"}, tests
    told = json.dumps(tests)
    assert not any(word in told for word in ("k1", "entropy", "rl_math", "swapped", "divided")), "it is a hunt"


def test_a_test_that_sees_too_much_nothing_or_fails_everywhere():
    one, two, three, four, five = bug_hunt.TESTS
    right = {test: {"ok": test != four, "message": "line 3: mine", "hint": ""} for test in (one, two, three, four)}
    failing = [{one, two}, {two, one}, {two}, set(), set()]  # `one` is about bugs 1 and 2, `two` about 1, 2 and 3
    tests = bug_hunt.scored(bug_hunt.judged({five: "not there"}, right, failing))
    assert [t["score"] for t in tests] == [14, 0, 14, 0, 0, 0, 0, 0, 0, 0]
    assert [t["output"] for t in tests[1::2]] == [
        "it fails on the package of bug 2, too",
        "it fails on the package of bug 1, 3, too",
        *(f"not before bug {k} has its 14 points" for k in (3, 4, 5)),
    ]
    assert [t["output"] for t in tests[4::2]] == [
        "it passes on bug 3's package: it does not see the bug",
        "it fails on the right package: line 3: mine",
        "not there",
    ]


def test_a_test_that_fails_on_every_bug_says_nothing():
    right = {test: {"ok": True, "message": "", "hint": ""} for test in bug_hunt.TESTS}
    tests = bug_hunt.scored(bug_hunt.judged({}, right, [set(bug_hunt.TESTS)] * 5))
    assert not any(t["score"] for t in tests) and "all five" in tests[0]["output"]


def test_what_a_test_may_do_to_the_grader(tmp_path, monkeypatch):
    """Endless loop, an end of the process, sys.exit, an assertion behind much garbage; the fifth test is missing."""
    monkeypatch.setattr(bug_hunt, "LIMIT_S", 1.0)
    garbage = "\n    print('{\"done\": 1}' * 10**5)\n    assert 1 == 2, 'mine'\n"
    bodies = ("\n    while True:\n        pass\n", "\n    torch.os._exit(0)\n", "\n    raise SystemExit\n", garbage)
    found = bug_hunt.run_checks(submission(tmp_path, *bodies), seed=0)
    assert not any(result["ok"] for result in found.values())
    told = ("no end after 1 s", "it ended the process", "SystemExit", "`assert 1 == 2, 'mine'`: AssertionError: mine")
    for k, said in enumerate(told, start=1):
        assert (
            "it fails on the right package: " in found[f"bug {k}"]["message"] and said in found[f"bug {k}"]["message"]
        )
    assert found["bug 5"]["message"] == "test_bug_5 is not in your file"
    assert "not before" in found["bug 5 alone"]["message"]


@pytest.mark.slow
def test_a_test_that_always_passes_sees_none_of_five_bugs(tmp_path):
    found = bug_hunt.run_checks(submission(tmp_path, *["\n    pass\n"] * 5), seed=1)
    assert not any(result["ok"] for result in found.values())
    assert all("it does not see the bug" in found[f"bug {k}"]["message"] for k in range(1, 6))


# ---------------------------------------------------------------- handout


@pytest.mark.slow
def test_the_test_of_the_example_sees_its_bug_within_the_rules(tmp_path):
    text = (PLACE / "a9_bug_hunt" / "README.md").read_text(encoding="utf-8")
    path = tmp_path / "mine.py"
    path.write_text(text.split("```python\n")[1].split("```")[0])
    assert set(bug_hunt.broken_rules(path.read_text())) == set(bug_hunt.TESTS[1:])  # missing
    for bug in (None, KNOWN[draw.EXAMPLE]):
        found = bug_hunt.run_tests(tmp_path / str(bug is None), bug, path, ["test_bug_1"], seed=0)
        assert found["test_bug_1"]["ok"] == (bug is None), found


def test_no_check_is_an_assert_which_python_o_takes_away():
    for file in PLACE.rglob("*.py"):
        if file.name != "training.py":  # the bug hunt's program, which is no part of the grader
            tree = ast.parse(file.read_text(encoding="utf-8"))
            assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)], file


def test_the_grader_starts_without_docstrings(tmp_path):
    command = [sys.executable, "-OO", str(PLACE / "grade.py"), "a9", str(tmp_path / "none.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "none.py: no such file" in done.stderr, done.stderr


def test_the_handout_says_what_is_needed_and_shows_the_pictures():
    folder = PLACE / "a9_bug_hunt"
    text = (folder / "README.md").read_text(encoding="utf-8")
    for part in ("## Goal", "## By hand", "## Check your work", "## Written question", "Time:", "grade.py a9 "):
        assert part in text, part
    for name in [*(f"bug-{k}.png" for k in range(1, 6)), f"{draw.EXAMPLE}.png"]:
        assert f"]({name})" in text and 5_000 < (folder / name).stat().st_size < 100_000, name
    for name, unit, _ in draw.PANELS:
        assert name.split(":")[0] in text, (name, unit)
    assert f"{bug_hunt.SEEN} points" in text and f"{bug_hunt.ALONE} more" in text
    assert f"at most {bug_hunt.MAX_LINES} lines" in text and draw.EXAMPLE not in bug_hunt.POOL
    assert bug_hunt.BUGS * (bug_hunt.SEEN + bug_hunt.ALONE) == 100
    assert not any(name in text for name in bug_hunt.POOL), "it is a hunt"
