"""How a few answers to one task's items are read as a score on all of them.

A column is one metric of one task. The references (the base, each expert, the uniform merge) have
answered all of its items, and that is what every reading here may use beside a candidate's own few
answers. Readings are pure functions of responses; who answers what, and when, is not their matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigurationError

Floats = NDArray[np.float64]
Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Side:
    """What is known of one column of a task before a candidate answers anything.

    references: (models, items), every item answered.
    experts: the rows that are experts.
    history: (candidates, items) what was measured of earlier candidates, NaN where nothing was.
    """

    references: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    experts: tuple[int, ...] = ()
    history: Floats = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def num_items(self) -> int:
        """All items of the column."""
        return int(self.references.shape[1])


class ColumnReading(Protocol):
    """How a few answers to one task's items are read: pure functions of the responses."""

    def order(self, counts: Sequence[int], rotation: int) -> Positions:
        """Positions of `counts[-1]` items; each prefix of a length in `counts` is a sample too.

        counts: rising.
        rotation: 0, 1, 2, ...: another sample; consecutive ones share no item if there are enough.
        """
        ...

    def read(self, seen: Positions, answers: Floats) -> tuple[float, float]:
        """The mean over all items and its variance, from the answers at `seen` (both (n,))."""
        ...

    def compare(self, seen: Positions, first: Floats, second: Floats) -> tuple[float, float]:
        """First minus second on common items: value and variance."""
        ...


def check_side(side: Side, num_items: int) -> None:
    """Refuse references that are not of these items, or have gaps.

    Raises:
        ConfigurationError: with what was expected and what was got.
    """
    if side.references.ndim != 2 or side.num_items != num_items:
        raise ConfigurationError(
            f"references: expected (models, {num_items}), got shape {side.references.shape}"
        )
    if not np.isfinite(side.references).all():
        raise ConfigurationError("references: every item must be answered, by finite numbers")


def check_counts(counts: Sequence[int], num_items: int) -> None:
    """Refuse counts that do not rise or ask for more items than there are.

    Raises:
        ConfigurationError: with what was expected and what was got.
    """
    rising = counts and counts[0] >= 1 and all(a < b for a, b in pairwise(counts))
    if not rising or counts[-1] > num_items:
        raise ConfigurationError(
            f"items: expected rising counts from 1 to at most {num_items}, got {list(counts)}"
        )


def window(ring: Positions, count: int, rotation: int) -> Positions:
    """`count` items of a ring; windows of consecutive rotations follow each other."""
    start = rotation * count % len(ring)
    return np.take(ring, np.arange(start, start + count), mode="wrap")


def mean_of(values: Floats) -> tuple[float, float]:
    """The mean and its variance, s^2 / n, with n - 1 in s^2.

    Of a single value nothing can be told of the variance, and it is 0: a task with one item has
    answered all of it. No correction for a finite population: items stand for others of their kind.
    """
    n = len(values)
    return float(values.mean()), float(values.var(ddof=1)) / n if n > 1 else 0.0


def one_more_of_each(answers: Floats) -> float:
    """What a right and a wrong answer more would add to the sum of squares: n p (1 - p), p = x / n.

    0 where the answers are not all 0 or 1 (or, where less is better, -1). Laplace's rule of
    succession: eight that are all right are no proof that the next one will be. Intervals of two
    standard errors around few or nearly equal answers then cover what they should (Agresti & Coull
    1998, doi:10.2307/2685469, who add two of each and move the centre, too; here it stays
    unbiased).
    """
    if not any(((answers == 0) | (answers == one)).all() for one in (1, -1)):
        return 0.0
    n, right = len(answers), abs(float(answers.sum()))

    def squares(n: int, right: float) -> float:
        return right * (n - right) / n

    return squares(n + 2, right + 1) - squares(n, right)


class Cached:
    """The last few results of a function of positions: all candidates of a cohort share them."""

    def __init__(self, function: Callable[[Positions], Floats], size: int = 8) -> None:
        self._function, self._size = function, size
        self._results: dict[bytes, Floats] = {}

    def __call__(self, positions: Positions) -> Floats:
        """The function's result, computed at most once for each recent argument."""
        key = positions.tobytes()
        if key not in self._results:
            if len(self._results) >= self._size:
                self._results.pop(next(iter(self._results)))
            self._results[key] = self._function(positions)
        return self._results[key]


class RandomItems:
    """The plain mean over items in random order: what every other reading is compared with."""

    def __init__(self, _side: Side, *, seed: int, num_items: int) -> None:
        self._ring = np.random.default_rng([seed, 0]).permutation(num_items)

    def order(self, counts: Sequence[int], rotation: int) -> Positions:
        """Windows of one permutation."""
        check_counts(counts, len(self._ring))
        return window(self._ring, counts[-1], rotation)

    def read(self, seen: Positions, answers: Floats) -> tuple[float, float]:
        """The mean of the answers; where they are right or wrong, with one more of each in s^2."""
        del seen
        n, (mean, variance) = len(answers), mean_of(answers)
        if n > 1:
            variance += one_more_of_each(answers) / (n - 1) / n
        return mean, variance

    def compare(self, seen: Positions, first: Floats, second: Floats) -> tuple[float, float]:
        """The mean of the paired differences: what makes an item hard for both cancels."""
        del seen
        return mean_of(first - second)
