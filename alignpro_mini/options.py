"""Options as frozen dataclasses: each field has a help text and a range. Also the error class for bad input."""

from __future__ import annotations

import math
from dataclasses import field, fields


class UserError(ValueError):
    """Bad input. The message says what is wrong, where, and how to correct it.

    `train.py` prints the message alone. Any other ValueError is a bug and keeps its traceback.
    """


def option(default, help: str, choices: tuple = (), *, least: float | None = None, above: float | None = None):
    """A dataclass field with its help; `check_ranges` requires a number to be at least `least` and above `above`."""
    return field(default=default, metadata={"help": help, "choices": choices, "least": least, "above": above})


def require(ok: bool, message: str) -> None:
    """Raise UserError with this message unless `ok`."""
    if not ok:
        raise UserError(message)


def unique(pairs: list[tuple[str, object]]) -> dict:
    """For `json.loads(..., object_pairs_hook=unique)`: raises ValueError for a key that comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r:.60} comes twice")
    return found


def check_ranges(config) -> None:
    """Raises UserError, beginning with the field's name, for a number out of range or a word not of its choices."""
    for f in fields(config):
        value, choices = getattr(config, f.name), f.metadata.get("choices")
        require(not choices or value in choices, f"{f.name} is {value!r}; it must be one of {', '.join(choices or ())}")
        if isinstance(value, (int, float)):
            least, above = f.metadata.get("least"), f.metadata.get("above")
            require(math.isfinite(value), f"{f.name} is {value}; it must be a finite number")
            require(least is None or value >= least, f"{f.name} is {value}; it must be at least {least}")
            require(above is None or value > above, f"{f.name} is {value}; it must be above {above}")


# Help texts that several stages share.
MICRO_BATCH = "{} of similar length per forward pass; changes only padding, memory and speed (gradients accumulate)"
TRAIN_LAYERS = "train only this many top blocks over a frozen trunk (0: everything)"
MAX_GRAD_NORM = "gradients are clipped to this norm"
