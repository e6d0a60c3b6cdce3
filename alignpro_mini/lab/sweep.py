"""Several runs of `train.py`: side by side, each in a process of its own, and one table of all.

Small models gain little from a second thread: on two cores, two single-threaded runs finish sooner than one after the
other with two threads each.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.glossary import ARMS, TRIO
from alignpro_mini.lab.paper import PAPER
from alignpro_mini.lab.statistics import t_interval
from alignpro_mini.lab.tables import WITHIN, aligned, get, num, over_seeds


def run_all(
    program: Sequence[str],
    configs: Sequence[RunConfig],
    arguments: argparse.Namespace,
    one: Callable[[RunConfig, bool], dict],
) -> tuple[list[dict], list[Path]]:
    """Results of `one(config, resume)` for each config, and the logs of runs that failed.

    With `--jobs` above 1 each run is a process of its own: `program` (a script, or -m and a module) with this command's
    arguments. Its results are read from `results.json` in the run's folder.
    """
    if arguments.jobs > 1 and len(configs) > 1:
        return run_side_by_side(program, sys.argv[1:], configs, arguments.jobs)
    return [one(config, arguments.resume) for config in configs], []


def exit_if_failed(prog: str, configs: Sequence[RunConfig], failed: Sequence[Path]) -> None:
    """End the program with one line that names the logs of failed runs."""
    if failed:
        sys.exit(f"{prog}: error: {len(failed)} of {len(configs)} runs failed; see {', '.join(map(str, failed))}")


def run_side_by_side(
    program: Sequence[str], argv: Sequence[str], configs: Sequence[RunConfig], jobs: int
) -> tuple[list[dict], list[Path]]:
    """Run `program` once per config, at most `jobs` at a time: (results of runs that ended well, logs of the others).

    Each writes its output to `<out>/<run name>.log`. With --resume a finished run only loads what it left. Whatever
    ends this function (an error, Ctrl-C, SIGTERM) ends the runs too: two processes must not write to one folder. Raises
    OSError when the folder of the logs cannot be written.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    waiting, running, well, failed = list(configs), {}, [], []
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                config = waiting.pop(0)
                # Of an option that is given twice the last one counts.
                which = ("--task", config.task, "--seed", str(config.seed), "--jobs", "1", "--child")
                with _log(config).open("a", encoding="utf-8") as out:
                    command = [sys.executable, *program, *argv, *which]
                    process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
                running[process] = (config, time.perf_counter())
            time.sleep(0.5)
            for process in [p for p in running if p.poll() is not None]:
                config, started = running.pop(process)
                verdict = "FAILED" if process.returncode else "done"
                (failed if process.returncode else well).append(config)
                seconds = time.perf_counter() - started
                print(f"{config.run_name}: {verdict} in {seconds:.0f} s, log {_log(config)}", flush=True)
    finally:
        for end in (subprocess.Popen.terminate, subprocess.Popen.wait):
            for process in running:
                end(process)
        signal.signal(signal.SIGTERM, before)
    files = [Path(c.out) / c.run_name / "results.json" for c in configs if c in well]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files], [_log(c) for c in failed]


