"""Parzen densities of good and of bad points, and points that are likelier good.

The densities are optuna's (see kernels.py), arranged so that a draw is a few operations on whole
arrays, however many genes there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from evomerge.searchers.genes_alone import Alone
from evomerge.searchers.genes_together import Together
from evomerge.searchers.kernels import CELLS, Array, Column

GROWTH = 0.1  # of the bad points, until bandwidths are found anew


class Densities:
    """Where good points are, and where bad ones are, by groups of genes.

    Genes of a group are modelled together: a kernel is a product over them, around a point that
    has them all. Groups are independent of each other. Coordinates are in [0, 1], and the value v
    of k stands at (v + .5) / k.

    Args:
        groups: of columns, each column in one.
        samples: draws from the good, for each group, of which the likeliest good is taken.
    """

    def __init__(
        self, columns: Sequence[Column], groups: Sequence[Sequence[int]], samples: int
    ) -> None:
        coarse = [
            Column(None, True) if c.is_ordered and (c.size or 0) > CELLS else c for c in columns
        ]
        alone: dict[Column, list[int]] = {}
        for first, *others in groups:
            if not others:
                alone.setdefault(coarse[first], []).append(first)
        self._parts = [Part(members, Alone(column, samples)) for column, members in alone.items()]
        self._parts += [
            Part(list(group), Together([coarse[i] for i in group], samples))
            for group in groups
            if len(group) > 1
        ]
        self._places = {
            column: (part, place)
            for part in self._parts
            for place, column in enumerate(part.members)
        }

    def learn(self, good: Array, bad: Array) -> None:
        """Forget all else, and know these points, shapes (n, columns) and (m, columns).

        NaN: a gene that does not matter there. The good weigh 1, the bad by their age: the oldest
        come first.
        """
        for part in self._parts:
            part.learn(good[:, part.members], bad[:, part.members])

    def avoid(self, point: Array) -> None:
        """One more bad point, shape (columns,)."""
        for part in self._parts:
            part.avoid(point[part.members])

    def draw(self, generator: np.random.Generator) -> Callable[[int], float]:
        """A point: the coordinate of a column. A group is drawn when one of it is asked for."""
        drawn: dict[int, list[float]] = {}

        def coordinate(column: int) -> float:
            part, place = self._places[column]
            if id(part) not in drawn:
                drawn[id(part)] = part.model.draw(generator).tolist()
            return drawn[id(part)][place]

        return coordinate


class Part:
    """Some columns with their model, and the bad points that it has and is yet to learn.

    With every tenth more of them, it learns all of them anew: bandwidths are distances to
    neighbours, and weights are ages. Until then, new points weigh 1, and have the mean bandwidth.
    """

    def __init__(self, members: list[int], model: Alone | Together) -> None:
        self.members, self.model = members, model

    def learn(self, good: Array, bad: Array) -> None:
        """See `Densities`."""
        self.model.learn_good(good)
        self._learn_bad(bad)

    def _learn_bad(self, bad: Array) -> None:
        self._bad = bad[~np.isnan(bad).all(axis=1)]
        self._later: list[Array] = []
        self.model.learn_bad(self._bad)

    def avoid(self, point: Array) -> None:
        """See `Densities`."""
        if np.isnan(point).all():
            return
        self._later.append(point)
        if len(self._later) > GROWTH * len(self._bad):
            self._learn_bad(np.vstack([self._bad, *self._later]))
        else:
            self.model.avoid(point)
