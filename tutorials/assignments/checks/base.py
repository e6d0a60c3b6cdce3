"""What a check is made of: cases with an oracle that shares no code with the package, and how outcomes are compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

WRONG_SHAPES = "shapes that do not fit"


@dataclass(frozen=True, slots=True)
class Case:
    """One call. `oracle(*args)` gives the right answer, or raises what the function must raise.

    `about` says what the case is, in words that complete "on ...". With `gradient` the derivative with respect to the
    first argument is compared too, with finite differences of the oracle.
    """

    about: str
    args: tuple
    oracle: Callable | None = None
    gradient: bool = False


def outcome(function: Callable, case: Case, numeric: bool = False) -> tuple:
    """("value", outputs, gradient or None), ("raised", the exception's class) or ("returned", a class without numbers)."""
    args = [a.clone() if isinstance(a, Tensor) else a for a in case.args]
    if case.gradient and not numeric:
        args[0].requires_grad_()
    try:
        found = function(*args)
    except Exception as error:
        return ("raised", type(error).__name__)
    try:
        outputs = [torch.as_tensor(x) for x in (found if isinstance(found, tuple) else (found,))]
    except (TypeError, RuntimeError, ValueError):
        return ("returned", type(found).__name__)
    gradient = None
    if case.gradient:
        gradient = _numeric(case) if numeric else _gradient(outputs, args[0])
    return ("value", [x.detach().clone() for x in outputs], gradient)


def _weights(x: Tensor) -> Tensor:
    """Fixed uneven weights, so that a gradient that is only summed right does not pass."""
    return torch.linspace(0.5, 1.5, x.numel(), dtype=torch.float64).view(x.shape)


def _gradient(outputs: list[Tensor], x: Tensor) -> Tensor:
    total = sum((o.double() * _weights(o)).sum() for o in outputs if o.is_floating_point())
    if not isinstance(total, Tensor) or not total.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(total, x, allow_unused=True)
    return torch.zeros_like(x) if found is None else found


def _numeric(case: Case, step: float = 1e-5) -> Tensor:
    x = case.args[0].clone()
    found = torch.zeros_like(x)
    for i in range(x.numel()):
        if not math.isfinite(float(x.view(-1)[i])):
            continue  # padding: its derivative is 0
        values = []
        for by in (step, -step):
            moved = x.clone()
            moved.view(-1)[i] += by
            outputs = case.oracle(moved, *case.args[1:])
            outputs = [torch.as_tensor(o) for o in (outputs if isinstance(outputs, tuple) else (outputs,))]
            values.append(float(sum((o.double() * _weights(o)).sum() for o in outputs if o.is_floating_point())))
        found.view(-1)[i] = (values[0] - values[1]) / (2 * step)
    return found


def same(a: tuple, b: tuple, tolerance: float = 1e-6) -> bool:
    """Whether two outcomes agree: kind, number and shapes of the outputs, values, gradients."""
    if a[0] != b[0] or a[0] != "value":
        return a[:2] == b[:2]
    if len(a[1]) != len(b[1]) or any(x.shape != y.shape for x, y in zip(a[1], b[1])):
        return False
    close = lambda x, y, t: torch.allclose(x.double(), y.double(), rtol=t, atol=t / 100, equal_nan=True)
    if not all(close(x, y, tolerance) for x, y in zip(a[1], b[1])):
        return False
    return a[2] is None or b[2] is None or close(a[2], b[2], 1e-4)


def told(found: tuple) -> str:
    """An outcome for a person."""
    if found[0] == "raised":
        return f"{found[1]} was raised"
    if found[0] == "returned":
        return f"a {found[1]}"
    outputs = ", ".join(_short(x) for x in found[1])
    return outputs if found[2] is None else f"{outputs} with gradient {_short(found[2])}"


def _short(x: Tensor) -> str:
    if x.numel() > 24:
        return f"a tensor of shape {tuple(x.shape)}"
    rounded = torch.round(x.double(), decimals=4) if x.is_floating_point() else x
    return str(rounded.tolist())
