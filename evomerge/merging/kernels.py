"""Merging on the CPU in one pass over memory: nothing is read twice, nothing big is allocated.

Every kernel walks through its tensors in tiles that stay inside a core's first cache: convert to
float32, subtract the base, sparsify, weigh, agree on signs, add, cast, write. Sources are read
where they lie, in their own dtype, so a mapped file costs no memory. Entries are computed alone
(but for sums of magnitudes), so neither tiles nor threads change a bit of the result.

numba compiles them once and keeps the machine code on disk. It knows that to be old by the file of
a kernel alone, not by those of what it calls: so all of them stand in one file. Loops are written
as numba vectorises them: over whole short arrays, without branches that leave.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2  # how entries are stored
ALL, BY_MAGNITUDE, BY_DRAW, BY_RANK = 0, 1, 2, 3  # which entries of a task vector take part
SUM, AGREE, AGREE_NORMALISED = 0, 1, 2  # whether signs have to agree, and who is counted

MODES = {"all": ALL, "magnitude": BY_MAGNITUDE, "draw": BY_DRAW, "rank": BY_RANK}
CONSENSUS = {"sum": SUM, "agree": AGREE, "agree_normalised": AGREE_NORMALISED}

_TILE = 2048  # entries: some task vectors as float32 stay in a core's own caches
_EXPONENT = np.uint32(0x7F800000)
_TOP = np.uint32(0x7F80)
_HALF_TO_FLOAT = np.float32(2.0**112)  # the difference of the exponents' biases, as a factor


def _to_pointer(typing_context: Any, address: Any) -> Any:
    """An address as a pointer that `carray` takes."""
    del typing_context

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


_pointer: Any = intrinsic(_to_pointer)


def _kernel(function: Any) -> Any:
    return njit(nogil=True, cache=True, error_model="numpy")(function)


def _summing_kernel(function: Any) -> Any:
    """Of a sum over a tile, whose order is the processor's choice."""
    return njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})(function)


# --- tiles ----------------------------------------------------------------------------------------


@_kernel
def _load(address: int, code: int, start: int, base: Any, out: Any) -> None:
    """Entries from `start` on as float32, less those of `base` (which may be zeros)."""
    if code == FLOAT32:
        floats = carray(_pointer(address + 4 * start), (out.size,), np.float32)
        for i in range(out.size):
            out[i] = floats[i] - base[i]
        return
    bits = carray(_pointer(address + 2 * start), (out.size,), np.uint16)
    if code == BFLOAT16:
        for i in range(out.size):
            value = np.uint32(np.uint32(bits[i]) << np.uint32(16)).view(np.float32)
            out[i] = value - base[i]
    else:
        for i in range(out.size):
            word = np.uint32(bits[i])
            shifted = np.uint32(np.uint32(word & np.uint32(0x7FFF)) << np.uint32(13))
            size = np.float32(shifted.view(np.float32) * _HALF_TO_FLOAT).view(np.uint32)
            sign = np.uint32(np.uint32(word & np.uint32(0x8000)) << np.uint32(16))
            out[i] = np.uint32(size | sign).view(np.float32) - base[i]


@_kernel
def _store(values: Any, address: int, code: int, start: int) -> Any:
    """Write float32 values, rounded to the nearest even; whether some are not finite."""
    bad = np.uint32(0)
    if code == FLOAT32:
        floats = carray(_pointer(address + 4 * start), (values.size,), np.float32)
        for i in range(values.size):
            word = np.float32(values[i]).view(np.uint32)
            bad = np.uint32(bad | np.uint32(np.uint32(word & _EXPONENT) == _EXPONENT))
            floats[i] = values[i]
        return bad
    bits = carray(_pointer(address + 2 * start), (values.size,), np.uint16)
    if code == BFLOAT16:
        for i in range(values.size):
            word = np.float32(values[i]).view(np.uint32)
            odd = np.uint32(np.uint32(word >> np.uint32(16)) & np.uint32(1))
            raised = np.uint32(np.uint32(word + np.uint32(0x7FFF)) + odd)
            rounded = np.uint32(raised >> np.uint32(16))
            # NaN would round to a number: keep it a NaN.
            is_nan = (word & np.uint32(0x7FFFFFFF)) > _EXPONENT
            rounded = np.uint32(0x7FC0) if is_nan else rounded
            bad = np.uint32(bad | np.uint32(np.uint32(rounded & _TOP) == _TOP))
            bits[i] = np.uint16(rounded)
        return bad
    for i in range(values.size):
        word = np.float32(values[i]).view(np.uint32)
        sign = np.uint32(np.uint32(word >> np.uint32(16)) & np.uint32(0x8000))
        word = np.uint32(word & np.uint32(0x7FFFFFFF))
        odd = np.uint32(np.uint32(word >> np.uint32(13)) & np.uint32(1))
        raised = np.uint32(np.uint32(word + np.uint32(0xC8000FFF)) + odd)
        half = np.uint32(raised >> np.uint32(13))
        # Below 2^-14 adding a half shifts the mantissa, and rounds it, to where it belongs.
        small = np.float32(np.uint32(word).view(np.float32) + np.float32(0.5)).view(np.uint32)
        small = np.uint32(small - np.uint32(0x3F000000))
        half = small if word < np.uint32(0x38800000) else half
        half = np.uint32(0x7C00) if word >= np.uint32(0x47800000) else half
        half = np.uint32(0x7E00) if word > _EXPONENT else half
        bad = np.uint32(bad | np.uint32(np.uint32(half & np.uint32(0x7C00)) == np.uint32(0x7C00)))
        bits[i] = np.uint16(half | sign)
    return bad


