"""What a run found, as a table for the terminal.

Nothing is measured here. What was not measured (None, NaN, a missing key) prints as an en dash, never as 0.
"""

from __future__ import annotations

import math
import textwrap

from alignpro_mini.lab.glossary import ARMS
from alignpro_mini.lab.statistics import t_interval
from alignpro_mini.remote.replies import NOTES

MEANS = (  # heading (two lines in the terminal), path in the arm's results, decimals
    ("reward\nmean", "mean", 3),
    ("reward\n95% CI", "ci95", 3),
    ("gold\nmean", "gold_mean", 3),
    ("KL\nnats", "kl", 2),
    ("win\nrate", "win_rate", 2),
    ("win rate\n95% CI", "win_rate_ci95", 3),
    ("tie\nrate", "tie_rate", 2),
    ("x'\ntok.", "rewrite_length", 2),
    ("y\ntok.", "answer_length", 2),
    ("y trun-\ncated", "truncated", 2),
    ("x in\nx'", "kept_word_for_word", 2),
    ("right\nrate", "right_rate", 2),
)
VARIANCES = (
    ("variance\n= the next three", "variance", 3),
    ("between\ninputs", "variance_parts between_inputs", 3),
    ("between\nrewrites", "variance_parts between_rewrites", 3),
    ("within a\nrewrite", "variance_parts within", 3),
    ("within\nrequests", "variance_within_requests", 3),
    ("variance\n95% CI", "variance_ci95", 3),
    ("gold\nvariance", "gold_variance", 3),
    ("gold variance\n95% CI", "gold_variance_ci95", 3),
)


JUDGES = {"gold": "gold reward", "reward": "reward that was optimised, so they favour what was trained on it"}


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


def over_seeds(values, digits: int = 2) -> str:
    """Mean over seeds and half-width of its 95 % t-interval, "1.20 ±0.30"; says how many, where some have no value."""
    values = list(values)
    mean, half = t_interval(values)
    known = sum(v is not None for v in values)
    few = f" (n {known})" if 0 < known < len(values) else ""
    return num(mean, digits) + ("" if half is None else f" ±{num(half, digits)}") + few


def aligned(rows: list[list[str]]) -> str:
    """Aligned text, first column to the left, the others to the right; narrow gaps where 110 columns need them."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    gap = "  " if sum(widths) + 2 * len(widths) <= 112 else " "
    return "\n".join(gap.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows)


def arm_table(results: dict, columns: tuple = MEANS) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table of arms; right answers and requests kept word for word only where there are any."""
    arms = results.get("arms") or {}
    arms = {arm: arms[arm] for arm in ARMS if arms.get(arm)}
    known = {name for a in arms.values() for name in ("right_rate", "kept_word_for_word") if get(a, name) is not None}
    columns = tuple(c for c in columns if c[1] in known or c[1] not in ("right_rate", "kept_word_for_word"))
    rows = [[ARMS[arm][0], *(num(get(a, *path.split()), d) for _, path, d in columns)] for arm, a in arms.items()]
    return ["\narm", *(heading for heading, _, _ in columns)], rows


def final_table(results: dict) -> str:
    """The arms of one run as text of at most 110 columns, then the comparisons that matter; empty lines between."""
    blocks = []
    for columns in (MEANS, VARIANCES):
        heads, rows = arm_table(results, columns)
        blocks.append(aligned([*map(list, zip(*(h.split("\n") for h in heads))), *rows]))
    return "\n\n".join([*blocks, "\n".join(notes(results))])


WITHIN = "variance_ratio_within_requests"


def fixed_lines(results: dict) -> list[str]:
    """Align-Pro against the best fixed rewrite; nothing where rewrites are not enumerated."""
    if get(results, "over_fixed") is None:
        return []
    lead = lambda key: f"{num(get(results, key), sign='+')}, 95% CI {num(get(results, f'{key}_ci95'))}"
    lines = [f"Align-Pro - fixed rewrite, paired: {lead('over_fixed')}"]
    if get(results, "gold_over_fixed") is not None:
        lines.append(f"  the same of the gold reward: {lead('gold_over_fixed')}")
    if found := get(results, "fixed_rewrite"):
        text = f"  the fixed rewrite, found by {found['answers']:,} answers; of {found['x']!r}: {found['text']!r}"
        lines += textwrap.wrap(text, 110, subsequent_indent="    ")
    share, ci95 = (get(results, key) for key in ("request_share", "request_share_ci95"))
    if share is None and get(results, "arms", "closed_form") is None:
        return lines
    said = "–: the closed form's lead is not shown, one sentence is enough"
    said = said if share is None else f"{num(share, 2)}, 95% CI {num(ci95, 3)}"
    return [*lines, f"  share of what reading the request can gain: {said}"]


def _predicted(results: dict) -> list[str]:
    """The ratios that the closed form predicted before any PPO, where it did."""
    ratios = [get(results, "theory", f"predicted_{name}") for name in ("variance_ratio", WITHIN)]
    return (
        []
        if None in ratios
        else ["  predicted by the closed form: {}, within requests {}".format(*(num(r, 2) for r in ratios))]
    )


