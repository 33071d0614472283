"""Merging on the CPU in one pass over memory: nothing is read twice, nothing big is allocated.

The kernel walks through its tensors in tiles that stay inside a core's first cache. For each entry
it reads all models at once, in their own dtype and where they lie, so that a mapped file costs no
memory and the processor fetches all of them ahead: convert to float32, subtract the base, sparsify,
weigh, agree on signs, add. Then the tile is cast and written. Entries are computed alone (but for
sums of magnitudes), so neither tiles nor threads change a bit of the result.

numba compiles a kernel when it is first asked for and keeps the machine code on disk. It knows that
to be old by the file of the kernel alone, not by those of what it calls: so all of them stand in
one file. A number that the compiler has to know, such as the mode, travels as a tuple of that
length: lengths are part of a type, and each type has machine code of its own, without branches.
Loops are written as numba vectorises them: over whole short arrays, without branches that leave.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

NOTHING, FLOAT32, BFLOAT16, FLOAT16 = -1, 0, 1, 2  # how entries are stored
# Which entries of a task vector take part; "divided": by each entry's own probability.
ALL, AT_LEAST, BY_MAGNITUDE, BY_DRAW, BY_RANK, BY_RANK_DIVIDED = 0, 1, 2, 3, 4, 5
# Whether signs have to agree, and who is counted; the last: a sum that there is no base of.
SUM, AGREE, AGREE_NORMALISED, ALONE = 0, 1, 2, 3

MODES = {
    "all": ALL,
    "at_least": AT_LEAST,
    "magnitude": BY_MAGNITUDE,
    "draw": BY_DRAW,
    "rank": BY_RANK,
}
# How many sources are read at once: with more the compiler does not unroll the loop over them.
AT_ONCE = {"all": 8, "at_least": 8, "magnitude": 8, "draw": 8, "rank": 4}
CONSENSUS = {"sum": SUM, "agree": AGREE, "agree_normalised": AGREE_NORMALISED}

_TILE = 1024  # entries: some task vectors as float32 stay in a core's own caches
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


def _reader(number: Any) -> Any:
    """A function of an address and an index, which are not looked at: nothing stops the loop."""

    def read(typing_context: Any, address: Any, index: Any) -> Any:
        del typing_context

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            del signature
            stored = context.get_value_type(number)
            first = builder.inttoptr(arguments[0], stored.as_pointer())
            entry = builder.load(builder.gep(first, [arguments[1]]))
            entry.align = number.bitwidth // 8
            return entry

        return number(address, index), generate

    return intrinsic(read)


def _to_tuple(typing_context: Any, like: Any, address: Any) -> Any:
    """As many numbers as a tuple has, from memory."""
    del typing_context

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        stored = context.get_value_type(signature.return_type).as_pointer()
        entries = builder.load(builder.inttoptr(arguments[1], stored))
        entries.align = signature.return_type.dtype.bitwidth // 8
        return entries

    return like(like, address), generate


_tuple_at: Any = intrinsic(_to_tuple)
_float32_at, _uint16_at, _int16_at = map(_reader, (types.float32, types.uint16, types.int16))


def _kernel(function: Any) -> Any:
    return njit(nogil=True, cache=True, error_model="numpy")(function)


def _summing_kernel(function: Any) -> Any:
    """Of a sum over a tile, whose order is the processor's choice."""
    return njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})(function)


# --- tiles ----------------------------------------------------------------------------------------


@_kernel
def _from_bfloat16(word: Any) -> Any:
    return np.uint32(word << np.uint32(16)).view(np.float32)


@_kernel
def _from_float16(word: Any) -> Any:
    shifted = np.uint32(np.uint32(word & np.uint32(0x7FFF)) << np.uint32(13))
    size = np.float32(shifted.view(np.float32) * _HALF_TO_FLOAT).view(np.uint32)
    sign = np.uint32(np.uint32(word & np.uint32(0x8000)) << np.uint32(16))
    return np.uint32(size | sign).view(np.float32)


