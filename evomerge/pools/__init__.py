"""Pools: who measures. What comes back does not depend on how many workers there are."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from evomerge.pools.inline import InlinePool
from evomerge.pools.local import local_pool, warm_up
from evomerge.pools.worker import WorkerSpec
from evomerge.protocols import Pool

__all__ = ["PoolConfig", "WorkerSpec", "make_pool", "warm_up"]

logger = logging.getLogger(__name__)


class PoolConfig(BaseModel):
    """The `pool:` of an experiment.

    kind: `local`, processes on this machine; `ray`, workers on all nodes of a Ray cluster.
    workers: `auto` is as many as there is room for; 0 measures in the driver itself (`local`).
    address: of the Ray cluster: `auto` joins the one that this machine belongs to, and starts one
        where there is none; `local` starts one; else `ray://HOST:10001` or `HOST:6379`.
    cpus_per_worker: what Ray counts for a worker; None is one for each of its threads.
    timeout_s: how long a job may take, after which its worker is replaced; None is for ever.
    patience_s: how long a run waits for workers when a cluster has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["local", "ray"] = "local"
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    address: str = "auto"
    cpus_per_worker: float | None = Field(default=None, ge=0)
    timeout_s: float | None = Field(default=None, gt=0)
    patience_s: float = Field(default=60.0, ge=0)

    @property
    def num_workers(self) -> int:
        """The number that `workers` stands for on this machine."""
        return _num_processors() if self.workers == "auto" else self.workers


def make_pool(config: PoolConfig, spec: WorkerSpec, log: Path | None) -> Pool:
    """A started pool; models and callables that live in memory are measured in the driver."""
    if spec.lives_in_memory and (config.workers not in ("auto", 0) or config.kind != "local"):
        logger.warning(
            "pool %s, workers: %s is ignored: models, modules and functions that are in memory are "
            "measured in this process",
            *(config.kind, config.workers),
        )
    if config.num_workers < 1 or spec.lives_in_memory:
        return InlinePool(spec)
    if config.kind == "ray":
        return _ray_pool(config, spec, log)
    return local_pool(spec, config.num_workers, log, config.timeout_s)


def _ray_pool(config: PoolConfig, spec: WorkerSpec, log: Path | None) -> Pool:
    from evomerge.pools.dispatch import Dispatcher
    from evomerge.pools.ray_cluster import Cluster, ClusterNode
    from evomerge.pools.ray_crew import RayCrew, Seats

    cpus = float(spec.threads) if config.cpus_per_worker is None else config.cpus_per_worker
    most = None if config.workers == "auto" else config.workers

    def seats(node: ClusterNode) -> Seats:
        fit = int(node.cpus // cpus) if cpus else most or _num_processors()
        return Seats(fit, cpus, why=f"{node.cpus:g} CPUs, and a worker needs {cpus:g}")

    needed = cpus * config.num_workers
    cluster = Cluster(config.address, max(float(_num_processors()), needed))
    crew = RayCrew(cluster, spec, seats, most=most, patience_s=config.patience_s, log=log)
    return Dispatcher(crew, config.timeout_s)


def _num_processors() -> int:
    """Those that this process may use, which a batch system or `taskset` may have limited."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
