"""Workers on one machine: processes that are forked from one that has imported everything."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any

from evomerge.errors import EvomergeError, Problem
from evomerge.pools.crew import (
    STILLBORN,
    Answer,
    Event,
    Forgotten,
    Gone,
    Ready,
    Refused,
)
from evomerge.pools.dispatch import Dispatcher
from evomerge.pools.worker import Worker, WorkerSpec
from evomerge.records import Job, Outcome

NODE = "local"
logger = logging.getLogger(__name__)


def local_pool(
    spec: WorkerSpec,
    workers: int,
    log: Path | None,
    timeout_s: float | None = None,
    visible: Sequence[str] = (),
) -> Dispatcher:
    """A pool of so many worker processes; what they say goes to the log.

    visible: the GPUs that each of them sees, as CUDA_VISIBLE_DEVICES; without, what we see.
    """
    return Dispatcher(Processes(spec, workers, log, visible), timeout_s)


@dataclass
class _Member:
    """A worker process and its pipe."""

    process: BaseProcess
    pipe: Connection
    seat: int  # which of the places it has; another takes it over
    ready: bool = False
    owed: int = 0  # answers to jobs that it was given
    starved: int = 0  # processes that the system had ended for want of memory when it began


class Processes:
    """A crew of worker processes; see `Crew`.

    They are forked from a server that is a process of its own, so neither the driver's threads nor
    its open files reach them.
    """

    patience_s = 0.0  # nobody else will come

    def __init__(
        self, spec: WorkerSpec, workers: int, log: Path | None, visible: Sequence[str] = ()
    ) -> None:
        self.depth = 2 if spec.ahead else 1
        self._spec = spec
        self._log = log
        self._count = 0
        self._stillborn = 0  # workers in a row that died before they were ready
        self._context = _server_context()
        self._members: dict[str, _Member] = {}
        self._pending: list[Event] = []
        self._visible = visible
        for seat in range(workers):
            self._hire(seat)

    @property
    def num_workers(self) -> int:
        """Those that work or are on their way."""
        return len(self._members)

    def complaints(self) -> list[Problem]:
        """That workers die while they start, if they do."""
        if self._stillborn < STILLBORN:
            return []
        return [Problem("pool", f"workers die while they start; see {self._log}")]

    def send(self, worker: str, job: Job) -> None:
        """Give a job to a worker."""
        if (member := self._members.get(worker)) is not None:
            member.owed += 1
            self._say(worker, job)

    def recall(self, worker: str, job: int) -> None:
        """Ask a worker to forget a job whose turn has not come."""
        if worker in self._members:
            self._say(worker, job)

    def dismiss(self, worker: str) -> None:
        """End a worker at once, and start another in its place."""
        if (member := self._members.pop(worker, None)) is None:
            return  # it died of itself, and was replaced
        member.process.kill()
        member.process.join()
        member.pipe.close()
        self._hire(member.seat)

    def wait(self, timeout_s: float) -> list[Event]:
        """What was said since the last time; waits for the first of it."""
        events, self._pending = self._pending, []
        pipes = {member.pipe: worker for worker, member in self._members.items()}
        for pipe in wait(list(pipes), 0 if events else timeout_s):
            worker = pipes[pipe]  # type: ignore[index]
            if worker in self._members:  # not ended by what another said
                events += self._heard(worker)
        return events

    def close(self) -> None:
        """End all workers; one that is in the middle of a job is not waited for."""
        for member in self._members.values():
            member.pipe.close()  # an idle worker leaves by itself, and tidies up
            if member.owed or not member.ready:
                member.process.terminate()
        for member in self._members.values():
            member.process.join(2)
            if member.process.is_alive():
                member.process.kill()
                member.process.join()
        self._members.clear()

    # --- supervision ------------------------------------------------------------------------------

    def _hire(self, seat: int) -> None:
        here, there = self._context.Pipe()
        name = f"{NODE}-{self._count}"
        self._count += 1
        visible = self._visible[seat] if self._visible else None
        process = self._context.Process(
            target=serve, args=(self._spec, name, there, self._log, visible), daemon=True
        )
        with _shielded():
            process.start()
        there.close()  # so that the pipe ends when the worker does
        self._members[name] = _Member(process, here, seat, starved=ended_for_memory())

    def _say(self, worker: str, message: Job | int) -> None:
        with suppress(OSError):  # it just died, which `wait` will see
            self._members[worker].pipe.send(message)

    def _heard(self, worker: str) -> list[Event]:
        """All that a worker has said."""
        member, events = self._members[worker], list[Event]()
        try:
            while member.pipe.poll():
                message = member.pipe.recv()
                if isinstance(message, EvomergeError):
                    return [*events, self._refuse(message)]
                if isinstance(message, Outcome):
                    member.owed -= 1
                    events.append(Answer(worker, message))
                elif isinstance(message, int):
                    member.owed -= 1
                    events.append(Forgotten(worker, message))
                else:
                    member.ready = True
                    self._stillborn = 0
                    events.append(Ready(worker, NODE))
        except (EOFError, OSError):
            events.append(self._replace(worker))
        return events

    def _refuse(self, error: EvomergeError) -> Refused:
        """A worker cannot start or go on, and here no other could."""
        workers = tuple(self._members)
        for member in self._members.values():
            member.process.kill()
            member.process.join()
            member.pipe.close()
        self._members.clear()
        return Refused(NODE, workers, error)

    def _replace(self, worker: str) -> Gone:
        """A worker is gone: start another, unless they die while they start."""
        member = self._members.pop(worker)
        member.process.join()
        member.pipe.close()
        code = member.process.exitcode
        if not member.ready:
            self._stillborn += 1
        if self._stillborn < STILLBORN:
            self._hire(member.seat)
        killed = code == -signal.SIGKILL
        if killed and ended_for_memory() > member.starved:
            return Gone(worker, "the system ended it, for want of memory", "memory")
        return Gone(worker, f"exit code {code}")


def ended_for_memory() -> int:
    """How many processes the system has ended for want of memory; 0 where it does not say."""
    for path, key in (("/sys/fs/cgroup/memory.events", "oom_kill"), ("/proc/vmstat", "oom_kill")):
        with suppress(OSError, ValueError):
            for line in Path(path).read_text(encoding="ascii").splitlines():
                name, _, count = line.partition(" ")
                if name == key:
                    return int(count)
    return 0


def warm_up() -> None:
    """Start the process that workers are forked from; its imports run beside the driver's own."""
    _server_context()
    with _shielded():
        multiprocessing.forkserver.ensure_running()


