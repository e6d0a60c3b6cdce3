"""The grader's side: it has the oracles, asks the submission's process (child.py) for outcomes, and compares.

What comes from there is read as data, never run: tensors, numbers and text.
"""

from __future__ import annotations

import importlib
import io
import os
import pickle
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cut
import torch
from catalogue import ASSIGNMENTS
from checks import base, compare
from graft import Places

HERE = Path(__file__).resolve().parent
START_LIMIT_S = 120.0  # importing torch, on half a core; also for the import of the submission
LARGEST = 2**28  # bytes of one answer
Outcome = tuple


# ---------------------------------------------------------------- the submission's process


def furnish(place: Path, key: str, submission: Path) -> None:
    """All that the submission's process needs: a package without the assigned functions, cases without oracles."""
    assignment = ASSIGNMENTS[key]
    cut.stripped_package(place, [*assignment.functions, *assignment.twins])
    (place / "checks").mkdir()
    for file in (HERE / "checks").glob("*.py"):
        if file.name != "compare.py":
            text = cut.without_oracles(file.read_text(encoding="utf-8"))
            (place / "checks" / file.name).write_text(text, encoding="utf-8")
    for file in (HERE / "child.py", HERE / "graft.py", cut.ROOT / "tests" / "doubles.py"):
        shutil.copyfile(file, place / file.name)
    shutil.copyfile(submission, place / "submission.py")


def hidden() -> list[str]:
    """The folders in which the solutions are: of this project, and of installed packages."""
    ours = [cut.PACKAGE, cut.ROOT / "tutorials", cut.ROOT / "tests"]
    return [str(folder.resolve()) for folder in [*ours, *(Path(path) / "alignpro_mini" for path in sys.path if path)]]


