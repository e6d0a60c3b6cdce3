"""What the tutorials share: figures that show in a notebook and in no window, `FAST=1`, and one trained run for all.

FAST=1 python tutorials/01_reward_without_touching_the_lm.py      # --preset micro: seconds, for the tests
"""

from __future__ import annotations

import inspect
import io
import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # before torch is imported: waiting threads do not spin

from alignpro_mini.training import SilentStage  # noqa: E402

FAST = os.environ.get("FAST") == "1"
HERE = Path(__file__).resolve().parent
BLUE, ORANGE, GREEN, PINK, GREY = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#6b7280"


def axes(rows: int = 1, cols: int = 1, size: tuple[float, float] = (7.0, 3.2)):
    """(figure, axes array (rows, cols)) in the style of the package's plots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = FigureCanvasAgg(Figure(figsize=size, layout="constrained", dpi=90)).figure
    found = figure.subplots(rows, cols, squeeze=False)
    for ax in found.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    return figure, found


def show(figure) -> None:
    """Display the figure under a notebook's cell; as a script, draw it and show nothing."""
    data = io.BytesIO()
    figure.savefig(data, format="png")
    if "ipykernel" in sys.modules:
        from IPython.display import Image, display

        display(Image(data=data.getvalue()))


def source(function) -> None:
    """Print the package's own code of a function."""
    print(inspect.getsource(function).rstrip())


def check(mine, right, *cases, within: float = 1e-6) -> None:
    """Print whether an exercise is solved: a value, or a function that is called with each of `cases` (tuples).

    mine    the reader's value or function; None, or a function that returns None, is not solved yet
    right   the right value, or a list of them, one for each case; None where it waits for another part of the exercise
    within  numbers and tensors may differ by this much
    """
    import torch

    for case, wanted in zip(cases, right) if cases else [(None, right)]:
        found = mine if case is None else mine(*case)
        if found is None or wanted is None:
            return print("not solved yet")
        if isinstance(wanted, str | bool) or isinstance(found, str):
            same = found == wanted
        else:
            found, wanted = (torch.as_tensor(value, dtype=torch.float64) for value in (found, wanted))
            same = found.shape == wanted.shape and bool(((found - wanted).abs() <= within).all())
        if not same:
            where = "" if case is None else f" for {', '.join(str(each) for each in case)}"
            return print(f"not right{where if len(where) < 90 else ''}: {found}; it should be {wanted}")
    print("right")


def quietly(function, *args, **kwargs):
    """Call without its printed output: progress lines differ from machine to machine."""
    with redirect_stdout(io.StringIO()):
        return function(*args, **kwargs)


class Log(SilentStage):
    """A training stage that keeps its log rows in memory; `each(step)` is called at every report."""

    def __init__(self, each=lambda step: None) -> None:
        self.each, self.rows = each, []

    def log(self, step: int, metrics: dict, samples=()) -> None:
        self.rows.append({"step": step} | metrics)
        self.each(step)


def shared_run(until: str):
    """The stages of `train.py` up to `until`, on one run folder that all tutorials share: finished stages are loaded.

    Returns an object with config, world, run, tokenizer, pi_f, rho_sft, reward, rho, oracle, rated, listing, arms and
    results, as far as they exist by then. `until` is one of STAGES. On two cores the whole takes about ten minutes.
    """
    from dataclasses import replace
    from types import SimpleNamespace

    from alignpro_mini.lab import assess, pipeline
    from alignpro_mini.lab.config import preset
    from alignpro_mini.lab.run import Run
    from alignpro_mini.lab.setup import setup_of

    config = replace(preset("tiny"), out=str(HERE.parent / "runs"))
    if FAST:
        config = replace(preset("micro"), out=tempfile.mkdtemp())
    s = SimpleNamespace(config=replace(config, name="tutorial"))
    wanted = STAGES[: STAGES.index(until) + 1]
    s.setup = setup_of(s.config)
    s.world = s.setup.make_world()
    s.run = quietly(Run, s.config, resume=True)
    missing = [stage for stage in wanted if stage not in s.run.stages]
    if missing and not FAST:
        # To standard error: a notebook must not depend on what was trained before it.
        print(f"training first: {', '.join(missing)} (minutes)", file=sys.stderr)
    s.tokenizer = quietly(s.setup.tokenizer, s.run, s.world)
    s.pi_f = quietly(pipeline.frozen_lm, s.run, s.setup, s.world, s.tokenizer)
    if "prompter_sft" in wanted:
        s.rho_sft = quietly(pipeline.prompter_sft, s.run, s.setup, s.world, s.tokenizer)
    if "reward_model" in wanted:
        s.reward = quietly(pipeline.reward_model, s.run, s.setup, s.world, s.pi_f, s.rho_sft)
    if "align_pro" in wanted:
        s.rho = quietly(pipeline.align_pro, s.run, s.world, s.pi_f, s.rho_sft, s.reward)
    if "listing" in wanted:
        s.rated = quietly(assess.rate_rewrites, s.run, s.setup, s.world, s.pi_f, s.reward)
        s.listing = s.rated.under(s.rho_sft, s.rho)
    if "evaluation" in wanted:
        s.oracle = quietly(pipeline.rlhf_oracle, s.run, s.world, s.pi_f, s.reward)
        quietly(assess.closed_form, s.run, s.rho_sft, s.rho, s.rated, None)
        s.arms = quietly(assess.evaluate_plain, s.run, s.world, s.pi_f, s.oracle, s.reward)
        s.fixed = quietly(pipeline.fixed_rewrite, s.run, s.world, s.pi_f, s.reward)
        rewriters = s.rho_sft, s.rho, s.reward, s.fixed, s.listing
        s.arms |= quietly(assess.evaluate_prompters, s.run, s.world, s.pi_f, *rewriters)
        s.results = assess.conclude(s.run, s.world, s.arms)
    return s


STAGES = ["frozen_lm", "prompter_sft", "reward_model", "align_pro", "listing", "evaluation"]
