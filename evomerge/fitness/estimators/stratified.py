"""Stratified items: each kind of item is answered in proportion, and counts in proportion.

Kinds are the references' response patterns (who of them was right). Strata stand on a line by
expected score, and the items are walked along it in golden-ratio steps: the gaps that a window of
any length leaves differ by little (three-distance theorem, Sos 1958), so every prefix and every
rotation is allocated in proportion, whatever its length. Post-stratification (Holt & Smith 1979)
mends what is left; strata with too few answers are read together with their neighbour on the line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from evomerge.fitness.estimators.column import (
    Floats,
    Positions,
    Side,
    check_counts,
    check_side,
    window,
)

GOLDEN = (math.sqrt(5) - 1) / 2
PRIOR_ANSWERS = 4.0  # what the references' variance weighs against the candidate's own


class Stratified:
    """Post-stratified mean over items in proportion to the references' response patterns.

    strata: how many at most; where there are more patterns, equal shares by expected score.
    least: answers that a stratum needs to be read by itself.
    """

    def __init__(
        self, side: Side, *, seed: int, num_items: int, strata: int = 32, least: int = 5
    ) -> None:
        check_side(side, num_items)
        references = side.references
        self._stratum = strata_of(references, strata)  # (N,), by rising expected score
        self._sizes = np.bincount(self._stratum).astype(np.float64)
        self._least = least
        self._ring = golden_ring(self._stratum, np.random.default_rng([seed, 1]))
        self._prior, self._prior_of_gaps = priors(references, strata)

    def order(self, counts: Sequence[int], rotation: int) -> Positions:
        """Windows of the walk along the strata."""
        check_counts(counts, len(self._ring))
        return window(self._ring, counts[-1], rotation)

    def read(self, seen: Positions, answers: Floats) -> tuple[float, float]:
        """sum_h W_h mean_h, and sum_h W_h^2 s_h^2 / n_h with shrunken s_h^2."""
        return self._read(seen, answers, self._prior)

    def compare(self, seen: Positions, first: Floats, second: Floats) -> tuple[float, float]:
        """The reading of the paired differences."""
        return self._read(seen, first - second, self._prior_of_gaps)

    def _read(self, seen: Positions, answers: Floats, prior: float) -> tuple[float, float]:
        group, weights = self._groups(seen)
        counts = np.bincount(group, minlength=len(weights))
        means = np.bincount(group, answers, len(weights)) / counts
        squares = np.bincount(group, (answers - means[group]) ** 2, len(weights))
        freedom = counts - 1
        # Posterior means of variances under inverse gamma priors, hence the 2.
        pooled = (squares.sum() + PRIOR_ANSWERS * prior) / (freedom.sum() + PRIOR_ANSWERS - 2)
        variances = (squares + PRIOR_ANSWERS * pooled) / (freedom + PRIOR_ANSWERS - 2)
        return float(weights @ means), float((weights**2 * variances / counts).sum())

    def _groups(self, seen: Positions) -> tuple[Positions, Floats]:
        """The group of strata that each answer is read in, and the groups' shares of all items."""
        counts = np.bincount(self._stratum[seen], minlength=len(self._sizes))
        group = np.empty(len(counts), dtype=np.int64)
        number, answered = 0, 0
        for h, count in enumerate(counts):
            if answered >= self._least:
                number, answered = number + 1, 0
            group[h] = number
            answered += count
        if answered < self._least and number > 0:  # the last one joins its neighbour
            group[group == number] = number - 1
        weights = np.bincount(group, self._sizes) / self._sizes.sum()
        return group[self._stratum[seen]], weights


def strata_of(references: Floats, most: int) -> Positions:
    """Each item's stratum, numbered by rising expected score: (items,)."""
    num_models, num_items = references.shape
    if num_models == 0:
        return np.zeros(num_items, dtype=np.int64)
    expected = references.mean(axis=0)
    pattern = np.zeros(num_items, dtype=np.int64)
    for row in references:  # rows that tell items apart, one after the other
        values, value = np.unique(row, return_inverse=True)
        _, pattern = np.unique(pattern * len(values) + value.reshape(-1), return_inverse=True)
    _, first = np.unique(pattern, return_index=True)  # an item of each pattern
    if len(first) <= most:
        rank = np.empty(len(first), dtype=np.int64)
        rank[np.argsort(expected[first], kind="stable")] = np.arange(len(rank))
        return rank[pattern]
    edges = np.quantile(expected, np.linspace(0, 1, most + 1)[1:-1])
    _, dense = np.unique(np.searchsorted(edges, expected, side="right"), return_inverse=True)
    return dense.astype(np.int64)


def golden_ring(stratum: Positions, generator: np.random.Generator) -> Positions:
    """All items, such that every window of the ring spreads over the strata in proportion.

    By ranks: a whole step near the golden ratio of their number may be near a simple fraction too,
    and then returns to where it was.
    """
    num_items = len(stratum)
    line = np.lexsort((generator.random(num_items), stratum))
    walk = (generator.random() + GOLDEN * np.arange(num_items)) % 1.0
    return line[np.argsort(np.argsort(walk))]


def priors(references: Floats, most: int) -> tuple[float, float]:
    """The variance within strata of a model, and of a difference of two, as the references have it.

    Each reference is read in the strata that the others make: in its own it would not vary.
    """
    models: list[float] = []
    gaps: list[float] = []
    for k, row in enumerate(references):
        stratum = strata_of(np.delete(references, k, axis=0), most)
        models.append(within(row, stratum))
        for other in range(k):
            others = np.delete(references, [k, other], axis=0)
            gaps.append(within(row - references[other], strata_of(others, most)))
    prior = float(np.mean(models)) if models else 0.25
    return prior, float(np.mean(gaps)) if gaps else 2 * prior


def within(answers: Floats, stratum: Positions) -> float:
    """The mean variance of (items,) answers within strata."""
    means = np.bincount(stratum, answers) / np.bincount(stratum)
    return float(((answers - means[stratum]) ** 2).mean())
