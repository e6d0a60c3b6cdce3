"""What a run found: terminal tables, plots, and one HTML page that opens anywhere, offline.

Nothing is measured here. What was not measured (None, NaN, a missing key) prints as an en dash, never as 0.
"""

from __future__ import annotations

import base64
import json
import math
from html import escape
from pathlib import Path

import numpy as np

ARMS = {  # arm: its name, and its one colour in every plot (Okabe-Ito: safe for the colour-blind)
    "no_finetuning": ("no fine-tuning", "#6b7280"), "untrained_prompter": ("SFT prompter", "#cc79a7"),
    "best_of_n": ("best-of-n", "#e69f00"), "align_pro": ("Align-Pro", "#0072b2"), "rlhf_oracle": ("oracle", "#009e73"),
}
TRIO = ("no_finetuning", "align_pro", "rlhf_oracle")  # the arms that the paper compares
PAPER = {  # our task: the data set it mirrors, the paper's share of the gap closed and variance ratio
    "quality": ("UltraFeedback", .82, .64), "attributes": ("HelpSteer", .77, .72), "reasoning": ("Orca", .41, .68),
}
_GLOSSARY = """\
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
missing_eos empty_rewrites | share cut at the token limit; without text | near 0 | high: rambles; silence was rewarded
rewrite_length answer_length | mean tokens: completion; answer | steady | at the limit: rambles; 0: collapsed
lr kl_coef | learning rate; λ, the price of a nat of KL | as scheduled; steady | λ runs off: KL target out of reach
tokens_per_s rollout_s score_s update_s | speed; seconds to sample, score, update | steady | slower: longer sequences
mean ci95 difference | learned reward; its 95% interval; minus no fine-tuning's | above 0 | covers 0: no gain shown
win_rate tie_rate | answers won (ties half), tied against no fine-tuning | wins > 0.5 | below: no broad gain
right_rate | share of correct answers (reasoning) | above no fine-tuning | falls as reward rises: style over substance
variance variance_ratio | of the learned reward; Align-Pro's / no fine-tuning's | below 1 | above 1: less predictable
between_inputs | variance part: some requests are easier | falls | grows: only some inputs gain
between_rewrites | variance part: rewrites of one input | near 0 after RL | large: the prompter is undecided
within | variance part: the frozen LM's own sampling | falls | grows: good rewrites are less reliable
gap_closed | Align-Pro's gain / the oracle's gain | 0.4 to 0.9 (paper) | below 0: harm; above 1: weak oracle
icc best_rewrite_gain | share of the variance due to wording; gain of the best rewrite | icc > 0.1 | 0: RL cannot help
"""
METRICS: dict[str, tuple[str, str, str]] = {  # key: meaning, healthy range, what a bad value means
    key: (meaning, healthy, bad) for line in _GLOSSARY.splitlines()
    for keys, meaning, healthy, bad in [line.split(" | ")] for key in keys.split()
}
COLUMNS = (  # heading (two lines in the terminal), path in the arm's results, decimals
    ("reward\nmean", "mean", 3), ("reward\n95% CI", "ci95", 3), ("var.\ntotal", "variance", 3),
    ("var.\ninputs", "variance_parts between_inputs", 3), ("var.\nrewr.", "variance_parts between_rewrites", 3),
    ("var.\nwithin", "variance_parts within", 3), ("gold\nmean", "gold_mean", 3), ("gold\nvar.", "gold_variance", 3),
    ("KL\nnats", "kl", 2), ("win\nrate", "win_rate", 2), ("tie\nrate", "tie_rate", 2),
    ("x'\ntok.", "rewrite_length", 2), ("y\ntok.", "answer_length", 2), ("right\nrate", "right_rate", 2),
)


