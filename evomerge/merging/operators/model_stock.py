"""Model Stock: how far to go from the base to the mean, from the angle between task vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evomerge.merging.offsets import Shifted, apply_shift, empty_shift, offsets
from evomerge.merging.operator import Block, Operator, Values, chunks, parts_of
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor

SINGULAR = 1e-6  # a denominator nearer to 0 than this gives no ratio: the base stays
SMALL = 1e-6  # mergekit's least product of two norms


def _prepare(block: Block, values: Values) -> Shifted:
    """All of it: nothing is left to choose."""
    least = SMALL if values["compat"] == "mergekit" else 0.0
    prepared = empty_shift(block)
    count = len(block.sources)
    for segment, shape in zip(block.segments, block.shapes, strict=True):
        if not values["filter_wise"]:
            parts = list(parts_of(segment, count))
            gram = sum(_gram(offsets(block, part)[:, None]) for part in parts)
            ratio = _ratio(gram, least)[0]  # type: ignore[arg-type]
            for part in parts:
                prepared.shift[part] = offsets(block, part).mean(0) * ratio
            continue
        width = shape[-1] if shape else 1
        for rows in chunks((segment.stop - segment.start) // width, width * count):
            part = slice(segment.start + rows.start * width, segment.start + rows.stop * width)
            taus = offsets(block, part).view(count, -1, width)
            shift = taus.mean(0) * _ratio(_gram(taus), least)[:, None]
            prepared.shift[part] = shift.view(-1)
    return prepared


def _gram(taus: Tensor) -> Tensor:
    """The inner products of (sources, rows, width), shape (rows, sources, sources), float64."""
    rows = taus.double().transpose(0, 1)
    return rows @ rows.transpose(1, 2)


def _ratio(gram: Tensor, least: float) -> Tensor:
    """Each row's t = N c / (1 + (N-1) c), c the mean cosine of the pairs; float32."""
    import torch

    count = gram.shape[1]
    norms = gram.diagonal(dim1=1, dim2=2).sqrt()
    products = norms[:, :, None] * norms[:, None, :]
    # A zero task vector counts as orthogonal to all others.
    cosines = torch.where(products > 0, gram / products.clamp(min=max(least, 1e-300)), 0)
    first, second = torch.triu_indices(count, count, 1, device=gram.device)
    cosine = cosines.clamp(-1, 1)[:, first, second].mean(1)
    denominator = 1 + (count - 1) * cosine
    singular = denominator.abs() < SINGULAR
    ratio = count * cosine / torch.where(singular, 1, denominator)
    return torch.where(singular, 0, ratio).float()


MODEL_STOCK = Operator(
    name="model_stock",
    paper="Jang et al. 2024, https://arxiv.org/abs/2403.19522 (the ratio for N models)",
    summary="Between the base and the experts' mean, as far as their task vectors agree",
    parameters=(
        Parameter("filter_wise", "flag", False, "an angle for each row", phase="prepare"),
        Parameter(
            "compat",
            "choice",
            "published",
            "whose cosine, of task vectors that are next to nothing",
            options=("published", "mergekit"),
            phase="prepare",
        ),
    ),
    needs_base=True,
    min_sources=2,
    max_sources=None,
    prepare=_prepare,
    apply=apply_shift,
    notes="Base + t mean(tau), t = N c / (1 + (N-1) c), c the mean cosine of all pairs of task "
    "vectors, per tensor or (`filter_wise`) per row along the last dimension. t is not clipped: "
    "task vectors that disagree push away from their mean, as in the paper's formula. Where the "
    "denominator vanishes, the base stays. `compat: mergekit` divides by no less than 1e-6 when it "
    "takes a cosine, so that short task vectors look orthogonal; by default the cosine is exact. "
    "Of three or more experts both average the cosines; some implementations average the angles.",
)
