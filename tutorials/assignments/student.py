"""The copy of the project that students get: `grade.py --strip OUT [--only a1 a3]`.

The assigned functions have no bodies there that could be read, and yet all of it runs: the package restores what nobody
has written from texts that are packed in alignpro_mini/reference/. Hiding the solutions is not the aim, as they are
public; a student who reads the package does not read them by accident.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Iterable
from pathlib import Path

import cut
from catalogue import ASSIGNMENTS
from outputs import fresh

HERE = Path(__file__).resolve().parent
# The grader itself: it has other solutions (the oracles), or tells which bug was drawn.
HERE_NOT = ("checks/", "hints.py", "child.py", "judge.py", "watch.py", "student.py", "bug_", "a9_bug_hunt/draw.py")
GRADER = (".ci/", "tests/mutants/", "tutorials/TEACHING.md", *(f"tutorials/assignments/{name}" for name in HERE_NOT))
OWN = "mutants|board|grade|judge|student|catalogue|cut|outputs|own_run|bug_hunt|attempts|submissions"
GRADERS_TESTS = re.compile(rf"^\s*(?:from|import) (?:{OWN})\b", re.MULTILINE)
# The wording of an error, which students choose themselves. A RuntimeError keeps it: NotImplementedError is one.
WORDING = re.compile(r"(?<=raises\()((?!RuntimeError)\w+), match=.*(?=\):$)", re.MULTILINE)
HOOK = "\nfrom alignpro_mini.reference import graft  # noqa: E402\n\ngraft.restore()\n"


def strip(out: Path, only: Iterable[str] = ()) -> str:
    """Write a copy of the tracked files without the bodies of the assigned functions, of `only` these assignments.

    Returns what to tell.
    """
    keys = list(only) or list(ASSIGNMENTS)
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
    functions = [path for key in keys for path in ASSIGNMENTS[key].functions]
    cut.stripped_package(out, functions)
    _pack(out / "alignpro_mini", functions)
    for name in wanted:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(cut.ROOT / name, out / name)
    _adapt(out)
    pairs = _printed(functions)
    shown = sum(_hide(path, pairs) for path in sorted((out / "tutorials").glob("*.ipynb")))
    return "\n".join(
        [
            f"{out}: a student copy, to begin with tutorials/STUDENT.md",
            f"  {len(functions)} functions of {', '.join(keys)} without their bodies; they run all the same, until they are written",
            f"  {shown} of them no longer shown in the notebooks' outputs",
            f"  {len(wanted)} other files; the assignments' tests accept any wording of an error; left out, because it is the grader: {', '.join(_short(left_out))}",
        ]
    )


def _short(names: Iterable[str]) -> list[str]:
    """Folders of the grader by their own name, once."""
    return sorted({next((g for g in GRADER if g.endswith("/") and name.startswith(g)), name) for name in names})


def _pack(package: Path, functions: list[str]) -> None:
    """Put the texts of these functions where `graft.restore` finds them."""
    place = package / "reference"
    place.mkdir()
    shutil.copyfile(HERE / "graft.py", place / "graft.py")
    (place / "__init__.py").write_text('"""What nobody has written yet, see graft.py."""\n', encoding="utf-8")
    texts = {path: cut.definition(cut.source_of(cut.split(path)[0]), cut.split(path)[1]) for path in functions}
    packed = base64.b85encode(zlib.compress(json.dumps(texts).encode())).decode()
    where = {path: cut.split(path) for path in functions}
    (place / "functions.json").write_text(json.dumps({"functions": where, "texts": packed}), encoding="utf-8")
    front = package / "__init__.py"
    front.write_text(front.read_text(encoding="utf-8") + HOOK, encoding="utf-8")


# ---------------------------------------------------------------- pages that fit the copy

GRADED = re.compile(r"Copy `submission\.py`, replace each .*?What your own code prints is not shown\.", re.DOTALL)
HUNT = re.compile(
    r"```\npython tutorials/assignments/grade\.py a9 .*?```\n\nIt takes about half a minute and prints your points\.",
    re.DOTALL,
)
PICTURES = re.compile(r"To see whether your bug has the curves.*?draws the pictures of other bugs\.\n\n", re.DOTALL)
TRY = """\
Copy `submission.py` to `my_work/{key}.py`, replace each `raise NotImplementedError`, and run the package's own tests with your functions:

