"""A user's own function as a reward."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from alignpro_mini.options import UserError, require
from alignpro_mini.training import Score


def load_callable(spec: str, option: str = "reward") -> Score:
    """A reward from the `module:function` of --`option`; its rewards become a float tensor (B,), checked.

    Raises UserError when the module or function is missing or cannot be read, or when a call returns something else
    than one finite reward for each answer. An error inside the function itself passes through.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")  # a reward file in the working directory, also when the script lies elsewhere
    try:
        module_name, function_name = spec.split(":")
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, SyntaxError, TypeError, ValueError) as error:  # the last two: ".x:f", "x"
        raise UserError(f"--{option} {spec}: {error}; write module:function of an importable module") from None
    if not callable(function):
        raise UserError(f"--{option} {spec} is a {type(function).__name__}, not a function of (prompts, completions)")
    _check_parameters(function, f"--{option} {spec}")

    def score(prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """The function's rewards, checked: one finite number for each answer."""
        returned = function(list(prompts), list(completions))
        try:
            rewards = torch.as_tensor(returned, dtype=torch.float32).detach().cpu()
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            kind = type(returned).__name__
            raise UserError(f"--{option} {spec} returned a {kind} that is no list of numbers ({error})") from None
        if rewards.shape != (len(prompts),):
            raise UserError(f"--{option} {spec} returned shape {tuple(rewards.shape)} for {len(prompts)} answers")
        if not bool(torch.isfinite(rewards).all()):
            bad = int((~torch.isfinite(rewards)).nonzero()[0])
            raise UserError(
                f"--{option} {spec} returned {rewards[bad].item()} for the answer {completions[bad][:60]!r}"
            )
        return rewards

    return score


def _check_parameters(function: Callable, what: str) -> None:
    """Raises UserError for a function that cannot be called with two lists, or that takes them the other way round."""
    try:
        parameters = inspect.signature(function)
    except (TypeError, ValueError):  # some functions in C do not tell
        return
    try:
        parameters.bind([], [])
    except TypeError as error:
        raise UserError(f"{what} takes {parameters}, and is called with (prompts, completions): {error}") from None
    turned = list(parameters.parameters)[:2] == ["completions", "prompts"]
    require(not turned, f"{what} takes {parameters}, and is called with (prompts, completions): turn them round")
