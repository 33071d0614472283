"""Arcee Fusion: the entries of another model that stand out, the base's everywhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from evomerge.merging.operator import (
    Block,
    Operator,
    Values,
    chunks,
    parts_of,
    small_as_float,
)
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-8  # added to probabilities


@dataclass
class _Prepared:
    base: Tensor  # (numel,)
    other: Tensor  # (numel,)
    importance: Tensor  # (numel,) float32
    segments: tuple[slice, ...]
    quartiles: list[tuple[float, float, float]]  # of each tensor's importance
    nbytes: int


def _prepare(block: Block, values: Values) -> _Prepared:
    del values
    import torch

    base, other = small_as_float(cast("Tensor", block.base)), small_as_float(block.sources[0])
    importance = torch.empty(block.numel, dtype=torch.float32, device=base.device)
    quartiles = []
    for segment, shape in zip(block.segments, block.shapes, strict=True):
        width = shape[-1] if shape else 1
        for rows in chunks((segment.stop - segment.start) // width, width):
            part = slice(segment.start + rows.start * width, segment.start + rows.stop * width)
            pair = (one[part].float().view(-1, width) for one in (other, base))
            importance[part] = _importance(*pair).view(-1)
        quartiles.append(_quartiles(importance[segment]))
    nbytes = block.held_bytes(base, other) + importance.nbytes
    return _Prepared(base, other, importance, block.segments, quartiles, nbytes)


def _importance(other: Tensor, base: Tensor) -> Tensor:
    """|difference| times the divergence of the row, softmax(other) from softmax(base)."""
    p, q = other.softmax(-1) + EPSILON, base.softmax(-1) + EPSILON
    return (other - base).abs() * (p * (p / q).log()).sum(-1, keepdim=True)


def _quartiles(importance: Tensor) -> tuple[float, float, float]:
    """The values at int(q (n - 1)) in ascending order, for q = 1/4, 1/2, 3/4."""
    import numpy as np

    last = importance.numel() - 1
    places = [last // 4, last // 2, 3 * last // 4]
    ordered = np.partition(importance.cpu().numpy(), places)
    first, median, third = (float(ordered[place]) for place in places)
    return first, median, third


def _apply(prepared: _Prepared, values: Values, out: Tensor) -> None:
    import torch

    fence = cast("float", values["fence"])
    for segment, (first, median, third) in zip(prepared.segments, prepared.quartiles, strict=True):
        # In float32, as mergekit has it: an importance at the threshold is kept.
        spread = prepared.importance.new_tensor(third) - first
        threshold = median + fence * spread
        for part in parts_of(segment, like=prepared.importance):
            stands_out = prepared.importance[part] >= threshold
            merged = torch.where(
                stands_out, prepared.other[part].float(), prepared.base[part].float()
            )
            out[part].copy_(merged)


ARCEE_FUSION = Operator(
    name="arcee_fusion",
    paper="Arcee AI 2025, https://www.arcee.ai, as mergekit has it",
    summary="Entries of another model that stand out in importance replace the base's",
    parameters=(
        Parameter("fence", "real", 1.5, "interquartile ranges above the median", low=0, high=10),
    ),
    needs_base=True,
    min_sources=1,
    max_sources=1,
    prepare=_prepare,
    apply=_apply,
    notes="Importance is |tau| times the Kullback-Leibler divergence of the row's softmax from the "
    "base's, rows along the last dimension. Entries from median + fence IQR upwards are taken, per "
    "tensor; where all are equally important, that is all of them. The quartiles are exact; "
    "mergekit estimates them from a random million where a tensor is larger, and has no other "
    "fence than 1.5. The divergence is computed in float32, as there.",
)
