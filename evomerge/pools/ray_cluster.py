"""A Ray cluster: joining one or starting one, and which nodes it has."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from evomerge.errors import ConfigurationError, Problem

OBJECT_STORE_BYTES = 100 * 2**20  # of a cluster that is started here: hardly anything goes there
NEEDS = "needs Ray: pip install 'evomerge[ray]'"


@dataclass(frozen=True)
class ClusterNode:
    """A node as Ray counts it. `memory_bytes` is what Ray would lend to tasks."""

    id: str
    name: str
    cpus: float
    gpus: float
    memory_bytes: int


def load_ray() -> Any:
    """The library, which is imported only where a pool is made of it.

    Raises:
        ConfigurationError: it is not installed.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigurationError(Problem("pool.kind (ray)", NEEDS)) from error
    return ray


class Cluster:
    """A connection to a Ray cluster.

    Raises:
        ConfigurationError: there is none at the address, or it does not let us in.
    """

    def __init__(self, address: str, local_cpus: float) -> None:
        """Join a cluster, or start one.

        address: `local` starts one on this machine, which ends with the connection; `auto` joins
        the one that this machine belongs to, and starts one where there is none; else where it is.
        local_cpus: what a cluster that is started here may lend.
        """
        self.ray = load_ray()
        self._ours = not self.ray.is_initialized()  # who has joined one already keeps it
        self.is_local = False
        if not self._ours:
            return
        quiet = {"log_to_driver": False, "configure_logging": False}
        started = {
            "address": "local",
            "num_cpus": local_cpus,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            **quiet,
        }
        with self._said(address):
            if address == "auto":
                try:
                    self.ray.init(address="auto", namespace="evomerge", **quiet)
                except ConnectionError:
                    self.is_local = True
                    self.ray.init(namespace="evomerge", **started)
            elif address == "local":
                self.is_local = True
                self.ray.init(namespace="evomerge", **started)
            else:
                self.ray.init(address=address, namespace="evomerge", **quiet)

    @contextmanager
    def _said(self, address: str) -> Iterator[None]:
        """Without Ray's own lines on the screen, and with what is wrong in words."""
        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            yield
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
            what = str(error).strip().partition("\n")[0] or type(error).__name__
            hint = "`ray status` says whether a cluster is there; `local` starts one here"
            raise ConfigurationError(
                Problem(f"pool.address {address}", f"no Ray cluster can be joined: {what}", hint)
            ) from None

    def nodes(self) -> dict[str, ClusterNode]:
        """Those that are alive, by id."""
        found = {}
        for node in self.ray.nodes():
            if node["Alive"]:
                resources, id_ = node["Resources"], node["NodeID"]
                found[id_] = ClusterNode(
                    id=id_,
                    name=f"{node['NodeManagerHostname']}-{id_[:6]}",
                    cpus=resources.get("CPU", 0.0),
                    gpus=resources.get("GPU", 0.0),
                    memory_bytes=int(resources.get("memory", 0)),
                )
        return found

    def close(self) -> None:
        """Leave it; one that was started here ends."""
        if self._ours:
            self.ray.shutdown()
