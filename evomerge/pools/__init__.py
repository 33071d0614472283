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

    workers: processes; `auto` is one for each processor that may be used, 0 measures in
        the driver itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["local"] = "local"
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"

    @property
    def num_workers(self) -> int:
        """The number that `workers` stands for on this machine."""
        return _num_processors() if self.workers == "auto" else self.workers


def make_pool(config: PoolConfig, spec: WorkerSpec, log: Path | None) -> Pool:
    """A started pool; models and callables that live in memory are measured in the driver."""
    if spec.lives_in_memory and config.workers not in ("auto", 0):
        logger.warning(
            "pool.workers: %s is ignored: models, modules and functions that are in memory are "
            "measured in this process",
            config.workers,
        )
    if config.num_workers < 1 or spec.lives_in_memory:
        return InlinePool(spec)
    return local_pool(spec, config.num_workers, log)


def _num_processors() -> int:
    """Those that this process may use, which a batch system or `taskset` may have limited."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
