"""Whether a Ray cluster is still there, which another thread asks than the driver's.

When its head is lost, Ray waits in whatever call the driver makes next, and after a minute ends the
process with a message of its own. So the driver asks nothing that may wait, and leaves before.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress

from evomerge.errors import NoWorkersLeft, Problem
from evomerge.pools.ray_cluster import ClusterNode

ASK_S = 1.0  # how often it is asked for its nodes
QUIET_S = 4.0  # without an answer, and nothing is asked of it that can wait
SILENT_S = 30.0  # without an answer, and it is lost; heads that come back need some seconds
LEAVE_S = 10.0  # for the driver to leave by itself, if it does not wait for Ray

Nodes = Mapping[str, ClusterNode]


class Pulse:
    """The nodes that a cluster had when it last answered, and whether it still does.

    Silence is counted in looks at it, not by a clock: a driver that was stopped for a while has
    not been left alone.
    """

    def __init__(self, ask: Callable[[], Nodes], address: str) -> None:
        self._ask = ask
        self._address = address
        self._stopped = threading.Event()
        self._asked = threading.Lock()  # no answer overtakes a later one
        self._silent_s = 0.0
        self.nodes = ask()
        for each in (self._asking, self._counting):
            threading.Thread(target=each, daemon=True, name="pulse").start()

    @property
    def is_lost(self) -> bool:
        """Whether it has been silent for too long."""
        return self._silent_s >= SILENT_S

    @property
    def silent_s(self) -> float:
        """For how long it has not answered, where that is long for an answer; else 0."""
        return self._silent_s if self._silent_s >= QUIET_S else 0.0

    def now(self) -> Nodes:
        """The nodes of this moment; waits for the answer."""
        with self._asked:
            self.nodes = self._ask()
            return self.nodes

    def lost(self) -> NoWorkersLeft:
        """What to say when it is."""
        what, hint = "the Ray cluster does not answer any more", "nothing is lost: resume the run"
        return NoWorkersLeft(Problem(f"pool.address {self._address}", what, hint))

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()

    def _asking(self) -> None:
        while not self._stopped.wait(ASK_S):
            with suppress(Exception):  # of many kinds, and none of them is an answer
                self.now()
                self._silent_s = 0.0

    def _counting(self) -> None:
        while not self._stopped.wait(ASK_S):
            self._silent_s += ASK_S
            if self._silent_s >= SILENT_S + LEAVE_S:
                with suppress(OSError):
                    sys.stderr.write(f"\n{self.lost()}\n")
                    sys.stderr.flush()
                os._exit(NoWorkersLeft.exit_code)  # as Ray would soon, and what is committed stays
