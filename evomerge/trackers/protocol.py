"""What a tracker is told: all that somebody has to write who wants one of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from evomerge.trackers.figures import Row


@dataclass(frozen=True)
class TrackedRun:
    """The run whose figures come.

    id: the same in every session, and no other run's. name: the experiment's. parameters: the
    resolved experiment, dotted key -> value. last: the step that was logged last, as far as the
    run's folder knows; -1 before the first.
    """

    id: str
    name: str
    folder: Path
    parameters: Mapping[str, Any]
    last: int


class Tracker(Protocol):
    """Is told of the figures of a run, in a thread of its own: whatever it takes, nobody waits.

    Whatever it raises is told the user once; the next session goes on where it stopped.
    """

    name: str  # of the record of what was logged, in the run's folder

    def begin(self, run: TrackedRun) -> int:
        """The run goes on.

        Returns the last step that was logged, which `run.last` is where a tracker knows no better:
        only what comes after it will be told.
        """

    def log(self, rows: Sequence[Row]) -> None:
        """Figures, in the order of their steps; once it returns, they count as logged."""

    def finish(self, figures: Mapping[str, float], table: str, step: int) -> None:
        """The run is finished.

        figures: of the final table, name -> value. table: all of it, as Markdown.
        """

    def close(self) -> None:
        """The session ends, finished or not."""
