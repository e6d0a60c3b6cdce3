"""What a run found, as tables for the terminal: the arms of one run, a sweep of runs, and what each metric means.

Nothing is measured here. What was not measured (None, NaN, a missing key) prints as an en dash, never as 0.
"""

from __future__ import annotations

import math

import numpy as np

ARMS = {  # arm: its name, and its one colour in every plot (Okabe-Ito: safe for the colour-blind)
    "no_finetuning": ("no fine-tuning", "#6b7280"),
    "untrained_prompter": ("SFT prompter", "#cc79a7"),
    "best_of_n": ("best-of-n", "#e69f00"),
    "align_pro": ("Align-Pro", "#0072b2"),
    "rlhf_oracle": ("oracle", "#009e73"),
    "closed_form": ("closed form", "#56b4e9"),
}
TRIO = ("no_finetuning", "align_pro", "rlhf_oracle")  # the arms that the paper compares
PAPER = {  # our task: the data set it mirrors, the paper's share of the gap closed and variance ratio
    "quality": ("UltraFeedback", 0.82, 0.64),
    "attributes": ("HelpSteer", 0.77, 0.72),
    "reasoning": ("Orca", 0.41, 0.68),
}
GLOSSARY = """\
loss heldout_loss | cross-entropy, nats per token (reward: per pair) | falls, flattens | held-out rises: overfitting
accuracy heldout_accuracy | share of pairs ranked like their label | held-out near the ceiling | 0.5: nothing learned
margin | reward of the chosen minus the rejected answer | above 0, levels off | keeps growing: overfitting
ceiling always_longer | accuracy of the gold reward; of the longer answer | far apart | close: it may only count words
score_mean reward_mean | mean learned reward; minus λ KL (PPO's aim) | rise | second falls: drift costs too much
score_std advantage_std | standard deviation over the batch | steady, may shrink | near 0: no signal left to learn from
gold_mean gold_variance | of the true reward, never trained on | mean rises | mean falls: over-optimisation
kl kl_k1 | KL(ρ‖ρ_sft), nats per sequence; k1: mean log-ratio | 0 to 15 | above: raise λ; long below 0: masking bug
kl_k3 kl_exact | the same KL by e^(-d) - 1 + d; over the whole vocabulary | close to k1 | far: masking bug
entropy | of the policy, nats per token | falls slowly | near 0 early: collapsed; rising: gibberish
policy_loss value_loss | clipped surrogate; critic's squared error | near 0; falls | swings, grows: step too large
clip_fraction value_clip_fraction | share of tokens clipped | 0.01 to 0.2 | above 0.3: step too large
ratio_max approx_kl_update | largest probability ratio; KL of an update | below 3; below 0.02 | above: step too large
explained_variance | 1 - Var(return - value) / Var(return) | climbs to 0.3 to 0.9 | below 0: worse than a constant
grad_norm | gradient norm before clipping | steady | spikes: outlier batches, or learning rate too high
missing_eos empty_rewrites | share cut at the token limit; empty or too long to be sent, so x was | near 0 | high: rambles, or silence
cut_answers inputs | share of answers cut at the token limit; requests of the arm | near 0 | high: half an answer is what gets rated
rewrite_length answer_length | mean tokens: completion; answer | steady | at the limit: rambles; 0: collapsed
lr kl_coef | learning rate; λ, the price of a nat of KL | as scheduled; steady | λ runs off: KL target out of reach
tokens_per_s rollout_s score_s update_s | speed; seconds to sample, score, update | steady | slower: longer sequences
mean ci95 difference | learned reward; its 95% interval; minus no fine-tuning's | above 0 | covers 0: no gain shown
win_rate tie_rate | answers won (ties half), tied against no fine-tuning | wins > 0.5 | below: no broad gain
right_rate worked_rate asks_for_steps | shares, reasoning: answers right, worked in steps; rewrites that ask for it | above no fine-tuning | falls as reward rises: style over substance
variance variance_ratio | of the learned reward; Align-Pro's / no fine-tuning's | below 1 | above 1: less predictable
between_inputs | variance part: some requests are easier | falls | grows: only some inputs gain
between_rewrites | variance part: rewrites of one input | near 0 after RL | large: the prompter is undecided
within | variance part: the frozen LM's own sampling | falls | grows: good rewrites are less reliable
gap_closed | Align-Pro's gain / the oracle's gain | 0.4 to 0.9 (paper) | below 0: harm; above 1: weak oracle
attainable_gain_share | share of J_λ(ρ*) - J_λ(ρ_sft) that PPO took; ρ*: closed form | above 0.95 | low: PPO stopped early or collapsed
regularised_gap lambda_kl_to_optimum | J_λ(ρ*) - J_λ(ρ); λ KL(ρ‖ρ*), two routes to one number | near 0 and equal | differ: a bug
mass_outside mass_outside_sft | what ρ, ρ_sft give to unlisted rewrites | below 0.1 | grows in PPO: garbled rewrites
optimum_noise unlisted_cost | what the share leaves out: noise in R; mass that left the list or came to it | far below the gap | near it: more --theory.answers
r_standard_error r_max | of R, the mean reward of a rewrite; range of the rewards; both as PPO sees them | below λ | above: more --theory.answers
delta1 delta2 delta3 | J(oracle) - J(π_F), J(π_F) - J(ρ_sft), J(ρ_sft) - J(ρ*), as PPO sees rewards | first above 0, last below | last above 0: a bug
bound_paper bound_sharp | upper bounds on the sum of the three, estimated | above the sum | far below it: a bug
icc best_rewrite_gain | share of the variance due to wording; gain of the best rewrite | icc > 0.1 | 0: RL cannot help
"""
METRICS: dict[str, tuple[str, str, str]] = {  # key: meaning, healthy range, what a bad value means
    key: (meaning, healthy, bad)
    for line in GLOSSARY.splitlines()
    for keys, meaning, healthy, bad in [line.split(" | ")]
    for key in keys.split()
}
# The paper's figure, read off to about 0.005: mean, then variance, of no fine-tuning, Align-Pro and the oracle.
PAPER_CELLS = {
    "quality": {
        "P1-F1": (0.389, 1.127, 1.368, 1.871, 1.142, 1.798),
        "P1-F2": (0.695, 1.331, 1.403, 1.843, 1.417, 1.790),
        "P2-F1": (0.456, 1.130, 1.398, 2.240, 1.215, 1.924),
        "P2-F2": (0.703, 1.400, 1.481, 2.192, 1.373, 1.940),
    },
    "reasoning": {
        "P1-F1": (1.590, 1.851, 2.456, 1.907, 1.221, 1.439),
        "P1-F2": (1.959, 2.375, 2.612, 1.886, 1.399, 1.650),
        "P2-F1": (1.122, 1.434, 2.182, 1.975, 1.332, 1.310),
        "P2-F2": (1.822, 2.054, 2.408, 1.657, 1.117, 1.364),
    },
    "attributes": {
        "P1-F1": (0.111, 0.733, 0.845, 0.982, 0.867, 0.817),
        "P1-F2": (0.252, 0.705, 1.001, 1.136, 0.750, 0.887),
        "P2-F1": (0.194, 0.812, 0.950, 1.070, 0.723, 0.968),
        "P2-F2": (0.290, 0.847, 0.964, 0.945, 0.610, 0.857),
    },
}
CELLS = tuple(PAPER_CELLS["quality"])  # prompter - frozen model
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


