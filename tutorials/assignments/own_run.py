"""Assignment a10: a package with the student's functions in it, and the points of five runs of it.

`graft` makes the package (`grade.py --graft`), `graded` reads the finished runs (`grade.py a10`). Here nothing of the
student runs, except that `graft` imports the files once in a process of its own, to find what is wrong before a run of
half an hour does.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cut
from catalogue import ASSIGNMENTS
from outputs import Report, entry, fresh

HERE = Path(__file__).resolve().parent
HOOK = "\nfrom alignpro_mini.yours import graft  # noqa: E402\n\ngraft.install()\n"
IMPORT_LIMIT_S = 600.0  # a busy machine takes minutes to import torch

# ---------------------------------------------------------------- the package with the student's functions


def graft(folder: Path, out: Path) -> str:
    """Write OUT from FOLDER/a1.py ... a8.py; returns what to tell. Ends the program where the student must mend something."""
    fresh(out)
    files = {key: folder / f"{key}.py" for key in ASSIGNMENTS if (folder / f"{key}.py").is_file()}
    if not files:
        _refuse(
            f"{folder} holds none of {', '.join(f'{key}.py' for key in ASSIGNMENTS)}: put your files there, with these names"
        )
    for key, file in files.items():
        _refuse_unwritten(key, file)
    plan = {key: {path: cut.split(path) for path in ASSIGNMENTS[key].functions} for key in files}
    with tempfile.TemporaryDirectory(prefix="graft-") as name:
        place = Path(name) / "copy"
        cut.stripped_package(place, [path for functions in plan.values() for path in functions])
        yours = place / "alignpro_mini" / "yours"
        yours.mkdir()
        for key, file in files.items():
            shutil.copyfile(file, yours / f"{key}.py")
        shutil.copyfile(HERE / "graft.py", yours / "graft.py")
        (yours / "__init__.py").write_text('"""The functions of one student, see graft.py."""\n', encoding="utf-8")
        (yours / "plan.json").write_text(json.dumps(plan, indent=1), encoding="utf-8")
        front = place / "alignpro_mini" / "__init__.py"
        front.write_text(front.read_text(encoding="utf-8") + HOOK, encoding="utf-8")
        shutil.copyfile(cut.ROOT / "train.py", place / "train.py")
        missing = [key for key in ASSIGNMENTS if key not in files]
        told = {"yours": list(files), "the package's own": missing}
        (place / "graft.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
        _import(place, folder)
        shutil.copytree(place, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return "\n".join(_told(folder, out, files, missing))


def _told(folder: Path, out: Path, files: dict[str, Path], missing: list[str]) -> Iterator[str]:
    number = sum(len(ASSIGNMENTS[key].functions) for key in files)
    yield f"{out}: a package that runs your {number} functions of {', '.join(files)}"
    for key in missing:
        names = ", ".join(map(cut.name_of, ASSIGNMENTS[key].functions))
        yield f"  {key}.py is not in {folder}: the package's own functions stay ({names})"
    unused = sorted(path.name for path in folder.glob("*.py") if path not in files.values())
    if unused:
        yield f"  not used: {', '.join(unused)}"
    yield f"next: cd {out} && python train.py --seed 0-4 --jobs 2"


def _refuse(told: str) -> None:
    sys.exit(f"grade.py: error: {told}")


def is_empty(node: ast.FunctionDef) -> bool:
    """It still ends in the stub's `raise NotImplementedError`."""
    last = node.body[-1]
    return isinstance(last, ast.Raise) and last.exc is not None and "NotImplementedError" in ast.dump(last.exc)


def _refuse_unwritten(key: str, file: Path) -> None:
    """End the program for a file that is no Python, or a function that is still the stub's."""
    mend = f"mend it, or take {file.name} out: then the package's own functions stay"
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        _refuse(f"{file}{line} is not Python ({error}); {mend}")
    for path in ASSIGNMENTS[key].functions:
        name = cut.name_of(path)
        try:
            node = cut.find(tree, name.split("."))
        except LookupError:
            continue  # it may be there all the same, as `gae = my_gae`: the import tells
        if is_empty(node):
            _refuse(f"{file}, line {node.lineno}: {name} is not written yet; {mend}")


def _import(place: Path, folder: Path) -> None:
    """Import the package once, and end the program with what its hook says is wrong."""
    command = [sys.executable, "-c", "import alignpro_mini.yours"]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    try:
        done = subprocess.run(command, cwd=place, timeout=IMPORT_LIMIT_S, text=True, errors="replace", **quiet)
    except subprocess.TimeoutExpired:
        _refuse(
            f"the files in {folder} do not import within {IMPORT_LIMIT_S:.0f} s: does one of them start to work on import?"
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"the import ended with status {done.returncode}"])[-1]
        _refuse(f"{folder}: {last.removeprefix('ImportError: ')}")


