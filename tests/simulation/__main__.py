"""`python -m tests.simulation`: see `command.py`, which is imported at the smaller scale."""

import argparse
import importlib
import sys

from tests.simulation.edits import SMALL, install
from tests.simulation.mutants import MUTANTS


def main() -> int:
    """Run what the arguments say; 1 if a seed failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="Simulate the read path.")
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="this seed only")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--most-failures", type=int, default=1, help="stop after so many seeds failed")
    parser.add_argument("-v", "--verbose", action="store_true", help="print what happened in the seed")
    parser.add_argument("--digests", action="store_true", help="print a digest of what happened in each seed")
    parser.add_argument("--sabotage", default="", help="a fake at the edge that lies, to see that it is noticed")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="a defect put into lazyfs, to see that it is noticed")
    options = parser.parse_args()
    install([*SMALL, *([MUTANTS[options.mutant]] if options.mutant else [])])
    status: int = importlib.import_module("tests.simulation.command").run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
