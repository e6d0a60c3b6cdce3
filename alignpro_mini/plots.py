"""The pictures of a run and of a sweep, as PNG files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from alignpro_mini.tables import ARMS, PAPER, TRIO, by_task, get, grid_cells, num, t_interval


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
    found = {row["step"]: row[key] for row in metrics if row["stage"] == stage and get(row, key) is not None}
    return dict(sorted(found.items()))


PPO = TRIO[1:]
PPO_PANELS = (  # stages (a colour each), title with its unit, metrics (a line style each)
    (PPO, "reward of the answers", "score_mean gold_mean"),
    (PPO, "KL, nats per sequence", "kl_k1 kl_k3 kl_exact"),
    (PPO, "length, tokens", "rewrite_length answer_length"),
    (PPO, "policy entropy, nats per token", "entropy"),
    (PPO, "clip fraction, share of tokens", "clip_fraction"),
    (PPO, "explained variance (best: 1)", "explained_variance"),
    (PPO, "value loss, reward²", "value_loss"),
    (PPO, "gradient norm, unclipped", "grad_norm"),
    (PPO, "share of completions", "missing_eos empty_rewrites"),
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
                    ax.plot(
                        *zip(*points.items()), style, c=colour, marker="." * (len(points) < 9), label=f"{name}: {key}"
                    )
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
        ax.set_title(
            f"{ARMS[arm][0]}: mean {num(r.mean())} (line), variance {num(r.var(ddof=1))}", loc="left", fontsize=10
        )
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
        mean, kl, gold, ci = (get(results, "arms", arm, key) for key in ("mean", "kl", "gold_mean", "ci95"))
        if mean is not None and arm == TRIO[0]:
            ax.axhline(mean, color=colour, linestyle="--", label=f"{name}: {num(mean)}")
        elif mean is not None and kl is not None:
            ax.plot([kl, kl], ci or [mean, mean], color=colour, linewidth=2)
            ax.plot(kl, mean, "o", color=colour, label=f"{name}: {num(mean)} at {num(kl, 2)} nats")
            ax.plot(kl, np.nan if gold is None else gold, "o", mfc="white", color=colour)
    ax.set(xlabel="KL to the reference, nats per rewrite (oracle: per answer)", ylabel="mean reward")
    if ax.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper", frameon=False, title="● learned  ○ gold  faint: PPO steps")
    figure.savefig(path)


def sweep_plot(list_of_results: list[dict], path) -> None:
    """A column a task: reward mean and variance of the paper's three arms; a thin line a seed, 95% t-intervals."""
    groups = by_task(list_of_results)
    figure, axes = _figure(path, 2, max(1, len(groups)), (4.3 * max(1, len(groups)), 6.4))
    for column, (task, runs) in zip(axes.T, groups.items()):
        for ax, key, summary, paper in zip(column, ("mean", "variance"), ("gap_closed", "variance_ratio"), (1, 2)):
            table = [[get(run, "arms", arm, key) for arm in TRIO] for run in runs]
            ax.plot(np.array(table, float).T, ".-", color="0.75")  # None becomes NaN, which is not drawn
            for x, arm, (mean, half) in zip(range(3), TRIO, map(t_interval, zip(*table))):
                ax.errorbar(
                    x, np.nan if mean is None else mean, half or 0, fmt="o", c=ARMS[arm][1], capsize=5, zorder=3
                )
            ours, theirs = t_interval([run.get(summary) for run in runs])[0], PAPER.get(task, [None] * 3)[paper]
            title = f"{task}: {summary.replace('_', ' ')} {num(ours, 2)} (paper {num(theirs, 2)})"
            ax.set_title(title, fontsize=10, parse_math=False)
            ax.set_xticks(range(3), [ARMS[arm][0] for arm in TRIO])
            ax.set(ylabel=f"{key} of the learned reward", xlim=(-0.4, 2.4))
    figure.savefig(path)


def grid_figure(groups: list[dict], path) -> None:
    """The paper's figure: a column a task; reward mean above, variance below; three bars a cell.

    Error bars are 95% t-intervals over seeds. A single seed has none: its mean gets the bootstrap interval over requests
    instead, its variance nothing.
    """
    cells, tasks = grid_cells(groups), list(by_task(groups))
    figure, axes = _figure(path, 2, max(1, len(tasks)), (4.6 * max(1, len(tasks)), 6.8))
    for column, task in zip(axes.T, tasks):
        names = [cell for t, cell in cells if t == task]
        for ax, key in zip(column, ("mean", "variance")):
            for i, arm in enumerate(TRIO):
                found = [t_interval([get(r, "arms", arm, key) for r in cells[task, cell]]) for cell in names]
                where, heights = np.arange(len(names)) + 0.27 * (i - 1), [np.nan if m is None else m for m, _ in found]
                ax.bar(where, heights, 0.25, color=ARMS[arm][1], label=ARMS[arm][0])
                for x, (mean, half), cell in zip(where, found, names):
                    single = get(cells[task, cell][0], "arms", arm, "ci95") if key == "mean" else None
                    low, high = (mean - half, mean + half) if half is not None else single or (np.nan, np.nan)
                    ax.errorbar(x, (low + high) / 2, (high - low) / 2, color="black", linewidth=1, capsize=3)
            ax.axhline(0, color="black", linewidth=0.6)
            ax.set_xticks(range(len(names)), names)
            seeds = max(len(cells[task, cell]) for cell in names)
            ax.set(title=f"{task}, {seeds} seed{'s' if seeds > 1 else ''}", ylabel=f"{key} of the learned reward")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path)


