"""How many workers one driver keeps busy, and what it pays for a candidate.

    python benchmarks/scaling.py simulated [--workers 64 256 1000] [--seconds 1]
    python benchmarks/scaling.py ray [--workers 64]
    python benchmarks/scaling.py tiny [--candidates 96]
    python benchmarks/scaling.py start

`simulated`: workers that only pretend, in a time of their own in which the seconds that the driver
really spends pass as well; jobs take .8 to 1.2 of `--seconds`. Once the dispatcher alone, and once
the whole driver (searcher, space, estimator, ledger on this disk), with generations of `--each`
candidates a worker and with a window of two a worker. Busy is the share of the workers' time that
is spent in jobs, the beginning and the end of the run included.
`ray`: the same with real Ray actors that sleep and take no CPUs.
`tiny`: the tiny family on two local workers against one, in turns.
`start`: from the pool's making to its first answer, local and Ray.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
os.environ["PYTHONPATH"] = os.pathsep.join(  # Ray's workers find this file there
    [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)

from sleeping_workers import Sleep, SleepingWorker, answer, seconds_of
from toys import Count, Toy

from evomerge.experiment import run as runs
from evomerge.experiment.config import read_experiment
from evomerge.experiment.wire import wire
from evomerge.files import catalogue_folder
from evomerge.ledger import LEDGER, Ledger
from evomerge.pools import PoolConfig, make_pool
from evomerge.pools.dispatch import Dispatcher
from evomerge.pools.simulated import Simulation
from evomerge.recipe import Merge, ModelSource, Recipe
from evomerge.records import Job, Outcome

PROMISE_MS = 5.0  # of the driver, per candidate
PROMISE_BUSY = 0.95
ITEMS = tuple(range(24))
SETTLE_S = 400.0  # for Ray's actors to come


# --- the dispatcher alone -------------------------------------------------------------------------


def dispatch_alone(crew: Simulation, workers: int, each: int) -> dict[str, float]:
    """A generation through the dispatcher, without searcher and ledger."""
    models = {"base": ModelSource(path="base")}
    recipe = Recipe(base="base", models=models, default=Merge(operator="linear"))
    pool = Dispatcher(crew, clock=crew.clock)
    jobs = [Job(n, n, recipe, {"first": ITEMS}) for n in range(each * workers)]
    start, began = time.process_time(), crew.now
    for job in jobs:
        pool.submit(job)
    done = 0
    while done < len(jobs):
        done += len(pool.collect(0.5))
    spent = time.process_time() - start
    return {
        "busy": crew.done_s / (workers * (crew.now - began)),
        "ms": 1000 * spent / len(jobs),
    }


# --- the whole driver -----------------------------------------------------------------------------


class Times(Count):
    """Watches a search for when it begins and ends, by the crew's clock and by the processor's."""

    def __init__(self, clock: Callable[[], float], done_s: Callable[[], float]) -> None:
        super().__init__()
        self._clock, self._done_s = clock, done_s
        self.marks: list[tuple[float, float, float]] = []

    def phase(self, name: str) -> None:
        """The search begins, or what comes after it."""
        if name in ("search", "finalists"):
            self.marks.append((self._clock(), self._done_s(), time.process_time()))

    def figures(self, workers: int, candidates: int) -> dict[str, float]:
        """The share of the workers' time in jobs, and the driver's CPU time per candidate."""
        (start, done, cpu), (end, all_done, all_cpu) = self.marks
        return {
            "busy": (all_done - done) / (workers * (end - start)),
            "ms": 1000 * (all_cpu - cpu) / candidates,
        }


def whole_driver(
    pool: Any, times: Times, workers: int, candidates: int, window: dict[str, Any]
) -> dict[str, float]:
    """A random search of toy models, whose answers are made up elsewhere."""
    toy = Toy("random", "full", keys={"searcher": {"kind": "random"}, **window})
    make, pictures = runs.make_pool, runs.write_pictures
    runs.make_pool = lambda *_: pool
    runs.write_pictures = lambda *_: None
    try:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            out = Path(folder) / "run"
            toy.run(out, budget=candidates, watchers=(times,))
            told = len(Ledger(out / LEDGER, read_only=True).evaluations())
    finally:
        runs.make_pool, runs.write_pictures = make, pictures
    assert told == candidates
    return times.figures(workers, candidates)


def windows(workers: int, each: int) -> dict[str, dict[str, Any]]:
    """What is asked for together, and what may be in flight."""
    whole = each * workers
    return {
        f"generations of {whole:,}": {"in_flight": whole, "cohort": whole},
        f"the same in parts of {max(1, workers // 4):,}": {
            "in_flight": whole,
            "cohort": max(1, workers // 4),
        },
        f"a window of {2 * workers:,}": {"in_flight": 2 * workers, "cohort": max(1, workers // 16)},
    }


def simulated(options: argparse.Namespace) -> None:
    """Print both for every number of workers."""
    print(f"one commit on this disk: {commit_ms():.2f} ms")
    for workers in options.workers:
        seconds = seconds_of(options.seconds)

        def crew(count: int = workers, seconds: Any = seconds) -> Simulation:
            nodes = {f"n{node}": min(8, count - node) for node in range(0, count, 8)}
            return Simulation(nodes, seconds, answer=answer, real=True)

        show(workers, "dispatcher alone", dispatch_alone(crew(), workers, options.each))
        for name, window in windows(workers, options.each).items():
            made = crew()
            times = Times(made.clock, lambda made=made: made.done_s)
            pool = Dispatcher(made, clock=made.clock)
            figures = whole_driver(pool, times, workers, options.each * workers, window)
            show(workers, name, figures)


def show(workers: int, what: str, figures: dict[str, float]) -> None:
    """One line, with what was promised."""
    fine = figures["busy"] >= PROMISE_BUSY and figures["ms"] <= PROMISE_MS
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(
        f"{workers:5d} workers  {what:24s} busy {figures['busy']:.3f}  driver "
        f"{figures['ms']:.2f} ms CPU a candidate  {'' if fine else 'NOT REACHED'}  "
        f"(peak memory {memory:.0f} MB)",
        flush=True,
    )


def commit_ms() -> float:
    """What a durable commit of 2 KB costs here, the median of 200."""
    import sqlite3

    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        db = sqlite3.connect(Path(folder) / "db", isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE t (data BLOB)")
        times = []
        for _ in range(200):
            start = time.perf_counter()
            db.execute("BEGIN IMMEDIATE")
            db.execute("INSERT INTO t VALUES (?)", (bytes(2000),))
            db.execute("COMMIT")
            times.append(time.perf_counter() - start)
        db.close()
    return 1000 * statistics.median(times)


# --- real actors ----------------------------------------------------------------------------------


def ray_actors(options: argparse.Namespace) -> None:
    """The whole driver over so many actors."""
    import ray

    from evomerge.pools.ray_cluster import Cluster
    from evomerge.pools.ray_crew import RayCrew, Seats

    # A cluster without what evomerge's own has its processes import: these workers need none of it.
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    for workers in options.workers:
        start = time.perf_counter()
        spec: Any = Sleep(options.seconds)
        crew = RayCrew(
            Cluster("local", 1), spec, lambda _n, w=workers: Seats(w, 0), actor=SleepingWorker
        )
        pool = Dispatcher(crew)
        while len(pool._seats) < workers and time.perf_counter() - start < SETTLE_S:
            pool.collect(0.5)
        print(f"{len(pool._seats)} actors after {time.perf_counter() - start:.1f} s", flush=True)
        busy = Busy(pool)
        for name, window in windows(workers, options.each).items():
            times = Times(time.perf_counter, lambda busy=busy: busy.done_s)
            figures = whole_driver(busy, times, workers, options.each * workers, window)
            show(workers, f"Ray, {name}", figures)
        pool.close()


class Busy:
    """A pool that counts what its workers have done, and is not closed by a run."""

    def __init__(self, pool: Dispatcher) -> None:
        self._pool = pool
        self.done_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def collect(self, timeout_s: float) -> list[Outcome]:
        """As the pool does."""
        found = self._pool.collect(timeout_s)
        self.done_s += sum(outcome.measure_s for outcome in found)
        return found

    def close(self) -> None:
        """Stay open for the next run."""


# --- the tiny family ------------------------------------------------------------------------------


def tiny(options: argparse.Namespace) -> None:
    """Two workers against one, three times in turns; the search's wall-clock time."""
    base = read_experiment(catalogue_folder("experiments") / "quickstart.yaml")
    took: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(3):
        for workers in took:
            changes: dict[str, Any] = {
                "pool": PoolConfig(workers=workers),
                "budget": base.budget.model_copy(update={"candidates": options.candidates}),
            }
            times = Times(time.perf_counter, lambda: 0.0)
            with tempfile.TemporaryDirectory() as folder:
                runs.run_experiment(
                    base.model_copy(update=changes), Path(folder) / "run", watchers=(times,)
                )
            (start, *_), (end, *_) = times.marks
            took[workers].append(end - start)
            print(f"turn {turn}: {workers} worker(s), {end - start:.1f} s", flush=True)
    ratios = [one / two for one, two in zip(took[1], took[2], strict=True)]
    print("2 workers over 1: " + ", ".join(f"{ratio:.2f}x" for ratio in ratios))


