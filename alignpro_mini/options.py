"""Options as frozen dataclasses: fields with a help text and a range. The error for bad input."""

from __future__ import annotations

import math
from dataclasses import Field, field, fields


class UserError(ValueError):
    """Bad input. The message says what is wrong, where, and how to correct it.

    `train.py` prints the message alone. Any other ValueError is a bug and keeps its traceback.
    """


def require(ok: bool, message: str) -> None:
    """Raise UserError with this message unless `ok`."""
    if not ok:
        raise UserError(message)


def one_line(error: BaseException) -> str:
    """The first line of an error's message: what a user is shown of a library's complaint."""
    message = str(error).strip() or type(error).__name__
    return message.splitlines()[0]


def unique(pairs: list[tuple[str, object]]) -> dict:
    """For `json.loads(..., object_pairs_hook=unique)`.

    Raises ValueError for a key that comes twice.
    """
    seen: dict[str, object] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"key {key!r:.60} comes twice")
        seen[key] = value
    return seen


# ---------------------------------------------------------------- options


def option(
    default,
    help: str,
    choices: tuple = (),
    *,
    least: float | None = None,
    above: float | None = None,
):
    """A dataclass field with its help text and its range.

    `check_ranges` requires a word to be one of `choices`, and a number to be at least `least` and
    above `above`.
    """
    metadata = {"help": help, "choices": choices, "least": least, "above": above}
    return field(default=default, metadata=metadata)


def check_ranges(config) -> None:
    """Check every field that `option` made; the `__post_init__` of each configuration.

    Raises UserError, beginning with the field's name, for a number out of range or not finite, and
    for a word that is not one of the field's choices.
    """
    for made in fields(config):
        value = getattr(config, made.name)
        _check_choices(made, value)
        if isinstance(value, (int, float)):
            _check_number(made, value)


def _check_choices(made: Field, value) -> None:
    choices = made.metadata.get("choices") or ()
    allowed = not choices or value in choices
    require(allowed, f"{made.name} is {value!r}; it must be one of {', '.join(choices)}")


def _check_number(made: Field, value: float) -> None:
    least = made.metadata.get("least")
    above = made.metadata.get("above")
    require(math.isfinite(value), f"{made.name} is {value}; it must be a finite number")
    require(least is None or value >= least, f"{made.name} is {value}; it must be at least {least}")
    require(above is None or value > above, f"{made.name} is {value}; it must be above {above}")


# Help texts that several stages share.
MICRO_BATCH = (
    "{} of similar length per forward pass; changes only padding, memory and speed "
    "(gradients accumulate)"
)
TRAIN_LAYERS = "train only this many top blocks over a frozen trunk (0: everything)"
MAX_GRAD_NORM = "gradients are clipped to this norm"
