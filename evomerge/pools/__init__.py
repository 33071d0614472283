"""Pools: who measures. What comes back does not depend on how many workers there are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from evomerge.pools.local import InlinePool, LocalPool, warm_up
from evomerge.pools.worker import WorkerSpec
from evomerge.protocols import Pool

__all__ = ["POOLS", "PoolConfig", "WorkerSpec", "make_pool", "warm_up"]

POOLS = {"local": LocalPool}


class PoolConfig(BaseModel):
    """The `pool:` of an experiment.

    workers: processes; `auto` is one for each processor, 0 measures in the driver itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["local"] = "local"
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"

    @property
    def num_workers(self) -> int:
        """The number that `workers` stands for on this machine."""
        return (os.cpu_count() or 1) if self.workers == "auto" else self.workers


def make_pool(config: PoolConfig, spec: WorkerSpec, log: Path | None) -> Pool:
    """A started pool; models and callables that live in memory are measured in the driver."""
    if config.num_workers < 1 or spec.lives_in_memory:
        return InlinePool(spec)
    return LocalPool(spec, config.num_workers, log)
