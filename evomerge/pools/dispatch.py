"""Who gets which job, and what happens when a worker dies, hangs, or has no memory left."""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from evomerge.errors import ModelError, NoWorkersLeft, Problem
from evomerge.pools.crew import Answer, Crew, Event, Forgotten, Gone, Loss, Ready, Refused
from evomerge.records import Failure, Job, Outcome

ATTEMPTS = 3  # a job whose worker died this often is given up
SUSPECT = 2  # after so many deaths, a job runs alone on its node
MEMORY_ATTEMPTS = 2  # a job for which there was no memory is tried once more, and given up
LOST_NODES = 8  # nodes that may be lost under a job, which is hardly its own fault

STRAGGLER_S = 30.0  # no job is late before
STRAGGLER = 3.0  # times what jobs of its size take
TYPICAL = 64  # outcomes that say what is usual
LOOK_S = 1.0  # how often late jobs are looked for

logger = logging.getLogger(__name__)
Clock = Callable[[], float]


@dataclass
class _Case:
    """A job under way, and what has happened to it."""

    job: Job
    seats: list[str] = field(default_factory=list)  # workers that have it, and were not told off
    deaths: int = 0
    no_memory: int = 0
    lost_nodes: int = 0
    last: str = ""  # what happened to it

    @property
    def suspect(self) -> bool:
        """Whether it may be the cause of what happened to its workers."""
        return self.deaths >= SUSPECT or self.no_memory > 0


@dataclass
class _Seat:
    """A worker and what it has to do, in this order."""

    node: str
    jobs: list[int] = field(default_factory=list)
    since: float = 0.0  # when it began with the first of them


