"""What a check is made of: cases, and what a function does on one. The process of the submission has this, too.

The oracles are the grader's alone: it copies the modules of this folder for the submission's process without the bodies
of all functions that are called oracle..., and without compare.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from types import FunctionType, MethodType

import numpy as np
import torch
from graft import told
from torch import Tensor, nn

WRONG_SHAPES = "shapes that do not fit"


@dataclass(frozen=True, slots=True)
class Case:
    """One call. `oracle(*args)` gives the right outputs, or raises what the function must raise.

    about     what the case is, in words that complete "on ..."
    args      the arguments, or a function that makes them anew for each call (for objects that the call changes)
    gradient  compare the derivative by the first argument too, with finite differences of the oracle
    call      call(function, *args) -> outputs, where those are not what the function returns: what it did to an object,
              the gradient of a weight. It runs beside the submission, so it gives facts and no verdict
    view      view(*outputs) -> what is compared of them: the verdict on such facts, in the grader's process
    """

    about: str
    args: tuple | Callable[[], tuple]
    oracle: Callable | None = None
    gradient: bool = False
    call: Callable | None = None
    tolerance: float = 1e-5
    view: Callable | None = None

    def made(self) -> list:
        args = self.args() if callable(self.args) else self.args
        return [a.clone() if isinstance(a, Tensor) else a for a in args]


class Known(list):
    """What the cases need to know of an oracle before a call, such as a seed whose draws are far from every edge.

    The grader computes it; the submission's process gets the list, and `told` is True there.
    """

    told = False

    def __call__(self, rng: torch.Generator, compute: Callable):
        if self.told:
            value, state = self.pop(0)
        else:
            value, state = compute(), rng.get_state()
            self.append((value, state))
        rng.set_state(state)
        return value


known = Known()


# ---------------------------------------------------------------- what a function does on a case


def outcome(function: Callable | None, case: Case, file: str = "") -> tuple:
    """("value", outputs, gradient or None, what it changed), or ("raised", the exception's class, its text).

    `file` is the submission's: the text then holds its line. No function: the case calls what stands in the package.
    """
    args = case.made()
    if case.gradient:
        args[0].requires_grad_()
    before = state(args)
    try:
        found = function(*args) if case.call is None else case.call(function, *args)
        gradient = _gradient(as_outputs(found), args[0]) if case.gradient else None
    except Exception as error:
        return ("raised", type(error).__name__, told(error, file))
    # A result may be right and the caller's own numbers spoiled.
    changed = [f"{name} was changed in place" for name, x in state(args).items() if not _equal(x, before.get(name))]
    return ("value", [plain(x) for x in (found if isinstance(found, tuple) else (found,))], gradient, changed)


def plain(x):
    """Tensors and values of Python, without a graph; of anything else the name of its class."""
    if isinstance(x, (Tensor, np.ndarray, np.generic)):
        with contextlib.suppress(TypeError, ValueError):
            return torch.as_tensor(x).detach().cpu().clone()
    if x is None or type(x) in (bool, int, float):
        return x
    if isinstance(x, str):
        return str(x)
    if isinstance(x, (list, tuple)):
        return type(x)(map(plain, x)) if type(x) in (list, tuple) else list(map(plain, x))
    if isinstance(x, dict):
        return {str(key): plain(value) for key, value in x.items()}
    return f"an object of class {type(x).__name__}"


def as_outputs(found) -> list:
    """A returned value as a list: numbers and arrays as tensors, everything else as it is."""
    return [_as_tensor(x) for x in (found if isinstance(found, tuple) else (found,))]


def _as_tensor(x):
    try:
        return torch.as_tensor(x)
    except (TypeError, RuntimeError, ValueError):
        return x


def weighed(outputs: list) -> Tensor | float:
    """One number of all outputs, with fixed uneven weights: a gradient that is only summed right does not pass."""
    total = 0.0
    for x in outputs:
        if isinstance(x, Tensor) and x.is_floating_point():
            weights = torch.linspace(0.5, 1.5, x.numel(), dtype=torch.float64).view(x.shape)
            total = total + (x.double() * weights).sum()
    return total


def _gradient(outputs: list, x: Tensor) -> Tensor:
    total = weighed(outputs)
    if not isinstance(total, Tensor) or not total.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(total, x, allow_unused=True)
    return torch.zeros_like(x) if found is None else found


# ---------------------------------------------------------------- side effects


def state(args: list) -> dict[str, object]:
    """What a call may change: {name: a copy}, of the arguments, of what they hold, and of the whole process."""
    _, words, place, *_ = np.random.get_state()
    found: dict[str, object] = {
        "PyTorch's global generator": torch.get_rng_state(),
        "NumPy's global generator": (words.tobytes(), place),  # what a submission may seed
        "the default dtype": str(torch.get_default_dtype()),
        "whether gradients are recorded": torch.is_grad_enabled(),
    }
    for i, x in enumerate(args, 1):
        _add(found, f"argument {i}", x, 0)
    return found


def _add(found: dict, name: str, x, depth: int) -> None:
    if isinstance(x, (Tensor, np.ndarray)):
        found[name] = torch.as_tensor(x).detach().clone()
    elif isinstance(x, torch.Generator):
        found[name] = x.get_state()
    elif isinstance(x, nn.Module):
        name = type(x).__name__
        found |= {f"{name}.{part}": value.detach().clone() for part, value in x.state_dict().items()}
        found[f"requires_grad of {name}"] = [p.requires_grad for p in x.parameters()]
        found[f"the gradients of {name}"] = [p.grad is None for p in x.parameters()]
        found[f"training mode of {name}"] = [m.training for m in x.modules()]
    elif x is None or isinstance(x, (bool, int, float, str, list, tuple, dict)):
        found[name] = _text(x)
    elif depth < 2 and not isinstance(x, (type, FunctionType, MethodType)):
        for part in [f.name for f in fields(x)] if is_dataclass(x) else list(getattr(x, "__dict__", ())):
            _add(found, f"{type(x).__name__}.{part}", getattr(x, part, None), depth + 1)


def _text(x) -> str:
    """Numbers, texts and the lists and dicts that hold them; of tensors in a list only that they are there."""
    if isinstance(x, dict):
        return f"{{{', '.join(f'{key!r}: {_text(value)}' for key, value in x.items())}}}"
    if isinstance(x, (list, tuple)):
        return f"[{', '.join(map(_text, x))}]"
    return repr(x) if x is None or isinstance(x, (bool, int, float, str)) or is_dataclass(x) else type(x).__name__


def _equal(a, b) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
    return type(a) is type(b) and a == b


# ---------------------------------------------------------------- facts for outputs


def number(x, name: str = "the result") -> tuple:
    """x, and whether it is a number of Python: a tensor cannot be written to the log, which is JSON."""
    return x, f"{name} is a {'number' if isinstance(x, (int, float)) else f'{type(x).__name__}, not a number'}"


def sentences(*claims: tuple[bool, str]) -> str:
    """What is wrong, of (it holds, what to say if not): the output of a check of properties. "all is right" if nothing."""
    return "; ".join(wrong for holds, wrong in claims if not holds) or "all is right"
