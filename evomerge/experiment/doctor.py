"""What this machine has."""

from __future__ import annotations

import os
import platform
import shutil

from evomerge.experiment.sessions import session_facts
from evomerge.files import cache_folder, catalogue_folder
from evomerge.pools import PoolConfig


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
