"""The other side: a resident model that takes the shape of each recipe and answers items."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import (
    CandidateError,
    ConfigurationError,
    DiskFull,
    ModelError,
    Problem,
    nearest,
)
from evomerge.files import NO_SPACE, disk_full
from evomerge.pools.ahead import Turns
from evomerge.pools.placement import Demand
from evomerge.protocols import PreparedTask
from evomerge.recipe import DType, Match, Merge, ModelSource, Recipe, TokenizerSpec
from evomerge.records import Failure, Job, Outcome, Responses

if TYPE_CHECKING:
    from torch import Tensor, nn

    from evomerge.checkpoints.matching import Matching
    from evomerge.checkpoints.open import Checkpoint
    from evomerge.merging.calibration import Calibration
    from evomerge.merging.resident import Resident
    from evomerge.protocols import Task

logger = logging.getLogger(__name__)
CACHE_BYTES = 2_000_000_000  # of what operators prepare
NO_MEMORY = ("not enough memory", "can't allocate memory", "cannot allocate memory")  # torch's CPU


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker needs to know, once: small enough to send anywhere.

    models: name -> folder or file (or, for a worker in the driver's process, a state dict).
    tasks: name -> its entry in the fitness file.
    sha256: name -> what a model's tensors must be; models that are not named are not compared.
    dtype: of the model that is measured; None keeps the base's own.
    tokenizer: whose tokens it has; None where all models have the same.
    matches: name -> the model whose hidden units' order it is brought into.
    matchings: name -> that order, as it was found once for all workers.
    build, python_tasks: a Python user's module and fitness; they need a worker in the driver's
        process.
    device: of the model: as torch calls it, or "auto" for the GPUs that the worker sees: one of
        them, or all where the model is too large for one.
    shelf_bytes: of copies of the models that are kept on the GPU; None for half of what is free
        when the model is there.
    ahead: keep a second model, into which the next recipe is written while the first is measured.
    demand: what a worker needs of a machine, for whoever decides how many there are.
    calibration: the texts of operators that look at data.
    """

    models: Mapping[str, str | Mapping[str, Tensor]]
    base: str
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    threads: int = 1
    cache_bytes: int = CACHE_BYTES
    sha256: Mapping[str, str] = field(default_factory=dict)
    dtype: DType | None = None
    allow_pickle: bool = False
    tokenizer: str | TokenizerSpec | None = None
    matches: Mapping[str, str | Match] = field(default_factory=dict)
    matchings: Mapping[str, Matching] = field(default_factory=dict)
    build: Callable[[], nn.Module] | None = None
    python_tasks: Mapping[str, Task] = field(default_factory=dict)
    device: str = "cpu"
    shelf_bytes: int | None = None
    ahead: bool = False
    demand: Demand | None = None
    calibration: Calibration | None = None

    @property
    def lives_in_memory(self) -> bool:
        """Whether parts of it exist in the driver's memory alone."""
        in_memory = any(not isinstance(source, str) for source in self.models.values())
        return in_memory or self.build is not None or bool(self.python_tasks)


def _bare(
    base: Checkpoint, tasks: Mapping[str, Mapping[str, Any]]
) -> Callable[[], nn.Module] | None:
    """What makes a module that is its tensors alone, where only the user's code looks at it."""
    from evomerge.fitness.python_file import PREFIX
    from evomerge.merging.bare import BareModule

    kinds = [str(task.get("kind", "")) for task in tasks.values()]
    if base.config or not kinds or not all(kind.startswith(PREFIX) for kind in kinds):
        return None
    return partial(BareModule, {name: base.tensor(name) for name in base.names})


