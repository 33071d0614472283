"""Merges in which every entry of a task vector has a factor of its own, in one pass over memory.

As in passes.py, the numba kernels do it where they can go, else torch chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from evomerge.merging import passes
from evomerge.merging.operator import Block, chunks
from evomerge.merging.order import memory_bytes
from evomerge.merging.passes import Agreement, everything
from evomerge.merging.reads import Models, Told

if TYPE_CHECKING:
    from torch import Tensor

TILE = 1024  # entries: places of sparse shifts are told apart in tiles of the kernels' size

_PER_THREAD = 2**20  # entries that are worth a thread
_AT_ONCE = 8  # sources: with more the compiler does not unroll the loop over them


@dataclass
class Kept:
    """A block's base and sources, for operators that look at nothing else."""

    models: Models
    nbytes: int


def keep_models(block: Block) -> Kept:
    """A block's models; they cost nothing where they are views."""
    models = Models(cast("Tensor", block.base), block.sources, [slice(0, block.numel)])
    return Kept(models, block.held_bytes(block.base, *block.sources))


def add_agreed_sum(
    models: Models,
    thresholds: Sequence[float],
    counted: Sequence[float],
    least: float,
    scale: float,
    out: Tensor,
) -> bool | None:
    """Write W_0 + scale T where enough masks say so, else W_0; T is the sum of the task vectors.

    Mask k is |tau_k| > thresholds[k] |T - tau_k|, and adds counted[k]; `least` is enough. `out` is
    of shape (numel,), of any floating dtype. Returns whether all is finite; None if nobody looked.
    """
    fused = models.kernels_for(out)
    if fused is not None:
        told, target = _told(fused, models), _target(fused, out)
        limits, counts = np.array(thresholds, np.float32), np.array(counted, np.float32)
        small, factor = np.float32(least), np.float32(scale)
        each = told.each if len(limits) <= _AT_ONCE else ((0,), (np.float32(0),))

        def run(spans: NDArray[np.int64]) -> Any:
            return fused.add_agreed_sum(
                each,
                told.stored,
                told.base,
                told.sources,
                limits,
                counts,
                small,
                factor,
                target,
                spans,
            )

        return _each(run, _spans(out.numel()))
    for part, origin, taus in _parts(models):
        total, votes = taus.sum(0), origin.new_zeros(len(origin))
        for tau, threshold, one in zip(taus, thresholds, counted, strict=True):
            others = total.sub(tau).abs_().mul_(threshold)
            votes.add_(tau.abs().gt(others), alpha=one)
        out[part].copy_(origin.add_(total.mul_(votes.ge(least)), alpha=scale))
    return None


def add_owned(models: Models, owners: Tensor, factors: Sequence[float], out: Tensor) -> bool | None:
    """Write W_0 + factors[k] tau_k, k being the entry's owner; returns as `add_agreed_sum`.

    owners: (numel,) uint8, 1 + the owner's number, 0 where there is none.
    """
    fused = models.kernels_for(out)
    if fused is not None:
        told, target = models.told(fused, fused.ALL, _AT_ONCE), _target(fused, out)
        table, address = told.arranged(np.array(factors, np.float32)), owners.data_ptr()

        def run(spans: NDArray[np.int64]) -> Any:
            return fused.add_owned(
                told.each, told.stored, told.base, told.sources, address, table, target, spans
            )

        return _each(run, _spans(out.numel()))
    for part, origin, taus in _parts(models):
        for number, (tau, factor) in enumerate(zip(taus, factors, strict=True), 1):
            origin.add_(tau.mul_(owners[part].eq(number)), alpha=factor)
        out[part].copy_(origin)
    return None


def add_by_column(models: Models, factors: NDArray[np.float32], out: Tensor) -> bool | None:
    """Write W_0 + sum_k factors[k] tau_k, with a factor for each column of a matrix.

    factors: (sources, width), of which the models' entries are whole rows. Returns as
    `add_agreed_sum`.
    """
    fused, width = models.kernels_for(out), factors.shape[1]
    if fused is not None:
        told, target = models.told(fused, fused.ALL, _AT_ONCE), _target(fused, out)
        table = np.ascontiguousarray(told.arranged(factors).T)

        def run(spans: NDArray[np.int64]) -> Any:
            return fused.add_by_column(
                told.each, told.stored, told.base, told.sources, table, target, spans
            )

        return _each(run, _spans(out.numel(), width))
    _add_weighed(models, factors[:, None, :], width, out)
    return None


