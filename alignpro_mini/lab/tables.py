"""What a run found, as a table for the terminal.

Nothing is measured here. What was not measured (None, NaN, a missing key) prints as an en dash, never as 0.
"""

from __future__ import annotations

import math

from alignpro_mini.lab.glossary import ARMS

COLUMNS = (  # heading (two lines in the terminal), path in the arm's results, decimals
    ("reward\nmean", "mean", 3),
    ("reward\n95% CI", "ci95", 3),
    ("var.\ntotal", "variance", 3),
    ("var.\ninputs", "variance_parts between_inputs", 3),
    ("var.\nrewr.", "variance_parts between_rewrites", 3),
    ("var.\nwithin", "variance_parts within", 3),
    ("gold\nmean", "gold_mean", 3),
    ("gold\nvar.", "gold_variance", 3),
    ("KL\nnats", "kl", 2),
    ("win\nrate", "win_rate", 2),
    ("tie\nrate", "tie_rate", 2),
    ("x'\ntok.", "rewrite_length", 2),
    ("y\ntok.", "answer_length", 2),
    ("right\nrate", "right_rate", 2),
)


def get(tree, *keys):
    """tree[k1][k2]..., or None as soon as a level is missing, None or NaN (real data has no gold reward)."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def num(value, digits: int = 3, sign: str = "") -> str:
    """0.123, 12.35, 123.5: one decimal less per digit in front; [low, high] for a pair; an en dash for None and NaN."""
    if isinstance(value, (list, tuple)):
        return f"[{num(value[0], digits)}, {num(value[1], digits)}]"
    if value is None or not math.isfinite(value):
        return "–"
    digits = max(0, digits - len(str(int(abs(value)))) + 1)
    return f"{value:.0e}" if abs(value) >= 1e5 else f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # + 0.0: no "-0.0"


def aligned(rows: list[list[str]]) -> str:
    """Aligned text, first column to the left, the others to the right; narrow gaps where 110 columns need them."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    gap = "  " if sum(widths) + 2 * len(widths) <= 112 else " "
    return "\n".join(gap.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows)


def arm_table(results: dict) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table of arms; the column of right answers only where the task has them."""
    arms = results.get("arms") or {}
    arms = {arm: arms[arm] for arm in ARMS if arms.get(arm)}
    columns = COLUMNS if any(get(a, "right_rate") is not None for a in arms.values()) else COLUMNS[:-1]
    rows = [[ARMS[arm][0], *(num(get(a, *path.split()), d) for _, path, d in columns)] for arm, a in arms.items()]
    return ["\narm", *(heading for heading, _, _ in columns)], rows


def final_table(results: dict) -> str:
    """The arms of one run as text of at most 110 columns; after an empty line, the comparisons that matter."""
    heads, rows = arm_table(results)
    gain = get(results, "arms", "align_pro", "difference") or {}
    notes = [
        "var. total is about inputs (between requests) + rewr. (between rewrites) + within (frozen LM's own sampling)",
        f"Share of the gap to the oracle closed: {num(results.get('gap_closed'), 2)}",
        f"Variance ratio, Align-Pro / no fine-tuning: {num(results.get('variance_ratio'), 2)}",
        f"Align-Pro - no fine-tuning, paired: {num(gain.get('mean'), sign='+')}, 95% CI {num(gain.get('ci95'))}",
    ]
    if get(results, "arms", "best_of_n"):
        notes.append("The KL of best-of-n is its upper bound, log n - (n-1)/n")
    if room := results.get("headroom"):
        notes.append(f"Headroom (ICC): {num(room.get('icc'))}, best rewrite gains {num(room.get('best_rewrite_gain'))}")
    if rm := results.get("reward_model"):
        notes.append(
            f"Reward model: held-out accuracy {num(rm.get('accuracy'))}, ceiling that the label noise allows"
            f" {num(rm.get('ceiling'))}, always-longer {num(rm.get('always_longer'))}"
        )
    if theory := results.get("theory"):
        notes += _theory_notes(theory, get(results, "arms", "closed_form", "inputs"))
    return "\n".join([aligned([*map(list, zip(*(h.split("\n") for h in heads))), *rows]), "", *notes])


def _theory_notes(t: dict, inputs: int | None) -> list[str]:
    """How near PPO came to the optimum, and the bounds, in two lines."""
    said = [
        f"Closed form (first {inputs} requests): PPO took {num(t['attainable_gain_share'], 3)} of the attainable gain;"
        f" gap {num(t['regularised_gap'], 4)} = λ KL to the optimum {num(t['lambda_kl_to_optimum'], 4)}; probability of"
        f" rewrites not enumerated {num(t['mass_outside'], 3)}, cost {num(t['unlisted_cost'], 4)} or more"
    ]
    deltas = [t.get(f"delta{i}") for i in (1, 2, 3)]
    if None not in deltas:
        said.append(
            f"Suboptimality Δ1 + Δ2 + Δ3 = {' + '.join(num(d, 3) for d in deltas)} = {num(sum(deltas), 3)}; bounds:"
            f" sharper {num(t['bound_sharp'], 3)}, paper's {num(t['bound_paper'], 3)}"
        )
    return said
