"""What a run found: terminal tables, plots, and one HTML page that opens anywhere, offline.

Nothing is measured here. What was not measured (None, NaN, a missing key) prints as an en dash, never as 0.
Axes of a reward array:  N inputs   K rewrites of an input   M answers to a rewrite
"""

from __future__ import annotations

import base64
import json
import math
from html import escape
from pathlib import Path

import numpy as np

ARMS = {  # arm: its name, and its one colour in every plot (Okabe-Ito: colour-blind readers can tell them apart)
    "no_finetuning": ("no fine-tuning", "#6b7280"), "untrained_prompter": ("SFT prompter", "#cc79a7"),
    "best_of_n": ("best-of-n", "#e69f00"), "align_pro": ("Align-Pro", "#0072b2"), "rlhf_oracle": ("oracle", "#009e73"),
}
TRIO = ("no_finetuning", "align_pro", "rlhf_oracle")  # the arms that the paper compares
PAPER = {  # our task: the data set it mirrors, the paper's share of the gap closed and variance ratio
    "quality": ("UltraFeedback", 0.82, 0.64), "attributes": ("HelpSteer", 0.77, 0.72), "reasoning": ("Orca", 0.41, 0.68),
}
_GLOSSARY = """\
loss heldout_loss | cross-entropy, nats per token (reward: per pair) | falls, flattens | held-out rises: overfitting
accuracy heldout_accuracy | share of pairs ranked like their label | held-out near the ceiling | 0.5: nothing learned
margin | reward of the chosen minus the rejected answer | above 0, levels off | keeps growing: overfitting
ceiling | accuracy of the gold reward on the same noisy labels | 0.7 to 1 | near 0.5: the labels are mostly noise
always_longer | accuracy of "the longer answer wins" | near 0.5 | near the reward model's: it may only count words
score_mean | mean learned reward r(x, y) of the batch, KL not subtracted | rises, flattens | falls: step too large
score_std advantage_std | standard deviation over the batch | steady, may shrink | near 0: no signal left to learn from
reward_mean | score minus λ KL, what PPO maximises | rises | falls while the score rises: drift costs too much
gold_mean gold_variance | of the true reward, never trained on | mean rises, variance not | mean falls: over-optimisation
kl kl_k1 | KL(ρ‖ρ_sft), nats per sequence; k1: mean log-ratio | 0 to 15 | above: raise λ; long below 0: masking bug
kl_k3 | the same KL by e^(-d) - 1 + d, never negative | close to k1 | far from k1: heavy tails, trust neither
kl_exact | the same KL, summed over the vocabulary at each token | close to k1 and k3 | far from both: a masking bug
kl_coef | λ, the price of a nat of KL | constant, or moves slowly | runs off: the KL target is out of reach
entropy | of the policy, nats per token | falls slowly | near 0 early: collapsed; rising: gibberish
policy_loss | clipped surrogate; its trend means nothing | small, around 0 | large swings: step too large
value_loss | squared error of the critic | falls | grows: rewards not normalised, or learning rate too high
clip_fraction value_clip_fraction | share of tokens clipped | 0.01 to 0.2 | above 0.3: step too large; 0: idle
ratio_max | largest new/old probability ratio | 1.1 to 3 | above 10: lower the learning rate or the epochs
approx_kl_update | KL between the policy before and after an update | 0.001 to 0.02 | above 0.05: samples are stale
explained_variance | 1 - Var(return - value) / Var(return) | climbs to 0.3 to 0.9 | below 0: worse than a constant
grad_norm | gradient norm before clipping | steady | spikes: outlier batches, or learning rate too high
missing_eos empty_rewrites | share cut at the token limit; without text | near 0 | high: it rambles; it finds silence pays
rewrite_length | mean completion (rewrite) length, tokens | like the SFT data | at the limit: rambles; near 0: collapsed
answer_length | mean answer length, tokens | like no fine-tuning | grows with the reward: it may merely like length
lr tokens_per_s | learning rate; throughput | as scheduled; steady | 0 too early; falls: longer sequences, busy machine
rollout_s score_s update_s | seconds of a step: sampling, rewards, PPO epochs | rollout largest | grows: longer sequences
mean ci95 | learned reward of the evaluation, 95% interval | above no fine-tuning | below: harm; wide: too few inputs
difference | mean minus no fine-tuning's, paired by input | interval above 0 | interval covers 0: no gain shown
win_rate tie_rate | share of inputs won against, tied with no fine-tuning | wins > losses | few wins: no broad gain
right_rate | share of correct answers (reasoning) | above no fine-tuning | falls as reward rises: style over substance
variance variance_ratio | of the learned reward; Align-Pro's / no fine-tuning's | ratio below 1 | above 1: less predictable
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
    ("between\ninputs", "variance_parts between_inputs", 3), ("between\nrewr.", "variance_parts between_rewrites", 3),
    ("within\n(LM)", "variance_parts within", 3), ("gold\nmean", "gold_mean", 3), ("gold\nvar.", "gold_variance", 3),
    ("KL\nnats", "kl", 2), ("win\nrate", "win_rate", 2), ("tie\nrate", "tie_rate", 2), ("x'\ntok.", "rewrite_length", 1),
    ("y\ntok.", "answer_length", 1), ("right\nrate", "right_rate", 2),
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
    return "\n".join(gap.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)


def _arm_table(results: dict) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table of arms; the column of right answers only where the task has them."""
    arms = {arm: results["arms"][arm] for arm in ARMS if _get(results, "arms", arm)}
    columns = COLUMNS if any(_get(a, "right_rate") is not None for a in arms.values()) else COLUMNS[:-1]
    rows = [[ARMS[arm][0], *(_num(_get(a, *path.split()), d) for _, path, d in columns)] for arm, a in arms.items()]
    return ["\narm", *(heading for heading, _, _ in columns)], rows


