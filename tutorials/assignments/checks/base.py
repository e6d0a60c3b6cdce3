"""What a check is made of: cases with an oracle that shares no code with the package, and how outcomes are compared."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass

import numpy as np
import torch
from bug_child import told
from torch import Tensor

WRONG_SHAPES = "shapes that do not fit"
GRADIENT_TOLERANCE = 1e-4  # finite differences


@dataclass(frozen=True, slots=True)
class Case:
    """One call. `oracle(*args)` gives the right outputs, or raises what the function must raise.

    about     what the case is, in words that complete "on ..."
    args      the arguments, or a function that makes them anew for each call (for objects that the call changes)
    gradient  compare the derivative by the first argument too, with finite differences of the oracle
    call      call(function, *args) -> outputs, where those are not what the function returns: what it did to an object,
              the gradient of a weight, or `sentences` about what is wrong
    """

    about: str
    args: tuple | Callable[[], tuple]
    oracle: Callable | None = None
    gradient: bool = False
    call: Callable | None = None
    tolerance: float = 1e-6

    def made(self) -> list:
        args = self.args() if callable(self.args) else self.args
        return [a.clone() if isinstance(a, Tensor) else a for a in args]


def outcome(function: Callable, case: Case, numeric: bool = False) -> tuple:
    """("value", outputs, gradient or None) or ("raised", the exception's class, what it says and where; "" of the oracle).

    `numeric`: the function is the oracle.
    """
    args = case.made()
    if case.gradient and not numeric:
        args[0].requires_grad_()
    watched = [(name, x, x.detach().clone()) for name, x in _tensors(args)]
    try:
        outputs = _outputs(function(*args) if numeric or case.call is None else case.call(function, *args))
    except Exception as error:
        code = getattr(inspect.unwrap(function), "__code__", None)
        return ("raised", type(error).__name__, "" if numeric else told(error, getattr(code, "co_filename", "")))
    gradient = None
    if case.gradient:
        gradient = _numeric(case) if numeric else _gradient(outputs, args[0])
    # A result may be right and the caller's own numbers spoiled.
    outputs += [f"{name} was changed in place" for name, x, was in watched if ((x != was) & (was == was)).any()]
    return ("value", [x.detach().clone() if isinstance(x, Tensor) else x for x in outputs], gradient)


def _tensors(args: list) -> list[tuple[str, Tensor]]:
    """The tensors and arrays among the arguments, and those that a dataclass among them holds, such as a Rollout."""
    found = [(f"argument {i}", x) for i, x in enumerate(args, 1)]
    found += [(f"{type(a).__name__}.{f.name}", getattr(a, f.name)) for a in args if is_dataclass(a) for f in fields(a)]
    return [(name, torch.as_tensor(x)) for name, x in found if isinstance(x, (Tensor, np.ndarray))]


def _outputs(found) -> list:
    """A returned value as a list: numbers and arrays as tensors, everything else as it is."""
    return [_as_tensor(x) for x in (found if isinstance(found, tuple) else (found,))]


def _as_tensor(x):
    try:
        return torch.as_tensor(x)
    except (TypeError, RuntimeError, ValueError):
        return x


def _weighed(outputs: list) -> Tensor | float:
    """One number of all outputs, with fixed uneven weights: a gradient that is only summed right does not pass."""
    total = 0.0
    for x in outputs:
        if isinstance(x, Tensor) and x.is_floating_point():
            weights = torch.linspace(0.5, 1.5, x.numel(), dtype=torch.float64).view(x.shape)
            total = total + (x.double() * weights).sum()
    return total


def _gradient(outputs: list, x: Tensor) -> Tensor:
    total = _weighed(outputs)
    if not isinstance(total, Tensor) or not total.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(total, x, allow_unused=True)
    return torch.zeros_like(x) if found is None else found


def _numeric(case: Case, step: float = 1e-5) -> Tensor:
    x, *others = case.made()
    found = torch.zeros_like(x)
    for i in range(x.numel()):
        if not math.isfinite(float(x.view(-1)[i])):
            continue  # padding: its derivative is 0
        values = []
        for by in (step, -step):
            moved = x.clone()
            moved.view(-1)[i] += by
            values.append(float(_weighed(_outputs(case.oracle(moved, *others)))))
        found.view(-1)[i] = (values[0] - values[1]) / (2 * step)
    return found


def same(a: tuple, b: tuple, tolerance: float = 1e-6) -> bool:
    """Whether two outcomes agree: kind, number and shapes of the outputs, values, gradients."""
    if a[0] != b[0] or a[0] != "value":
        return a[:2] == b[:2]
    if len(a[1]) != len(b[1]) or not all(_alike(x, y, tolerance) for x, y in zip(a[1], b[1])):
        return False
    return a[2] is None or b[2] is None or _alike(a[2], b[2], GRADIENT_TOLERANCE)


def _alike(x, y, tolerance: float) -> bool:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return type(x) is type(y) and x == y
    return x.shape == y.shape and bool(_close(x, y, tolerance).all())


def _close(x: Tensor, y: Tensor, tolerance: float) -> Tensor:
    return torch.isclose(x.double(), y.double(), rtol=tolerance, atol=tolerance / 100, equal_nan=True)


def difference(found: tuple, wanted: tuple, tolerance: float) -> str:
    """Two outcomes for a person: only the outputs that differ, each with its name where the one before it is a name."""
    parts = [found[1], wanted[1]]
    if found[0] == wanted[0] == "value" and len(found[1]) == len(wanted[1]):
        wrong = {i for i, (x, y) in enumerate(zip(*parts)) if not _alike(x, y, tolerance)}
        shown = sorted(wrong | {i - 1 for i in wrong if i and isinstance(found[1][i - 1], str)})
        parts = [[outputs[i] for i in shown] for outputs in parts]
    got, expected = (_told(kind, part, gradient) for (kind, _, gradient), part in zip((found, wanted), parts))
    both = f"expected {expected}, got {got}"
    if got != expected:
        return both
    # They differ in what is rounded away, or only their shapes were told: then the first entry that differs.
    pairs = [(x, y, tolerance) for x, y in zip(*parts)] + [(found[2], wanted[2], GRADIENT_TOLERANCE)]
    for x, y, close in pairs:
        if isinstance(x, Tensor) and isinstance(y, Tensor) and not _alike(x, y, close):
            if x.shape != y.shape:
                return f"{both}: expected shape {tuple(y.shape)}, got {tuple(x.shape)}"
            at = tuple((~_close(x, y, close)).nonzero()[0].tolist())
            return f"{both}: expected {y[at].item()!r}{f' at {list(at)}' if at else ''}, got {x[at].item()!r}"
    return both


def _told(kind: str, outputs, gradient) -> str:
    if kind == "raised":
        return f"an exception: {gradient}" if gradient else f"{outputs} was raised"
    said = ", ".join(map(_short, outputs))
    return said if gradient is None else f"{said} with gradient {_short(gradient)}".strip()


def call_of(case: Case) -> str:
    """The arguments for a person, "(a, b)"; "" where they are objects, or too many numbers to read."""
    plain = lambda x: isinstance(x, (Tensor, bool, int, float, str)) and (not isinstance(x, Tensor) or x.numel() <= 24)
    args = case.made()
    said = f"({', '.join(map(_short, args))})" if all(map(plain, args)) else ""
    return said if len(said) <= 240 else ""


def _short(x) -> str:
    if not isinstance(x, Tensor):
        return str(x)[:200] if isinstance(x, str) else repr(x)[:200]
    if x.numel() > 24:
        return f"a tensor of shape {tuple(x.shape)}"
    rounded = torch.round(x.double(), decimals=4) if x.is_floating_point() else x
    return str(rounded.tolist())


def number(x, name: str = "the result") -> tuple:
    """x, and whether it is a number of Python: a tensor cannot be written to the log, which is JSON."""
    return x, f"{name} is a {'number' if isinstance(x, (int, float)) else f'{type(x).__name__}, not a number'}"


def sentences(*claims: tuple[bool, str]) -> str:
    """What is wrong, of (it holds, what to say if not): the output of a check of properties. "all is right" if nothing."""
    return "; ".join(wrong for holds, wrong in claims if not holds) or "all is right"
