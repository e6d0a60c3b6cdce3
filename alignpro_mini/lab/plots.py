"""The pictures of a run, as PNG files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from alignpro_mini.lab.glossary import ARMS, TRIO
from alignpro_mini.lab.tables import get, num


@contextmanager
def default_style() -> Iterator[None]:
    """matplotlib with its own defaults, whatever the user's settings are. Also a decorator: `@default_style()`.

    Those may need what is not here: LaTeX (text.usetex), or the backend of a notebook that started this process.
    """
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    import matplotlib  # not at the top: importing it writes a font cache, and refuses an unknown backend

    if backend is not None:
        os.environ["MPLBACKEND"] = backend
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def new_figure(path, rows: int, cols: int, size: tuple[float, float], **share):
    """A figure of its own, drawn by Agg: pyplot and its global state are never touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure = FigureCanvasAgg(Figure(figsize=size, layout="constrained", dpi=110)).figure
    axes = figure.subplots(rows, cols, squeeze=False, **share)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    return figure, axes


PICTURE = (4.6, 3.6)  # inches; pictures of one panel each, which a narrow screen can stack
PPO = TRIO[1:]
PANELS = (  # stages (a colour each), title with its unit, metrics (a line style each)
    (PPO, "reward of the answers", "score_mean gold_mean"),
    (PPO, "KL, nats per sequence", "kl_k1 kl_k3 kl_exact"),
    (PPO, "length, tokens", "completion_length answer_length"),
    (PPO, "policy entropy, nats per token", "entropy"),
    (PPO, "clip fraction, share of tokens", "clip_fraction"),
    (PPO, "explained variance (best: 1)", "explained_variance"),
    (PPO, "value loss, reward²", "value_loss"),
    (PPO, "gradient norm, unclipped", "grad_norm"),
    (PPO, "share of completions", "missing_eos fallback_rate"),
    (("frozen_lm",), "frozen LM: loss, nats per token", "loss heldout_loss"),
    (("prompter_sft",), "prompter SFT: loss, nats per token", "loss heldout_loss"),
    (("reward_model",), "reward model: loss, nats per pair", "loss"),
    (("reward_model",), "reward model: accuracy, share of pairs", "accuracy heldout_accuracy"),
)


def series(metrics: list[dict], stage: str, key: str) -> dict[int, float]:
    """{step: value} in order; a step logged twice (a resumed run) keeps its last value."""
    found = {row["step"]: row[key] for row in metrics if row["stage"] == stage and get(row, key) is not None}
    return dict(sorted(found.items()))


def is_flat(metrics: list[dict], stages: Sequence[str], keys: str) -> bool:
    """Whether no metric of a panel ever changes."""
    return all(len(set(series(metrics, s, key).values())) < 2 for s in stages for key in keys.split())


