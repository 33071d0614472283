"""Prepared data within a budget of bytes; what does not fit goes to the disk, or is made again."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from evomerge.files import cache_folder

_WORTH_A_FILE = 2**16  # bytes
_FREE_SHARE = 4  # of the disk's free bytes one of so many may be taken at once


@dataclass
class _Entry:
    prepared: Any
    nbytes: int
    last_used: int


class Cache:
    """Keeps prepared data of at most `budget_bytes` in memory.

    What does not fit and has `spill` brings its large arrays to files, which the system keeps in
    memory as long as nobody else needs it. Everything else that does not fit is made again each
    time.

    What the last two candidates used is never thrown out for something else of the same size: every
    candidate walks through all blocks in one order, where dropping the least recently used would
    miss every time. What they did not use makes room, the least recently used first.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._entries: dict[Hashable, _Entry] = {}
        self._turn = 0

    def next_candidate(self) -> None:
        """A new candidate begins."""
        self._turn += 1

    def get(self, key: Hashable, make: Callable[[], Any], *, always: bool = False) -> Any:
        """What is kept under the key, or what `make` returns; that must have `nbytes`.

        `always` keeps it whatever it costs: making it again would cost a reading of the model.
        """
        entry = self._entries.get(key)
        if entry is None:
            prepared = make()
            entry = _Entry(prepared, prepared.nbytes, self._turn)
            if not self._make_room(entry.nbytes) and hasattr(prepared, "spill"):
                prepared.spill(_to_file)
                entry.nbytes = prepared.nbytes
            if self._make_room(entry.nbytes) or always:
                self._entries[key] = entry
                self.used_bytes += entry.nbytes
        entry.last_used = self._turn
        return entry.prepared

    def room(self, numel: int, dtype: DTypeLike) -> NDArray[Any]:
        """An array to fill, in memory or, where what is kept leaves no room for it, in a file.

        What is prepared goes there piece by piece: all of it together might not fit in memory.
        """
        fits = self.used_bytes + numel * np.dtype(dtype).itemsize <= self.budget_bytes
        return np.empty(numel, dtype) if fits else _room_in_file(numel, dtype)

    def _make_room(self, nbytes: int) -> bool:
        missing = self.used_bytes + nbytes - self.budget_bytes
        if missing <= 0:
            return True
        idle = [key for key, entry in self._entries.items() if entry.last_used < self._turn - 1]
        idle.sort(key=lambda key: self._entries[key].last_used)
        if missing > sum(self._entries[key].nbytes for key in idle):
            return False
        for key in idle:
            freed = self._entries.pop(key).nbytes
            self.used_bytes -= freed
            missing -= freed
            if missing <= 0:
                break
        return True


def _to_file(array: NDArray[Any]) -> NDArray[Any]:
    """The array in a file, if it is worth one."""
    if isinstance(array, np.memmap) or array.nbytes < _WORTH_A_FILE:
        return array
    stored = _room_in_file(array.size, array.dtype).reshape(array.shape)
    stored[...] = array
    return stored


def _room_in_file(numel: int, dtype: DTypeLike) -> NDArray[Any]:
    """An array in a file that has no name, so that nothing is left behind however we end.

    In memory where it is small, or the disk has too little room.
    """
    nbytes = numel * np.dtype(dtype).itemsize
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if _WORTH_A_FILE <= nbytes <= free // _FREE_SHARE:
            with tempfile.TemporaryFile(dir=folder) as file:
                # A hole that finds no room when it is written ends the process.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, nbytes)
                return np.memmap(file, dtype, "w+", shape=(numel,))
    except OSError:
        pass
    return np.empty(numel, dtype)
