"""LiNeS: task arithmetic that grows with depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from evomerge.merging import passes
from evomerge.merging.operator import Block, Operator, Values
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
    place="depth",
    prepare=_prepare,
    apply=_apply,
    notes="Base + (alpha + beta l/(L-1)) sum w_k tau_k in layer l of L. Outside the layers the "
    "scale is alpha, also in the head, as in the authors' code. The paper takes alpha from the "
    "number of experts (1/N) and tunes beta; the defaults here are ours.",
)
