"""`python tests/mutants`: see runner.py."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # tests/, where the other tests' doubles are

from mutants import runner

sys.exit(runner.main(sys.argv[1:]))
