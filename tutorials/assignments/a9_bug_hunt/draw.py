"""Draw the curves of a bug hunt: one picture for each of the five bugs of a seed, a minute or two on one core.

    python tutorials/assignments/a9_bug_hunt/draw.py --seed 7 --out pictures      # pictures/bug-1.png ... bug-5.png

Grey: the right package, training seeds 0 to 3. Blue: the package with the bug, training seed 0.
`grade.py a9 FILE --seed 7` grades the tests: the same seed draws the same bugs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import bug_hunt  # noqa: E402
from mutants import MUTANTS, Mutant  # noqa: E402

EXAMPLE = "reference-is-the-policy"  # the handout's
RIGHT_SEEDS = range(4)
GREY, BLUE = "#9aa0a6", "#0072b2"
PANELS = (  # title, label with its unit, metrics: solid, dashed
    ("Score", "mean reward, 0 to 1", ("score_mean",)),
    ("KL to the reference: solid k1, dashed exact", "nats per rewrite", ("kl_k1", "kl_exact")),
    ("Entropy of the policy", "nats per token", ("entropy",)),
    ("Clip fraction", "share of tokens", ("clip_fraction",)),
    ("Value loss", "reward²", ("value_loss",)),
    ("Length of a rewrite", "tokens, EOS included", ("completion_length",)),
)


def curves(bug: Mutant | Path | None, seed: int = 0) -> list[dict]:
    """The metrics of each iteration of training.py on the package with this bug (None: without) or in a folder."""
    if isinstance(bug, Path):
        command = [sys.executable, str(HERE / "training.py"), str(seed)]
        env = os.environ | {"PYTHONPATH": str(bug.resolve())}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
        return [json.loads(line) for line in done.stdout.splitlines()]
    with tempfile.TemporaryDirectory(prefix="hunt-") as place:
        bug_hunt.package(Path(place), bug)
        return curves(Path(place), seed)


def picture(path: Path, title: str, right: list[list[dict]], broken: list[dict]) -> None:
    figure = FigureCanvasAgg(Figure(figsize=(11.5, 6.4), layout="constrained", dpi=80)).figure
    for place, (ax, (name, unit, keys)) in enumerate(zip(figure.subplots(2, 3).flat, PANELS)):
        for rows in right:  # their second metric is hardly to be told from the first
            ax.plot([r["step"] for r in rows], [r[keys[0]] for r in rows], color=GREY, lw=1.0)
        for key, style in zip(keys, ("-", "--")):
            ax.plot([r["step"] for r in broken], [r[key] for r in broken], style, color=BLUE, lw=1.8)
        ax.set_title(name, fontsize=11)
        ax.set_ylabel(unit)
        ax.set_xlabel("iteration" if place > 2 else "")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    known = [Line2D([], [], color=GREY, lw=1.5), Line2D([], [], color=BLUE, lw=2)]
    figure.legend(
        known, ["the right package, 4 seeds", "with the bug"], loc="outside lower center", ncols=2, frameon=False
    )
    figure.suptitle(title, fontsize=14)
    figure.canvas.draw()
    # 48 colours are enough, and a third of the bytes.
    Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB").quantize(48).save(path, optimize=True)


def draw(drawn: dict[str, Mutant | Path], out: Path) -> None:
    """A picture for each {its title: the bug}; "bug 1" is drawn into bug-1.png."""
    out.mkdir(parents=True, exist_ok=True)
    right = [curves(None, seed) for seed in RIGHT_SEEDS]
    for title, bug in drawn.items():
        path = out / f"{title.replace(' ', '-')}.png"
        picture(path, title, right, curves(bug))
        print(path, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="draw the five pictures of a bug hunt")
    parser.add_argument("--seed", type=int, default=0, help="of the bugs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--mutants", nargs="*", default=[], help="draw these of tests/mutants/ instead")
    parser.add_argument("--package", type=Path, help="draw instead the package in this folder, into mine.png")
    args = parser.parse_args()
    if args.package and not (args.package / "alignpro_mini").is_dir():
        parser.error(f"{args.package}: there is no folder alignpro_mini in it")
    known = {mutant.name: mutant for mutant in MUTANTS}
    drawn = {"mine": args.package} if args.package else {name: known[name] for name in args.mutants}
    draw(drawn or {f"bug {k}": bug for k, bug in enumerate(bug_hunt.bugs(args.seed), start=1)}, args.out)
