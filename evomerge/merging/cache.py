"""Prepared data within a budget of bytes; what does not fit goes to the disk, or is made again."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from evomerge.files import cache_folder

_WORTH_A_FILE = 2**16  # bytes
_SLOW = 10**8  # bytes a second: what was made more slowly goes to a file rather than be made again
_LONG = 1.0  # seconds of making things, after which there is freed memory to give back
_FREE_SHARE = 4  # of the disk's free bytes one of so many may be taken at once


@dataclass
class _Entry:
    prepared: Any
    nbytes: int
    in_files: int  # bytes that were brought there
    is_dear: bool  # to make again
    last_used: int
    always: bool


@dataclass
class _Files:
    """What there is in files, and all that ever was, in bytes: it counts, and holds none of it."""

    nbytes: int = 0
    total: int = 0

    def add(self, array: np.memmap[Any, Any]) -> None:
        """Count an array as long as somebody has it."""
        self.nbytes += array.nbytes
        self.total += array.nbytes
        mapping: mmap = array._mmap  # type: ignore[attr-defined]
        weakref.finalize(mapping, self._closed, array.nbytes).atexit = False

    def _closed(self, nbytes: int) -> None:
        self.nbytes -= nbytes


def _give_back() -> None:
    """Give freed memory back to the system, which takes a tenth of a second.

    glibc keeps whatever lies below something that is in use: arrays that come and go, between small
    ones that stay, would take a gigabyte more with every other candidate.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


class Cache:
    """Keeps prepared data of at most `budget_bytes` in memory.

    What does not fit and has `spill` brings its large arrays to files, which the system keeps in
    memory as long as nobody else needs it. Everything else that does not fit is made again each
    time.

    What the last two candidates used is never thrown out for something else of the same size: every
    candidate walks through all blocks in one order, where dropping the least recently used would
    miss every time. What they did not use makes room, the least recently used first: in memory, and
    on the disk when all files take more of it than one may. Of that, what took long to make goes to
    files. Prepared data may have `seconds`: what they take to make again, if not what they took.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._files = _Files()
        self._entries: dict[Hashable, _Entry] = {}
        self._put_aside_bytes = 0
        self._seconds = 0.0  # of making things, since memory was given back
        self._turn = 0

    def next_candidate(self) -> None:
        """A new candidate begins."""
        self._turn += 1
        if self._seconds > _LONG:
            _give_back()
            self._seconds = 0.0

    def clear(self) -> None:
        """Drop all but what is always kept."""
        for key in [key for key, entry in self._entries.items() if not entry.always]:
            self._drop(key)

    def get(self, key: Hashable, make: Callable[[], Any], *, always: bool = False) -> Any:
        """What is kept under the key, or what `make` returns; that must have `nbytes`.

        `always` keeps it whatever it costs: making it again would cost a reading of the model.
        """
        entry = self._entries.get(key)
        if entry is None:
            before, began = self._brought, time.perf_counter()
            prepared = make()
            self._seconds += time.perf_counter() - began
            seconds = getattr(prepared, "seconds", time.perf_counter() - began)
            nbytes = prepared.nbytes
            is_dear = seconds * _SLOW > nbytes
            if not self._make_room(nbytes) and hasattr(prepared, "spill"):
                prepared.spill(self._to_file)
                nbytes = prepared.nbytes
            in_files = self._brought - before
            entry = _Entry(prepared, nbytes, in_files, is_dear, self._turn, always)
            if self._make_room(nbytes) or always:
                self._entries[key] = entry
                self.used_bytes += nbytes
        entry.last_used = self._turn
        return entry.prepared

    def room(self, numel: int, dtype: DTypeLike) -> NDArray[Any]:
        """An array to fill, in memory or, where what is kept leaves no room for it, in a file.

        What is prepared goes there piece by piece: all of it together might not fit in memory.
        """
        fits = self._make_room(numel * np.dtype(dtype).itemsize)
        return np.empty(numel, dtype) if fits else self._room_in_file(numel, dtype)

    @property
    def _brought(self) -> int:
        """Bytes that ever went to files of what was being made, not of what gave way to it."""
        return self._files.total - self._put_aside_bytes

    def _make_room(self, nbytes: int) -> bool:
        missing = self.used_bytes + nbytes - self.budget_bytes
        if missing <= 0:
            return True
        idle = self._idle()
        if missing > sum(self._entries[key].nbytes for key in idle):
            return False
        for free in (self._put_aside, self._drop):
            for key in idle:
                if self.used_bytes + nbytes <= self.budget_bytes:
                    return True
                if key in self._entries and self._entries[key].nbytes:
                    free(key)
        return True

    def _idle(self) -> list[Hashable]:
        """What the last two candidates did not use, the least recently used first."""
        idle = [
            key
            for key, entry in self._entries.items()
            if entry.last_used < self._turn - 1 and not entry.always
        ]
        return sorted(idle, key=lambda key: self._entries[key].last_used)

    def _put_aside(self, key: Hashable) -> None:
        """Bring to files what would be dear to make again; drop what would not."""
        entry = self._entries[key]
        if entry.in_files:
            return  # what is left of it in memory is little
        if not entry.is_dear or not hasattr(entry.prepared, "spill"):
            self._drop(key)
            return
        before = self._files.total
        entry.prepared.spill(self._to_file)
        entry.in_files = self._files.total - before
        self._put_aside_bytes += entry.in_files
        self.used_bytes += entry.prepared.nbytes - entry.nbytes
        entry.nbytes = entry.prepared.nbytes

    def _drop(self, key: Hashable) -> None:
        """Keep it no longer."""
        self.used_bytes -= self._entries.pop(key).nbytes

    def _to_file(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array in a file, if it is worth one."""
        if isinstance(array, np.memmap) or array.nbytes < _WORTH_A_FILE:
            return array
        stored = self._room_in_file(array.size, array.dtype).reshape(array.shape)
        stored[...] = array
        return stored

    def _room_in_file(self, numel: int, dtype: DTypeLike) -> NDArray[Any]:
        """An array in a file that has no name, so that nothing is left behind however we end.

        In memory where it is small, or the disk has too little room.
        """
        nbytes = numel * np.dtype(dtype).itemsize
        folder = cache_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if nbytes >= _WORTH_A_FILE and self._make_room_on_disk(folder, nbytes):
                with tempfile.TemporaryFile(dir=folder) as file:
                    # A hole that finds no room when it is written ends the process.
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, nbytes)
                    array = np.memmap(file, dtype, "w+", shape=(numel,))
                self._files.add(array)
                return array
        except OSError:
            pass
        return np.empty(numel, dtype)

    def _make_room_on_disk(self, folder: Path, nbytes: int) -> bool:
        """Whether it may take so much; else candidates' files would fill it, one after another."""
        for key in self._idle():
            taken, free = self._files.nbytes, shutil.disk_usage(folder).free
            if taken + nbytes <= (free + taken) // _FREE_SHARE:
                break
            if self._entries[key].in_files:
                self._drop(key)
        return nbytes <= shutil.disk_usage(folder).free // _FREE_SHARE
