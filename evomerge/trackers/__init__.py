"""Where the figures of a run can go as it goes on, beside its ledger.

A tracker is told of figures and changes nothing: it is no part of what an experiment is, and one
that fails ends no search. The libraries behind them are imported when a run begins, not before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Annotated, Any

from pydantic import Field

from evomerge.documents import Misfit
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.trackers.figures import Row
from evomerge.trackers.mlflow import MlflowConfig, MlflowTracker
from evomerge.trackers.protocol import TrackedRun, Tracker
from evomerge.trackers.tensorboard import TensorBoardConfig, TensorBoardTracker
from evomerge.trackers.tracking import Tracking
from evomerge.trackers.wandb import WandbConfig, WandbTracker

__all__ = [
    "TRACKERS",
    "Row",
    "TrackedRun",
    "Tracker",
    "TrackerConfig",
    "Tracking",
    "entries",
    "misfits",
    "trackings",
]

# Each class carries its `summary`, its `Options`, and the package that it needs.
TRACKERS: dict[str, type[Any]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
}

TrackerConfig = Annotated[
    TensorBoardConfig | WandbConfig | MlflowConfig, Field(discriminator="kind")
]


def entries(value: Any) -> Any:
    """What an experiment file has under `trackers`, as a list of mappings.

    A tracker is a name, or a mapping with `kind` and options; one alone needs no list.
    """
    several = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return [{"kind": each} if isinstance(each, str) else each for each in several]


def misfits(found: Sequence[Any]) -> list[Misfit]:
    """The entries of a kind, or with a key, that nobody knows."""
    wrong = []
    for i, entry in enumerate(found):
        kind = entry.get("kind") if isinstance(entry, Mapping) else None
        if isinstance(kind, str) and kind not in TRACKERS:
            hint = nearest(kind, TRACKERS)
            wrong.append(Misfit(("trackers", i), f"unknown tracker {kind!r}", hint))
        elif isinstance(kind, str):
            valid = TRACKERS[kind].Options.model_fields
            wrong += [
                Misfit(("trackers", i, str(key)), "unknown key", nearest(str(key), valid))
                for key in entry
                if key not in valid
            ]
    return wrong


def trackings(configs: Sequence[Any]) -> list[Tracking]:
    """Those who watch a run for its trackers.

    Raises:
        ConfigurationError: what one needs is not installed.
    """
    missing = [
        Problem(
            "trackers",
            f"{config.kind} needs the package {TRACKERS[config.kind].package}",
            f"pip install 'evomerge[{config.kind}]', or leave it out: --track none",
        )
        for config in configs
        if find_spec(TRACKERS[config.kind].package) is None
    ]
    if missing:
        raise ConfigurationError(missing)
    return [Tracking(TRACKERS[config.kind](config)) for config in configs]
