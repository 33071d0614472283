"""From per-item responses to an objective's value with its standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from evomerge.fitness.agreement import answers_of, nearest
from evomerge.fitness.estimators.column import mean_of
from evomerge.records import Candidate, Estimate, ItemId, Measurements, Objective, Request

# Value and variance of the answers (items,) to a task, for an objective.
Read = Callable[[Objective, str, NDArray[np.float64]], tuple[float, float]]
Items = Mapping[str, Sequence[ItemId]]  # task -> item ids


class EstimatorOptions(BaseModel):
    """Options of an estimator, as they stand in a fitness file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def estimate(
    objectives: Iterable[Objective],
    measurements: Measurements,
    candidate: Candidate,
    items: Items,
    peers: Sequence[Candidate] = (),
    read: Read | None = None,
) -> dict[str, Estimate]:
    """Each objective's mean over the items and its standard error; a cost is exact.

    Tasks are strata: an objective's value is the weighted mean of its tasks' means, and its
    variance the weighted sum of theirs (s^2 / n, with n - 1 in s^2, where nothing else `read`s).

    peers: who else has answered the items, for objectives of agreement.
    read: what a task's answers are worth, their mean by default; agreement is always a mean.
    """
    result = {}
    for objective in objectives:
        value, variance, count = 0.0, 0.0, 0
        if objective.cost is not None:
            value = float(measurements.cost(candidate, objective.cost))
        near = nearest(candidate, peers, objective.agreement) if objective.agreement else ()
        for task, weight in objective.weights.items():
            answers = answers_of(
                objective, measurements, candidate.fingerprint, task, items[task], near
            )
            if read is None or objective.agreement:
                mean, error = mean_of(answers)
            else:
                mean, error = read(objective, task, answers)
            value += weight * mean
            variance += weight**2 * error
            count += len(answers)
        result[objective.name] = Estimate(objective.sign * value, variance**0.5, count)
    return result


def who_can_answer(
    candidates: Iterable[Candidate], measurements: Measurements, items: Items
) -> tuple[Candidate, ...]:
    """Those that have a model, and have not failed at the items."""
    return tuple(
        c
        for c in candidates
        if c.recipe is not None and measurements.can_answer(c.fingerprint, items)
    )


def missing_requests(
    candidates: Iterable[Candidate], measurements: Measurements, items: Items
) -> list[Request]:
    """What these candidates have not yet answered of the items."""
    requests = []
    for candidate in who_can_answer(candidates, measurements, items):
        for task, wanted in items.items():
            if missing := measurements.missing(candidate.fingerprint, task, wanted):
                requests.append(Request(candidate.id, task, missing))
    return requests
