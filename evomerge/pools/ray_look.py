"""A look at the nodes of a cluster before any work: what they have, and whether they could work."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from evomerge.pools.placement import Gpu
from evomerge.pools.ray_cluster import Cluster, ClusterNode

if TYPE_CHECKING:
    from evomerge.pools.worker import WorkerSpec

LOOK_S = 120.0  # a node that has nothing imported yet takes a while
CHEAP_BYTES = 200_000_000  # models up to this size are read to the end and compared
LIBRARIES = ("evomerge", "torch", "transformers", "ray")


@dataclass(frozen=True)
class Look:
    """What one node says of itself.

    instructions: what torch computes with: where they differ, equal results are not promised.
    memory_bytes: free now, within a container's limits.
    models: name -> what is wrong with it; empty where nothing is.
    """

    python: str
    versions: dict[str, str]
    instructions: str
    memory_bytes: int
    gpus: tuple[Gpu, ...]
    models: dict[str, str]


def look_at(cluster: Cluster, spec: WorkerSpec | None) -> dict[str, tuple[ClusterNode, Look | str]]:
    """Node id -> what it is, and what it says; or, in words, why it says nothing.

    spec: of an experiment's workers, whose models are then looked for on each node.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray = cluster.ray
    look = ray.remote(num_cpus=0, max_retries=0)(look_here)
    nodes = cluster.nodes()
    pickled = None if spec is None else cluster.pickled(spec)
    asked = {
        id_: look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(id_, soft=False)
        ).remote(pickled)
        for id_ in nodes
    }
    found: dict[str, tuple[ClusterNode, Look | str]] = {}
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=LOOK_S)
    for id_, answer in asked.items():
        try:
            found[id_] = nodes[id_], ray.get(answer, timeout=0)
        except (ray.exceptions.RayError, TimeoutError) as error:
            found[id_] = nodes[id_], _in_words(error)
    return found


def look_here(pickled: bytes | None) -> Look:
    """The machine that this runs on; in a process that imports evomerge for it."""
    from evomerge.pools.nodes import cuda_gpus, free_memory
    from evomerge.pools.ray_worker import processor

    return Look(
        python=platform.python_version(),
        versions={name: found for name in LIBRARIES if (found := _version(name))},
        instructions=processor(),
        memory_bytes=free_memory(),
        gpus=cuda_gpus(whole=True),
        models={} if pickled is None else _models(pickled),
    )


def _models(pickled: bytes) -> dict[str, str]:
    """What is wrong with each of a worker's models, as seen from here."""
    import ray.cloudpickle

    from evomerge.checkpoints.family import open_family
    from evomerge.errors import EvomergeError

    spec: WorkerSpec = ray.cloudpickle.loads(pickled)
    try:
        family = open_family(
            spec.models,
            spec.base,
            allow_pickle=spec.allow_pickle,
            tokenizer=spec.tokenizer,
            matches=spec.matches,
            matchings=spec.matchings,
        )
    except EvomergeError as error:
        told = {problem.where: str(problem) for problem in error.problems}
        return dict.fromkeys(spec.models, "") | told
    found = {}
    for name, checkpoint in family.checkpoints.items():
        wanted = spec.sha256.get(name)
        is_cheap = checkpoint.size_bytes <= CHEAP_BYTES
        differs = wanted is not None and is_cheap and checkpoint.sha256() != wanted
        found[name] = f"{checkpoint.where} is not the model that the driver sees" if differs else ""
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _in_words(error: Any) -> str:
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    what = lines[-1] if lines else "it did not answer"
    return f"{type(cause).__name__}: {what[:300]}"
