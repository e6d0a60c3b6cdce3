"""The frontier's tables and figures, from the numbers that its runs left behind."""

from __future__ import annotations

import math

import numpy as np

from alignpro_mini.lab.glossary import ARMS, TRIO
from alignpro_mini.lab.plots import new_figure
from alignpro_mini.lab.statistics import t_interval
from alignpro_mini.lab.sweep import by_task
from alignpro_mini.lab.tables import aligned, num, over_seeds


def frontier_table(runs: list[dict]) -> str:
    """Per run a row for each lambda: Align-Pro beside its share of the attainable gain, RLHF; then best-of-n."""
    digits = {"kl": 2, "mean": 3, "attainable_gain_share": 3, "mass_outside": 3, "rlhf_kl": 2, "rlhf_mean": 3}
    blocks = []
    for run in runs:
        rows = [["λ", "KL", "reward", "attain. share", "not enumerated", "RLHF: KL of answers", "reward"]]
        rows += [[f"{p['lam']:g}", *(num(p.get(key), d) for key, d in digits.items())] for p in run["align_pro"]]
        best = [["n", "KL", "bound", "reward"]]
        best += [[str(p["n"]), num(p["kl"], 2), num(p["kl_bound"], 2), num(p["mean"])] for p in run["best_of_n"]]
        title = f"task {run['task']}, seed {run['seed']}; no fine-tuning {num(run['no_finetuning'])}"
        blocks.append(f"{title}\n{aligned(rows)}\n\nbest-of-n\n{aligned(best)}")
    return "\n\n".join(blocks)


def frontier_figure(results: dict, path) -> None:
    """Reward against KL: the closed form as curves, the others as points with lambda or n; beside it the variance."""
    figure, ((ax, spread),) = new_figure(path, 1, 2, (13, 5.6))
    curve, name, colour = results["closed_form"], *ARMS["closed_form"]
    along = {key: np.array([p[key] for p in curve]) for key in curve[0]}
    for values, shade, label in (
        (along["between_rewrites"], "#cc79a7", "between rewrites"),
        (along["within"], "#56b4e9", "within"),
        (along["between_rewrites"] + along["within"], "black", "both"),
    ):
        spread.plot(along["kl"], values, color=shade, label=label)
    spread.set(xlabel="KL of the optimum to the reference, nats", ylabel="variance of the reward for one request")
    spread.set(ylim=(0, None), title="the variance along the closed form")
    spread.legend(frameon=False)
    for end, style, label in (("", "-", "rated by the same answers"), ("_held_out", "--", "rated by other answers")):
        ax.plot(along[f"kl{end}"], along[f"mean{end}"], style, color=colour, lw=2, label=f"{name}, {label}")
    rlhf = [p for p in results["align_pro"] if "rlhf_kl" in p]
    series = (  # each arm's marks on a side of their own: the points lie close
        ("align_pro", "", "λ {lam:g}", results["align_pro"], "kl", "mean", (4, -13)),
        ("best_of_n", "", "n {n}", results["best_of_n"], "kl", "mean", (-22, 6)),
        ("rlhf_oracle", " (KL of answers)", "β {lam:g}", rlhf, "rlhf_kl", "rlhf_mean", (5, 5)),
    )
    for arm, note, mark, points, x, y, (dx, dy) in series:
        name, colour = ARMS[arm]
        ax.plot([p[x] for p in points], [p[y] for p in points], "o", color=colour, label=name + note)
        for i, p in enumerate(sorted(points, key=lambda p: p[x])):
            place = dx, dy + i % 2 * math.copysign(10, dy)  # every second mark further out: neighbours may coincide
            where = {"xytext": place, "textcoords": "offset points", "fontsize": 8, "color": colour}
            ax.annotate(mark.format(**p), (p[x], p[y]), **where)
    ax.axhline(results["no_finetuning"], color=ARMS[TRIO[0]][1], linestyle="--", label=ARMS[TRIO[0]][0])
    title = f"task {results['task']}, seed {results['seed']}"
    ax.set(xlabel="KL to the reference, nats", ylabel="mean reward", title=title)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path)


def at_matched_kl(run: dict, point: dict) -> float | None:
    """The oracle's reward at this point's KL of answers, by straight lines in the root of the KL between its points.

    The root, because a reward rises about with it near the start: lines in the KL would lie below the oracle's curve.
    None beyond the oracle's largest KL, or without an oracle.
    """
    if point.get("answer_kl") is None or "rlhf_kl" not in point:
        return None
    curve = sorted([(0.0, run["no_finetuning"]), *((p["rlhf_kl"], p["rlhf_mean"]) for p in run["align_pro"])])
    if point["answer_kl"] > curve[-1][0]:
        return None
    kl, mean = zip(*curve)
    return float(np.interp(max(point["answer_kl"], 0.0) ** 0.5, np.sqrt(np.maximum(kl, 0.0)), mean))


