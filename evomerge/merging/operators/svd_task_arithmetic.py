"""Task arithmetic with task vectors of low rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from evomerge.merging import passes
from evomerge.merging.operator import Block, Operator, Values, chunks, small_as_float
from evomerge.merging.order import memory_bytes
from evomerge.merging.reads import Models
from evomerge.merging.spectra import matrices_of, others_of, spectra_of, task_rows
from evomerge.records import Parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass
class Parts:
    """A tensor to start from, and what is added to it, each with a weight of its own.

    models: first the start, then one task vector for each source, (numel,) float32.
    arrays: the last of these tensors, as far as they are ours and on a CPU.
    held_bytes: what all others cost.
    """

    models: Models
    arrays: list[NDArray[Any]]
    held_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.held_bytes + sum(map(memory_bytes, self.arrays))

    def spill(self, move: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Let `move` bring the large arrays elsewhere."""
        import torch

        self.arrays = [move(array) for array in self.arrays]
        tensors = list(self.models.sources)
        tensors[len(tensors) - len(self.arrays) :] = map(torch.from_numpy, self.arrays)
        self.models = Models(None, tensors, self.models.segments)


def room_for_parts(block: Block, start: Tensor | None) -> Parts:
    """Room for one task vector of each source, in memory or, on a CPU, in a file.

    start: what they are added to; None for room for that, too.
    """
    import torch

    device, count = block.sources[0].device, len(block.sources) + (start is None)
    arrays: list[NDArray[Any]] = []
    held = block.held_bytes(start)
    if device.type == "cpu":
        arrays = [block.around.room(block.numel, np.float32) for _ in range(count)]
        tensors = [torch.from_numpy(array) for array in arrays]
    else:
        tensors = [torch.empty(block.numel, device=device) for _ in range(count)]
        held += sum(tensor.nbytes for tensor in tensors)
    if start is not None:
        tensors.insert(0, start)
    return Parts(Models(None, tensors, [slice(0, block.numel)]), arrays, held)


def apply_parts(prepared: Parts, weights: list[float], out: Tensor) -> bool | None:
    """Write the start and the weighted parts."""
    return passes.weighted_sum(prepared.models, np.array([1.0, *weights])[:, None], out)


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
