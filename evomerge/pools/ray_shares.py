"""Several runs on one Ray cluster: each has as many workers as the others."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

NAME = "evomerge-shares"
SILENT_S = 15.0  # a run that was not heard of for so long is over


class Attendance:
    """Which runs are there; an actor of the cluster, which the first of them starts."""

    def __init__(self) -> None:
        self._heard: dict[str, float] = {}

    def present(self, run: str) -> tuple[int, int]:
        """Note that a run is there; its place among all that are, and their number."""
        now = time.monotonic()
        self._heard[run] = now
        self._heard = {name: at for name, at in self._heard.items() if now - at < SILENT_S}
        names = sorted(self._heard)
        return names.index(run), len(names)

    def leave(self, run: str) -> None:
        """A run is over."""
        self._heard.pop(run, None)


class Shares:
    """A run's share of a cluster: workers are divided evenly among the runs that are there.

    The actor ends with the run that started it, and the next one that asks starts another: no run
    leaves anything behind.
    """

    def __init__(self, ray: Any, run: str) -> None:
        self._ray = ray
        self._run = run
        self._actor: Any = None
        self._answer: Any = None  # of the last call, while it is not there
        self._last = (0, 1)

    def of(self, workers: int) -> int:
        """How many of so many workers; from the last answer, so that nobody waits for another."""
        self._ask()
        place, runs = self._last
        return workers // runs + (place < workers % runs)

    def leave(self) -> None:
        """The run is over."""
        if self._actor is not None:
            with suppress(Exception):
                self._ray.get(self._actor.leave.remote(self._run), timeout=2)

    def _ask(self) -> None:
        try:
            if self._actor is None:
                self._actor = (
                    self._ray.remote(Attendance)
                    .options(name=NAME, get_if_exists=True, num_cpus=0, max_restarts=0)
                    .remote()
                )
                # The first answer is waited for: two runs that start together share at once.
                self._last = self._ray.get(self._actor.present.remote(self._run), timeout=20)
            elif self._answer is None:
                self._answer = self._actor.present.remote(self._run)
            elif self._ray.wait([self._answer], timeout=0)[0]:
                answer, self._answer = self._answer, None
                self._last = self._ray.get(answer)
        except (self._ray.exceptions.RayError, ValueError):
            self._actor = self._answer = None  # whoever had started it is gone; ask the next
