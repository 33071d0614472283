"""One pass over memory for a block: the numba kernels where they can go, else torch.

Both compute the same thing entry by entry; the last bit may differ between them.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from evomerge.merging import eager

if TYPE_CHECKING:
    from torch import Tensor

Mode = Literal["all", "magnitude", "draw", "rank"]
Consensus = Literal["sum", "agree", "agree_normalised"]
Result = TypeVar("Result")

_PER_THREAD = 2**20  # entries that are worth a thread


@dataclass
class Selection:
    """Which entries of the task vectors take part, and what they are multiplied by.

    Attributes:
        mode: by what entries are chosen.
        limits: (sources, segments, 2): lowest and highest magnitude; or the draws' level; or the
            level at rank 0 and what a rank adds to it.
        factors: (sources, segments).
        draws, ranks: for each source an int16 tensor, shape (numel,).
        divide: by each entry's own probability, for mode rank.
    """

    mode: Mode
    limits: NDArray[np.floating[Any]]
    factors: NDArray[np.floating[Any]]
    draws: Sequence[Tensor] = field(default_factory=tuple)
    ranks: Sequence[Tensor] = field(default_factory=tuple)
    divide: bool = False


@dataclass(frozen=True)
class Agreement:
    """How task vectors become one.

    Attributes:
        consensus: whether only entries of the elected sign count, and are divided by who counts.
        counted: (sources,), what each source adds to the divisor.
        scale: of the sum.
        zero_sum: the sign that a sum of zero takes: plus, or that of most entries of its tensor.
    """

    consensus: Consensus
    counted: NDArray[np.floating[Any]]
    scale: float
    zero_sum: Literal["plus", "majority"] = "plus"


def weighted_sum(
    sources: Sequence[Tensor],
    weights: NDArray[np.floating[Any]],
    out: Tensor,
    segments: Sequence[slice],
) -> bool | None:
    """Write sum_k weights[k] sources[k]; whether it is finite, None if nobody looked.

    All tensors are of shape (numel,), of any floating dtype. The weights have shape (sources,
    segments), and the segments are where each of a model's tensors lies.
    """
    fused = _kernels_for([*sources, out])
    if fused is None:
        eager.weighted_sum(sources, weights, out, segments)
        return None
    everything = Selection("all", np.zeros((*weights.shape, 2)), weights)
    plain = Agreement("sum", np.ones(len(sources)), 1.0)
    return _fused(fused, None, sources, everything, plain, out, segments)


def add_task_vectors(
    base: Tensor,
    sources: Sequence[Tensor],
    selection: Selection,
    agreement: Agreement,
    out: Tensor,
    segments: Sequence[slice],
) -> bool | None:
    """Write W_0 + scale x what the chosen entries of the task vectors are together.

    All tensors are of shape (numel,), of any floating dtype; `segments` are where each model's
    tensor lies in them. Returns whether all is finite; None if nobody looked.
    """
    fused = _kernels_for([base, *sources, out])
    if fused is None:
        eager.add_task_vectors(base, sources, selection, agreement, out, segments)
        return None
    return _fused(fused, base, sources, selection, agreement, out, segments)


def _fused(
    fused: ModuleType,
    base: Tensor | None,
    sources: Sequence[Tensor],
    selection: Selection,
    agreement: Agreement,
    out: Tensor,
    segments: Sequence[slice],
) -> bool:
    """As `add_task_vectors`, by the kernel; without a base, of the sources themselves."""
    given = _Given.of(fused, base, sources, selection)
    target = np.array(fused.address_of(out), np.int64)
    consensus = fused.ALONE if base is None else fused.CONSENSUS[agreement.consensus]
    counted, scale = given.padded(agreement.counted), np.float32(agreement.scale)

    def run(share: _Share, fills: NDArray[np.float32]) -> tuple[int, _Share, NDArray[np.int64]]:
        """Whether something is not finite, the tiles with sums that cancelled, the tallies."""
        tiles, span = fused.tiles_of(share.spans)
        tallies, is_cancelled = np.empty(len(share.spans), np.int64), np.empty(len(tiles), np.bool_)
        bad = fused.add_task_vectors(
            given.each,
            given.stored,
            given.mode,
            (0,) * consensus,
            given.base,
            given.sources,
            given.padded(share.of(selection.limits)),
            given.padded(share.of(selection.factors)),
            counted,
            scale,
            fills[share.segments],
            target,
            share.spans,
            tallies,
            is_cancelled,
        )
        again = _Share(share.segments[span[is_cancelled]], tiles[is_cancelled])
        return int(bad), again, tallies

    plus = np.ones(len(segments), np.float32)
    tally = np.zeros(len(segments), np.int64)
    bad, again = 0, []
    for share, noticed in zip(
        _shares(segments), _run(partial(run, fills=plus), segments), strict=True
    ):
        bad |= noticed[0]
        again.append(noticed[1])
        np.add.at(tally, share.segments, noticed[2])
    if agreement.zero_sum == "majority" and agreement.consensus != "sum":
        # Zero sums took the sign + so far, which is right where most signs are.
        fills = np.sign(tally).astype(np.float32)
        for share in again:
            wrong = fills[share.segments] < 1
            if wrong.any():
                bad |= run(_Share(share.segments[wrong], share.spans[wrong]), fills)[0]
    return not bad


def kept_mass(
    base: Tensor, sources: Sequence[Tensor], selection: Selection, segments: Sequence[slice]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sums of |tau| of all entries and of the chosen ones, each (sources, segments)."""
    fused = _kernels_for([base, *sources])
    if fused is None:
        return eager.kept_mass(base, sources, selection, segments)
    undivided = replace(selection, divide=False)
    given = _Given.of(fused, base, sources, undivided, at_once=1)
    before, after = np.zeros((2, len(sources), len(segments)))
    # On one thread: the order of a sum must not depend on how many there are.
    share = _Share(np.arange(len(segments)), _spans(segments))
    fused.kept_mass(
        given.each,
        given.stored,
        given.mode,
        given.base,
        given.sources,
        given.padded(share.of(selection.limits)),
        np.ones((len(segments), len(sources)), np.float32),
        share.spans,
        before,
        after,
    )
    return before, after