@_kernel
def _load(address: int, code: int, start: int, out: Any) -> None:
    """Entries from `start` on as float32; zeros where there is nothing."""
    if code == NOTHING:
        out[:] = 0
    elif code == FLOAT32:
        floats = carray(_pointer(address + 4 * start), (out.size,), np.float32)
        for i in range(out.size):
            out[i] = floats[i]
    else:
        bits = carray(_pointer(address + 2 * start), (out.size,), np.uint16)
        if code == BFLOAT16:
            for i in range(out.size):
                out[i] = _from_bfloat16(np.uint32(bits[i]))
        else:
            for i in range(out.size):
                out[i] = _from_float16(np.uint32(bits[i]))


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


# --- some sources at a time -----------------------------------------------------------------------


@_kernel
def _entry(stored: Any, address: int, i: int) -> Any:
    """An entry as float32."""
    if len(stored) == FLOAT32:
        return _float32_at(address, i)
    word = np.uint32(_uint16_at(address, i))
    return _from_bfloat16(word) if len(stored) == BFLOAT16 else _from_float16(word)


@_kernel
def _summand(stored: Any, mode: Any, some: Any, k: int, i: int, origin: Any) -> Any:
    """Entry i of a weighted, sparsified task vector; `origin` is the base's."""
    addresses, draws, ranks, firsts, seconds, factors, _ = some
    tau, factor = np.float32(_entry(stored, addresses[k], i) - origin), factors[k]
    if len(mode) == ALL:
        return tau * factor
    if len(mode) == AT_LEAST:
        return tau * factor if abs(tau) >= firsts[k] else np.float32(0)
    if len(mode) == BY_MAGNITUDE:
        size = abs(tau)
        return tau * factor if (size >= firsts[k]) & (size <= seconds[k]) else np.float32(0)
    drawn = np.float32(_int16_at(draws[k], i))
    if len(mode) == BY_DRAW:
        return tau * factor if drawn < firsts[k] else np.float32(0)
    rank = np.float32(_int16_at(ranks[k], i))
    level = np.float32(firsts[k] + seconds[k] * rank)
    if len(mode) == BY_RANK_DIVIDED:
        tau *= np.float32(65536) / (level + np.float32(32768))
    return tau * factor if drawn < level else np.float32(0)


@_kernel
def _sign(total: Any, fill: Any) -> Any:
    filled = fill if total == 0 else np.float32(-1)
    return np.float32(1) if total > 0 else filled


@_kernel
def _direction(total: Any) -> Any:
    return np.int32(np.int32(total > 0) - np.int32(total < 0))


@_kernel
def _is_cancelled(total: Any, agreed: Any) -> Any:
    """What agrees with the sign that fills a zero sum would not be there if nothing was."""
    return np.int32((total == 0) & (agreed != 0))


@_kernel
def _divided(consensus: Any, agreed: Any, took: Any) -> Any:
    if len(consensus) == AGREE_NORMALISED:
        return np.float32(agreed / (took if took != 0 else np.float32(1)))
    return agreed


@_kernel
def _agreed(
    stored: Any, mode: Any, some: Any, i: int, origin: Any, sign: Any, summed: Any, took: Any
) -> Any:
    """Add the summands of that sign, and what they count for."""
    for k in range(len(some[0])):
        tau = _summand(stored, mode, some, k, i, origin)
        agrees = tau * sign > 0
        summed += tau if agrees else np.float32(0)
        took += some[6][k] if agrees else np.float32(0)
    return summed, took


@_kernel
def _merge_all(
    stored: Any,
    mode: Any,
    consensus: Any,
    some: Any,
    start: int,
    fill: Any,
    scale: Any,
    origin: Any,
) -> Any:
    """All of a tile's task vectors added to its base, in one loop; returns as `_combine`."""
    cancelled, tally = np.int32(0), np.int32(0)
    for i in range(origin.size):
        total = np.float32(-0.0)  # which leaves a zero its sign
        for k in range(len(some[0])):
            total += _summand(stored, mode, some, k, start + i, origin[i])
        if len(consensus) == ALONE:
            origin[i] = total
        elif len(consensus) == SUM:
            origin[i] += scale * total
        else:
            sign = _sign(total, fill)
            agreed, took = _agreed(
                stored, mode, some, start + i, origin[i], sign, np.float32(0), np.float32(0)
            )
            origin[i] += scale * _divided(consensus, agreed, took)
            tally = np.int32(tally + _direction(total))
            cancelled = np.int32(cancelled + _is_cancelled(total, agreed))
    return np.int64(cancelled), np.int64(tally)


