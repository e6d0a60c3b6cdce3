"""The house rules that a machine can check: small modules, small functions, imports that only go down."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "alignpro_mini"
MODULES = sorted(PACKAGE.glob("*.py"))
# From the ground up: a module imports only from the floors below its own.
FLOORS = (
    {"__init__"},
    {"toyworld", "tokenizer", "transformer", "rl_math", "theory", "tables"},
    {"config", "checkpoint", "generation", "plots"},
    {"cli", "data", "run", "frozen", "report", "smollm2", "jobs"},
    {"sft"},
    {"ppo"},
    {"reward", "alignpro"},
    {"optimum", "evaluation"},
    {"pipeline"},
    {"assess"},
    {"grid", "frontier"},
)


def imported(path: Path) -> set[str]:
    """The modules of this package that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "alignpro_mini":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("alignpro_mini."):
            found.add(node.module.split(".")[1])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_a_module_is_read_in_one_sitting(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 350
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 60, (
                f"{path.stem}.{node.name} has {node.end_lineno - node.lineno + 1} lines"
            )
            if (path.stem, node.name) == ("ppo", "step"):
                assert node.end_lineno - node.lineno < 40


def test_every_module_has_its_floor():
    assert {p.stem for p in MODULES} == set.union(*FLOORS)


@pytest.mark.parametrize("path", [p for p in MODULES if p.stem != "__init__"], ids=lambda p: p.stem)
def test_imports_only_go_down(path):
    floor = next(i for i, names in enumerate(FLOORS) if path.stem in names)
    assert imported(path) <= set.union(*FLOORS[:floor]), f"{path.stem} may import from below floor {floor} only"
