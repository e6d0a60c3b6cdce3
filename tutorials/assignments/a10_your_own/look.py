"""Your runs beside the package's own, in the order of the stages: the first number that is off says where to look.

    python tutorials/assignments/a10_your_own/look.py my_copy/runs

Teachers: `look.py --measure RUNS` writes ranges.json and the handout's table anew, from runs of the package. A range is
the 95 % prediction interval of one more run, mean ± t · s · √(1 + 1/n) for n runs: it is as wide as the runs differ, and
wider the fewer they are. Where a number must be what it is on every machine, the range is written in ROWS.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
STUDENT_T = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}  # 97.5 % quantile, by degrees of freedom
FEW = 20  # iterations of PPO: one batch is noisy


class Run:
    """results.json, and metrics.jsonl by stage, of a finished run."""

    def __init__(self, folder: Path) -> None:
        self.results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        self.rows = [json.loads(line) for line in lines]

    def logged(self, stage: str, key: str) -> list[float]:
        return [row[key] for row in self.rows if row["stage"] == stage and key in row]

    def ppo(self, key: str, part: slice) -> float:
        return statistics.mean(self.logged("align_pro", key)[part])

    def width(self) -> float:
        low, high = self.results["arms"]["align_pro"]["difference"]["ci95"]
        return high - low

    def two_routes(self) -> float:
        return abs(self.results["theory"]["regularised_gap"] - self.results["theory"]["lambda_kl_to_optimum"])


START, END, FIRST = slice(FEW), slice(-FEW, None), slice(1)
# (number, where to look if it is off, how it is read, the range that it must have on every machine or None)
ROWS: list[tuple[str, str, Callable[[Run], float], list[float] | None]] = [
    (
        "last `heldout_loss` of `frozen_lm`",
        "a2 (positions, mask), a4 `answer_loss`",
        lambda run: run.logged("frozen_lm", "heldout_loss")[-1],
        None,
    ),
    (
        "last `heldout_loss` of `prompter_sft`",
        "the same",
        lambda run: run.logged("prompter_sft", "heldout_loss")[-1],
        None,
    ),
    (
        "`reward_model.swap_accuracy.wish` in `results.json`",
        "a4: `draw_preferences`, `RewardModel.forward`, the loss",
        lambda run: run.results["reward_model"]["swap_accuracy"]["wish"],
        None,
    ),
    (
        "`kl_k1` at step 1 of `align_pro`, when ρ is still ρ_sft",
        "a3 `sampling_logprobs`, a2, a6 `Policy.states`",
        lambda run: run.ppo("kl_k1", FIRST),
        [-1e-5, 1e-5],
    ),
    (
        "`clip_fraction` at step 1",
        "a3, a6 `Policy.states`, `PPOTrainer.loss`",
        lambda run: run.ppo("clip_fraction", FIRST),
        [0.0, 0.001],
    ),
    (
        f"`score_mean`, mean of the first {FEW} steps",
        "a7 `PromptScore`",
        lambda run: run.ppo("score_mean", START),
        None,
    ),
    (
        f"`score_mean`, mean of the last {FEW} steps",
        "a5 (score on the wrong token), a6 (sign, minimum), a7 `PromptScore`",
        lambda run: run.ppo("score_mean", END),
        None,
    ),
    (
        f"`kl_k1`, mean of the last {FEW} steps",
        "a5 (no −λ KL), a6 `assemble_rewards`, a1 `kl_estimate`",
        lambda run: run.ppo("kl_k1", END),
        None,
    ),
    (
        "share of the attainable gain, all above being right",
        "a1 `whiten`, a5 `gae` (γλ, the last step), a6 (whitening, value loss)",
        lambda run: run.results["theory"]["attainable_gain_share"],
        None,
    ),
    (
        "distance of the two routes to the gap",
        "a8 `optimal_prompter`, `regularised_value`, `kl`",
        Run.two_routes,
        [0.0, 1e-6],
    ),
    ("width of the interval of Align-Pro's gain", "a8 `bootstrap_interval`", Run.width, None),
]
SHARES = {2, 8}  # rows that are at most 1


def found_runs(folder: Path) -> list[Path]:
    """Folders of finished runs, by name."""
    return sorted(path.parent for path in folder.rglob("results.json") if (path.parent / "metrics.jsonl").is_file())


def prediction_interval(values: list[float]) -> list[float]:
    """[low, high] that holds one more run's number with 95 % probability, if the numbers are normal."""
    n = len(values)
    half = STUDENT_T[n - 1] * statistics.stdev(values) * math.sqrt(1 + 1 / n)
    return [statistics.mean(values) - half, statistics.mean(values) + half]


def measured(runs: list[Run]) -> list[list[float]]:
    """The range of each row, from runs of the package."""
    ranges = []
    for i, (_, _, read, known) in enumerate(ROWS):
        low, high = known or prediction_interval([read(run) for run in runs])
        ranges.append([low, min(high, 1.0) if i in SHARES else high])
    return ranges


def table(ranges: list[list[float]]) -> list[str]:
    """The handout's rows."""
    return [f"| {what} | {where} | {low:.3g} to {high:.3g} |" for (what, where, *_), (low, high) in zip(ROWS, ranges)]


def look(run: Run, ranges: list[list[float]]) -> list[str]:
    lines = []
    for (what, where, read, _), (low, high) in zip(ROWS, ranges):
        try:
            value = read(run)
        except (KeyError, IndexError, TypeError, statistics.StatisticsError):
            lines.append(f"missing   {what}: {where}")
            continue
        mark = "   " if low <= value <= high else "off"
        lines.append(f"{mark} {value:9.3g}   {low:9.3g} to {high:9.3g}   {what}" + f": {where}" * (mark == "off"))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder with finished runs")
    parser.add_argument("--measure", action="store_true", help="write ranges.json and print the handout's table")
    args = parser.parse_args()
    places = found_runs(args.folder)
    if not places:
        parser.error(f"{args.folder}: no finished run in it (results.json beside metrics.jsonl)")
    if args.measure:
        if len(places) - 1 not in STUDENT_T:
            parser.error(f"{len(places)} runs: ranges take {min(STUDENT_T) + 1} to {max(STUDENT_T) + 1}")
        ranges = measured([Run(place) for place in places])
        (HERE / "ranges.json").write_text(json.dumps(ranges, indent=1) + "\n", encoding="utf-8")
        return print("\n".join(table(ranges)))
    ranges = json.loads((HERE / "ranges.json").read_text(encoding="utf-8"))
    for place in places:
        print(place.name, *look(Run(place), ranges), sep="\n")


if __name__ == "__main__":
    main()
