"""Estimators: what to measure of a candidate, and what a few answers say of all of them."""

from __future__ import annotations

from evomerge.fitness.estimators.fixed import Full, Subset
from evomerge.fitness.estimators.racing import Racing

ESTIMATORS: dict[str, type[Full] | type[Subset] | type[Racing]] = {
    "full": Full,
    "subset": Subset,
    "racing": Racing,
}