@_kernel
def _add_up(stored: Any, mode: Any, some: Any, start: int, origin: Any, total: Any) -> None:
    """Add the task vectors' entries to the total."""
    for i in range(total.size):
        summed = total[i]
        for k in range(len(some[0])):
            summed += _summand(stored, mode, some, k, start + i, origin[i])
        total[i] = summed


@_kernel
def _add_agreeing(
    stored: Any,
    mode: Any,
    some: Any,
    start: int,
    origin: Any,
    total: Any,
    fill: Any,
    agreed: Any,
    took: Any,
) -> None:
    """Add the entries that have the total's sign to `agreed`, what they count for to `took`."""
    for i in range(total.size):
        sign = _sign(total[i], fill)
        agreed[i], took[i] = _agreed(
            stored, mode, some, start + i, origin[i], sign, agreed[i], took[i]
        )


@_kernel
def _some(
    each: Any,
    k: int,
    count: int,
    span: int,
    sources: int,
    limits: int,
    factors: int,
    counted: int,
) -> Any:
    """What is known of the sources from the k-th of `count` on, from where it lies in memory."""
    whole, real = each
    row, limit = sources + 8 * k, limits + 4 * (2 * span * count + k)
    return (
        _tuple_at(whole, row),
        _tuple_at(whole, row + 8 * count),
        _tuple_at(whole, row + 16 * count),
        _tuple_at(real, limit),
        _tuple_at(real, limit + 4 * count),
        _tuple_at(real, factors + 4 * (span * count + k)),
        _tuple_at(real, counted + 4 * k),
    )


@_kernel
def _unify(stored: Any, sources: Any, start: int, buffers: Any, unified: Any) -> None:
    """Make a tile of those sources float32 that are stored otherwise than the others."""
    for k in range(sources.shape[1]):
        if sources[3, k] != len(stored):
            _load(sources[0, k], sources[3, k], start, buffers[k])
            unified[0, k] = buffers[k].ctypes.data - 4 * start


# --- whole tensors --------------------------------------------------------------------------------


@_summing_kernel
def _sum_of_sizes(taus: Any) -> Any:
    total = np.float32(0)
    for i in range(taus.size):
        total += abs(taus[i])
    return np.float64(total)


@_kernel
def kept_mass(
    each: Any,
    stored: Any,
    mode: Any,
    base: Any,
    sources: Any,
    limits: Any,
    ones: Any,
    spans: Any,
    before: Any,
    after: Any,
) -> None:
    """The sums of |tau| of all entries and of those that are kept; see `add_task_vectors`.

    each: for one source at a time.
    ones: (num_spans, num_sources) float32.
    before, after: (num_sources, num_spans) float64, set.
    """
    count = sources.shape[1]
    tiles, buffers = np.empty((2, _TILE), np.float32), np.empty((count, _TILE), np.float32)
    unified = sources.copy()
    source_at, limit_at, one_at = unified.ctypes.data, limits.ctypes.data, ones.ctypes.data
    before[:] = 0
    after[:] = 0
    for span in range(len(spans)):
        for start in range(spans[span, 0], spans[span, 1], _TILE):
            size = min(_TILE, spans[span, 1] - start)
            origin, total = tiles[0, :size], tiles[1, :size]
            _load(base[0], base[1], start, origin)
            _unify(stored, sources, start, buffers[:, :size], unified)
            for k in range(count):
                one = _some(each, k, count, span, source_at, limit_at, one_at, one_at)
                total[:] = 0
                _add_up(stored, (), one, start, origin, total)
                before[k, span] += _sum_of_sizes(total)
                total[:] = 0
                _add_up(stored, mode, one, start, origin, total)
                after[k, span] += _sum_of_sizes(total)


