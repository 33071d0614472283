"""What "best" means when there are several objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from evomerge.pareto import knee, non_dominated
from evomerge.records import Estimate


@dataclass(frozen=True)
class Select:
    """A choice among estimates of several objectives.

    kind: `weights` takes the largest weighted mean (all objectives alike where no weights are
    given), `knee` the point of the front where giving up one objective buys least of another.
    at_least: objective -> what the choice must reach, as far as any does; what lacks of a cost is
    counted as a share of the bound, beside shortfalls of measured objectives.

    Costs have units of their own: without weights they count for nothing but a tie.
    """

    kind: Literal["weights", "knee"] = "weights"
    weights: Mapping[str, float] = field(default_factory=dict)
    at_least: Mapping[str, float] = field(default_factory=dict)

    def order(self, estimates: Sequence[Mapping[str, Estimate]]) -> list[int]:
        """Indices, the chosen one first; ties keep their order."""
        shortfall = [
            sum(_shortfall(e[name], bound) for name, bound in self.at_least.items())
            for e in estimates
        ]
        scalar = [self._scalar(e) for e in estimates]
        costs = [tuple(-e.value for e in row.values() if e.is_cost) for row in estimates]
        order = sorted(range(len(estimates)), key=lambda i: (shortfall[i], -scalar[i], costs[i]))
        if self.kind == "knee":
            values = np.array([[e.value for e in row.values()] for row in estimates])
            on_front = [i for i in np.flatnonzero(non_dominated(values)) if shortfall[i] == 0]
            if len(on_front) > 2:
                chosen = int(on_front[knee(values[on_front])])
                order.remove(chosen)
                order.insert(0, chosen)
        return order

    def _scalar(self, estimates: Mapping[str, Estimate]) -> float:
        measured = [name for name, estimate in estimates.items() if not estimate.is_cost]
        weights = self.weights or dict.fromkeys(measured or estimates, 1.0)
        total = sum(weights.values())
        return sum(weight * estimates[name].value for name, weight in weights.items()) / total


def _shortfall(estimate: Estimate, bound: float) -> float:
    """What an estimate lacks of what it must reach."""
    lacking = max(0.0, bound - estimate.value)
    return lacking / abs(bound) if estimate.is_cost and bound else lacking