def notes(results: dict) -> list[str]:
    """The comparisons, and what limits them; a line each."""
    gain = get(results, "arms", "align_pro", "difference") or {}
    with_interval = lambda key: f"{num(results.get(key), 2)}, 95% CI {num(results.get(f'{key}_ci95'), 3)}"
    lines = [
        f"Align-Pro - no fine-tuning, paired: {num(gain.get('mean'), sign='+')}, 95% CI {num(gain.get('ci95'))}",
        *fixed_lines(results),
        f"Variance ratio, Align-Pro / no fine-tuning: {with_interval('variance_ratio')}",
        f"  within requests, which no offset b(x) of the reward changes: {with_interval(WITHIN)}",
        *_predicted(results),
        f"The same of the gold reward, never trained on: {with_interval('gold_variance_ratio')}",
        f"  within requests: {with_interval('gold_' + WITHIN)}",
        *oracle_lines(results),
        f"Win rates against no fine-tuning are judged by the {JUDGES.get(results.get('judge'), 'reward')}",
    ]
    if get(results, "arms", "best_of_n"):
        lines.append("The KL of best-of-n is its upper bound, log n - (n-1)/n; of rewrites, or of answers")
    if room := results.get("headroom"):
        lines.append(f"Headroom (ICC): {num(room.get('icc'))}, best rewrite gains {num(room.get('best_rewrite_gain'))}")
    if rm := results.get("reward_model"):
        lines += reward_model_lines(rm)
    if (objections := get(results, "arms", "align_pro", "objection_rate")) is not None:
        lines.append(f"Share of Align-Pro's rewrites to which the guards object: {num(objections)}")
    lines += [f"{stage} ended early: {why}" for stage, why in (results.get("stopped") or {}).items()]
    if api := results.get("api"):
        cost = f", {api['usd']:g} US dollars" if api["usd"] else ""
        lines.append(f"API: {api['answers']:,} answers, {api['tokens']:,} tokens{cost}")
        told = {name: note.partition(":")[0] for name, note in NOTES.items() if name in api}
        lines += [f"API: {api[name]:,} answers {note}" for name, note in told.items()]
        if (share := api.get("unclear_verdicts")) is not None:
            lines.append(f"Share of the judge's replies without a verdict, counted as ties: {num(share)}")
    if theory := results.get("theory"):
        lines += _theory_notes(theory, get(results, "arms", "closed_form", "inputs"))
    return lines


def oracle_lines(results: dict) -> list[str]:
    """Align-Pro against the RLHF oracle, with the KL coefficients of both; nothing without an oracle."""
    apart = get(results, "difference_to_oracle")
    if apart is None:
        return []
    lam, beta = (f"{results['kl_coef'][name]:g}" for name in ("ppo", "oracle"))
    above = " (at or above the oracle)" if apart["mean"] >= 0 else ""
    gap, ci95 = get(results, "gap_closed"), num(results.get("gap_closed_ci95"))
    return [
        f"Align-Pro (λ {lam}) - oracle (β {beta}), paired: {num(apart['mean'], sign='+')}, 95% CI"
        f" {num(apart['ci95'])}{above}",
        f"Share of the gap to the oracle (β {beta}) closed: "
        + ("–, the oracle's gain is not shown" if gap is None else f"{num(gap, 2)}, 95% CI {ci95}"),
    ]


def reward_model_lines(facts: dict) -> list[str]:
    """How good the reward model is; a warning where it does not read the request."""
    ci95 = get(facts, "accuracy_ci95")
    lines = [
        f"Reward model: held-out accuracy {num(get(facts, 'accuracy'))}{f', 95% CI {num(ci95)}' if ci95 else ''},"
        f" label noise allows {num(get(facts, 'ceiling'))}, always-longer {num(get(facts, 'always_longer'))}",
        f"Reward model: accuracy on answers of like length {num(get(facts, 'length_matched'))}"
        f" ({get(facts, 'length_matched_pairs')} pairs), on truncated answers {num(get(facts, 'truncated_accuracy'))}",
    ]
    tests = {"subject": "the answer to x above one to another request", "wish": "two answers under two wishes"}
    for part, accuracy in (get(facts, "swap_accuracy") or {}).items():
        most = get(facts, "swap_ceiling", part)
        lines.append(f"Reward model: swap accuracy of the {part} {num(accuracy)}, gold's {num(most)} ({tests[part]})")
        if accuracy is not None and accuracy < 0.7:
            lines.append(f"WARNING: the reward model hardly reads the {part} of the request: 0.5 is chance.")
    return lines


def _theory_notes(t: dict, inputs: int | None) -> list[str]:
    """How near PPO came to the optimum, and the bounds, in two lines."""
    shares = [num(get(t, f"attainable_gain_share{form}"), 3) for form in ("", "_cross_fitted", "_less_unlisted")]
    said = [
        f"Closed form (first {inputs} requests): PPO took {shares[0]} of the gain attainable with the enumerated"
        " rewrites",
        f"  (against a cross-fitted optimum {shares[1]}; less the cost of other rewrites {shares[2]}, their probability"
        f" {num(t['mass_outside'], 3)})",
        f"  gap {num(t['regularised_gap'], 4)} = λ KL to the optimum {num(t['lambda_kl_to_optimum'], 4)}",
    ]
    deltas = [t.get(f"delta{i}") for i in (1, 2, 3)]
    if None not in deltas:
        said.append(
            f"Suboptimality Δ1 + Δ2 + Δ3 = {' + '.join(num(d, 3) for d in deltas)} = {num(sum(deltas), 3)}; bounds:"
            f" sharper {num(t['bound_sharp'], 3)}, the paper's (recalled) {num(t['bound_paper'], 3)}"
        )
    return said
