"""Descendants of seeds by split SLERP, as tables of linear combinations of the seeds.

M2N2 (Abrantes et al. 2025, https://arxiv.org/abs/2508.16204) crosses two parents by

    SLERP_w(p1, p2)[:split] ++ SLERP_(1-w)(p1, p2)[split:]

over their flattened parameters. SLERP is a linear combination of its two ends, so a descendant of
any generation is, on each stretch between the splits of its ancestry, a linear combination of the
seeds. SLERP's angle needs inner products of the parents alone; those are sums, over stretches, of
coefficients times inner products of seeds, which `Gram` keeps. No parent is ever made.

With noise in the children there is no such table: `dense.py` keeps the parameters themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.merging.operators.segments import joined_stretches

Angle = Literal["whole", "part"]
Read = Callable[[int, int, int], NDArray[Any]]  # seed, start, stop -> shape (stop - start,)

PARALLEL = 1e-6  # sin(angle) up to which SLERP is the straight line, as in the published code
DIGITS = 9  # significant ones of a coefficient: below float32's, above what libraries differ by
BLOCK = 2**20  # entries: no stretch of the Gram sums is longer, so no split reads more
_CHUNK = 2**16  # entries that are float64 at a time


@dataclass(frozen=True, eq=False)
class Lineage:
    """A descendant as a table.

    stops: where each stretch ends, (stretches,), ascending; the last one is the number of entries.
    coefficients: (stretches, seeds); neighbours differ.
    """

    stops: NDArray[np.int64]
    coefficients: NDArray[np.float64]

    @classmethod
    def seed(cls, number: int, num_seeds: int, total: int) -> Lineage:
        """One of the seeds itself."""
        return cls(np.array([total], np.int64), np.eye(num_seeds)[[number]])

    def at(self, stops: NDArray[np.int64]) -> NDArray[np.float64]:
        """The coefficients in the stretches of a finer table, (stops, seeds)."""
        return self.coefficients[np.searchsorted(self.stops, stops)]


class Gram:
    """Inner products of the seeds over stretches of their flattened parameters, in float64.

    Kept for stretches between the stops that were met, and cut each BLOCK entries. A new stop costs
    one pass over the stretch that it cuts, both parts of which are summed afresh: nothing is
    subtracted, so that short stretches are as exact as long ones. The last bits depend on the order
    in which stops were met, and on nothing else: neither threads nor a BLAS library take part.

    read: entries of a seed; num_seeds, total: how many seeds, and entries of each.
    """

    def __init__(self, read: Read, num_seeds: int, total: int, block: int = BLOCK) -> None:
        self._read = read
        self._num_seeds = num_seeds
        self.stops: NDArray[np.int64] = np.append(np.arange(block, total, block), total)
        self._sums = np.zeros((len(self.stops), num_seeds, num_seeds))
        self._known = np.zeros(len(self.stops), np.bool_)

    def between(self, stops: NDArray[np.int64]) -> NDArray[np.float64]:
        """The sums over each stretch of a table, (stops, seeds, seeds)."""
        self._cut(stops)
        for i in np.flatnonzero(~self._known):
            start = int(self.stops[i - 1]) if i else 0
            self._sums[i] = self._summed(start, int(self.stops[i]))
        self._known[:] = True
        firsts = np.searchsorted(self.stops, np.append(0, stops[:-1]), "right")
        return np.add.reduceat(self._sums, firsts, axis=0)

    def _cut(self, stops: NDArray[np.int64]) -> None:
        fresh = np.setdiff1d(stops, self.stops)
        if not len(fresh):
            return
        self._known[np.searchsorted(self.stops, fresh)] = False
        merged = np.union1d(self.stops, fresh)
        places = np.searchsorted(merged, self.stops)
        sums = np.zeros((len(merged), *self._sums.shape[1:]))
        known = np.zeros(len(merged), np.bool_)
        sums[places], known[places] = self._sums, self._known
        self.stops, self._sums, self._known = merged, sums, known

    def _summed(self, start: int, stop: int) -> NDArray[np.float64]:
        sums = np.zeros((self._num_seeds, self._num_seeds))
        for first in range(start, stop, _CHUNK):
            last = min(first + _CHUNK, stop)
            parts = [self._read(k, first, last).astype(np.float64) for k in range(self._num_seeds)]
            for i, one in enumerate(parts):
                for j in range(i + 1):
                    sums[i, j] += inner(one, parts[j])
        return np.tril(sums) + np.tril(sums, -1).T


def inner(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The inner product of two vectors, the same on any number of threads."""
    return float(np.einsum("i,i->", one, other))  # np.dot sums long vectors on several


def slerp_shares(mix: float, first: float, product: float, second: float) -> tuple[float, float]:
    """What SLERP multiplies its two ends by.

    Args:
        mix: the second end's share, 0 to 1.
        first: the squared norm of the first end.
        product: the inner product of both.
        second: the squared norm of the second end.
    """
    norms = math.sqrt(max(first, 0.0)) * math.sqrt(max(second, 0.0))
    if norms <= 0:  # a zero vector has no direction
        return 1 - mix, mix
    angle = math.acos(min(max(product / norms, -1.0), 1.0))
    sine = math.sin(angle)
    if sine <= PARALLEL:
        return 1 - mix, mix
    return math.sin((1 - mix) * angle) / sine, math.sin(mix * angle) / sine


def cross(
    first: Lineage, second: Lineage, mix: float, split: int, gram: Gram, angle: Angle = "whole"
) -> Lineage:
    """The child of two parents.

    Args:
        first: a parent.
        second: the other one.
        mix: the second parent's share left of the split; right of it, it is 1 - mix.
        split: the entry that the right part begins with; 0 and the number of all entries give a
            child without a split.
        gram: of the seeds.
        angle: whether SLERP's angle is that of the whole vectors, as in the published code, or of
            each part alone, as the paper's text reads.
    """
    stops = np.union1d(first.stops, second.stops)
    if 0 < split < stops[-1]:
        stops = np.union1d(stops, [split])
    one, other = first.at(stops), second.at(stops)
    sums = gram.between(stops)
    left = stops <= split
    child = np.empty_like(one)
    for part, share in ((left, mix), (~left, 1 - mix)):
        if not part.any():
            continue
        seen = np.ones_like(part) if angle == "whole" else part
        products = [
            float(np.einsum("ns,nst,nt->", a[seen], sums[seen], b[seen]))
            for a, b in ((one, one), (one, other), (other, other))
        ]
        for_one, for_other = slerp_shares(share, *products)
        child[part] = for_one * one[part] + for_other * other[part]
    return Lineage(*joined_stretches(stops, child))


def rounded(coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients with DIGITS significant digits, and without a negative zero."""
    flat = [float(f"{value:.{DIGITS}g}") + 0.0 for value in coefficients.reshape(-1).tolist()]
    return np.array(flat).reshape(coefficients.shape)
