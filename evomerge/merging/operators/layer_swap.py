"""Layer swapping: the ends of one expert around the middle of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from evomerge.merging import passes
from evomerge.merging.operator import Block, Operator, Values
from evomerge.merging.reads import Models
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor

_SLACK = 1e-6  # a cut at k/(L-1) is not below layer k by rounding


@dataclass
class _Prepared:
    models: Models
    depths: tuple[float | None, ...]  # of each tensor, 0 to 1; None outside the layers
    nbytes: int


def _prepare(block: Block, values: Values) -> _Prepared:
    del values
    models = Models(None, block.sources, block.segments)
    return _Prepared(models, block.depths, block.held_bytes(*block.sources))


def _apply(prepared: _Prepared, values: Values, out: Tensor) -> bool | None:
    """Write s x_outer + (1 - s) x_inner, the share s being that of a tensor's depth."""
    shares = np.array([outer_share(depth, values) for depth in prepared.depths])
    for which, share in enumerate((1.0, 0.0)):
        if (shares == share).all():
            out.copy_(prepared.models.sources[which])
            return None
    weights: NDArray[Any] = np.stack([shares, 1 - shares])
    return passes.weighted_sum(prepared.models, weights, out)


def outer_share(depth: float | None, values: Values) -> float:
    """How much of a tensor is the outer expert's; depth is None outside the layers."""
    if depth is None:
        return {"outer": 1.0, "mean": 0.5, "inner": 0.0}[cast("str", values["outside"])]
    width, blend = cast("float", values["transition"]), cast("str", values["blend"])
    ends = ((cast("float", values["bottom"]), depth), (cast("float", values["top"]), 1 - depth))
    return max(_share_at(distance, cut, width, blend) for cut, distance in ends)


def _share_at(distance: float, cut: float, width: float, blend: str) -> float:
    """The outer expert's share so far from one end; a cut of 0 leaves no border there."""
    beyond = distance - cut
    if cut <= 0 or beyond >= width - _SLACK:
        return 1.0 if cut > 0 and beyond < -_SLACK else 0.0
    if beyond < -_SLACK:
        return 1.0
    return 0.5 if blend == "mean" else 1 - max(0.0, beyond) / width


LAYER_SWAP = Operator(
    name="layer_swap",
    paper="Bandarkar et al. 2025, Layer swapping, https://arxiv.org/abs/2410.01335",
    summary="Bottom and top layers of the first source, the middle of the second, blended between",
    parameters=(
        Parameter("bottom", "real", 0.16, "depth below which layers are the first source's", 0, 1),
        Parameter("top", "real", 0.06, "likewise, from the top", low=0.0, high=1.0),
        Parameter("transition", "real", 0.03, "depth over which they are blended", low=0, high=1),
        Parameter(
            "blend",
            "choice",
            "mean",
            "in the transition: the mean of both, or a share that falls linearly",
            options=("mean", "linear"),
        ),
        Parameter(
            "outside",
            "choice",
            "outer",
            "where embedding, final norm and head are from: the outer source is the first",
            options=("outer", "inner", "mean"),
        ),
    ),
    needs_base=False,
    min_sources=2,
    max_sources=2,
    place="depth",
    prepare=_prepare,
    apply=_apply,
    notes="Depth goes from 0, the first layer, to 1, the last one: layer l of L is at l/(L-1), so "
    "a cut at k/(L-1) leaves k layers outside. Between depth `bottom` and `transition` further, "
    "and likewise at the top, layers are a blend; a cut of 0 makes no border there. The defaults "
    "are the paper's 5 layers at the bottom, 2 at the top and 1 in transition of 32. The search "
    "space of kind `layer_swap` says the same in whole layers.",
)
