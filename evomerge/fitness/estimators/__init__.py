"""Estimators: what to measure of a candidate, and what a few answers say of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, create_model, field_validator

from evomerge.documents import Document, parse
from evomerge.errors import ConfigurationError, nearest
from evomerge.fitness.estimators.estimate import EstimatorOptions, Items
from evomerge.fitness.estimators.kinds import READINGS, check_reading, make_reading
from evomerge.fitness.estimators.racing import OneRungOptions, Race, RaceOptions
from evomerge.records import Objective


class RacingOptions(RaceOptions):
    """A race, and how its answers are read: `estimator` names any other kind but `full`."""

    estimator: Mapping[str, Any] = Field(default_factory=lambda: {"kind": "subset"})

    _is_reading = field_validator("estimator")(check_reading)


@dataclass(frozen=True)
class EstimatorKind:
    """An estimator that can be named in a fitness file, and its options there."""

    summary: str
    options: type[EstimatorOptions]
    race: Callable[[Any], RaceOptions | None]
    reading: Callable[[Any], Mapping[str, Any]]


def _one_rung(kind: str) -> EstimatorKind:
    """A reading by itself: everybody is asked the same number of items."""
    own = READINGS[kind].options
    options = create_model(
        f"{kind.title()}Options", __base__=(OneRungOptions, own), __module__=__name__
    )
    return EstimatorKind(
        READINGS[kind].summary,
        options,
        lambda given: given.race,
        lambda given: {"kind": kind, **{name: getattr(given, name) for name in own.model_fields}},
    )


ESTIMATORS: dict[str, EstimatorKind] = {
    "full": EstimatorKind(
        "all search items", EstimatorOptions, lambda _: None, lambda _: {"kind": "subset"}
    ),
    **{kind: _one_rung(kind) for kind in READINGS},
    "racing": EstimatorKind(
        "few items for all, more for the best; against the incumbents",
        RacingOptions,
        lambda given: given,
        lambda given: given.estimator,
    ),
}


def make_estimator(
    config: Mapping[str, Any], objectives: Sequence[Objective], items: Items, seed: int
) -> Race:
    """The estimator that a fitness file describes, over the search items of each task.

    Raises:
        ConfigurationError: its kind or its options are unknown, or ask for more items than are.
    """
    options = dict(config)
    kind = str(options.pop("kind", "full"))
    if kind not in ESTIMATORS:
        raise ConfigurationError(f"unknown estimator {kind!r} ({nearest(kind, ESTIMATORS)})")
    made = ESTIMATORS[kind]
    given = parse(made.options, Document(options))
    reading = make_reading(made.reading(given), objectives, items, seed)
    return Race(objectives, reading, made.race(given))


def last_rung(config: Mapping[str, Any]) -> int:
    """The rung of candidates that were asked all that the estimator asks; 0 where nobody races.

    Raises:
        ConfigurationError: its options are wrong.
    """
    options = dict(config)
    made = ESTIMATORS[str(options.pop("kind", "full"))]
    race = made.race(parse(made.options, Document(options)))
    return 0 if race is None else len(race.rungs) - 1
