"""The pictures of a run, as PNG files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
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


def _series(metrics: list[dict], stage: str, key: str) -> dict[int, float]:
    """{step: value} in order; a step logged twice (a resumed run) keeps its last value."""
    found = {row["step"]: row[key] for row in metrics if row["stage"] == stage and get(row, key) is not None}
    return dict(sorted(found.items()))


PPO = TRIO[1:]
PPO_PANELS = (  # stages (a colour each), title with its unit, metrics (a line style each)
    (PPO, "reward of the answers", "score_mean gold_mean"),
    (PPO, "KL, nats per sequence", "kl_k1 kl_k3 kl_exact"),
    (PPO, "length, tokens", "completion_length answer_length"),
    (PPO, "policy entropy, nats per token", "entropy"),
    (PPO, "clip fraction, share of tokens", "clip_fraction"),
    (PPO, "explained variance (best: 1)", "explained_variance"),
    (PPO, "value loss, reward²", "value_loss"),
    (PPO, "gradient norm, unclipped", "grad_norm"),
    (PPO, "share of completions", "missing_eos fallback_rate"),
)
LOSS_PANELS = (
    (("frozen_lm",), "frozen LM: loss, nats per token", "loss heldout_loss"),
    (("prompter_sft",), "prompter SFT: loss, nats per token", "loss heldout_loss"),
    (("reward_model",), "reward model: loss, nats per pair", "loss"),
    (("reward_model",), "reward model: accuracy, share of pairs", "accuracy heldout_accuracy"),
)


@default_style()
def learning_curves(metrics: list[dict], path, panels=PPO_PANELS) -> None:
    """Small multiples of the logged metrics: PPO's by default, those of the stages before it with LOSS_PANELS."""
    cols = 3 if panels is PPO_PANELS else len(panels)
    figure, axes = new_figure(path, len(panels) // cols, cols, (4.4 * cols, 3.5 * (len(panels) // cols)))
    for ax, (stages, title, keys) in zip(axes.flat, panels):
        for stage in stages:
            name, colour = ARMS.get(stage, (stage, "#d55e00"))
            for key, style in zip(keys.split(), ("-", "--", ":")):
                if points := _series(metrics, stage, key):
                    dots = "." * (len(points) < 9)
                    ax.plot(*zip(*points.items()), style, c=colour, marker=dots, label=f"{name}: {key}")
        if keys == "explained_variance":  # an untrained critic can start at -50, which would flatten the rest
            ax.set_ylim(max(-1.0, ax.get_ylim()[0]), 1.0)
        ax.set(title=title, xlabel="step")
        if ax.lines:  # the legend stands below the panel, where it hides no curve
            ax.legend(fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    figure.savefig(path)


@default_style()
def reward_histograms(rewards: dict[str, np.ndarray], path) -> None:
    """A row an arm: its rewards (N inputs, K rewrites, M answers), their mean, and no fine-tuning's outline."""
    flat = {arm: np.ravel(rewards.get(arm, [])).astype(float) for arm in ARMS}
    flat = {arm: r[np.isfinite(r)] for arm, r in flat.items() if np.isfinite(r).any()}
    bins = np.histogram_bin_edges(np.concatenate([np.zeros(0), *flat.values()]), 40)
    figure, axes = new_figure(path, max(1, len(flat)), 1, (8.4, 1.4 * len(flat) + 1), sharex=True, sharey=True)
    for ax, (arm, r) in zip(axes.flat, flat.items()):
        ax.hist(r, bins, density=True, color=ARMS[arm][1], alpha=0.7)
        ax.hist(flat.get(TRIO[0], []), bins, density=True, histtype="step", color="black")
        ax.axvline(r.mean(), color=ARMS[arm][1], linewidth=2)
        title = f"{ARMS[arm][0]}: mean {num(r.mean())} (line), variance {num(r.var(ddof=1))}"
        ax.set_title(title, loc="left", fontsize=10)
        ax.set_ylabel("density")
    axes[-1, 0].set_xlabel("learned reward of an answer, r(x, y); outline: no fine-tuning")
    figure.savefig(path)


@default_style()
def reward_vs_kl(results: dict, metrics: list[dict], path) -> None:
    """Mean reward against KL: PPO steps (faint), the evaluated arms with 95% intervals; hollow points: gold reward."""
    figure, ((ax,),) = new_figure(path, 1, 1, (8.4, 4.4))
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