PARTS = (("between_inputs", "#e69f00"), ("between_rewrites", "#cc79a7"), ("within", "#56b4e9"))


def variance_figure(groups: list[dict], path) -> None:
    """Which part of the variance falls: a column a task, a bar an arm and cell, its three parts on top of each other."""
    cells, tasks = grid_cells(groups), list(by_task(groups))
    figure, axes = _figure(path, 1, max(1, len(tasks)), (4.6 * max(1, len(tasks)), 4.2))
    for ax, task in zip(axes.flat, tasks):
        names = [cell for t, cell in cells if t == task]
        for i, arm in enumerate(TRIO):
            where, base = np.arange(len(names)) + 0.27 * (i - 1), np.zeros(len(names))
            for part, colour in PARTS:
                height = [
                    t_interval([get(r, "arms", arm, "variance_parts", part) for r in cells[task, cell]])[0] or 0.0
                    for cell in names
                ]
                height = np.maximum(height, 0.0)  # an unbiased part near 0 may come out a little below it
                ax.bar(where, height, 0.25, bottom=base, color=colour, label=part.replace("_", " ") if i == 0 else None)
                base = base + height
            for x, top in zip(where, base):
                ax.text(x, top, " " + ARMS[arm][0], rotation=90, ha="center", va="bottom", fontsize=6)
        ax.set_xticks(range(len(names)), names)
        ax.set(title=task, ylabel="variance of the learned reward")
        ax.set_ylim(0, 1.35 * ax.get_ylim()[1])  # room for the arms' names
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path)


def frontier_figure(results: dict, path) -> None:
    """Reward against KL: the closed form as two curves about the truth, the others as points with their lambda or n; beside it the variance."""
    figure, ((ax, spread),) = _figure(path, 1, 2, (13, 5.6))
    curve, name, colour = results["closed_form"], *ARMS["closed_form"]
    for part, shade in PARTS[1:]:
        spread.plot([p["kl"] for p in curve], [p[part] for p in curve], color=shade, label=part.replace("_", " "))
    spread.plot(
        [p["kl"] for p in curve], [p["between_rewrites"] + p["within"] for p in curve], color="black", label="both"
    )
    spread.set(
        xlabel="KL of the optimum to the reference, nats",
        ylabel="variance of the reward for one request",
        ylim=(0, None),
    )
    spread.set_title("the variance along the closed form")
    spread.legend(frameon=False)
    ax.plot(
        [p["kl"] for p in curve],
        [p["mean"] for p in curve],
        color=colour,
        linewidth=2,
        label=f"{name}, flattered by the noise in R",
    )
    ax.plot(
        [p["kl_held_out"] for p in curve],
        [p["mean_held_out"] for p in curve],
        "--",
        color=colour,
        linewidth=2,
        label=f"{name}, chosen by half of the answers, rated by the rest",
    )
    series = (  # each arm's marks on a side of their own: the points lie close
        ("align_pro", "λ {lam:g}", results["align_pro"], "kl", "mean", (4, -13)),
        ("best_of_n", "n {n}", results["best_of_n"], "kl", "mean", (-22, 6)),
        (
            "rlhf_oracle",
            "β {lam:g}",
            [p for p in results["align_pro"] if "rlhf_kl" in p],
            "rlhf_kl",
            "rlhf_mean",
            (5, 5),
        ),
    )
    for arm, mark, points, x, y, (dx, dy) in series:
        name, colour = ARMS[arm]
        label = f"{name} (KL of answers: another budget)" if arm == "rlhf_oracle" else name
        ax.plot([p[x] for p in points], [p[y] for p in points], "o", color=colour, label=label)
        for i, p in enumerate(sorted(points, key=lambda p: p[x])):
            place = (
                dx,
                dy + i % 2 * math.copysign(10, dy),
            )  # every second mark a line further out: neighbours may nearly coincide
            ax.annotate(
                mark.format(**p), (p[x], p[y]), xytext=place, textcoords="offset points", fontsize=8, color=colour
            )
    ax.axhline(results["no_finetuning"], color=ARMS[TRIO[0]][1], linestyle="--", label=ARMS[TRIO[0]][0])
    ax.set(
        xlabel="KL to the reference, nats",
        ylabel="mean reward",
        title=f"task {results['task']}, seed {results['seed']}",
    )
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path)
