"""Pools: who measures. What comes back does not depend on how many workers there are."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from evomerge.errors import ConfigurationError, Problem
from evomerge.pools.dispatch import Dispatcher
from evomerge.pools.inline import InlinePool
from evomerge.pools.local import local_pool, warm_up
from evomerge.pools.nodes import num_processors, this_node
from evomerge.pools.placement import Gpu, Node, Placement, gpus_of, place
from evomerge.pools.worker import WorkerSpec
from evomerge.protocols import Pool

if TYPE_CHECKING:
    from evomerge.pools.ray_cluster import ClusterNode
    from evomerge.pools.ray_crew import Seats

__all__ = ["PoolConfig", "WorkerSpec", "make_pool", "placement_here", "seats_of", "warmed_up"]

logger = logging.getLogger(__name__)


class PoolConfig(BaseModel):
    """The `pool:` of an experiment.

    kind: `local`, processes on this machine; `ray`, workers on all nodes of a Ray cluster.
    workers: `auto` is as many as there are processors, memory and GPUs for; 0 measures in the
        driver itself (`local`).
    device: `auto` takes GPUs where there are any.
    ahead: whether a worker prepares the next recipe while it measures, in a second model; `auto`
        does so on GPUs that have the memory.
    address: of the Ray cluster: `auto` joins the one that this machine belongs to, and starts one
        where there is none; `local` starts one; else `ray://HOST:10001` or `HOST:6379`.
    cpus_per_worker: what Ray counts for a worker; None is one for each of its threads.
    timeout_s: how long a job may take, after which its worker is replaced; None is for ever.
    patience_s: how long a run waits for workers when a cluster has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["local", "ray"] = "local"
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    ahead: bool | Literal["auto"] = "auto"
    address: str = "auto"
    cpus_per_worker: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    timeout_s: float | None = Field(default=None, gt=0)
    patience_s: float = Field(default=60.0, ge=0)

    @property
    def num_workers(self) -> int:
        """The number that `workers` stands for on this machine, as far as processors go."""
        return num_processors() if self.workers == "auto" else self.workers

    @property
    def uses_gpus(self) -> bool:
        """Whether GPUs are looked for."""
        return self.device in ("auto", "cuda")


@contextmanager
def warmed_up(config: PoolConfig, threads: int, *, in_driver: bool) -> Iterator[None]:
    """Begin with what a pool takes long for, while the driver does other things.

    threads: of a worker. in_driver: everything is measured in this process, whatever the pool.
    """
    with ExitStack() as stack:
        if config.num_workers > 0 and not in_driver:
            if config.kind == "ray":
                from evomerge.pools.ray_cluster import begun

                stack.enter_context(begun(config.address, _local_cpus(config, threads)))
            else:
                warm_up()
        yield


def make_pool(config: PoolConfig, spec: WorkerSpec, log: Path | None) -> Pool:
    """A started pool; models and callables that live in memory are measured in the driver.

    Raises:
        ConfigurationError: no worker fits on this machine, or there is no such cluster.
    """
    if spec.lives_in_memory and (config.workers not in ("auto", 0) or config.kind != "local"):
        logger.warning(
            "pool %s, workers: %s is ignored: models, modules and functions that are in memory are "
            "measured in this process",
            *(config.kind, config.workers),
        )
    if config.workers == 0 or spec.lives_in_memory:
        return InlinePool(replace(spec, device=_drivers_device(config, spec)))
    if config.kind == "ray":
        return _ray_pool(config, spec, log)
    return _local_pool(config, spec, log)


def placement_here(config: PoolConfig, spec: WorkerSpec) -> Placement:
    """How many workers this machine gets, on what, and why.

    Raises:
        ConfigurationError: GPUs are wanted, and there are none.
    """
    here = this_node(gpus=config.uses_gpus)
    if config.device == "cuda" and not here.gpus:
        what = "there is no CUDA device, or torch cannot use it"
        raise ConfigurationError(Problem("pool.device (cuda)", what, "say cpu, or auto"))
    return placement_on(here, config, spec)