@dataclass(frozen=True)
class _Given:
    """What the kernels are told of the models.

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
    def of(
        cls,
        fused: ModuleType,
        base: Tensor | None,
        sources: Sequence[Tensor],
        selection: Selection,
        at_once: int | None = None,
    ) -> _Given:
        origin = (0, fused.NOTHING) if base is None else fused.address_of(base)
        if at_once is None:
            turns = -(-len(sources) // fused.AT_ONCE[selection.mode])
            at_once = -(-len(sources) // turns)
        pointers = np.zeros((4, -(-len(sources) // at_once) * at_once), np.int64)
        for k, source in enumerate(sources):
            pointers[0, k], pointers[3, k] = fused.address_of(source)
            if selection.draws:
                pointers[1, k] = selection.draws[k].data_ptr()
            if selection.ranks:
                pointers[2, k] = selection.ranks[k].data_ptr()
        pointers[:, len(sources) :] = pointers[:, :1]
        if base is not None:
            pointers[::3, len(sources) :] = np.array(origin)[:, None]
        codes = set(pointers[3].tolist())
        mode = fused.BY_RANK_DIVIDED if selection.divide else fused.MODES[selection.mode]
        return cls(
            each=((0,) * at_once, (np.float32(0),) * at_once),
            stored=(0,) * (codes.pop() if len(codes) == 1 else fused.FLOAT32),
            mode=(0,) * mode,
            base=np.array(origin, np.int64),
            sources=pointers,
        )

    def padded(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Values of sources, (sources, ...), as (..., sources), with zeros for those that fill."""
        padded = np.zeros((*values.shape[1:], self.sources.shape[1]), np.float32)
        padded[..., : len(values)] = np.moveaxis(values, 0, -1)
        return padded


# --- where it runs --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Share:
    """What one thread does: spans of entries, and the segment that each lies in."""

    segments: NDArray[np.int64]
    spans: NDArray[np.int64]  # (spans, 2)

    def of(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """The values of the spans' segments, from (sources, segments, ...)."""
        return np.ascontiguousarray(values[:, self.segments], np.float32)


def _spans(segments: Sequence[slice]) -> NDArray[np.int64]:
    return np.array([(segment.start, segment.stop) for segment in segments], np.int64)


def _shares(segments: Sequence[slice]) -> list[_Share]:
    """The entries in equal shares, one for each thread that torch would use."""
    import torch

    spans = _spans(segments)
    total = int((spans[:, 1] - spans[:, 0]).sum())
    count = max(1, min(torch.get_num_threads(), total // _PER_THREAD))
    if count == 1:
        return [_Share(np.arange(len(segments)), spans)]
    shares = []
    for i in range(count):
        first, last = spans[0, 0] + total * i // count, spans[0, 0] + total * (i + 1) // count
        cut = np.clip(spans, first, last)
        inside = np.flatnonzero(cut[:, 0] < cut[:, 1])
        shares.append(_Share(inside, np.ascontiguousarray(cut[inside])))
    return shares


def _run(function: Callable[[_Share], Result], segments: Sequence[slice]) -> list[Result]:
    shares = _shares(segments)
    if len(shares) == 1:
        return [function(shares[0])]
    with ThreadPoolExecutor(len(shares)) as threads:  # the kernels let go of the interpreter
        return list(threads.map(function, shares))


def _kernels_for(tensors: Sequence[Tensor]) -> ModuleType | None:
    """The kernels, if they are there and can read and write these tensors."""
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return None
    fused = kernels()
    readable = fused is not None and all(fused.address_of(tensor) for tensor in tensors)
    return fused if readable else None


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