def _grid(rows: list[list[str]]) -> str:
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
    return "\n".join([_grid([*map(list, zip(*(h.split("\n") for h in heads))), *rows]), "", *notes])


def _theory_notes(theory: dict, inputs: int | None) -> list[str]:
    """How near PPO came to the optimum, and the bounds, in two lines."""
    said = [
        f"Closed form (first {inputs} requests): PPO took {num(theory['attainable_gain_share'], 3)} of the attainable gain; gap"
        f" {num(theory['regularised_gap'], 4)} = λ KL to the optimum {num(theory['lambda_kl_to_optimum'], 4)}; unlisted"
        f" {num(theory['mass_outside'], 3)}, at a cost of {num(theory['unlisted_cost'], 4)} or more"
    ]
    deltas = [theory.get(f"delta{i}") for i in (1, 2, 3)]
    if None not in deltas:
        said.append(
            f"Suboptimality Δ1 + Δ2 + Δ3 = {' + '.join(num(d, 3) for d in deltas)} = {num(sum(deltas), 3)}; bounds: sharper"
            f" {num(theory['bound_sharp'], 3)}, paper's {num(theory['bound_paper'], 3)}"
        )
    return said


def t_interval(values) -> tuple[float | None, float | None]:
    """Mean over seeds and half-width of its 95% t-interval, which is unknown (None) for a single seed."""
    values = [v for v in values if v is not None]
    if len(values) < 2:
        return (values[0] if values else None), None
    exact = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)  # 1 to 9 degrees of freedom
    t = exact[len(values) - 2] if len(values) <= 10 else 1.96 + 2.5 / (len(values) - 1)  # right to 1%
    return float(np.mean(values)), float(t * np.std(values, ddof=1) / math.sqrt(len(values)))


