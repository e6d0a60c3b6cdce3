"""The command line, made from the configuration's dataclasses: every field is `--section.field`.

python train.py --preset tiny --task quality --seed 0 --ppo.lr 3e-4
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import sys
from dataclasses import replace

from alignpro_mini.config import PRESETS, TASKS, RunConfig, grid_part, preset
from alignpro_mini.tables import CELLS


def leaves(config, prefix: str = "") -> dict[str, dataclasses.Field]:
    """The dotted name of every option -> its dataclass field: {"seed": ..., "ppo.lr": ...}."""
    found = {}
    for f in dataclasses.fields(config):
        if dataclasses.is_dataclass(getattr(config, f.name)):
            found |= leaves(getattr(config, f.name), f"{prefix}{f.name}.")
        else:
            found[prefix + f.name] = f
    return found


def get(config, dotted: str):
    """`get(config, "ppo.lr")` -> config.ppo.lr."""
    for name in dotted.split("."):
        config = getattr(config, name)
    return config


def with_options(config: RunConfig, options: dict[str, object]) -> RunConfig:
    """A copy with the dotted options set.

    Raises KeyError, naming the nearest option, for an unknown one, and ValueError naming the option for a bad value.
    """
    known = leaves(config)
    tree: dict[str, dict] = {}
    top = {}
    for name, value in options.items():
        if name not in known:
            raise KeyError(f"unknown option {name!r}{nearest(name, known)}")
        section, _, leaf = name.rpartition(".")
        (tree.setdefault(section, {}) if section else top)[leaf] = value
    sections = {}
    for section, values in tree.items():
        try:
            sections[section] = replace(getattr(config, section), **values)
        except ValueError as error:  # it begins with the field's name
            raise ValueError(f"--{section}.{error}") from None
    return replace(config, **sections, **top)


def nearest(name: str, known) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _parse(text: str, like) -> object:
    if isinstance(like, bool):
        if text.lower() in ("true", "yes", "1", "on"):
            return True
        if text.lower() in ("false", "no", "0", "off"):
            return False
        raise ValueError("give true or false")
    return type(like)(text)


def _span(text: str) -> list[int]:
    """'3' -> [3]; '0-4' -> [0, 1, 2, 3, 4]; '0,2' -> [0, 2]. Raises ValueError for anything else."""
    numbers: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        if not (low.isdecimal() and (high or low).isdecimal() and int(low) <= int(high or low)):
            raise ValueError(f"--seed: {text!r} is not a number, a span such as 0-4 or a list such as 0,2")
        numbers += range(int(low), int(high or low) + 1)
    return list(dict.fromkeys(numbers))


def _prices(text: str | None, base: RunConfig, options: dict[str, object], grid: str | None) -> list[float]:
    """'0.1,0.2' -> [0.1, 0.2]; None -> []. Raises ValueError for prices or companions that cannot be meant."""
    if text is None:
        return []
    wrong = f"--frontier: {text!r} is not a list of prices above 0, such as 0.05,0.1,0.2"
    try:
        lams = list({f"{float(lam):g}": float(lam) for lam in text.split(",")}.values())  # a folder each, named by %g
    except ValueError:
        raise ValueError(wrong) from None
    if not all(0 < lam < math.inf for lam in lams):
        raise ValueError(wrong)
    if grid is not None or base.preset == "smollm2" or options.get("theory.inputs") == 0:
        raise ValueError(
            "--frontier lists the rewrites of the embedded world: leave out --grid, --preset smollm2 and --theory.inputs 0"
        )
    for name in ("ppo.kl_coef", "ppo.kl_target", "oracle.kl_coef", "oracle.kl_target"):
        if name in options:
            raise ValueError(f"--frontier sets the price of KL itself: leave out --{name}")
    return lams


def parse_command_line(argv: list[str] | None = None) -> tuple[list[RunConfig], argparse.Namespace]:
    """The runs asked for, and `resume`, `jobs`, the grid's `cells`, the frontier's `lams`. `--task a,b` (or all), `--seed 0-4`: several runs.

    Ends the program with a one-line error for an unknown option (naming the nearest one) or an impossible value.
    """
    argv = sys.argv[1:] if argv is None else argv
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="tiny")
    chosen = first.parse_known_args(argv)[0].preset
    base = preset(chosen if chosen in PRESETS else "tiny")
    parser = _parser(base)
    if chosen not in PRESETS:
        parser.error(f"--preset: {chosen!r} is not one of {', '.join(PRESETS)}{nearest(chosen, PRESETS)}")
    known = leaves(base)
    given, unknown = parser.parse_known_args(argv)
    for word in unknown:
        hint = (
            nearest(word.split("=")[0].lstrip("-"), known).replace("'", "--", 1).replace("'", "")
            if word[:2] == "--"
            else ""
        )
        parser.error(f"unknown argument {word}{hint}")
    options = {}
    for name, f in known.items():
        text = getattr(given, name)
        if text is None or name in ("task", "seed"):
            continue
        try:
            options[name] = _parse(text, f.default)  # the field's own type: a preset may write 2 for 2.0
        except ValueError as error:
            parser.error(f"--{name}: {text!r} is not a valid {type(f.default).__name__} ({error})")
        choices = f.metadata.get("choices")
        if choices and options[name] not in choices:
            parser.error(f"--{name}: {text!r} is not one of {', '.join(choices)}{nearest(text, choices)}")
    try:
        tasks = {None: [base.task], "all": list(TASKS)}.get(given.task) or list(dict.fromkeys(given.task.split(",")))
        for task in tasks:
            if task not in (*TASKS, "chat"):
                parser.error(f"--task: {task!r} is not one of {', '.join(TASKS)}, all{nearest(task, TASKS)}")
        seeds = _span(given.seed) if given.seed is not None else [base.seed]
        runs = [with_options(base, options | {"task": t, "seed": s}).validate() for t in tasks for s in seeds]
        unread = runs[0].unread()
        for name in options:
            why = unread.get(name.partition(".")[0]) or unread.get(name)
            if why:
                raise ValueError(f"--{name} is not read with {why}: leave it out")
        lams = _prices(given.frontier, base, options, given.grid)
        runs = [replace(r, name=f"frontier-{r.run_name}") for r in runs] if lams else runs
        if given.grid is not None:
            grid_part(base, "F1")  # a preset without a second pair of models is told now
            runs = [replace(r, name=f"grid-{r.run_name}") for r in runs]
    except ValueError as error:
        parser.error(str(error))
    if len(runs) > 1 and options.get("name"):
        parser.error("--name names one run; with several tasks or seeds leave it out (use --out for another folder)")
    if given.jobs < 1:
        parser.error(f"--jobs is {given.jobs}; it must be at least 1")
    if given.name and (given.name in (".", "..") or set(given.name) & set("/\\")):
        parser.error(f"--name: {given.name!r} is a path; give one folder's name, and the place by --out")
    cells = () if given.grid is None else CELLS if given.grid == "all" else tuple(given.grid.split(","))
    for cell in cells:
        if cell not in CELLS:
            parser.error(f"--grid: {cell!r} is not one of all, {', '.join(CELLS)}{nearest(cell, CELLS)}")
    return runs, argparse.Namespace(resume=given.resume, jobs=given.jobs, cells=cells, lams=lams)


def _parser(base: RunConfig) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py",
        usage="python train.py [--preset NAME] [--task NAME] [--seed N] [--resume] [--section.option VALUE ...]",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Align-Pro from nothing to a trained prompter: SFT, reward model, PPO, evaluation, report.",
        epilog="several runs and one table: --task all --seed 0-4",
    )
    parser.add_argument("--resume", action="store_true", help="go on where a run of the same name stopped")
    parser.add_argument(
        "--jobs", type=int, default=1, help="of several runs, how many side by side, each on its share of cores"
    )
    parser.add_argument(
        "--grid",
        default=None,
        metavar="CELLS",
        help="two prompters x two frozen models: all, or some of " + ", ".join(CELLS),
    )
    parser.add_argument(
        "--frontier", default=None, metavar="LAMBDAS", help="reward against KL at these prices, such as 0.05,0.1,0.2"
    )
    groups = {"": parser.add_argument_group("run")}
    for name, f in leaves(base).items():
        section = name.rpartition(".")[0]
        if section not in groups:
            doc = (type(getattr(base, section)).__doc__ or "").strip().splitlines()[0]
            groups[section] = parser.add_argument_group(section, doc)
        choices = f.metadata.get("choices")
        shown = f" [{'|'.join(choices)}]" if choices else ""
        text = f"{f.metadata.get('help', '')}{shown} (default: {get(base, name)})".replace("%", "%%")
        groups[section].add_argument(f"--{name}", dest=name, metavar=name.rpartition(".")[2].upper(), help=text)
    return parser