def _log(config: RunConfig) -> Path:
    """Where a run's output goes. Raises OSError naming the folder that cannot be made."""
    try:
        Path(config.out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{config.out} cannot be written ({error.strerror}): choose another folder with --out") from None
    return Path(config.out) / f"{config.run_name}.log"


# ---------------------------------------------------------------- tables of several runs


def by_task(runs: list[dict]) -> dict[str, list[dict]]:
    runs = sorted(runs, key=lambda run: get(run, "seed") or 0)
    return {task: [r for r in runs if r.get("task") == task] for task in sorted({r.get("task") for r in runs}, key=str)}


def seed_mean(runs: list[dict], *keys: str) -> tuple[float | None, float | None]:
    """Mean of runs[i][k1][k2]... over the seeds, and the half-width of its 95% t-interval."""
    return t_interval([get(run, *keys) for run in runs])


GAIN = ("arms", "align_pro", "difference")
# What a sweep's rows show of a run: two lines of heading, place in its results, decimals, place of its interval.
REWARDS = (
    ("No-FT", "mean", ("arms", "no_finetuning", "mean"), 2, ()),
    ("fixed", "mean", ("arms", "fixed_rewrite", "mean"), 2, ()),
    ("best-of-n", "mean", ("arms", "best_of_n", "mean"), 2, ()),
    ("Align-Pro", "mean", ("arms", "align_pro", "mean"), 2, ()),
    ("Oracle", "mean", ("arms", "rlhf_oracle", "mean"), 2, ()),
    ("Align-Pro - No-FT", "[95% CI]", (*GAIN, "mean"), 2, (*GAIN, "ci95")),
    ("Align-Pro - fixed", "[95% CI]", ("over_fixed",), 2, ("over_fixed_ci95",)),
    ("the same,", "gold", ("gold_over_fixed",), 2, ("gold_over_fixed_ci95",)),
    ("request", "share", ("request_share",), 2, ()),
    ("attain.", "share", ("theory", "attainable_gain_share"), 2, ()),
)
RATIOS = (
    ("variance ratio", "[95% CI]", ("variance_ratio",), 2, ("variance_ratio_ci95",)),
    ("within requests", "[95% CI]", (WITHIN,), 2, (f"{WITHIN}_ci95",)),
    ("gold var. ratio", "[95% CI]", ("gold_variance_ratio",), 2, ("gold_variance_ratio_ci95",)),
    ("gap", "closed", ("gap_closed",), 2, ()),
    ("not", "enum.", ("theory", "mass_outside"), 3, ()),
    ("reward model", "of ceiling", ("accuracy_share",), 3, ()),
    ("swap", "subject", ("reward_model", "swap_accuracy", "subject"), 3, ()),
    ("swap", "wish", ("reward_model", "swap_accuracy", "wish"), 3, ()),
    ("stages", "s", ("seconds",), 1, ()),
)
BETWEEN = "between no fine-tuning and oracle"


def sweep_counts(runs: list[dict]) -> dict[str, tuple[int, int]]:
    """{claim: (k, n)}: it holds in k of the n runs that measured it (without an oracle no run can be 'between')."""
    means = [[get(run, "arms", arm, "mean") for arm in TRIO] for run in runs]
    measured = lambda *keys: [value for run in runs if (value := get(run, *keys)) is not None]
    claims = {
        "Align-Pro above no fine-tuning with interval above zero": [
            ci[0] > 0 for ci in measured("arms", "align_pro", "difference", "ci95")
        ],
        "Align-Pro above the fixed rewrite with interval above zero": [ci[0] > 0 for ci in measured("over_fixed_ci95")],
        "the same by the gold reward": [ci[0] > 0 for ci in measured("gold_over_fixed_ci95")],
        "above best-of-n rewrites": [
            get(run, "arms", "align_pro", "mean") > mean
            for run in runs
            if (mean := get(run, "arms", "best_of_n", "mean")) is not None
        ],
        BETWEEN: [a < b < c for a, b, c in means if None not in (a, b, c)],
        "at or above the oracle": [b >= c for a, b, c in means if None not in (a, b, c)],
        "variance below no fine-tuning": [ratio < 1 for ratio in measured("variance_ratio")],
        "variance ratio's interval below 1": [ci[1] < 1 for ci in measured("variance_ratio_ci95")],
        "variance ratio within requests: its interval below 1": [ci[1] < 1 for ci in measured(f"{WITHIN}_ci95")],
        "gold variance ratio's interval below 1": [ci[1] < 1 for ci in measured("gold_variance_ratio_ci95")],
        "at least 0.90 of the attainable gain": [s >= 0.90 for s in measured("theory", "attainable_gain_share")],
        "at least 0.95 of the attainable gain": [s >= 0.95 for s in measured("theory", "attainable_gain_share")],
    }
    return {claim: (sum(held), len(held)) for claim, held in claims.items() if held}


def coefficients(runs: list[dict]) -> str:
    """ "Align-Pro's λ 0.1, the oracle's β 0.1", of all these runs."""
    values = [{get(run, "kl_coef", name) for run in runs} - {None} for name in ("ppo", "oracle")]
    lam, beta = (", ".join(f"{value:g}" for value in sorted(distinct)) or "–" for distinct in values)
    return f"Align-Pro's λ {lam}, the oracle's β {beta}"


def right_answers(runs: list[dict]) -> list[str]:
    """For sums: right answers and rewrites that ask for steps, averaged over the seeds; nothing for other tasks."""
    before, after = ([get(r, "arms", arm, "right_rate") for r in runs] for arm in TRIO[:2])
    rises = [b - a for a, b in zip(before, after) if None not in (a, b)]
    if not rises:
        return []
    asks, _ = seed_mean(runs, "arms", "align_pro", "asks_for_steps")
    first, last = (num(t_interval(rates)[0], 3) for rates in (before, after))
    return [
        f"  right answers {first} to {last}; rewrites that ask for steps {num(asks, 3)} (means over seeds)",
        f"  right answers rise by {num(min(rises), 3)} to {num(max(rises), 3)}, seed by seed",
    ]


def variance_lines(runs: list[dict], independent: bool = True) -> list[str]:
    """Which variance component falls, and the gold reward: an arm a line, means over the runs.

    With their intervals, if the runs are `independent`: cells of one seed share models and answers.
    """
    parts = [("variance_parts", part) for part in ("between_inputs", "between_rewrites", "within")]
    keys = (("variance",), *parts, ("gold_mean",), ("gold_variance",), ("win_rate",))
    heads = ("variance", "between inputs", "between rewrites", "within", "gold mean", "gold variance", "win rate")
    mean = lambda values: over_seeds(values, 3) if independent else num(t_interval(values)[0], 3)
    rows = [["  means, ± 95%" if independent else "  means", *heads]]
    for arm, (name, _) in ARMS.items():
        if any(get(run, "arms", arm, "variance") is not None for run in runs):
            rows.append([f"  {name}", *(mean([get(run, "arms", arm, *key) for run in runs]) for key in keys)])
    return [aligned(rows)]


def theory_lines(runs: list[dict]) -> list[str]:
    """Suboptimality and bounds, means over seeds; then what the attainable share leaves out, in parts of that gain."""
    keys = ("delta1", "delta2", "delta3", "bound_sharp", "bound_paper")
    needed = (*keys, "optimum_noise", "unlisted_cost")
    theories = [run["theory"] for run in runs if all(get(run, "theory", key) is not None for key in needed)]
    if not theories:
        return []
    *d, sharp, paper = (num(seed_mean(theories, key)[0], 2) for key in keys)
    held = sum(sum(t[f"delta{i}"] for i in (1, 2, 3)) <= t["bound_sharp"] <= t["bound_paper"] for t in theories)
    gained = [t for t in theories if t["attainable_gain_share"] is not None]
    parts = [[t[key] / t["attainable_gain"] for t in gained] for key in needed[-2:]]
    by, cost = (f"{num(min(p), 3)} to {num(max(p), 3)}" if p else "–" for p in parts)
    forms = ("", "_cross_fitted", "_less_unlisted")
    shares = [num(seed_mean(theories, f"attainable_gain_share{form}")[0], 3) for form in forms]
    return [
        f"  share of the gain attainable with the enumerated rewrites: {shares[0]}; against a cross-fitted optimum"
        f" {shares[1]}; less the cost of other rewrites {shares[2]} (means)",
        f"  Δ1, Δ2, Δ3 {', '.join(d)}; bounds: sharper {sharp}, the paper's (recalled) {paper} (means); both held in"
        f" {held} of {len(theories)}",
        f"  of the attainable gain, noise in R raises the optimum by {by}, rewrites not enumerated cost {cost} or more",
    ]


def sweep_table(results: list[dict]) -> str:
    """Per task: rows for the seeds, the mean over seeds with its 95% t-interval, the paper's figures, and counts."""
    results = [run | {"seconds": sum((run.get("wall_s") or {}).values()) or None} for run in results]
    results = [run | {"accuracy_share": accuracy_share(get(run, "reward_model"))} for run in results]
    blocks = []
    for task, runs in by_task(results).items():
        name, *theirs = PAPER.get(task, ("no data set", None, None))
        paper = f"  in the paper: gap closed {num(theirs[0], 2)}, variance ratio {num(theirs[1], 2)}"
        lines = [*variance_lines(runs), *theory_lines(runs), *right_answers(runs), *claim_lines(sweep_counts(runs))]
        title = f"task {task} (paper: {name}); {coefficients(runs)}"
        blocks.append("\n".join([title, _rows(runs, REWARDS), "", _rows(runs, RATIOS), paper, *lines]))
    if len(blocks) > 1:
        blocks.append("\n".join([f"all tasks; {coefficients(results)}", *claim_lines(sweep_counts(results))]))
    return "\n\n".join(blocks) or "no runs"


def _rows(runs: list[dict], columns: Sequence[tuple]) -> str:
    """A row a seed, then their mean and the half-width of its interval."""
    rows = [["", *(column[0] for column in columns)], ["seed", *(column[1] for column in columns)]]
    for run in runs:
        rows.append([str(run.get("seed"))])
        for _, _, keys, digits, ci95 in columns:
            rows[-1].append(num(get(run, *keys), digits) + (f" {num(get(run, *ci95), digits)}" if ci95 else ""))
    means = [seed_mean(runs, *keys) for _, _, keys, _, _ in columns]
    for i, name in enumerate(("mean", "± 95%")):
        rows.append([name, *(num(pair[i], column[3]) for pair, column in zip(means, columns))])
    return aligned(rows)


def accuracy_share(facts: dict | None) -> float | None:
    """(accuracy - 1/2) / (ceiling - 1/2) of a reward model: what it learned of what the noisy labels allow."""
    accuracy, ceiling = get(facts, "accuracy"), get(facts, "ceiling")
    return None if None in (accuracy, ceiling) or ceiling <= 0.5 else (accuracy - 0.5) / (ceiling - 0.5)


def claim_lines(counts: dict[str, tuple[int, int]], unit: str = "") -> list[str]:
    """ "  claim: k of n", a line each."""
    return [f"  {claim}: {k} of {n}{unit}" for claim, (k, n) in counts.items()]