def by_task(runs: list[dict]) -> dict[str, list[dict]]:
    runs = sorted(runs, key=lambda run: get(run, "seed") or 0)
    return {task: [r for r in runs if r.get("task") == task] for task in sorted({r.get("task") for r in runs}, key=str)}


def _sweep_row(run: dict) -> list:
    """Three means, difference, gap, variance ratio, three gold means, attainable share, mass off the list, seconds; or None."""
    means, golds = ([get(run, "arms", arm, key) for arm in TRIO] for key in ("mean", "gold_mean"))
    gain, wall = get(run, "arms", "align_pro", "difference", "mean"), sum((run.get("wall_s") or {}).values()) or None
    near = (get(run, "theory", key) for key in ("attainable_gain_share", "mass_outside"))
    return [*means, gain, get(run, "gap_closed"), get(run, "variance_ratio"), *golds, *near, wall]


def sweep_counts(runs: list[dict]) -> dict[str, tuple[int, int]]:
    """{claim: (k, n)}: it holds in k of the n runs that measured it (without an oracle no run can be 'between')."""
    intervals, rows = [get(r, "arms", "align_pro", "difference", "ci95") for r in runs], [_sweep_row(r) for r in runs]
    claims = {
        "Align-Pro above no fine-tuning with interval above zero": [ci[0] > 0 for ci in intervals if ci],
        "between no fine-tuning and oracle": [r[0] < r[1] < r[2] for r in rows if None not in r[:3]],
        "variance below no fine-tuning": [r[5] < 1 for r in rows if r[5] is not None],
        "at least 0.95 of the attainable gain": [r[9] >= 0.95 for r in rows if r[9] is not None],
    }
    return {claim: (sum(held), len(held)) for claim, held in claims.items() if held}


def _right_answers(runs: list[dict]) -> list[str]:
    """For sums: right answers and requests for steps, averaged over the seeds; nothing for other tasks."""
    rate = lambda arm, key: t_interval([get(r, "arms", arm, key) for r in runs])[0]  # noqa: E731
    if rate("align_pro", "right_rate") is None:
        return []
    before, after, asks = (
        rate("no_finetuning", "right_rate"),
        rate("align_pro", "right_rate"),
        rate("align_pro", "asks_for_steps"),
    )
    rises = [get(r, "arms", "align_pro", "right_rate") - get(r, "arms", "no_finetuning", "right_rate") for r in runs]
    return [
        f"  right answers {num(before, 3)} to {num(after, 3)}; rewrites that ask for steps {num(asks, 3)} (means over seeds)",
        f"  right answers rise by {num(min(rises), 3)} to {num(max(rises), 3)}, seed by seed",
    ]


def _variance_lines(runs: list[dict]) -> list[str]:
    """Which part of the variance falls: an arm a line, means over the seeds."""
    paths = (
        "variance",
        "variance_parts between_inputs",
        "variance_parts between_rewrites",
        "variance_parts within",
        "gold_variance",
    )
    rows = [["  means over seeds", "variance", "between inputs", "between rewrites", "within", "gold variance"]]
    for arm, (name, _) in ARMS.items():
        found = [t_interval([get(r, "arms", arm, *path.split()) for r in runs])[0] for path in paths]
        rows += [[f"  {name}", *map(num, found)]] if found[0] is not None else []
    return [_grid(rows)]