@_kernel
def _combine(consensus: Any, total: Any, agreed: Any, took: Any, scale: Any, origin: Any) -> Any:
    """Add a tile's task vectors to the base; how many sums cancelled, and their signs' sum."""
    cancelled, tally = np.int32(0), np.int32(0)
    for i in range(origin.size):
        if len(consensus) == ALONE:
            origin[i] = total[i]
        elif len(consensus) == SUM:
            origin[i] += scale * total[i]
        else:
            origin[i] += scale * _divided(consensus, agreed[i], took[i])
            tally = np.int32(tally + _direction(total[i]))
            cancelled = np.int32(cancelled + _is_cancelled(total[i], agreed[i]))
    return np.int64(cancelled), np.int64(tally)


@_kernel
def add_task_vectors(
    each: Any,
    stored: Any,
    mode: Any,
    consensus: Any,
    base: Any,
    sources: Any,
    limits: Any,
    factors: Any,
    counted: Any,
    scale: Any,
    fills: Any,
    out: Any,
    spans: Any,
    tallies: Any,
    is_cancelled: Any,
) -> Any:
    """Write W_0 + scale x what the weighted, sparsified task vectors are together.

    Returns whether an entry is not finite.

    each: two tuples, of int64 and of float32, with an entry for each source that is read at once,
        at most `AT_ONCE`. Their length divides the number of sources.
    stored: a tuple as long as the code of all sources; of FLOAT32 if they differ.
    mode: a tuple as long as ALL, AT_LEAST, BY_MAGNITUDE, BY_DRAW, BY_RANK or BY_RANK_DIVIDED.
    consensus: a tuple as long as SUM, AGREE, AGREE_NORMALISED or ALONE, which leaves out the scale.
    base, out: (2,) int64, address and code.
    sources: (4, num_sources) int64: address, address of the draws, of the ranks (int16; 0 where
        the mode has none), code.
    limits: (num_spans, 2, num_sources) float32: lowest magnitude; or lowest and highest; or the
        level of the draws; or the level of rank 0 and what a rank adds to it.
    factors: (num_spans, num_sources) float32, of what is kept.
    counted: (num_sources,) float32, what each source adds to the divisor.
    scale: float32.
    fills: (num_spans,) float32, the sign where a sum is 0.
    spans: (num_spans, 2) int64, first entry and the one after the last.
    tallies: (num_spans,) int64, set: the sum of all signs.
    is_cancelled: (num_tiles,) bool, set: whether some of a tile's sums are 0 although a summand
        is not; see `tiles_of`.
    """
    bad, tile, count, at_once = 0, 0, sources.shape[1], len(each[0])
    tiles, buffers = np.empty((4, _TILE), np.float32), np.empty((count, _TILE), np.float32)
    unified = sources.copy()
    source_at, limit_at = unified.ctypes.data, limits.ctypes.data
    factor_at, counted_at = factors.ctypes.data, counted.ctypes.data
    for span in range(len(spans)):
        tallies[span] = 0
        for start in range(spans[span, 0], spans[span, 1], _TILE):
            size = min(_TILE, spans[span, 1] - start)
            origin, total = tiles[0, :size], tiles[1, :size]
            agreed, took = tiles[2, :size], tiles[3, :size]
            _load(base[0], base[1], start, origin)
            _unify(stored, sources, start, buffers[:, :size], unified)
            if count == at_once:
                some = _some(each, 0, count, span, source_at, limit_at, factor_at, counted_at)
                cancelled, tally = _merge_all(
                    stored, mode, consensus, some, start, fills[span], scale, origin
                )
            else:
                total[:] = np.float32(-0.0)  # which leaves a zero its sign
                for k in range(0, count, at_once):
                    some = _some(each, k, count, span, source_at, limit_at, factor_at, counted_at)
                    _add_up(stored, mode, some, start, origin, total)
                if len(consensus) in (AGREE, AGREE_NORMALISED):
                    agreed[:] = 0
                    took[:] = 0
                    for k in range(0, count, at_once):
                        some = _some(
                            each, k, count, span, source_at, limit_at, factor_at, counted_at
                        )
                        _add_agreeing(
                            stored, mode, some, start, origin, total, fills[span], agreed, took
                        )
                cancelled, tally = _combine(consensus, total, agreed, took, scale, origin)
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


# --- entries with factors of their own ------------------------------------------------------------


