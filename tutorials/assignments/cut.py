"""Cut functions out of the package: stubs for students, a package without them, one function's reference or mutant.

Source is cut by line numbers of the syntax tree, so that comments and formatting stay as they are.
"""

from __future__ import annotations

import ast
import shutil
import textwrap
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "alignpro_mini"


def source_of(module: str) -> str:
    return (PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")


def split(path: str) -> tuple[str, list[str]]:
    """ "ppo.PPOTrainer.loss" -> ("ppo", ["PPOTrainer", "loss"]). Raises LookupError where the package has no module."""
    parts = path.split(".")
    for depth in range(1, len(parts)):
        if (PACKAGE / f"{'/'.join(parts[:depth])}.py").exists():
            return ".".join(parts[:depth]), parts[depth:]
    raise LookupError(f"{path}: no such module")


def name_of(path: str) -> str:
    """ "lab.statistics.win_shares" -> "win_shares"; "ppo.PPOTrainer.loss" -> "PPOTrainer.loss": as submissions say."""
    return ".".join(split(path)[1])


parsed = lru_cache(maxsize=None)(ast.parse)  # the same text is asked for many functions; nobody changes a tree


def find(tree: ast.Module, names: list[str]) -> ast.FunctionDef:
    """The definition of a function or method. Raises LookupError when it is not there."""
    body: list = tree.body
    for name in names:
        found = [n for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == name]
        if not found:
            raise LookupError(f"{'.'.join(names)} is not in the module")
        node, body = found[-1], found[-1].body
    return node


def definition(source: str, names: list[str]) -> str:
    """The text of a function, decorators included, without indentation."""
    node = find(parsed(source), names)
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    lines = source.splitlines()[first - 1 : node.end_lineno]
    return textwrap.dedent("\n".join(lines)) + "\n"


def without_bodies(source: str, wanted: Iterable[list[str]]) -> str:
    """The module with `raise NotImplementedError` for the bodies of these functions; docstrings stay."""
    tree = parsed(source)
    return _emptied(source, [find(tree, names) for names in wanted])


def without_oracles(source: str) -> str:
    """The same for every function called oracle..., inside of functions, too."""
    functions = [node for node in ast.walk(parsed(source)) if isinstance(node, ast.FunctionDef)]
    return _emptied(source, [node for node in functions if node.name.startswith("oracle")])


def _emptied(source: str, functions: list[ast.FunctionDef]) -> str:
    lines = source.splitlines()
    for node in sorted(functions, key=lambda n: -n.lineno):
        documented = ast.get_docstring(node) is not None
        first = node.body[0]
        start = first.end_lineno if documented else first.lineno - 1
        lines[start : node.end_lineno] = [" " * first.col_offset + "raise NotImplementedError"]
    return "\n".join(lines) + "\n"


def changed(path: str, right: str, wrong: str) -> str:
    """The text of the function's module, with `wrong` for `right` inside of the function.

    Raises LookupError where the function does not hold `right`.
    """
    module, names = split(path)
    source = source_of(module)
    node = find(parsed(source), names)
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
    lines = source.splitlines(keepends=True)
    whole = "".join(lines[first : node.end_lineno])
    if right not in whole:
        raise LookupError(f"{right!r} is not in {path}")
    return "".join(lines[:first]) + whole.replace(right, wrong) + "".join(lines[node.end_lineno :])


def stubs(functions: Iterable[str], imports: Iterable[str], title: str) -> str:
    """The file that a student starts from."""
    told = f'"""{title}: replace each `raise NotImplementedError`. Helpers and imports of your own are kept."""\n\n'
    empty = {}
    for path in functions:
        module, names = split(path)
        empty[path] = definition(without_bodies(source_of(module), [names]), names)
    return told + "\n".join(imports) + "\n\n\n" + "\n\n".join(blocks(empty))


def blocks(written: dict[str, str]) -> list[str]:
    """The text of each function and class of a submission from {path: the function's text}; methods share a class."""
    parts: dict[str, list[str]] = {}
    for path, text in written.items():
        names = split(path)[1]
        parts.setdefault(names[0] if len(names) > 1 else "", []).append(text)
    found = parts.pop("", [])
    for owner, methods in parts.items():
        found.append(f"class {owner}:\n" + "\n".join(textwrap.indent(m, "    ") for m in methods))
    return found


def stripped_package(place: Path, functions: Iterable[str]) -> None:
    """Copy the package into `place`, all these functions without bodies."""
    shutil.copytree(PACKAGE, place / "alignpro_mini", ignore=shutil.ignore_patterns("__pycache__"))
    by_module: dict[str, list[list[str]]] = {}
    for path in functions:
        module, names = split(path)
        by_module.setdefault(module, []).append(names)
    for module, wanted in by_module.items():
        file = place / "alignpro_mini" / f"{module.replace('.', '/')}.py"
        file.write_text(without_bodies(source_of(module), wanted), encoding="utf-8")