def placement_on(
    node: Node, config: PoolConfig, spec: WorkerSpec, workers: int | None = None
) -> Placement:
    """The same for some node; workers: how many of those that are asked for it is to have."""
    asked = config.workers if config.workers != "auto" else None
    asked = asked if workers is None else workers
    if spec.demand is None:
        return Placement(node.cpus // max(1, spec.threads) or 1 if asked is None else asked)
    # Merging beside a measurement gained nothing dependable where both are done by processors.
    prepare = False if config.ahead == "auto" and not node.gpus else config.ahead
    return place(node, spec.demand, workers=asked, prepare=prepare)


def _drivers_device(config: PoolConfig, spec: WorkerSpec) -> str:
    """Where the driver measures for itself: on a GPU if that is asked for."""
    if config.device in ("auto", "cpu"):
        return "cpu"
    placement_here(config, spec)  # refuses what is not there
    return config.device


def _local_pool(config: PoolConfig, spec: WorkerSpec, log: Path | None) -> Pool:
    placed = placement_here(config, spec)
    if placed.workers == 0:
        tried = placement_here(config.model_copy(update={"workers": 1}), spec).workers
        hint = "`workers: 1` tries it all the same" if tried and config.workers == "auto" else ""
        if placement_here(config.model_copy(update={"device": "cpu"}), spec).workers:
            hint = hint or "`device: cpu` leaves the GPUs alone, and has room"
        where = f"pool.workers ({config.workers})"
        raise ConfigurationError(Problem(where, "; ".join(placed.reasons), hint))
    logger.info("%d workers on %s: %s", placed.workers, placed.device, "; ".join(placed.reasons))
    device = "mps" if config.device == "mps" else placed.device
    sent = replace(
        spec, device=device, ahead=placed.ahead, shelf_bytes=placed.shelf_bytes, demand=None
    )
    visible = [
        ",".join(map(str, gpus_of(number, placed))) if placed.gpus_per_worker else ""
        for number in range(placed.workers)
    ]
    return local_pool(sent, placed.workers, log, config.timeout_s, visible)


def _ray_pool(config: PoolConfig, spec: WorkerSpec, log: Path | None) -> Pool:
    from evomerge.pools.ray_cluster import joined
    from evomerge.pools.ray_crew import RayCrew

    most = None if config.workers == "auto" else config.workers
    cluster = joined(config.address, _local_cpus(config, spec.threads))

    def seats(node: ClusterNode) -> Seats:
        gpus = cluster.gpus_of(node) if node.gpus and config.uses_gpus else ()
        return seats_of(node, gpus, config, spec)

    sent = replace(spec, demand=None)
    crew = RayCrew(cluster, sent, seats, most=most, patience_s=config.patience_s, log=log)
    return Dispatcher(crew, config.timeout_s)


def seats_of(
    node: ClusterNode, gpus: tuple[Gpu, ...], config: PoolConfig, spec: WorkerSpec
) -> Seats:
    """What a node of a cluster can have; gpus: those that may be used there."""
    from evomerge.pools.ray_crew import Seats

    cpus = _cpus_of(config, spec.threads)
    most = None if config.workers == "auto" else config.workers
    by_cpus = int(node.cpus // cpus) if cpus else most or num_processors()
    there = Node(node.name, max(by_cpus * spec.threads, 1), node.memory_bytes, gpus)
    if config.device == "cuda" and not gpus:
        why = "no CUDA device, and pool.device is cuda"
        return Seats(0, cpus, device="cuda", why=why)
    # How many of all nodes there are is decided elsewhere.
    placed = placement_on(there, config.model_copy(update={"workers": "auto"}), spec)
    workers = min(placed.workers, by_cpus)
    by_ray = f"{node.cpus:g} CPUs, and a worker needs {cpus:g}"
    why = "; ".join(placed.reasons) if placed.workers <= by_cpus and placed.reasons else by_ray
    return Seats(
        workers,
        cpus,
        placed.gpus_per_worker,
        placed.device,
        placed.ahead,
        placed.shelf_bytes,
        why,
    )


def _cpus_of(config: PoolConfig, threads: int) -> float:
    return float(threads) if config.cpus_per_worker is None else config.cpus_per_worker


def _local_cpus(config: PoolConfig, threads: int) -> float:
    """What a cluster that is started for a run has to lend."""
    return max(float(num_processors()), _cpus_of(config, threads) * config.num_workers)
