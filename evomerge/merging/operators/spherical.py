"""Means of several models on a sphere: of their directions, at the mean of their lengths.

Both means lie in the span of the models. So all that is needed of a tensor is its inner products
with its counterparts, which do not depend on the weights; a mean is then a weighted sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from evomerge.errors import CandidateError
from evomerge.merging import passes
from evomerge.merging.operator import Block, Operator, Values, parts_of
from evomerge.merging.passes import Agreement, everything
from evomerge.merging.reads import Models
from evomerge.records import Parameter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    Vector = NDArray[np.float64]

CANCELLED = 1e-3  # |sum w| below this share of sum |w| is refused: the quotient would be noise
TINY = 1e-8  # a shorter vector has no direction
OPPOSED = 1e-6  # a mean of directions shorter than this share of sum |w| is rounding


def shares(operator: str, weights: Sequence[float]) -> list[float]:
    """Weights divided by their sum.

    Raises:
        CandidateError: they sum to next to nothing.
    """
    total = sum(weights)
    if abs(total) <= CANCELLED * sum(map(abs, weights)):
        raise CandidateError(
            f"{operator}: the weights {list(weights)} sum to {total:g}, which is no scale"
        )
    return [weight / total for weight in weights]


@dataclass
class _Span:
    models: Models  # with a base where task vectors are merged
    grams: list[Vector]  # of each tensor, (sources, sources) inner products
    nbytes: int

    def vectors(self, part: slice) -> list[Tensor]:
        """The models' entries, or their task vectors', float32."""
        rows = [row[part].float() for row in self.models.sources]
        if self.models.base is not None:
            base = self.models.base[part].float()
            rows = [row - base for row in rows]
        return rows

    def write(self, coefficients: list[Vector], out: Tensor) -> bool | None:
        """Write the weighted sum of each tensor's vectors, and the base if there is one.

        coefficients: of each tensor, (sources,).
        """
        weights = np.stack(coefficients, 1)
        if self.models.base is None:
            return passes.weighted_sum(self.models, weights, out)
        agreement = Agreement("sum", np.ones(len(weights)), 1.0)
        return passes.add_task_vectors(self.models, everything(weights), agreement, out)


def _span(block: Block, *, deltas: bool) -> _Span:
    import torch

    base = cast("Tensor", block.base) if deltas else None
    nbytes = block.held_bytes(base, *block.sources)
    span = _Span(Models(base, block.sources, block.segments), [], nbytes)
    for segment in block.segments:
        gram = torch.zeros(
            (len(block.sources),) * 2, dtype=torch.float64, device=block.sources[0].device
        )
        for part in parts_of(segment, len(block.sources)):
            vectors = torch.stack(span.vectors(part)).double()
            gram += vectors @ vectors.t()
        span.grams.append(gram.cpu().numpy())
    return span


def _directions(gram: Vector) -> tuple[Vector, NDArray[np.bool_], Vector]:
    """Lengths, which of them have a direction, and the cosines (0 with those that have none)."""
    norms = np.sqrt(gram.diagonal())
    directed = norms > TINY
    safe = np.where(directed, norms, 1.0)
    cosines: Vector = gram / np.outer(safe, safe) * np.outer(directed, directed)
    return norms, directed, cosines


# --- multislerp -----------------------------------------------------------------------------------


def _prepare_multislerp(block: Block, values: Values) -> _Span:
    return _span(block, deltas=bool(values["deltas"]))


def _apply_multislerp(span: _Span, values: Values, out: Tensor) -> bool | None:
    weights = np.array(values["weight"], dtype=np.float64)
    if values["normalize_weights"]:
        weights = np.array(shares("multislerp", weights.tolist()))
    return span.write([_barycentre(gram, weights) for gram in span.grams], out)


def _barycentre(gram: Vector, weights: Vector) -> Vector:
    """The coefficients of (sum w u / |sum w u|) sum w |x|, with u = x / |x|.

    Raises:
        CandidateError: the directions of three or more vectors cancel.
    """
    norms, directed, cosines = _directions(gram)
    length = math.sqrt(max(float(weights @ cosines @ weights), 0.0))
    if length <= OPPOSED * np.abs(weights[directed]).sum():  # also where nothing has a direction
        if directed.sum() > 2:
            raise CandidateError(
                f"multislerp: with the weights {weights.tolist()} the directions of a tensor cancel"
            )
        return weights
    of_units = weights * directed * float(weights @ norms) / length
    coefficients: Vector = of_units / np.where(directed, norms, 1.0)
    return coefficients


# --- the Karcher mean -----------------------------------------------------------------------------


@dataclass
class _Fixed:
    span: _Span
    coefficients: list[Vector]
    nbytes: int


def _prepare_karcher(block: Block, values: Values) -> _Fixed:
    span = _span(block, deltas=False)
    max_iter, tol = cast("int", values["max_iter"]), cast("float", values["tol"])
    coefficients = [_karcher(gram, max_iter, tol) for gram in span.grams]
    return _Fixed(span, coefficients, span.nbytes)


def _karcher(gram: Vector, max_iter: int, tol: float) -> Vector:
    """The coefficients of the directions' Karcher mean times the mean length.

    The mean m is kept as its coordinates c in the units: m . u = C c, |m|^2 = c' C c.
    """
    norms = np.sqrt(gram.diagonal())
    valid = np.flatnonzero(norms > tol)
    merged = np.zeros(len(norms))
    if not len(valid):
        return merged
    cosines = gram[np.ix_(valid, valid)] / np.outer(norms[valid], norms[valid])

    def length(vector: Vector) -> float:
        return math.sqrt(max(float(vector @ cosines @ vector), 0.0))

    share = 1 / len(valid)
    mean = np.full(len(valid), share)
    if (size := length(mean)) < tol:  # they cancel: start from the first
        mean, size = np.eye(len(valid))[0], 1.0
    mean = mean / size
    for _ in range(max_iter):
        dots = np.clip(cosines @ mean, -1, 1)
        angles = np.arccos(dots)
        # From the opposite point no way is shorter than another: it pulls nowhere.
        pulls = (angles >= tol) & (angles <= np.pi - tol)
        stretch = np.where(pulls, angles / np.sin(np.where(pulls, angles, 1)), 0) * share
        tangent = stretch - (stretch @ dots) * mean
        if (step := length(tangent)) < tol:
            break
        mean = np.cos(step) * mean + np.sin(step) / step * tangent
        if (size := length(mean)) > tol:
            mean = mean / size
    merged[valid] = norms.mean() * mean / norms[valid]
    return merged


def _apply_karcher(prepared: _Fixed, values: Values, out: Tensor) -> bool | None:
    del values
    return prepared.span.write(prepared.coefficients, out)


# --- the table ------------------------------------------------------------------------------------

MULTISLERP = Operator(
    name="multislerp",
    paper="Goddard 2025, https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    summary="The weighted mean of the models' directions, at the weighted mean of their lengths",
    parameters=(
        Parameter("weight", "real", 1.0, "share of a source", low=-10, high=10, per_source=True),
        Parameter("normalize_weights", "flag", True, "divide the weights by their sum"),
        Parameter("deltas", "flag", False, "merge task vectors, add the base", phase="prepare"),
    ),
    needs_base=False,
    min_sources=2,
    max_sources=None,
    prepare=_prepare_multislerp,
    apply=_apply_multislerp,
    notes="(sum w u / |sum w u|) sum w |x| per tensor, with u = x / |x|. mergekit goes on in the "
    "tangent space, where the weighted sum is zero by construction: the result is the same. Two "
    "opposite tensors are interpolated linearly; more that cancel are no model. `deltas` is what a "
    "`base_model` asks for in mergekit.",
)

KARCHER = Operator(
    name="karcher",
    paper="Wang et al. 2026, https://arxiv.org/abs/2603.04972",
    summary="The point nearest to all models' directions along the sphere, at their mean length",
    parameters=(
        Parameter("max_iter", "integer", 10, "the most steps", low=1, high=1000, phase="prepare"),
        Parameter(
            "tol",
            "real",
            1e-5,
            "a smaller step ends it, a shorter tensor does not count",
            low=0.0,
            high=1.0,
            phase="prepare",
        ),
    ),
    needs_base=False,
    min_sources=2,
    max_sources=None,
    prepare=_prepare_karcher,
    apply=_apply_karcher,
    notes="Per tensor: m starts at the normalised sum of the units u = x / |x|, and goes along the "
    "sphere by the mean of their tangents at m, until a step is shorter than tol. All models count "
    "the same. A tensor that is shorter than tol in all models becomes zero, as in mergekit.",
)
