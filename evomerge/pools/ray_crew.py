"""Workers on a Ray cluster: plain actors, which the driver itself supervises."""

from __future__ import annotations

import logging
import math
import queue
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

from evomerge.errors import EvomergeError, ModelError, NoWorkersLeft, Problem
from evomerge.pools.crew import (
    STILLBORN,
    Answer,
    Event,
    Forgotten,
    Gone,
    Loss,
    Ready,
    Refused,
)
from evomerge.pools.ray_cluster import Cluster, ClusterNode
from evomerge.pools.ray_pulse import Pulse
from evomerge.pools.ray_shares import Shares
from evomerge.pools.ray_worker import THREADS, Hello, RayWorker, Reply
from evomerge.pools.worker import WorkerSpec
from evomerge.records import Job

COLOUR = re.compile(r"\x1b\[\d*m")
TEND_S = 1.0  # how often workers are compared with the nodes that there are
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seats:
    """What a node can have: workers, and what each takes of it."""

    workers: int
    cpus: float
    gpus: float = 0.0
    device: str = "cpu"
    ahead: bool = False
    shelf_bytes: int = 0
    why: str = ""  # there are no more


@dataclass
class _Node:
    """A node of the cluster that workers are on."""

    facts: ClusterNode
    seats: Seats
    stillborn: int = 0
    barred: Problem | None = None


@dataclass
class _Member:
    """An actor, and what is to be heard of it."""

    actor: Any
    node: str
    ready: bool = False
    pid: int = 0
    log_file: str = ""
    leaving: bool = False
    owed: dict[tuple[str, int], Any] = field(default_factory=dict)  # call, job -> its reply

    @property
    def has_jobs(self) -> bool:
        """Whether it is at work."""
        return any(call == "run" for call, _ in self.owed)


