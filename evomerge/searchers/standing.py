"""How evaluations compare, for libraries that know objectives and constraint violations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.pareto import front_ranks
from evomerge.records import Evaluation
from evomerge.searchers.order import is_scored, order_key


def standing(
    evaluations: Sequence[Evaluation], num_objectives: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How evaluations that compete with each other compare.

    Returns:
        Values, shape (n, num_objectives), maximised, the worst of the others where there is no
        score; and violations, shape (n,): 0 for those that are compared by their values, and 1, 2,
        ... in one order for the others.
    """
    keys = [order_key(evaluation)[:3] for evaluation in evaluations]
    values = np.full((len(evaluations), num_objectives), np.nan)
    for i, evaluation in enumerate(evaluations):
        if evaluation.score is not None and is_scored(evaluation):
            values[i] = evaluation.score.values
    best = min(keys)
    is_valid = best[:2] == (False, 0.0)
    others = [i for i, key in enumerate(keys) if key != best or not is_valid]
    fronts = _fronts(values, keys, others)
    others.sort(key=lambda i: (*keys[i], fronts[i], evaluations[i].id))
    violations = np.zeros(len(evaluations))
    violations[others] = np.arange(1, len(others) + 1)
    scored = ~np.isnan(values).any(axis=1)
    worst = values[scored].min(axis=0) if scored.any() else np.zeros(num_objectives)
    return np.where(scored[:, None], values, worst), violations


def _fronts(
    values: NDArray[np.float64], keys: list[tuple[bool, float, int]], members: list[int]
) -> dict[int, int]:
    """For each member the number of its front, from 0, among the members with the same key."""
    fronts = dict.fromkeys(members, 0)
    tied: dict[tuple[bool, float, int], list[int]] = {}
    for i in members:
        if not keys[i][0]:  # without a score there is no front
            tied.setdefault(keys[i], []).append(i)
    for together in tied.values():
        fronts.update(zip(together, front_ranks(values[together]).tolist(), strict=True))
    return fronts