def final_table(results: dict) -> str:
    """The arms of one run as text of at most 110 columns; after an empty line, the comparisons that matter."""
    heads, rows = _arm_table(results)
    difference, room, rm = _get(results, "arms", "align_pro", "difference"), results.get("headroom"), results.get("reward_model")
    notes = [
        "Variance (total) = between inputs + between rewrites + within (the frozen LM's own sampling)",
        f"Share of the gap to the oracle closed: {_num(_get(results, 'gap_closed'), 2)}",
        f"Variance ratio, Align-Pro / no fine-tuning: {_num(_get(results, 'variance_ratio'), 2)}",
        f"Paired difference, Align-Pro - no fine-tuning: {_num(_get(difference, 'mean'), sign='+')},"
        f" 95% CI {_num(_get(difference, 'ci95'))}",
    ]
    if room:
        notes.append(f"Headroom (ICC): {_num(_get(room, 'icc'))}; best rewrite gains {_num(_get(room, 'best_rewrite_gain'))}")
    if rm:
        notes.append(f"Reward model: held-out accuracy {_num(_get(rm, 'accuracy'))}; ceiling that the label noise allows"
                     f" {_num(_get(rm, 'ceiling'))}; always-longer {_num(_get(rm, 'always_longer'))}")
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
    return [*means, _get(run, "arms", "align_pro", "difference", "mean"), _get(run, "gap_closed"), _get(run, "variance_ratio"),
            *golds, sum((run.get("wall_s") or {}).values()) or None]


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
        if task in PAPER:
            rows.append([f"paper: {PAPER[task][0]}", *[""] * 4, *(_num(v, 2) for v in PAPER[task][1:]), *[""] * 4])
        blocks.append([f"task {task}", _grid(heads + rows), runs])
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
    return dict(sorted({m["step"]: m[key] for m in metrics if m["stage"] == stage and _get(m, key) is not None}.items()))


PPO = TRIO[1:]
PPO_PANELS = (  # stages (a colour each), title with its unit, metrics (a line style each)
    (PPO, "answers, reward", "score_mean gold_mean"), (PPO, "KL to the reference, nats", "kl_k1 kl_k3 kl_exact"),
    (PPO, "length, tokens", "rewrite_length answer_length"), (PPO, "policy entropy, nats per token", "entropy"),
    (PPO, "share of the tokens", "clip_fraction"), (PPO, "critic, 1 is perfect", "explained_variance"),
    (PPO, "critic, squared reward", "value_loss"), (PPO, "norm before clipping", "grad_norm"),
    (PPO, "share of the completions", "missing_eos empty_rewrites"),
)
LOSS_PANELS = (
    (("frozen_lm",), "frozen LM, nats per token", "loss heldout_loss"),
    (("prompter_sft",), "prompter, nats per token", "loss heldout_loss"),
    (("reward_model",), "reward model, nats per pair", "loss"),
    (("reward_model",), "reward model, share of the pairs", "accuracy heldout_accuracy"),
)