class Dispatcher:
    """A pool over a crew of workers; see `Pool`.

    A job that a dead worker had runs again. After two deaths it runs alone on its node, so that its
    neighbours are above suspicion; after three it is given up. A job for which there was no memory
    gets one more chance, alone, on a fresh worker. Where nothing is left to do, an idle worker
    takes a job that waits behind another, or a copy of one that takes far longer than others of its
    size: the first outcome counts, and both are equal.
    """

    def __init__(
        self, crew: Crew, timeout_s: float | None = None, clock: Clock = time.monotonic
    ) -> None:
        self._crew = crew
        self._timeout_s = timeout_s
        self._clock = clock
        self._queue: deque[int] = deque()
        self._suspects: deque[int] = deque()
        self._cases: dict[int, _Case] = {}
        self._seats: dict[str, _Seat] = {}
        self._idle: dict[str, None] = {}  # in the order in which they became so
        self._half: dict[str, None] = {}  # have one job and may have another
        self._laden: dict[str, None] = {}  # have jobs that wait behind what they are at
        self._quiet: dict[str, int | None] = {}  # node -> the suspect that it has, or is kept for
        self._seconds_per_item: deque[float] = deque(maxlen=TYPICAL)
        self._alone_since: float | None = None  # since when there is no worker
        self._looked = clock()
        self._refused: list[ModelError] = []

    @property
    def slots(self) -> int:
        """Workers that there are, or are on their way."""
        return self._crew.num_workers

    def submit(self, job: Job) -> None:
        """Queue a job and give it to a worker that is free."""
        self._cases[job.id] = _Case(job)
        self._queue.append(job.id)
        self._dispatch()

    def cancel(self) -> list[Job]:
        """Take back what no worker has begun."""
        waiting = [id_ for seat in self._seats.values() for id_ in seat.jobs[1:]]
        begun = {
            seat.jobs[0]
            for worker, seat in self._seats.items()
            if seat.jobs and self._has(worker, seat.jobs[0])
        }
        taken = [
            self._cases.pop(id_).job
            for id_ in dict.fromkeys([*self._queue, *self._suspects, *waiting])
            if id_ in self._cases and id_ not in begun
        ]
        for worker, seat in self._seats.items():
            for id_ in seat.jobs[1:]:
                self._recall(worker, id_)
        self._queue.clear()
        self._suspects.clear()
        self._quiet = {node: job for node, job in self._quiet.items() if job is not None}
        return taken

    def collect(self, timeout_s: float) -> list[Outcome]:
        """Outcomes that arrived within the time, and failures of jobs that were given up.

        Raises:
            ModelError: no node can read the models.
            NoWorkersLeft: there is no worker, and none comes.
        """
        outcomes = [o for event in self._crew.wait(timeout_s) for o in self._take(event)]
        if self._timeout_s is not None:
            outcomes += self._overdue(self._timeout_s)
        self._dispatch()
        if not self._queue and self._idle:
            self._take_over()
            if self._clock() - self._looked >= LOOK_S:
                self._looked = self._clock()
                self._relieve()
        if not outcomes:
            self._check_workers()
        return outcomes

    def close(self) -> None:
        """End all workers; one that is in the middle of a job is not waited for."""
        self._crew.close()

    # --- what is said -----------------------------------------------------------------------------

    def _take(self, event: Event) -> Iterator[Outcome]:
        match event:
            case Ready(worker, node):
                self._seats[worker] = _Seat(node)
                self._file(worker)
            case Forgotten(worker, job):
                self._leave(worker, job)
                if self._has(worker, job) and job not in self._seats[worker].jobs:
                    given = self._cases[job]  # anew; it was told so of the time before
                    given.seats.remove(worker)
                    self._put_back(given, first=True)
            case Answer(worker, outcome):
                self._leave(worker, outcome.job.id)
                if (case := self._cases.get(outcome.job.id)) and worker in case.seats:
                    case.seats.remove(worker)
                yield from self._answered(worker, outcome)
            case Gone(worker, what, why):
                yield from self._gone(worker, what, why)
            case Refused(node, workers, error):
                if not isinstance(error, ModelError):
                    raise error  # it would be the same on every node
                logger.warning("%s cannot work: %s", node, error)
                self._refused.append(error)
                for worker in workers:
                    yield from self._gone(worker, str(error), "node")

    def _answered(self, worker: str, outcome: Outcome) -> Iterator[Outcome]:
        case = self._cases.get(outcome.job.id)
        if case is None:
            return  # somebody else was faster, or nobody waits for it any more
        if outcome.failure is not None and outcome.failure.kind == "memory":
            case.no_memory += 1
            if case.no_memory < MEMORY_ATTEMPTS:
                case.last = outcome.failure.reason
                logger.warning("candidate %d: %s; trying again", case.job.candidate, case.last)
                self._put_back(case)
                self._dismiss(worker)  # what is left of it may hold the memory that was lacking
                return
        elif outcome.failure is None and outcome.job.num_items:
            seconds = outcome.merge_s + outcome.measure_s
            self._seconds_per_item.append(seconds / outcome.job.num_items)
        self._drop(case)
        yield outcome

    def _gone(self, worker: str, what: str, why: Loss) -> Iterator[Outcome]:
        seat = self._seats.pop(worker, None)
        self._unfile(worker)
        if seat is None:
            return
        level = logging.INFO if why == "leave" else logging.WARNING
        logger.log(level, "worker %s is gone: %s", worker, what)
        for place, id_ in enumerate(seat.jobs):
            if self._quiet.get(seat.node) == id_:
                del self._quiet[seat.node]
            case = self._cases.get(id_)
            if case is None or worker not in case.seats:
                continue
            case.seats.remove(worker)
            # Those that waited behind the first have done nothing yet.
            yield from self._blame(case, what, why) if place == 0 else ()
            if id_ in self._cases and not case.seats:
                self._put_back(case, first=True)

    def _blame(self, case: _Case, what: str, why: Loss) -> Iterator[Outcome]:
        """Count a loss against the job that the worker was at; give it up where it is the last."""
        case.last = what
        case.deaths += why == "death"
        case.no_memory += why == "memory"
        case.lost_nodes += why == "node"
        failure = None
        if case.deaths >= ATTEMPTS:
            failure = Failure("worker", f"its worker died {case.deaths} times ({what})")
        elif case.no_memory >= MEMORY_ATTEMPTS:
            failure = Failure(
                "memory", f"there was no memory for it {case.no_memory} times: {what}"
            )
        elif case.lost_nodes >= LOST_NODES:
            failure = Failure("worker", f"{case.lost_nodes} nodes were lost under it ({what})")
        if failure is not None:
            self._drop(case)
            yield Outcome(case.job, failure=failure)

    # --- who has what -----------------------------------------------------------------------------

    def _file(self, worker: str) -> None:
        """Note how much room a worker has."""
        self._unfile(worker)
        count = len(self._seats[worker].jobs)
        if count == 0:
            self._idle[worker] = None
        elif count < self._crew.depth:
            self._half[worker] = None
        if count > 1:
            self._laden[worker] = None

    def _unfile(self, worker: str) -> None:
        for group in (self._idle, self._half, self._laden):
            group.pop(worker, None)

    def _leave(self, worker: str, job: int) -> None:
        """A worker no longer has a job."""
        seat = self._seats.get(worker)
        if seat is None or job not in seat.jobs:
            return
        seat.jobs.remove(job)
        seat.since = self._clock()
        if self._quiet.get(seat.node) == job:
            del self._quiet[seat.node]
        self._file(worker)

    def _drop(self, case: _Case) -> None:
        """A job is over; copies of it are not needed."""
        del self._cases[case.job.id]
        for worker in list(case.seats):
            if case.job.id in self._seats[worker].jobs[1:]:
                self._recall(worker, case.job.id)

    def _put_back(self, case: _Case, *, first: bool = False) -> None:
        """Queue a job again; one that may be guilty waits for a node of its own."""
        if case.seats or case.job.id in self._queue or case.job.id in self._suspects:
            return  # somebody has a copy of it, or it waits already
        if case.suspect:
            self._suspects.append(case.job.id)
        elif first:
            self._queue.appendleft(case.job.id)
        else:
            self._queue.append(case.job.id)

    def _dismiss(self, worker: str) -> None:
        """End a worker; what it had goes back, and nobody is to blame."""
        seat = self._seats.pop(worker, None)
        self._unfile(worker)
        if seat is None:
            return  # for another of its jobs; it had said this before it knew
        self._crew.dismiss(worker)
        for id_ in seat.jobs:
            if self._quiet.get(seat.node) == id_:
                del self._quiet[seat.node]
            if (case := self._cases.get(id_)) is not None and worker in case.seats:
                case.seats.remove(worker)
                self._put_back(case, first=True)

    def _recall(self, worker: str, job: int) -> None:
        """Ask a worker to forget a job; from now on it is not among those who have it."""
        self._crew.recall(worker, job)
        if (case := self._cases.get(job)) is not None and worker in case.seats:
            case.seats.remove(worker)

    def _give(self, worker: str, job: int) -> None:
        case, seat = self._cases[job], self._seats[worker]
        if not seat.jobs:
            seat.since = self._clock()
        case.seats.append(worker)
        seat.jobs.append(job)
        self._file(worker)
        self._crew.send(worker, case.job)

    def _dispatch(self) -> None:
        """Give out what is queued: first to the idle, then behind what others are at."""
        if self._suspects:
            self._isolate()
        for free in (self._idle, self._half):
            for worker in list(free) if self._queue and free else ():
                if (job := self._next()) is None:
                    return
                seat = self._seats[worker]
                # What it was asked to forget is not given to it until it says that it has.
                if seat.node not in self._quiet and job not in seat.jobs:
                    self._give(worker, self._queue.popleft())

    def _next(self) -> int | None:
        """The first of the queue. Some are over: who was asked to forget them was faster."""
        while self._queue and self._queue[0] not in self._cases:
            self._queue.popleft()
        return self._queue[0] if self._queue else None

    def _isolate(self) -> None:
        """Give a suspect to a node where nobody else is at work; make room for it."""
        self._suspects = deque(id_ for id_ in self._suspects if id_ in self._cases)
        nodes: dict[str, list[str]] = {}
        for worker, seat in self._seats.items():
            nodes.setdefault(seat.node, []).append(worker)
        self._quiet = {node: job for node, job in self._quiet.items() if node in nodes}
        for node, workers in nodes.items():
            is_idle = all(not self._seats[worker].jobs for worker in workers)
            if is_idle and self._suspects and self._quiet.get(node) is None:
                job = self._suspects.popleft()
                self._quiet[node] = job
                self._give(workers[0], job)
        kept_free = [node for node, job in self._quiet.items() if job is None]
        if self._suspects and not kept_free:
            open_nodes = [node for node in nodes if node not in self._quiet]
            if open_nodes:
                node = min(
                    open_nodes, key=lambda n: sum(len(self._seats[w].jobs) for w in nodes[n])
                )
                self._quiet[node] = None
                self._clear(nodes[node])
        if not self._suspects:
            for node in kept_free:
                del self._quiet[node]

    def _clear(self, workers: list[str]) -> None:
        """Take back what waits behind what these workers are at."""
        for worker in workers:
            for id_ in self._seats[worker].jobs[1:]:
                if self._has(worker, id_):
                    self._recall(worker, id_)
                    self._put_back(self._cases[id_], first=True)

    # --- who is late ------------------------------------------------------------------------------

    def _take_over(self) -> None:
        """Nothing is queued and somebody is idle: take what waits behind others."""
        for worker in list(self._laden):
            for id_ in [i for i in self._seats[worker].jobs[1:] if self._is_alone(worker, i)]:
                if (taker := self._taker()) is None:
                    return
                self._recall(worker, id_)
                self._give(taker, id_)

    def _relieve(self) -> None:
        """Copy what is late to who is idle."""
        now = self._clock()
        late: list[tuple[float, str, int]] = []
        for worker, seat in self._seats.items():
            if seat.jobs and (over := now - seat.since - self._limit_s(seat.jobs[0])) > 0:
                late.append((over, worker, seat.jobs[0]))
        for _, worker, id_ in sorted(late, reverse=True):
            if id_ not in self._cases:  # its copy is done long ago
                logger.warning("worker %s hangs in a job that is done; it is replaced", worker)
                self._dismiss(worker)
            elif self._is_alone(worker, id_) and (taker := self._taker()) is not None:
                logger.info("job %d is late at %s; %s gets a copy", id_, worker, taker)
                self._give(taker, id_)

    def _has(self, worker: str, job: int) -> bool:
        """Whether a worker is to do a job, and was not asked to forget it."""
        return (case := self._cases.get(job)) is not None and worker in case.seats

    def _is_alone(self, worker: str, job: int) -> bool:
        case = self._cases.get(job)
        return case is not None and case.seats == [worker] and not case.suspect

    def _taker(self) -> str | None:
        return next((w for w in self._idle if self._seats[w].node not in self._quiet), None)

    def _limit_s(self, job: int) -> float:
        """How long a job may take until it is late."""
        if (case := self._cases.get(job)) is None or not self._seconds_per_item:
            return STRAGGLER_S
        typical = statistics.median(self._seconds_per_item) * max(1, case.job.num_items)
        return max(STRAGGLER_S, STRAGGLER * typical)

    def _overdue(self, timeout_s: float) -> list[Outcome]:
        """End workers that are too long at a job; it has one attempt less, as after a death."""
        outcomes: list[Outcome] = []
        now = self._clock()
        for worker, seat in list(self._seats.items()):
            if seat.jobs and now - seat.since > timeout_s:
                case = self._cases.get(seat.jobs[0])
                what = f"longer than {timeout_s:g} s at one job"
                logger.warning("worker %s was %s; it is replaced", worker, what)
                if case is not None:
                    if worker in case.seats:
                        case.seats.remove(worker)
                    seat.jobs.pop(0)
                    if self._quiet.get(seat.node) == case.job.id:
                        del self._quiet[seat.node]
                    given_up = list(self._blame(case, what, "death"))
                    outcomes += [_timed_out(outcome, timeout_s) for outcome in given_up]
                    if not given_up:
                        self._put_back(case, first=True)
                self._dismiss(worker)
        return outcomes

    def _check_workers(self) -> None:
        """Wait a while for workers where there are none, and then no longer."""
        if self._crew.num_workers > 0:
            self._alone_since = None
            return
        now = self._clock()
        if self._alone_since is None:
            self._alone_since = now
        if now - self._alone_since < self._crew.patience_s:
            return
        complaints = list(self._crew.complaints())
        if self._refused:
            told = [problem for error in self._refused for problem in error.problems]
            raise ModelError(list(dict.fromkeys([*told, *complaints])))
        raise NoWorkersLeft(complaints or [Problem("pool", "no worker is left")])


def _timed_out(outcome: Outcome, timeout_s: float) -> Outcome:
    what = f"{ATTEMPTS} times longer than the {timeout_s:g} s that a job may take"
    return Outcome(outcome.job, failure=Failure("timeout", what), worker=outcome.worker)
