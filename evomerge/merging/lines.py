"""LiNeS: task arithmetic that grows with depth."""

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
    from torch import Tensor


@dataclass
class _Prepared:
    base: Tensor  # (numel,)
    tau: Tensor  # (sources, numel) float32
    segments: tuple[slice, ...]
    depths: tuple[float | None, ...]  # of each tensor, 0 to 1; None outside the layers
    nbytes: int


def _prepare(block: Block, values: Values) -> _Prepared:
    del values
    base, tau = small_as_float(cast("Tensor", block.base)), all_offsets(block)
    nbytes = tau.nbytes + block.held_bytes(base)
    return _Prepared(base, tau, block.segments, block.depths, nbytes)


def _apply(prepared: _Prepared, values: Values, out: Tensor) -> None:
    """Write W_0 + (alpha + beta l/(L-1)) sum_k w_k tau_k."""
    import torch

    alpha, beta = cast("float", values["alpha"]), cast("float", values["beta"])
    weights = prepared.tau.new_tensor(values["weight"])
    for segment, depth in zip(prepared.segments, prepared.depths, strict=True):
        scaled = weights * (alpha + beta * (depth or 0.0))
        for part in parts_of(segment):
            base = prepared.base[part].float()
            out[part].copy_(torch.addmv(base, prepared.tau[:, part].t(), scaled))


LINES = Operator(
    name="lines",
    paper="Wang et al. 2025, LiNeS, https://arxiv.org/abs/2410.17146 (linear layer scaling)",
    summary="Task arithmetic whose scale grows linearly from the first layer to the last",
    parameters=(
        Parameter(
            "weight", "real", 1.0, "factor of a task vector", low=-10, high=10, per_source=True
        ),
        Parameter("alpha", "real", 0.5, "scale in the first layer", low=-10, high=10),
        Parameter("beta", "real", 0.5, "what the last layer has more", low=-10, high=10),
    ),
    needs_base=True,
    min_sources=1,
    max_sources=None,
    prepare=_prepare,
    apply=_apply,
    notes="Base + (alpha + beta l/(L-1)) sum w_k tau_k in layer l of L. Outside the layers the "
    "scale is alpha, also in the head, as in the authors' code. The paper takes alpha from the "
    "number of experts (1/N) and tunes beta; the defaults here are ours.",
)
