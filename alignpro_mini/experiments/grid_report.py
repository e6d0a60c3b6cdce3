"""The grid's table and figures, from the numbers that its groups left behind."""

from __future__ import annotations

import numpy as np

from alignpro_mini.lab import sweep
from alignpro_mini.lab.glossary import ARMS, TRIO
from alignpro_mini.lab.paper import CELLS, PAPER_CELLS
from alignpro_mini.lab.plots import new_figure
from alignpro_mini.lab.tables import aligned, get, num, over_seeds

PARTS = (("between_inputs", "#e69f00"), ("between_rewrites", "#cc79a7"), ("within", "#56b4e9"))


def grid_cells(groups: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """{(task, cell): its results, a seed each} of the groups that `grid.run_group` returns."""
    found = {}
    for task, runs in sweep.by_task(groups).items():
        found |= {(task, cell): [g["cells"][cell] for g in runs if cell in g["cells"]] for cell in CELLS}
    return {key: results for key, results in found.items() if results}


def _six(runs: list[dict]) -> list[float]:
    """Mean, then variance, of the three arms, averaged over seeds, in the order of PAPER_CELLS."""
    return [sweep.seed_mean(runs, "arms", arm, key)[0] for key in ("mean", "variance") for arm in TRIO]


def grid_counts(sixes: list) -> dict[str, tuple[int, int]]:
    """{claim: (k, n)} over cells, each six numbers as in PAPER_CELLS; None where no oracle was trained."""
    claims = {
        sweep.BETWEEN: [s[0] < s[1] < s[2] for s in sixes if s[2] is not None],
        "variance below no fine-tuning": [s[4] < s[3] for s in sixes],
        "variance below the oracle": [s[4] < s[5] for s in sixes if s[5] is not None],
    }
    return {claim: (sum(held), len(held)) for claim, held in claims.items()}


def grid_table(groups: list[dict]) -> str:
    """Cell by cell, means over seeds with 95% t-intervals; the counts beside the paper's own; variance, time."""
    cells = grid_cells(groups)
    heads = (
        "||mean|mean|mean|var.|var.|var.|gap closed|var. ratio|gold var.|attain.|not",
        "task|cell|No-FT|Align-Pro|Oracle|No-FT|Align-Pro|Oracle|± 95%|± 95%|ratio|share|enum.",
    )
    rows = [head.split("|") for head in heads]
    for (task, cell), runs in cells.items():
        of = lambda *keys, rs=runs: over_seeds(get(run, *keys) for run in rs)
        told = [of("arms", arm, key) for key in ("mean", "variance") for arm in TRIO]
        keys = ("gap_closed", "variance_ratio", "gold_variance_ratio")
        gap, ratio, gold = map(of, keys)
        near = (num(sweep.seed_mean(runs, "theory", key)[0], 3) for key in ("attainable_gain_share", "mass_outside"))
        rows.append([task, cell, *told, gap, ratio, gold, *near])
    every = [run for runs in cells.values() for run in runs]
    ours, each = grid_counts([_six(runs) for runs in cells.values()]), grid_counts([_six([run]) for run in every])
    paper = grid_counts(list(PAPER_CELLS.values()))
    said = []
    for claim, (k, n) in paper.items():
        cells_too = f"{ours[claim][0]} of {ours[claim][1]} cells, {each[claim][0]} of {each[claim][1]} single runs"
        said.append(f"  {claim}: {cells_too} (paper: {k} of {n} cells)")
    said += sweep.claim_lines({c: kn for c, kn in sweep.sweep_counts(every).items() if c not in paper}, " single runs")
    for task in sweep.by_task(groups):
        runs = [run for (t, _), found in cells.items() if t == task for run in found]
        said += ["", f"task {task}, all cells", *sweep.variance_lines(runs, False), *sweep.right_answers(runs)]
    return "\n".join([sweep.coefficients(every), aligned(rows), "", *said, "", *_time_lines(groups)])


def _time_lines(groups: list[dict]) -> list[str]:
    """How long the stages took, those of an earlier command included."""
    seconds = [sum(g["wall_s"].values()) for g in groups if g.get("wall_s")]
    if not seconds:
        return []
    each = f"{min(seconds) / 60:.0f} to {max(seconds) / 60:.0f} minutes a task and seed"
    return [f"  all stages of all parts: {sum(seconds) / 3600:.2f} hours one after the other, {each}"]


def grid_figure(groups: list[dict], path) -> None:
    """The paper's figure: a column a task; reward mean above, variance below; three bars a cell.

    Error bars are 95% t-intervals over seeds. A single seed has none: its mean gets the bootstrap interval over
    requests instead, its variance nothing.
    """
    cells, tasks = grid_cells(groups), list(sweep.by_task(groups))
    figure, axes = new_figure(path, 2, max(1, len(tasks)), (4.6 * max(1, len(tasks)), 6.8))
    for column, task in zip(axes.T, tasks):
        names = [cell for t, cell in cells if t == task]
        for ax, key in zip(column, ("mean", "variance")):
            for i, arm in enumerate(TRIO):
                found = [sweep.seed_mean(cells[task, cell], "arms", arm, key) for cell in names]
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


def variance_figure(groups: list[dict], path) -> None:
    """Which variance component falls: a column a task, a bar an arm and cell, the three components stacked."""
    cells, tasks = grid_cells(groups), list(sweep.by_task(groups))
    figure, axes = new_figure(path, 1, max(1, len(tasks)), (4.6 * max(1, len(tasks)), 4.2))
    for ax, task in zip(axes.flat, tasks):
        names = [cell for t, cell in cells if t == task]
        for i, arm in enumerate(TRIO):
            where, base = np.arange(len(names)) + 0.27 * (i - 1), np.zeros(len(names))
            for part, colour in PARTS:
                where_from = ("arms", arm, "variance_parts", part)
                height = [sweep.seed_mean(cells[task, cell], *where_from)[0] or 0.0 for cell in names]
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
