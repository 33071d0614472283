"""How an estimator reads what was measured: which items it wants, and what the answers say.

An estimator is a race over a reading (see racing.py). Most readings look at one column of one task
at a time (column.py), and are put together here: tasks are strata, so that an objective's value is
the weighted mean of its tasks' values, and its variance the weighted sum of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigurationError, Problem
from evomerge.fitness.estimators.column import ColumnReading, RandomItems, Side
from evomerge.fitness.estimators.estimate import Items, estimate
from evomerge.records import Candidate, CandidateId, Cohort, Estimate, Objective, Told

NO_EXPERTS = ("base", "uniform")  # labels of references
Estimates = dict[CandidateId, dict[str, Estimate]]
Differences = tuple[NDArray[np.float64], NDArray[np.float64]]


class Reading(Protocol):
    """Chooses items for a cohort, and reads the answers to them."""

    needs_history: bool
    needs_genes: bool  # whether it places candidates by their genomes

    @property
    def tasks(self) -> Mapping[str, Sequence[int]]:
        """The search items of every task."""
        ...

    def items(self, cohort: Cohort, counts: Sequence[int], rotation: int) -> list[Items]:
        """For each count, that many items of each task; each set contains the one before."""
        ...

    def estimates(self, cohort: Cohort, candidates: Sequence[Candidate], items: Items) -> Estimates:
        """What the answers to these items, which all of the candidates gave, say of each."""
        ...

    def difference(
        self, cohort: Cohort, first: Candidate, second: Candidate, items: Items
    ) -> Differences:
        """First minus second: per objective the mean and its standard error."""
        ...


# Makes the reading of one column of one task: (task, what is known of it, seed, number of items).
MakeColumn = Callable[[str, Side, int, int], ColumnReading]


class ByTask:
    """Reads each column of each task by itself."""

    def __init__(
        self,
        objectives: Sequence[Objective],
        items: Items,
        make: MakeColumn,
        seed: int,
        *,
        needs_references: bool = False,
        needs_history: bool = False,
    ) -> None:
        self._objectives = tuple(objectives)
        self._make = make
        self._needs_references = needs_references
        self._learns = needs_history
        self._compares = any(objective.agreement for objective in objectives)
        self.needs_history = needs_history or self._compares
        self.needs_genes = False  # where neighbours cannot be told, all are
        self.tasks = {task: tuple(ids) for task, ids in items.items()}
        seeds = np.random.SeedSequence(seed).generate_state(len(items))
        self._seeds = dict(zip(sorted(items), map(int, seeds), strict=True))
        self._places = {task: _places(ids) for task, ids in self.tasks.items()}
        self._made: dict[tuple[str, str], tuple[object, ColumnReading]] = {}

    def items(self, cohort: Cohort, counts: Sequence[int], rotation: int) -> list[Items]:
        """See `Reading`; a task's items are chosen by the first objective that reads it."""
        chosen = {}
        for task, ids in self.tasks.items():
            if len(ids) == 1:  # a task that gives one number has nothing to choose from
                chosen[task] = tuple(ids)
                continue
            order = self._column(cohort, task, self._first_column(task)).order(counts, rotation)
            chosen[task] = tuple(ids[place] for place in order.tolist())
        return [{task: ids[:count] for task, ids in chosen.items()} for count in counts]

    def estimates(self, cohort: Cohort, candidates: Sequence[Candidate], items: Items) -> Estimates:
        """See `Reading`; a cost is exact, and agreement a plain mean."""
        peers: Sequence[Candidate] = candidates
        if self._compares:
            before = [t.candidate for t in cohort.history if same_items(t.items, items)]
            peers = [*candidates, *before]
        return {c.id: self._estimate(cohort, c, items, peers) for c in candidates}

    def difference(
        self, cohort: Cohort, first: Candidate, second: Candidate, items: Items
    ) -> Differences:
        """See `Reading`; paired on common items, as far as the column's reading can."""
        means, variances = [], []
        for objective in self._objectives:
            mean, variance = 0.0, 0.0
            if (cost := objective.cost) is not None:
                prices = [cohort.measurements.cost(c, cost) for c in (first, second)]
                mean = float(objective.sign * (prices[0] - prices[1]))
            if objective.agreement:
                variance = np.inf  # whom it depends on is not among the two
            for task, weight in () if objective.agreement else objective.weights.items():
                ours, theirs = (
                    cohort.measurements.values(c.fingerprint, task, items[task], objective.column)
                    for c in (first, second)
                )
                reading = self._column(cohort, task, objective.column)
                gap, error = reading.compare(self._seen(task, items), ours, theirs)
                mean += objective.sign * weight * gap
                variance += weight**2 * error
            means.append(mean)
            variances.append(variance)
        return np.array(means), np.sqrt(variances)

    def _estimate(
        self, cohort: Cohort, candidate: Candidate, items: Items, peers: Sequence[Candidate]
    ) -> dict[str, Estimate]:
        def read(
            objective: Objective, task: str, answers: NDArray[np.float64]
        ) -> tuple[float, float]:
            reading = self._column(cohort, task, objective.column)
            return reading.read(self._seen(task, items), answers)

        return estimate(self._objectives, cohort.measurements, candidate, items, peers, read)

    def _first_column(self, task: str) -> str:
        """What chooses a task's items; agreement's column has names and no values."""
        own = (o.column for o in self._objectives if task in o.weights and not o.agreement)
        return next(own, "score")

    def _seen(self, task: str, items: Items) -> NDArray[np.int64]:
        return self._places[task][np.asarray(items[task], np.int64)]

    def _column(self, cohort: Cohort, task: str, column: str) -> ColumnReading:
        """The reading of one column; made once, or anew when there is twice as much history."""
        learnt = settled(len(cohort.history)) if self._learns else 0
        key: tuple[object, ...] = ()
        if self._needs_references:
            key = (*(c.fingerprint for c in cohort.references), learnt)
        known = self._made.get((task, column))
        if known is None or known[0] != key:
            side = Side()
            if self._needs_references:
                side = self._side(cohort, task, column, newest(cohort.history[:learnt]))
            num_items = len(self.tasks[task])
            make = self._make if num_items > 1 else _plain
            made = make(task, side, self._seeds[task], num_items)
            self._made[task, column] = known = (key, made)
        return known[1]

    def _side(self, cohort: Cohort, task: str, column: str, history: Sequence[Told]) -> Side:
        ids = self.tasks[task]
        if not cohort.references:
            raise ConfigurationError(
                Problem("estimator", "there are no references to learn the items from")
            )
        rows = [
            cohort.measurements.values(c.fingerprint, task, ids, column) for c in cohort.references
        ]
        told = np.full((len(history), len(ids)), np.nan)
        for row, entry in enumerate(history):
            seen = self._seen(task, entry.items)
            told[row, seen] = cohort.measurements.values(
                entry.candidate.fingerprint, task, entry.items[task], column
            )
        experts = [n for n, c in enumerate(cohort.references) if c.label not in NO_EXPERTS]
        return Side(np.array(rows), tuple(experts), told)


def _plain(_task: str, side: Side, seed: int, num_items: int) -> ColumnReading:
    return RandomItems(side, seed=seed, num_items=num_items)


def _places(ids: Sequence[int]) -> NDArray[np.int64]:
    """Item id -> its position among the task's search items."""
    places = np.full(max(ids, default=-1) + 1, -1, np.int64)
    places[list(ids)] = np.arange(len(ids))
    return places


def newest(history: Sequence[Told]) -> list[Told]:
    """Every recipe once, as it was told last, the one that was told last at the end."""
    last: dict[str, Told] = {}
    for entry in history:
        last.pop(entry.candidate.fingerprint, None)
        last[entry.candidate.fingerprint] = entry
    return list(last.values())


def same_items(first: Items, second: Items) -> bool:
    """Whether two item sets are equal, task by task and in order."""
    return first is second or all(tuple(first[task]) == tuple(ids) for task, ids in second.items())


def settled(count: int) -> int:
    """The largest power of two up to a count: what is learnt from history is learnt anew then."""
    return 1 << count.bit_length() - 1 if count else 0
