"""The order of magnitudes of a task vector: sorted once for many looks, or counted for a few.

The entries' magnitudes are sorted by the bits of their float32 values, which order as the values
do. The upper 16 bits of a sorted sequence say little: how many entries have each of them is enough.
So a sorted order takes two bytes an entry, without loss; a threshold for any density is a look-up,
and none of it depends on a candidate. Who looks just once need not sort: counts of the upper halves
say where a place is, and one more reading finds the lower halves there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from struct import pack, unpack
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from evomerge.merging.operator import chunks
from evomerge.merging.reads import kernels

if TYPE_CHECKING:
    from torch import Tensor

_LEVELS = 2**15  # upper halves of floats that are not negative

_SORTED_AT_ONCE = 2**26  # entries on a GPU
_SORTING_BYTES = 48  # an entry, while they are sorted: values, places, and twice what they were
_LOOKS = 3  # readings for a place each, before sorting is cheaper

Pieces = Callable[[], "Iterable[Tensor]"]  # of a tensor, float32, of any shape; again at each call


class Magnitudes(Protocol):
    """Ascending magnitudes."""

    def __len__(self) -> int: ...

    def at(self, place: int) -> float:
        """The magnitude at a place of the ascending order."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        ...

    def spill(self, move: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Let `move` bring what is large elsewhere."""
        ...


@dataclass
class Order:
    """Sorted magnitudes: the upper halves that occur, where each starts, all lower halves."""

    upper: NDArray[np.uint16]
    starts: NDArray[np.int64]
    lower: NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.lower)

    def at(self, place: int) -> float:
        """The magnitude at a place of the ascending order."""
        which = bisect_right(self.starts, place) - 1
        return _value(self.upper[which], self.lower[place])

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.upper.nbytes + self.starts.nbytes + memory_bytes(self.lower)

    def spill(self, move: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Let `move` bring the large array elsewhere."""
        self.lower = move(self.lower)


class Counted:
    """Magnitudes whose upper halves are counted: a place costs a reading, and next to no memory.

    After some readings they are sorted all the same, so that many places cost no more than that.
    """

    def __init__(
        self, pieces: Pieces, room: Callable[[int, DTypeLike], NDArray[Any]] = np.empty
    ) -> None:
        self._pieces, self._room = pieces, room
        self._sorted: Order | None = None
        counts = _counts(pieces)
        self._upper = np.flatnonzero(counts)
        self._starts = np.concatenate([[0], np.cumsum(counts[self._upper])])
        self._found: dict[int, float] = {}  # by place

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        own = self._upper.nbytes + self._starts.nbytes
        return own + (0 if self._sorted is None else self._sorted.nbytes)

    def spill(self, move: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Let `move` bring what is large elsewhere."""
        if self._sorted is not None:
            self._sorted.spill(move)

    def at(self, place: int) -> float:
        """The magnitude at a place of the ascending order."""
        if place not in self._found:
            if len(self._found) >= _LOOKS and self._sorted is None:
                self._sorted = order_of(self._pieces, self._room)
            find = self._look if self._sorted is None else self._sorted.at
            self._found[place] = find(place)
        return self._found[place]

    def _look(self, place: int) -> float:
        fused = kernels()
        which = int(np.searchsorted(self._starts, place, side="right")) - 1
        level, first = self._upper[which], self._starts[which]
        lower = np.empty(self._starts[which + 1] - first, np.uint16)
        filled = 0
        for piece in self._pieces():
            bits = _bits(piece)
            if fused is None:
                found = bits[bits >> 16 == level].astype(np.uint16)
                lower[filled : filled + len(found)] = found
                filled += len(found)
            else:
                filled = fused.gather_lower(bits, np.uint32(level), lower, filled)
        lower.partition(place - first)
        return _value(level, lower[place - first])


def _value(upper: Any, lower: Any) -> float:
    value: float = unpack("<f", pack("<HH", lower, upper))[0]
    return value


def memory_bytes(array: NDArray[Any]) -> int:
    """What an array costs in memory: nothing if it is a file's."""
    return 0 if isinstance(array, np.memmap) else array.nbytes


def order_of(
    pieces: Pieces,
    room: Callable[[int, DTypeLike], NDArray[Any]] = np.empty,
    *,
    at_once: bool = False,
) -> Order:
    """Sort the magnitudes of a tensor that comes in pieces.

    Beside the result it needs the memory of one piece. The pieces are asked for twice: a counting
    sort, by the upper half first.

    Args:
        pieces: gives the pieces, on any device.
        room: makes the large array of the result.
        at_once: sort where the pieces are, for a GPU, if its free memory allows it.
    """
    if at_once and (found := _sorted_at_once(pieces, room)) is not None:
        return found
    fused = kernels()
    counts = _counts(pieces)
    starts = np.concatenate([[0], np.cumsum(counts)])
    lower = room(int(starts[-1]), np.uint16)
    filled = starts[:-1].copy()
    for piece in pieces():
        scatter = _scatter_lower if fused is None else fused.scatter_lower
        scatter(_bits(piece), filled, lower)
    there = np.flatnonzero(counts)
    for level in there.tolist():
        lower[starts[level] : starts[level + 1]].sort()
    return Order(there.astype(np.uint16), starts[there], lower)


def _sorted_at_once(pieces: Pieces, room: Callable[[int, DTypeLike], NDArray[Any]]) -> Order | None:
    """The same, sorted where the pieces are; None if there are too many, or too little memory."""
    import torch

    held: list[Tensor] = []
    for piece in pieces():
        held.append(piece.abs().float().reshape(-1).view(torch.int32))
        if sum(map(len, held)) > _SORTED_AT_ONCE:
            return None
    if not held:
        return None
    bits = torch.cat(held) if len(held) > 1 else held[0]
    held.clear()
    if bits.device.type == "cuda":
        free = torch.cuda.mem_get_info(bits.device)[0]
        free += torch.cuda.memory_reserved(bits.device) - torch.cuda.memory_allocated(bits.device)
        if _SORTING_BYTES * len(bits) > free // 2:
            return None
    ascending = bits.sort().values
    del bits
    levels, counts = torch.unique_consecutive(ascending >> 16, return_counts=True)
    lower = room(len(ascending), np.uint16)
    halves = (ascending & 0xFFFF).sub_(2**15).to(torch.int16)  # torch has few unsigned numbers
    torch.from_numpy(lower.view(np.int16)).copy_(halves)
    lower ^= np.uint16(2**15)
    starts = counts.cumsum(0).sub_(counts)
    return Order(
        levels.cpu().numpy().astype(np.uint16), starts.cpu().numpy().astype(np.int64), lower
    )


def values_at(pieces: Pieces, places: Callable[[int], Sequence[int]]) -> NDArray[np.float32]:
    """Values at places of the ascending order of each row, in two readings and little memory.

    Args:
        pieces: each (rows, entries), of any sign.
        places: what to look up in rows of so many entries.

    Returns:
        Shape (rows, places).
    """
    counts, total = np.zeros((0, 2 * _LEVELS), np.int64), 0
    for piece in pieces():
        if not len(counts):
            counts = np.zeros((len(piece), 2 * _LEVELS), np.int64)
        total += piece.shape[1]
        for row, count in zip(piece, counts, strict=True):
            _count_upper(_ascending(row), count)
    wanted, before = np.array(places(total)), np.cumsum(counts, 1)
    upper = np.array([np.searchsorted(row, wanted, side="right") for row in before])
    lower_counts = np.zeros((*upper.shape, 2**16), np.int64)
    for piece in pieces():
        for row, levels, found in zip(piece, upper, lower_counts, strict=True):
            _count_lower(_ascending(row), levels.astype(np.uint32), found)
    first = np.take_along_axis(before - counts, upper, 1)
    lower = np.zeros_like(upper)
    for place, target in np.ndenumerate(wanted - first):
        lower[place] = np.searchsorted(np.cumsum(lower_counts[place]), target, side="right")
    keys = (upper << 16 | lower).astype(np.uint32)
    bits = np.where(keys >> 31 == 1, keys ^ np.uint32(2**31), ~keys)
    values: NDArray[np.float32] = bits.view(np.float32)
    return values


def _ascending(values: Tensor) -> NDArray[np.uint32]:
    """Whole numbers that order as float32 values do."""
    bits = values.float().cpu().contiguous().numpy().view(np.int32)
    return (bits ^ ((bits >> 31) | np.int32(-(2**31)))).view(np.uint32)


def _counts(pieces: Pieces) -> NDArray[np.int64]:
    """How many entries have each upper half."""
    counts = np.zeros(_LEVELS, np.int64)
    for piece in pieces():
        _count_upper(_bits(piece), counts)
    return counts


def _count_upper(bits: NDArray[np.uint32], counts: NDArray[np.int64]) -> None:
    """As the kernel of that name."""
    fused = kernels()
    if fused is None:
        counts += np.bincount(bits >> 16, minlength=len(counts))
    else:
        fused.count_upper(bits, counts)


def _count_lower(
    bits: NDArray[np.uint32], uppers: NDArray[np.uint32], counts: NDArray[np.int64]
) -> None:
    """As the kernel of that name."""
    fused = kernels()
    if fused is not None:
        fused.count_lower(bits, uppers, counts)
        return
    for upper, count in zip(uppers, counts, strict=True):
        there = bits[bits >> 16 == upper] & 0xFFFF
        count += np.bincount(there, minlength=counts.shape[1])


def _scatter_lower(
    bits: NDArray[np.uint32], filled: NDArray[np.int64], lower: NDArray[np.uint16]
) -> None:
    """As the kernel of that name."""
    bits = np.sort(bits)
    there, first, counts = np.unique(bits >> 16, return_index=True, return_counts=True)
    lower[np.arange(len(bits)) + np.repeat(filled[there] - first, counts)] = bits & 0xFFFF
    filled[there] += counts


def _bits(values: Tensor) -> NDArray[np.uint32]:
    return values.abs().float().cpu().contiguous().view(-1).numpy().view(np.uint32)


def rank_into(pieces: Iterable[Tensor], shape: tuple[int, ...], out: NDArray[np.int16]) -> None:
    """Every entry's rank by magnitude in its row, spread over -2^15 to 2^15 - 1.

    Rows of width 1 have the lowest. Entries of equal magnitude keep their order; in rows wider than
    2^16 neighbours share a rank.

    Args:
        pieces: of a tensor, float32, in order.
        shape: of the tensor; a vector is one row.
        out: (numel,), set.
    """
    width = shape[-1] if len(shape) > 1 else len(out)
    bits, filled = np.empty(len(out), np.uint32), 0
    for piece in pieces:
        bits[filled : filled + piece.numel()] = _bits(piece)
        filled += piece.numel()
    rows = bits.reshape(-1, width)
    ranks = out.reshape(-1, width)
    scale = (2**16 - 1) / max(1, width - 1)
    levels = (np.round(np.arange(width) * scale) - 2**15).astype(np.int16)
    for part in chunks(len(rows), width):
        # The column breaks ties; sorting keys is several times faster than sorting indices.
        keys = rows[part].astype(np.uint64) << np.uint64(32)
        keys |= np.arange(width, dtype=np.uint64)
        keys.sort(axis=1)
        columns = (keys & np.uint64(2**32 - 1)).astype(np.int64)
        np.put_along_axis(ranks[part], columns, levels[None, :], 1)
