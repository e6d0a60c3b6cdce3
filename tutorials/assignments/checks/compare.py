"""What only the grader knows: the oracle's outcome of a case, and whether the submission's is the same."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from checks.base import Case, as_outputs, weighed

GRADIENT_TOLERANCE = 1e-4  # finite differences


def wanted(case: Case) -> tuple:
    """The oracle's outcome: ("value", outputs, gradient or None), or ("raised", the exception's class, "")."""
    try:
        outputs = as_outputs(case.oracle(*case.made()))
    except Exception as error:
        return ("raised", type(error).__name__, "")
    outputs = [x.detach() if isinstance(x, Tensor) else x for x in outputs]
    return ("value", outputs, _numeric(case) if case.gradient else None)


def seen(case: Case, found: tuple, allowed: list[str] | None = None) -> tuple:
    """`base.outcome`'s result as it is compared: after the case's `view`, with changes that are not `allowed`."""
    if found[0] != "value":
        return found
    _, outputs, gradient, changed = found
    try:
        outputs = as_outputs(tuple(outputs) if case.view is None else case.view(*outputs))
    except Exception as error:  # the facts have another form
        return ("raised", type(error).__name__, f"what it returns has another form: {error}")
    return ("value", outputs + [x for x in changed if x not in (allowed or ())], gradient)


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
            values.append(float(weighed(as_outputs(case.oracle(moved, *others)))))
        found.view(-1)[i] = (values[0] - values[1]) / (2 * step)
    return found


def same(a: tuple, b: tuple, tolerance: float = 1e-5) -> bool:
    """Whether two outcomes agree: kind, number and shapes of the outputs, values, gradients."""
    if a[0] != b[0] or a[0] != "value":
        return a[:2] == b[:2]
    if len(a[1]) != len(b[1]) or not all(_alike(x, y, tolerance) for x, y in zip(a[1], b[1])):
        return False
    return a[2] is None or b[2] is None or _alike(a[2], b[2], GRADIENT_TOLERANCE)


def _alike(x, y, tolerance: float) -> bool:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return type(x) is type(y) and x == y
    if x.layout != torch.strided or x.is_complex() != y.is_complex():
        return False
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
