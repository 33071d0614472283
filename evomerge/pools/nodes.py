"""What this machine lets us use: processors, memory and GPUs, within a container's limits."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from evomerge.pools.placement import Gpu, Node

_UNLIMITED = 2**60  # bytes: cgroups v1 say a number near 2^63 for no limit


def this_node(name: str = "local", *, gpus: bool = True, root: Path = Path("/")) -> Node:
    """The processors that we may use, and the memory that is free now.

    Args:
        name: what to call it.
        gpus: whether to look for CUDA devices.
        root: where /proc and /sys are.
    """
    return Node(name, num_processors(root), free_memory(root), cuda_gpus() if gpus else ())


def num_processors(root: Path = Path("/")) -> int:
    """Those that a batch system, `taskset` or a container leaves to this process; at least 1."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    shares = [math.ceil(share) for share in _processor_shares(root)]
    return max(1, min([count, *shares]))


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that can be taken without swapping; the page cache counts as free."""
    free = [_system_memory(root)]
    for folder in _cgroups(root, "memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        if limit is not None and limit < _UNLIMITED:
            free.append(limit - max(0, used - _file_pages(folder)))
    return max(0, min(free))


def cuda_gpus(*, whole: bool = False) -> tuple[Gpu, ...]:
    """The CUDA devices that are visible, with what is free on each.

    whole: count what others have of them as well: a cluster's scheduler lends it.
    """
    import torch

    if not torch.cuda.is_available():
        return ()
    devices = range(torch.cuda.device_count())
    return tuple(Gpu(int(torch.cuda.mem_get_info(device)[int(whole)])) for device in devices)


def _system_memory(root: Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # all there is, in use or not


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the control groups that we are in, from ours upward, of version 2 and 1.

    In a container the path that the kernel tells may be one of the host's: then what is mounted at
    the top is our own.
    """
    top = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy != "0" and controller not in controllers.split(","):
            continue
        mount = top if hierarchy == "0" else top / controller
        own = mount / path.lstrip("/")
        while own != mount:
            yield own
            own = own.parent
        yield mount


def _processor_shares(root: Path) -> Iterator[float]:
    for folder in _cgroups(root, "cpu"):
        words = _text(folder / "cpu.max").split()
        if not words:
            quota = _number(folder / "cpu.cfs_quota_us")
            period = _number(folder / "cpu.cfs_period_us")
            words = [str(quota), str(period)] if quota and quota > 0 and period else []
        if len(words) == 2 and words[0] != "max":
            yield int(words[0]) / int(words[1])


def _file_pages(folder: Path) -> int:
    """Bytes of files that a control group is charged for, which the system can drop."""
    names = ("active_file", "inactive_file")
    lines = (line.split() for line in _text(folder / "memory.stat").splitlines())
    return sum(int(words[1]) for words in lines if len(words) == 2 and words[0] in names)


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
