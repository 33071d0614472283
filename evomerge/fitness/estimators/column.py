"""How a few answers to the items of one task are read: pure functions of a response matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Side:
    """What is known of one column of a task's search items before a candidate answers anything.

    references: (models, items) answers of the base, each expert and the uniform merge.
    experts: the rows that are experts.
    history: (candidates, items) what was measured of earlier candidates, NaN where nothing was.
    """

    references: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    experts: tuple[int, ...] = ()
    history: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))


class ColumnReading(Protocol):
    """Chooses items of one task and reads the answers to them.

    Positions count the task's search items from 0.
    """

    def order(self, counts: Sequence[int], rotation: int) -> NDArray[np.int64]:
        """Positions of counts[-1] items; each prefix with a length in `counts` is a sample.

        Another `rotation` is another sample, of fresh items as far as there are any.
        """
        ...

    def read(self, seen: NDArray[np.int64], answers: NDArray[np.float64]) -> tuple[float, float]:
        """The mean over all items, told from the answers at `seen`, and its variance."""
        ...

    def compare(
        self,
        seen: NDArray[np.int64],
        first: NDArray[np.float64],
        second: NDArray[np.float64],
    ) -> tuple[float, float]:
        """First minus second, both of which answered `seen`, and the difference's variance."""
        ...


class RandomItems:
    """The mean of items drawn at random; variance s^2 / n, with n - 1 in s^2.

    All items stand in one random order, and rotations are windows of it that follow each other in
    a ring.
    """

    def __init__(self, _side: Side, *, seed: int, num_items: int) -> None:
        self._order = np.random.default_rng(seed).permutation(num_items)

    def order(self, counts: Sequence[int], rotation: int) -> NDArray[np.int64]:
        """The first items of a window."""
        places = (rotation * counts[-1] + np.arange(counts[-1])) % len(self._order)
        return self._order[places]

    def read(self, _seen: NDArray[np.int64], answers: NDArray[np.float64]) -> tuple[float, float]:
        """The plain mean."""
        return mean_and_variance(answers)

    def compare(
        self,
        _seen: NDArray[np.int64],
        first: NDArray[np.float64],
        second: NDArray[np.float64],
    ) -> tuple[float, float]:
        """Paired: what makes an item hard for both cancels."""
        return mean_and_variance(first - second)


def mean_and_variance(values: NDArray[np.float64]) -> tuple[float, float]:
    """The mean of a sample, and the variance of that mean; 0 of a single value."""
    if len(values) < 2:
        return float(values.mean()), 0.0
    return float(values.mean()), float(values.var(ddof=1)) / len(values)
