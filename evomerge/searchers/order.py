"""The one total order of evaluations, for searchers that only need to know who is better."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evomerge.records import Evaluation

OrderKey = tuple[bool, float, int, float, int]


def is_scored(evaluation: Evaluation) -> bool:
    """Whether there is a score, and every value of it is finite."""
    if evaluation.score is None or evaluation.failure is not None:
        return False
    values = evaluation.score.values
    return bool(values) and all(map(math.isfinite, values))


def order_key(evaluation: Evaluation) -> OrderKey:
    """Smaller is better: scored, then less violation, then a higher rung, then a higher value.

    The rung comes before the value, because a candidate that racing dropped at a rung was measured
    on fewer items than its survivors, and lost to them. Only the first objective is compared; ties
    go to the older candidate, so that the order is total.
    """
    scored = is_scored(evaluation)
    violation = evaluation.violation if math.isfinite(evaluation.violation) else math.inf
    if not scored or evaluation.score is None:
        return True, max(violation, 0.0), 0, 0.0, evaluation.id
    score = evaluation.score
    return False, max(violation, 0.0), -score.rung, -score.values[0], evaluation.id


def total_order(evaluations: Sequence[Evaluation]) -> list[int]:
    """Positions in `evaluations` from the best to the worst; see `order_key`."""
    return sorted(range(len(evaluations)), key=lambda i: order_key(evaluations[i]))
