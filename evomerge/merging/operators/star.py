"""STAR: cut every task vector's spectrum, make up for the rest, average."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from evomerge.merging.offsets import Shifted, apply_alpha, empty_shift
from evomerge.merging.operator import Block, Operator, Values
from evomerge.merging.spectra import Spectrum, average_others, matrices_of, spectra_of, task_rows
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor


def _prepare(block: Block, values: Values) -> Shifted:
    """The mean of what is left of the task vectors; a new eta needs no new spectra."""
    import torch

    prepared = empty_shift(block)
    average_others(block, prepared.shift)
    share, count = cast("float", values["eta"]) / 100, len(block.sources)
    spectra = spectra_of(block)
    for place, matrix in enumerate(matrices_of(block)):
        kept = [_cut(one.of_matrices[place], share) for one in spectra]
        target = matrix.of(prepared.shift)
        joined = torch.cat([vectors for vectors, _ in kept], 1)
        for part in matrix.parts():
            # Onto the first right singular vectors: the sum of the first u s v'.
            reduced = [
                task_rows(block, matrix, source, part).float() @ vectors * (scale / count)
                for source, (vectors, scale) in enumerate(kept)
            ]
            target[part] = torch.cat(reduced, 1) @ joined.t()
    return prepared


def _cut(spectrum: Spectrum, share: float) -> tuple[Tensor, float]:
    """The first directions whose values reach a share of the sum, and the sum over theirs."""
    sums = spectrum.values.cumsum(0)
    total = float(sums[-1])
    count = min(int((sums < share * total).sum()) + 1, spectrum.rank)
    kept = float(sums[count - 1]) if count else 0.0
    return spectrum.vectors[:, :count], total / kept if kept else 0.0


STAR = Operator(
    name="star",
    paper="Lee et al. 2025, https://arxiv.org/abs/2502.10339 (spectral truncation and rescale)",
    summary="Average task vectors of fewer directions, each as large as before by nuclear norm",
    parameters=(
        Parameter(
            "eta",
            "real",
            40.0,
            "percent of the nuclear norm that the directions kept must reach",
            low=0,
            high=100,
            phase="prepare",
        ),
        Parameter("alpha", "real", 1.0, "factor of the averaged task vectors", low=-10, high=10),
    ),
    needs_base=True,
    min_sources=1,
    max_sources=None,
    prepare=_prepare,
    apply=apply_alpha,
    notes="Base + alpha mean_k(star(tau_k)). star keeps the first r singular directions of a "
    "matrix, r the first index whose cumulated singular values reach eta % of their sum, and "
    "scales them so that their sum is what it was. Embeddings and heads are matrices too. "
    "Tensors that are no matrices are averaged; the published code is given the matrices of "
    "linear layers alone. A new eta costs no new decomposition, only products of matrices.",
)
