"""Grade one submission in this process, which the parent may kill. Started by grade.py with a JSON file; see there.

Each result is one line of JSON in the file `out`: {"start": check}, then {"done": check, "ok", "message", "hint"}.
"""

from __future__ import annotations
import __future__

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

from bug_child import told
from graft import Places, submitted


class Graft(Places):
    """The stripped package in this process, with functions made from the text of the package."""

    def __init__(self, functions: list[str], cut) -> None:
        super().__init__({path: cut.split(path) for path in functions})
        self.cut = cut

    def compiled(self, path: str, source: str) -> Callable:
        """The function of `path` from this text of its module, with the stripped module's globals."""
        module, names = self.cut.split(path)
        text = self.cut.definition(source, names)
        scope = importlib.import_module(f"alignpro_mini.{module}").__dict__
        found: dict = {}
        code = compile(text, f"<{path}>", "exec", __future__.annotations.compiler_flag)
        exec(code, scope, found)
        return found[names[-1]]

    def reference(self, path: str) -> Callable:
        return self.compiled(path, self.cut.source_of(self.cut.split(path)[0]))


def check_function(path: str, function: Callable, cases: list, graft: Graft, mutants: list, base) -> dict:
    """Run the cases, the smallest first; the first one that differs is the counterexample."""
    for case in cases:
        found, want = base.outcome(function, case), base.outcome(case.oracle, case, numeric=True)
        if base.same(found, want, case.tolerance):
            continue
        if found[0] == "raised" and found[2].endswith("NotImplementedError"):  # PyTorch's own have a text
            return {"ok": False, "message": "not written yet (NotImplementedError)", "hint": ""}
        message = f"on {case.about}: {base.difference(found, want, case.tolerance)}"
        if call := base.call_of(case):
            message += f"\nthe call: {graft.cut.name_of(path)}{call}"
        return {"ok": False, "message": message, "hint": hint(path, function, case, cases, graft, mutants, base)}
    return {"ok": True, "message": f"{len(cases)} cases", "hint": ""}


def hint(path: str, function: Callable, case, cases: list, graft: Graft, mutants: list, base) -> str:
    """The hint of the known mistake that gives the same wrong outcome on this case; "" if none does.

    On a row of one token many mistakes look the same: a mistake is left out if it is wrong where the submission is
    right, and of several the one that agrees with the submission on most cases counts.
    """
    tried = [case, *(on for on in cases if on is not case)]
    same = lambda a, b: [base.same(x, y, on.tolerance) for x, y, on in zip(a, b, tried)]
    right = [base.outcome(on.oracle, on, numeric=True) for on in tried]
    mine = [base.outcome(function, on) for on in tried]
    passed = same(mine, right)
    best, found = 0, ""
    for mutant in mutants:
        known = graft.compiled(path, mutant["source"])
        if not base.same(base.outcome(known, case), mine[0], case.tolerance):
            continue
        agrees = same([base.outcome(known, on) for on in tried], mine)
        possible = all(a for a, p in zip(agrees, passed) if p)
        # A submission that draws may be right at this second call: then it agrees with mistakes that are none here.
        if not passed[0] and possible and sum(agrees) > best:
            best, found = sum(agrees), mutant["hint"]
    return found


def main(spec: dict) -> None:
    tests = Path(__file__).resolve().parents[2] / "tests"  # doubles.py: tiny models and tokenizers
    sys.path[:0] = [spec["package"], spec["here"], str(tests)]
    import torch

    torch.set_num_threads(1)
    cut, base = importlib.import_module("cut"), importlib.import_module("checks.base")
    checks = importlib.import_module(f"checks.{spec['assignment']}")
    out = Path(spec["out"])

    def write(**row) -> None:
        with out.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")

    graft = Graft(spec["functions"], cut)
    assigned = spec["assigned"]
    # The functions of other assignments are there when the submission imports them; its own ones are still empty.
    for path in set(spec["functions"]) - set(assigned):
        graft.put(path, graft.reference(path))
    write(start="import")
    try:
        where = importlib.util.spec_from_file_location("submission", spec["submission"])
        module = importlib.util.module_from_spec(where)
        sys.modules["submission"] = module
        where.loader.exec_module(module)
    except BaseException as error:  # sys.exit, too
        write(done="import", ok=False, message=f"your file does not import: {type(error).__name__}: {error}", hint="")
        return
    write(done="import", ok=True, message="", hint="")
    for path in assigned:
        graft.put(path, graft.reference(path))
    wrong = False
    for check in spec["only"]:
        if check == "whole" and wrong:
            break  # it gets no points then: grade.run_checks says why
        write(start=check)
        rng = torch.Generator().manual_seed(spec["seed"])
        try:
            if check == "whole":
                for path in assigned:
                    graft.put(path, submitted(module, cut.name_of(path)))
                checks.whole(rng)
                result = {"ok": True, "message": "", "hint": ""}
            else:
                mine = submitted(module, cut.name_of(check))
                known = spec["mutants"].get(check, [])
                others = {n: graft.current[p] for p in assigned if (n := cut.name_of(p)) in vars(module) and p != check}
                written = {name: vars(module)[name] for name in others}
                # A function that calls another one of the file gets the right one: each is judged alone.
                vars(module).update(others)
                graft.put(check, mine)
                try:
                    result = check_function(check, mine, checks.cases(check, rng), graft, known, base)
                finally:
                    graft.put(check, graft.reference(check))
                    vars(module).update(written)
        except BaseException as error:
            result = {"ok": False, "message": told(error, spec["submission"]), "hint": ""}
        wrong = wrong or not result["ok"]
        write(done=check, **result)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