def _theory_lines(runs: list[dict]) -> list[str]:
    """Suboptimality and bounds, means over seeds; then what stands beside the attainable share, in parts of that gain."""
    keys = ("delta1", "delta2", "delta3", "bound_sharp", "bound_paper")
    told = [
        r["theory"]
        for r in runs
        if all(get(r, "theory", k) is not None for k in (*keys, "optimum_noise", "unlisted_cost"))
    ]
    if not told:
        return []
    d1, d2, d3, sharp, paper = (num(t_interval([t[k] for t in told])[0], 2) for k in keys)
    held = sum(sum(t[f"delta{i}"] for i in (1, 2, 3)) <= t["bound_sharp"] <= t["bound_paper"] for t in told)
    gained = [t for t in told if t["attainable_gain_share"] is not None and t["regularised_gap"] > 0]
    # share = 1 - gap / attainable gain
    parts = [
        [t[k] * (1 - t["attainable_gain_share"]) / t["regularised_gap"] for t in gained]
        for k in ("optimum_noise", "unlisted_cost")
    ]
    spans = [f"{num(min(p), 3)} to {num(max(p), 3)}" if p else "–" for p in parts]
    return [
        f"  Δ1, Δ2, Δ3 {d1}, {d2}, {d3}; bounds: sharper {sharp}, paper's {paper} (means); both held in {held} of {len(told)}",
        f"  of the attainable gain, noise in R flatters the optimum by {spans[0]}, mass off the list costs {spans[1]} or more",
    ]


def sweep_table(list_of_results: list[dict]) -> str:
    """Per task: a row a seed, the mean over seeds with its 95% t-interval, the paper's figures, and counts."""
    heads = [
        ["", *"No-FT,Align-Pro,Oracle,Align-Pro - No-FT,gap,var.,gold,gold,gold,attain.,un-,wall".split(",")],
        ["seed", *"mean,mean,mean,[95% CI],closed,ratio,No-FT,Align-Pro,Oracle,share,listed,s".split(",")],
    ]
    digits, blocks = (3, 3, 3, 3, 2, 2, 3, 3, 3, 3, 3, 1), []
    for task, runs in by_task(list_of_results).items():
        rows = [[str(run.get("seed")), *map(num, _sweep_row(run), digits)] for run in runs]
        for row, run in zip(rows, runs):
            row[4] += " " + num(get(run, "arms", "align_pro", "difference", "ci95"))
        means, halves = zip(*map(t_interval, zip(*map(_sweep_row, runs))))
        rows += [["mean", *map(num, means, digits)], ["± 95%", *map(num, halves, digits)]]
        name, *theirs = PAPER.get(task, ("no data set", None, None))
        rows.append(["paper", *[""] * 4, *(num(v, 2) for v in theirs), *[""] * 6])
        blocks.append(
            [
                f"task {task} (paper: {name})",
                _grid(heads + rows),
                *_variance_lines(runs),
                *_theory_lines(runs),
                *_right_answers(runs),
                runs,
            ]
        )
    blocks += [["all tasks", list_of_results]] if len(blocks) > 1 else []
    return (
        "\n\n".join(
            "\n".join([*text, *(f"  {claim}: {k} of {n}" for claim, (k, n) in sweep_counts(runs).items())])
            for *text, runs in blocks
        )
        or "no runs"
    )