def _get(tree, *keys):
    """tree[k1][k2]..., or None as soon as a level is missing, None or NaN (real data has no gold reward)."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def _num(value, digits: int = 3, sign: str = "") -> str:
    """0.123, 12.35, 123.5: one decimal less per digit in front; [low, high] for a pair; an en dash for None and NaN."""
    if isinstance(value, (list, tuple)):
        return f"[{_num(value[0], digits)}, {_num(value[1], digits)}]"
    if value is None or not math.isfinite(value):
        return "–"
    digits = max(0, digits - len(str(int(abs(value)))) + 1)
    return f"{value:.0e}" if abs(value) >= 1e5 else f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # + 0.0: no "-0.0"


def _grid(rows: list[list[str]]) -> str:
    """Aligned text, first column to the left, the others to the right; narrow gaps where 110 columns need them."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    gap = "  " if sum(widths) + 2 * len(widths) <= 112 else " "
    return "\n".join(gap.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows)


def _arm_table(results: dict) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table of arms; the column of right answers only where the task has them."""
    right, arms = results.get("reasoning"), results.get("arms") or {}
    arms = {arm: {"right_rate": _get(right, arm, "right")} | arms[arm] for arm in ARMS if arms.get(arm)}
    columns = COLUMNS if any(_get(a, "right_rate") is not None for a in arms.values()) else COLUMNS[:-1]
    rows = [[ARMS[arm][0], *(_num(_get(a, *path.split()), d) for _, path, d in columns)] for arm, a in arms.items()]
    return ["\narm", *(heading for heading, _, _ in columns)], rows


def final_table(results: dict) -> str:
    """The arms of one run as text of at most 110 columns; after an empty line, the comparisons that matter."""
    heads, rows = _arm_table(results)
    gain = _get(results, "arms", "align_pro", "difference") or {}
    notes = [
        "var. total is about inputs (between requests) + rewr. (between rewrites) + within (frozen LM's own sampling)",
        f"Share of the gap to the oracle closed: {_num(results.get('gap_closed'), 2)}",
        f"Variance ratio, Align-Pro / no fine-tuning: {_num(results.get('variance_ratio'), 2)}",
        f"Align-Pro - no fine-tuning, paired: {_num(gain.get('mean'), sign='+')}, 95% CI {_num(gain.get('ci95'))}",
    ]
    if room := results.get("headroom"):
        notes.append(f"Headroom (ICC): {_num(room.get('icc'))}, best rewrite gains {_num(room.get('best_rewrite_gain'))}")
    if rm := results.get("reward_model"):
        notes.append(f"Reward model: held-out accuracy {_num(rm.get('accuracy'))}, ceiling that the label noise allows"
                     f" {_num(rm.get('ceiling'))}, always-longer {_num(rm.get('always_longer'))}")
    return "\n".join([_grid([*map(list, zip(*(h.split("\n") for h in heads))), *rows]), "", *notes])


def _t_interval(values) -> tuple[float | None, float | None]:
    """Mean over seeds and half-width of its 95% t-interval, which is unknown (None) for a single seed."""
    values = [v for v in values if v is not None]
    if len(values) < 2:
        return (values[0] if values else None), None
    exact = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)  # 1 to 9 degrees of freedom
    t = exact[len(values) - 2] if len(values) <= 10 else 1.96 + 2.5 / (len(values) - 1)  # right to 1%
    return float(np.mean(values)), float(t * np.std(values, ddof=1) / math.sqrt(len(values)))


def _by_task(runs: list[dict]) -> dict[str, list[dict]]:
    runs = sorted(runs, key=lambda run: _get(run, "seed") or 0)
    return {task: [r for r in runs if r.get("task") == task] for task in sorted({r.get("task") for r in runs}, key=str)}


def _sweep_row(run: dict) -> list:
    """Three means, difference, gap, variance ratio, three gold means, seconds; None where not measured."""
    means, golds = ([_get(run, "arms", arm, key) for arm in TRIO] for key in ("mean", "gold_mean"))
    gain, wall = _get(run, "arms", "align_pro", "difference", "mean"), sum((run.get("wall_s") or {}).values()) or None
    return [*means, gain, _get(run, "gap_closed"), _get(run, "variance_ratio"), *golds, wall]


def sweep_counts(runs: list[dict]) -> dict[str, tuple[int, int]]:
    """{claim: (k, n)}: it holds in k of the n runs that measured it (without an oracle no run can be 'between')."""
    intervals, rows = [_get(r, "arms", "align_pro", "difference", "ci95") for r in runs], [_sweep_row(r) for r in runs]
    claims = {
        "Align-Pro above no fine-tuning with interval above zero": [ci[0] > 0 for ci in intervals if ci],
        "between no fine-tuning and oracle": [r[0] < r[1] < r[2] for r in rows if None not in r[:3]],
        "variance below no fine-tuning": [r[5] < 1 for r in rows if r[5] is not None],
    }
    return {claim: (sum(held), len(held)) for claim, held in claims.items()}


def sweep_table(list_of_results: list[dict]) -> str:
    """Per task: a row a seed, the mean over seeds with its 95% t-interval, the paper's figures, and counts."""
    heads = [["", *"No-FT,Align-Pro,Oracle,Align-Pro - No-FT,gap,var.,gold,gold,gold,wall".split(",")],
             ["seed", *"mean,mean,mean,[95% CI],closed,ratio,No-FT,Align-Pro,Oracle,s".split(",")]]
    digits, blocks = (3, 3, 3, 3, 2, 2, 3, 3, 3, 1), []
    for task, runs in _by_task(list_of_results).items():
        rows = [[str(run.get("seed")), *map(_num, _sweep_row(run), digits)] for run in runs]
        for row, run in zip(rows, runs):
            row[4] += " " + _num(_get(run, "arms", "align_pro", "difference", "ci95"))
        means, halves = zip(*map(_t_interval, zip(*map(_sweep_row, runs))))
        rows += [["mean", *map(_num, means, digits)], ["± 95%", *map(_num, halves, digits)]]
        name, *theirs = PAPER.get(task, ("no data set", None, None))
        rows.append(["paper", *[""] * 4, *(_num(v, 2) for v in theirs), *[""] * 4])
        blocks.append([f"task {task} (paper: {name})", _grid(heads + rows), runs])
    blocks += [["all tasks", list_of_results]] if len(blocks) > 1 else []
    return "\n\n".join("\n".join([*text, *(f"  {claim}: {k} of {n}" for claim, (k, n) in sweep_counts(runs).items())])
                       for *text, runs in blocks) or "no runs"


