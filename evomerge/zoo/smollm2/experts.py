"""The experts, two side by side: each in a process of its own, on one thread, whole or not at all.

An expert's folder takes its name when it is complete, so whatever is killed, what is there counts,
and an expert that was under way starts again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import EvomergeError
from evomerge.files import fsync, write_text
from evomerge.protocols import Progress
from evomerge.zoo.smollm2.stages import Stage, generator_name

Report = Callable[[int, int], None]
AT_ONCE = 2
MEASURED = "measured.json"  # in an expert's folder: its row of the table


class TrainingFailed(EvomergeError):
    """An expert's process ended without its expert."""


@dataclass(frozen=True)
class Job:
    """All that a process needs to train one expert into `folder / stage.skill`."""

    stage: Stage
    seed: int
    folder: Path
    files: dict[str, Path]  # BIG-bench's name of a task -> its JSON file
    base: str  # what an adapter names as its base
    card: str
    start: Path | None = None  # the base's folder, where it is not beside the experts


def train_expert(job: Job, report: Report) -> None:
    """Train one expert, measure it and the base on its holdout, and write its folder."""
    from evomerge.zoo.folders import write_model
    from evomerge.zoo.lora import write_adapter
    from evomerge.zoo.smollm2.base import open_base, open_tokenizer
    from evomerge.zoo.smollm2.items import read_data, training_questions
    from evomerge.zoo.smollm2.table import holdout_accuracy
    from evomerge.zoo.smollm2.training import train

    stage = job.stage
    began = time.monotonic()
    report(0, stage.steps)
    data = read_data(job.files)
    start = job.start or job.folder / "base"
    tokenizer, model = open_tokenizer(start), open_base(start)
    before = holdout_accuracy(model, tokenizer, stage.skill, data)
    count = stage.steps * stage.batch_size
    questions = training_questions(stage.skill, data, count, generator_name(job.seed, stage.skill))
    train(model, tokenizer, questions, stage, job.seed, report)
    after = holdout_accuracy(model, tokenizer, stage.skill, data)
    part = job.folder / f".{stage.skill}.part"
    shutil.rmtree(part, ignore_errors=True)
    if stage.rank is None:
        write_model(part, model, tokenizer, job.card)
    else:
        write_adapter(part, model, rank=stage.rank, alpha=stage.alpha, base=job.base, card=job.card)
    row = {"base": before, "expert": after, "seconds": round(time.monotonic() - began)}
    write_text(part / MEASURED, json.dumps(row, indent=2) + "\n")
    part.rename(job.folder / stage.skill)
    fsync(job.folder)


def run_jobs(
    jobs: Sequence[Job],
    progress: Progress | None = None,
    *,
    run: Callable[[Job, Report], None] = train_expert,
    at_once: int | None = None,
) -> None:
    """Run the jobs whose expert is not there yet.

    Args:
        jobs: in this order.
        progress: called as (skill, steps done, steps in all).
        run: what a process does; importable.
        at_once: processes side by side; by default two, or one on one processor.

    Raises:
        TrainingFailed: with what every failed process said.
    """
    from evomerge.pools import PoolConfig

    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    waiting = [job for job in jobs if not (job.folder / job.stage.skill).exists()]
    running: dict[str, Any] = {}
    limit = at_once or min(AT_ONCE, PoolConfig().num_workers)  # no more than processors
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                job = waiting.pop(0)
                process = context.Process(target=_in_process, args=(run, job, messages))
                process.start()
                running[job.stage.skill] = process
            try:
                skill, done, total, error = messages.get(timeout=0.5)
            except queue.Empty:
                _look_for_dead(running)
                continue
            if error:
                raise TrainingFailed(f"zoo:smollm2/{skill}: {error}")
            if progress is not None:
                progress(skill, done, total)
            if done == total:
                running.pop(skill).join()
    finally:
        for process in running.values():
            process.terminate()
            process.join()


def _look_for_dead(running: dict[str, Any]) -> None:
    for skill, process in running.items():
        if process.exitcode not in (None, 0):
            what = f"its process ended with {process.exitcode}; was there enough memory (4 GB)?"
            raise TrainingFailed(f"zoo:smollm2/{skill}: {what}")


def _in_process(run: Callable[[Job, Report], None], job: Job, messages: Any) -> None:
    """What a process does: report every step, then that the expert is there, or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends this one
    parent, skill = os.getppid(), job.stage.skill

    def report(done: int, total: int) -> None:
        if os.getppid() != parent:
            os._exit(1)  # nobody holds the folder's lock any more
        messages.put((skill, min(done, total - 1), total, ""))  # all only when it is written

    try:
        run(job, report)
    except Exception as error:
        told = str(error) if isinstance(error, EvomergeError) else traceback.format_exc()
        messages.put((skill, 0, 0, told))
    else:
        messages.put((skill, job.stage.steps, job.stage.steps, ""))
