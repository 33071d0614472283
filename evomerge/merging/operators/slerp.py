"""Spherical linear interpolation between the base and one other model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from evomerge.merging import passes
from evomerge.merging.operator import Block, Operator, Values, chunks
from evomerge.merging.reads import Models
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor

PARALLEL = 0.9995  # above this |cosine| the angle says nothing: interpolate linearly
TINY = 1e-8  # a vector shorter than this has no direction: it counts as orthogonal to all


@dataclass
class _Prepared:
    models: Models  # the base and the other one, as sources
    cosines: tuple[float, ...]  # of each tensor with its counterpart
    nbytes: int


def _prepare(block: Block, values: Values) -> _Prepared:
    del values
    base, other = cast("Tensor", block.base), block.sources[0]
    cosines = tuple(_cosine(base[segment], other[segment]) for segment in block.segments)
    held = block.held_bytes(base, other)
    return _Prepared(Models(None, (base, other), block.segments), cosines, held)


def _cosine(a: Tensor, b: Tensor) -> float:
    """The cosine between two vectors, accumulated in float64."""
    dot = square_a = square_b = 0.0
    for part in chunks(a.numel()):
        x, y = a[part].double(), b[part].double()
        dot += float(x @ y)
        square_a += float(x @ x)
        square_b += float(y @ y)
    if square_a <= TINY**2 or square_b <= TINY**2:
        return 0.0
    return dot / math.sqrt(square_a * square_b)


def _coefficients(cosine: float, t: float) -> tuple[float, float]:
    """The shares of base and other: sin((1-t) a) / sin a and sin(t a) / sin a."""
    if abs(cosine) > PARALLEL:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _apply(prepared: _Prepared, values: Values, out: Tensor) -> bool | None:
    import numpy as np

    t = cast("float", values["t"])
    shares = np.array([_coefficients(cosine, t) for cosine in prepared.cosines]).T
    return passes.weighted_sum(prepared.models, shares, out)


SLERP = Operator(
    name="slerp",
    paper="Shoemake 1985, https://doi.org/10.1145/325165.325242 (sec. 3.3), per tensor",
    summary="From the base (t = 0) to one other model (t = 1) along a great circle",
    parameters=(
        Parameter("t", "real", 0.5, "0 is the base, 1 the other model", low=0.0, high=1.0),
    ),
    needs_base=True,
    min_sources=1,
    max_sources=1,
    prepare=_prepare,
    apply=_apply,
)
