"""Prepared data within a budget of bytes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any


@dataclass
class _Entry:
    prepared: Any
    nbytes: int
    last_used: int


class Cache:
    """Keeps prepared data of at most `budget_bytes`; what does not fit is made again each time.

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

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What is kept under the key, or what `make` returns; that must have `nbytes`."""
        entry = self._entries.get(key)
        if entry is None:
            prepared = make()
            entry = _Entry(prepared, prepared.nbytes, self._turn)
            if self._make_room(entry.nbytes):
                self._entries[key] = entry
                self.used_bytes += entry.nbytes
        entry.last_used = self._turn
        return entry.prepared

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
