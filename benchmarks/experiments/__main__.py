"""Do the found merges win? Every experiment, beside random search and all that needs no search.

    python benchmarks/experiments list
    python benchmarks/experiments run [NAME ...] [--scale tiny] [--out runs/experiments] [--jobs 2]
    python benchmarks/experiments show [--out runs/experiments] [--write docs/experiments.md]

`run` prints how long it will take and what it may take at most, and goes on where it was stopped.
A study of the tiny family runs on five families and seeds, each in one process, `--jobs` of them at
once; one of SmolLM2 runs once, with a worker on each processor. What a study found, its random
search at the same number of item evaluations, the base, the experts, their uniform merge, task
arithmetic on a grid, TIES and DARE as they come are measured on the same held-out items.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from answers import Answers
from judging import judged, spent_items
from studies import (
    BY_NAME,
    CAP_MINUTES,
    SMOLLM2,
    STUDIES,
    TINY,
    Study,
    config_of,
    run_folder,
    twin_config,
)

from evomerge.documents import read_yaml
from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.room import expected_items
from evomerge.experiment.run import run_experiment
from evomerge.experiment.wire import Parts, wire
from evomerge.files import catalogue_folder, write_text
from evomerge.fitness.config import read_fitness
from evomerge.ledger import LEDGER, Ledger
from evomerge.pools.worker import Worker
from evomerge.records import Job
from evomerge.results.references import reference_recipes

OUTCOME = "outcome.json"
TRIAL_ITEMS = {TINY: 256, SMOLLM2: 16}  # of each task, to learn how fast the machine is
LOOK_S, STOP_S = 0.2, 60.0
Task = tuple[Study, int]  # a study and its seed


def say(text: str) -> None:
    """A line for whoever waits."""
    print(f"  {text}", flush=True)


# --- one study on one seed ------------------------------------------------------------------------


def run_one(study: Study, seed: int, out: Path) -> None:
    """Run a study on one seed, its twin, and judge them; what is there already is kept."""
    folder = run_folder(out, study.name, seed)
    parts = wire(config_of(study, seed, out))
    finished(parts, folder, out)
    twin = twin_folder(study, seed, out)
    if study.twin_of:
        if not (run_folder(out, study.twin_of, seed) / OUTCOME).exists():
            run_one(BY_NAME[study.twin_of], seed, out)
    elif (config := twin_config(study, parts.config, spent_items(folder))) is not None:
        assert twin is not None
        finished(wire(config), twin, out)
    judges = wire(with_judge(study, parts)) if study.judge else parts
    with closing(Answers(out / "answers", judges)) as answers:
        told = judged(judges, answers, folder, twin, seed, say)
    told |= {"study": study.name, "seed": seed, "claim": study.claim, "scale": study.scale}
    write_text(folder / OUTCOME, json.dumps(told, indent=1) + "\n")


def finished(parts: Parts, folder: Path, out: Path) -> None:
    """Run an experiment to its end; its references are asked once for all studies."""
    if (folder / LEDGER).exists():
        with closing(Ledger(folder / LEDGER, read_only=True)) as ledger:
            if ledger.final() is not None:
                return
    else:
        folder.mkdir(parents=True, exist_ok=True)
        say(f"{folder.name}: references")
        with closing(Answers(out / "answers", parts)) as answers:
            answers.give_references(parts, folder)
    say(f"{folder.name}: search")
    run_experiment(parts.config, folder)


def with_judge(study: Study, parts: Parts) -> ExperimentConfig:
    """The experiment with the fitness whose holdout judges."""
    fitness = read_fitness(read_yaml(catalogue_folder("fitness") / f"{study.judge}.yaml"))
    return parts.config.model_copy(update={"fitness": fitness})


def twin_folder(study: Study, seed: int, out: Path) -> Path | None:
    """Where the random search is that the study is compared with."""
    if study.twin_of:
        study = BY_NAME[study.twin_of]
    return None if study.twin is None else out / f"{study.name}-random-{seed}"


# --- all of them ----------------------------------------------------------------------------------


def run_all(tasks: Sequence[Task], out: Path, jobs: int) -> int:
    """Run what is not finished, each in a process of its own that has a limit of time."""
    waiting = [t for t in tasks if not (run_folder(out, t[0].name, t[1]) / OUTCOME).exists()]
    print(f"{len(tasks)} runs, {len(tasks) - len(waiting)} of them finished")
    if not waiting:
        return 0
    limit = sum(cap_seconds(study) for study, _ in waiting if study.scale == SMOLLM2)
    limit += sum(cap_seconds(study) for study, _ in waiting if study.scale == TINY) / jobs
    print(
        f"about {expected_seconds(waiting, out, jobs) / 60:.0f} minutes on this machine, ", end=""
    )
    print(
        f"and no more than {limit / 60:.0f}: what takes longer is stopped, and can be gone on with"
    )
    # The studies of a seed one after the other, for they share answers; the seeds side by side.
    lanes: dict[int, deque[Task]] = {}
    for study, seed in waiting:
        if study.scale == TINY:
            lanes.setdefault(seed, deque()).append((study, seed))
    failed = worked_off([lanes[seed] for seed in sorted(lanes)], out, jobs)
    real = deque(task for task in waiting if task[0].scale == SMOLLM2)
    return failed + worked_off([real], out, 1)


def worked_off(lanes: Sequence[deque[Task]], out: Path, jobs: int) -> int:
    """Run the lanes, `jobs` of them at once; how many runs failed. Ctrl-C ends all of them."""
    waiting, failed = deque(lanes), 0
    running: list[tuple[deque[Task], Spawned]] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                if lane := waiting.popleft():
                    running.append((lane, Spawned(lane.popleft(), out)))
            time.sleep(LOOK_S)
            for place, (lane, process) in enumerate(running):
                if (code := process.ended()) is None:
                    continue
                failed += int(code != 0)
                waiting.appendleft(lane)
                del running[place]
                break
    finally:
        for _, process in running:
            process.stop()
    return failed


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
        if code is None and seconds > cap_seconds(self._study):
            self.stop()
            code = self._process.returncode or 130
        if code is not None:
            how = "done" if code == 0 else f"ended with {code}, see {self._log}"
            print(f"{self._name}: {how}, {seconds:.0f} s", flush=True)
        return code

    def stop(self) -> None:
        """As Ctrl-C does; what was measured is kept."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def cap_seconds(study: Study) -> float:
    """What a run may take, its twin among it."""
    return (
        60 * CAP_MINUTES[study.scale] * (2 if study.twin is not None and not study.twin_of else 1)
    )


