"""A crew that only pretends to work, in a time of its own: what a cluster would do, in seconds."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count

from evomerge.errors import ModelError, Problem
from evomerge.pools.crew import Answer, Event, Forgotten, Gone, Ready, Refused
from evomerge.records import Job, Outcome

Seconds = Callable[[str, Job], float]  # worker, job -> how long it takes
Fate = Callable[[str, Job], Event | None]  # what happens instead of an answer


@dataclass
class _Pretender:
    """A worker that is not there."""

    node: str
    jobs: deque[int] = field(default_factory=deque)
    forgotten: set[int] = field(default_factory=set)
    known: dict[int, Job] = field(default_factory=dict)
    busy_s: float = 0.0


class Simulation:
    """A crew in virtual time; see `Crew`. `now` is its clock, and `wait` lets time pass.

    nodes: name -> its workers. seconds: how long a job takes. fate: a death or the like that a
    worker meets with in a job, at its end. answer: what it says otherwise. start_s: until a worker
    is ready. real: whether the seconds that the driver really spends between two `wait`s pass too.
    """

    patience_s = 60.0

    def __init__(
        self,
        nodes: Mapping[str, int],
        seconds: Seconds,
        fate: Fate = lambda _worker, _job: None,
        *,
        depth: int = 1,
        answer: Callable[[str, Job], Outcome] = lambda worker, job: Outcome(job, worker=worker),
        start_s: float = 0.0,
        real: bool = False,
    ) -> None:
        self.now = 0.0
        self.depth = depth
        self.workers: dict[str, _Pretender] = {}
        self.done_s = 0.0  # worker-seconds of answers
        self._seconds, self._fate = seconds, fate
        self._answer, self._start_s = answer, start_s
        self._left = time.perf_counter() if real else None  # when the driver went its own way
        self._numbers, self._ties = count(), count()
        self._calendar: list[tuple[float, int, str, Event]] = []
        self._barred: set[str] = set()
        for node, workers in nodes.items():
            self.join(node, workers)

    @property
    def num_workers(self) -> int:
        """Those that work or are on their way."""
        return len(self.workers)

    def complaints(self) -> list[Problem]:
        """Nodes that were refused."""
        return [Problem(node, "was refused") for node in sorted(self._barred)]

    def clock(self) -> float:
        """Seconds since it began."""
        return self.now

    def join(self, node: str, workers: int) -> None:
        """So many workers more."""
        for _ in range(workers):
            self._hire(node)

    def lose(self, node: str) -> None:
        """A node is gone, with all its workers."""
        for worker in [w for w, one in self.workers.items() if one.node == node]:
            del self.workers[worker]
            self._later(0.0, worker, Gone(worker, f"{node} is gone", "node"))

    def kill(self, worker: str) -> None:
        """A worker dies, and another comes."""
        node = self.workers.pop(worker).node
        self._later(0.0, worker, Gone(worker, "killed"))
        self._hire(node)

    def refuse(self, node: str, what: str) -> None:
        """A node cannot work any more."""
        gone = tuple(w for w, one in self.workers.items() if one.node == node)
        for worker in gone:
            del self.workers[worker]
        self._barred.add(node)
        self._later(0.0, "", Refused(node, gone, ModelError(Problem(node, what))))

    def send(self, worker: str, job: Job) -> None:
        """Give a job to a worker."""
        if (one := self.workers.get(worker)) is not None:
            one.jobs.append(job.id)
            one.known[job.id] = job
            if len(one.jobs) == 1:
                self._begin(worker)

    def recall(self, worker: str, job: int) -> None:
        """Ask a worker to forget a job."""
        if (one := self.workers.get(worker)) is not None and job in list(one.jobs)[1:]:
            one.forgotten.add(job)

    def dismiss(self, worker: str) -> None:
        """End a worker at once, and start another in its place."""
        if (one := self.workers.pop(worker, None)) is not None:
            self._hire(one.node)

    def wait(self, timeout_s: float) -> list[Event]:
        """What is due by now; time passes until something is, or is over."""
        if self._left is not None:
            self.now += time.perf_counter() - self._left
        if self._calendar and self._calendar[0][0] > self.now:
            self.now = min(self._calendar[0][0], self.now + timeout_s)
        elif not self._calendar:
            self.now += timeout_s
        events: list[Event] = []
        while self._calendar and self._calendar[0][0] <= self.now:
            _, _, worker, event = heapq.heappop(self._calendar)
            events += self._due(worker, event)
        if self._left is not None:
            self._left = time.perf_counter()
        return events

    def close(self) -> None:
        """Everybody goes home."""
        self.workers.clear()

    # --- what passes ------------------------------------------------------------------------------

    def _hire(self, node: str) -> None:
        worker = f"{node}-{next(self._numbers)}"
        self.workers[worker] = _Pretender(node)
        self._later(self._start_s, worker, Ready(worker, node))

    def _later(self, seconds: float, worker: str, event: Event) -> None:
        heapq.heappush(self._calendar, (self.now + seconds, next(self._ties), worker, event))

    def _begin(self, worker: str) -> None:
        """Begin with the next job; those that were recalled are passed over."""
        one = self.workers[worker]
        while one.jobs and one.jobs[0] in one.forgotten:
            job = one.jobs.popleft()
            one.forgotten.discard(job)
            self._later(0.0, worker, Forgotten(worker, job))
        if one.jobs:
            known = one.known[one.jobs[0]]
            event = self._fate(worker, known) or Answer(worker, Outcome(known))
            self._later(self._seconds(worker, known), worker, event)

    def _due(self, worker: str, event: Event) -> list[Event]:
        one = self.workers.get(worker)
        match event:
            case Answer(_, outcome) if one is not None:
                if not outcome.worker:  # it was no fate's
                    event = Answer(worker, self._answer(worker, outcome.job))
                seconds = self._seconds(worker, outcome.job)
                one.busy_s += seconds
                self.done_s += seconds
                del one.known[one.jobs.popleft()]
                self._begin(worker)
            case Gone() if one is not None:  # its fate
                self._hire(self.workers.pop(worker).node)
            case Gone() | Refused():
                pass
            case _ if one is None:
                return []  # said by somebody who was dismissed or lost
        return [event]
