"""What this machine has, or a cluster's nodes, and what an experiment would use of it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.errors import ConfigurationError
from evomerge.experiment.sessions import session_facts
from evomerge.files import cache_folder, catalogue_folder
from evomerge.pools import PoolConfig, WorkerSpec, placement_here, seats_of

if TYPE_CHECKING:
    from evomerge.pools.ray_cluster import ClusterNode
    from evomerge.pools.ray_look import Look


def examine() -> dict[str, str]:
    """Label -> finding: versions, processors, memory, disk, folders."""
    import torch

    facts = session_facts()
    cache = cache_folder()
    nearest = next(p for p in (cache, *cache.parents) if p.exists())
    disk = shutil.disk_usage(nearest)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    found = {
        "python": f"{facts['python']} on {platform.system()} {facts['machine']}",
        **{name: str(number) for name, number in facts["versions"].items()},
        "processors": f"{os.cpu_count()} ({PoolConfig().num_workers} workers by default, "
        "one torch thread each)",
        "memory": f"{memory / 1e9:.1f} GB",
        "gpus": ", ".join(gpus) or "none; none is needed",
        "cache": f"{cache} ({disk.free / 1e9:.1f} GB free)",
    }
    for kind in ("search_spaces", "fitness", "experiments"):
        folder = catalogue_folder(kind)
        names = sorted(path.stem for path in folder.glob("*.yaml"))
        found[kind] = f"{folder}: {', '.join(names)}"
    return found


@dataclass(frozen=True)
class Examined:
    """A node of a cluster: label -> findings, what is wrong with it, and its workers."""

    name: str
    findings: dict[str, str]
    problems: tuple[str, ...]
    workers: int


def examine_here(config: PoolConfig, spec: WorkerSpec) -> str:
    """What this machine would do for an experiment, in words."""
    try:
        placed = placement_here(config, spec)
    except ConfigurationError as error:
        return str(error)
    return f"{placed.workers} on {placed.device}: {'; '.join(placed.reasons)}"


def examine_cluster(config: PoolConfig, spec: WorkerSpec | None) -> list[Examined]:
    """The nodes of a Ray cluster, each asked for itself.

    config: of the pool, with the cluster's address. spec: of an experiment's workers; None where
    there is none, and then neither models nor memory are looked at.

    Raises:
        ConfigurationError: there is no such cluster.
    """
    from evomerge.pools.ray_cluster import Cluster
    from evomerge.pools.ray_look import look_at

    cluster = Cluster(config.address, float(PoolConfig().num_workers))
    with closing(cluster):
        looks = sorted(look_at(cluster, spec).values(), key=lambda found: found[0].name)
    examined = [_examined(node, look, config, spec) for node, look in looks]
    return [*examined, *_together([look for _, look in looks if not isinstance(look, str)])]


def _examined(
    node: ClusterNode, look: Look | str, config: PoolConfig, spec: WorkerSpec | None
) -> Examined:
    lent = f"{node.cpus:g} CPUs, {node.gpus:g} GPUs, {node.memory_bytes / 1e9:.1f} GB of memory"
    findings = {"Ray lends": lent}
    if isinstance(look, str):
        return Examined(node.name, findings, (f"says nothing: {look}",), 0)
    gpus = ", ".join(f"{gpu.memory_bytes / 1e9:.1f} GB" for gpu in look.gpus)
    findings |= {
        "memory": f"{look.memory_bytes / 1e9:.1f} GB free",
        "gpus": gpus or "torch sees none",
        "python": f"{look.python}, "
        + ", ".join(f"{name} {number}" for name, number in look.versions.items()),
        "processor": look.instructions,
    }
    usable = look.gpus if config.uses_gpus and node.gpus else ()
    seats = seats_of(node, usable, config, spec or WorkerSpec(models={}, base=""))
    on = f" on {seats.device}" + (f", {seats.gpus:g} GPUs each" if seats.gpus else "")
    findings["workers"] = f"{seats.workers}{on}: {seats.why}"
    problems = list(_problems(node, look))
    if look.models:
        good = sum(not what for what in look.models.values())
        findings["models"] = f"{good} of {len(look.models)} can be read and are the run's"
    able = not any(look.models.values()) and look.versions.get("evomerge") == _own_version()
    return Examined(node.name, findings, tuple(problems), seats.workers if able else 0)


def _problems(node: ClusterNode, look: Look) -> Iterator[str]:
    found = look.versions.get("evomerge")
    if found != _own_version():
        yield f"evomerge {found}, and {_own_version()} here: install the same on all nodes"
    if node.gpus > len(look.gpus):
        yield f"Ray counts {node.gpus:g} GPUs, torch sees {len(look.gpus)}"
    yield from (what for what in look.models.values() if what)


def _together(looks: list[Look]) -> Iterator[Examined]:
    """What is wrong with no node alone."""
    kinds = sorted({look.instructions for look in looks})
    torches = sorted({look.versions.get("torch", "none") for look in looks})
    problems = []
    if len(kinds) > 1:
        told = "equal recipes may be answered differently, and a repeated run take another course"
        problems.append(
            f"processors compute with different instructions ({', '.join(kinds)}): {told}"
        )
    if len(torches) > 1:
        problems.append(f"different versions of torch: {', '.join(torches)}")
    if problems:
        yield Examined("all nodes", {}, tuple(problems), 0)


def _own_version() -> str:
    return str(session_facts()["versions"]["evomerge"])
