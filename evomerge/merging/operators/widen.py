"""WIDEN: columns weighed by how far each expert moved their norms and directions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from evomerge.merging.entrywise import add_by_column, add_by_row
from evomerge.merging.operator import Block, Operator, Values
from evomerge.merging.reads import Models
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor

_SAME = 1e-12  # 1 - cos of columns of one direction, but for float64's rounding
_ROWS = 2**18  # entries that are looked at at once, so that sums do not hang on blocks


@dataclass
class _Ranks:
    """How far one source has moved, (2, columns) of each matrix: ranks of norms, of directions.

    Of a vector there are no ranks: its task vector says it.
    """

    of: tuple[NDArray[np.float32], ...]  # by tensor

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(one.nbytes for one in self.of)


@dataclass
class _Piece:
    """One tensor of a block: what is read of it, and how its columns are laid."""

    models: Models
    segment: slice
    significance: NDArray[np.float32]  # (kinds, sources, columns)
    by_row: bool  # the columns are rows of the tensor as it is stored


@dataclass
class _Prepared:
    pieces: list[_Piece]
    held_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.held_bytes + sum(piece.significance.nbytes for piece in self.pieces)


def _prepare(block: Block, values: Values) -> _Prepared:
    del values
    ranks = [
        block.around.kept("widen ranks", partial(_ranks, block, k), source=name)
        for k, name in enumerate(block.source_names)
    ]
    pieces = []
    base = cast("Tensor", block.base)
    for number, (segment, shape) in enumerate(zip(block.segments, block.shapes, strict=True)):
        by_row = len(shape) > 1 and _is_transposed(block, number)
        if len(shape) > 1:
            found = np.stack([one.of[number] for one in ranks], 1)
        else:
            origin = base[segment].float()
            moved = [(source[segment].float() - origin).abs() for source in block.sources]
            found = np.stack([one.cpu().numpy() for one in moved])[None]
        size = segment.stop - segment.start
        spans = [slice(0, size)]
        if by_row:
            width = size // shape[0]
            spans = [slice(i * width, (i + 1) * width) for i in range(shape[0])]
        sources = [source[segment] for source in block.sources]
        models = Models(base[segment], sources, spans)
        pieces.append(_Piece(models, segment, found, by_row))
    return _Prepared(pieces, block.held_bytes(base, *block.sources))


def _is_transposed(block: Block, number: int) -> bool:
    """Whether a matrix's rows, and not its columns, are what is weighed."""
    return block.around.components[number] == "embedding"


def _ranks(block: Block, k: int) -> _Ranks:
    """The ranks of one source in all matrices of a block."""
    found = []
    for number, (segment, shape) in enumerate(zip(block.segments, block.shapes, strict=True)):
        if len(shape) < 2:
            found.append(np.empty((2, 0), np.float32))
            continue
        base, source = (
            model[segment].view(shape[0], -1)
            for model in (cast("Tensor", block.base), block.sources[k])
        )
        dim = 1 if _is_transposed(block, number) else 0
        found.append(np.stack([_ranked(one) for one in _moves(base, source, dim)]))
    return _Ranks(tuple(found))


def _moves(base: Tensor, source: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """|change of norm| and 1 - cos of vectors along a dimension of matrices, float64."""
    import torch

    rows, columns = base.shape
    sums = torch.zeros(4, columns if dim == 0 else rows, dtype=torch.float64, device=base.device)
    step = max(1, _ROWS // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        x, y = base[part].double(), source[part].double()
        moved = (x != y).double()
        found = torch.stack([(x * x).sum(dim), (y * y).sum(dim), (x * y).sum(dim), moved.sum(dim)])
        if dim == 0:
            sums += found
        else:
            sums[:, part] = found
    (before, after, dot), moved = sums[:3], sums[3] > 0
    lengths = before.sqrt() * after.sqrt()
    turned = 1 - dot / lengths.masked_fill(lengths == 0, 1)  # 1 where one of them has no length
    turned = turned.mul_(moved).mul_(turned > _SAME)
    return (after.sqrt() - before.sqrt()).abs_().mul_(moved), turned


def _ranked(values: Tensor) -> NDArray[np.float32]:
    """Each value's rank from 0 up, over their number; equal ones in their order."""
    order = np.argsort(values.cpu().numpy(), kind="stable")
    ranks = np.empty(len(order), np.float32)
    ranks[order] = np.arange(len(order), dtype=np.float32) / np.float32(len(order))
    return ranks


def _apply(prepared: _Prepared, values: Values, out: Tensor) -> bool | None:
    """Write W_0 + sum_k score_k tau_k, a score for each column (or entry of a vector)."""
    above, calibrated = cast("float", values["above"]), cast("float", values["score"])
    finite: list[bool | None] = []
    for piece in prepared.pieces:
        factors = column_scores(piece.significance, above, calibrated)
        target = out[piece.segment]
        add = add_by_row if piece.by_row else add_by_column
        finite.append(add(piece.models, factors, target))
    return None if None in finite else all(finite)


def column_scores(
    significance: NDArray[np.float32], above: float, calibrated: float
) -> NDArray[np.float32]:
    """Scores of columns, (sources, columns), the mean over kinds of significance.

    significance: (kinds, sources, columns). A score is the softmax over the sources, or, where it
    is more than `above` times the source's mean, the calibrated one.
    """
    raised = np.exp(significance - significance.max(1, keepdims=True))
    scores = raised / raised.sum(1, keepdims=True)
    mean = significance.mean(2, keepdims=True, dtype=np.float64).astype(np.float32)
    scores[significance > np.float32(above) * mean] = calibrated
    merged: NDArray[np.float32] = scores.mean(0, dtype=np.float32)
    return merged


WIDEN = Operator(
    name="widen",
    paper="Yu et al. 2024, WIDEN, https://arxiv.org/abs/2408.03092 (weight disentanglement)",
    summary="Columns weighed by how far each expert moved their norms and directions",
    parameters=(
        Parameter(
            "above",
            "real",
            1.0,
            "how far above an expert's mean a rank is calibrated",
            low=0.0,
            high=1000.0,
        ),
        Parameter("score", "real", 1.0, "what it is calibrated to", low=-10, high=10),
    ),
    needs_base=True,
    min_sources=1,
    max_sources=None,
    prepare=_prepare,
    apply=_apply,
    notes="Of each input column of a matrix (out x in), and each row of an embedding: how much its "
    "norm has changed, and 1 - cos of its old and new direction. Both are ranked within the "
    "expert, 0 to (width - 1)/width, equal ones by their place. A score is the softmax of the "
    "ranks over the experts, or `score` where the rank is more than `above` times the expert's "
    "mean rank; a column's weight is the mean of its two scores. Base + sum weight_k tau_k. "
    "Vectors the same, with |tau_k| itself in place of ranks. Weights do not sum to 1: a column "
    "that matters to all experts takes all task vectors in full. As in the authors' code; columns "
    "without length, of which it makes NaN, count as turned by 1 - cos = 1, or 0 if nothing moved. "
    "Tensors of more dimensions are matrices of their first one and the rest.",
)
