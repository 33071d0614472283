"""Do the found merges win? Every experiment, beside random search and all that needs no search.

    python benchmarks/experiments list
    python benchmarks/experiments run [NAME ...] [--scale tiny] [--out runs/experiments] [--jobs 2]
    python benchmarks/experiments show [--out runs/experiments] [--write docs/experiments.md]

`run` prints how long it will take and what it may take at most, and goes on where it was stopped.
A study of the tiny family runs on three families and seeds, each in one process, `--jobs` of them
at once; one of SmolLM2 runs once, with a worker on each processor. What a study found, its random
search at the same number of item evaluations, the base, the experts, their uniform merge, task
arithmetic on a grid, TIES and DARE as they come are measured on the same held-out items.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from studies import BY_NAME, SMOLLM2, STUDIES, TINY


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="the studies")
    runs = verbs.add_parser("run", help="run what is not finished")
    one = verbs.add_parser("one", help="one study on one seed, in this process")
    shows = verbs.add_parser("show", help="the tables, as Markdown")
    runs.add_argument("names", nargs="*", metavar="NAME", help="studies; all by default")
    runs.add_argument("--scale", choices=[TINY, SMOLLM2], help="those of one scale alone")
    runs.add_argument("--jobs", type=int, default=2, help="tiny runs at once")
    one.add_argument("name", choices=BY_NAME)
    one.add_argument("--seed", type=int, default=0)
    shows.add_argument("--write", type=Path, help="a page whose marked part is written anew")
    for verb in (runs, one, shows):
        verb.add_argument("--out", type=Path, default=Path("runs/experiments"))
    options = parser.parse_args()
    if options.verb == "list":
        for study in STUDIES:
            print(f"{study.name:32} {study.scale:8} {study.claim}")
        return 0
    if options.verb == "one":
        from one import run_one

        run_one(BY_NAME[options.name], options.seed, options.out)
        return 0
    if options.verb == "show":
        from study_tables import show

        return show(options.out, options.write)
    from schedule import run_all

    unknown = [name for name in options.names if name not in BY_NAME]
    if unknown:
        parser.error(f"no study {unknown[0]!r}; `list` shows them")
    tasks = [
        (study, seed)
        for study in STUDIES
        if (not options.names or study.name in options.names)
        and options.scale in (None, study.scale)
        for seed in study.seeds
    ]
    try:
        return min(1, run_all(tasks, options.out, options.jobs))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on")
        return 130


if __name__ == "__main__":
    sys.exit(main())