@_kernel
def _add_scaled(values: Any, factor: Any, total: Any) -> None:
    for i in range(total.size):
        total[i] += factor * values[i]


@_kernel
def _keep_by_magnitude(tau: Any, low: Any, high: Any, factor: Any) -> None:
    """Weigh what has low <= |tau| <= high; the rest becomes 0."""
    for i in range(tau.size):
        size = abs(tau[i])
        kept = (size >= low) & (size <= high)
        tau[i] = tau[i] * factor if kept else np.float32(0)


@_kernel
def _keep_by_draw(tau: Any, draws: int, start: int, level: Any, factor: Any) -> None:
    """Weigh what has a draw below the level."""
    drawn = carray(_pointer(draws + 2 * start), (tau.size,), np.int16)
    for i in range(tau.size):
        tau[i] = tau[i] * factor if np.float32(drawn[i]) < level else np.float32(0)


@_kernel
def _keep_by_rank(
    tau: Any, draws: int, ranks: int, start: int, levels: Any, factor: Any, divide: bool
) -> None:
    """Weigh what has a draw below its own level: levels[0] + levels[1] x rank.

    divide: by the share of draws that are below that level, each entry's own probability.
    """
    drawn = carray(_pointer(draws + 2 * start), (tau.size,), np.int16)
    ranked = carray(_pointer(ranks + 2 * start), (tau.size,), np.int16)
    if divide:
        for i in range(tau.size):
            level = levels[0] + levels[1] * np.float32(ranked[i])
            made_up = tau[i] * factor * (np.float32(65536) / (level + np.float32(32768)))
            tau[i] = made_up if np.float32(drawn[i]) < level else np.float32(0)
        return
    for i in range(tau.size):
        level = levels[0] + levels[1] * np.float32(ranked[i])
        tau[i] = tau[i] * factor if np.float32(drawn[i]) < level else np.float32(0)


@_kernel
def _sparse_bfloat16(
    tau: Any, base: Any, source: Any, start: int, mode: int, limits: Any, factor: Any
) -> None:
    """As `_sparse`, in one loop for what is asked for most."""
    bits = carray(_pointer(source[0] + 2 * start), (tau.size,), np.uint16)
    if mode == BY_MAGNITUDE:
        low, high = limits[0], limits[1]
        for i in range(tau.size):
            value = np.uint32(np.uint32(bits[i]) << np.uint32(16)).view(np.float32) - base[i]
            size = abs(value)
            tau[i] = value * factor if (size >= low) & (size <= high) else np.float32(0)
        return
    drawn = carray(_pointer(source[2] + 2 * start), (tau.size,), np.int16)
    level = limits[0]
    for i in range(tau.size):
        value = np.uint32(np.uint32(bits[i]) << np.uint32(16)).view(np.float32) - base[i]
        tau[i] = value * factor if np.float32(drawn[i]) < level else np.float32(0)


@_kernel
def _sparse(
    tau: Any,
    base: Any,
    source: Any,
    start: int,
    mode: int,
    limits: Any,
    factor: Any,
    divide: bool,
) -> None:
    """A tile of a weighted, sparsified task vector."""
    if source[1] == BFLOAT16 and mode in (BY_MAGNITUDE, BY_DRAW):
        _sparse_bfloat16(tau, base, source, start, mode, limits, factor)
        return
    _load(source[0], source[1], start, base, tau)
    if mode == BY_MAGNITUDE:
        _keep_by_magnitude(tau, limits[0], limits[1], factor)
    elif mode == BY_DRAW:
        _keep_by_draw(tau, source[2], start, limits[0], factor)
    elif mode == BY_RANK:
        _keep_by_rank(tau, source[2], source[3], start, limits, factor, divide)
    elif factor != 1:
        for i in range(tau.size):
            tau[i] *= factor


