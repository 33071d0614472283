"""How well a few answers tell a model's score, and which of a family is picked by them.

    python benchmarks/estimators.py --matrix ARC.npz GSM.npz
    python benchmarks/estimators.py --matrix ARC.npz --without-irt --targets 218 --families 83
    python benchmarks/estimators.py --run runs/tiny_full runs/smollm2_full

A matrix is an .npz with `responses` (models, items), 0 or 1: a leaderboard's. No model there is a
merge. What stands for one is any model; what stands for its experts are the three others that are
most like it (correlation of responses). Near-copies (correlation above .9) are neither experts nor
in the pool of item response theory, and nobody whose score is estimated is in the pool.

A run is one whose candidates answered all search items (`estimator: {kind: full}`): real merges,
with their real references (base, experts, uniform merge). Its tasks stand side by side as one
matrix. A family are 12 candidates that the searcher asked for one after the other (or points of the
task arithmetic grid), the pool 100 others; with fewer there is none.

Errors: `--targets` models x `--subsets` samples; nested counts. Choices: `--families` of 12 (a
random model and the 11 most like it; experts are most like their mean) x `--draws` samples. All
rows see the same targets, families and seeds. Columns:

    error     mean absolute error, in points
    covered   share of 95 % normal intervals that hold the true mean
    rank      Spearman's correlation of estimated and true scores in a family
    regret    the best of a family less the picked one, in points; in brackets its standard error
              over families
    items     item evaluations of a family; the references' 3 x items come on top of all but the
              plain means
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata
from threadpoolctl import threadpool_limits

from evomerge.experiment.recorded import read_run
from evomerge.fitness.estimators.aipw import Aipw
from evomerge.fitness.estimators.anchors import Anchors
from evomerge.fitness.estimators.column import (
    ColumnReading,
    Floats,
    Positions,
    RandomItems,
    Side,
)
from evomerge.fitness.estimators.irt import GmpIrt, GpIrt, MpIrt, PIrt
from evomerge.fitness.estimators.irt_pool import ItemPool, fit_pool
from evomerge.fitness.estimators.stratified import Stratified
from evomerge.records import Candidate

Make = Callable[..., ColumnReading]

COUNTS = (10, 30, 100)
COPY = 0.9  # responses that correlate more are of the same model, or nearly
FAMILY = 12
# Candidates on each rung of successive halving; the rungs get as many item evaluations each. Taken
# from eight such rows by their regret on 80 families of another seed, which share models with the
# default seed's. Only those that keep a third on the first rung did worse (by a tenth).
SURVIVORS = (12, 8, 5, 3, 2)
READINGS: dict[str, Make] = {
    "random": RandomItems,
    "stratified": Stratified,
    "anchors": Anchors,
    "aipw": Aipw,
    "p-irt": PIrt,
    "gp-irt": GpIrt,
    "mp-irt": MpIrt,
    "mp-irt, residuals": functools.partial(MpIrt, residuals=True),
    "gmp-irt": GmpIrt,
    "gp-irt, anchors": functools.partial(GpIrt, anchors=True),
}
HALVED = ("random", "stratified", "aipw", "p-irt", "mp-irt", "mp-irt, residuals")


@dataclass(frozen=True)
class Case:
    """Candidates whose every answer is known, and what an estimator may know of them before.

    candidates: (candidates, items); references: (models, items), `experts` of them.
    """

    candidates: Floats
    references: Floats
    experts: tuple[int, ...]
    pool: ItemPool | None = None

    def reading(self, name: str, seed: int) -> ColumnReading | None:
        """A reading by its name; None where it needs a pool and there is none."""
        options: dict[str, Any] = {"pool": self.pool} if "irt" in name else {}
        if "irt" in name and self.pool is None:
            return None
        side = Side(self.references, self.experts)
        return READINGS[name](side, seed=seed, num_items=self.candidates.shape[1], **options)


def experts_of(responses: Floats, correlation: Floats, family: Positions) -> list[int]:
    """The three models most like the family's mean, none a copy of one of it."""
    mean = responses[family].mean(axis=0)
    like = np.array([np.corrcoef(mean, row)[0, 1] for row in responses])
    like[(correlation[family] > COPY).any(axis=0)] = -math.inf
    return [int(model) for model in np.argsort(-like, kind="stable")[:3]]


def pool_without(responses: Floats, correlation: Floats, family: Positions) -> ItemPool:
    """Item parameters from all models that are neither in the family nor copies."""
    return fit_pool(responses[~(correlation[family] > COPY).any(axis=0)])