@_kernel
def _add_agreed(stored: Any, some: Any, start: int, least: Any, scale: Any, origin: Any) -> None:
    """A tile of `add_agreed_sum`, all sources in one loop."""
    addresses, _, _, thresholds, _, _, counted = some
    for i in range(origin.size):
        total, votes = np.float32(0), np.float32(0)
        for k in range(len(addresses)):
            total += np.float32(_entry(stored, addresses[k], start + i) - origin[i])
        for k in range(len(addresses)):
            tau = np.float32(_entry(stored, addresses[k], start + i) - origin[i])
            others = thresholds[k] * abs(total - tau)
            votes += counted[k] if abs(tau) > others else np.float32(0)
        # The other zero leaves a zero its sign.
        origin[i] += scale * total if votes >= least else np.float32(-0.0)


@_kernel
def _add_agreed_of_many(
    sources: Any, some: Any, start: int, least: Any, scale: Any, origin: Any, tiles: Any, taus: Any
) -> None:
    """The same, one source after another; some: (thresholds, counted); tiles: (2, entries)."""
    thresholds, counted = some
    total, votes = tiles
    total[:] = 0
    votes[:] = 0
    for k in range(len(taus)):
        tau = taus[k]
        _load(sources[0, k], sources[3, k], start, tau)
        for i in range(origin.size):
            tau[i] -= origin[i]
            total[i] += tau[i]
    for k in range(len(taus)):
        tau, threshold, one = taus[k], thresholds[k], counted[k]
        for i in range(origin.size):
            others = threshold * abs(total[i] - tau[i])
            votes[i] += one if abs(tau[i]) > others else np.float32(0)
    for i in range(origin.size):
        origin[i] += scale * total[i] if votes[i] >= least else np.float32(-0.0)


@_kernel
def add_agreed_sum(
    each: Any,
    stored: Any,
    base: Any,
    sources: Any,
    thresholds: Any,
    counted: Any,
    least: Any,
    scale: Any,
    out: Any,
    spans: Any,
) -> Any:
    """Write W_0 + scale T where enough masks say so, else W_0; whether not all is finite.

    T is the sum of the task vectors, and mask k is |tau_k| > thresholds[k] |T - tau_k|.

    each: as of `add_task_vectors`, for all sources at once; for one where they are too many.
    stored, base, sources, out, spans: as of `add_task_vectors`.
    thresholds, counted: (num_sources,) float32; a mask adds what its source is counted for.
    least, scale: float32; the least sum of what is counted.
    """
    bad, count = 0, sources.shape[1]
    tiles, buffers = np.empty((3, _TILE), np.float32), np.empty((count, _TILE), np.float32)
    unified = sources.copy()
    source_at, threshold_at, counted_at = (
        unified.ctypes.data,
        thresholds.ctypes.data,
        counted.ctypes.data,
    )
    for span in range(len(spans)):
        for start in range(spans[span, 0], spans[span, 1], _TILE):
            size = min(_TILE, spans[span, 1] - start)
            origin = tiles[0, :size]
            _load(base[0], base[1], start, origin)
            if len(each[0]) == count:
                _unify(stored, sources, start, buffers[:, :size], unified)
                # What it has no use for is read from where something is.
                some = _some(each, 0, 0, 0, source_at, threshold_at, threshold_at, counted_at)
                _add_agreed(stored, some, start, least, scale, origin)
            else:
                _add_agreed_of_many(
                    sources,
                    (thresholds, counted),
                    start,
                    least,
                    scale,
                    origin,
                    tiles[1:, :size],
                    buffers[:, :size],
                )
            bad |= _store(origin, out[0], out[1], start)
    return bad


@_kernel
def _add_owned(
    stored: Any,
    addresses: Any,
    factors: Any,
    first: int,
    owner: Any,
    start: int,
    origin: Any,
    total: Any,
) -> None:
    """Set `total` to the moves that sources own, the first of them with number `first`."""
    for i in range(origin.size):
        moved = total[i]
        for k in range(len(addresses)):
            tau = np.float32(_entry(stored, addresses[k], start + i) - origin[i])
            moved = factors[k] * tau if owner[i] == np.uint8(first + k) else moved
        total[i] = moved


