"""The pool on one machine: in the driver's own process, or in supervised worker processes."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

from evomerge.errors import EvomergeError, NoWorkersLeft
from evomerge.pools.worker import Worker, WorkerSpec
from evomerge.records import Failure, Job, Outcome

ATTEMPTS = 3  # a job whose worker died this often is given up
logger = logging.getLogger(__name__)


class InlinePool:
    """Measures in the driver's process, one job per `collect`."""

    slots = 1

    def __init__(self, spec: WorkerSpec) -> None:
        self._worker = Worker(spec, "driver")
        self._queue: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._queue.append(job)

    def collect(self, timeout_s: float) -> list[Outcome]:  # noqa: ARG002 - nothing to wait for
        """Run the next job."""
        return [self._worker.run(self._queue.popleft())] if self._queue else []

    def cancel(self) -> list[Job]:
        """Take back what is queued."""
        jobs = list(self._queue)
        self._queue.clear()
        return jobs

    def close(self) -> None:
        """Forget what is queued."""
        self._queue.clear()


@dataclass
class _Seat:
    """A worker process, its pipe, and the job that it has."""

    process: BaseProcess
    pipe: Connection
    job: Job | None = None
    ready: bool = False


class LocalPool:
    """Worker processes, forked from a server that has imported everything.

    A worker that dies is replaced and its job runs again. The server is a process of its own, so
    neither the driver's threads nor its open files reach the workers.
    """

    def __init__(self, spec: WorkerSpec, workers: int, log: Path | None) -> None:
        self.slots = workers
        self._spec = spec
        self._log = log
        self._queue: deque[Job] = deque()
        self._attempts: dict[int, int] = {}
        self._stillborn = 0  # workers in a row that died before they were ready
        self._context = _server_context()
        self._seats = [self._start(number) for number in range(workers)]

    def submit(self, job: Job) -> None:
        """Queue a job and give it to an idle worker, if there is one."""
        self._queue.append(job)
        self._dispatch()

    def collect(self, timeout_s: float) -> list[Outcome]:
        """Outcomes that arrived within the time, and failures of jobs that were given up."""
        outcomes: list[Outcome] = []
        ready = set(wait([seat.pipe for seat in self._seats], timeout_s))
        for number, seat in enumerate(self._seats):
            if seat.pipe in ready:
                outcomes += self._receive(number, seat)
        self._dispatch()
        return outcomes

    def cancel(self) -> list[Job]:
        """Take back what no worker has begun."""
        jobs = list(self._queue)
        self._queue.clear()
        return jobs

    def close(self) -> None:
        """End all workers; one that is in the middle of a job is not waited for."""
        for seat in self._seats:
            seat.pipe.close()  # an idle worker leaves by itself, and tidies up
            if seat.job is not None or not seat.ready:
                seat.process.terminate()
        for seat in self._seats:
            seat.process.join(2)
            if seat.process.is_alive():
                seat.process.kill()
                seat.process.join()

    # --- supervision ------------------------------------------------------------------------------

    def _start(self, number: int) -> _Seat:
        here, there = self._context.Pipe()
        process = self._context.Process(
            target=serve, args=(self._spec, f"local-{number}", there, self._log), daemon=True
        )
        with _shielded():
            process.start()
        there.close()  # so that the pipe ends when the worker does
        return _Seat(process, here)

    def _dispatch(self) -> None:
        for seat in self._seats:
            if not self._queue:
                return
            if seat.ready and seat.job is None:
                job = self._queue.popleft()
                try:
                    seat.pipe.send(job)
                    seat.job = job
                except OSError:  # it just died; collect will see that
                    self._queue.appendleft(job)

    def _receive(self, number: int, seat: _Seat) -> list[Outcome]:
        try:
            message = seat.pipe.recv()
        except (EOFError, OSError):
            return self._replace(number, seat)
        if isinstance(message, EvomergeError):
            raise message  # the worker cannot start or go on, and no other could
        if isinstance(message, Outcome):
            seat.job = None
            self._attempts.pop(message.job.id, None)
            return [message]
        seat.ready = True
        self._stillborn = 0
        return []

    def _replace(self, number: int, seat: _Seat) -> list[Outcome]:
        """A worker is gone: start another, and run its job again unless it keeps killing."""
        seat.process.join()
        seat.pipe.close()
        logger.warning("worker %d died (exit code %s)", number, seat.process.exitcode)
        if not seat.ready:
            self._stillborn += 1
            if self._stillborn >= ATTEMPTS:
                raise NoWorkersLeft(f"workers die while they start; see {self._log}")
        self._seats[number] = self._start(number)
        job = seat.job
        if job is None:
            return []
        attempts = self._attempts.get(job.id, 0) + 1
        if attempts < ATTEMPTS:
            self._attempts[job.id] = attempts
            self._queue.appendleft(job)
            return []
        del self._attempts[job.id]
        reason = f"its worker died {attempts} times (last exit code {seat.process.exitcode})"
        return [Outcome(job, failure=Failure("worker", reason), worker=f"local-{number}")]


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


def _die_with_driver() -> None:
    """End the process when the driver is gone, even in the middle of a job."""
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        os._exit(1)


def serve(spec: WorkerSpec, name: str, pipe: Connection, log: Path | None) -> None:
    """A worker process: say that it is ready, then answer jobs until the pipe ends."""
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
    except EvomergeError as error:
        pipe.send(error)
        return
    pipe.send("ready")
    while True:
        try:
            pipe.send(worker.run(pipe.recv()))
        except EvomergeError as error:
            pipe.send(error)
            return
        except (EOFError, OSError):
            return
