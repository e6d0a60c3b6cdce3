"""`python tests/mutants`: see runner.py."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # tests/, where the other tests' doubles are

from mutants import runner

if __name__ == "__main__":  # a forked test imports it again
    sys.exit(runner.main(sys.argv[1:]))
