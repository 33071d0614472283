"""The passes of passes.py in torch, chunk by chunk: for GPUs, and where numba is missing.

On a CPU this is several times slower than the kernels: each step reads and writes memory again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from evomerge.merging.operator import chunks
from evomerge.merging.sparsify import HALF

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from evomerge.merging.passes import Agreement, Selection
    from evomerge.merging.reads import Models


def weighted_sum(models: Models, weights: NDArray[np.floating[Any]], out: Tensor) -> None:
    """See `passes.weighted_sum`."""
    sources = models.sources
    for segment, part in _parts(models.segments):
        merged = sources[0][part].float() * float(weights[0, segment])
        for source, weight in zip(sources[1:], weights[1:, segment].tolist(), strict=True):
            merged.add_(source[part], alpha=weight)
        out[part].copy_(merged)


def add_task_vectors(
    models: Models, selection: Selection, agreement: Agreement, out: Tensor
) -> None:
    """See `passes.add_task_vectors`."""
    base, segments = cast("Tensor", models.base), models.segments
    fills = np.ones(len(segments))
    if agreement.zero_sum == "majority" and agreement.consensus != "sum":
        fills[:] = 0
        for segment, part in _parts(segments):
            taus = _sparse(models, selection, segment, part)
            fills[segment] += float(taus.sum(0).sign_().sum())
        fills = np.sign(fills)
    for segment, part in _parts(segments):
        taus = _sparse(models, selection, segment, part)
        sums = taus.sum(0)
        if agreement.consensus != "sum":
            signs = sums.sign()
            signs.masked_fill_(signs == 0, float(fills[segment]))
            agrees = taus * signs > 0
            sums = (taus * agrees).sum(0)
            if agreement.consensus == "agree_normalised":
                counted = taus.new_tensor(agreement.counted.tolist())
                divisor = (agrees * counted[:, None]).sum(0)
                sums /= divisor.masked_fill(divisor == 0, 1.0)
        # Not in place: float32 entries are the model's own.
        out[part].copy_(base[part].float().add(sums, alpha=agreement.scale))


def kept_mass(
    models: Models, selection: Selection
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """See `passes.kept_mass`."""
    base = cast("Tensor", models.base)
    before, after = np.zeros((2, len(models.sources), len(models.segments)))
    for segment, part in _parts(models.segments):
        for k, source in enumerate(models.sources):
            tau = source[part].float() - base[part].float()
            before[k, segment] += float(tau.abs().sum(dtype=tau.dtype))
            if selection.mode != "all":
                tau.masked_fill_(~_kept(tau, models, selection, k, segment, part), 0)
            after[k, segment] += float(tau.abs().sum(dtype=tau.dtype))
    return before, after


def _parts(segments: Sequence[slice]) -> Iterator[tuple[int, slice]]:
    for number, segment in enumerate(segments):
        for part in chunks(segment.stop - segment.start):
            yield number, slice(segment.start + part.start, segment.start + part.stop)


def _sparse(models: Models, selection: Selection, segment: int, part: slice) -> Tensor:
    """The weighted, sparsified task vectors of a part, (sources, entries)."""
    import torch

    origin = cast("Tensor", models.base)[part].float()
    taus = origin.new_empty((len(models.sources), len(origin)))
    for k, (source, tau) in enumerate(zip(models.sources, taus, strict=True)):
        torch.sub(source[part].float(), origin, out=tau)
        if selection.mode != "all":
            tau.masked_fill_(~_kept(tau, models, selection, k, segment, part), 0)
        if selection.divide:
            tau /= (
                _levels(models, selection, k, segment, part).add_(HALF).div_(2 * HALF).clamp_(1e-12)
            )
        tau *= float(selection.factors[k, segment])
    return taus


def _kept(
    tau: Tensor, models: Models, selection: Selection, k: int, segment: int, part: slice
) -> Tensor:
    if selection.mode == "at_least":
        return tau.abs().ge(float(selection.limits[k, segment, 0]))
    if selection.mode == "magnitude":
        low, high = selection.limits[k, segment].tolist()
        sizes = tau.abs()
        return sizes.ge(low) & sizes.le(high)
    draws = models.draws[k][part]
    if selection.mode == "draw":
        return draws.lt(float(selection.limits[k, segment, 0]))
    return draws.lt(_levels(models, selection, k, segment, part))


def _levels(models: Models, selection: Selection, k: int, segment: int, part: slice) -> Tensor:
    first, slope = selection.limits[k, segment].tolist()
    levels: Tensor = models.ranks[k][part].float().mul_(slope).add_(first)
    return levels