# ---------------------------------------------------------------- the points of its runs

TITLE = "Your own Align-Pro"
TASK, SEEDS = "quality", range(5)
HARMLESS = {"out", "name", "device"}  # options that change no number, or only in the last digits
LEAST_SHARE = 0.65  # far below eight runs of the project (three tasks): mean 0.920, standard deviation 0.030
CONSISTENT = 1e-6
CHECKS = {"gain": 4, "fixed": 4, "share": 4, "variance": 4, "theory": 2}  # points a seed
NAMES = {
    "gain": "gain above an untrained prompter's",
    "fixed": "above the best fixed rewrite",
    "share": "share of the attainable gain",
    "variance": "variance within requests below no fine-tuning's",
    "theory": "the regularised gap is λ KL to the optimum",
}


class Unreadable(Exception):
    """A file or a value of a run that is missing or damaged; the message is for the student."""


@dataclass(slots=True)
class FoundRun:
    """A folder with a config.json or a results.json; `problems` says what is wrong with either."""

    folder: Path
    config: dict = field(default_factory=dict)
    results: dict = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def told(self, key: str):
        """ "seed" or "task", from the options, else from the results; None where neither tells."""
        return self.config.get(key, self.results.get(key))


def graded(folder: Path) -> Report:
    """The points of the runs below `folder`, whatever their folders are called."""
    runs, others = find_runs(folder)
    chosen = {seed: _choose(runs, seed) for seed in SEEDS}
    for seed, run in chosen.items():
        twin = next((s for s in range(seed) if run and chosen[s] and _same_arms(run, chosen[s])), None)
        if twin is not None:
            run.problems.append(f"its numbers are those of seed {twin}: it is a copy of that run")
            run.results = {}
    wrong = [line for seed, run in chosen.items() for line in _wrong_with(seed, run)]
    settings = "\n".join(wrong or ["five finished runs"])
    tests = [entry("five finished runs, default options, seeds 0 to 4", 10, not wrong, settings)]
    for seed, run in chosen.items():
        for check, points in CHECKS.items():
            try:
                ok, output = _check(check, run)
            except Unreadable as error:
                ok, output = False, str(error)
            tests.append(entry(f"seed {seed}: {NAMES[check]}", points, ok, output))
    taken = {id(run) for run in chosen.values()}
    others += [run.folder.name for run in runs if id(run) not in taken]
    ignored = (
        [f"not graded (another task, another seed, or a second run of one): {', '.join(others)}"] if others else []
    )
    return Report(TITLE, tests, "\n".join([*ignored, whose(folder)]))


def find_runs(folder: Path, task: str = TASK) -> tuple[list[FoundRun], list[str]]:
    """Every run of the task below `folder`, and the names of those of another task."""
    named = [path for name in ("config.json", "results.json") for path in folder.rglob(name)]
    places = {path.parent for path in named if "checkpoints" not in path.relative_to(folder).parts}  # models
    runs, others = [], []
    for place in sorted(places):
        run = FoundRun(place)
        for name, file in (("config", place / "config.json"), ("results", place / "results.json")):
            try:
                setattr(run, name, _read(file))
            except Unreadable as error:
                run.problems.append(str(error))
        if run.told("task") not in (task, None):
            others.append(place.name)
            continue
        for key in ("seed", "task"):
            if run.config and run.results and run.config.get(key) != run.results.get(key):
                both = f"{run.config.get(key)!r} in config.json and {run.results.get(key)!r} in results.json"
                run.problems.append(f"{key} is {both}: they are not of one run")
                run.results = {}
        runs.append(run)
    return runs, others


def _read(file: Path) -> dict:
    if not file.is_file():
        raise Unreadable(f"{file.name} is missing: the run is not finished, go on with --resume")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Unreadable(f"{file.name} cannot be read ({error}): the run must be made again") from None
    if not isinstance(found, dict):
        raise Unreadable(f"{file.name} holds no JSON object: the run must be made again")
    return found


def _choose(runs: list[FoundRun], seed: int) -> FoundRun | None:
    """The run of this seed; of several the first one without problems and with the default options."""
    mine = [run for run in runs if run.told("seed") == seed and type(run.told("seed")) is int]
    return min(mine, key=lambda run: (bool(run.problems), bool(other_options(run, seed))), default=None)