@_summing_kernel
def _sum_of_sizes(tau: Any) -> Any:
    total = np.float32(0)
    for i in range(tau.size):
        total += abs(tau[i])
    return np.float64(total)


# --- whole tensors --------------------------------------------------------------------------------


@_kernel
def weighted_sum(sources: Any, weights: Any, out: Any, spans: Any) -> int:
    """Write sum_k weights[k] x_k; whether some of it is not finite.

    Args:
        sources: (num_sources, 2) int64, address and code.
        weights: (num_sources, num_spans) float32.
        out: (2,) int64, address and code.
        spans: (num_spans, 2) int64, first entry and the one after the last.
    """
    bad = 0
    values, total = np.empty(_TILE, np.float32), np.empty(_TILE, np.float32)
    zeros = np.zeros(_TILE, np.float32)
    for span in range(len(spans)):
        for start in range(spans[span, 0], spans[span, 1], _TILE):
            size = min(_TILE, spans[span, 1] - start)
            some, merged = values[:size], total[:size]
            zero = zeros[:size]
            _load(sources[0, 0], sources[0, 1], start, zero, merged)
            first = weights[0, span]
            for i in range(size):
                merged[i] *= first
            for k in range(1, len(sources)):
                _load(sources[k, 0], sources[k, 1], start, zero, some)
                _add_scaled(some, weights[k, span], merged)
            bad |= _store(merged, out[0], out[1], start)
    return bad


@_kernel
def kept_mass(
    base: Any, sources: Any, mode: int, limits: Any, spans: Any, before: Any, after: Any
) -> None:
    """The sums of |tau| of all entries and of those that are kept; see `add_task_vectors`.

    before, after: (num_sources, num_spans) float64, set.
    """
    taus, origins = np.empty(_TILE, np.float32), np.empty(_TILE, np.float32)
    zeros, one = np.zeros(_TILE, np.float32), np.float32(1)
    for k in range(len(sources)):
        for span in range(len(spans)):
            before[k, span] = after[k, span] = 0
            for start in range(spans[span, 0], spans[span, 1], _TILE):
                size = min(_TILE, spans[span, 1] - start)
                tau, origin = taus[:size], origins[:size]
                _load(base[0], base[1], start, zeros[:size], origin)
                _sparse(tau, origin, sources[k], start, ALL, limits[k, span], one, False)
                before[k, span] += _sum_of_sizes(tau)
                _sparse(tau, origin, sources[k], start, mode, limits[k, span], one, False)
                after[k, span] += _sum_of_sizes(tau)


@_kernel
def _combine(
    each: Any, taus: Any, counted: Any, how: int, scale: Any, fill: Any, origin: Any
) -> Any:
    """Add a tile's task vectors to the base; how many sums cancelled, and their signs' sum."""
    cancelled, tally = np.int32(0), np.int32(0)
    if how == SUM:
        for i in range(origin.size):
            total = np.float32(0)
            for k in range(len(each)):
                total += taus[k * _TILE + i]
            origin[i] += scale * total
        return np.int64(0), np.int64(0)
    if how == AGREE:
        for i in range(origin.size):
            total = np.float32(0)
            for k in range(len(each)):
                total += taus[k * _TILE + i]
            filled = fill if total == 0 else np.float32(-1)
            sign = np.float32(1) if total > 0 else filled
            agreed = np.float32(0)
            for k in range(len(each)):
                tau = taus[k * _TILE + i]
                agrees = tau * sign > 0
                agreed += tau if agrees else np.float32(0)
            origin[i] += scale * agreed
            tally = np.int32(tally + np.int32(total > 0))
            tally = np.int32(tally - np.int32(total < 0))
            # What agrees with the sign that fills a zero sum would not be there if nothing was.
            cancelled = np.int32(cancelled + np.int32((total == 0) & (agreed != 0)))
        return np.int64(cancelled), np.int64(tally)
    for i in range(origin.size):
        total = np.float32(0)
        for k in range(len(each)):
            total += taus[k * _TILE + i]
        filled = fill if total == 0 else np.float32(-1)
        sign = np.float32(1) if total > 0 else filled
        agreed, took = np.float32(0), np.float32(0)
        for k in range(len(each)):
            tau = taus[k * _TILE + i]
            agrees = tau * sign > 0
            agreed += tau if agrees else np.float32(0)
            took += counted[k] if agrees else np.float32(0)
        origin[i] += scale * (agreed / (took if took != 0 else np.float32(1)))
        tally = np.int32(tally + np.int32(total > 0))
        tally = np.int32(tally - np.int32(total < 0))
        # What agrees with the sign that fills a zero sum would not be there if nothing was.
        cancelled = np.int32(cancelled + np.int32((total == 0) & (agreed != 0)))
    return np.int64(cancelled), np.int64(tally)


