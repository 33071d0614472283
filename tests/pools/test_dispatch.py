"""The dispatcher over simulated crews: every job ends once, whatever happens to the workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ModelError, NoWorkersLeft
from evomerge.pools.crew import Answer, Event, Gone
from evomerge.pools.dispatch import ATTEMPTS, LOST_NODES, MEMORY_ATTEMPTS, STRAGGLER_S, Dispatcher
from evomerge.pools.simulated import Simulation
from evomerge.recipe import Merge, ModelSource, Recipe
from evomerge.records import Failure, Job, Outcome

RECIPE = Recipe(
    base="base", models={"base": ModelSource(path="b")}, default=Merge(operator="linear")
)


def make_jobs(count: int, first: int = 0) -> list[Job]:
    return [Job(n, n, RECIPE, {"task": (0, 1)}) for n in range(first, first + count)]


def second(_worker: str, _job: Job) -> float:
    return 1.0


def run(
    crew: Simulation,
    jobs: Iterable[Job],
    until_s: float = 1e5,
    meanwhile: Callable[[float], None] = lambda _now: None,
    **options: float,
) -> dict[int, Outcome]:
    """All outcomes by job; none comes twice."""
    pool = Dispatcher(crew, clock=crew.clock, **options)
    jobs = list(jobs)
    for job in jobs:
        pool.submit(job)
    outcomes: dict[int, Outcome] = {}
    while len(outcomes) < len(jobs) and crew.now < until_s:
        meanwhile(crew.now)
        for outcome in pool.collect(0.5):
            assert outcome.job.id not in outcomes
            outcomes[outcome.job.id] = outcome
    assert len(outcomes) == len(jobs)
    return outcomes


def failed(outcomes: dict[int, Outcome]) -> dict[int, Failure]:
    return {n: o.failure for n, o in outcomes.items() if o.failure is not None}


@pytest.mark.parametrize("depth", [1, 2])
def test_workers_share_the_work(depth):
    crew = Simulation({"a": 3, "b": 1}, second, depth=depth)
    assert not failed(run(crew, make_jobs(40)))
    assert crew.now == pytest.approx(10.0, abs=1.0)
    assert all(one.busy_s == pytest.approx(10.0) for one in crew.workers.values())


# --- deaths ---------------------------------------------------------------------------------------


class Fates:
    """Some jobs kill whoever has them; notes who else was at work on the node then."""

    def __init__(self, deadly: set[int], event: Callable[[str, Job], Event]) -> None:
        self.deadly, self.event = deadly, event
        self.begun: Counter[int] = Counter()
        self.crew: Simulation | None = None
        self.neighbours: dict[int, list[int]] = {n: [] for n in deadly}

    def __call__(self, worker: str, job: Job) -> Event | None:
        self.begun[job.id] += 1
        if job.id not in self.deadly:
            return None
        assert self.crew is not None
        node = self.crew.workers[worker].node
        others = [
            number
            for name, one in self.crew.workers.items()
            if one.node == node and name != worker
            for number in one.jobs
        ]
        self.neighbours[job.id].append(len(others))
        return self.event(worker, job)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("nodes", [{"a": 4}, {"a": 2, "b": 3}, {"a": 1}])
def test_a_job_that_kills_runs_alone_in_the_end_and_is_given_up(depth, nodes):
    fates = Fates({3, 11, 12}, lambda worker, _job: Gone(worker, "exit code -9"))
    crew = fates.crew = Simulation(nodes, second, fates, depth=depth)
    told = failed(run(crew, make_jobs(40)))
    assert told.keys() == fates.deadly
    assert {failure.kind for failure in told.values()} == {"worker"}
    assert all(f"died {ATTEMPTS} times (exit code -9)" in f.reason for f in told.values())
    for number in fates.deadly:
        assert fates.begun[number] == ATTEMPTS
        assert fates.neighbours[number][-1] == 0  # at the last attempt
    assert all(fates.begun[n] == 1 for n in range(40) if n not in fates.deadly) or depth == 2


def test_neighbours_begin_nothing_while_a_suspect_runs():
    """Also those that come in the meantime."""
    at_work: list[set[int]] = []

    def fate(worker: str, job: Job) -> Event | None:
        busy = {n for one in crew.workers.values() for n in list(one.jobs)[:1]}
        if job.id == 0:
            at_work.append(busy)
        elif at_work and len(at_work) == ATTEMPTS - 1 + 1:
            assert 0 not in busy
        return Gone(worker, "exit code -9") if job.id == 0 else None

    def seconds(_worker: str, job: Job) -> float:
        return 7.0 if job.id == 0 else 1.0

    crew = Simulation({"a": 4}, seconds, fate)
    outcomes = run(crew, make_jobs(60))
    assert failed(outcomes).keys() == {0}
    assert at_work[-1] == {0}


def test_memory_gets_one_more_chance_on_a_fresh_worker():
    who: dict[int, list[str]] = {5: [], 6: []}

    def fate(worker: str, job: Job) -> Event | None:
        if job.id in who:
            who[job.id].append(worker)
            if job.id == 6 or len(who[5]) == 1:
                short = Failure("memory", "out of memory while merging")
                return Answer(worker, Outcome(job, failure=short, worker=worker))
        return None

    crew = Simulation({"a": 2}, second, fate)
    told = failed(run(crew, make_jobs(12)))
    assert told.keys() == {6}
    assert told[6].kind == "memory"
    assert len(who[6]) == MEMORY_ATTEMPTS
    for number, workers in who.items():
        assert len(workers) == len(set(workers)) == 2, number
        assert workers[0] not in crew.workers  # it was ended


def test_what_the_system_ends_for_want_of_memory_is_no_death():
    fates = Fates({2}, lambda worker, _job: Gone(worker, "the system ended it", "memory"))
    crew = fates.crew = Simulation({"a": 3}, second, fates)
    told = failed(run(crew, make_jobs(9)))
    assert told[2].kind == "memory"
    assert fates.begun[2] == MEMORY_ATTEMPTS
    assert fates.neighbours[2][-1] == 0


@settings(max_examples=150, deadline=None)
@given(
    nodes=st.dictionaries(st.sampled_from("abc"), st.integers(1, 4), min_size=1),
    depth=st.integers(1, 2),
    deadly=st.sets(st.integers(0, 29), max_size=3),
    seed=st.integers(0, 999),
)
def test_every_job_ends_once_and_no_innocent_one_is_given_up(nodes, depth, deadly, seed):
    generator = np.random.default_rng(seed)
    took: dict[tuple[str, int], float] = {}

    def seconds(worker: str, job: Job) -> float:
        slow = 200.0 if generator.random() < 0.03 else 1.0
        return took.setdefault((worker, job.id), slow * float(generator.uniform(0.5, 2.0)))

    fates = Fates(deadly, lambda worker, _job: Gone(worker, "exit code -9"))
    crew = fates.crew = Simulation(nodes, seconds, fates, depth=depth, start_s=2.0)
    killed: Counter[int] = Counter()

    def now_and_then(_now: float) -> None:
        """Kill somebody, but nobody's job a second time."""
        if generator.random() < 0.1:
            worker = str(generator.choice(sorted(crew.workers)))
            jobs = list(crew.workers[worker].jobs)
            if not any(killed[job] for job in jobs[:1]) and not set(jobs[:1]) & deadly:
                killed.update(jobs[:1])
                crew.kill(worker)

    told = failed(run(crew, make_jobs(30), meanwhile=now_and_then))
    assert told.keys() == deadly


