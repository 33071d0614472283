"""The rounds of `map_pareto`: which points are measured next, given the surrogate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evomerge.pareto import non_dominated
from evomerge.searchers.predicted_front import Aim, Front, predicted_front
from evomerge.searchers.quadratic import Quadratic, terms
from evomerge.searchers.surrogate_front import most_uncertain, most_volume, shifted_sobol, spread

Array = NDArray[np.float64]

POOL = 256  # points that a predicted front begins at, and that are taken where it has no new ones
NEIGHBOURS = 64  # measured points, the best, that points of one objective's front keep away from
OFFERED = 8  # of them, for each that is taken: the least certain
APART = 0.01  # of the cube's side: what is nearer to a measured point is measured
OPTIMISM = 2.0  # standard errors, where the predicted front has nothing new any more
CERTAIN = 1e-3  # of an objective's range: with smaller errors, optimism finds nothing else


class Surrogate(NamedTuple):
    """What is known: measured points, and a quadratic for each objective.

    points: (points, dimensions); models: none where too little has a score; scales: (objectives,),
    each objective's range.
    """

    points: Array
    models: list[Quadratic]
    scales: Array


@dataclass
class Rounds:
    """Rounds of `count` points.

    compromises: None for a default. steps: see `predicted_front`. explores: whether a round that
    the predicted front does not fill goes on with what is uncertain.
    """

    count: int
    num_objectives: int
    compromises: int | None
    steps: int
    explores: bool
    generator: np.random.Generator
    _front: Array | None = field(default=None, init=False)  # that the last round's surrogate had

    def points(self, surrogate: Surrogate, dimensions: int, is_begun: bool) -> Array:
        """The next round, (at most `count`, dimensions).

        is_begun: whether anything was measured, with a score or without.
        """
        _, models, scales = surrogate
        size = max(POOL, self.count, self._compromises)
        pool = shifted_sobol(size, dimensions, self.generator)
        if not models:
            return pool[: self.count] if self.explores or not is_begun else pool[:0]
        chosen = self._best(surrogate, pool)
        missing = self.count - len(chosen)
        if missing and self.explores:
            uncertain = most_uncertain(models, scales, pool[: OFFERED * missing], missing)
            chosen = np.vstack([chosen, pool[uncertain]])
        return chosen

    @property
    def _compromises(self) -> int:
        return self.compromises or max(
            self._fewest, min(100, max(16, self._enough_for(self.count)))
        )

    @property
    def _fewest(self) -> int:
        return 2 * self.num_objectives

    def _enough_for(self, points: int) -> int:
        """Compromises; one objective has two aims."""
        return max(self.num_objectives, 2) * points

    def _best(self, surrogate: Surrogate, pool: Array) -> Array:
        """What is predicted to be on the front, and then what may be."""
        from scipy.spatial.distance import cdist

        points, models, scales = surrogate
        # What is predicted of everything that is measured, or will be.
        known, before = points, _predict(models, points)
        best = points[non_dominated(before)]
        chosen, predicted = pool[:0], None
        # With one objective, the surrogate's uncertainty is the other already.
        optimistic = self.explores and self.num_objectives > 1
        for optimism in (0.0, OPTIMISM) if optimistic else (0.0,):
            size, missing = self._compromises, self.count - len(chosen)
            if predicted is not None:
                if missing == 0 or _is_certain(models, scales, predicted[-size:]):
                    break
                size = min(size, max(self._fewest, self._enough_for(missing)))
            # Where standard errors are aimed at, each point that is begun at is dear.
            if predicted is not None:
                pool = pool[: size // 2]
            elif self.num_objectives == 1:
                pool = pool[: max(POOL // 2, size)]
            start = np.vstack([best[:size], pool])
            near = predicted
            if near is None and self.num_objectives > 1:
                near = self._front
            predicted, values = self._predicted_front(models, start, size, optimism, near)
            if optimism == 0.0:
                self._front = predicted
            apart = cdist(predicted, known, "chebyshev").min(axis=1) > APART
            front = predicted[apart]
            new = front[self._worth_measuring(models, values[apart], known, before, missing)]
            chosen, known = np.vstack([chosen, new]), np.vstack([known, new])
            before = np.vstack([before, _predict(models, new)])
        return chosen

    def _predicted_front(
        self,
        models: list[Quadratic],
        start: Array,
        size: int,
        optimism: float,
        near: Array | None,
    ) -> Front:
        """The front of the surrogate; with one objective, of its predictions and their errors.

        size: compromises. optimism: how many standard errors are added to the predictions. near:
        the front without.
        """
        aims = [Aim(model, 1.0, optimism) for model in models]
        if len(models) == 1:
            aims.append(Aim(models[0], 0.0, 1.0))
        return predicted_front(aims, start, size, self.steps, self.generator, near)

    def _worth_measuring(
        self, models: list[Quadratic], front: Array, known: Array, before: Array, count: int
    ) -> list[int]:
        """Which of a front's points; with one objective, they differ in their uncertainty too.

        front: their aims, (points, aims). before: what is predicted of known points, (points,
        objectives).
        """
        if len(front) == 0:
            return []
        if len(models) > 1:
            return most_volume(front, before, count, self.generator)
        # Of what is far behind, nobody on the front is a neighbour.
        best = np.argsort(-before[:, 0], kind="stable")[:NEIGHBOURS]
        return spread(front, np.c_[before[best], models[0].error(known[best])], count)


def _is_certain(models: Sequence[Quadratic], scales: Array, points: Array) -> bool:
    """Whether optimism could not tell any of some points from others."""
    few = len(points) // 8
    for part in (points[:few], points[few:]):  # mostly the first few say that it could
        rows = terms(part, models[0].products)
        for model, scale in zip(models, scales, strict=True):
            if not (OPTIMISM * model.error(part, rows) < CERTAIN * scale).all():
                return False
    return True


def _predict(models: Sequence[Quadratic], points: Array) -> Array:
    """Predictions of every objective, shape (points, objectives)."""
    return np.stack([model.predict(points) for model in models], axis=1)