def add_by_row(models: Models, factors: NDArray[np.float32], out: Tensor) -> bool | None:
    """The same with a factor for each row, (sources, rows); the models' segments are the rows."""
    if models.kernels_for(out) is not None:
        plain = Agreement("sum", np.ones(len(factors)), 1.0)
        return passes.add_task_vectors(models, everything(factors), plain, out)
    _add_weighed(models, factors[:, :, None], out.numel() // factors.shape[1], out)
    return None


def _add_weighed(models: Models, factors: NDArray[np.float32], width: int, out: Tensor) -> None:
    """Add task vectors times factors, (sources, rows or 1, width or 1), in torch."""
    import torch

    base = cast("Tensor", models.base)
    table = torch.from_numpy(factors).to(base.device)
    origins, others = base.view(-1, width), [source.view(-1, width) for source in models.sources]
    for part in chunks(len(origins), width, like=base):
        origin = origins[part].float()
        total = origin.clone()
        for other, factor in zip(others, table, strict=True):
            own = factor[part] if len(factor) > 1 else factor
            total.add_(other[part].float().sub(origin).mul_(own))
        out.view(-1, width)[part].copy_(total)


@dataclass
class Sparse:
    """What each source adds to a base here and there, by tile.

    starts, stops: (sources, tiles) int64, where each tile's shifts are.
    places: (shifts,) uint16, in the tile; shifts: (shifts,) float32.
    pieces: the tile after each piece; a source's shifts in a piece lie end to end.
    """

    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    places: NDArray[np.uint16]
    shifts: NDArray[np.float32]
    pieces: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        held = memory_bytes(self.places) + memory_bytes(self.shifts)
        return self.starts.nbytes + self.stops.nbytes + held

    def spill(self, move: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Let `move` bring the large arrays elsewhere."""
        self.places, self.shifts = move(self.places), move(self.shifts)


class SparseWriter:
    """Collects sparse shifts, piece by piece, in memory that grows without being copied."""

    def __init__(self) -> None:
        self._places, self._shifts = bytearray(), bytearray()
        self._filled = 0
        self._stops: list[NDArray[np.int64]] = []
        self._counts: list[NDArray[np.int64]] = []

    def add(
        self, found: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]], size: int
    ) -> None:
        """Go on with the next `size` entries, whole tiles but for the last.

        found: of each source, the entries among them that it shifts, ascending, and the shifts.
        """
        counts = []
        for index, shift in found:
            counts.append(np.bincount(index // TILE, minlength=-(-size // TILE)))
            self._places += (index % TILE).astype(np.uint16).tobytes()
            self._shifts += shift.astype(np.float32).tobytes()
        self._counts.append(np.array(counts, np.int64))
        stops = self._filled + np.cumsum(self._counts[-1]).reshape(self._counts[-1].shape)
        self._stops.append(stops)
        self._filled = int(stops[-1, -1])

    def written(self) -> Sparse:
        """All of it; nothing can be added any more."""
        stops = np.concatenate(self._stops, 1)
        places = np.frombuffer(self._places, np.uint16)
        shifts = np.frombuffer(self._shifts, np.float32)
        pieces = tuple(accumulate(counts.shape[1] for counts in self._counts))
        return Sparse(stops - np.concatenate(self._counts, 1), stops, places, shifts, pieces)


def add_sparse(base: Tensor, sparse: Sparse, factors: Sequence[float], out: Tensor) -> bool | None:
    """Write W_0 + sum_k factors[k] shifts of k; returns as `add_agreed_sum`."""
    import torch

    models = Models(None, [base], [])
    fused, numel = models.kernels_for(out), out.numel()
    if fused is not None:
        origin, target = _target(fused, base), _target(fused, out)
        table = np.array(factors, np.float32)

        def run(spans: NDArray[np.int64]) -> Any:
            tiles = np.array([spans[0, 0] // TILE, -(-spans[0, 1] // TILE), numel])
            return fused.add_sparse(
                origin,
                sparse.starts,
                sparse.stops,
                sparse.places,
                sparse.shifts,
                table,
                target,
                tiles,
            )

        return _each(run, _spans(numel, align=TILE))
    for first, last in pairwise([0, *sparse.pieces]):
        part = slice(first * TILE, min(last * TILE, numel))
        merged = base[part].float()
        merged = merged.clone() if merged.data_ptr() == base[part].data_ptr() else merged
        bounds = zip(sparse.starts[:, first:last], sparse.stops[:, first:last], strict=True)
        for (starts, stops), factor in zip(bounds, factors, strict=True):
            own = slice(starts[0], stops[-1])
            tiles = np.repeat(np.arange(last - first), stops - starts)
            index = torch.from_numpy(tiles * TILE + sparse.places[own]).to(base.device)
            shifts = torch.from_numpy(sparse.shifts[own]).to(base.device)
            merged.index_add_(0, index, shifts, alpha=factor)
        out[part].copy_(merged)
    return None


def _told(fused: ModuleType, models: Models) -> Told:
    return models.told(fused, fused.ALL, len(models.sources))


def _target(fused: ModuleType, out: Tensor) -> NDArray[np.int64]:
    return np.array(fused.address_of(out), np.int64)


def _spans(numel: int, width: int = 1, *, align: int = 1) -> list[NDArray[np.int64]]:
    """Equal shares of whole rows (or tiles), one for each thread that torch would use."""
    import torch

    if align > 1:
        shares = _spans(-(-numel // align) * align, align)
        shares[-1][0, 1] = numel
        return shares
    rows = numel // width
    count = max(1, min(torch.get_num_threads(), numel // _PER_THREAD, rows))
    cuts = [rows * i // count * width for i in range(count + 1)]
    return [np.array([cut], np.int64) for cut in pairwise(cuts)]


def _each(run: Callable[[Any], Any], shares: Sequence[Any]) -> bool:
    """Whether all that was written is finite."""
    if len(shares) == 1:
        return not run(shares[0])
    with ThreadPoolExecutor(len(shares)) as threads:  # the kernels let go of the interpreter
        return not any(list(threads.map(run, shares)))


def _parts(models: Models) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Pieces of the base and of the task vectors, float32, the latter (sources, entries)."""
    import torch

    base = cast("Tensor", models.base)
    for part in chunks(len(base), len(models.sources), like=base):
        origin = base[part].float()
        taus = torch.stack([source[part].float().sub(origin) for source in models.sources])
        # Not the model's own memory, where it is float32: it is added to.
        yield part, origin.clone() if origin.data_ptr() == base[part].data_ptr() else origin, taus