def grid_cells(groups: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """{(task, cell): its results, a seed each} of the groups that `grid.run_group` returns."""
    return {
        (task, cell): [g["cells"][cell] for g in runs if cell in g["cells"]]
        for task, runs in by_task(groups).items()
        for cell in CELLS
        if any(cell in g["cells"] for g in runs)
    }


def _six(runs: list[dict]) -> list[float]:
    """Mean, then variance, of the three arms, averaged over seeds, in the order of PAPER_CELLS."""
    return [t_interval([get(r, "arms", arm, key) for r in runs])[0] for key in ("mean", "variance") for arm in TRIO]


def grid_counts(sixes: list) -> dict[str, tuple[int, int]]:
    """{claim: (k, n)} over cells, each six numbers as in PAPER_CELLS; None where no oracle was trained."""
    claims = {
        "between no fine-tuning and oracle": [s[0] < s[1] < s[2] for s in sixes if s[2] is not None],
        "variance below no fine-tuning": [s[4] < s[3] for s in sixes],
        "variance below the oracle": [s[4] < s[5] for s in sixes if s[5] is not None],
    }
    return {claim: (sum(held), len(held)) for claim, held in claims.items()}


def grid_table(groups: list[dict]) -> str:
    """Cell by cell, means over seeds with 95% t-intervals; the counts beside the paper's own; what falls; swaps; time."""
    cells = grid_cells(groups)
    rows = [
        ["", "", *"mean,mean,mean,var.,var.,var.,gap closed,var. ratio,attain.,un-".split(",")],
        [
            "task",
            "cell",
            *"No-FT,Align-Pro,Oracle,No-FT,Align-Pro,Oracle,ours (paper),ours (paper),share,listed".split(","),
        ],
    ]
    for (task, cell), runs in cells.items():
        pairs = [t_interval([get(r, "arms", arm, key) for r in runs]) for key in ("mean", "variance") for arm in TRIO]
        summary = ("gap_closed",), ("variance_ratio",), ("theory", "attainable_gain_share"), ("theory", "mass_outside")
        gap, ratio, share, unlisted = (t_interval([get(r, *keys) for r in runs])[0] for keys in summary)
        a, b, c, v, w, _ = PAPER_CELLS[task][cell]
        told = [num(m, 2) + ("" if half is None else f" ±{num(half, 2)}") for m, half in pairs]
        rows.append(
            [
                task,
                cell,
                *told,
                f"{num(gap, 2)} ({(b - a) / (c - a):.2f})",
                f"{num(ratio, 2)} ({w / v:.2f})",
                num(share, 3),
                num(unlisted, 3),
            ]
        )
    ours, each = (
        grid_counts([_six(runs) for runs in cells.values()]),
        grid_counts([_six([r]) for runs in cells.values() for r in runs]),
    )
    paper = grid_counts([six for task in PAPER_CELLS.values() for six in task.values()])
    said = [
        f"  {c}: {ours[c][0]} of {ours[c][1]} cells, {each[c][0]} of {each[c][1]} single runs (paper: {k} of {n} cells)"
        for c, (k, n) in paper.items()
    ]
    alone = sweep_counts([r for runs in cells.values() for r in runs])
    said += [f"  {claim}: {k} of {n} single runs" for claim, (k, n) in alone.items() if claim not in paper]
    for task in by_task(groups):
        runs = [r for (t, _), found in cells.items() if t == task for r in found]
        said += ["", f"task {task}, all cells", *_variance_lines(runs), *_right_answers(runs)]
    return "\n".join([_grid(rows), "", *said, "", *_swap_lines(groups), *_time_lines(groups)])


def _time_lines(groups: list[dict]) -> list[str]:
    """How long the stages took, those of an earlier command included."""
    seconds = [sum(g["wall_s"].values()) for g in groups if g.get("wall_s")]
    if not seconds:
        return []
    each = f"{min(seconds) / 60:.0f} to {max(seconds) / 60:.0f} minutes a task and seed"
    return [f"  all stages of all parts: {sum(seconds) / 3600:.2f} hours one after the other, {each}"]


def _swap_lines(groups: list[dict]) -> list[str]:
    """Per task, how a prompter fares in front of the frozen model it was not trained for, averaged over all swaps."""
    lines = []
    for task, runs in by_task(groups).items():
        swaps = [s for g in runs for s in g["swap"].values()]
        if swaps:
            gain, loss = (
                t_interval([s[key]["mean"] for s in swaps])[0]
                for key in ("against_no_finetuning", "against_its_own_prompter")
            )
            helped = sum(s["against_no_finetuning"]["ci95"][0] > 0 for s in swaps)
            lines.append(
                f"  swapped, {task}: {num(gain, 3, '+')} against no fine-tuning ({helped} of {len(swaps)} with interval above 0), "
                f"{num(loss, 3, '+')} against the prompter trained for that model"
            )
    return lines


def frontier_table(runs: list[dict]) -> str:
    """Per run a row a price: Align-Pro beside the optimum at the same price, RLHF beside both; then best-of-n."""
    blocks = []
    for run in runs:
        rows = [["λ", "KL", "reward", "attain. share", "unlisted", "RLHF: KL of answers", "reward"]]
        rows += [
            [
                f"{p['lam']:g}",
                *(
                    num(p.get(k), d)
                    for k, d in zip(
                        ("kl", "mean", "attainable_gain_share", "mass_outside", "rlhf_kl", "rlhf_mean"),
                        (2, 3, 3, 3, 2, 3),
                    )
                ),
            ]
            for p in run["align_pro"]
        ]
        best = [
            ["n", "KL", "bound", "reward"],
            *([str(p["n"]), num(p["kl"], 2), num(p["kl_bound"], 2), num(p["mean"])] for p in run["best_of_n"]),
        ]
        blocks.append(
            f"task {run['task']}, seed {run['seed']}; no fine-tuning {num(run['no_finetuning'])}\n{_grid(rows)}\n\nbest-of-n\n{_grid(best)}"
        )
    return "\n\n".join(blocks)