class Worker:
    """Measures jobs, one after another.

    With `spec.ahead`, a job that is told to `prepare` is merged while another is measured, as long
    as no task measures time. The outcomes are the same.

    Raises:
        ModelError: a model cannot be opened, or is not the one of the run.
    """

    def __init__(self, spec: WorkerSpec, name: str) -> None:
        import torch
        from transformers.utils import logging as transformers_logging

        from evomerge.checkpoints.family import open_family
        from evomerge.fitness import make_task
        from evomerge.merging.resident import Resident

        torch.set_num_threads(spec.threads)
        transformers_logging.disable_progress_bar()  # the run has its own
        self.name = name
        checkpoints = open_family(
            spec.models,
            spec.base,
            allow_pickle=spec.allow_pickle,
            tokenizer=spec.tokenizer,
            matches=spec.matches,
            matchings=spec.matchings,
        ).checkpoints
        _compare(checkpoints, spec.sha256)
        model = Resident.open(
            checkpoints,
            spec.base,
            build=spec.build or _bare(checkpoints[spec.base], spec.tasks),
            device=spec.device,
            dtype=None if spec.dtype is None else getattr(torch, spec.dtype),
            cache_bytes=spec.cache_bytes,
            shelf_bytes=spec.shelf_bytes,
            calibration=spec.calibration,
        )
        self._tasks: dict[str, Task] = {
            task: make_task(task, config) for task, config in spec.tasks.items()
        } | dict(spec.python_tasks)
        self._spec = spec
        self._gpu_was_full = False  # when memory ran out last
        timed = any(not getattr(task, "deterministic", True) for task in self._tasks.values())
        idle = model.twin() if spec.ahead and not timed else None
        self._models = Turns(model, idle, self._write, spec.threads)
        opened = model.version
        for made in self._tasks.values():
            if isinstance(made, PreparedTask):
                if model.version != opened:  # another task left its own there
                    self._write_alone(spec.base)
                made.prepare(model, self._write_alone)

    @property
    def model(self) -> Resident:
        """The model that is measured, or was measured last."""
        return self._models.measured

    @property
    def prepares(self) -> bool:
        """Whether `prepare` does anything."""
        return self._models.has_two

    def prepare(self, job: Job) -> None:
        """Merge a job that will be run, beside the one that is measured now; returns at once.

        May be called from any thread. Jobs are prepared in the order of these calls, one at a time:
        the next when the one before is run or forgotten. What goes wrong is told by `run`.
        """
        self._models.prepare(job)

    def forget(self, job_id: int) -> None:
        """A job that was to be prepared will not be run here; may be called from any thread."""
        self._models.forget(job_id)

    def run(self, job: Job) -> Outcome:
        """Merge and measure; what goes wrong with the candidate comes back as its failure.

        Raises:
            ModelError: a model can no longer be read, which says nothing about the candidate.
            DiskFull: nor does this.
        """
        outcome = self._run(job)
        if _wants_memory(outcome) and self._models.give_up():
            outcome = self._run(job)  # there may be enough for one model alone
        if _wants_memory(outcome) and self._gpu_was_full:
            outcome = self._without_copies(job, outcome)
        return outcome

    def _without_copies(self, job: Job, outcome: Outcome) -> Outcome:
        """The same with nothing of the other models on the GPU; half of it comes back, or all."""
        import torch

        budgets = self.model.copies
        if not (kept := self.model.give_up_copies()):
            return outcome
        torch.cuda.empty_cache()
        again = self._run(job)
        helped = not _wants_memory(again)
        half = {gpu: size // 2 for gpu, size in kept.items()}
        self.model.keep_copies(half if helped else budgets)
        what = "fewer copies of the models are kept there" if helped else "without copies, too"
        logger.warning("candidate %d: the GPU's memory was full, %s", job.candidate, what)
        return again

    def _run(self, job: Job) -> Outcome:
        written = self._models.write(job)
        failure, forward_s = written.failure, 0.0
        responses: list[Responses] = []
        start = time.perf_counter()
        for name, items in job.items.items() if failure is None else ():
            before = self._forward_seconds(name)
            answer = self._respond(name, written.model, items)
            forward_s += self._forward_seconds(name) - before
            if isinstance(answer, Failure):
                failure, responses = answer, []
                break
            responses.append(answer)
        return Outcome(
            job=job,
            responses=tuple(responses),
            failure=failure,
            worker=self.name,
            merge_s=written.merge_s,
            measure_s=time.perf_counter() - start,
            forward_s=forward_s,
        )

    def _write_alone(self, model: str) -> None:
        """Put one of the models, as it is, into the resident model.

        Raises:
            ConfigurationError: there is none of that name.
        """
        spec = self._spec
        if model not in spec.models:
            what = f"no model {model!r}"
            raise ConfigurationError(Problem("tasks", what, nearest(model, spec.models)))
        alone = Merge(operator="linear", sources=(model,), parameters={"weight": 1.0})
        sources = {name: ModelSource(path=name) for name in spec.models}
        self.model.write(
            Recipe(
                base=spec.base,
                models=sources,
                default=alone,
                dtype=spec.dtype,
                tokenizer=spec.tokenizer,
            )
        )

    def _write(self, model: Resident, recipe: Recipe) -> Failure | None:
        try:
            model.write(recipe)
        except CandidateError as error:
            return Failure("merge", str(error))
        except (ModelError, DiskFull):
            raise
        except OSError as error:
            _refuse_full_disk(error)
            where = str(error.filename or "a model")
            raise ModelError(
                Problem(where, f"cannot be read: {error.strerror or error}")
            ) from error
        except Exception as error:
            if _out_of_memory(error):
                self._gpu_was_full = _of_gpu(error)
                return Failure("memory", str(error) or "out of memory while merging")
            logger.exception("a merge failed unexpectedly")
            return Failure("merge", f"{type(error).__name__}: {error}")
        return None

    def _respond(self, name: str, model: Resident, items: tuple[int, ...]) -> Responses | Failure:
        try:
            return self._tasks[name].respond(model, items)
        except (ModelError, DiskFull):
            raise
        except Exception as error:
            _refuse_full_disk(error)
            if _out_of_memory(error):
                self._gpu_was_full = _of_gpu(error)
                return Failure("memory", f"{name}: {str(error) or 'out of memory'}")
            if isinstance(error, CandidateError):
                return Failure("task", f"{name}: {error}")
            if isinstance(error, ConfigurationError):  # which names the task, mostly
                text = str(error)
                return Failure("task", text if f"task {name}" in text else f"{name}: {text}")
            logger.exception("task %s failed unexpectedly", name)
            return Failure("task", f"{name}: {type(error).__name__}: {error}")

    def _forward_seconds(self, name: str) -> float:
        """Seconds that a task has spent in forward passes so far, where it tells."""
        return float(getattr(self._tasks[name], "forward_s", 0.0))


def _compare(checkpoints: Mapping[str, Checkpoint], expected: Mapping[str, str]) -> None:
    """Refuse models that are not those of the run; a worker may start long after the driver.

    Raises:
        ModelError: naming every model that differs.
    """
    problems = [
        Problem(f"model {name}", f"{checkpoints[name].where} has changed since the run began")
        for name, sha256 in expected.items()
        if checkpoints[name].sha256() != sha256
    ]
    if problems:
        raise ModelError(problems)


def _refuse_full_disk(error: BaseException | None) -> None:
    """A full disk is the machine's fault and no candidate's, whatever it was raised from.

    Raises:
        DiskFull: naming the path, where that is known.
    """
    while error is not None:
        if isinstance(error, DiskFull):
            raise error
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise disk_full(Path(error.filename or tempfile.gettempdir())) from error
        error = error.__cause__


def _wants_memory(outcome: Outcome) -> bool:
    return outcome.failure is not None and outcome.failure.kind == "memory"


def _of_gpu(error: BaseException | None) -> bool:
    """Whether it is a GPU's memory that was full."""
    import torch

    return any(isinstance(one, torch.OutOfMemoryError) for one in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether this, or what it was raised from, is Python's or torch's want of memory."""
    import torch

    return any(
        isinstance(one, (MemoryError, torch.OutOfMemoryError))
        or (isinstance(one, RuntimeError) and any(s in str(one).lower() for s in NO_MEMORY))
        for one in _causes(error)
    )