@_kernel
def add_owned(
    each: Any,
    stored: Any,
    base: Any,
    sources: Any,
    owners: int,
    factors: Any,
    out: Any,
    spans: Any,
) -> Any:
    """Write W_0 + factors[k] tau_k, k being the entry's owner; whether not all is finite.

    each, stored, base, sources, out, spans: as of `add_task_vectors`.
    owners: address of a uint8 for each entry: 1 + the owner's number, 0 where there is none.
    factors: (num_sources,) float32.
    """
    bad, count, at_once = 0, sources.shape[1], len(each[0])
    tiles, buffers = np.empty((2, _TILE), np.float32), np.empty((count, _TILE), np.float32)
    unified = sources.copy()
    source_at, factor_at = unified.ctypes.data, factors.ctypes.data
    for span in range(len(spans)):
        for start in range(spans[span, 0], spans[span, 1], _TILE):
            size = min(_TILE, spans[span, 1] - start)
            origin, total = tiles[0, :size], tiles[1, :size]
            owner = carray(_pointer(owners + start), (size,), np.uint8)
            _load(base[0], base[1], start, origin)
            _unify(stored, sources, start, buffers[:, :size], unified)
            total[:] = np.float32(-0.0)  # which leaves a zero its sign
            for k in range(0, count, at_once):
                addresses = _tuple_at(each[0], source_at + 8 * k)
                own = _tuple_at(each[1], factor_at + 4 * k)
                _add_owned(stored, addresses, own, k + 1, owner, start, origin, total)
            for i in range(size):
                origin[i] += total[i]
            bad |= _store(origin, out[0], out[1], start)
    return bad


@_kernel
def _add_weighed(
    stored: Any, addresses: Any, factors: int, width: int, start: int, origin: Any, total: Any
) -> None:
    """Add task vectors, each times its row of factors from that address on, to `total`."""
    for i in range(origin.size):
        summed = total[i]
        for k in range(len(addresses)):
            tau = np.float32(_entry(stored, addresses[k], start + i) - origin[i])
            summed += _float32_at(factors + 4 * width * k, i) * tau
        total[i] = summed


@_kernel
def add_by_column(
    each: Any, stored: Any, base: Any, sources: Any, factors: Any, out: Any, spans: Any
) -> Any:
    """Write W_0 + sum_k factors[k] tau_k, a factor for each column; whether not all is finite.

    each, stored, base, sources, out: as of `add_task_vectors`.
    factors: (num_sources, width) float32.
    spans: (num_spans, 2) int64, of whole rows.
    """
    bad, count, at_once, width = 0, sources.shape[1], len(each[0]), factors.shape[1]
    tiles, buffers = np.empty((2, _TILE), np.float32), np.empty((count, _TILE), np.float32)
    unified = sources.copy()
    source_at, factor_at = unified.ctypes.data, factors.ctypes.data
    for span in range(len(spans)):
        for row in range(spans[span, 0], spans[span, 1], width):
            for column in range(0, width, _TILE):
                size, start = min(_TILE, width - column), row + column
                origin, total = tiles[0, :size], tiles[1, :size]
                _load(base[0], base[1], start, origin)
                _unify(stored, sources, start, buffers[:, :size], unified)
                total[:] = np.float32(-0.0)  # which leaves a zero its sign
                for k in range(0, count, at_once):
                    addresses = _tuple_at(each[0], source_at + 8 * k)
                    own = factor_at + 4 * (width * k + column)
                    _add_weighed(stored, addresses, own, width, start, origin, total)
                for i in range(size):
                    origin[i] += total[i]
                bad |= _store(origin, out[0], out[1], start)
    return bad


@_kernel
def add_sparse(
    base: Any,
    starts: Any,
    stops: Any,
    places: Any,
    shifts: Any,
    factors: Any,
    out: Any,
    tiles: Any,
) -> Any:
    """Write W_0 + sum_k factors[k] shifts of k, which are sparse; whether not all is finite.

    base, out: as of `add_task_vectors`.
    starts, stops: (num_sources, tiles) int64, where each tile's shifts are.
    places: (shifts,) uint16, in the tile; shifts: (shifts,) float32.
    factors: (num_sources,) float32.
    tiles: first, the one after the last, and the entry after the last.
    """
    bad, buffer = 0, np.empty(_TILE, np.float32)
    for tile in range(tiles[0], tiles[1]):
        start = tile * _TILE
        origin = buffer[: min(_TILE, tiles[2] - start)]
        _load(base[0], base[1], start, origin)
        for k in range(len(factors)):
            factor = factors[k]
            for j in range(starts[k, tile], stops[k, tile]):
                origin[places[j]] += factor * shifts[j]
        bad |= _store(origin, out[0], out[1], start)
    return bad