def target_cases(
    responses: Floats, num_targets: int, generator: np.random.Generator, with_pool: bool
) -> list[Case]:
    """One target each; six of them are left out of a pool at once, to save fits."""
    correlation: Floats = np.atleast_2d(np.corrcoef(responses))
    targets = generator.permutation(len(responses))[:num_targets]
    cases = []
    for group in np.array_split(targets, math.ceil(len(targets) / 6)):
        pool = pool_without(responses, correlation, group) if with_pool else None
        for target in group:
            experts = experts_of(responses, correlation, np.array([target]))
            cases.append(Case(responses[[target]], responses[experts], (0, 1, 2), pool))
    return cases


def family_cases(
    responses: Floats, num: int, generator: np.random.Generator, with_pool: bool
) -> list[Case]:
    """Families of 12 in random order, each with a pool of its own."""
    correlation: Floats = np.atleast_2d(np.corrcoef(responses))
    cases = []
    for centre in generator.permutation(len(responses))[:num]:
        family = generator.permutation(np.argsort(-correlation[centre], kind="stable")[:FAMILY])
        experts = experts_of(responses, correlation, family)
        pool = pool_without(responses, correlation, family) if with_pool else None
        cases.append(Case(responses[family], responses[experts], (0, 1, 2), pool))
    return cases


