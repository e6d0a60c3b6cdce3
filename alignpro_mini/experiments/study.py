"""What the studies of many runs share: a `Study` describes one, `main` is the command of all.

    python -m alignpro_mini.experiments.NAME [options of the study] [options of train.py]

A study does the same for each task and seed of the command, its *cell*: some runs that differ in what the study varies.

    <out>/<name>-<preset>-<task>-seed<k>/       the runs of a cell, and its results.json
    <out>/<name>-<preset>.json, .png            all cells of the command; with --name they lie in the cell's folder

To add a study, write a module here with a `Study`, and `main(STUDY)` at its end.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from alignpro_mini.alignpro import Prompter
from alignpro_mini.frozen import FrozenLM, FrozenModel
from alignpro_mini.lab import assess, pipeline
from alignpro_mini.lab.cli import chosen, one_line_errors, parse_command_line, with_options
from alignpro_mini.lab.config import EvalConfig, RunConfig
from alignpro_mini.lab.evaluation import Evaluator
from alignpro_mini.lab.optimum import RatedRewrites
from alignpro_mini.lab.plots import default_style
from alignpro_mini.lab.rewards import Reward
from alignpro_mini.lab.run import Run
from alignpro_mini.lab.setup import setup_of
from alignpro_mini.lab.sweep import exit_if_failed, run_all
from alignpro_mini.lab.tables import aligned, over_seeds
from alignpro_mini.options import require
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.weights.tensors import write_json

# Options of a run that most studies do not read: how train.py evaluates its arms, and its oracle.
ARM_OPTIONS = (
    "eval.rewrites",
    "eval.answers",
    "eval.best_of_n",
    "eval.untrained_arms",
    "eval.headroom_inputs",
    "theory.samples",
)
ORACLE_OPTIONS = ("oracle", "eval.oracle", "eval.bootstrap")


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a study's own, `--name`. `read(text, name)` gives its value, or raises UserError."""

    name: str
    default: str
    help: str
    read: Callable[[str, str], object]


@dataclass(frozen=True, slots=True)
class Study:
    """What a study does, and how it is told. `own` are the values of its options, by their names.

    cell(config, resume, **own)           the results of one task and seed, as JSON can hold them
    together(configs, results, **own)     what the study's JSON file holds: the results of all cells, and what else
    table(content)                        that content as text
    figures[end](content, path)           ... and as pictures; `end` is the end of the file's name
    check(configs, **own)                 raises UserError for a command that cannot be carried out
    varies, ignores                       options of a run, or their sections, that the study sets, or does not read
    in_runs                               its cells work in the folders of train.py's runs, one after the other
    """

    name: str
    cell: Callable[..., dict]
    table: Callable[[dict], str]
    figures: Mapping[str, Callable[[dict, Path], None]] = field(default_factory=dict)
    options: tuple[Option, ...] = ()
    varies: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    check: Callable[..., None] = lambda configs, **own: None
    together: Callable[..., dict] = lambda configs, results, **own: {"runs": results}
    in_runs: bool = False

    def named(self, config: RunConfig) -> RunConfig:
        """The configuration of a cell: its folder has the study's name."""
        if self.in_runs:
            return config
        return replace(config, name=f"{self.name}-{config.run_name}")

    def stem(self, configs: Sequence[RunConfig]) -> Path:
        """Where JSON and figures of the named cells go: the name of the files without their ends."""
        cell = folder(configs[0])
        if self.in_runs:  # in the run's folder; of several seeds in one beside their runs
            return (cell if len(configs) == 1 else Path(f"{str(cell).rpartition('-')[0]}-listing")) / self.name
        shared = cell.with_name(f"{self.name}-{configs[0].preset}")
        return shared if cell.name.startswith(shared.name) else cell / shared.name

    def leave(self, configs: Sequence[RunConfig], results: list[dict], own: dict) -> None:
        """Write the figures and their numbers, and show the table."""
        content = self.together(configs, results, **own)
        stem = self.stem(configs)
        numbers = stem.with_name(f"{stem.name}.json")
        _write(numbers, content)
        print(f"{self.table(content)}\n\nnumbers: {numbers}")
        for end, draw in self.figures.items():
            path = stem.with_name(f"{stem.name}{end}.png")
            draw(content, path)
            print(f"figure: {path}")


def main(*studies: Study, module: str = "") -> None:
    """The command of a study; of several, of which `--step` names one, in `module`. Errors are told in one line."""
    prog = f"alignpro_mini.experiments.{module or studies[0].name}"
    study = _step(studies, prog)

    def add(parser: argparse.ArgumentParser) -> None:
        if len(studies) > 1:
            parser.add_argument("--step", default=study.name, help=f"one of {', '.join(s.name for s in studies)}")
        for option in study.options:
            parser.add_argument(
                f"--{option.name}", default=option.default, help=f"{option.help} (default: %(default)s)"
            )

    unread = dict.fromkeys(study.ignores, "this study does not read it")
    unread |= dict.fromkeys(study.varies, "it is varied here")
    configs, given = parse_command_line(prog=prog, add=add, unread=unread)
    with one_line_errors(prog, resumes=True):
        own = {option.name: option.read(getattr(given, option.name), option.name) for option in study.options}
        require(given.jobs == 1 or not study.in_runs, "--jobs: here the seeds come one after the other; leave it out")
        study.check(configs, **own)
        configs = [study.named(config) for config in configs]
        results, failed = run_all(["-m", prog], configs, given, partial(_cell, study, own))
        if results and not given.child:  # the processes of --jobs leave the common files to their parent
            with default_style():
                study.leave(configs, results, own)
    exit_if_failed(prog, configs, failed)


