"""Shrinkage: a candidate's score is drawn towards what its neighbours in the space scored.

Every merge of a search tells something of those with like coefficients. A hierarchical model that
ignored the genome would draw all candidates to the family's mean, and the best one most of all; so
the scores are conditioned on the genome (genome_model.py), over the cohort and all that was told
before it. Values are the process's posterior means, standard errors its posterior deviations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigurationError, Problem
from evomerge.fitness.estimators.estimate import Items
from evomerge.fitness.estimators.genome_model import Scored, Shape, fit, posterior
from evomerge.fitness.estimators.reading import Differences, Estimates, Reading, newest, settled
from evomerge.records import Candidate, Cohort, Estimate, Objective, Told

FITTED_ON = 256  # scores: the parameters are the most likely ones for the newest of them
KEPT = 8  # answers of the model; a race asks for the same ones several times


class Shrinkage:
    """Another reading, with its estimates conditioned on the genomes.

    Args:
        reading: what a candidate's own answers say.
        memory: the newest scores that are used; the cost rises with its cube.
    """

    needs_history = True
    needs_genes = True

    def __init__(self, objectives: Sequence[Objective], reading: Reading, memory: int) -> None:
        self._names = [o.name for o in objectives if o.cost is None]
        self._reading = reading
        self._memory = memory
        self._shapes: dict[tuple[str, int], Shape | None] = {}
        self._of_told: dict[tuple[str, int, int], Mapping[str, Estimate]] = {}
        self._known: dict[tuple[Any, ...], Estimates] = {}

    @property
    def tasks(self) -> Mapping[str, Sequence[int]]:
        """See `Reading`."""
        return self._reading.tasks

    def items(self, cohort: Cohort, counts: Sequence[int], rotation: int) -> list[Items]:
        """See `Reading`."""
        return self._reading.items(cohort, counts, rotation)

    def difference(
        self, cohort: Cohort, first: Candidate, second: Candidate, items: Items
    ) -> Differences:
        """See `Reading`; of the answers themselves."""
        return self._reading.difference(cohort, first, second, items)

    def estimates(self, cohort: Cohort, candidates: Sequence[Candidate], items: Items) -> Estimates:
        """See `Reading`; who has no genome (a reference) keeps the estimate of its own answers.

        Raises:
            ConfigurationError: genomes are no lists of numbers.
        """
        key = (
            id(cohort.measurements),
            cohort.index,
            tuple(c.id for c in candidates),
            *(tuple(ids) for ids in items.values()),
        )
        if key not in self._known:
            while len(self._known) >= KEPT:
                del self._known[next(iter(self._known))]
            self._known[key] = self._estimates(cohort, candidates, items)
        return self._known[key]

    def _estimates(
        self, cohort: Cohort, candidates: Sequence[Candidate], items: Items
    ) -> Estimates:
        found = self._reading.estimates(cohort, candidates, items)
        own = [c for c in candidates if c.genome is not None]
        if not own:
            return found
        own = list({c.fingerprint: c for c in own}.values())  # equal recipes share their answers
        fingerprints = {c.fingerprint for c in own}
        told = newest(cohort.history)[-self._memory :]
        before = [t for t in told if t.candidate.fingerprint not in fingerprints]
        genomes = _vectors([*(t.candidate for t in before), *own])
        groups = _groups([*(t.items for t in before), *[items] * len(own)])
        estimates = [*(self._estimate_of(cohort, t) for t in before), *(found[c.id] for c in own)]
        if not all(np.isfinite([e[n].value for e in estimates for n in self._names])):
            return found  # agreement with nobody: there is nothing to draw together
        wanted = range(len(before), len(estimates))
        result = {id_: dict(row) for id_, row in found.items()}
        for name in self._names:
            values = np.array([e[name].value for e in estimates])
            variances = np.array([e[name].standard_error ** 2 for e in estimates])
            scored = Scored(genomes, values, _floored(variances), groups)
            # The first candidates have nobody but each other, and are drawn together all the same:
            # else a lucky one of them would lead for ever.
            shape = self._shape(cohort, name) or fit(scored)
            if shape is None:
                continue
            means, errors = posterior(scored, shape, wanted)
            places = {c.fingerprint: place for place, c in enumerate(own)}
            for c in candidates:
                if c.genome is not None:
                    mean, variance = (float(x[places[c.fingerprint]]) for x in (means, errors))
                    count = found[c.id][name].num_items
                    result[c.id][name] = Estimate(mean, variance**0.5, count)
        return result

    def _shape(self, cohort: Cohort, name: str) -> Shape | None:
        """The process's parameters: learnt anew when there is twice as much history."""
        count = settled(len(cohort.history))
        if (name, count) not in self._shapes:
            told = newest(cohort.history[:count])[-FITTED_ON:]
            shape = None
            if told:
                rows = [self._estimate_of(cohort, t)[name] for t in told]
                variances = np.array([row.standard_error**2 for row in rows])
                shape = fit(
                    Scored(
                        _vectors([t.candidate for t in told]),
                        np.array([row.value for row in rows]),
                        _floored(variances),
                        _groups([t.items for t in told]),
                    )
                )
            self._shapes[name, count] = shape
        return self._shapes[name, count]

    def _estimate_of(self, cohort: Cohort, told: Told) -> Mapping[str, Estimate]:
        count = settled(len(cohort.history)) if self._reading.needs_history else 0
        key = (told.candidate.fingerprint, id(told.items), count)
        if key not in self._of_told:
            # What a reading learns from history is fixed until it learns anew: else this would
            # depend on who asked first.
            then = replace(cohort, history=cohort.history[:count])
            rows = self._reading.estimates(then, [told.candidate], told.items)
            self._of_told[key] = rows[told.candidate.id]
        return self._of_told[key]


def _floored(variances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Few answers that are all alike do not make a score certain."""
    return np.maximum(variances, max(0.25 * float(np.median(variances)), 1e-8))


def _vectors(candidates: Sequence[Candidate]) -> NDArray[np.float64]:
    """The genomes, shape (candidates, genes).

    Raises:
        ConfigurationError: they are no lists of equally many numbers.
    """
    try:
        vectors = np.array([c.genome for c in candidates], dtype=np.float64)
    except (TypeError, ValueError):
        vectors = np.zeros(0)
    if vectors.ndim != 2:
        what = "needs a space whose genomes are lists of numbers"
        raise ConfigurationError(Problem("estimator shrinkage", what))
    return vectors


def _groups(item_sets: Sequence[Items]) -> NDArray[np.int64]:
    """Equal numbers for item sets that begin alike: the rungs of one race do."""
    shortest = min(len(ids) for items in item_sets for ids in items.values())
    numbers: dict[tuple[int, ...], int] = {}
    keys = [tuple(i for ids in items.values() for i in ids[:shortest]) for items in item_sets]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)
