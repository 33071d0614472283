"""What the report of a long run costs: processor seconds, and the size of the file.

    python benchmarks/report.py [--candidates 10000] [--objectives 3] [--layers 32] [--experts 3]

The ledger is made up: every candidate has its own recipe and answers, the search is told of them
ten by ten, or --cohort by --cohort. Everything on one thread.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # before numpy is imported
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "results" / "report"))

from made_up import MadeUp, make

from evomerge.results.report import write_report


def main() -> None:
    """Make a ledger, and its report twice: the first imports libraries."""
    parser = argparse.ArgumentParser(description=__doc__)
    defaults = {"candidates": 10_000, "objectives": 3, "layers": 32, "experts": 3, "cohort": 10}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = make(
            Path(scratch) / "run",
            MadeUp(
                candidates=given.candidates,
                objectives=[f"objective {k}" for k in range(given.objectives)],
                experts=[f"expert {k}" for k in range(given.experts)],
                num_layers=given.layers,
                cohort=given.cohort,
            ),
        )
        for turn in ("first", "again"):
            began, wall = time.process_time(), time.monotonic()
            path = write_report(folder)
            taken = time.process_time() - began
            print(
                f"{turn}: {given.candidates:,} candidates, {given.objectives} objectives, "
                f"{given.experts * given.layers} genes: {taken:.2f} s of a processor, "
                f"{time.monotonic() - wall:.2f} s in all, {path.stat().st_size / 1e6:.1f} MB"
            )


if __name__ == "__main__":
    main()
