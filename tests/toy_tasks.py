"""Tasks and a module for worker processes: light to import, and some of them deadly."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from evomerge.records import Responses

NUM_ITEMS = 44
NAMES = ("layers.0.weight", "layers.1.weight", "head.weight")


def write_models(folder: Path) -> dict[str, str]:
    """A base and two experts of a kilobyte, as files."""
    generator = torch.Generator().manual_seed(0)
    folder.mkdir(exist_ok=True)
    paths = {}
    for name in ("base", "left", "right"):
        path = folder / f"{name}.safetensors"
        save_file({key: torch.randn(8, generator=generator) for key in NAMES}, path)
        paths[name] = str(path)
    return paths


@dataclass(frozen=True)
class FileModule:
    """Makes the module that holds a file's tensors; `fault` says what goes wrong in doing so."""

    path: str
    fault: str = ""

    def __call__(self) -> torch.nn.Module:
        from evomerge.errors import ModelError
        from evomerge.merging.bare import BareModule

        if self.fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "raises":
            raise RuntimeError("this module cannot be made")
        if self.fault == "refuses":
            raise ModelError(f"{self.path}: this model does not fit")
        return BareModule(load_file(self.path))


@dataclass
class ToyTask:
    """0/1 answers that depend on the merged tensors alone.

    once: a file; who finds it removes it and comes to harm.
    at_items: whoever is asked so many items comes to harm.
    harm: `kill`, as by the machine; `torch`, torch finds no memory; `memory`, Python finds none;
        `allocate`, twice what the process may have is wanted.
    deadly: about one model in twelve kills whoever measures it.
    pids: a folder where each worker leaves its process id.
    sleep_s: how long an answer takes.
    warn: workers log what they are asked, and which GPUs they may see.
    """

    name: str
    once: str = ""
    at_items: int = -1
    harm: str = "kill"
    deadly: bool = False
    pids: str = ""
    sleep_s: float = 0.0
    warn: bool = False
    forward_s: float = 0.0

    @property
    def items(self) -> Sequence[int]:
        return range(NUM_ITEMS)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()

    def respond(self, model: Any, items: Sequence[int]) -> Responses:
        if self.pids:
            (Path(self.pids) / str(os.getpid())).touch()
        if self.warn:
            devices = os.environ.get("CUDA_VISIBLE_DEVICES")
            said = "the toy task %s was asked; CUDA_VISIBLE_DEVICES %r"
            logging.getLogger(__name__).warning(said, self.name, devices)
        time.sleep(self.sleep_s)
        state = model.module.state_dict()
        flat = torch.cat([state[name] for name in NAMES]).double().numpy()
        if (self.once and self._found()) or len(items) == self.at_items:
            self._come_to_harm()
        if self.deadly and int((flat**2).sum() * 1e6) % 97 in range(40, 48):
            os.kill(os.getpid(), signal.SIGKILL)
        seed = int(self.fingerprint[:8], 16)
        probes = np.random.default_rng(seed).standard_normal((NUM_ITEMS, flat.size))
        score = (probes[list(items)] @ flat > 1.5).astype(np.float32)
        return Responses(self.name, np.asarray(items, np.int64), {"score": score})

    def _come_to_harm(self) -> None:
        if self.harm == "torch":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self.harm == "memory":
            raise MemoryError
        if self.harm == "allocate":
            import resource

            limit = 2 * int(Path("/proc/self/statm").read_text().split()[0]) * 4096
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            torch.ones(limit // 4)
        os.kill(os.getpid(), signal.SIGKILL)

    def _found(self) -> bool:
        try:
            Path(self.once).unlink()
        except FileNotFoundError:
            return False
        return True
