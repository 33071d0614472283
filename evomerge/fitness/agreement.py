"""Agreement with neighbours: an objective that needs no labels.

Merges with like coefficients that answer alike are more often right than those at an edge, where a
small step changes many answers (AdaMMS, Du et al. 2025, arXiv:2503.23733). So the value of a
candidate is the share of its answers that its nearest neighbours in the space give too. It depends
on who else has answered, and is told anew for every set of candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.records import Candidate, ItemId, Measurements, Objective


def answers_of(
    objective: Objective,
    measurements: Measurements,
    fingerprint: str,
    task: str,
    items: Sequence[ItemId],
    near: Sequence[str] = (),
) -> NDArray[np.float64]:
    """What an objective makes of each answer, shape (items,).

    near: fingerprints of the neighbours, where the objective is agreement; without any the values
        are NaN, for nobody is there to agree.
    """
    if not objective.agreement:
        return measurements.values(fingerprint, task, items, objective.column)
    if not near:
        return np.full(len(items), np.nan)
    own, *others = (
        measurements.values(one, task, items, _column(objective, measurements, one, task))
        for one in (fingerprint, *near)
    )
    found: NDArray[np.float64] = np.mean([own == other for other in others], axis=0)
    return found


def nearest(candidate: Candidate, peers: Sequence[Candidate], count: int) -> list[str]:
    """Fingerprints of the other recipes that are nearest by their genomes, ties to the lower id.

    Where distances cannot be told (a reference has no genome, a lineage is no point), all of them.
    """
    others = {p.fingerprint: p for p in sorted(peers, key=lambda p: -p.id) if p.recipe is not None}
    others.pop(candidate.fingerprint, None)
    alone = sorted(others.values(), key=lambda p: p.id)
    own = _place(candidate)
    places = [(p, place) for p in alone if (place := _place(p)) is not None]
    placed = [] if own is None else [(p, at) for p, at in places if at.shape == own.shape]
    if own is None or not placed:
        return [p.fingerprint for p in alone]
    gaps = [float(np.linalg.norm(at - own)) for _, at in placed]
    order = np.argsort(gaps, kind="stable")[:count]
    return [placed[i][0].fingerprint for i in order]


def _place(candidate: Candidate) -> NDArray[np.float64] | None:
    """The genome as a point; None where it is none: a reference's, or a lineage."""
    genome = candidate.genome
    is_point = isinstance(genome, list) and all(isinstance(x, int | float) for x in genome)
    return np.asarray(genome, np.float64) if is_point else None


def _column(objective: Objective, measurements: Measurements, fingerprint: str, task: str) -> str:
    """A text's identity; the best choice, where the task is multiple choice."""
    known = measurements.columns(fingerprint, task)
    return "choice" if objective.column == "answer" and "choice" in known else objective.column