def expected_seconds(tasks: Sequence[Task], out: Path, jobs: int) -> float:
    """By the items that each will ask, and the speed of the base here, measured once a fitness."""
    speeds: dict[str, float] = {}
    total = 0.0
    for study in dict.fromkeys(study for study, _ in tasks):
        count = sum(1 for other, _ in tasks if other is study)
        try:
            parts = wire(config_of(study, 0, out))
        except Exception as error:  # it goes on from a run that is not there yet
            say(f"{study.name}: not planned: {error}")
            continue
        key = json.dumps(sorted(parts.tasks)) + parts.config.base
        if key not in speeds:
            speeds[key] = seconds_per_item(parts, study.scale)
        items = expected_items(parts)
        twice = 2 if study.twin is not None and not study.twin_of else 1
        asked = (items.search or 0) * twice + items.finalists * twice + items.holdout / 4
        workers = jobs if study.scale == TINY else max(1, parts.config.pool.num_workers)
        total += count * asked * speeds[key] / workers
    return total


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


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="the studies")
    runs = verbs.add_parser("run", help="run what is not finished")
    one = verbs.add_parser("one", help="one study on one seed, in this process")
    shows = verbs.add_parser("show", help="the tables, as Markdown")
    runs.add_argument("names", nargs="*", metavar="NAME", help="studies; all by default")
    runs.add_argument("--scale", choices=[TINY, SMOLLM2], help="those of one scale alone")
    runs.add_argument("--jobs", type=int, default=2, help="tiny runs at once")
    one.add_argument("name", choices=BY_NAME)
    one.add_argument("--seed", type=int, default=0)
    shows.add_argument("--write", type=Path, help="a page whose marked part is written anew")
    for verb in (runs, one, shows):
        verb.add_argument("--out", type=Path, default=Path("runs/experiments"))
    options = parser.parse_args()
    if options.verb == "list":
        for study in STUDIES:
            print(f"{study.name:32} {study.scale:8} {study.claim}")
        return 0
    if options.verb == "one":
        run_one(BY_NAME[options.name], options.seed, options.out)
        return 0
    if options.verb == "show":
        from tables import show

        return show(options.out, options.write)
    unknown = [name for name in options.names if name not in BY_NAME]
    if unknown:
        parser.error(f"no study {unknown[0]!r}; `list` shows them")
    tasks = [
        (study, seed)
        for study in STUDIES
        if (not options.names or study.name in options.names)
        and options.scale in (None, study.scale)
        for seed in study.seeds
    ]
    return min(1, run_all(tasks, options.out, options.jobs))


if __name__ == "__main__":
    sys.exit(main())
