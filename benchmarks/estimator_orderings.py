"""Which of the papers' orderings of estimators hold, with intervals and corrected tests.

    python benchmarks/estimator_orderings.py --matrix ARC.npz GSM.npz [--out runs/estimators]
    python benchmarks/estimator_orderings.py --run runs/tiny_full

The cases are those of `estimators.py`. An ordering says that the second of two has the lower error
(mean absolute error of a model's score, in points, paired by model) or the lower regret (the best
of a family less the picked one, in points, paired by family), at so many answers a candidate.
Within a table all p-values are corrected together (Holm). Models and families of a leaderboard are
alike and overlap, so the intervals are of these cases, not of all that there could be.

Each row that is measured is kept in --out, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from estimators import COUNTS, Case, estimated, family_cases, halving, run_cases, target_cases
from numpy.typing import NDArray
from paired import HEAD, differences
from threadpoolctl import threadpool_limits

from evomerge.files import write_text

Floats = NDArray[np.float64]

# (paper, the worse, the better)
ERRORS = [
    ("tinyBenchmarks", "random", "stratified"),
    ("tinyBenchmarks", "random", "anchors"),
    ("tinyBenchmarks", "random", "gp-irt"),
    ("tinyBenchmarks", "anchors", "gp-irt, anchors"),
    ("tinyBenchmarks", "p-irt", "gp-irt"),
    ("MERGE^3", "random", "mp-irt"),
    ("MERGE^3", "p-irt", "mp-irt"),
    ("MERGE^3", "gp-irt", "gmp-irt"),
]
REGRETS = [
    ("common items", "random, independent", "random, common"),
    ("successive halving", "random, common", "random, halving"),
    ("successive halving", "stratified, common", "stratified, halving"),
    ("successive halving", "mp-irt, common", "mp-irt, halving"),
    ("tinyBenchmarks", "random, common", "gp-irt, common"),
    ("MERGE^3", "random, common", "mp-irt, common"),
    ("MERGE^3", "p-irt, common", "mp-irt, common"),
    ("MERGE^3", "random, halving", "mp-irt, halving"),
]


def errors_of(cases: Sequence[Case], subsets: int, name: str) -> Floats:
    """Mean absolute error of each target at each count, in points, (targets, counts)."""
    found = np.zeros((len(cases), len(COUNTS)))
    for number, case in enumerate(cases):
        for subset in range(subsets):
            reading = case.reading(name, 1000 * number + subset)
            assert reading is not None
            order, answers = reading.order(COUNTS, 0), case.candidates[0]
            for place, count in enumerate(COUNTS):
                seen = order[:count]
                found[number, place] += abs(reading.read(seen, answers[seen])[0] - answers.mean())
    return 100 * found / subsets


def regrets_of(cases: Sequence[Case], draws: int, row: str) -> Floats:
    """Mean regret in each family at each count, in points, (families, counts)."""
    name, way = row.rsplit(", ", 1)
    found = np.zeros((len(cases), len(COUNTS)))
    for number, case in enumerate(cases):
        truth = case.candidates.mean(axis=1)
        for draw in range(draws):
            reading = case.reading(name, 1000 * number + draw)
            assert reading is not None
            for place, count in enumerate(COUNTS):
                if way == "halving":
                    values, _ = halving(reading, case.candidates, count, 0)
                elif way == "independent":
                    rows = enumerate(case.candidates)
                    values = np.array([estimated(reading, r[None], count, i)[0] for i, r in rows])
                else:
                    values = estimated(reading, case.candidates, count, 0)
                found[number, place] += truth.max() - truth[values.argmax()]
    return 100 * found / draws


def report(
    name: str,
    cases: Sequence[Case],
    of: str,
    repeats: int,
    out: Path,
) -> None:
    """Measure what `out` has not yet, and print the table; `of`: error or regret."""
    orderings = ERRORS if of == "error" else REGRETS
    rows = dict.fromkeys(row for _, *pair in orderings for row in pair)
    known: dict[str, Floats] = {}
    for row in rows:
        file = out / f"{name} {of} {row} {len(cases)} x {repeats}.json".replace(" ", "_")
        if cases[0].reading(row if of == "error" else row.rsplit(", ", 1)[0], 0) is None:
            continue
        if not file.exists():
            measure = errors_of if of == "error" else regrets_of
            write_text(file, json.dumps(measure(cases, repeats, row).tolist()))
        known[row] = np.array(json.loads(file.read_text()))
        means = " / ".join(f"{value:.2f}" for value in known[row].mean(axis=0))
        print(f"{name} {of} {row}: {means}", flush=True)
    gains = {
        f"{paper}: {worse} - {better}, {count} answers": known[worse][:, place]
        - known[better][:, place]
        for paper, worse, better in orderings
        if worse in known and better in known
        for place, count in enumerate(COUNTS)
    }
    print(f"\n{name}: {of} in points, {len(cases)} cases x {repeats} samples\n\n{HEAD}")
    print("\n".join(difference.row(2) for difference in differences(gains)), "\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--matrix", type=Path, nargs="+", default=[])
    parser.add_argument("--run", type=Path, nargs="+", default=[])
    parser.add_argument("--targets", type=int, default=48)
    parser.add_argument("--subsets", type=int, default=8)
    parser.add_argument("--families", type=int, default=40)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--without-irt", action="store_true", help="pools take most of the time")
    parser.add_argument("--out", type=Path, default=Path("runs/estimators"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with_pool = not given.without_irt
    with threadpool_limits(1):
        for path in given.matrix:
            with np.load(path, allow_pickle=False) as arrays:
                responses = arrays["responses"].astype(np.float64)
            generator = np.random.default_rng([0, 0])
            targets = target_cases(responses, given.targets, generator, with_pool)
            report(path.stem, targets, "error", given.subsets, given.out)
            families = family_cases(responses, given.families, generator, with_pool)
            report(path.stem, families, "regret", given.draws, given.out)
        for path in given.run:
            _, targets, families = run_cases(path, given.targets, given.families, 0, with_pool)
            report(path.name, targets, "error", given.subsets, given.out)
            report(path.name, families, "regret", given.draws, given.out)


if __name__ == "__main__":
    main()