@_kernel
def own_groups(
    base: Any, source: Any, number: Any, kept: int, group: int, owners: Any, span: Any
) -> None:
    """Make a source the owner of the largest entries of each group that nobody owns yet.

    base, source: (2,) int64, address and code.
    number: uint8, the owner's; kept: how many of a group of so many entries.
    owners: (entries,) uint8, of the span, which is whole groups: first entry, the one after.
    """
    origin, moved = np.empty(group, np.float32), np.empty(group, np.float32)
    keys = np.empty(group, np.uint32)
    for start in range(span[0], span[1], group):
        own = owners[start - span[0] : start - span[0] + group]
        _load(base[0], base[1], start, origin)
        _load(source[0], source[1], start, moved)
        for i in range(group):
            size = np.float32(abs(moved[i] - origin[i])).view(np.uint32)
            keys[i] = size if own[i] == 0 else np.uint32(0)
        if kept < 24:  # one after another; of equal ones the first
            for _ in range(min(kept, group)):
                best, largest = 0, np.uint32(0)
                for i in range(group):
                    if keys[i] > largest:
                        best, largest = i, keys[i]
                if largest == 0:
                    break
                own[best], keys[best] = number, np.uint32(0)
            continue
        # The kept-th largest, bit by bit: the most that so many reach.
        least = np.uint32(0)
        for bit in range(30, -1, -1):
            tried, reach = np.uint32(least | np.uint32(np.uint32(1) << np.uint32(bit))), np.int32(0)
            for i in range(group):
                reach = np.int32(reach + np.int32(keys[i] >= tried))
            least = tried if reach >= kept else least
        left = kept
        for i in range(group):
            left -= keys[i] > least
        for i in range(group):
            equal = (keys[i] == least) & (left > 0) & (least > 0)
            left -= equal
            own[i] = number if (keys[i] > least) | equal else own[i]


# --- counting sort --------------------------------------------------------------------------------


@_kernel
def count_upper(bits: Any, counts: Any) -> None:
    """Add to counts how many of some uint32 have each upper half."""
    for i in range(bits.size):
        counts[np.int64(bits[i] >> np.uint32(16))] += 1


@_kernel
def count_lower(bits: Any, uppers: Any, counts: Any) -> None:
    """Add to counts, (uppers, 2^16), how many of some uint32 have each lower half beside them."""
    for i in range(bits.size):
        upper = bits[i] >> np.uint32(16)
        for j in range(uppers.size):
            if upper == uppers[j]:
                counts[j, np.int64(bits[i] & np.uint32(0xFFFF))] += 1


@_kernel
def scatter_lower(bits: Any, filled: Any, lower: Any) -> None:
    """Put each lower half (uint16) where its upper half is filled to, and fill on."""
    for i in range(bits.size):
        upper = np.int64(bits[i] >> np.uint32(16))
        lower[filled[upper]] = np.uint16(bits[i] & np.uint32(0xFFFF))
        filled[upper] += 1


@_kernel
def gather_lower(bits: Any, upper: Any, lower: Any, filled: Any) -> Any:
    """Append the lower halves that stand with one upper half; how many there are then."""
    for i in range(bits.size):
        if bits[i] >> np.uint32(16) == upper:
            lower[filled] = np.uint16(bits[i] & np.uint32(0xFFFF))
            filled += 1
    return filled


def address_of(tensor: Any) -> tuple[int, int] | None:
    """Where a tensor's entries lie and how they are stored; None if the kernels cannot read it."""
    codes = {"torch.float32": FLOAT32, "torch.bfloat16": BFLOAT16, "torch.float16": FLOAT16}
    code = codes.get(str(tensor.dtype))
    if code is None or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return None
    return tensor.data_ptr(), code
