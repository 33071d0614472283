"""Ray clusters of several nodes on one machine, with places of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# Nodes that are lost are missed after seconds rather than half a minute.
SETTINGS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class Nodes:
    """A cluster whose nodes come and go; this process is its driver, on the head."""

    def __init__(self, head_cpus: float, folder: Path) -> None:
        import ray
        from ray.cluster_utils import Cluster

        from evomerge.pools.ray_cluster import Cluster as Joined

        self._ray = ray
        arguments = {"num_cpus": head_cpus, "include_dashboard": False}
        self.head_folder = folder  # the working directory of its workers
        with contextlib.chdir(folder):
            self.cluster = Cluster(initialize_head=True, head_node_args=arguments | SMALL)
        self.address: str = self.cluster.address
        self._driver = Joined(self.address, 0.0)  # as a run does; it stays for all tests

    def add(self, cpus: float, **options: Any) -> Any:
        """One more node; it has the working directory of the moment."""
        return self.cluster.add_node(num_cpus=cpus, **(SMALL | options))

    def lose(self, node: Any) -> None:
        """All of a node's processes are killed."""
        self.cluster.remove_node(node, allow_graceful=False)

    def wait_for(self, count: int) -> None:
        """Until the cluster knows of so many nodes."""
        until = time.monotonic() + 30
        while (alive := sum(one["Alive"] for one in self._ray.nodes())) != count:
            assert time.monotonic() < until, alive
            time.sleep(0.1)

    def close(self) -> None:
        self._driver.close()
        self.cluster.shutdown()


SMALL = {"object_store_memory": 80 * 2**20}


@contextlib.contextmanager
def nodes(head_cpus: float) -> Iterator[Nodes]:
    """A cluster with settings, folders and ports of its own; nothing is left of it."""
    folder = tempfile.mkdtemp(prefix="em-", dir="/tmp")  # sockets want a short path
    before = dict(os.environ)
    paths = [str(HERE.parent), str(HERE), *filter(None, [before.get("PYTHONPATH")])]
    os.environ |= SETTINGS | {"RAY_TMPDIR": folder, "PYTHONPATH": os.pathsep.join(paths)}
    os.environ.pop("RAY_ADDRESS", None)
    try:
        made = Nodes(head_cpus, Path(folder))
        try:
            yield made
        finally:
            made.close()
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)