def _figure(path, rows: int, cols: int, size: tuple[float, float], **share):
    """A figure of its own, drawn by Agg: pyplot and its global state are never touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # not at the top: importing it writes a font cache
    from matplotlib.figure import Figure
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure = FigureCanvasAgg(Figure(figsize=size, layout="constrained", dpi=110)).figure
    axes = figure.subplots(rows, cols, squeeze=False, **share)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    return figure, axes


def _series(metrics: list[dict], stage: str, key: str) -> dict[int, float]:
    """{step: value} in order; a step logged twice (a resumed run) keeps its last value."""
    found = {row["step"]: row[key] for row in metrics if row["stage"] == stage and _get(row, key) is not None}
    return dict(sorted(found.items()))


PPO = TRIO[1:]
PPO_PANELS = (  # stages (a colour each), title with its unit, metrics (a line style each)
    (PPO, "reward of the answers", "score_mean gold_mean"),
    (PPO, "KL, nats per sequence", "kl_k1 kl_k3 kl_exact"), (PPO, "length, tokens", "rewrite_length answer_length"),
    (PPO, "policy entropy, nats per token", "entropy"), (PPO, "clip fraction, share of tokens", "clip_fraction"),
    (PPO, "explained variance (best: 1)", "explained_variance"), (PPO, "value loss, reward²", "value_loss"),
    (PPO, "gradient norm, unclipped", "grad_norm"), (PPO, "share of completions", "missing_eos empty_rewrites"),
)
LOSS_PANELS = (
    (("frozen_lm",), "frozen LM: loss, nats per token", "loss heldout_loss"),
    (("prompter_sft",), "prompter SFT: loss, nats per token", "loss heldout_loss"),
    (("reward_model",), "reward model: loss, nats per pair", "loss"),
    (("reward_model",), "reward model: accuracy, share of pairs", "accuracy heldout_accuracy"),
)


def learning_curves(metrics: list[dict], path, panels=PPO_PANELS) -> None:
    """Small multiples of the logged metrics: PPO's by default, those of the stages before it with LOSS_PANELS."""
    cols = 3 if panels is PPO_PANELS else len(panels)
    figure, axes = _figure(path, len(panels) // cols, cols, (4.4 * cols, 3.5 * (len(panels) // cols)))
    for ax, (stages, title, keys) in zip(axes.flat, panels):
        for stage in stages:
            name, colour = ARMS.get(stage, (stage, "#d55e00"))
            for key, style in zip(keys.split(), ("-", "--", ":")):
                if points := _series(metrics, stage, key):
                    ax.plot(*zip(*points.items()), style, c=colour, marker="." * (len(points) < 9), label=f"{name}: {key}")
        if keys == "explained_variance":  # an untrained critic can start at -50, which would flatten the rest
            ax.set_ylim(max(-1.0, ax.get_ylim()[0]), 1.0)
        ax.set(title=title, xlabel="step")
        if ax.lines:  # the legend stands below the panel, where it hides no curve
            ax.legend(fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    figure.savefig(path)


def reward_histograms(rewards: dict[str, np.ndarray], path) -> None:
    """A row an arm: its rewards (N inputs, K rewrites, M answers), their mean, and no fine-tuning's outline."""
    flat = {arm: np.ravel(rewards.get(arm, [])).astype(float) for arm in ARMS}
    flat = {arm: r[np.isfinite(r)] for arm, r in flat.items() if np.isfinite(r).any()}
    bins = np.histogram_bin_edges(np.concatenate([np.zeros(0), *flat.values()]), 40)
    figure, axes = _figure(path, max(1, len(flat)), 1, (8.4, 1.4 * len(flat) + 1), sharex=True, sharey=True)
    for ax, (arm, r) in zip(axes.flat, flat.items()):
        ax.hist(r, bins, density=True, color=ARMS[arm][1], alpha=0.7)
        ax.hist(flat.get(TRIO[0], []), bins, density=True, histtype="step", color="black")
        ax.axvline(r.mean(), color=ARMS[arm][1], linewidth=2)
        ax.set_title(f"{ARMS[arm][0]}: mean {_num(r.mean())} (line), variance {_num(r.var())}", loc="left", fontsize=10)
        ax.set_ylabel("density")
    axes[-1, 0].set_xlabel("learned reward of an answer, r(x, y); outline: no fine-tuning")
    figure.savefig(path)


def reward_vs_kl(results: dict, metrics: list[dict], path) -> None:
    """What a nat of KL buys: the PPO steps (faint) and the evaluated arms with 95% intervals; hollow: gold reward."""
    figure, ((ax,),) = _figure(path, 1, 1, (8.4, 4.4))
    for stage in PPO:
        kl, score = _series(metrics, stage, "kl_k1"), _series(metrics, stage, "score_mean")
        ax.plot(*zip(*((kl[s], score[s]) for s in kl if s in score), (np.nan, np.nan)), color=ARMS[stage][1], alpha=0.3)
    for arm, (name, colour) in ARMS.items():
        mean, kl, gold, ci = (_get(results, "arms", arm, key) for key in ("mean", "kl", "gold_mean", "ci95"))
        if mean is not None and arm == TRIO[0]:
            ax.axhline(mean, color=colour, linestyle="--", label=f"{name}: {_num(mean)}")
        elif mean is not None and kl is not None:
            ax.plot([kl, kl], ci or [mean, mean], color=colour, linewidth=2)
            ax.plot(kl, mean, "o", color=colour, label=f"{name}: {_num(mean)} at {_num(kl, 2)} nats")
            ax.plot(kl, np.nan if gold is None else gold, "o", mfc="white", color=colour)
    ax.set(xlabel="KL to the reference, nats per rewrite (oracle: per answer)", ylabel="mean reward")
    figure.legend(loc="outside right upper", frameon=False, title="● learned  ○ gold  faint: PPO steps")
    figure.savefig(path)


def sweep_plot(list_of_results: list[dict], path) -> None:
    """A column a task: reward mean and variance of the paper's three arms; a thin line a seed, 95% t-intervals."""
    groups = _by_task(list_of_results)
    figure, axes = _figure(path, 2, max(1, len(groups)), (4.3 * max(1, len(groups)), 6.4))
    for column, (task, runs) in zip(axes.T, groups.items()):
        for ax, key, summary, paper in zip(column, ("mean", "variance"), ("gap_closed", "variance_ratio"), (1, 2)):
            table = [[_get(run, "arms", arm, key) for arm in TRIO] for run in runs]
            ax.plot(np.array(table, float).T, ".-", color="0.75")  # None becomes NaN, which is not drawn
            for x, arm, (mean, half) in zip(range(3), TRIO, map(_t_interval, zip(*table))):
                ax.errorbar(x, np.nan if mean is None else mean, half or 0, fmt="o", c=ARMS[arm][1], capsize=5, zorder=3)
            ours, theirs = _t_interval([run.get(summary) for run in runs])[0], PAPER.get(task, [None] * 3)[paper]
            title = f"{task}: {summary.replace('_', ' ')} {_num(ours, 2)} (paper {_num(theirs, 2)})"
            ax.set_title(title, fontsize=10, parse_math=False)
            ax.set_xticks(range(3), [ARMS[arm][0] for arm in TRIO])
            ax.set(ylabel=f"{key} of the learned reward", xlim=(-0.4, 2.4))
    figure.savefig(path)


def headline(results: dict) -> str:
    """What happened, in plain words, from the numbers alone; says so when nothing was gained."""
    base, sft, ours = (_get(results, "arms", arm) for arm in ("no_finetuning", "untrained_prompter", "align_pro"))
    ci, gap, ratio = _get(ours, "difference", "ci95"), _get(results, "gap_closed"), _get(results, "variance_ratio")
    if not ci:
        return "This run did not compare Align-Pro with no fine-tuning."
    verdict = "raised the reward" if ci[0] > 0 else "lowered the reward" if ci[1] < 0 else "showed no clear gain"
    said = [f"Align-Pro {verdict}: {_num(_get(base, 'mean'))} to {_num(_get(ours, 'mean'))}, gain's 95% CI {_num(ci)}."]
    if gap is not None:
        said.append(f"Share of the gap to the RLHF oracle closed: {_num(gap, 2)}.")
    if ratio is not None:
        said.append(f"Variance {'fell' if ratio < 1 else 'did not fall'}: {_num(ratio, 2)} times no fine-tuning's.")
    if ci[0] > 0 and _get(sft, "mean") is not None and sft["mean"] >= ours["mean"]:
        said.append("The SFT prompter did as well: RL added nothing.")
    before, after = _get(base, "gold_mean"), _get(ours, "gold_mean")
    if None not in (before, after):
        said.append(f"Gold reward {'rose' if after > before else 'did not rise'}: {_num(before)} to {_num(after)}.")
    return " ".join(said)


def variance_sentence(results: dict) -> str:
    """Names the part of the variance that fell the most from no fine-tuning to Align-Pro."""
    before, after = (_get(results, "arms", arm, "variance_parts") or {} for arm in TRIO[:2])
    falls = {part: before[part] - after[part] for part in before if None not in (before[part], after.get(part))}
    part = max(falls, key=falls.get, default=None)
    if part is None or falls[part] <= 0:
        return "No part of the variance was seen to fall from no fine-tuning to Align-Pro."
    what = METRICS[part][0].removeprefix("variance part: ")
    return f"What fell the most is {part.replace('_', ' ')} ({what}): {_num(before[part])} to {_num(after[part])}."


_CSS = """:root{color-scheme:light dark} body{max-width:74rem;margin:auto;padding:1rem;font:16px/1.5 sans-serif}
div,pre{overflow-x:auto} table{border-collapse:collapse;font-size:.85rem} h2+div td{white-space:nowrap}
td,th{padding:.35rem .6rem;border-bottom:1px solid #8886;text-align:left;vertical-align:top} details{margin:1rem 0}
.lead{font-size:1.15rem;border-left:4px solid #0072b2;padding-left:1rem} img{display:block;max-width:100%;margin:1rem}"""


def _table(heads, rows) -> str:
    """An HTML table. The models' outputs are untrusted: every cell is escaped here."""
    lines = [("th", heads), *(("td", row) for row in rows)]
    cells = ("".join(f"<{tag}>{escape(str(cell))}" for cell in line) for tag, line in lines)
    return f"<div><table><tr>{'<tr>'.join(cells)}</table></div>"


def write_report(run_dir: Path, results: dict, metrics: list[dict], samples: list[dict], rewards: dict) -> Path:
    """Write run_dir/plots/*.png and run_dir/report.html, one file without links to anything; returns its path."""
    plots = [Path(run_dir, "plots", f"{name}.png") for name in "reward_vs_kl reward_histograms learning_curves losses".split()]
    reward_vs_kl(results, metrics, plots[0])
    reward_histograms(rewards, plots[1])
    learning_curves(metrics, plots[2])
    learning_curves(metrics, plots[3], LOSS_PANELS)
    (heads, rows), notes = _arm_table(results), final_table(results).split("\n\n")[1].splitlines()
    steps = [(row["stage"], row["step"]) for row in samples if row["stage"] == "align_pro"]
    kept = [s for s in samples if s["stage"] == "evaluation" or (s["stage"], s.get("step")) in steps[:1] + steps[-1:]]
    texts = [[row.get("x"), ARMS.get(row.get("arm"), [f"step {row.get('step')}"])[0], row.get("x_prime"), row.get("y"),
              _num(row.get("reward"), 2), _num(row.get("kl"), 2)] for row in kept]
    title = escape(f"Align-Pro: task {results.get('task')}, preset {results.get('preset')}, seed {results.get('seed')}")
    about = json.dumps({key: results.get(key) for key in ("n_eval", "wall_s", "config")}, indent=2, default=str)
    page = [  # its Content-Security-Policy: should any text ever slip past escape(), nothing may load or run
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none';img-src data:;style-src 'unsafe-inline'\">",
        f"<title>{title}</title><style>{_CSS}</style><h1>{title}</h1><p class=lead>{escape(headline(results))}",
        "<h2>Arms</h2>", _table(heads, rows), "<p>", *(f"{escape(note)}<br>" for note in notes),
        "<h2>Where the variance went</h2>", _table(heads[:1] + heads[3:7], [row[:1] + row[3:7] for row in rows]),
        f"<p>{variance_sentence(results)}<h2>Plots</h2>",
        *(f'<img alt="{p.stem}" src="data:image/png;base64,{base64.b64encode(p.read_bytes()).decode()}">' for p in plots),
        "<h2>Before and after</h2><p>The first and the last logged step of Align-Pro, then the evaluation.",
        _table(["request x", "by", "rewrite x\u2032", "answer y", "reward", "KL"], texts),
        f"<details><summary>Configuration and time</summary><pre>{escape(about)}</pre></details>",
        "<details><summary>Glossary of the metrics</summary>",
        _table(["metric", "meaning", "healthy", "a bad value means"], [row.split(" | ") for row in _GLOSSARY.splitlines()]),
    ]
    out = Path(run_dir) / "report.html"
    out.write_text("\n".join(page), encoding="utf-8", errors="replace")  # BPE can leave lone surrogates
    return out
