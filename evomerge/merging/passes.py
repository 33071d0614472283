"""One pass over memory for a block: the numba kernels where they can go, else torch.

Both compute the same thing entry by entry; the last bit may differ between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.merging import eager
from evomerge.merging.reads import Models, Share, Told, whole_share

if TYPE_CHECKING:
    from torch import Tensor

Mode = Literal["all", "at_least", "magnitude", "draw", "rank"]
Consensus = Literal["sum", "agree", "agree_normalised"]


@dataclass
class Selection:
    """Which entries of the task vectors take part, and what they are multiplied by.

    Attributes:
        mode: by what entries are chosen.
        limits: (sources, segments, 2): lowest magnitude; or lowest and highest; or the draws'
            level; or the level at rank 0 and what a rank adds to it.
        factors: (sources, segments).
        divide: by each entry's own probability, for mode rank.
    """

    mode: Mode
    limits: NDArray[np.floating[Any]]
    factors: NDArray[np.floating[Any]]
    divide: bool = False


def everything(factors: NDArray[np.floating[Any]]) -> Selection:
    """All entries, multiplied by factors, (sources, segments)."""
    return Selection("all", np.zeros((*factors.shape, 2), np.float32), factors)


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


def weighted_sum(models: Models, weights: NDArray[np.floating[Any]], out: Tensor) -> bool | None:
    """Write sum_k weights[k] sources[k]; whether it is finite, None if nobody looked.

    The models have no base, the weights the shape (sources, segments), out is of shape (numel,), of
    any floating dtype.
    """
    fused = models.kernels_for(out)
    if fused is None:
        eager.weighted_sum(models, weights, out)
        return None
    plain = Agreement("sum", np.ones(len(models.sources)), 1.0)
    return _fused(fused, models, everything(weights), plain, out)


def add_task_vectors(
    models: Models, selection: Selection, agreement: Agreement, out: Tensor
) -> bool | None:
    """Write W_0 + scale x what the chosen entries of the task vectors are together.

    `out` is of shape (numel,), of any floating dtype. Returns whether all is finite; None if nobody
    looked.
    """
    fused = models.kernels_for(out)
    if fused is None:
        eager.add_task_vectors(models, selection, agreement, out)
        return None
    return _fused(fused, models, selection, agreement, out)


def kept_mass(
    models: Models, selection: Selection
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sums of |tau| of all entries and of the chosen ones, each (sources, segments)."""
    fused = models.kernels_for()
    if fused is None:
        return eager.kept_mass(models, selection)
    undivided = replace(selection, divide=False)
    told = _told(fused, models, undivided, at_once=1)
    before, after = np.zeros((2, len(models.sources), len(models.segments)))
    # On one thread: the order of a sum must not depend on how many there are.
    share = whole_share(models.segments)
    fused.kept_mass(
        told.each,
        told.stored,
        told.mode,
        told.base,
        told.sources,
        told.arranged(selection.limits, share),
        np.ones((len(models.segments), len(models.sources)), np.float32),
        share.spans,
        before,
        after,
    )
    return before, after


# --- the kernels ----------------------------------------------------------------------------------


def _told(
    fused: ModuleType, models: Models, selection: Selection, at_once: int | None = None
) -> Told:
    mode = fused.BY_RANK_DIVIDED if selection.divide else fused.MODES[selection.mode]
    return models.told(fused, mode, at_once or fused.AT_ONCE[selection.mode])


def _fused(
    fused: ModuleType, models: Models, selection: Selection, agreement: Agreement, out: Tensor
) -> bool:
    """As `add_task_vectors`, by the kernel; without a base, of the sources themselves."""
    told = _told(fused, models, selection)
    consensus = fused.ALONE if models.base is None else fused.CONSENSUS[agreement.consensus]
    run = partial(
        _run,
        fused,
        told,
        (0,) * consensus,
        selection,
        told.arranged(agreement.counted),
        np.float32(agreement.scale),
        np.array(fused.address_of(out), np.int64),
    )
    shares, count = models.shares(), len(models.segments)
    plus = np.ones(count, np.float32)
    done = _each(partial(run, fills=plus), shares)
    bad = any(one.bad for one in done)
    if agreement.zero_sum == "majority" and agreement.consensus != "sum":
        # Zero sums took the sign + so far, which is right where most signs are.
        tally = np.zeros(count, np.int64)
        for share, one in zip(shares, done, strict=True):
            np.add.at(tally, share.segments, one.tallies)
        fills = np.sign(tally).astype(np.float32)
        for share, one in zip(shares, done, strict=True):
            again = one.cancelled(share, fills < 1)
            if again is not None:
                bad |= run(again, fills=fills).bad
    return not bad


@dataclass(frozen=True)
class _Done:
    """What a kernel has found: whether something is not finite, the signs, the zero sums."""

    bad: bool
    tallies: NDArray[np.int64]  # (spans,) the sum of all signs
    has_cancelled: NDArray[np.bool_]  # (tiles,)

    def cancelled(self, share: Share, wrong: NDArray[np.bool_]) -> Share | None:
        """The tiles with sums that cancelled, in those segments that are wrong; None if none."""
        if not self.has_cancelled.any():
            return None
        tiles, span = share.tiles
        segments = share.segments[span]
        chosen = self.has_cancelled & wrong[segments]
        return Share(segments[chosen], tiles[chosen]) if chosen.any() else None


def _run(
    fused: ModuleType,
    told: Told,
    consensus: tuple[int, ...],
    selection: Selection,
    counted: NDArray[np.float32],
    scale: np.float32,
    target: NDArray[np.int64],
    share: Share,
    *,
    fills: NDArray[np.float32],
) -> _Done:
    """Let the kernel write a share; fills: (segments,)."""
    tallies = np.empty(len(share.spans), np.int64)
    has_cancelled = np.empty(len(share.tiles[0]), np.bool_)
    bad = fused.add_task_vectors(
        told.each,
        told.stored,
        told.mode,
        consensus,
        told.base,
        told.sources,
        told.arranged(selection.limits, share),
        told.arranged(selection.factors, share),
        counted,
        scale,
        fills if share.is_whole else fills[share.segments],
        target,
        share.spans,
        tallies,
        has_cancelled,
    )
    return _Done(bool(bad), tallies, has_cancelled)


def _each(function: partial[_Done], shares: Sequence[Share]) -> list[_Done]:
    if len(shares) == 1:
        return [function(shares[0])]
    with ThreadPoolExecutor(len(shares)) as threads:  # the kernels let go of the interpreter
        return list(threads.map(function, shares))
