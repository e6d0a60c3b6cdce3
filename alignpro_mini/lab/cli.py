"""The command line, made from the configuration's dataclasses: every field is `--section.field`.

python train.py --preset tiny --task quality --seed 0 --ppo.lr 3e-4
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce

from alignpro_mini.jsonl import NO_TEXT
from alignpro_mini.lab.config import PRESETS, REAL_WORLDS, RunConfig, preset
from alignpro_mini.lab.setup import setup_of
from alignpro_mini.options import UserError, require
from alignpro_mini.variants import VARIANTS
from alignpro_mini.worlds.toy import TASKS

# What `--help` shows; `--help all` shows every option.
MAIN_OPTIONS = set("resume jobs preset task seed device reward out name eval.inputs".split())
MAIN_OPTIONS |= {"data.prompts", "data.preferences", "ppo.iterations", "ppo.lr", "ppo.kl_coef"}
MOST_SEEDS = 1000
LARGEST = 2**63  # of a whole number
STOPPED = 130  # the exit status after Ctrl-C, as shells count it


def leaves(config, prefix: str = "") -> dict[str, dataclasses.Field]:
    """The dotted name of every option -> its dataclass field: {"seed": ..., "ppo.lr": ...}."""
    named = {}
    for f in dataclasses.fields(config):
        if dataclasses.is_dataclass(getattr(config, f.name)):
            named |= leaves(getattr(config, f.name), f"{prefix}{f.name}.")
        else:
            named[prefix + f.name] = f
    return named


def choices_of(f: dataclasses.Field) -> tuple[str, ...]:
    """The words that an option may be. `PPOConfig` does not know its variants: they are trainers."""
    return tuple(VARIANTS) if f.name == "variant" else f.metadata.get("choices", ())


def _oracle_options(options: dict[str, object]) -> dict[str, object]:
    """What the oracle takes over unless it is given: `ppo.*`, so that both are the same PPO; how the frozen LM answers.

    Left out are the options that belong to the prompter alone: its sampling, its layers, and answers to a rewrite.
    """
    own = ("ppo.answers", "ppo.temperature", "ppo.max_new_tokens", "ppo.train_layers")
    shared = {name: value for name, value in options.items() if name.startswith("ppo.") and name not in own}
    shared |= {n: options[n] for n in ("sampling.temperature", "sampling.max_new_tokens") if options.get(n, 0) > 0}
    followed = {f"oracle.{name.partition('.')[2]}": value for name, value in shared.items()}
    return {name: value for name, value in followed.items() if name not in options}


def with_options(config: RunConfig, options: dict[str, object]) -> RunConfig:
    """A copy with the dotted options set. What is set for `ppo` and `sampling` holds for the oracle too.

    Raises UserError for an unknown option, naming the nearest one, and for a bad value.
    """
    usual = setup_of(_replaced(config, options)).defaults()
    options = usual | options
    return _replaced(config, options | _oracle_options(options))


def _replaced(config: RunConfig, options: dict[str, object]) -> RunConfig:
    """A copy with exactly these dotted options set."""
    known = leaves(config)
    tree: dict[str, dict] = {}
    top = {}
    for name, value in options.items():
        if name not in known:
            raise UserError(f"unknown option --{name}{nearest(name, known, '--')}")
        section, _, leaf = name.rpartition(".")
        (tree.setdefault(section, {}) if section else top)[leaf] = value
    sections = {}
    for section, values in tree.items():
        try:
            sections[section] = replace(getattr(config, section), **values)
        except UserError as error:  # it begins with the field's name
            raise UserError(f"--{section}.{error}") from None
    return replace(config, **sections, **top)


def nearest(name: str, known, dashes: str = "") -> str:
    """ "; did you mean ...?" with the known name nearest to `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {dashes}{close[0]}?" if close else ""


def chosen(text: str, known: Sequence[str], option: str, separator: str = ",") -> list[str]:
    """'all' -> every known name; 'a,b' -> these. Raises UserError for an unknown one, naming the nearest."""
    names = list(known) if text == "all" else [name.strip() for name in text.split(separator)]
    for name in names:
        listed = f"{separator} ".join(("all", *known))
        require(name in known, f"--{option}: {name!r} is not one of {listed}{nearest(name, known)}")
    return names


def _parse(text: str, like) -> object:
    if isinstance(like, bool):
        if text.lower() in ("true", "yes", "1", "on"):
            return True
        if text.lower() in ("false", "no", "0", "off"):
            return False
        raise ValueError("give true or false")
    value = type(like)(text)
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise ValueError("too large")
    return value


def _span(text: str) -> list[int]:
    """'3' -> [3]; '0-4' -> [0, 1, 2, 3, 4]; '0,2' -> [0, 2]. Raises UserError for anything else."""
    numbers: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        if not (low.isdecimal() and (high or low).isdecimal() and int(low) <= int(high or low)):
            raise UserError(f"--seed: {text!r} is not a number, a span such as 0-4 or a list such as 0,2")
        require(int(high or low) - int(low) < MOST_SEEDS, f"--seed: {text!r} asks for more than {MOST_SEEDS} seeds")
        require(int(high or low) < LARGEST, f"--seed: {text!r:.60} is too large")
        numbers += range(int(low), int(high or low) + 1)
    return list(dict.fromkeys(numbers))


def parse_command_line(
    argv: list[str] | None = None,
    prog: str = "train.py",
    add: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
    unread: Mapping[str, str] | None = None,
) -> tuple[list[RunConfig], argparse.Namespace]:
    """The runs asked for, and the other arguments: `resume`, `jobs`, those that `add(parser)` defines, `given` options.

    `--task a,b` (or all) and `--seed 0-4` ask for several runs. Ends the program with a one-line error for an unknown
    option (naming the nearest one), an impossible value, or an option that the run would not read
    (`unread`: those of this program, {section or option: why}).
    """
    replace_what_the_console_lacks()
    argv = sys.argv[1:] if argv is None else argv
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="tiny")
    first.add_argument("--help", "-h", nargs="?", const="main", choices=("main", "all"))
    early = first.parse_known_args(argv)[0]
    base = preset(early.preset if early.preset in PRESETS else "tiny")
    parser = _parser(base, prog, everything=early.help == "all")
    add(parser)
    if early.help:
        parser.print_help()
        sys.exit(0)
    if early.preset not in PRESETS:
        parser.error(f"--preset: {early.preset!r} is not one of {', '.join(PRESETS)}{nearest(early.preset, PRESETS)}")
    for word in argv:  # as json and the tokenizers would say later, with a traceback
        if NO_TEXT.search(word):
            parser.error(f"argument {word!a} is no whole text: is it UTF-8?")
    known = leaves(base)
    given, unknown = parser.parse_known_args(argv)
    for word in unknown:
        near = nearest(word.split("=")[0][2:], known, "--") if word[:2] == "--" else ""
        parser.error(f"unknown argument {word}{near}")
    options = {}
    for name, f in known.items():
        text = getattr(given, name)
        if text is None or name in ("task", "seed"):
            continue
        try:
            options[name] = _parse(text, f.default)  # the field's own type: a preset may write 2 for 2.0
        except ValueError as error:
            parser.error(f"--{name}: {text!r} is not a valid {type(f.default).__name__} ({error})")
        choices = choices_of(f)
        if choices and options[name] not in choices:
            parser.error(f"--{name}: {text!r} is not one of {', '.join(choices)}{nearest(text, choices)}")
    try:
        runs = _runs(base, options, given, unread or {})
    except UserError as error:
        parser.error(str(error))
    extra = {key: value for key, value in vars(given).items() if key not in known}
    return runs, argparse.Namespace(**extra, given=set(options))


def _runs(
    base: RunConfig, options: dict[str, object], given: argparse.Namespace, unread: Mapping[str, str]
) -> list[RunConfig]:
    """A checked configuration for each task and seed."""
    tasks = {None: [base.task], "all": list(TASKS)}.get(given.task) or list(dict.fromkeys(given.task.split(",")))
    for task in tasks:
        if task not in (*TASKS, *REAL_WORLDS):
            raise UserError(f"--task: {task!r} is not one of {', '.join(TASKS)}, all{nearest(task, TASKS)}")
    seeds = _span(given.seed) if given.seed is not None else [base.seed]
    if given.jobs < 1:
        raise UserError(f"--jobs is {given.jobs}; it must be at least 1")
    if given.name and (given.name in (".", "..") or set(given.name) & set("/\\")):
        raise UserError(f"--name: {given.name!r} is a path; give one folder's name, and the place by --out")
    runs = [with_options(base, options | {"task": task, "seed": seed}) for task in tasks for seed in seeds]
    for run in runs:
        setup_of(run).check()
    if len(runs) > 1 and given.name:
        raise UserError("--name names one run; with several tasks or seeds leave it out (use --out for another folder)")
    unread = setup_of(runs[0]).unread() | unread
    for name in options:
        if why := unread.get(name) or unread.get(name.partition(".")[0]):
            raise UserError(f"--{name}: {why}; leave it out")
    return runs


def _parser(base: RunConfig, prog: str, everything: bool) -> argparse.ArgumentParser:
    command = prog if prog.endswith(".py") else f"-m {prog}"
    usage = f"python {command} [--preset NAME] [--task NAME] [--seed N] [--resume] [--section.option VALUE ...]"
    epilog = "several runs and one table: --task all --seed 0-4\nevery option, with its reason: --help all"
    style = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, "add_help": False}
    parser = argparse.ArgumentParser(prog, usage, None, epilog, **style)
    parser.add_argument("--resume", action="store_true", help="go on where a run of the same name stopped")
    parser.add_argument("--jobs", type=int, default=1, help="how many of several runs side by side, sharing the cores")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)  # started by sweep.run_side_by_side
    groups = {"": parser.add_argument_group("run")}
    for name, f in leaves(base).items():
        section, metavar = name.rpartition(".")[0], name.rpartition(".")[2].upper()
        if not everything and name not in MAIN_OPTIONS:
            parser.add_argument(f"--{name}", dest=name, help=argparse.SUPPRESS)
            continue
        if section not in groups:
            doc = (type(getattr(base, section)).__doc__ or section).strip().splitlines()[0]  # -OO leaves no docstrings
            groups[section] = parser.add_argument_group(section, doc)
        choices = choices_of(f)
        default = reduce(getattr, name.split("."), base)
        text = f.metadata.get("help", "") + (f" [{'|'.join(choices)}]" if choices else "")
        text += "" if default == "" else f" (default: {default})"
        groups[section].add_argument(f"--{name}", dest=name, metavar=metavar, help=text.replace("%", "%%"))
    return parser


def replace_what_the_console_lacks() -> None:
    """Print "?" for a character that the output's encoding has not: a log file on Windows, an ASCII terminal.

    A model can write any character, and a run must not end because of it. Nor because there is no console.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as services do
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):  # a notebook's streams are UTF-8, and have no such method
            stream.reconfigure(errors="replace")


@contextmanager
def one_line_errors(prog: str, resumes: bool = False) -> Iterator[None]:
    """End the program with one line for what a user can correct and for Ctrl-C; a bug keeps its traceback.

    `resumes`: whether the line of Ctrl-C names --resume. A second Ctrl-C ends the program at once.
    """
    replace_what_the_console_lacks()
    go_on = "; to go on, give the same command with --resume" if resumes else ""

    def stop(*_) -> None:
        signal.signal(signal.SIGINT, lambda *_: os._exit(STOPPED))
        if os.environ.get("RANK") in (None, "", "0"):  # of the processes of torchrun one speaks
            os.write(2, f"\n{prog}: stopped{go_on}\n".encode())  # print could be called within a print
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    ignored = before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread()
    if not ignored:  # a shell's background command ignores it
        signal.signal(signal.SIGINT, stop)
    try:
        yield
    except (UserError, OSError, FloatingPointError) as error:
        sys.exit(f"{prog}: error: {error}")
    except KeyboardInterrupt:
        sys.exit(STOPPED)
    finally:
        if not ignored and signal.getsignal(signal.SIGINT) is stop:
            signal.signal(signal.SIGINT, before)