def _gap(run: dict, point: dict) -> float | None:
    """Share of the oracle's gain; None where that gain is not shown."""
    shown = point.get("rlhf_gain_ci95", [0.0])[0] > 0
    return (point["mean"] - run["no_finetuning"]) / point["rlhf_gain"] if shown else None


def beta_table(runs: list[dict]) -> str:
    """Align-Pro and the oracle at the same KL coefficient and at the same KL of answers, means over the seeds."""
    heads = ["task", "λ = β", "Align-Pro", "its KL of answers", "oracle", "its KL", "gap closed, same coefficient"]
    rows = [[*heads, "Align-Pro - oracle, same KL of answers"]]
    for task, mine in by_task(runs).items():
        for i, point in enumerate(mine[0]["align_pro"]):
            points = [(run, run["align_pro"][i]) for run in mine]
            told = [
                over_seeds([p.get(key) for _, p in points]) for key in ("mean", "answer_kl", "rlhf_mean", "rlhf_kl")
            ]
            told.append(over_seeds([_gap(run, p) for run, p in points]))
            best = [(p["mean"], at_matched_kl(run, p)) for run, p in points]
            told.append(over_seeds([None if theirs is None else ours - theirs for ours, theirs in best]))
            rows.append([task, f"{point['lam']:g}", *told])
    return aligned(rows)


def objective_table(runs: list[dict]) -> str:
    """What RLHF maximises, J - beta KL of answers: Align-Pro's, the oracle's, and the least that the optimum has.

    The share is the most that the oracle takes of the optimum's gain over no fine-tuning.
    """
    less = lambda p, mean, kl: None if p.get(kl) is None else p[mean] - p["lam"] * p[kl]
    rows = [["task", "λ = β", "J - β KL: no fine-tuning", "Align-Pro", "oracle", "optimum, at least", "oracle's share"]]
    for task, mine in by_task(runs).items():
        for points in zip(*(run["align_pro"] for run in mine)):
            told = [[run["no_finetuning"] for run in mine], [less(p, "mean", "answer_kl") for p in points]]
            told += [[less(p, "rlhf_mean", "rlhf_kl") for p in points], [p.get("rlhf_optimum") for p in points]]
            start, _, oracle, best = told
            told.append([None if b is None or b <= n else (o - n) / (b - n) for n, o, b in zip(start, oracle, best)])
            rows.append([task, f"{points[0]['lam']:g}", *(over_seeds(each) for each in told)])
    return aligned(rows)


def beta_figure(runs: list[dict], path) -> None:
    """A row a task: reward against the KL coefficient, and against the KL of answers; means and 95 % intervals."""
    tasks = by_task(runs)
    figure, axes = new_figure(path, len(tasks), 2, (12, 4.2 * len(tasks)))
    for (left, right), (task, mine) in zip(axes, tasks.items()):
        count = len(mine[0]["align_pro"])
        column = lambda key, m=mine, n=count: [t_interval([r["align_pro"][i].get(key) for r in m]) for i in range(n)]
        lams, start = [p["lam"] for p in mine[0]["align_pro"]], np.mean([run["no_finetuning"] for run in mine])
        for arm, mean, kl, mark in (
            ("align_pro", "mean", "answer_kl", "o"),
            ("rlhf_oracle", "rlhf_mean", "rlhf_kl", "s"),
        ):
            name, colour = ARMS[arm]
            if any(m is None for m, _ in column(mean)):
                continue
            where = {"fmt": f"{mark}-", "color": colour, "label": name, "capsize": 3}
            left.errorbar(lams, [m for m, _ in column(mean)], [h or 0 for _, h in column(mean)], **where)
            if all(m is not None for m, _ in column(kl)):
                x = [m for m, _ in column(kl)]
                right.errorbar(x, [m for m, _ in column(mean)], [h or 0 for _, h in column(mean)], **where)
        name, grey = ARMS[TRIO[0]]
        for ax in (left, right):
            ax.axhline(start, color=grey, linestyle="--", label=name)
            ax.set(ylabel="mean reward", title=f"{task}, {len(mine)} seeds")
        left.set(xscale="log", xlabel="KL coefficient: λ of Align-Pro, β of the oracle")
        left.set_xticks(lams, [f"{lam:g}" for lam in lams])
        left.minorticks_off()
        right.set(xlabel="KL of the answers to those of no fine-tuning, nats")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path)
