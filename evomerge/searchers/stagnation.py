"""When a run's best values have stopped to differ."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from evomerge.records import Evaluation
from evomerge.searchers.order import is_scored

TOLERANCE = 1e-12  # Auger & Hansen's TolFun


class Stagnation:
    """Auger & Hansen's equalfunvals and TolFun, for searchers whose library is told positions.

    A Restart CMA Evolution Strategy With Increasing Population Size, CEC 2005: over the last
    10 + ceil(30 n / lambda) generations, the best values are all the same, or they and the last
    generation's values span less than 1e-12.
    """

    def __init__(self, num_genes: int, population: int) -> None:
        self._best: deque[float] = deque(maxlen=10 + math.ceil(30 * num_genes / population))

    def is_flat(self, generation: Sequence[Evaluation]) -> bool:
        """Whether it is so, a generation later; from its best to its worst."""
        values = [e.score.values[0] if e.score and is_scored(e) else -math.inf for e in generation]
        self._best.append(values[0])
        if len(self._best) < (self._best.maxlen or 0):
            return False
        if len(set(self._best)) == 1:
            return True
        values += self._best
        return max(values) - min(values) < TOLERANCE
