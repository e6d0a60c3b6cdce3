"""What each assignment asks for: its folder, its functions and their points. The package is the reference solution."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Assignment:
    """`functions`: {"module.function" or "module.Class.method": points}; `whole` points go to all of them together."""

    folder: str
    title: str
    functions: dict[str, int]
    whole: int
    imports: tuple[str, ...]  # what a submission starts with


TORCH = ("from __future__ import annotations", "", "import torch", "from torch import Tensor")
ASSIGNMENTS = {
    "a1": Assignment(
        "a1_masks_and_kl",
        "Masks and KL",
        {
            "rl_math.masked_mean": 14,
            "rl_math.masked_sum": 10,
            "rl_math.masked_var": 12,
            "rl_math.whiten": 14,
            "rl_math.kl_estimate": 16,
            "rl_math.exact_kl": 14,
            "rl_math.entropy": 10,
        },
        10,
        TORCH,
    ),
    "a5": Assignment(
        "a5_credit", "Credit: assembled rewards and GAE", {"rl_math.assemble_rewards": 40, "rl_math.gae": 45}, 15, TORCH
    ),
}