```
python tutorials/assignments/grade.py --graft my_work --out try
cd try && python -m pytest -p no:cacheprovider {tests}
```

Hand in `my_work/{key}.py`. Your teacher's grader gives the points, the smallest input that shows what is wrong, and a hint if the mistake is a known
one. [STUDENT.md](../../STUDENT.md) says more."""


def _adapt(out: Path) -> None:
    """Handouts, links and tests as they are in the copy; tutorials/STUDENT.md."""
    for key, assignment in ASSIGNMENTS.items():
        tests = " ".join(f"../{name}" for name in TESTS[key])
        _replace(
            out / "tutorials" / "assignments" / assignment.folder / "README.md",
            GRADED,
            TRY.format(key=key, tests=tests),
        )
    hunt = out / "tutorials" / "assignments" / "a9_bug_hunt" / "README.md"
    _replace(hunt, HUNT, "Your teacher runs the grader on your file.")
    _replace(hunt, PICTURES, "")
    for page in (path for path in out.rglob("*.md") if "TEACHING.md" in path.read_text(encoding="utf-8")):
        lines = page.read_text(encoding="utf-8").splitlines(keepends=True)
        page.write_text("".join(line for line in lines if "TEACHING.md" not in line), encoding="utf-8")
    for name in {name for names in TESTS.values() for name in names}:
        file = out / name
        file.write_text(WORDING.sub(r"\1", file.read_text(encoding="utf-8")), encoding="utf-8")
    rows = [f"| {key} | {', '.join(f'`{name}`' for name in TESTS[key])} |" for key in ASSIGNMENTS]
    (out / "tutorials" / "STUDENT.md").write_text(STUDENT.replace("{rows}", "\n".join(rows)), encoding="utf-8")


def _replace(page: Path, passage: re.Pattern, instead: str) -> None:
    text, count = passage.subn(lambda _: instead, page.read_text(encoding="utf-8"))
    if count != 1:
        sys.exit(f"grade.py: error: {page} has {count} passages for the grader, not 1: mend student.py")
    page.write_text(text, encoding="utf-8")


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


TESTS = {
    "a1": ["tests/core/test_rl_math.py"],
    "a2": ["tests/core/test_transformer.py"],
    "a3": ["tests/core/test_generation.py"],
    "a4": ["tests/core/test_sft.py", "tests/core/test_reward.py"],
    "a5": ["tests/core/test_rl_math.py"],
    "a6": ["tests/core/test_ppo.py", "tests/core/test_rl_math.py"],
    "a7": ["tests/core/test_frozen.py", "tests/core/test_alignpro.py"],
    "a8": ["tests/core/test_theory.py", "tests/lab/test_evaluation.py"],
}
STUDENT = """\
# A student copy

In this copy the functions that the assignments ask for have no bodies: you write them. Everything runs all the same, because the package puts the
teacher's function in the place of each one that is not written. So tutorials, `train.py` and tests work from the first day, and a mistake in one
assignment does not stop the next one. The grader is not here: your teacher runs it.

* **Read** the tutorials and run them. Where they print a function of an assignment, they print the empty one.
* **Write**: copy `assignments/<assignment>/submission.py` to a folder of your own as `a1.py`, `a2.py`, ..., replace each
  `raise NotImplementedError`, and hand that file in.
* **Try** what you wrote. This makes a copy of the package with your functions in it, and runs the package's own tests of them:

```
python tutorials/assignments/grade.py --graft my_work --out try
cd try && python -m pytest -p no:cacheprovider ../tests/core/test_rl_math.py -k "gae or assemble"
```

The first command says which of your functions are used; what you have not written is the teacher's, and its tests pass. Make `try` anew after each
change, or go on with the file in `try/alignpro_mini/yours/` and hand in that one.

| assignment | its tests |
|---|---|
{rows}

Passing these tests is a good sign; the grader has inputs of its own. For a9, which is about bugs in right functions, your teacher gives a copy with
the bodies.

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
| a8 `test_groups_of_requests_are_resampled_together_in_the_comparison_with_the_fixed_rewrite` | the same |

What counts is the assignment's `README.md`.
"""