def _same_arms(one: FoundRun, other: FoundRun) -> bool:
    return bool(one.results.get("arms")) and one.results["arms"] == other.results.get("arms")


def _wrong_with(seed: int, run: FoundRun | None) -> Iterator[str]:
    """What stands between this seed's run and the first check."""
    if run is None:
        yield f"seed {seed}: no run of task {TASK}"
        return
    for problem in run.problems:
        yield f"seed {seed} ({run.folder.name}): {problem}"
    changed = other_options(run, seed)
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        yield f"seed {seed} ({run.folder.name}): not the default options: {'; '.join(changed[:5])}{more}"


def other_options(run: FoundRun, seed: int, task: str = TASK) -> list[str]:
    """ "ppo.lr is 0.001, not 0.0004", for every option that is not the default one of this seed."""
    if not run.config:
        return []  # that it cannot be read is a problem of its own
    if str(cut.ROOT) not in sys.path:
        sys.path.insert(0, str(cut.ROOT))
    from alignpro_mini.lab.config import preset
    from alignpro_mini.lab.device import with_dtype

    default = with_dtype(dataclasses.replace(preset("tiny"), task=task, seed=seed))
    wanted = _flat(json.loads(json.dumps(dataclasses.asdict(default))))
    found = _flat(run.config)
    names = [name for name in sorted(wanted.keys() | found.keys()) if name not in HARMLESS]
    said = lambda options, name: repr(options[name]) if name in options else "not given"
    return [f"{n} is {said(found, n)}, not {said(wanted, n)}" for n in names if said(found, n) != said(wanted, n)]


def _flat(tree: dict, prefix: str = "") -> dict:
    found = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def number(results: dict, *keys: str) -> float:
    value = results
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return _checked(value, keys)


def _checked(value, keys: tuple[str, ...]) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise Unreadable(f"no number at {'.'.join(keys)}")
    return float(value)


def interval(results: dict, *keys: str) -> tuple[float, float]:
    value = results
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, list) or len(value) != 2:
        raise Unreadable(f"results.json has no interval at {'.'.join(keys)}")
    low, high = (_checked(end, keys) for end in value)
    if low > high:
        raise Unreadable(f"results.json has an interval that ends before it begins at {'.'.join(keys)}")
    return low, high


def _check(check: str, run: FoundRun | None) -> tuple[bool, str]:
    """(passed, what was found). Raises Unreadable where there is nothing to look at."""
    if run is None or not run.results:
        raise Unreadable("no run of this seed" if run is None else "; ".join(run.problems))
    results = run.results
    if check == "gain":
        low, _ = interval(results, "arms", "align_pro", "difference", "ci95")
        _, high = interval(results, "arms", "untrained_prompter", "difference", "ci95")
        ours, theirs = f"at least {low:.3f}", f"up to {high:.3f}"
        return (
            low > high,
            f"gain over no fine-tuning: {ours}; an untrained prompter's: {theirs}; it must lie above that",
        )
    if check == "fixed":
        low, high = interval(results, "over_fixed_ci95")
        said = f"Align-Pro minus the best fixed rewrite: {low:.3f} to {high:.3f}"
        return low > 0, f"{said}; it must lie above 0: else one sentence does as much"
    if check == "share":
        share = number(results, "theory", "attainable_gain_share")
        told = f"{share:.3f} of the attainable gain; it takes {LEAST_SHARE}, and above 1 no prompter can come"
        return LEAST_SHARE <= share <= 1 + CONSISTENT, told
    if check == "variance":
        low, high = interval(results, "variance_ratio_within_requests_ci95")
        said = f"the interval of the variance ratio within requests is {low:.3f} to {high:.3f}"
        return high < 1, f"{said}; it must end below 1"
    gap, distance = (number(results, "theory", key) for key in ("regularised_gap", "lambda_kl_to_optimum"))
    told = (
        f"regularised_gap {gap:.9f}, lambda_kl_to_optimum {distance:.9f}: they must differ by less than {CONSISTENT:g}"
    )
    return abs(gap - distance) < CONSISTENT, told


def whose(folder: Path) -> str:
    """Whose functions ran, from the graft.json in the folder or above it."""
    unknown = "whose functions ran is not known: no graft.json in this folder or above it, as there is in OUT/runs"
    for place in (folder.resolve(), folder.resolve().parent):
        try:
            told = _read(place / "graft.json")
            yours, own = (", ".join(map(str, told[key])) for key in ("yours", "the package's own"))
        except (Unreadable, LookupError, TypeError):
            continue
        return f"functions of the student: {yours or 'none'}; of the package: {own or 'none'}"
    return unknown
