"""LiNeS: task arithmetic that grows with depth, and the same scaling behind any operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from evomerge.merging import passes
from evomerge.merging.operator import Block, Operator, PostStep, Values, parts_of
from evomerge.merging.passes import Agreement, everything
from evomerge.merging.reads import Models
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class _Prepared:
    models: Models
    depths: tuple[float | None, ...]  # of each tensor, 0 to 1; None outside the layers
    nbytes: int


def _prepare(block: Block, values: Values) -> _Prepared:
    del values
    base = cast("Tensor", block.base)
    nbytes = block.held_bytes(base, *block.sources)
    return _Prepared(Models(base, block.sources, block.segments), block.depths, nbytes)


def _apply(prepared: _Prepared, values: Values, out: Tensor) -> bool | None:
    """Write W_0 + (alpha + beta l/(L-1)) sum_k w_k tau_k."""
    alpha, beta = cast("float", values["alpha"]), cast("float", values["beta"])
    scales = np.array([alpha + beta * (depth or 0.0) for depth in prepared.depths])
    factors = np.outer(cast("tuple[float, ...]", values["weight"]), scales)
    agreement = Agreement("sum", np.ones(len(factors)), 1.0)
    return passes.add_task_vectors(prepared.models, everything(factors), agreement, out)


@dataclass
class _Scaled:
    base: Tensor
    segments: tuple[slice, ...]
    depths: tuple[float | None, ...]
    nbytes: int


def _prepare_step(block: Block, values: Values) -> _Scaled:
    del values
    base = cast("Tensor", block.base)
    return _Scaled(base, block.segments, block.depths, block.held_bytes(base))


def _apply_step(prepared: _Scaled, values: Values, merged: Tensor) -> None:
    """Make it W_0 + (alpha + beta l/(L-1)) (W - W_0)."""
    alpha, beta = cast("float", values["alpha"]), cast("float", values["beta"])
    for segment, depth in zip(prepared.segments, prepared.depths, strict=True):
        scale = alpha + beta * (depth or 0.0)
        for part in parts_of(segment, like=merged):
            base = prepared.base[part].float()
            merged[part].sub_(base).mul_(scale).add_(base)


_PAPER = "Wang et al. 2025, LiNeS, https://arxiv.org/abs/2410.17146 (linear layer scaling)"
_ALPHA = Parameter("alpha", "real", 0.5, "scale in the first layer", low=-10, high=10)
_BETA = Parameter("beta", "real", 0.5, "what the last layer has more", low=-10, high=10)

LINES = Operator(
    name="lines",
    paper=_PAPER,
    summary="Task arithmetic whose scale grows linearly from the first layer to the last",
    parameters=(
        Parameter(
            "weight", "real", 1.0, "factor of a task vector", low=-10, high=10, per_source=True
        ),
        _ALPHA,
        _BETA,
    ),
    needs_base=True,
    min_sources=1,
    max_sources=None,
    place="depth",
    prepare=_prepare,
    apply=_apply,
    notes="Base + (alpha + beta l/(L-1)) sum w_k tau_k in layer l of L. Outside the layers the "
    "scale is alpha, also in the head, as in the authors' code. The paper takes alpha from the "
    "number of experts (1/N) and tunes beta; the defaults here are ours.",
)

LINES_STEP = PostStep(
    name="lines",
    paper=_PAPER,
    summary="Scales what the merge changed, linearly from the first layer to the last",
    parameters=(_ALPHA, _BETA),
    place="depth",
    prepare=_prepare_step,
    apply=_apply_step,
    notes="Base + (alpha + beta l/(L-1)) (W - base) in layer l of L, W being the merged tensor, as "
    "the paper does behind task arithmetic, TIES and consensus merging. Outside the layers the "
    "scale is alpha, also in the head.",
)
