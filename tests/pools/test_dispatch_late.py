"""The dispatcher over crews whose messages take their time: what it knows is never quite so."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from test_dispatch import make_jobs

from evomerge.errors import ModelError, Problem
from evomerge.pools.crew import Answer, Event, Forgotten, Gone, Ready, Refused
from evomerge.pools.dispatch import Dispatcher
from evomerge.pools.local import Processes
from evomerge.pools.ray_crew import RayCrew
from evomerge.pools.simulated import Simulation
from evomerge.records import Failure, Job, Outcome

TROUBLE_S = 250.0  # how long everything may go wrong
END_S = 3000.0


@dataclass
class Sloth:
    """A worker that reads what it is told, and is read, when it pleases."""

    node: str
    told: deque[Job | int] = field(default_factory=deque)
    asked: deque[int] = field(default_factory=deque)  # to forget, where that overtakes
    jobs: deque[Job] = field(default_factory=deque)
    forgotten: set[int] = field(default_factory=set)
    said: deque[Event] = field(default_factory=deque)
    is_ready: bool = False
    is_gone: bool = False
    at: tuple[Job, float] | None = None  # until when


class SlowCrew:
    """A crew where every message and every worker may be late, and may be lost.

    ordered: whether jobs and recalls arrive in the order of sending (a pipe) or not (two calls).
    """

    patience_s = END_S

    def __init__(self, rng: random.Random, depth: int, ordered: bool) -> None:
        self.depth, self.now, self.calm = depth, 0.0, False
        self.deadly, self.hungry = set[int](), set[int]()
        self._rng, self._ordered, self._count = rng, ordered, 0
        self._nodes = {f"first-{n}": rng.randint(1, 3) for n in range(rng.randint(1, 3))}
        self._workers: dict[str, Sloth] = {}
        self._pending: list[Event] = []
        for node, count in self._nodes.items():
            self._hire(node, count)

    def clock(self) -> float:
        return self.now

    @property
    def num_workers(self) -> int:
        return len(self._workers)

    def complaints(self) -> list[Problem]:
        return []

    def send(self, worker: str, job: Job) -> None:
        if worker in self._workers:
            self._workers[worker].told.append(job)

    def recall(self, worker: str, job: int) -> None:
        if (one := self._workers.get(worker)) is not None:
            (one.told if self._ordered else one.asked).append(job)

    def dismiss(self, worker: str) -> None:
        if (one := self._workers.pop(worker, None)) is not None:
            self._hire(one.node)

    def close(self) -> None:
        self._workers.clear()

    def wait(self, timeout_s: float) -> list[Event]:
        for _ in range(self._rng.choice([1, 1, 2, 5])):
            self.now += 0.2 * timeout_s
            for name, one in self._workers.items():
                if not one.is_gone:
                    one.said += self._lived(name, one)
            if not self.calm:
                self._trouble()
        events, self._pending = self._pending, []
        for name, one in list(self._workers.items()):
            while one.said and self._rng.random() < 0.7:
                events.append(one.said.popleft())
                if isinstance(events[-1], Gone):
                    del self._workers[name]
                    self._hire(one.node)
        return events

    def _hire(self, node: str, count: int = 1) -> None:
        for _ in range(count if node in self._nodes else 0):
            self._workers[f"{node}-{self._count}"] = Sloth(node)
            self._count += 1

    def _lived(self, name: str, one: Sloth) -> Iterator[Event]:
        rng = self._rng
        if not one.is_ready:
            if rng.random() < 0.3:
                one.is_ready = True
                yield Ready(name, one.node)
            return
        for heard in (one.told, one.asked):
            while heard and rng.random() < 0.7:
                message = heard.popleft()
                if isinstance(message, int):
                    one.forgotten.add(message)
                else:
                    one.jobs.append(message)
        while one.at is None and one.jobs and rng.random() < 0.8:
            job = one.jobs.popleft()
            if job.id in one.forgotten:
                one.forgotten.discard(job.id)
                yield Forgotten(name, job.id)
            else:
                one.at = job, self.now + rng.choice([0.1, 0.5, 1.0, 2.0])
        if one.at is not None and self.now >= one.at[1]:
            job, one.at = one.at[0], None
            yield from self._ended(name, one, job)

    def _ended(self, name: str, one: Sloth, job: Job) -> Iterator[Event]:
        rng = self._rng
        by_chance = 0.0 if self.calm else 0.05
        one.is_gone = job.id in self.deadly or rng.random() < by_chance
        if one.is_gone:
            yield Gone(
                name, "died", "death" if job.id in self.deadly else rng.choice(["death", "memory"])
            )
            return
        hungry = job.id in self.hungry or rng.random() < by_chance
        failure = Failure("memory", "out of memory") if hungry else None
        yield Answer(name, Outcome(job, failure=failure, worker=name))
        if rng.random() < by_chance / 2:
            one.is_gone = True
            yield Gone(name, "its place is another run's", "leave")

    def _trouble(self) -> None:
        rng = self._rng
        if rng.random() < 0.01:
            node = f"joined-{self._count}"
            self._nodes[node] = rng.randint(1, 2)
            self._hire(node, self._nodes[node])
        if rng.random() > 0.01 or len(self._nodes) == 1:
            return
        node = rng.choice(list(self._nodes))
        del self._nodes[node]
        there = {n: one for n, one in self._workers.items() if one.node == node and not one.is_gone}
        if rng.random() < 0.5:
            for name, one in there.items():
                one.is_gone = True
                one.said.append(Gone(name, f"{node} is gone", "node"))
            return
        for name in there:
            self._pending += self._workers.pop(name).said
        error = ModelError(Problem(node, "a model is missing"))
        self._pending.append(Refused(node, tuple(there), error))


@pytest.mark.parametrize("seed", range(60))
def test_every_job_ends_once_and_nothing_is_left(seed):
    """Deaths, memory, lost and refused nodes, workers that leave, and a cancel now and then."""
    rng = random.Random(seed)
    crew = SlowCrew(rng, depth=rng.choice([1, 2, 2]), ordered=rng.random() < 0.5)
    pool = Dispatcher(crew, rng.choice([None, 20.0]), crew.clock)
    jobs = make_jobs(rng.choice([40, 100]))
    crew.deadly, crew.hungry = ({j.id for j in jobs if rng.random() < 0.03} for _ in range(2))
    todo, window, under_way = deque(jobs), rng.choice([10, 40]), set[int]()
    while (todo or under_way) and crew.now < END_S:
        while todo and len(under_way) < window and rng.random() < 0.5:
            under_way.add(todo[0].id)
            pool.submit(todo.popleft())
        if rng.random() < 0.004:
            under_way -= {job.id for job in pool.cancel()}
        crew.calm = crew.now > TROUBLE_S
        for outcome in pool.collect(0.5):
            under_way.remove(outcome.job.id)  # fails if it came twice, or was taken back
    assert not under_way
    crew.calm, crew.deadly = True, set()
    for _ in range(300):
        assert pool.collect(0.5) == []
    assert not pool._cases
    assert not pool._quiet
    assert not any(seat.jobs for seat in pool._seats.values())
    assert len(pool._idle) == len(pool._seats) == crew.num_workers


@pytest.mark.parametrize("kind", [Processes, RayCrew, Simulation])
def test_what_is_said_to_a_worker_that_is_no_more_is_not_heard(kind):
    """It may have died, or left, in the very moment in which it answered."""
    crew: Any = kind.__new__(kind)
    crew._members = crew.workers = {}
    crew.send("nobody", make_jobs(1)[0])
    crew.recall("nobody", 0)
    crew.dismiss("nobody")