def start(options: argparse.Namespace) -> None:
    """Seconds from the making of a pool to its first answer, and what of it is the model's."""
    parts = wire(read_experiment(catalogue_folder("experiments") / "quickstart.yaml"))
    recipe = replace_operator(parts.template)
    job = Job(0, 0, recipe, {task: items[:8] for task, items in parts.split.search.items()})
    for kind in options.kinds:
        config = PoolConfig(kind=kind, workers=2, address="local")
        if kind == "local":
            from evomerge.pools.local import warm_up

            warm_up()
            time.sleep(12)  # the driver opens models meanwhile
        began = time.perf_counter()
        pool = make_pool(config, parts.worker, None)
        made = time.perf_counter()
        pool.submit(job)
        found: list[Outcome] = []
        ready = None  # when the first worker had opened the models
        while not found:
            found = pool.collect(0.01)
            if ready is None and getattr(pool, "_seats", None):
                ready = time.perf_counter()
        first = time.perf_counter()
        pool.close()
        assert found[0].failure is None
        outcome, seen = found[0], ready or first
        print(
            f"{kind}: made in {made - began:.2f} s, a worker is ready after {seen - began:.2f} s, "
            f"first answer {first - seen:.2f} s later, "
            f"{outcome.merge_s + outcome.measure_s:.2f} s of it merging and measuring"
        )


def replace_operator(template: Recipe) -> Recipe:
    """A recipe that merges all models alike."""
    sources = tuple(name for name in template.models if name != "base")
    merge = Merge(operator="linear", sources=sources, parameters={"weight": 1 / len(sources)})
    return template.model_copy(update={"default": merge})


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("simulated")
    one.add_argument("--workers", type=int, nargs="+", default=[64, 256, 1000])
    one.add_argument("--seconds", type=float, default=1.0)
    one.add_argument("--each", type=int, default=20, help="candidates a worker in a generation")
    two = parts.add_parser("ray")
    two.add_argument("--workers", type=int, nargs="+", default=[64])
    two.add_argument("--seconds", type=float, default=1.0)
    two.add_argument("--each", type=int, default=20, help="candidates a worker in a generation")
    three = parts.add_parser("tiny")
    three.add_argument("--candidates", type=int, default=96)
    four = parts.add_parser("start")
    four.add_argument("--kinds", nargs="+", default=["local", "ray"])
    options = parser.parse_args()
    {"simulated": simulated, "ray": ray_actors, "tiny": tiny, "start": start}[options.part](options)


if __name__ == "__main__":
    main()
