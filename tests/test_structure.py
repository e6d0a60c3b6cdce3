"""The structure that a machine can check: which package may import which, the length of functions, and modules that import alone."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "alignpro_mini"
MODULES = sorted(PACKAGE.rglob("*.py"))
FRONT_DOORS = {"__init__.py", "__main__.py"}  # of the core; they may import from everywhere
CORE = sorted(path for path in PACKAGE.glob("*.py") if path.name not in FRONT_DOORS)
# Sub-package: the sub-packages that it may import besides itself and the core ("").
MAY_IMPORT = {
    "": set(),
    "fast": set(),
    "weights": set(),
    "worlds": set(),
    "remote": set(),
    "lab": {"fast", "weights", "worlds", "remote"},
    "use": {"lab", "fast", "weights", "worlds", "remote"},
    "experiments": {"lab", "fast", "weights", "worlds", "remote"},
}


def place(path: Path) -> str:
    """The sub-package of a module, "" for the core."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def imported(path: Path) -> set[str]:
    """Dotted names of this package's modules that a module imports, wherever in it; relative imports resolved."""
    here = ("alignpro_mini", *path.relative_to(PACKAGE).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*here[: len(here) - node.level + 1], *([node.module] if node.module else [])])
            base = base if node.level else node.module
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "alignpro_mini"}


def target(name: str) -> str:
    """The sub-package that a dotted import reaches, "" for the core."""
    parts = name.split(".")[1:]
    return parts[0] if parts and parts[0] in MAY_IMPORT else ""


def test_every_sub_package_has_its_rule():
    assert {place(path) for path in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_package_may(path):
    if path.parent == PACKAGE and path.name in FRONT_DOORS:
        return
    allowed = {"", place(path)} | MAY_IMPORT[place(path)]
    wrong = {name for name in imported(path) if target(name) not in allowed}
    assert not wrong, f"{path.relative_to(ROOT)} may import {sorted(allowed)}, not {sorted(wrong)}"
    # The front door re-exports from weights: through it the core would reach what it may not import.
    assert not {
        name
        for name in imported(path)
        if name.count(".") == 1
        and not (PACKAGE / name.split(".")[1]).is_dir()
        and not (PACKAGE / f"{name.split('.')[1]}.py").exists()
    }, "import from the module, not from the front door"


def test_the_import_rule_sees_every_way_to_import(tmp_path, monkeypatch):
    """The rule is worth something only if a wrong import is found, however it is written and wherever it stands."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    module = tmp_path / "ppo.py"
    for line in (
        "import alignpro_mini.lab.run",
        "from alignpro_mini.lab import run",
        "from alignpro_mini.lab.run import Run",
        "from .lab import run",
        "from .lab.run import Run",
        "def f():\n    from alignpro_mini.worlds.toy import ToyWorld",
    ):
        module.write_text(line)
        assert {target(name) for name in imported(module)} <= {"lab", "worlds"} and imported(module), line
    module.write_text("from alignpro_mini import rl_math\nfrom . import theory\nimport torch")
    assert {target(name) for name in imported(module)} == {""}


def test_no_import_circle():
    names = {".".join(("alignpro_mini", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in MODULES}
    edges = {}
    for name, path in names.items():
        reached = {n if n in names else n.rpartition(".")[0] for n in imported(path)}
        edges[name] = {n for n in reached if n in names}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle of imports: {' -> '.join([*above, name])}"
        if name not in done:
            for other in edges[name]:
                visit(other, (*above, name))
            done.add(name)

    for name in names:
        visit(name, ())


def test_the_core_is_a_hundred_columns_wide():
    wide = [
        f"{path.name}:{number}"
        for path in PACKAGE.glob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 100
    ]
    assert not wide
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (listed,) = re.findall(r'^exclude = \["alignpro_mini/\{(.+)\}.py"\]$', pyproject, re.MULTILINE)
    assert listed.split(",") == sorted(path.stem for path in PACKAGE.glob("*.py")), "formatted at 100 columns"


def packed(source: str) -> list[str]:
    """Lines that hold more than one statement, or that assign several expressions at once."""
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.stmt) and isinstance(body, list) and body and body[0].lineno == node.lineno:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Tuple)
            and isinstance(node.value, ast.Tuple)
        ):
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    starts = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    return found + [f"{line}: two statements" for line in set(starts) if starts.count(line) > 1]


@pytest.mark.parametrize("path", CORE, ids=lambda p: p.name)
def test_a_line_of_the_core_holds_one_statement(path):
    assert not packed(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line", ["a, b = 1, f(2)", "a = 1; b = 2", "if a: b = 1", "for a in b: c()", "a, (b, c) = 1, f()"]
)
def test_packed_lines_are_seen(line):
    assert packed(line) and not packed("a, b = f()\nif a:\n    b = (1, 2)\n")


@pytest.mark.parametrize("path", [*MODULES, ROOT / "train.py"], ids=lambda p: str(p.relative_to(ROOT)))
def test_a_function_fits_on_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{path.stem}.{node.name} has {length} lines"
            if (path.name, node.name) == ("ppo.py", "step"):
                assert length <= 40


def test_the_formatter_is_rarely_overruled():
    files = [*MODULES, ROOT / "train.py", *(ROOT / "tests").rglob("*.py")]
    marks = [
        f"{path.name}: {line}"
        for path in files
        for line in path.read_text().splitlines()
        if re.search(r"# fmt: (skip|off)\b", line)
    ]
    assert len([m for m in marks if "re.search" not in m]) <= 5, marks


def test_every_module_imports_without_extras_and_without_printing():
    """In one fresh process, with the optional packages hidden."""
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in MODULES]
    code = (
        "import importlib, sys\n"
        "for hidden in ('gguf', 'vaderSentiment', 'transformers', 'trl', 'openai', 'httpx2'):\n"
        "    sys.modules[hidden] = None\n"  # importing it now raises ImportError
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "assert 'matplotlib' not in sys.modules, 'importing draws no figure'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done.stderr[-2000:]


def test_the_top_level_is_as_agreed():
    agreed = {"alignpro_mini", "tutorials", "tests", "train.py", "pyproject.toml", "README.md", "LICENSE"}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    tops = {file.split("/")[0] for file in listed.stdout.splitlines()}
    assert {top for top in tops if not top.startswith(".")} <= agreed