class RayCrew:
    """A crew of actors; see `Crew`.

    Nodes that join the cluster get workers, and those that leave are not missed. Actors are never
    restarted by Ray, and no call is made twice: who is gone is replaced here.

    A worker has a second job at hand, so that it does not wait for the driver, its disk and the
    network between two of them.

    seats: says how many workers a node can have. most: of all nodes; None for no limit. actor: what
    the workers are, made with a name and a device; its methods are `in_thread`s.
    """

    depth = 2

    def __init__(
        self,
        cluster: Cluster,
        spec: WorkerSpec,
        seats: Callable[[ClusterNode], Seats],
        *,
        most: int | None = None,
        patience_s: float = 60.0,
        log: Path | None = None,
        actor: type = RayWorker,
    ) -> None:
        self._patience_s = patience_s
        self._awaits_turn = False  # other runs have all workers
        self._cluster = cluster
        self._ray = cluster.ray
        self._spec = spec
        self._seats = seats
        self._most = most
        self._log = log
        self._count = 0
        self._nodes: dict[str, _Node] = {}
        self._members: dict[str, _Member] = {}
        self._heard: queue.SimpleQueue[tuple[str, str, int, Any]] = queue.SimpleQueue()
        self._processors: dict[str, str] = {}
        self._tended = 0.0
        self._pulse = Pulse(cluster.nodes, cluster.address)
        self._is_lost = False  # the cluster
        self._shares = Shares(self._ray, uuid4().hex)
        self._pending: list[Event] = []
        self._actors = self._ray.remote(
            max_restarts=0, max_task_retries=0, concurrency_groups=dict.fromkeys(THREADS, 1)
        )(actor)
        self._tend()

    @property
    def patience_s(self) -> float:
        """How long to wait for workers: for ever where it is other runs that have them."""
        return math.inf if self._awaits_turn else self._patience_s

    @property
    def num_workers(self) -> int:
        """Those that work or are on their way."""
        return len(self._members)

    def complaints(self) -> list[Problem]:
        """What is wrong with nodes that have no workers."""
        if silent_s := self._pulse.silent_s:
            what = f"the cluster's head has not answered for {silent_s:.0f} s"
            return [Problem("pool", what)]
        told = [node.barred for node in self._nodes.values() if node.barred is not None]
        empty = [
            Problem(node.facts.name, node.seats.why)
            for node in self._nodes.values()
            if node.barred is None and node.seats.workers == 0
        ]
        if not self._nodes:
            return [Problem("pool", "no node of the cluster is alive")]
        return [*told, *empty]

    def send(self, worker: str, job: Job) -> None:
        """Give a job to a worker."""
        if (member := self._members.get(worker)) is None:
            return  # it has left since, and its `Gone` is on its way
        node = self._nodes.get(member.node)
        prepares = member.has_jobs and node is not None and node.seats.ahead
        with self._in_reach():
            reply = member.actor.run.remote(job)
            self._listen(worker, "run", job.id, reply)
            if prepares:
                member.actor.prepare.remote(job)

    def recall(self, worker: str, job: int) -> None:
        """Ask a worker to forget a job whose turn has not come."""
        if (member := self._members.get(worker)) is not None:
            with self._in_reach():
                member.actor.forget.remote(job)

    def dismiss(self, worker: str) -> None:
        """End a worker at once, and start another in its place."""
        if (member := self._members.pop(worker, None)) is not None:
            with self._in_reach():
                self._end(member)
                self._staff()

    def wait(self, timeout_s: float) -> list[Event]:
        """What was said since the last time; waits for the first of it.

        Raises:
            NoWorkersLeft: the cluster itself does not answer any more.
        """
        with self._in_reach():
            return self._waited(timeout_s)

    def _waited(self, timeout_s: float) -> list[Event]:
        if self._pulse.is_lost:
            raise self._pulse.lost()
        now = time.monotonic()
        if now - self._tended >= TEND_S:
            self._tend()
        events, self._pending = self._pending, []
        try:
            heard = self._heard.get(timeout=0 if events else timeout_s)
            while True:
                events += self._understood(*heard)
                heard = self._heard.get_nowait()
        except queue.Empty:
            return events

    def close(self) -> None:
        """End all workers, and leave the cluster."""
        if self._is_lost:
            self._members.clear()
            self._pulse.stop()
            self._cluster.abandon()
            return
        for member in self._members.values():
            self._end(member)
        self._members.clear()
        self._shares.leave()
        self._cluster.close()
        self._pulse.stop()

    @contextmanager
    def _in_reach(self) -> Iterator[None]:
        """What goes wrong while the cluster is out of reach goes wrong for that reason."""
        try:
            yield
        except NoWorkersLeft:
            self._is_lost = True
            raise
        except EvomergeError:
            raise
        except Exception as error:
            if self._cluster.is_there():
                raise
            self._is_lost = True
            raise self._pulse.lost() from error

    # --- nodes ------------------------------------------------------------------------------------

    def _tend(self) -> None:
        """See which nodes there are, and have workers on all of them."""
        self._tended = time.monotonic()
        alive = self._pulse.nodes
        for id_ in [id_ for id_ in self._nodes if id_ not in alive]:
            logger.warning("node %s has left the cluster", self._nodes.pop(id_).facts.name)
        for id_, facts in alive.items():
            if id_ not in self._nodes:
                self._nodes[id_] = _Node(facts, self._seats(facts))
                logger.info("node %s: %d workers", facts.name, self._nodes[id_].seats.workers)
        self._staff()

    def _staff(self) -> None:
        """Start workers where there is room for them, on the emptiest node first."""
        if self._pulse.silent_s:
            return  # Ray would wait for the head with whatever it is asked; it is tended to later
        counts = dict.fromkeys(self._nodes, 0)
        for member in self._members.values():
            if member.node in counts:
                counts[member.node] += 1
        room = {
            id_: node.seats.workers - counts[id_]
            for id_, node in self._nodes.items()
            if node.barred is None
        }
        seats = sum(node.seats.workers for node in self._nodes.values())
        share = self._shares.of(seats)
        if (waits := share < min(seats, 1)) and not self._awaits_turn:
            logger.warning("other runs have all %d workers of the cluster: waiting for one", seats)
        self._awaits_turn = waits
        most = share if self._most is None else min(share, self._most)
        self._retire(len(self._members) - most, counts)
        while room and len(self._members) < most:
            id_ = max(room, key=lambda one: room[one])
            if room[id_] <= 0:
                return
            room[id_] -= 1
            self._hire(id_)

    def _retire(self, surplus: int, counts: dict[str, int]) -> None:
        """Give up so many workers, from the fullest nodes; who is busy leaves after its job."""
        staying = [name for name, member in self._members.items() if not member.leaving]
        surplus -= len(self._members) - len(staying)
        if surplus < 0:  # others have left: who was to go stays
            for member in self._members.values():
                member.leaving = False
        staying = [name for name in staying if self._members[name].node in counts]
        for _ in range(min(max(0, surplus), len(staying))):
            name = max(staying, key=lambda one: self._dispensable(self._members[one], counts))
            staying.remove(name)
            counts[self._members[name].node] -= 1
            self._members[name].leaving = True
        for name in [n for n, m in self._members.items() if m.leaving and not m.has_jobs]:
            self._pending.append(self._left(name))

    @staticmethod
    def _dispensable(member: _Member, counts: dict[str, int]) -> tuple[int, bool, bool]:
        return counts[member.node], not member.ready, not member.has_jobs

    def _left(self, worker: str) -> Gone:
        self._end(self._members.pop(worker))
        return Gone(worker, "its place is another run's", "leave")

    def _hire(self, id_: str) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = self._nodes[id_]
        name = f"{node.facts.name}-{self._count}"
        self._count += 1
        actor = self._actors.options(
            num_cpus=node.seats.cpus,
            num_gpus=node.seats.gpus,
            scheduling_strategy=NodeAffinitySchedulingStrategy(id_, soft=False),
        ).remote(name, node.seats.device)
        self._members[name] = _Member(actor, id_)
        self._listen(name, "watch", -1, actor.watch.remote())
        opening = actor.open.remote(version("evomerge"), self._spec_for(node.seats))
        self._listen(name, "open", -1, opening)

    def _spec_for(self, seats: Seats) -> bytes:
        spec = replace(
            self._spec,
            device=seats.device,
            ahead=seats.ahead,
            shelf_bytes=seats.shelf_bytes,
        )
        return self._cluster.pickled(spec)

    def _end(self, member: _Member) -> None:
        self._ray.kill(member.actor, no_restart=True)

    # --- what is said -----------------------------------------------------------------------------

    def _listen(self, worker: str, call: str, job: int, reply: Any) -> None:
        """Have what becomes of a call put on the heap of what is heard."""
        self._members[worker].owed[call, job] = reply  # which ends if nobody holds it

        def heard(future: Any) -> None:
            error = future.exception()
            self._heard.put((worker, call, job, future.result() if error is None else error))

        reply.future().add_done_callback(heard)

    def _understood(self, worker: str, call: str, job: int, said: Any) -> list[Event]:
        member = self._members.get(worker)
        if member is None:
            return []  # it was dismissed, or its end was heard already
        if not isinstance(said, Reply):
            return [self._lost(worker, said)]
        self._write(said.log)
        member.owed.pop((call, job), None)
        if isinstance(said.said, EvomergeError):
            return self._refuse(worker, said.said)
        if isinstance(said.said, Hello):
            member.ready, member.pid = True, said.said.pid
            member.log_file = said.said.log_file
            if (node := self._nodes.get(member.node)) is not None:
                node.stillborn = 0
            self._compare(worker, said.said.processor)
            return [Ready(worker, member.node)]
        if said.said is None:
            return [Forgotten(worker, job)]
        answer = Answer(worker, said.said)
        return [answer, self._left(worker)] if member.leaving else [answer]

    def _lost(self, worker: str, error: Exception) -> Gone:
        """A worker is gone, or cannot be reached: start another."""
        member = self._members.pop(worker)
        self._end(member)
        node = self._nodes.get(member.node)
        why = self._reason(member.node, error)
        if isinstance(error, self._ray.exceptions.RayTaskError):  # a traceback, which says where
            lines = COLOUR.sub("", str(error)).splitlines()
            self._write(tuple(f"{worker}: {line}" for line in lines))
        if member.ready:
            output = f"what it has printed is in {member.log_file}, in Ray's logs on its node"
            self._write((f"{worker}: process {member.pid}; {output}",))
        if node is not None and why != "node" and not member.ready:
            node.stillborn += 1
            if node.stillborn >= STILLBORN:
                what = f"workers die while they start: {_first_line(error)}"
                node.barred = Problem(node.facts.name, what)
                logger.warning("%s", node.barred)
        if why == "node":
            self._tend()
        else:
            self._staff()
        return Gone(worker, _first_line(error), why)

    def _reason(self, node: str, error: Exception) -> Loss:
        text = str(error)
        out_of_memory = isinstance(error, self._ray.exceptions.OutOfMemoryError)
        if out_of_memory or "NODE_OUT_OF_MEMORY" in text or "memory usage threshold" in text:
            return "memory"
        # A worker that dies is missed by its node at once; if the node says nothing, it is silent.
        if isinstance(error, self._ray.exceptions.ActorUnavailableError):
            return "node"
        return "death" if node in self._pulse.now() else "node"

    def _refuse(self, worker: str, error: EvomergeError) -> list[Event]:
        """A node cannot read the models: it gets no workers, and those that it has are ended."""
        id_ = self._members[worker].node
        if (node := self._nodes.get(id_)) is None:  # it has left meanwhile
            return [self._lost(worker, error)]
        gone = tuple(name for name, member in self._members.items() if member.node == id_)
        for name in gone:
            self._end(self._members.pop(name))
        name = node.facts.name
        node.barred = Problem(name, "; ".join(str(problem) for problem in error.problems))
        if isinstance(error, ModelError):
            error = ModelError(
                [Problem(f"{name} {p.where}", p.what, p.hint) for p in error.problems]
            )
        self._staff()
        return [Refused(name, gone, error)]

    def _compare(self, worker: str, processor: str) -> None:
        """Say once of each kind of processor that its numbers may be others."""
        if self._processors and processor not in self._processors:
            others = ", ".join(self._processors)
            logger.warning(
                "%s computes with other instructions (%s) than other workers (%s): equal recipes "
                "may be answered differently, and a repeated run may take another course",
                *(worker, processor, others),
            )
        self._processors.setdefault(processor, worker)

    def _write(self, lines: tuple[str, ...]) -> None:
        if lines and self._log is not None:
            with self._log.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)


def _first_line(error: Exception) -> str:
    """What Ray says, without its paragraphs: the cause of an error in a constructor is the last."""
    if (cause := getattr(error, "cause", None)) is not None:
        return f"{type(cause).__name__}: {cause}"[:300]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    detail = next((line for line in lines if "exit detail" in line or "has died" in line), "")
    text = detail or (lines[-1] if "creation task" in lines[0] else lines[0])
    return text.split("Some common causes")[0].strip()[:300]