# --- who is late ----------------------------------------------------------------------------------


def test_a_copy_overtakes_a_straggler():
    def seconds(worker: str, _job: Job) -> float:
        return 1e4 if worker == "a-0" else 1.0

    crew = Simulation({"a": 4}, seconds)
    assert not failed(run(crew, make_jobs(40)))
    assert STRAGGLER_S < crew.now < STRAGGLER_S + 15


def test_nothing_is_copied_while_there_is_work():
    begun: Counter[int] = Counter()

    def fate(_worker: str, job: Job) -> None:
        begun[job.id] += 1

    crew = Simulation({"a": 4}, lambda _w, job: 25.0 if job.id == 7 else 1.0, fate)
    run(crew, make_jobs(60))
    assert set(begun.values()) == {1}


def test_what_waits_behind_a_slow_job_is_taken_over():
    crew = Simulation({"a": 2}, lambda _w, job: 20.0 if job.id == 0 else 1.0, depth=2)
    pool = Dispatcher(crew, clock=crew.clock)
    for job in make_jobs(5):
        pool.submit(job)
    done: dict[int, float] = {}
    while len(done) < 5:
        done |= {outcome.job.id: crew.now for outcome in pool.collect(0.5)}
    assert max(at for number, at in done.items() if number) < 8.0