@_kernel
def add_task_vectors(
    each: Any,
    base: Any,
    sources: Any,
    mode: int,
    limits: Any,
    factors: Any,
    divide: bool,
    how: int,
    counted: Any,
    scale: Any,
    fills: Any,
    out: Any,
    spans: Any,
    tallies: Any,
    is_cancelled: Any,
) -> int:
    """Write W_0 + scale x what the weighted, sparsified task vectors are together.

    Returns whether an entry is not finite.

    each: a tuple with an entry for each source. Its length is part of its type, so each number of
        sources has a kernel of its own: loops over them are unrolled, sums stay in registers.
    base, out: (2,) int64, address and code.
    sources: (num_sources, 4) int64: address, code, address of the draws, of the ranks
        (int16); the last two are 0 where the mode has none.
    mode: ALL, BY_MAGNITUDE, BY_DRAW or BY_RANK.
    limits: (num_sources, num_spans, 2) float32: lowest and highest magnitude; or the level of
        the draws; or the level of rank 0 and what a rank adds to it.
    factors: (num_sources, num_spans) float32, of what is kept.
    divide: by each entry's own probability (BY_RANK).
    how: SUM, AGREE or AGREE_NORMALISED.
    counted: (num_sources,) float32, what each source adds to the divisor.
    scale: float32.
    fills: (num_spans,) float32, the sign where a sum is 0.
    spans: (num_spans, 2) int64, first entry and the one after the last.
    tallies: (num_spans,) int64, set: the sum of all signs.
    is_cancelled: (num_tiles,) bool, set: whether some of a tile's sums are 0 although a summand
        is not; see `tiles_of`.
    """
    num_sources, bad, tile = len(each), 0, 0
    taus = np.empty(num_sources * _TILE, np.float32)
    origins, zeros = np.empty(_TILE, np.float32), np.zeros(_TILE, np.float32)
    for span in range(len(spans)):
        tallies[span] = 0
        for start in range(spans[span, 0], spans[span, 1], _TILE):
            size = min(_TILE, spans[span, 1] - start)
            origin = origins[:size]
            _load(base[0], base[1], start, zeros[:size], origin)
            for k in range(num_sources):
                tau, limit = taus[k * _TILE : k * _TILE + size], limits[k, span]
                factor = factors[k, span]
                _sparse(tau, origin, sources[k], start, mode, limit, factor, divide)
            cancelled, tally = _combine(each, taus, counted, how, scale, fills[span], origin)
            bad |= _store(origin, out[0], out[1], start)
            tallies[span] += tally
            is_cancelled[tile] = cancelled > 0
            tile += 1
    return bad


def tiles_of(spans: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The tiles that spans are cut into, (num_tiles, 2), and the number of each one's span."""
    counts = -((spans[:, 0] - spans[:, 1]) // _TILE)
    span = np.repeat(np.arange(len(spans)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    start = spans[span, 0] + (np.arange(counts.sum()) - first) * _TILE
    return np.stack([start, np.minimum(start + _TILE, spans[span, 1])], 1), span


# --- counting sort --------------------------------------------------------------------------------


@_kernel
def count_upper(bits: Any, counts: Any) -> None:
    """Add to counts how many of some uint32 have each upper half."""
    for i in range(bits.size):
        counts[np.int64(bits[i] >> np.uint32(16))] += 1


@_kernel
def scatter_lower(bits: Any, filled: Any, lower: Any) -> None:
    """Put each lower half (uint16) where its upper half is filled to, and fill on."""
    for i in range(bits.size):
        upper = np.int64(bits[i] >> np.uint32(16))
        lower[filled[upper]] = np.uint16(bits[i] & np.uint32(0xFFFF))
        filled[upper] += 1


def address_of(tensor: Any) -> tuple[int, int] | None:
    """Where a tensor's entries lie and how they are stored; None if the kernels cannot read it."""
    codes = {"torch.float32": FLOAT32, "torch.bfloat16": BFLOAT16, "torch.float16": FLOAT16}
    code = codes.get(str(tensor.dtype))
    if code is None or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return None
    return tensor.data_ptr(), code