def _step(studies: Sequence[Study], prog: str) -> Study:
    """The study that --step names; the first one without it."""
    parser = argparse.ArgumentParser(prog, add_help=False, allow_abbrev=False)
    by_name = {study.name: study for study in studies}
    parser.add_argument("--step", default=studies[0].name)
    name = parser.parse_known_args()[0].step if len(studies) > 1 else studies[0].name
    if name not in by_name:
        parser.error(f"--step: {name!r} is not one of {', '.join(by_name)}")
    return by_name[name]


def _cell(study: Study, own: dict, config: RunConfig, resume: bool) -> dict:
    results = study.cell(config, resume, **own)
    if not study.in_runs:
        _write(folder(config) / "results.json", results)
    return results


def _write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


# ---------------------------------------------------------------- options


def positive_numbers(text: str, option: str) -> list[float]:
    """'0.1,0.2' -> [0.1, 0.2]. Raises UserError, naming the option, for anything but numbers above 0."""
    try:
        # Folders are named by the number as %g writes it.
        numbers = list({f"{float(number):g}": float(number) for number in text.split(",")}.values())
    except ValueError:
        numbers = [math.nan]
    good = all(0 < number < math.inf for number in numbers)
    require(good, f"--{option}: {text!r} is not a list of numbers above 0, such as 0.05,0.1,0.2")
    return numbers


def whole_number(text: str, option: str) -> int:
    """'25' -> 25. Raises UserError for anything but a whole number."""
    require(text.isdecimal(), f"--{option}: {text!r} is not a whole number")
    return int(text)


def names_of(known: Sequence[str]) -> Callable[[str, str], list[str]]:
    """A `read` for names of this list: 'all' or 'a,b'."""
    return lambda text, option: chosen(text, known, option)


def require_enumerable(configs: Sequence[RunConfig], **own) -> None:
    """A `check`: raises UserError where there is no exact optimum to compare with."""
    config = configs[0]
    one_coefficient = config.ppo.kl_coef > 0 and not config.ppo.adaptive_kl_target
    known = "the optimum is known for the embedded world and one KL coefficient above 0 only"
    mend = "leave out --preset smollm2, --theory.inputs 0 and --ppo.adaptive_kl_target"
    require(not config.real_model and config.theory.inputs > 0 and one_coefficient, f"{known}: {mend}")


# ---------------------------------------------------------------- runs of a cell


def folder(config: RunConfig) -> Path:
    """Where the runs of a cell lie."""
    return Path(config.out) / config.run_name


def part(config: RunConfig, resume: bool, name: str, changes: Mapping[str, object]) -> Run:
    """A run in the cell's folder, with some options changed, such as {"ppo.lr": 1e-4}."""
    print(f"--- {config.run_name}: {name}", flush=True)
    return Run(with_options(config, {**changes, "out": str(folder(config)), "name": name}), resume)


class Stages:
    """The stages that the runs of a cell share, each done when it is first asked for, in the part `name` of the cell.

    `name` is "" for a run of train.py itself.
    """

    def __init__(self, config: RunConfig, resume: bool, name: str = "base") -> None:
        self.setup = setup_of(config)
        self.world = self.setup.make_world()  # a file that cannot be read is told before the folder is made
        self.run = part(config, resume, name, {}) if name else Run(config, resume)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self.setup.tokenizer(self.run, self.world)

    @cached_property
    def pi_f(self) -> FrozenModel:
        return pipeline.frozen_lm(self.run, self.setup, self.world, self.tokenizer)

    @cached_property
    def rho_sft(self) -> Prompter:
        return pipeline.prompter_sft(self.run, self.setup, self.world, self.tokenizer)

    @cached_property
    def reward(self) -> Reward:
        return pipeline.reward_model(self.run, self.setup, self.world, self.pi_f, self.rho_sft)

    @cached_property
    def rated(self) -> RatedRewrites:
        """All enumerated rewrites, and the rewards of many answers to each."""
        return assess.rate_rewrites(self.run, self.setup, self.world, self.pi_f, self.reward)

    def align_pro(self, run: Run) -> Prompter:
        return pipeline.align_pro(run, self.world, self.pi_f, self.rho_sft, self.reward)

    def oracle(self, run: Run) -> FrozenLM | None:
        return pipeline.rlhf_oracle(run, self.world, self.pi_f, self.reward)

    def evaluator(self, run: Run, purpose: str, requests: Sequence[str], counts: EvalConfig) -> Evaluator:
        """The arms on these requests, in the units that PPO sees; `purpose` names its stream of random numbers."""
        score, gold = self.reward.train, self.world.gold
        return Evaluator(list(requests), self.pi_f, score, gold, counts, run.generator(purpose), run.config.guard)


def seed_table(
    heads: Sequence[str],
    rows: Mapping[tuple, Sequence[dict]],
    columns: Mapping[str, Callable[[dict], float | None]],
    digits: int = 2,
) -> str:
    """A table as text: a row for each key (a cell for each head), means of `columns` over the seeds, ± 95 % t-intervals.

    rows[key] are dictionaries, one a seed; a column makes its value of one of them, None where it is not known.
    """
    lines = [[*heads, *columns]]
    for key, seeds in rows.items():
        names = [f"{part:g}" if isinstance(part, float) else str(part) for part in key]
        lines.append([*names, *(over_seeds(map(value, seeds), digits) for value in columns.values())])
    return aligned(lines)


def legend_and_save(figure, axes, path: Path, columns: int = 3, **style) -> None:
    """The legend of the first panel for all panels, below them; then the file."""
    place = {"loc": "outside lower center", "ncols": columns, "frameon": False}
    figure.legend(*axes[0, 0].get_legend_handles_labels(), **place, **style)
    figure.savefig(path)
