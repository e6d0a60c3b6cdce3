"""The rewards of a run request by request, in one file, and every interval computed again from it.

    python -m alignpro_mini.lab.recompute runs/*/rewards.npz

The file holds the rewards (N inputs, K rewrites, M answers) of each arm, the true rewards and the KL, with four
decimals, and each request's group. No model is needed.
"""

from __future__ import annotations

import argparse
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alignpro_mini.lab.cli import one_line_errors
from alignpro_mini.lab.config import EvalConfig
from alignpro_mini.lab.evaluation import Arm, summarise
from alignpro_mini.lab.tables import final_table
from alignpro_mini.options import UserError
from alignpro_mini.weights.tensors import replacing

PARTS = ("reward", "gold", "kl")
DECIMALS = 4


def save_rewards(file: Path, arms: dict[str, Arm], groups: Sequence[str], kl_coef: dict[str, float]) -> None:
    """Write the arms' numbers, all or nothing."""
    numbers = {f"{name}.{part}": getattr(arm, part) for name, arm in arms.items() for part in PARTS}
    rounded = {key: value.round(DECIMALS).astype(np.float32) for key, value in numbers.items() if value is not None}
    with replacing(file) as beside, beside.open("wb") as handle:
        np.savez_compressed(handle, groups=np.array(groups), kl_coef=np.array(list(kl_coef.values())), **rounded)


def load_rewards(file: Path) -> tuple[dict[str, Arm], list[str], dict[str, float]]:
    """The arms, without texts; the requests' groups; the KL coefficients. Raises UserError for another kind of file."""
    try:
        with np.load(file, allow_pickle=False) as saved:
            numbers = {key: saved[key] for key in saved.files}
        groups = numbers.pop("groups").tolist()
        kl_coef = dict(zip(("ppo", "oracle"), numbers.pop("kl_coef").tolist(), strict=True))
        names = dict.fromkeys(key.partition(".")[0] for key in numbers)
        value = lambda name, part: numbers[f"{name}.{part}"].astype(np.float64)
        gold = lambda name: value(name, "gold") if f"{name}.gold" in numbers else None
        return {name: Arm(value(name, "reward"), gold(name), value(name, "kl")) for name in names}, groups, kl_coef
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{file}: not the rewards of a run ({error!r}); give a rewards.npz that train.py wrote"
        ) from None


def recompute(file: Path, resamples: int = EvalConfig().bootstrap) -> dict:
    """What `results.json` says of the arms, from the rewards alone."""
    arms, groups, kl_coef = load_rewards(file)
    found = summarise(arms, EvalConfig(bootstrap=resamples), groups)
    return {"n_eval": len(arms["no_finetuning"].reward), "kl_coef": kl_coef} | found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="recompute", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="rewards.npz")
    parser.add_argument("--resamples", type=int, default=EvalConfig().bootstrap, help="of the requests, for intervals")
    arguments = parser.parse_args(argv)
    for file in arguments.files:
        print(f"{file}\n\n{final_table(recompute(file, arguments.resamples))}\n")


if __name__ == "__main__":
    with one_line_errors("recompute"):
        main()