class Child:
    """child.py in a folder that `furnish` filled. It is started when it is asked, and anew after it was stopped."""

    def __init__(self, place: Path, key: str, limit_s: float) -> None:
        self.place, self.limit_s = place, limit_s
        self.start_job = {
            "assignment": key,
            "functions": {path: cut.split(path) for path in ASSIGNMENTS[key].functions},
        }
        self.process: subprocess.Popen | None = None

    def ask(self, job: dict) -> tuple[list, str]:
        """(its answers, why it ended before the last one; "" if it did not). A job is a check, see child.run."""
        if self.process is None or self.process.poll() is not None:
            self._start()
        self._send(job)
        answers: list = []
        limit, since = START_LIMIT_S, time.monotonic()
        while True:
            try:
                answer = self.answers.get(timeout=max(0.0, since + limit - time.monotonic()))
            except queue.Empty:
                self.stop()
                return answers, f"no end after {limit:.0f} s"
            if answer is None:
                self.stop()
            if answer in ("ended", None):
                return answers, "" if answers and _is_last(answers[-1]) else "it ended the process"
            if answer == "begins":
                limit, since = self.limit_s, time.monotonic()
            answers.append(answer)

    def _start(self) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONOPTIMIZE"}
        self.process = subprocess.Popen(
            [sys.executable, str(self.place / "child.py")],
            cwd=self.place,
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.answers: queue.Queue = queue.Queue()
        threading.Thread(target=_read, args=(self.process.stdout, self.answers), daemon=True).start()
        self._send(self.start_job)
        try:
            first = self.answers.get(timeout=START_LIMIT_S)
        except queue.Empty:
            first = None
        if first != "ready":
            self.stop()
            raise RuntimeError(f"child.py was not ready for the submission within {START_LIMIT_S:.0f} s")

    def _send(self, job: dict) -> None:
        data = pickle.dumps(job)
        self.process.stdin.write(len(data).to_bytes(8, "big") + data)
        self.process.stdin.flush()

    def stop(self) -> None:
        """End it, and the process of the check that runs in it."""
        if self.process is not None and self.process.poll() is None:
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
            self.process.wait()
        self.process = None


def _read(stream, answers: queue.Queue) -> None:
    """Put each answer into the queue, and None at the end. weights_only: nothing of it can run here."""
    while (size := int.from_bytes(stream.read(8), "big")) and size < LARGEST:
        try:
            answers.put(torch.load(io.BytesIO(stream.read(size)), weights_only=True))
        except Exception:
            break
    answers.put(None)


def _is_last(answer) -> bool:
    return answer == "done" or (isinstance(answer, tuple) and len(answer) == 2 and answer[0] in ("import", "missing"))


def well_formed(answer) -> Outcome:
    """The answer, if it has the form of `base.outcome`'s result: a submission may have written it itself."""
    value = isinstance(answer, tuple) and len(answer) == 4 and answer[0] == "value"
    if (
        value
        and isinstance(answer[1], list)
        and isinstance(answer[3], list)
        and (answer[2] is None or isinstance(answer[2], torch.Tensor))
    ):
        return answer
    raised = isinstance(answer, tuple) and len(answer) == 3 and answer[0] == "raised"
    return (
        answer if raised and all(isinstance(x, str) for x in answer) else ("raised", "", "what came back is no outcome")
    )


# ---------------------------------------------------------------- compare


def check_function(path: str, cases: list, found: list[Outcome], reference: Callable, mutants: list, places) -> dict:
    """The result of a check from the submission's outcomes of its cases; the first wrong one is the counterexample."""
    allowed = Allowed(reference, cases)
    right = [compare.wanted(case) for case in cases]
    mine = [compare.seen(case, one, allowed(i, one)) for i, (case, one) in enumerate(zip(cases, found))]
    passed = [compare.same(*pair, case.tolerance) for *pair, case in zip(mine, right, cases)]
    share = (sum(passed), len(cases))
    if all(passed):
        return result(True, f"{len(cases)} cases", share=share)
    first = passed.index(False)
    case = cases[first]
    if mine[first][0] == "raised" and mine[first][2].endswith("NotImplementedError"):  # PyTorch's own have a text
        return result(False, "not written yet (NotImplementedError)")
    message = f"on {case.about}: {compare.difference(mine[first], right[first], case.tolerance)}"
    if path and (call := compare.call_of(case)):
        message += f"\nthe call: {cut.name_of(path)}{call}"

    def does(text: str, i: int) -> Outcome:
        """What a known mistake with this text does on case i."""
        found = base.outcome(places.compiled(path, text), cases[i])
        return compare.seen(cases[i], found, allowed(i, found))

    agrees = lambda text, i: compare.same(does(text, i), mine[i], cases[i].tolerance)
    return result(False, message, hint(path, mutants, passed, agrees) or by_case(case.about), share)


def result(ok: bool, message: str, hint: str = "", share: tuple[int, int] = (0, 1)) -> dict:
    """`share`: cases that are right, of how many."""
    return {"ok": ok, "message": message, "hint": hint, "share": share}


class Allowed:
    """allowed(i, outcome): what the right function changes on case i, too. Asked only where something was changed."""

    def __init__(self, reference: Callable | None, cases: list) -> None:
        self.reference, self.cases = reference, cases
        self.changes: dict[int, list[str]] = {}

    def __call__(self, i: int, found: Outcome) -> list[str]:
        if found[0] != "value" or not found[3]:
            return []
        if i not in self.changes:
            ours = base.outcome(self.reference, self.cases[i])
            self.changes[i] = ours[3] if ours[0] == "value" else []
        return self.changes[i]


def by_case(about: str) -> str:
    """What the mistake can be if this is the first case that is wrong; "" if it can be anything."""
    from hints import KINDS

    return next((text for kind, text in KINDS.items() if re.search(kind, about)), "")


def hint(path: str, mutants: list[dict], passed: list[bool], agrees: Callable[[str, int], bool]) -> str:
    """The hint of the known mistake that gives the same wrong outcome on the first wrong case; "" if none does.

    On a row of one token many mistakes look the same: a mistake is left out if it is wrong where the submission is
    right, or agrees with it on less than half of the wrong cases. Of several the one that agrees on most counts.
    """
    first = passed.index(False)
    best, found = (len(passed) - sum(passed) - 1) // 2, ""
    for mutant in mutants:
        text = cut.definition(mutant["source"], cut.split(path)[1])
        if agrees(text, first) and all(agrees(text, i) for i, ok in enumerate(passed) if ok):
            count = sum(agrees(text, i) for i, ok in enumerate(passed) if not ok)
            if count > best:
                best, found = count, mutant["hint"]
    return found


# ---------------------------------------------------------------- one submission


def known_mistakes(functions: list[str]) -> dict[str, list[dict]]:
    """{function: [{"name", "hint", "source": the module's text with the mistake}]} from tests/mutants/."""
    from hints import CLASSICS, HINTS
    from mutants import MUTANTS

    found: dict[str, list[dict]] = {path: [] for path in functions}
    for name, (path, right, wrong, hint) in CLASSICS.items():
        if path in found:
            source = cut.changed(path, right, wrong)
            found[path].append({"name": name, "hint": hint, "source": source})
    for mutant in MUTANTS:
        mine = [path for path in functions if mutant.file == f"alignpro_mini/{cut.split(path)[0].replace('.', '/')}.py"]
        if not mine or mutant.name not in HINTS:
            continue
        original, source = cut.source_of(cut.split(mine[0])[0]), mutated(mutant)
        for path in mine:
            if cut.definition(source, cut.split(path)[1]) != cut.definition(original, cut.split(path)[1]):
                found[path].append({"name": mutant.name, "hint": HINTS[mutant.name], "source": source})
    return found


def mutated(mutant) -> str:
    """The text of the mutant's module, with its mistake."""
    from mutants import mutate

    return mutate(mutant, (cut.ROOT / mutant.file).read_text(encoding="utf-8"))


def cases_of(key: str, check: str, seed: int) -> tuple[list, list]:
    """(the cases of a function, or of all together, and what the submission's process must be told for them)."""
    checks = importlib.import_module(f"checks.{key}")
    rng = torch.Generator().manual_seed(seed)
    base.known.clear()
    cases = checks.whole(rng) if check == "whole" else checks.cases(check, rng)
    return cases, list(base.known)


def run_checks(key: str, submission: Path, seed: int, limit_s: float) -> dict[str, dict]:
    """{check: `result`} for every function, and all together ("whole")."""
    torch.set_num_threads(1)
    functions = list(ASSIGNMENTS[key].functions)
    texts = {path: cut.definition(cut.source_of(cut.split(path)[0]), cut.split(path)[1]) for path in functions}
    places, mutants = Places({path: cut.split(path) for path in functions}), known_mistakes(functions)
    with tempfile.TemporaryDirectory(prefix="grade-") as name:
        furnish(Path(name), key, submission)
        child = Child(Path(name), key, limit_s)

        def ask(check: str, mine: list[str]) -> tuple[list, list[Outcome], dict | None]:
            """(cases, outcomes, the result where there are none)."""
            cases, known = cases_of(key, check, seed)
            others = {path: text for path, text in texts.items() if path not in mine}
            job = {"check": check, "mine": mine, "others": others, "seed": seed, "known": known, "hidden": hidden()}
            answers, ended = child.ask(job)
            if not answers:
                answers = [("import", f"your file does not import: {ended}")]
            if answers[0] != "begins":
                kind, message = answers[0] if _is_last(answers[0]) else ("import", "")
                return cases, [], result(False, str(message)) | {"import": kind == "import"}
            found = [well_formed(answer) for answer in answers[1:] if answer != "done"][: len(cases)]
            return cases, found + [("raised", "", ended)] * (len(cases) - len(found)), None

        try:
            results: dict[str, dict] = {}
            for path in functions:
                cases, found, results[path] = ask(path, [path])
                if results[path] is None:
                    results[path] = check_function(path, cases, found, places.current[path], mutants[path], places)
                if results[path].pop("import", False):
                    return dict.fromkeys([*functions, "whole"], results[path])
            if all(found["ok"] for found in results.values()):
                results["whole"] = together(functions, ask, places)
            else:
                results["whole"] = result(False, "not before every function is right")
        finally:
            child.stop()
    return results


def together(functions: list[str], ask: Callable, places) -> dict:
    """All functions of the submission at once. Where that fails, the one without which it does not is named."""

    def check(mine: list[str]) -> dict:
        cases, found, refused = ask("whole", mine)
        return refused or check_function("", cases, found, None, [], places)

    found = check(functions)
    if found["ok"]:
        return found
    for path in functions:
        if check([other for other in functions if other != path])["ok"]:
            name = cut.name_of(path)
            return found | {"message": f"{found['message']}\nwith the package's own {name} it is right: look there"}
    return found
