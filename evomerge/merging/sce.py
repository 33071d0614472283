"""SCE: select entries that differ between experts, weigh experts by their moves, agree on signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from evomerge.merging.offsets import all_offsets
from evomerge.merging.operator import (
    Block,
    Operator,
    Values,
    parts_of,
    small_as_float,
)
from evomerge.records import Parameter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

FLOOR = 1e-6  # of mergekit: less energy in all weighs all alike; the least divisor


@dataclass
class _Prepared:
    base: Tensor  # (numel,)
    tau: Tensor  # (sources, numel) float32
    spread: Tensor  # (numel,) float32, the sources' variance
    ascending: list[NDArray[np.float32]]  # of each tensor, its spreads above 0, in order
    segments: tuple[slice, ...]
    nbytes: int


def _prepare(block: Block, values: Values) -> _Prepared:
    del values
    import numpy as np
    import torch

    base, tau = small_as_float(cast("Tensor", block.base)), all_offsets(block)
    spread, ascending = torch.empty_like(tau[0]), []
    for segment in block.segments:
        for part in parts_of(segment):
            mean = tau[:, part].mean(0)
            varies = tau[:, part].amax(0) != tau[:, part].amin(0)  # rounding must not look like it
            spread[part] = (tau[:, part] - mean).square_().mean(0) * varies
        found = spread[segment].cpu().numpy()
        ascending.append(np.sort(found[found > 0]))
    nbytes = tau.nbytes + 2 * spread.nbytes + block.held_bytes(base)
    return _Prepared(base, tau, spread, ascending, block.segments, nbytes)


def _apply(prepared: _Prepared, values: Values, out: Tensor) -> None:
    """Write W_0 + sum w tau / sum w, over the selected entries and the sources that agree."""
    share, mergekit = cast("float", values["select_topk"]), values["compat"] == "mergekit"
    for segment, ascending in zip(prepared.segments, prepared.ascending, strict=True):
        kept = int(share * len(ascending))
        if share < 1 and kept == 0:
            out[segment].copy_(prepared.base[segment])
            continue
        # Entries that vary as much as the last one selected are selected too.
        least = 0.0 if share >= 1 else float(ascending[len(ascending) - kept])
        weights = _weights(prepared, segment, least, mergekit=mergekit)
        for part in parts_of(segment):
            base = prepared.base[part].float()
            shift = _agreed(_selected(prepared, part, least), weights, FLOOR if mergekit else 0)
            out[part].copy_(shift.add_(base))


def _selected(prepared: _Prepared, part: slice, least: float) -> Tensor:
    """The task vectors where their variance is large enough, else 0."""
    import torch

    spread = prepared.spread[part]
    chosen = torch.empty_like(spread)  # in floats: a boolean costs ten times as much on a CPU
    torch.ge(spread, least, out=chosen)
    return prepared.tau[:, part] * chosen


def _weights(prepared: _Prepared, segment: slice, least: float, *, mergekit: bool) -> Tensor:
    """Each source's part of all squared moves in a tensor, float32."""
    import torch

    energy = prepared.tau.new_zeros(len(prepared.tau), dtype=torch.float64)
    for part in parts_of(segment):
        energy += torch.stack([tau.dot(tau) for tau in _selected(prepared, part, least)])
    total = float(energy.sum())
    if total / (segment.stop - segment.start) < FLOOR if mergekit else total == 0:
        return torch.full_like(energy, 1 / len(energy)).float()
    return (energy / total).float()


def _agreed(taus: Tensor, weights: Tensor, floor: float) -> Tensor:
    """The weighted mean over the sources whose sign is that of the sum; a sum of 0 counts as +."""
    import torch

    signs = taus.sum(0).sign_().add_(0.5).sign_()
    agreeing = (taus * signs).clamp_(min=0)
    merged = torch.mv(agreeing.t(), weights)
    divisor = torch.mv(agreeing.sign_().t(), weights)
    if floor:
        divisor.clamp_(min=floor)
    else:  # where nothing agrees, nothing is divided
        divisor.add_(torch.eq(divisor, 0, out=torch.empty_like(divisor)))
    return merged.mul_(signs).div_(divisor)


SCE = Operator(
    name="sce",
    paper="Wan et al. 2024, FuseChat, https://arxiv.org/abs/2408.07990 (SCE)",
    summary="Keep the entries that vary most, weigh experts by their squared moves, agree on signs",
    parameters=(
        Parameter("select_topk", "real", 1.0, "share of the varying entries", low=0.0, high=1.0),
        Parameter(
            "compat",
            "choice",
            "published",
            "whose weights, of task vectors that are next to nothing",
            options=("published", "mergekit"),
            phase="prepare",
        ),
    ),
    needs_base=True,
    min_sources=1,
    max_sources=None,
    prepare=_prepare,
    apply=_apply,
    notes="Per tensor: the int(select_topk n) of the n entries with the largest variance over the "
    "experts (at 1 every entry, varying or not); an expert's weight is its part of the squared "
    "moves that are left; entries against the sign of their sum are erased, the others averaged. "
    "`compat: mergekit` weighs all experts alike where the mean squared move is below 1e-6 in all, "
    "as it is in short fine-tunes, and divides by no less than 1e-6; by default the paper's "
    "formula holds at any scale. Entries that tie with the last one selected are selected too; "
    "mergekit takes any of them.",
)
