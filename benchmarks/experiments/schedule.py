"""All studies: how long they will take, and a process for each that has a limit of time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from answers import group_of
from judging import baselines
from one import is_done
from studies import BY_NAME, CAP_MINUTES, SMOLLM2, TINY, Study, config_of

from evomerge.experiment.room import expected_items
from evomerge.experiment.wire import Parts, wire
from evomerge.pools import PoolConfig
from evomerge.pools.worker import Worker
from evomerge.records import Job
from evomerge.results.references import reference_recipes

TRIAL_ITEMS = {TINY: 256, SMOLLM2: 16}  # of each task, to learn how fast the machine is
LOOK_S, STOP_S = 0.2, 60.0
Task = tuple[Study, int]  # a study and its seed
Lane = deque[Task]  # one after the other


def run_all(tasks: Sequence[Task], out: Path, jobs: int) -> int:
    """Run what is not finished, each in a process of its own; how many failed or were stopped."""
    waiting = [task for task in tasks if not is_done(*task, out)]
    print(f"{len(tasks)} runs, {len(tasks) - len(waiting)} of them finished")
    if not waiting:
        return 0
    tiny, real = lanes_of(waiting)
    caps = [[cap_seconds(study) + STOP_S for study, _ in lane] for lane in tiny]
    limit = makespan(caps, jobs) + sum(cap_seconds(study) + STOP_S for study, _ in real)
    print(f"no more than {limit / 60:.0f} minutes: what takes longer than its limit is stopped,")
    print("and is gone on with by the same command; looking at what they ask ...", flush=True)
    seconds = expected_seconds(waiting, out)
    expected = makespan([[seconds[task] for task in lane] for lane in tiny], jobs)
    expected += sum(seconds[task] for task in real)
    print(f"about {expected / 60:.0f} minutes on this machine, if it has nothing else to do")
    for study, seed in waiting:
        if seconds[study, seed] > cap_seconds(study):
            print(f"{study.name}, seed {seed}: longer than its limit here; it takes a second call")
    return worked_off(tiny, out, jobs) + worked_off([real], out, 1)


def lanes_of(tasks: Sequence[Task]) -> tuple[list[Lane], Lane]:
    """The tiny studies, a lane for each seed (its studies share answers); and those at scale."""
    tiny: dict[int, Lane] = {}
    for study, seed in tasks:
        if study.scale == TINY:
            tiny.setdefault(seed, deque()).append((study, seed))
    return [tiny[s] for s in sorted(tiny)], deque(t for t in tasks if t[0].scale == SMOLLM2)


def makespan(lanes: Sequence[Sequence[float]], jobs: int) -> float:
    """When the last lane ends, if each begins as soon as one of `jobs` is free."""
    free = [0.0] * jobs
    for lane in lanes:
        place = free.index(min(free))
        free[place] += sum(lane)
    return max(free)


def cap_seconds(study: Study) -> float:
    """What a process may take for a study: its search, its twin, and the holdout."""
    return 60 * CAP_MINUTES[study.scale]


# --- what it will take ----------------------------------------------------------------------------


def expected_seconds(tasks: Sequence[Task], out: Path) -> dict[Task, float]:
    """By the items that each will ask, and the base's speed here on the same tasks.

    What a group's references and known merges are asked is counted where it is asked first.
    """
    speeds: dict[tuple[str, ...], float] = {}
    seen: set[tuple[str, int]] = set()
    found: dict[Task, float] = {}
    each: dict[str, tuple[float, float, str]] = {}
    for study, seed in tasks:
        if study.name not in each:
            parts = planned(study, out)
            key = (parts.config.base.split("@")[0], *sorted(parts.tasks))
            if key not in speeds:
                speeds[key] = seconds_per_item(parts, study.scale)
            workers = 1 if study.scale == TINY else max(1, PoolConfig().num_workers)
            own, shared = items_of(study, parts)
            factor = speeds[key] / workers
            each[study.name] = own * factor, shared * factor, group_of(parts)
        seconds, once, group = each[study.name]
        found[study, seed] = seconds + (0.0 if (group, seed) in seen else once)
        seen.add((group, seed))
    return found


def planned(study: Study, out: Path) -> Parts:
    """The study's parts on its first seed; an expert stands in for a run that is not there yet."""
    config = config_of(study, study.seeds[0], out)
    if study.after and not is_done(BY_NAME[study.after], study.seeds[0], out):
        stand_in = next(p for p in config.experts.values() if not p.startswith("run:"))
        experts = {n: stand_in if p.startswith("run:") else p for n, p in config.experts.items()}
        config = config.model_copy(update={"experts": experts})
    return wire(config)


