"""Task arithmetic with task vectors of low rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from evomerge.merging.operator import Block, Operator, Values, chunks, small_as_float
from evomerge.merging.parts import Parts, apply_parts, room_for_parts
from evomerge.merging.spectra import matrices_of, others_of, spectra_of, task_rows
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor


def _prepare(block: Block, values: Values) -> Parts:
    """The first directions of each task vector; a new rank needs no new spectra."""
    base = cast("Tensor", block.base)
    prepared = room_for_parts(block, small_as_float(base))
    share = cast("float", values["rank"])
    for source, spectra in enumerate(spectra_of(block)):
        low = prepared.models.sources[1 + source]
        for segment in others_of(block):
            for part in chunks(segment.stop - segment.start):
                piece = slice(segment.start + part.start, segment.start + part.stop)
                low[piece] = block.sources[source][piece].float() - base[piece].float()
        for matrix, spectrum in zip(matrices_of(block), spectra.of_matrices, strict=True):
            count = min(max(1, int(share * matrix.columns)), spectrum.rank)
            vectors, target = spectrum.vectors[:, :count], matrix.of(low)
            for part in matrix.parts():
                rows = task_rows(block, matrix, source, part).float()
                target[part] = rows @ vectors @ vectors.t()
    return prepared


def _apply(prepared: Parts, values: Values, out: Tensor) -> bool | None:
    """Write W_0 + lambda sum_k w_k tau_k."""
    factor = cast("float", values["lambda"])
    weights = [factor * weight for weight in cast("tuple[float, ...]", values["weight"])]
    return apply_parts(prepared, weights, out)


SVD_TASK_ARITHMETIC = Operator(
    name="svd_task_arithmetic",
    paper="Ilharco et al. 2023, https://arxiv.org/abs/2212.04089, on task vectors of low rank",
    summary="Weighted sum of task vectors, each cut down to its first singular directions",
    parameters=(
        Parameter(
            "weight", "real", 1.0, "factor of a task vector", low=-10, high=10, per_source=True
        ),
        Parameter("lambda", "real", 1.0, "factor of the sum", low=-10, high=10),
        Parameter(
            "rank",
            "real",
            0.1,
            "share of the directions of a matrix that are kept",
            low=0,
            high=1,
            phase="prepare",
        ),
    ),
    needs_base=True,
    min_sources=1,
    max_sources=None,
    prepare=_prepare,
    apply=_apply,
    notes="Base + lambda sum w_k low(tau_k); low keeps the int(rank min(m, n)) first singular "
    "directions of a matrix, at least 1, as they are: at rank 1 it is task arithmetic, without "
    "normalising. Embeddings and heads are matrices too; all other tensors are kept whole. What "
    "is prepared costs 4 bytes an entry and expert, in memory or in a file.",
)
