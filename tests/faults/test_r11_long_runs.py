"""R11: 10,000 candidates.

Passes if: besides genomes and responses the driver takes less than 5 KB of memory and at most 5 ms
for a candidate; a worker's memory grows by 50 MB at most; no file descriptor is left open;
`evomerge status` takes less than 1 s, and the run is resumed in less than 10 s.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import pytest
import toy_tasks
from toy_tasks import FileModule, ToyTask
from toys import Count, Toy, forked, outcome_of

from evomerge.ledger import LEDGER
from evomerge.pools import inline
from evomerge.pools.local import local_pool
from evomerge.pools.worker import WorkerSpec
from evomerge.recipe import Merge, ModelSource, Recipe
from evomerge.records import Evaluation, Job

pytestmark = [
    pytest.mark.usefixtures("no_pictures"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]
MB = 1_000_000
MANY = [600, pytest.param(10_000, marks=pytest.mark.slow)]
PART = 100  # candidates between two looks


def resident_bytes(pid: int | str = "self") -> int:
    """What a process has in memory, less what its allocator keeps."""
    if pid == "self":
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Looks(Count):
    """Notes, every 100 candidates: seconds beside measuring, memory, open files."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.looks: list[tuple[float, float, int, int]] = []
        self._told, self._measuring, self._measuring_cpu = 0, 0.0, 0.0
        real = inline.InlinePool.collect

        def collect(pool: inline.InlinePool, timeout_s: float) -> Any:
            start, cpu = time.perf_counter(), time.process_time()
            try:
                return real(pool, timeout_s)
            finally:
                self._measuring += time.perf_counter() - start
                self._measuring_cpu += time.process_time() - cpu

        patch.setattr(inline.InlinePool, "collect", collect)

    def told(self, evaluations: list[Evaluation]) -> None:
        before, self._told = self._told, self._told + len(evaluations)
        if before // PART != self._told // PART:
            spent = time.perf_counter() - self._measuring, time.process_time() - self._measuring_cpu
            files = len(list(Path("/proc/self/fd").iterdir()))
            self.looks.append((*spent, resident_bytes(), files))


def watched_run(toy: Toy, out: Path) -> list[list[float]]:
    """The looks at a run, in a child that does nothing else."""

    def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            looks = Looks(patch)
            toy.run(out, watchers=(looks,))
            (out.parent / "looks").write_text(json.dumps(looks.looks))

    assert forked(run) == 0
    found: list[list[float]] = json.loads((out.parent / "looks").read_text())
    return found


def told_bytes(ledger: Path) -> float:
    """Genome and responses of a candidate, on average, as they are in memory."""
    with closing(sqlite3.connect(f"{ledger.as_uri()}?mode=ro", uri=True)) as db:
        (genomes,) = db.execute("SELECT sum(length(genome)) FROM candidates").fetchone()
        (items,) = db.execute("SELECT sum(length(items)) / 4 FROM responses").fetchone()
        (count,) = db.execute("SELECT count(*) FROM candidates WHERE id >= 0").fetchone()
    return float(genomes + 8 * items) / count


def status_seconds(out: Path) -> float:
    """Of a processor, for the whole command: how long it takes if the machine has nothing else."""
    found = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "evomerge", "status", str(out)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return median(found)


@pytest.mark.parametrize("count", MANY)
@pytest.mark.parametrize("searcher", ["random", pytest.param("nsga2", marks=pytest.mark.slow)])
def test_a_driver_of_many_candidates(searcher, count, tmp_path, figure):
    toy, out = Toy(searcher, "full", count), tmp_path / "run"
    looks = watched_run(toy, out)
    walls, cpus = (
        [1000 * (after[kind] - before[kind]) / PART for before, after in pairwise(looks)]
        for kind in (0, 1)
    )
    figure("R11", "driver, a candidate, of a processor", median(cpus), 5.0, unit="ms")
    is_long = count >= 10_000
    if is_long:  # others may use the machine, and its disk, for a while
        figure(
            "R11", "and with its commits, the quietest quarter", quantiles(walls)[0], 5.0, unit="ms"
        )
    late = median(cpus[-max(1, len(cpus) // 5) :])
    figure("R11", "the last fifth by all", late / median(cpus), 2.0, unit="x")
    start = len(looks) // 3  # the first ones fill caches
    grown = (looks[-1][2] - looks[start][2]) / (PART * (len(looks) - 1 - start))
    grown -= told_bytes(out / LEDGER)
    if is_long:  # else what SQLite keeps in its cache counts
        figure("R11", "driver's memory, a candidate", max(grown, 0), 5000, unit="bytes")
    assert grown < 20_000
    files = [look[3] for look in looks]
    figure("R11", "file descriptors more at the end", files[-1] - files[0], 0, unit="")
    figure("R11", f"`evomerge status` of {count:,}", status_seconds(out), 1.0)
    before = outcome_of(out)
    began = time.perf_counter()
    assert forked(lambda: toy.run(out)) == 0
    figure("R11", f"resumed with {count:,}", time.perf_counter() - began, 10.0)
    assert outcome_of(out) == before
    longer = replace(toy, budget=count + 8)
    began = time.perf_counter()
    assert forked(lambda: longer.run(out)) == 0
    figure("R11", f"resumed with {count:,}, and 8 more", time.perf_counter() - began, 12.0)


def jobs(models: dict[str, str], count: int) -> Iterator[Job]:
    """So many recipes, none of them twice; each answers all items of two tasks."""
    sources = {name: ModelSource(path=path) for name, path in models.items()}
    items = {name: tuple(range(toy_tasks.NUM_ITEMS)) for name in ("first", "second")}
    for number in range(count):
        weight = {"parameters": {"weight": number / count}}
        merge = Merge.model_validate({"operator": "task_arithmetic", **weight})
        yield Job(number, number, Recipe(base="base", models=sources, default=merge), items)


@pytest.mark.parametrize("count", MANY)
def test_a_worker_of_many_candidates(count, tmp_path, figure):
    models = toy_tasks.write_models(tmp_path)
    pids = tmp_path / "pids"
    pids.mkdir()
    tasks = {name: ToyTask(name, pids=str(pids)) for name in ("first", "second")}
    spec = WorkerSpec(models, "base", build=FileModule(models["base"]), python_tasks=tasks)
    pool = local_pool(spec, 1, tmp_path / "log")
    done, looks = 0, []
    try:
        for job in jobs(models, count):
            pool.submit(job)
            if job.id % PART == PART - 1:
                while done <= job.id:
                    done += len(pool.collect(1.0))
                (pid,) = [int(path.name) for path in pids.iterdir()]  # the same to the end
                files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
                looks.append((resident_bytes(pid), files))
    finally:
        pool.close()
    grown = (looks[-1][0] - looks[0][0]) / MB
    figure("R11", f"a worker's memory after {count:,}", max(grown, 0), 50, unit="MB")
    more = looks[-1][1] - looks[0][1]
    figure("R11", "a worker's file descriptors, more at the end", more, 0, unit="")
