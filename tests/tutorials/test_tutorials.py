"""The tutorials: each runs, keeps to the form, and its notebook is built from it and from nothing else."""

import importlib.util
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
import warm

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "tutorials"
SOURCES = sorted(PLACE.glob("[0-9][0-9]*_*.py"))


def number(path: Path) -> str:
    """07 of 07_slug.py, 07a of 07a_slug.py."""
    return path.name.partition("_")[0]


def module(name: str):
    spec = importlib.util.spec_from_file_location(name, PLACE / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def cells(text: str) -> list[tuple[str, str]]:
    """(kind, source) of each cell of a percent script, comment signs of Markdown and of magics taken off."""
    found = []
    for part in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        lines = body.strip("\n").split("\n")
        if "[markdown]" in head:
            found.append(("markdown", "\n".join(re.sub(r"^# ?", "", line) for line in lines).strip()))
        else:
            found.append(("code", "\n".join(re.sub(r"^# (?=[!%])", "", line) for line in lines).strip()))
    return found


def solved(text: str) -> str:
    """The script with its folded solutions in the place of its stubs."""
    solutions = [found for _, source in cells(text) for found in re.findall(r"```python\n(.*?)```", source, re.DOTALL)]
    stub = r'(^# %% tags=\["stub"\]\n).*?(?=^# %%)'
    filled, count = re.subn(stub, lambda found: f"{found[1]}{solutions.pop(0)}\n", text, flags=re.DOTALL | re.MULTILINE)
    assert not solutions, f"{count} stubs, and {len(solutions)} solutions more"
    return filled


def test_they_are_numbered():
    assert [number(path) for path in SOURCES] == sorted([f"{i:02}" for i in range(1, 15)] + ["07a", "10a"])
    ladder = (PLACE / "README.md").read_text(encoding="utf-8")
    assert all(f"({path.stem}.ipynb)" in ladder for path in SOURCES)


def run_it(path: Path) -> subprocess.CompletedProcess:
    """From another folder, as a script, its exercises solved; micro sizes. (The notebooks were built with the stubs.)"""
    with tempfile.TemporaryDirectory() as place:
        script = Path(place) / path.name
        script.write_text(solved(path.read_text(encoding="utf-8")), encoding="utf-8")
        paths = f"{ROOT}{os.pathsep}{PLACE}"
        return warm.run([script], Path(place), {"FAST": "1", "PYTHONPATH": paths, "TMPDIR": place})


@pytest.mark.ahead(run=run_it)
@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_a_tutorial_runs_in_seconds(path, ahead):
    assert ahead.returncode == 0, ahead.stderr[-3000:]
    checks = len(re.findall(r"^ *check\(", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert ahead.stdout.splitlines().count("right") >= checks, "a folded solution does not solve its exercise"
    assert "not right" not in ahead.stdout and "not solved yet" not in ahead.stdout
    notebook = json.loads(path.with_suffix(".ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if re.search(r"^source\(", "".join(cell["source"]), flags=re.MULTILINE):
            shown = "".join("".join(output.get("text", [])) for output in cell["outputs"])
            function = re.search(r"^( *)(@|def ).*\n(\1[ )].*\n|\s*\n|\1def .*\n)*", shown, flags=re.MULTILINE)
            assert function[0].strip() in ahead.stdout, f"the package changed: tutorials/build.py {number(path)}"


@pytest.mark.parametrize(
    "mine, right, told",
    [
        (None, 3, "not solved yet"),
        (3, None, "not solved yet"),
        (3 + 1e-9, 3, "right"),
        (3.1, 3, "not right: 3.1; it should be 3.0"),
        (float("nan"), 3, "not right: nan; it should be 3.0"),
        ([1, 2], [1, 2], "right"),
        (
            [1, 2],
            [[1, 2]],
            "not right: tensor([1., 2.], dtype=torch.float64); it should be tensor([[1., 2.]], dtype=torch.float64)",
        ),
        ("both", "answer", "not right: both; it should be answer"),
        ("both", 3, "not right: both; it should be 3"),
    ],
)
def test_an_exercise_is_checked(mine, right, told, capsys):
    check = module("lesson").check
    check(mine, right)
    check(lambda *_: mine, [right, right], (1,), (2,))
    alone, of_a_function = capsys.readouterr().out.splitlines()
    assert alone == told and of_a_function == told.replace("not right:", "not right for 1:")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_a_tutorial_keeps_to_the_form(path):
    text = path.read_text(encoding="utf-8")
    (kind, opening), (_, colab), *rest = cells(text)
    assert kind == "markdown" and opening.startswith(f"# {number(path)} · ")
    assert "At the end you will know" in opening and "Time:" in opening and "You need:" in opening
    assert all(line[0] in "!%" for line in colab.splitlines()), "the Colab cell holds magics only"
    building = module("build")
    assert building.COLAB in text, "the repository's address stands in build.py"
    assert f"{building.BUTTON}({building.NOTEBOOKS}/{path.stem}.ipynb)" in opening, "the Colab button"
    assert 100 <= len(text.splitlines()) <= 310
    assert "## Exercise" in text and text.count("<summary>Answer</summary>") == 3
    for _, prose in rest:
        for folded in re.findall(r"</summary>\n(?!\n)(.*?)</details>", prose, flags=re.DOTALL):
            assert not re.search(r"[*`$\\]", folded), f"Markdown after a blank line only, else its signs show: {folded}"
    code = "\n".join(source for kind, source in rest if kind == "code")
    assert "show(figure)" in code and "source(" in code and "assert " in code
    if "shared_run(" in code:
        assert "If run first, it trains" in opening


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_a_notebook_has_the_sources_of_its_script_and_renders(path):
    file = path.with_suffix(".ipynb")
    notebook = json.loads(file.read_text(encoding="utf-8"))
    found = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in notebook["cells"]]
    assert found == cells(path.read_text(encoding="utf-8")), f"build it again: python tutorials/build.py {number(path)}"
    assert file.stat().st_size <= 400_000 and "widgets" not in notebook["metadata"]
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in code if "skip-execution" not in cell["metadata"].get("tags", [])]
    assert counts == list(range(1, len(counts) + 1)), "executed once, from top to bottom"
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 1
    told = "".join("".join(o.get("text", [])) for o in outputs)
    assert str(ROOT) not in told and "/tmp" not in told, "a path of the machine that built it"