def learning_curves(metrics: list[dict], path, panels=PPO_PANELS) -> None:
    """Small multiples of the logged metrics: PPO's by default, those of the stages before it with LOSS_PANELS."""
    cols = 3 if panels is PPO_PANELS else len(panels)
    figure, axes = _figure(path, len(panels) // cols, cols, (4.2 * cols, 3.1 * (len(panels) // cols)))
    for ax, (stages, title, keys) in zip(axes.flat, panels):
        for stage in stages:
            name, colour = ARMS.get(stage, (stage, "#d55e00"))
            for key, style in zip(keys.split(), ("-", "--", ":")):
                if points := _series(metrics, stage, key):
                    marker = "o" if len(points) < 12 else ""
                    ax.plot(*zip(*points.items()), style, color=colour, marker=marker, ms=3, label=f"{name}: {key}")
        if keys == "explained_variance":  # an untrained critic can start at -50, which would flatten the rest
            ax.set_ylim(max(-1.0, ax.get_ylim()[0]), 1.0)
        ax.set(title=title, xlabel="step")
        ax.legend(fontsize=8, frameon=False) if ax.lines else None
    figure.savefig(path)


def reward_histograms(rewards: dict[str, np.ndarray], path) -> None:
    """A row an arm: its N*K*M rewards, their mean, and the outline of no fine-tuning to compare with."""
    flat = {arm: np.ravel(rewards[arm]).astype(float) for arm in ARMS if arm in rewards}
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
    ax.set(xlabel="KL to the reference, nats per rewrite (oracle: per answer)", ylabel="mean reward (hollow: gold; faint: PPO steps)")
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path)


def sweep_plot(list_of_results: list[dict], path) -> None:
    """A column a task: reward mean and variance of the paper's three arms; a thin line a seed, 95% t-intervals."""
    groups = _by_task(list_of_results)
    figure, axes = _figure(path, 2, max(1, len(groups)), (4.3 * max(1, len(groups)), 6.4))
    for column, (task, runs) in zip(axes.T, groups.items()):
        for ax, key, summary, paper in zip(column, ("mean", "variance"), ("gap_closed", "variance_ratio"), (1, 2)):
            table = [[_get(run, "arms", arm, key) for arm in TRIO] for run in runs]
            ax.plot(np.array(table, float).T, ".-", color="0.75")  # None becomes NaN, which is not drawn
            for place, (mean, half) in enumerate(map(_t_interval, zip(*table))):
                ax.errorbar(place, np.nan if mean is None else mean, half or 0, fmt="o", color=ARMS[TRIO[place]][1], capsize=5)
            ours, theirs = _t_interval([run.get(summary) for run in runs])[0], PAPER.get(task, [None] * 3)[paper]
            ax.set_title(f"{task}: {summary.replace('_', ' ')} {_num(ours, 2)} (paper {_num(theirs, 2)})", fontsize=10, parse_math=False)
            ax.set_xticks(range(3), [ARMS[arm][0] for arm in TRIO])
            ax.set(ylabel=f"{key} of the learned reward", xlim=(-0.4, 2.4))
    figure.savefig(path)


def headline(results: dict) -> str:
    """What happened, in plain words, from the numbers alone; says so when nothing was gained."""
    base, sft, ours = (_get(results, "arms", arm) for arm in ("no_finetuning", "untrained_prompter", "align_pro"))
    ci, gap, ratio = _get(ours, "difference", "ci95"), _get(results, "gap_closed"), _get(results, "variance_ratio")
    if not ci:
        return "This run did not compare Align-Pro with no fine-tuning."
    verdict = "raised the reward" if ci[0] > 0 else "lowered the reward" if ci[1] < 0 else "showed no gain: the interval covers zero"
    said = [f"Align-Pro {verdict} ({_num(_get(base, 'mean'))} to {_num(_get(ours, 'mean'))}, difference 95% CI {_num(ci)})."]
    if gap is not None:
        said.append(f"Share of the gap to the RLHF oracle closed: {_num(gap, 2)}.")
    if ratio is not None:
        said.append(f"The variance {'fell' if ratio < 1 else 'did not fall: it went'} to {_num(ratio, 2)} times no fine-tuning's.")
    if ci[0] > 0 and (_get(sft, "mean") or -math.inf) >= ours["mean"]:
        said.append("The SFT prompter did as well: RL added nothing.")
    before, after = _get(base, "gold_mean"), _get(ours, "gold_mean")
    if None not in (before, after):
        said.append(f"The gold reward {'rose' if after > before else 'did not rise'} ({_num(before)} to {_num(after)}).")
    return " ".join(said)


