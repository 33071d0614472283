"""What a pool's dispatcher asks of those who make workers: processes, Ray actors, simulations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from evomerge.errors import EvomergeError, Problem
from evomerge.records import Job, Outcome

STILLBORN = 3  # workers in a row that die before they are ready, until their node is given up


Loss = Literal["death", "memory", "node", "leave"]


@dataclass(frozen=True)
class Ready:
    """A worker has opened the models and takes jobs."""

    worker: str
    node: str


@dataclass(frozen=True)
class Answer:
    """A worker has done a job."""

    worker: str
    outcome: Outcome


@dataclass(frozen=True)
class Forgotten:
    """A worker has passed over a job that was recalled before its turn came."""

    worker: str
    job: int


@dataclass(frozen=True)
class Gone:
    """A worker is no more.

    why: `death` of itself; `memory` where the system ended it for want of memory; `node` where its
    machine was lost; `leave` where its place was given to another run.
    """

    worker: str
    what: str
    why: Loss = "death"


@dataclass(frozen=True)
class Refused:
    """A node cannot do the work: a model is not there, or is another. Its workers are no more."""

    node: str
    workers: tuple[str, ...]
    error: EvomergeError


Event = Ready | Answer | Forgotten | Gone | Refused


class Crew(Protocol):
    """Makes workers, replaces those that die, and carries what is said to them and by them.

    Names of workers are never used twice. Every worker that was `Ready` ends with a `Gone` or a
    `Refused`, unless it was dismissed. What is said to one that is no more is not heard: the crew
    knows of its end before whoever has yet to read of it.
    """

    @property
    def depth(self) -> int:
        """Jobs that a worker may have: 2 where it prepares the next while it measures."""
        ...

    @property
    def num_workers(self) -> int:
        """Those that work or are on their way."""
        ...

    @property
    def patience_s(self) -> float:
        """How long it is worth waiting for workers when there are none."""
        ...

    def complaints(self) -> Sequence[Problem]:
        """Why there are fewer workers than there should be."""
        ...

    def send(self, worker: str, job: Job) -> None:
        """Give a job to a worker. The `Gone` of one that is no more may come later."""
        ...

    def recall(self, worker: str, job: int) -> None:
        """Ask a worker to forget a job. It answers `Forgotten`, or does it all the same."""
        ...

    def dismiss(self, worker: str) -> None:
        """End a worker at once, and start another in its place."""
        ...

    def wait(self, timeout_s: float) -> list[Event]:
        """What was said since the last time; waits for the first of it."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...