def _server_context() -> Any:
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["evomerge.pools.preload"])
    return context


@contextmanager
def _shielded() -> Iterator[None]:
    """Start processes without Ctrl-C, which is for the driver, and without the user's script.

    Python would run the driver's main module again in every worker, and start a search inside the
    search where a script has no `if __name__ == "__main__"`. Nothing of it is needed there.
    """
    main, signals = sys.modules["__main__"], signal.pthread_sigmask(signal.SIG_BLOCK, ())
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)


# --- the other side of the pipe -------------------------------------------------------------------


def serve(
    spec: WorkerSpec, name: str, pipe: Connection, log: Path | None, visible: str | None = None
) -> None:
    """A worker process: say that it is ready, then answer jobs until the pipe ends."""
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible  # read when CUDA is first used
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends us
    threading.Thread(target=_die_with_driver, daemon=True).start()
    if log is not None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, sys.stdout.fileno())
        os.dup2(descriptor, sys.stderr.fileno())
        os.close(descriptor)
    logging.basicConfig(format=f"%(asctime)s {name} %(levelname)s %(message)s")
    try:
        worker = Worker(spec, name)
        pipe.send("ready")
        inbox = _Inbox(pipe, worker)
        threading.Thread(target=inbox.listen, daemon=True).start()
        inbox.work()
    except EvomergeError as error:
        pipe.send(error)
    except (EOFError, OSError):
        return


class _Inbox:
    """What a worker is still to do; it goes on listening while it is at something."""

    def __init__(self, pipe: Connection, worker: Worker) -> None:
        self._pipe = pipe
        self._worker = worker
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._forgotten: set[int] = set()
        self._at_work = False

    def listen(self) -> None:
        """Take jobs, and prepare those that have to wait; a number is that of a recalled one."""
        try:
            while True:
                message = self._pipe.recv()
                if isinstance(message, int):
                    self._forgotten.add(message)
                    self._worker.forget(message)
                    continue
                waits = self._at_work
                self._jobs.put(message)
                if waits:
                    self._worker.prepare(message)
        except (EOFError, OSError):
            self._jobs.put(None)

    def work(self) -> None:
        """Answer jobs until the pipe ends."""
        while (job := self._jobs.get()) is not None:
            self._at_work = True
            is_forgotten = job.id in self._forgotten
            self._pipe.send(job.id if is_forgotten else self._worker.run(job))
            self._forgotten.discard(job.id)
            self._at_work = False


def _die_with_driver() -> None:
    """End the process when the driver is gone, even in the middle of a job."""
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        os._exit(1)
