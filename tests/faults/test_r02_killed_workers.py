"""R2: one of four workers is killed now and then, at random.

Passes if: evaluations, front and digest are those of an undisturbed run; the pool is full again
within 30 s of each kill; a candidate whose worker died twice runs alone, and is given up at the
third death; no innocent one is. The fast tests kill every second for some seconds, the slow ones
every 10 s for 60 s, in the local pool and on Ray.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_tasks
from toy_pools import collect, make_jobs, make_spec, search
from toy_tasks import ToyTask
from toys import outcome_of

from evomerge.pools.dispatch import ATTEMPTS, Dispatcher
from evomerge.pools.local import Processes
from evomerge.pools.worker import WorkerSpec

WORKERS = 4


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return toy_tasks.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def undisturbed_toys(
    models: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], dict[str, Any]]:
    """Candidates -> what comes of so many of them in the driver itself."""
    known: dict[int, dict[str, Any]] = {}

    def outcome(candidates: int) -> dict[str, Any]:
        if candidates not in known:
            out = tmp_path_factory.mktemp("undisturbed")
            spec = make_spec(models)
            known[candidates] = outcome_of(
                search(models, out, spec, 0, "cma_es", candidates=candidates)
            )
        return known[candidates]

    return outcome


class Killer:
    """Kills a worker of a pool, at random, every so many seconds, for a while."""

    def __init__(self, every_s: float, for_s: float) -> None:
        self.every_s, self.for_s = every_s, for_s
        self.kills = 0
        self.full_again_s: list[float] = []
        self.over = threading.Event()

    @contextmanager
    def of(self, pool: Dispatcher) -> Iterator[None]:
        thread = threading.Thread(target=self._kill, args=(pool,))
        thread.start()
        try:
            yield
        finally:
            self.over.set()
            thread.join()

    def _kill(self, pool: Dispatcher) -> None:
        generator = np.random.default_rng(3)
        self._full(pool)
        end = time.monotonic() + self.for_s
        while time.monotonic() < end and not self.over.is_set():
            ready = {w: pid for w, pid in pids_of(pool).items() if w in pool._seats}
            if not ready:  # the search is over, and its pool closes before we are told
                self.over.wait(0.01)
                continue
            worker = str(generator.choice(sorted(ready)))
            start = time.monotonic()
            os.kill(ready[worker], signal.SIGKILL)
            self.kills += 1
            while worker in pool._seats and not self.over.wait(0.01):
                pass
            if self._full(pool):
                self.full_again_s.append(time.monotonic() - start)
            self.over.wait(max(0.0, start + self.every_s - time.monotonic()))

    def _full(self, pool: Dispatcher) -> bool:
        while len(pool._seats) < WORKERS and not self.over.wait(0.01):
            pass
        return not self.over.is_set()


def pids_of(pool: Dispatcher) -> dict[str, int]:
    members = list(pool._crew._members.items())
    return {n: m.process.pid if hasattr(m, "process") else m.pid for n, m in members if m.ready}


def run_with_kills(
    models: dict[str, str],
    out: Path,
    spec: WorkerSpec,
    killer: Killer,
    crew: Callable[[WorkerSpec, Path | None], Any],
    candidates: int,
) -> dict[str, Any]:
    """What comes of a search whose workers are killed."""
    with contextmanager(_open)(killer, crew) as make:
        search(models, out, spec, WORKERS, "cma_es", make, candidates)
    return outcome_of(out)


def _open(killer: Killer, crew: Any) -> Iterator[Callable[..., Dispatcher]]:
    from contextlib import ExitStack

    with ExitStack() as stack:

        def make(spec: WorkerSpec, log: Path | None) -> Dispatcher:
            pool = Dispatcher(crew(spec, log))
            stack.enter_context(killer.of(pool))
            return pool

        yield make


def test_a_worker_is_killed_every_second(models, tmp_path, undisturbed_toys, figure):
    killer = Killer(1.0, 60.0)
    spec = make_spec(models, sleep_s=0.1)
    outcome = run_with_kills(
        models, tmp_path / "run", spec, killer, lambda s, log: Processes(s, WORKERS, log), 24
    )
    assert outcome == undisturbed_toys(24)
    assert not any(outcome["failures"].values())
    assert killer.kills >= 3
    figure("R2", "workers are there again, local pool", max(killer.full_again_s), 30.0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "ray"])
def test_a_worker_is_killed_every_ten_seconds_for_a_minute(
    kind, models, tmp_path, undisturbed_toys, figure, request
):
    killer = Killer(10.0, 60.0)
    spec = make_spec(models, sleep_s=1.0)
    crew: Callable[..., Any]
    if kind == "ray":
        request.getfixturevalue("ray_nodes")
        from evomerge.pools.ray_cluster import Cluster
        from evomerge.pools.ray_crew import RayCrew, Seats

        def crew(spec: WorkerSpec, log: Path | None) -> RayCrew:
            return RayCrew(Cluster("auto", 2), spec, lambda _: Seats(WORKERS, 0.0), log=log)

    else:

        def crew(spec: WorkerSpec, log: Path | None) -> Processes:
            return Processes(spec, WORKERS, log)

    outcome = run_with_kills(models, tmp_path / "run", spec, killer, crew, 96)
    assert outcome == undisturbed_toys(96)
    assert not any(outcome["failures"].values())
    figure("R2", f"kills in a minute, {kind} pool", killer.kills, 5, unit="", at_least=True)
    figure("R2", f"workers are there again, {kind} pool", max(killer.full_again_s), 30.0)


def test_a_suspect_runs_alone_and_no_innocent_one_is_given_up(models, tmp_path):
    """Who else is at work when the deadly job is given out, and until its worker is gone."""
    spec = make_spec(models, sleep_s=0.05)
    deadly = ToyTask("second", at_items=6)
    crew = Processes(
        replace(spec, python_tasks=spec.python_tasks | {"second": deadly}), WORKERS, tmp_path / "l"
    )
    pool = Dispatcher(crew)
    busy: list[int] = []  # others at work when it begins
    during: list[int] = []  # jobs given out while the suspect runs
    send = crew.send

    def noted(worker: str, job: Any) -> None:
        others = [seat for name, seat in pool._seats.items() if name != worker and seat.jobs]
        if job.id == 5:
            busy.append(len(others))
        elif len(busy) == ATTEMPTS and 5 in pool._cases:
            during.append(job.id)
        send(worker, job)

    crew.send = noted  # type: ignore[method-assign]
    try:
        outcomes = collect(pool, make_jobs(models, 32))
    finally:
        pool.close()
    failed = {n: o.failure for n, o in outcomes.items() if o.failure is not None}
    assert failed.keys() == {5}
    assert failed[5].kind == "worker"
    assert len(busy) == ATTEMPTS
    assert busy[-1] == 0
    assert during == []
