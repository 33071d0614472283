"""The archive of M2N2: who stays, and who has children with whom, by what each can do.

Abrantes et al., Competition and Attraction Improve Model Fusion, GECCO 2025, arXiv:2508.16204. Each
item of the data is a resource that all members share:

    z_j = sum_k s_kj        c_j = max_k s_kj        f_i = sum_j s_ij c_j / z_j^alpha

so that who alone can answer an item lives by it. For right and wrong answers c_j is 1 wherever it
counts, which is the paper's capacity there. Departures: an item that nobody can answer counts
nothing instead of having an epsilon below it; and where scores of an item are negative (which the
paper has not), its points count from the worst member up.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Member = TypeVar("Member", bound=Hashable)
Floats = NDArray[np.float64]

# Shares of the largest fitness that count as none, so that sums of the same in another order are
# equal: of equal ones the first leaves. Of right and wrong answers to some thousand items, fitness
# that differs at all among 20 members differs by more.
TIE = 1e-12


class NicheArchive(Generic[Member]):
    """At most `size` members, each with its scores of the same items.

    It begins with free rows, which count as members without points: while there are some, a
    newcomer takes the first row of those with the least fitness.

    size: P, the most members. alpha: how much an item is shared: 0 is no competition at all.
    """

    def __init__(self, size: int, alpha: float = 1.0) -> None:
        self._alpha = alpha
        self._rows: list[Member | None] = [None] * size
        self._places: dict[Member, int] = {}
        self._scores: Floats = np.zeros((size + 1, 0))  # the last row is the newcomer's
        self._is_free = np.ones(size + 1, np.bool_)
        self._has_negative = False
        self._judgement: tuple[Floats, Floats, Floats, Floats] | None = (
            None  # until something changes
        )

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, member: object) -> bool:
        return member in self._places

    @property
    def members(self) -> tuple[Member, ...]:
        """Who is alive, in the order of rows."""
        return tuple(member for member in self._rows if member is not None)

    def scores(self, member: Member) -> Floats:
        """A member's scores, shape (items,).

        Raises:
            KeyError: it is not alive.
        """
        row: Floats = self._scores[self._places[member]].copy()
        return row

    def insert(self, member: Member, scores: ArrayLike) -> Member | None:
        """Add a member; whoever has the least fitness of all leaves, which may be the newcomer.

        Returns:
            Who left; None where a row was free.

        Raises:
            ValueError: it is alive already, or its scores are not finite or not as many as before.
        """
        if member in self._places:
            raise ValueError(f"{member!r} is in the archive already")
        row = self._checked(scores)
        last = len(self._rows)
        self._scores[last], self._is_free[last] = row, False
        points = self._points(last + 1)
        worth = self._worth(points.max(axis=0), points.sum(axis=0))
        fitness = _weighted(points, worth)
        worst = int(np.argmax(fitness <= fitness.min() + TIE * fitness.max()))
        self._is_free[last] = True
        if worst == last:
            return member
        left = self._rows[worst]
        if left is not None:
            del self._places[left]
        self._write(worst, row)
        self._rows[worst] = member
        self._places[member] = worst
        return left

    def replace(self, member: Member, scores: ArrayLike) -> None:
        """Give a member other scores.

        Raises:
            KeyError: it is not alive.
            ValueError: as in `insert`.
        """
        self._write(self._places[member], self._checked(scores))

    def remove(self, member: Member) -> None:
        """Make a member's row free.

        Raises:
            KeyError: it is not alive.
        """
        place = self._places.pop(member)
        self._rows[place] = None
        self._write(place, np.zeros_like(self._scores[place]))
        self._is_free[place] = True

    def fitness(self) -> dict[Member, float]:
        """The fitness f_i of every member, in the order of rows."""
        fitness = self._judged()[-1].tolist()
        return {m: f for m, f in zip(self._rows, fitness, strict=True) if m is not None}

    def parents(
        self, generator: np.random.Generator, attraction: bool = True
    ) -> tuple[Member, Member]:
        """Draw two parents.

        The first by fitness. The second by what it can do and the first cannot,

            g_i = sum_j c_j / z_j^alpha max(s_ij - s_1j, 0),

        or without attraction by fitness as well, whoever the first is. Where nobody has any
        fitness, all are as good. Where nobody can do what the first cannot, the second is drawn
        among the others by fitness. Two random numbers are drawn, whatever the case.

        Raises:
            ValueError: nobody is alive.
        """
        alive = ~self._is_free[:-1]
        if not alive.any():
            raise ValueError("an empty archive has no parents")
        points, best, worth, fitness = self._judged()
        lots = generator.random(2)
        first = _drawn(fitness, alive, lots[0])
        if not attraction:
            return self._member(first), self._member(_drawn(fitness, alive, lots[1]))
        better = np.flatnonzero(points[first] < best)  # elsewhere nobody has more: few are left
        gains = points.take(better, axis=1) - points[first, better]
        weights = _weighted(np.maximum(gains, 0.0), worth[better])
        if not weights.any():
            others = alive.copy()
            others[first] = len(self) == 1
            weights, alive = fitness, others
        return self._member(first), self._member(_drawn(weights, alive, lots[1]))

    def _member(self, row: int) -> Member:
        member = self._rows[row]
        if member is None:
            raise KeyError(f"nobody lives in row {row}")
        return member

    def _write(self, place: int, row: Floats) -> None:
        self._scores[place] = row
        self._is_free[place] = False
        self._judgement = None

    def _checked(self, scores: ArrayLike) -> Floats:
        row = np.asarray(scores, np.float64)
        if not self._scores.shape[1]:
            self._scores = np.zeros((len(self._rows) + 1, len(row)))
        if row.shape != self._scores.shape[1:] or not np.isfinite(row).all():
            expected = f"{self._scores.shape[1]} finite scores"
            raise ValueError(f"expected {expected}, got {row.shape}: {row!r}")
        self._has_negative = self._has_negative or bool(row.min(initial=0.0) < 0)
        return row

    def _judged(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Points of the rows, (P, items), c and c / z^alpha, (items,), and fitness, (P,)."""
        if self._judgement is None:
            points = self._points(len(self._rows))
            best = points.max(axis=0)
            worth = self._worth(best, points.sum(axis=0))
            self._judgement = points, best, worth, _weighted(points, worth)
        return self._judgement

    def _points(self, num_rows: int) -> Floats:
        """Scores of the first rows; of an item where some are negative, less the least of them."""
        points = self._scores[:num_rows]
        if self._has_negative:
            is_free = self._is_free[:num_rows]
            points = points - points[~is_free].min(axis=0, initial=0.0)
            points[is_free] = 0.0
        return points

    def _worth(self, best: Floats, sums: Floats) -> Floats:
        """What a point of each item is worth, c / z^alpha; nothing where nobody has any."""
        if not self._alpha:
            return best
        shared = np.where(sums == 0, 1.0, sums)
        return best / (shared if self._alpha == 1 else shared**self._alpha)


def _weighted(points: Floats, worth: Floats) -> Floats:
    """The sum over items, (rows,): unlike a matrix product the same on any number of threads."""
    sums: Floats = np.einsum("ij,j->i", points, worth)
    return sums


def _drawn(weights: Floats, allowed: NDArray[np.bool_], lot: float) -> int:
    """The position that a lot in [0, 1) falls on; where no weight counts, all have the same."""
    weights = np.where(allowed, weights, 0.0)
    ends = np.cumsum(weights)
    if not 0 < ends[-1] < np.inf:
        weights = allowed.astype(np.float64)
        ends = np.cumsum(weights)
    place = int(np.searchsorted(ends, lot * ends[-1], "right"))
    return min(place, int(np.flatnonzero(weights)[-1]))