def variance_sentence(results: dict) -> str:
    """Names the part of the variance that fell the most from no fine-tuning to Align-Pro."""
    before, after = (_get(results, "arms", arm, "variance_parts") or {} for arm in TRIO[:2])
    falls = {part: before[part] - after[part] for part in before if None not in (before[part], after.get(part))}
    part = max(falls, key=falls.get, default="")
    if falls.get(part, 0) <= 0:
        return "No part of the variance was seen to fall from no fine-tuning to Align-Pro."
    return f"The part that fell the most is {part.replace('_', ' ')}: {_num(before[part])} to {_num(after[part])}."


_CSS = """:root{color-scheme:light dark} body{max-width:70rem;margin:auto;padding:1rem;font:16px/1.5 system-ui,sans-serif}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums} div,pre{overflow-x:auto}
td,th{padding:.35rem .6rem;border-bottom:1px solid #8886;text-align:left;vertical-align:top} img{max-width:100%;background:#fff}
.lead{font-size:1.15rem;border-left:4px solid #0072b2;padding-left:1rem} details{background:#8882;padding:.7rem 1rem;margin:1rem 0}"""


def _table(heads, rows) -> str:
    """An HTML table. The models' outputs are untrusted: every cell is escaped here."""
    lines = [("th", heads), *(("td", row) for row in rows)]
    return f"<div><table>{''.join('<tr>' + ''.join(f'<{t}>{escape(str(c))}</{t}>' for c in row) for t, row in lines)}</table></div>"


def write_report(run_dir: Path, results: dict, metrics: list[dict], samples: list[dict], rewards: dict[str, np.ndarray]) -> Path:
    """Write run_dir/plots/*.png and run_dir/report.html, one file without links to anything; returns its path."""
    names = ("reward_vs_kl", "reward_histograms", "learning_curves", "losses")
    plots = [Path(run_dir) / "plots" / f"{name}.png" for name in names]
    reward_vs_kl(results, metrics, plots[0])
    reward_histograms(rewards, plots[1])
    learning_curves(metrics, plots[2])
    learning_curves(metrics, plots[3], LOSS_PANELS)
    images = [f'<img alt="{p.stem}" src="data:image/png;base64,{base64.b64encode(p.read_bytes()).decode()}">' for p in plots]
    heads, rows = _arm_table(results)
    ppo = [s["step"] for s in samples if s["stage"] == "align_pro"] or [0]
    kept = [s for s in samples if s["stage"] == "evaluation" or s["stage"] == "align_pro" and s["step"] in (min(ppo), max(ppo))]
    before_after = [[s.get("x"), s.get("arm") or f"step {s['step']}", s.get("x_prime"), s.get("y"), _num(s.get("reward"), 2),
                     _num(s.get("kl"), 2)] for s in sorted(kept, key=lambda s: (s["stage"], str(s.get("x"))))]
    title = escape(f"Align-Pro: task {results.get('task')}, preset {results.get('preset')}, seed {results.get('seed')}")
    about = json.dumps({key: results.get(key) for key in ("n_eval", "wall_s", "config")}, indent=2, default=str)
    page = ['<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
            # Should any text ever slip past escape(), nothing may load or run.
            """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">""",
            f'<title>{title}</title><style>{_CSS}</style><h1>{title}</h1><p class="lead">{escape(headline(results))}</p><h2>Arms</h2>',
            _table(heads, rows), *(f"<br>{escape(note)}" for note in final_table(results).split("\n\n")[1].splitlines()),
            "<h2>Where the variance went</h2>", _table(heads[:1] + heads[3:7], [row[:1] + row[3:7] for row in rows]),
            f"<p>{variance_sentence(results)}</p><h2>Plots</h2>", *images, "<h2>Before and after</h2>",
            _table(["request x", "by", "rewrite x\u2032", "answer y", "reward", "KL"], before_after),
            f"<details><summary>Configuration and time</summary><pre>{escape(about)}</pre></details>",
            "<details><summary>Glossary of the metrics</summary>", _table(["metric", "meaning", "healthy", "a bad value means"],
            [[key, *row] for key, row in METRICS.items()]), "</details></html>"]
    out = Path(run_dir) / "report.html"
    out.write_text("\n".join(page), encoding="utf-8", errors="replace")  # a byte-level tokenizer may leave lone surrogates
    return out
