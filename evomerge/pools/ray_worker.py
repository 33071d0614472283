"""What runs on the nodes of a Ray cluster: an actor around a worker, and a look at a node."""

from __future__ import annotations

import logging
import os
import platform
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from evomerge.errors import EvomergeError, ModelError, Problem
from evomerge.pools.ray_cluster import load_ray
from evomerge.records import Job, Outcome

if TYPE_CHECKING:
    from evomerge.pools.worker import Worker, WorkerSpec

Thread = Literal["measure", "ahead", "watch"]
THREADS: tuple[Thread, ...] = ("measure", "ahead", "watch")
Method = TypeVar("Method", bound=Callable[..., Any])


def in_thread(name: Thread) -> Callable[[Method], Method]:
    """Which thread of an actor runs a method; a driver that comes by ray:// cannot say it."""
    return cast("Callable[[Method], Method]", load_ray().method(concurrency_group=name))


@dataclass(frozen=True)
class Hello:
    """A worker is ready: on what kind of processor; log_file: pattern of its name on the node."""

    processor: str
    pid: int
    log_file: str


@dataclass(frozen=True)
class Reply:
    """What an actor answers, and what it has logged meanwhile."""

    said: Hello | Outcome | EvomergeError | None  # None: the job was forgotten
    log: tuple[str, ...] = ()


class RayWorker:
    """A worker as an actor: one thread measures, one prepares, and one waits for the end."""

    def __init__(self, name: str, device: str) -> None:
        if device == "cpu":  # torch would take hold of the GPUs that others work on
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._name = name
        self._worker: Worker | None = None
        self._forgotten: set[int] = set()
        self._at_work = threading.Event()
        self._log = _Kept(name)
        logging.getLogger().addHandler(self._log)

    @in_thread("measure")
    def open(self, wanted: str, pickled: bytes) -> Reply:
        """Open the models of a pickled `WorkerSpec`; what is wrong with them comes back.

        wanted: the driver's version, which is compared before anything else of it is read.
        """
        try:
            self._worker = self._opened(wanted, pickled)
        except EvomergeError as error:
            return Reply(error, self._log.take())
        log_file = f"worker-{runtime_context().get_worker_id()}-*.err"
        return Reply(Hello(processor(), os.getpid(), log_file), self._log.take())

    def _opened(self, wanted: str, pickled: bytes) -> Worker:
        import ray.cloudpickle

        found = version("evomerge")
        if found != wanted:
            what = f"has evomerge {found}, and the driver {wanted}"
            raise ModelError(Problem("evomerge", what, "install the same on all nodes"))
        from evomerge.pools.worker import Worker

        try:
            spec: WorkerSpec = ray.cloudpickle.loads(pickled)
        except (ImportError, AttributeError) as error:
            what = f"what the driver sends cannot be read here: {error}"
            raise ModelError(Problem("python", what, "install the same on all nodes")) from error
        return Worker(spec, self._name)

    @in_thread("measure")
    def run(self, job: Job) -> Reply:
        """Merge and measure."""
        if job.id in self._forgotten:
            self._forgotten.discard(job.id)
            return Reply(None)
        assert self._worker is not None  # noqa: S101 - it was opened before
        self._at_work.set()
        try:
            said: Outcome | EvomergeError = self._worker.run(job)
        except EvomergeError as error:
            said = error
        finally:
            self._at_work.clear()
        return Reply(said, self._log.take())

    @in_thread("ahead")
    def prepare(self, job: Job) -> None:
        """Prepare a job that comes next."""
        if self._worker is not None and self._at_work.is_set():
            self._worker.prepare(job)

    @in_thread("ahead")
    def forget(self, job: int) -> None:
        """A job that waits is not to be done."""
        self._forgotten.add(job)
        if self._worker is not None:
            self._worker.forget(job)

    @in_thread("watch")
    def watch(self) -> None:
        """Never returns: that it ends is how the driver knows that the actor did."""
        threading.Event().wait()


def runtime_context() -> Any:
    """What Ray knows of this process."""
    import ray

    return ray.get_runtime_context()


def processor() -> str:
    """The machine and the instructions that torch computes with: what equal results rest on."""
    import torch

    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


class _Kept(logging.Handler):
    """Keeps lines until they are sent."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.WARNING)
        self._lines: list[str] = []
        self.setFormatter(logging.Formatter(f"%(asctime)s {name} %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self._lines.append(self.format(record))

    def take(self) -> tuple[str, ...]:
        """All that is kept, once."""
        lines, self._lines = self._lines, []
        return tuple(lines)