def items_of(study: Study, parts: Parts) -> tuple[float, float]:
    """Items of the study with its twin, and those that it shares with others of its group."""
    items = expected_items(parts)
    num_holdout = sum(map(len, parts.split.holdout.values()))
    searches = 1 if study.twin is None else 2
    own = searches * ((items.search or 0) + items.finalists + 2 * num_holdout)
    return own, items.references + len(baselines(parts)) * num_holdout


def seconds_per_item(parts: Parts, scale: str) -> float:
    """Processor seconds that the base takes for an item, in batches as a search has them."""
    worker = Worker(parts.worker, "driver")
    recipe = reference_recipes(parts.template)["base"]
    count = TRIAL_ITEMS[scale]
    trial = {task: ids[:count] for task, ids in parts.split.search.items()}
    job = Job(0, -1, recipe, trial)
    worker.run(job)  # compiles the tasks
    began = time.process_time()
    worker.run(job)
    return (time.process_time() - began) / job.num_items


# --- doing it -------------------------------------------------------------------------------------


def worked_off(lanes: Sequence[Lane], out: Path, jobs: int) -> int:
    """Run the lanes, `jobs` of them at once; how many runs failed. A signal ends all of them."""
    waiting, failed = deque(lanes), 0
    running: list[tuple[Lane, Spawned]] = []
    with heard_signals() as heard:
        try:
            while waiting or running:
                if heard:
                    raise KeyboardInterrupt
                while waiting and len(running) < jobs:
                    if lane := waiting.popleft():
                        running.append((lane, Spawned(lane.popleft(), out)))
                time.sleep(LOOK_S)
                for place, (lane, process) in enumerate(running):
                    if (code := process.ended()) is not None:
                        failed += int(code != 0)
                        waiting.appendleft(lane)
                        del running[place]
                        break
        finally:
            for _, process in running:
                process.ask_to_stop()
            for _, process in running:
                process.wait()
    return failed


@contextmanager
def heard_signals() -> Iterator[list[int]]:
    """The signals that came, as a list: none of them comes between a process and its noting."""
    heard: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda caught, _: heard.append(caught)) for number in numbers]
    try:
        yield heard
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class Spawned:
    """A study in a process of its own, which is asked to stop at its limit."""

    def __init__(self, task: Task, out: Path) -> None:
        self._study, seed = task
        self._name = f"{self._study.name}, seed {seed}"
        command = [sys.executable, str(Path(__file__).parent), "one", self._study.name]
        command += ["--seed", str(seed), "--out", str(out)]
        out.mkdir(parents=True, exist_ok=True)
        self._log = out / f"{self._study.name}-{seed}.log"
        self._began = time.monotonic()
        with self._log.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is this process's to pass on, once
            )

    def ended(self) -> int | None:
        """The exit code, once there is one; it is told in a line."""
        seconds = time.monotonic() - self._began
        code = self._process.poll()
        how = f"ended with {code}, see {self._log}"
        if code is None and seconds > cap_seconds(self._study):
            self.ask_to_stop()
            self.wait()
            code, how = 130, "stopped at its limit; the same command goes on with it"
        if code is not None:
            print(f"{self._name}: {'done' if code == 0 else how}, {seconds:.0f} s", flush=True)
        return code

    def ask_to_stop(self) -> None:
        """As Ctrl-C does; what was measured is kept."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def wait(self) -> None:
        """Until it has ended, which it is made to after a while."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
            return
        self._process.kill()
        self._process.wait()
