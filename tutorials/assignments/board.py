"""A leaderboard of prompters: `grade.py --board FOLDER`, one folder in it for each student, with finished runs of any names.

Who has the highest gold reward on the held-out requests of `attributes`, within a budget: nats of KL to ρ_sft, and answers
that PPO may ask of the frozen LM? Only options of PPO may differ from the defaults. All have the same seed, so the same
requests, frozen LM and reward model, up to the rounding of their machines.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import own_run
from own_run import FoundRun, Unreadable

TASK = "attributes"


@dataclass(frozen=True, slots=True)
class Line:
    """One run on the board; `outside` says why it has no rank."""

    student: str
    gold: float
    ci95: tuple[float, float]
    kl: float
    answers: int
    outside: str = ""


def answers_asked(config: dict) -> int:
    """How many answers PPO took from the frozen LM, if it ran to its end."""
    iterations, batch, answers = (own_run.number(config, "ppo", key) for key in ("iterations", "batch_size", "answers"))
    return int(iterations * batch * answers)


def line(student: str, run: FoundRun, seed: int, most_kl: float, most_answers: int) -> Line:
    """Raises Unreadable for a run that has no place on the board at all."""
    if run.problems or run.told("seed") != seed:
        raise Unreadable("; ".join(run.problems) or f"its seed is {run.told('seed')}, not {seed}")
    changed = [option for option in own_run.other_options(run, seed, TASK) if not option.startswith("ppo.")]
    if changed:
        raise Unreadable(f"only options of ppo may differ: {'; '.join(changed[:3])}")
    ours = ("arms", "align_pro")
    gold, kl = (own_run.number(run.results, *ours, key) for key in ("gold_mean", "kl"))
    answers = answers_asked(run.config)
    over = [f"KL above {most_kl:g}"] * (kl > most_kl) + [f"more than {most_answers} answers"] * (answers > most_answers)
    return Line(student, gold, own_run.interval(run.results, *ours, "gold_ci95"), kl, answers, ", ".join(over))


def board(folder: Path, seed: int, most_kl: float, most_answers: int) -> str:
    """The table in Markdown: each student's best run within the budget by rank, then what has none, and why."""
    best: dict[str, Line] = {}
    others = []
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        runs, _ = own_run.find_runs(place, TASK)
        if not runs:
            others.append(f"{place.name}: no run of task {TASK}")
        for run in runs:
            try:
                found = line(place.name, run, seed, most_kl, most_answers)
            except Unreadable as error:
                others.append(f"{place.name}, {run.folder.name}: {error}")
                continue
            if found.outside:
                others.append(f"{place.name}, {run.folder.name}: {found.outside} (gold reward {found.gold:.2f})")
            elif place.name not in best or found.gold > best[place.name].gold:
                best[place.name] = found
    ranked = sorted(best.values(), key=lambda found: (-found.gold, found.student))
    head = f"Gold reward on `{TASK}`, seed {seed}, at most {most_kl:g} nats of KL and {most_answers} answers"
    lines = [head, "", "| rank | who | gold reward | 95 % interval | KL | answers |", "|---:|---|---:|---|---:|---:|"]
    for rank, found in enumerate(ranked, 1):
        low, high = found.ci95
        numbers = f"{found.gold:.2f} | {low:.2f} to {high:.2f} | {found.kl:.2f} | {found.answers}"
        lines.append(f"| {rank} | {found.student} | {numbers} |")
    return "\n".join([*lines, *([""] if others else []), *(f"* {told}" for told in others)])
