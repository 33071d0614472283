"""TSV-M: the first singular vectors of each task, made orthogonal to the others'."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from evomerge.merging.offsets import Shifted, apply_alpha, empty_shift
from evomerge.merging.operator import Block, Operator, Values
from evomerge.merging.spectra import (
    Matrix,
    Spectrum,
    average_others,
    matrices_of,
    spectra_of,
    task_rows,
    write_joined,
)
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor


def _prepare(block: Block, values: Values) -> Shifted:
    """The joined task vectors; a new rank needs no new spectra."""
    import torch

    prepared = empty_shift(block)
    average_others(block, prepared.shift)
    count = len(block.sources)
    spectra = spectra_of(block)
    for place, matrix in enumerate(matrices_of(block)):
        share = cast("float", values["rank"])
        number = int(matrix.columns * share) if share else matrix.columns // count
        kept = [one.of_matrices[place].top(max(1, number)) for one in spectra]

        left = partial(_left_rows, block, matrix, kept)
        sizes = torch.cat([one.values for one in kept])
        right = torch.cat([one.vectors for one in kept], 1)
        write_joined(matrix, left, sizes, right, prepared.shift)
    return prepared


def _left_rows(block: Block, matrix: Matrix, kept: Sequence[Spectrum], part: slice) -> Tensor:
    """Rows of the left singular vectors of one task after another."""
    import torch

    rows = (task_rows(block, matrix, source, part) for source in range(len(kept)))
    return torch.cat([a @ b.coordinates for a, b in zip(rows, kept, strict=True)], 1)


TSV_M = Operator(
    name="tsv_m",
    paper="Gargiulo et al. 2025, https://arxiv.org/abs/2412.00081 (Task Singular Vectors, TSV-M)",
    summary="Sum the task vectors' first directions, made orthogonal to each other",
    parameters=(
        Parameter("alpha", "real", 1.0, "factor of the merged task vector", low=-10, high=10),
        Parameter(
            "rank",
            "real",
            0.0,
            "share of the directions that each expert keeps; 0 for an equal part, 1/T of T experts",
            low=0,
            high=1,
            phase="prepare",
        ),
    ),
    needs_base=True,
    min_sources=1,
    max_sources=None,
    prepare=_prepare,
    apply=apply_alpha,
    notes="Per matrix: of each task vector the first r singular vectors and values, r = "
    "floor(min(m, n) / T) as published or int(rank min(m, n)), at least 1 (the published code "
    "drops a matrix that is thinner than there are experts); joined to U, S, V; base + alpha "
    "polar(U) S polar(V)', polar(X) = X (X'X)^-1/2, which is the paper's whitening by two more "
    "decompositions. Directions of singular value zero (LoRA experts) are left out: the "
    "published code lets the arbitrary vectors that stand for them take part in the whitening, "
    "where they bend the others, so that not even experts that are orthogonal to each other are "
    "summed unchanged. Experts that are the same are merged to one of them, of rank r. "
    "Embeddings and heads are matrices too, as in the published code; where that is unwanted, "
    "give them another operator by component. Tensors that are no matrices are averaged, and "
    "scaled by alpha too. Several experts' alphas, which published code accepts, multiply task "
    "vectors before anything else; that is not offered.",
)