def robust_limits(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest value to draw: all of them, but for the few that lie far outside the others.

    Far: more than the distance of the 5 % and the 95 % quantile beyond one of these. Example: 99 values between 0 and
    1, and one 30 -> an upper limit below 2.
    """
    low, high = np.quantile(values, (0.05, 0.95))
    room = high - low if high > low else np.inf
    return max(min(values), low - room), min(max(values), high + room)


def _cut(ax, lines: list[dict[int, float]]) -> None:
    """Give the axes robust limits; a triangle marks a point outside, and the farthest one says its value."""
    low, high = robust_limits([value for points in lines for value in points.values()])
    margin = 0.05 * (high - low) or 0.5
    ax.set_ylim(low - margin, high + margin)
    outside = [(step, value) for points in lines for step, value in points.items() if not low <= value <= high]
    for edge, marker, farthest, side in ((low - margin, "v", min, "bottom"), (high + margin, "^", max, "top")):
        beyond = [(step, value) for step, value in outside if (value > high) == (side == "top")]
        for step, _ in beyond:
            ax.plot(step, edge, marker, color="black", markersize=4, clip_on=False)
        if beyond:
            step, value = farthest(beyond, key=lambda point: point[1])
            ax.annotate(num(value), (step, edge), (4, 0), textcoords="offset points", va=side, fontsize=8)


@default_style()
def panel(metrics: list[dict], path, stages: Sequence[str], title: str, keys: str) -> None:
    """The logged metrics `keys` of `stages` against the step: one of PANELS."""
    figure, ((ax,),) = new_figure(path, 1, 1, PICTURE)
    lines = []
    for stage in stages:
        name, colour = ARMS.get(stage, (stage, "#d55e00"))
        for key, style in zip(keys.split(), ("-", "--", ":")):
            if points := series(metrics, stage, key):
                dots = "." * (len(points) < 9)
                ax.plot(*zip(*points.items()), style, c=colour, lw=1, marker=dots, label=f"{name}: {key}")
                lines.append(points)
    _cut(ax, lines)
    ax.set(title=title, xlabel="step")
    # The legend stands below the panel, where it hides no curve.
    ax.legend(fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    figure.savefig(path)


def _arms(results: dict, path):
    """(figure, axes, arms from the top down) of a picture with a row for each arm."""
    figure, ((ax,),) = new_figure(path, 1, 1, PICTURE)
    arms = {arm: get(results, "arms", arm) for arm in ARMS}
    arms = {arm: value for arm, value in arms.items() if get(value, "mean") is not None}
    ax.set_yticks(range(len(arms)), [ARMS[arm][0] for arm in arms])
    ax.invert_yaxis()
    return figure, ax, arms


@default_style()
def arms_reward(results: dict, path) -> None:
    """The mean reward of each arm with its 95 % interval; hollow points: the gold reward."""
    figure, ax, arms = _arms(results, path)
    for row, (name, arm) in enumerate(arms.items()):
        colour, mean, gold = ARMS[name][1], arm["mean"], get(arm, "gold_mean")
        ax.plot(get(arm, "ci95") or [mean, mean], [row, row], color=colour, linewidth=3)
        ax.plot(mean, row, "o", color=colour)
        ax.plot(np.nan if gold is None else gold, row, "o", mfc="white", color=colour)
    ax.set(title="mean reward", xlabel="● learned, 95 % interval   ○ gold")
    figure.savefig(path)


@default_style()
def arms_variance(results: dict, path) -> None:
    """The variance of each arm's learned reward in its three parts, one behind the other."""
    figure, ax, arms = _arms(results, path)
    left = np.zeros(len(arms))
    for part, colour in zip(("within", "between_rewrites", "between_inputs"), ("#0072b2", "#56b4e9", "#c9ced6")):
        width = np.array([get(arm, "variance_parts", part) or 0.0 for arm in arms.values()])
        ax.barh(range(len(arms)), width, left=left, color=colour, label=part.replace("_", " "))
        left = left + width
    ax.set(title="variance of the learned reward", xlabel="reward²; without the grey part: within requests")
    ax.legend(fontsize=8, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.4, -0.17))
    figure.savefig(path)


@default_style()
def reward_histograms(rewards: dict[str, np.ndarray], path) -> None:
    """A row an arm: its rewards (N inputs, K rewrites, M answers), their mean, and no fine-tuning's outline."""
    flat = {arm: np.ravel(rewards.get(arm, [])).astype(float) for arm in ARMS}
    flat = {arm: r[np.isfinite(r)] for arm, r in flat.items() if np.isfinite(r).any()}
    bins = np.histogram_bin_edges(np.concatenate([np.zeros(0), *flat.values()]), 40)
    size = (PICTURE[0], 0.62 * len(flat) + 0.6)
    figure, axes = new_figure(path, max(1, len(flat)), 1, size, sharex=True, sharey=True)
    for ax, (arm, r) in zip(axes.flat, flat.items()):
        ax.hist(r, bins, density=True, color=ARMS[arm][1], alpha=0.7)
        ax.hist(flat.get(TRIO[0], []), bins, density=True, histtype="step", color="black")
        ax.axvline(r.mean(), color=ARMS[arm][1], linewidth=2)
        title = f"{ARMS[arm][0]}: mean {num(r.mean())} (line), variance {num(r.var(ddof=1))}"
        ax.set_title(title, loc="left", fontsize=9)
        ax.set_yticks([])
    axes[-1, 0].set_xlabel("learned reward of an answer; outline: no fine-tuning")
    figure.savefig(path)
