"""Run the tests of a bug hunt on one copy of the package, in a process that may be killed. Started by bug_hunt.py.

Results are written as watch.py reads them.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path

from graft import told


def main(spec: dict) -> None:
    sys.path[:0] = [spec["package"], str(Path(__file__).resolve().parents[2] / "tests")]
    import numpy
    import torch

    import alignpro_mini

    if not Path(alignpro_mini.__file__).is_relative_to(spec["package"]):
        raise RuntimeError("another package stands before the copy")
    torch.set_num_threads(1)

    def write(**row) -> None:
        with open(spec["out"], "a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")

    def attempt(name: str, function) -> bool:
        write(start=name)
        try:
            function()
            message = ""
        except BaseException as error:  # sys.exit and pytest's own, too
            message = told(error, spec["submission"])
        write(done=name, ok=not message, message=message, hint="")
        return not message

    where = importlib.util.spec_from_file_location("submission", spec["submission"])
    module = importlib.util.module_from_spec(where)
    sys.modules["submission"] = module
    if attempt("import", lambda: where.loader.exec_module(module)):
        for test in spec["only"]:
            torch.set_default_dtype(torch.float32)
            for seed_with in (torch.manual_seed, numpy.random.seed, random.seed):
                seed_with(spec["seed"])
            attempt(test, getattr(module, test))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