def test_a_job_that_hangs_is_given_up_when_a_limit_is_set():
    crew = Simulation({"a": 3}, lambda _w, job: 1e6 if job.id == 4 else 1.0)
    told = failed(run(crew, make_jobs(20), until_s=400.0, timeout_s=20.0))
    assert told.keys() == {4}
    assert told[4].kind == "timeout"
    assert "20 s" in told[4].reason


def test_a_worker_that_hangs_in_a_job_that_is_done_is_replaced():
    crew = Simulation({"a": 2}, lambda worker, _job: 1e6 if worker == "a-0" else 1.0)
    pool = Dispatcher(crew, clock=crew.clock)
    for job in make_jobs(4):
        pool.submit(job)
    done = 0
    while crew.now < 3 * STRAGGLER_S:
        done += len(pool.collect(0.5))
    assert done == 4
    assert "a-0" not in crew.workers
    assert len(crew.workers) == 2


# --- nodes ----------------------------------------------------------------------------------------


def test_nodes_come_and_go():
    crew = Simulation({"a": 2, "b": 2}, second)

    def meanwhile(now: float) -> None:
        if now > 3 and not lost:
            lost.append("b")
            crew.lose("b")
        if now > 6 and len(lost) == 1:
            lost.append("")
            crew.join("c", 4)

    lost: list[str] = []
    assert not failed(run(crew, make_jobs(60), meanwhile=meanwhile))
    assert {one.node for one in crew.workers.values()} == {"a", "c"}
    assert crew.now < 3 + 3 * 1.5 + 60 / 6


def test_a_job_under_which_nodes_are_lost_is_given_up_late():
    fates = Fates({0}, lambda worker, _job: Gone(worker, "the node was lost", "node"))
    crew = fates.crew = Simulation({"a": 2}, second, fates)
    told = failed(run(crew, make_jobs(4)))
    assert told.keys() == {0}
    assert fates.begun[0] == LOST_NODES


def test_without_workers_it_waits_and_then_gives_up():
    crew = Simulation({"a": 2}, second)
    with pytest.raises(NoWorkersLeft):
        run(crew, make_jobs(9), meanwhile=lambda now: crew.lose("a") if 2 < now < 3 else None)
    assert crew.patience_s < crew.now < crew.patience_s + 5


def test_who_comes_in_time_is_used():
    crew = Simulation({"a": 2}, second)

    def meanwhile(now: float) -> None:
        if 2 < now < 3:
            crew.lose("a")
        if now > 40 and not crew.workers:
            crew.join("b", 1)

    assert not failed(run(crew, make_jobs(9), meanwhile=meanwhile))


def test_a_node_that_lacks_a_model_is_left_out_and_named():
    crew = Simulation({"a": 2, "b": 2}, second)
    crew.refuse("b", "/models/x cannot be read")
    assert not failed(run(crew, make_jobs(8)))
    crew = Simulation({"b": 2}, second)
    crew.patience_s = 0.0
    crew.refuse("b", "/models/x cannot be read")
    with pytest.raises(ModelError, match="b: /models/x cannot be read"):
        run(crew, make_jobs(8))


def test_cancelled_jobs_are_those_that_nobody_has_begun():
    crew = Simulation({"a": 2}, second, depth=2)
    pool = Dispatcher(crew, clock=crew.clock)
    for job in make_jobs(9):
        pool.submit(job)
    while len(pool._seats) < 2:
        pool.collect(0.1)
    begun = {one.jobs[0] for one in crew.workers.values()}
    taken = {job.id for job in pool.cancel()}
    assert taken == set(range(9)) - begun
    came = [o.job.id for _ in range(20) for o in pool.collect(0.5)]
    assert sorted(came) == sorted(begun)
    for job in make_jobs(4, first=20):
        pool.submit(job)
    assert sorted(o.job.id for _ in range(20) for o in pool.collect(0.5)) == [20, 21, 22, 23]
