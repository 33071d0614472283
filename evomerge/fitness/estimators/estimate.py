"""From per-item responses to an objective's value with its standard error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from evomerge.fitness.agreement import answers_of, nearest
from evomerge.records import Candidate, Estimate, ItemId, Measurements, Objective, Request

Items = Mapping[str, Sequence[ItemId]]  # task -> item ids


class EstimatorOptions(BaseModel):
    """Options of an estimator, as they stand in a fitness file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def estimate(
    objectives: Iterable[Objective],
    measurements: Measurements,
    candidate: Candidate,
    items: Items,
    peers: Sequence[Candidate] = (),
) -> dict[str, Estimate]:
    """Each objective's mean over the items and its standard error; a cost is exact.

    Tasks are strata: an objective's value is the weighted mean of its tasks' means, and its
    variance the weighted sum of theirs (s^2 / n, with n - 1 in s^2).

    peers: who else has answered the items, for objectives of agreement.
    """
    result = {}
    for objective in objectives:
        value, variance, count = 0.0, 0.0, 0
        if objective.cost is not None:
            value = float(measurements.cost(candidate, objective.cost))
        for task, weight in objective.weights.items():
            near = nearest(candidate, peers, objective.agreement) if objective.agreement else ()
            answers = answers_of(
                objective, measurements, candidate.fingerprint, task, items[task], near
            )
            value += weight * float(answers.mean())
            if len(answers) > 1:
                variance += weight**2 * float(answers.var(ddof=1)) / len(answers)
            count += len(answers)
        result[objective.name] = Estimate(objective.sign * value, float(np.sqrt(variance)), count)
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