def run_cases(
    folder: Path, num_targets: int, num_families: int, seed: int, with_pool: bool
) -> tuple[str, list[Case], list[Case]]:
    """A recorded run's name, targets and families."""
    run = read_run(folder)
    search = run.split.search

    def answers(candidate: Candidate) -> Floats:
        parts = [run.measurements.values(candidate.fingerprint, t, i) for t, i in search.items()]
        return np.concatenate(parts)

    grid = [c for c in run.references if c not in run.models]
    merges = [*grid, *(c for cohort in run.cohorts for c in cohort if c.recipe)]
    asked = {c.fingerprint: answers(c) for c in merges}
    candidates = np.array([row for row in asked.values() if np.isfinite(row).all()])
    references = np.array([answers(model) for model in run.models])
    experts = tuple(n for n, m in enumerate(run.models) if m.label not in ("base", "uniform"))
    generator = np.random.default_rng([seed, 1])

    def pool(chosen: Positions) -> ItemPool | None:
        others = np.setdiff1d(np.arange(len(candidates)), chosen)
        taken = generator.permutation(others)[:100]
        return fit_pool(candidates[taken]) if with_pool and len(taken) >= 30 else None

    targets = []
    for group in np.array_split(generator.permutation(len(candidates))[:num_targets], 4):
        without = pool(group)
        targets += [Case(candidates[[t]], references, experts, without) for t in group]
    starts = generator.permutation(max(len(candidates) // FAMILY, 1))[:num_families] * FAMILY
    families = [
        Case(candidates[family], references, experts, pool(family))
        for family in starts[:, None] + np.arange(FAMILY)
    ]
    name = f"{folder.name} ({len(candidates)} merges x {candidates.shape[1]} items)"
    return name, targets, families


def errors(cases: Sequence[Case], subsets: int, name: str) -> tuple[Floats, Floats]:
    """Mean absolute error and coverage at each count."""
    gaps, covered = [], []
    for number, case in enumerate(cases):
        for subset in range(subsets):
            reading = case.reading(name, 1000 * number + subset)
            assert reading is not None
            order = reading.order(COUNTS, 0)
            for answers in case.candidates:
                for count in COUNTS:
                    seen = order[:count]
                    value, variance = reading.read(seen, answers[seen])
                    gap = abs(value - answers.mean())
                    gaps.append(gap)
                    covered.append(gap <= 1.96 * math.sqrt(variance))
    shape = (-1, len(COUNTS))
    return np.reshape(gaps, shape).mean(axis=0), np.reshape(covered, shape).mean(axis=0)


def estimated(reading: ColumnReading, candidates: Floats, count: int, rotation: int) -> Floats:
    """All candidates' values on common items."""
    seen = reading.order((count,), rotation)
    return np.array([reading.read(seen, answers[seen])[0] for answers in candidates])


def halving(
    reading: ColumnReading, candidates: Floats, count: int, rotation: int
) -> tuple[Floats, int]:
    """Successive halving on `count` items a candidate on average: values, and the items spent.

    Who left earlier ranks below who left later: 2 is added for each rung that was reached.
    """
    each = count * len(candidates) / len(SURVIVORS)
    counts = np.cumsum([each / num for num in SURVIVORS]).astype(int)
    order = reading.order(counts.tolist(), rotation)
    running = np.arange(len(candidates))
    values, spent, before = np.zeros(len(candidates)), 0, 0
    for number, rung in enumerate(counts):
        best = np.argsort(-values[running], kind="stable")[: SURVIVORS[number]]
        running = running[np.sort(best)]
        seen = order[:rung]
        for i in running:
            values[i] = 2 * number + reading.read(seen, candidates[i, seen])[0]
        spent, before = spent + len(running) * int(rung - before), rung
    return values, spent


def choices(
    cases: Sequence[Case], draws: int, count: int, name: str, way: str
) -> tuple[float, float, float, float]:
    """Rank correlation, regret, its standard error over families, and the items spent."""
    regrets, ranks, spent = np.zeros((len(cases), draws)), [], 0
    for number, case in enumerate(cases):
        truth = case.candidates.mean(axis=1)
        for draw in range(draws):
            seed = 1000 * number + draw
            reading = case.reading(name, seed)
            assert reading is not None
            if way == "halving":
                values, spent = halving(reading, case.candidates, count, 0)
            elif way == "independent":
                values = np.array(
                    [
                        estimated(reading, row[None], count, i)[0]
                        for i, row in enumerate(case.candidates)
                    ]
                )
                spent = count * len(truth)
            else:
                values, spent = estimated(reading, case.candidates, count, 0), count * len(truth)
            regrets[number, draw] = truth.max() - truth[values.argmax()]
            ranks.append(spearman(values, truth))
    means = regrets.mean(axis=1)
    error = float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    return float(np.mean(ranks)), float(regrets.mean()), error, spent


def spearman(first: Floats, second: Floats) -> float:
    """With mean ranks for ties; 0 if one side is all ties."""
    a, b = (rankdata(x) - (len(x) + 1) / 2 for x in (first, second))
    size = math.sqrt(float((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 0.0


def report(
    name: str, targets: Sequence[Case], families: Sequence[Case], subsets: int, draws: int
) -> None:
    """Both tables of one set of cases; `targets` and `families` may be the same."""
    print(f"\n{name}: {len(targets)} targets x {subsets}, {len(families)} families x {draws}")
    print(f"answers a candidate: {' / '.join(map(str, COUNTS))}")
    heads = ("error", "covered", "rank", "regret", "items", "s")
    print(LINE.format("", *heads))
    rows = [("random", "independent"), *((reading, "common") for reading in READINGS)]
    rows += [(reading, "halving") for reading in HALVED]
    for reading, way in rows:
        start = time.perf_counter()
        if families[0].reading(reading, 0) is None:
            continue
        error = covered = ""
        if way == "common":
            measured = errors(targets, subsets, reading)
            error, covered = (
                joined("{:.1f}", 100 * measured[0]),
                joined("{:.0f}", 100 * measured[1]),
            )
        rank, regret, noise, items = zip(
            *(choices(families, draws, n, reading, way) for n in COUNTS), strict=True
        )
        regrets = " / ".join(
            f"{100 * r:.2f} ({100 * e:.2f})" for r, e in zip(regret, noise, strict=True)
        )
        cells = (error, covered, joined("{:.2f}", rank), regrets, joined("{:.0f}", items))
        seconds = f"{time.perf_counter() - start:.0f}"
        print(LINE.format(f"{reading}, {way}", *cells, seconds), flush=True)


LINE = "{:27}{:>17}{:>15}{:>20}{:>41}{:>19}{:>5}"


def joined(form: str, values: Iterable[float]) -> str:
    return " / ".join(form.format(value) for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--matrix", type=Path, nargs="+", default=[])
    parser.add_argument("--run", type=Path, nargs="+", default=[])
    parser.add_argument("--targets", type=int, default=24)
    parser.add_argument("--subsets", type=int, default=16)
    parser.add_argument("--families", type=int, default=20)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--without-irt", action="store_true", help="pools take most of the time")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for path in arguments.matrix:
        with np.load(path, allow_pickle=False) as arrays:
            responses = arrays["responses"].astype(np.float64)
        start = time.perf_counter()
        with threadpool_limits(1):
            generator = np.random.default_rng([arguments.seed, 0])
            with_pool = not arguments.without_irt
            targets = target_cases(responses, arguments.targets, generator, with_pool)
            families = family_cases(responses, arguments.families, generator, with_pool)
            print(f"\n{path.stem}: prepared in {time.perf_counter() - start:.0f} s", end="")
            name = f"{path.stem} ({responses.shape[0]} models x {responses.shape[1]} items)"
            report(name, targets, families, arguments.subsets, arguments.draws)
    for path in arguments.run:
        with threadpool_limits(1):
            name, targets, families = run_cases(
                path,
                arguments.targets,
                arguments.families,
                arguments.seed,
                not arguments.without_irt,
            )
            report(name, targets, families, arguments.subsets, arguments.draws)


if __name__ == "__main__":
    main()
