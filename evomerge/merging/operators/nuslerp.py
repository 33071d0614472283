"""Spherical interpolation between two models, per tensor, per row or per column."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from evomerge.merging.operator import Block, Operator, Values, chunks, small_as_float
from evomerge.merging.operators.spherical import shares
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-7  # a shorter vector counts as if it were this long
PARALLEL = 2**-24  # 1 - cos^2 at which a float32 cosine is +-1: the angle says nothing there


@dataclass(frozen=True)
class _Grid:
    """One tensor as rows; the vectors lie along the width, or else down the columns."""

    start: int
    rows: int
    width: int
    along_width: bool

    def pieces(self) -> Iterator[tuple[slice, slice]]:
        """Some rows, and where they lie in the block."""
        for rows in chunks(self.rows, self.width):
            first = self.start + rows.start * self.width
            yield rows, slice(first, self.start + rows.stop * self.width)


def _grid(segment: slice, shape: tuple[int, ...], vectors: str) -> _Grid:
    numel = segment.stop - segment.start
    if vectors == "tensor":
        return _Grid(segment.start, numel, 1, along_width=False)
    if vectors == "rows":
        width = shape[-1] if shape else 1
        return _Grid(segment.start, numel // width, width, along_width=True)
    rows = shape[0] if shape else 1
    return _Grid(segment.start, rows, numel // rows, along_width=False)


@dataclass
class _Prepared:
    base: Tensor | None  # (numel,), where its task vectors are merged
    pair: tuple[Tensor, Tensor]  # (numel,) each
    grids: list[_Grid]
    cosines: list[Tensor]  # per tensor: (rows, 1) or (1, width), float64
    nbytes: int

    def vectors(self, grid: _Grid, place: slice) -> list[Tensor]:
        """The two models' rows, or task vectors, float32."""
        both = [model[place].float() for model in self.pair]
        if self.base is not None:
            base = self.base[place].float()
            both = [model - base for model in both]
        return [model.view(-1, grid.width) for model in both]


def _prepare(block: Block, values: Values) -> _Prepared:
    one, other = map(small_as_float, block.sources)
    base = small_as_float(cast("Tensor", block.base)) if values["deltas"] else None
    vectors = cast("str", values["vectors"])
    grids = [_grid(*place, vectors) for place in zip(block.segments, block.shapes, strict=True)]
    nbytes = block.held_bytes(one, other, base)
    prepared = _Prepared(base, (one, other), grids, [], nbytes)
    prepared.cosines = [_cosines(prepared, grid) for grid in grids]
    prepared.nbytes += sum(cosines.nbytes for cosines in prepared.cosines)
    return prepared


def _cosines(prepared: _Prepared, grid: _Grid) -> Tensor:
    """The cosine of each vector with its counterpart."""
    import torch

    sums = []
    for _, place in grid.pieces():
        x, y = (model.double() for model in prepared.vectors(grid, place))
        dim = 1 if grid.along_width else 0
        sums.append(torch.stack([(p * q).sum(dim) for p, q in ((x, y), (x, x), (y, y))]))
    dot, xx, yy = torch.cat(sums, 1) if grid.along_width else torch.stack(sums).sum(0)
    cosines = dot / (xx.sqrt().clamp(min=TINY) * yy.sqrt().clamp(min=TINY))
    clamped: Tensor = cosines.clamp(-1, 1)
    return clamped.unsqueeze(1 if grid.along_width else 0)


def _coefficients(cosines: Tensor, t: float, straight: float) -> tuple[Tensor, Tensor]:
    """sin((1-t) a) / sin a and sin(t a) / sin a; the straight line's where vectors are parallel."""
    import torch

    parallel = (1 - cosines.square() <= PARALLEL) | (cosines.abs() > straight)
    angle = torch.acos(torch.where(parallel, 0, cosines))
    first = torch.where(parallel, 1 - t, torch.sin((1 - t) * angle) / torch.sin(angle))
    second = torch.where(parallel, t, torch.sin(t * angle) / torch.sin(angle))
    return first.float(), second.float()


def _apply(prepared: _Prepared, values: Values, out: Tensor) -> None:
    t = shares("nuslerp", cast("tuple[float, ...]", values["weight"]))[1]
    straight = cast("float", values["straight_above"])
    for grid, cosines in zip(prepared.grids, prepared.cosines, strict=True):
        first, second = _coefficients(cosines, t, straight)
        for rows, place in grid.pieces():
            of_rows = rows if grid.along_width else slice(None)
            x, y = prepared.vectors(grid, place)
            merged = x.mul(first[of_rows]).add_(y.mul(second[of_rows])).view(-1)
            if prepared.base is not None:
                merged.add_(prepared.base[place])
            out[place].copy_(merged)


NUSLERP = Operator(
    name="nuslerp",
    paper="Shoemake 1985, https://doi.org/10.1145/325165.325242 (sec. 3.3), as mergekit has it",
    summary="Between two models along a great circle, each with its weight",
    parameters=(
        Parameter("weight", "real", 1.0, "share of a source", low=-10, high=10, per_source=True),
        Parameter(
            "vectors",
            "choice",
            "tensor",
            "what has an angle of its own",
            options=("tensor", "rows", "columns"),
            phase="prepare",
        ),
        Parameter("deltas", "flag", False, "merge task vectors, add the base", phase="prepare"),
        Parameter(
            "straight_above",
            "real",
            1.0,
            "where the size of two vectors' cosine is larger, go along a straight line",
            low=0.0,
            high=1.0,
        ),
    ),
    needs_base=False,
    min_sources=2,
    max_sources=2,
    prepare=_prepare,
    apply=_apply,
    notes="Slerp with t = w_2 / (w_1 + w_2), of whole tensors, of rows (along the last dimension) "
    "or of columns (along the first). In mergekit these are `nuslerp_flatten: true`; `false`; and "
    "`false` with `nuslerp_row_wise: true`, which works along columns in spite of its name. "
    "`deltas` is what a `base_model` asks for there. With straight_above 0.9995 it is mergekit's "
    "slerp, from the first source to the second. Weights that cancel are refused, where "
    "mergekit takes t = 1/2.",
)
