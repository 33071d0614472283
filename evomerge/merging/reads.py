"""What passes over memory read: looked up once for each block, and not for each candidate."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

_PER_THREAD = 2**20  # entries that are worth a thread


@dataclass
class Models:
    """One block of the base and of the sources; the tensors stay where they are.

    Attributes:
        base: shape (numel,), of any floating dtype, as all of them; None where sources are merged
            by themselves.
        sources: each (numel,).
        segments: where each of a model's tensors lies.
        draws, ranks: for each source an int16 tensor, shape (numel,), where there are any.
    """

    base: Tensor | None
    sources: Sequence[Tensor]
    segments: Sequence[slice]
    draws: Sequence[Tensor] = ()
    ranks: Sequence[Tensor] = ()
    _told: dict[tuple[int, int], Told] = field(default_factory=dict, init=False, repr=False)
    _shares: dict[int, list[Share]] = field(default_factory=dict, init=False, repr=False)

    @property
    def tensors(self) -> list[Tensor]:
        """The base, if there is one, and the sources."""
        return [*self.sources] if self.base is None else [self.base, *self.sources]

    def kernels_for(self, out: Tensor | None = None) -> ModuleType | None:
        """The kernels, if they are there and can read these tensors, and write `out`."""
        fused = self._kernels
        return fused if fused is None or out is None or fused.address_of(out) else None

    @cached_property
    def _kernels(self) -> ModuleType | None:
        if any(tensor.device.type != "cpu" for tensor in self.tensors):
            return None  # nobody need have numba for that
        fused = kernels()
        readable = fused is not None and all(map(fused.address_of, self.tensors))
        return fused if readable else None

    def told(self, fused: ModuleType, mode: int, most_at_once: int) -> Told:
        """What the kernels are told of the models."""
        if (mode, most_at_once) not in self._told:
            self._told[mode, most_at_once] = Told.of(fused, self, mode, most_at_once)
        return self._told[mode, most_at_once]

    def shares(self) -> list[Share]:
        """The entries in equal shares, one for each thread that torch would use."""
        import torch

        threads = torch.get_num_threads()
        if threads not in self._shares:
            self._shares[threads] = _shares(self.segments, threads)
        return self._shares[threads]


@dataclass(frozen=True)
class Told:
    """What the kernels are told of models.

    They read as many sources at once as `each` has entries, and the same number each time: sources
    without weight fill up the last turn, copies of the base, whose task vectors are zeros (of the
    first source where there is no base).
    """

    each: tuple[tuple[int, ...], tuple[np.float32, ...]]
    stored: tuple[int, ...]
    mode: tuple[int, ...]
    base: NDArray[np.int64]
    sources: NDArray[np.int64]

    @classmethod
    def of(cls, fused: ModuleType, models: Models, mode: int, most_at_once: int) -> Told:
        """Addresses and codes of a block's models."""
        sources, base = models.sources, models.base
        origin = (0, fused.NOTHING) if base is None else fused.address_of(base)
        turns = -(-len(sources) // most_at_once)
        at_once = -(-len(sources) // turns)
        pointers = np.zeros((4, turns * at_once), np.int64)
        for k, source in enumerate(sources):
            pointers[0, k], pointers[3, k] = fused.address_of(source)
            if models.draws:
                pointers[1, k] = models.draws[k].data_ptr()
            if models.ranks:
                pointers[2, k] = models.ranks[k].data_ptr()
        pointers[:, len(sources) :] = pointers[:, :1]
        if base is not None:
            pointers[::3, len(sources) :] = np.array(origin)[:, None]
        codes = set(pointers[3].tolist())
        return cls(
            each=((0,) * at_once, (np.float32(0),) * at_once),
            stored=(0,) * (codes.pop() if len(codes) == 1 else fused.FLOAT32),
            mode=(0,) * mode,
            base=np.array(origin, np.int64),
            sources=pointers,
        )

    def arranged(self, values: NDArray[Any], share: Share | None = None) -> NDArray[np.float32]:
        """Values of sources as the kernels read them, the sources last, zeros for those that fill.

        values: (sources, segments, ...), of which the share's are taken, or (sources, ...).
        """
        if share is not None and not share.is_whole:
            values = values[:, share.segments]
        moved = values.transpose(*range(1, values.ndim), 0)
        if moved.shape[-1] == self.sources.shape[1]:
            return np.ascontiguousarray(moved, np.float32)
        padded = np.zeros((*moved.shape[:-1], self.sources.shape[1]), np.float32)
        padded[..., : moved.shape[-1]] = moved
        return padded


@dataclass(frozen=True)
class Share:
    """What one thread does: spans of entries, and the segment that each lies in.

    is_whole: whether the spans are the block's segments.
    """

    segments: NDArray[np.int64]
    spans: NDArray[np.int64]  # (spans, 2)
    is_whole: bool = False

    @cached_property
    def tiles(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The tiles that the kernels cut the spans into, and the number of each one's span."""
        fused = kernels()
        assert fused is not None  # noqa: S101 (shares are for the kernels)
        tiles: tuple[NDArray[np.int64], NDArray[np.int64]] = fused.tiles_of(self.spans)
        return tiles


def whole_share(segments: Sequence[slice]) -> Share:
    """All entries in one share."""
    spans = np.array([(segment.start, segment.stop) for segment in segments], np.int64)
    return Share(np.arange(len(segments)), spans, is_whole=True)


def _shares(segments: Sequence[slice], threads: int) -> list[Share]:
    whole = whole_share(segments)
    spans = whole.spans
    total = int((spans[:, 1] - spans[:, 0]).sum())
    count = max(1, min(threads, total // _PER_THREAD))
    if count == 1:
        return [whole]
    shares = []
    for i in range(count):
        first, last = spans[0, 0] + total * i // count, spans[0, 0] + total * (i + 1) // count
        cut = np.clip(spans, first, last)
        inside = np.flatnonzero(cut[:, 0] < cut[:, 1])
        shares.append(Share(inside, np.ascontiguousarray(cut[inside])))
    return shares


@cache
def kernels() -> ModuleType | None:
    """The numba kernels; None, with a warning, where numba cannot be had."""
    try:
        return importlib.import_module("evomerge.merging.kernels")
    except ImportError as error:
        warnings.warn(
            f"numba cannot be imported ({error}): merging on the CPU is several times slower",
            stacklevel=2,
        )
        return None
