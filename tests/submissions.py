"""What students could hand in: the package's own functions, written as a student would."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tutorials" / "assignments"))

import catalogue  # noqa: E402
import cut  # noqa: E402

HELPERS = {  # what the package's functions call besides: a student writes such helpers too
    "a1": "from alignpro_mini.rl_math import KL_KINDS, _same_shape",
    "a3": "from alignpro_mini.options import require",
    "a4": "from alignpro_mini.rl_math import _same_shape",
    "a5": "from alignpro_mini.rl_math import _same_shape",
    "a6": "from alignpro_mini.rl_math import _same_shape, masked_var",
    "a8": "from alignpro_mini.theory import _kl_logs, _log_optimum, _tables\n"
    "from alignpro_mini.lab.evaluation import SHARE\n"
    "from alignpro_mini.lab.statistics import interval, resampled_moments",
}


def reference(key: str, changed: dict[str, str] | None = None) -> list[str]:
    """The package's own functions as a student would write them: helpers of the module come along as helpers."""
    source = lambda path: cut.definition(cut.source_of(cut.split(path)[0]), cut.split(path)[1])
    written = {path: source(path) for path in catalogue.ASSIGNMENTS[key].functions} | (changed or {})
    return [*catalogue.ASSIGNMENTS[key].imports, HELPERS.get(key, ""), *cut.blocks(written)]
