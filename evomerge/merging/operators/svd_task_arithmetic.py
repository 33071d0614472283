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
    held_bytes: what the start costs.
    """

    models: Models
    added: list[NDArray[Any]]  # the task vectors, where they are arrays
    held_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        on_device = 0 if self.added else sum(one.nbytes for one in self.models.sources[1:])
        return self.held_bytes + on_device + sum(map(memory_bytes, self.added))

    def spill(self, move: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Let `move` bring the large arrays elsewhere."""
        import torch

        self.added = [move(array) for array in self.added]
        if self.added:
            tensors = [self.models.sources[0], *map(torch.from_numpy, self.added)]
            self.models = Models(None, tensors, self.models.segments)


def room_for_parts(block: Block, start: Tensor, held_bytes: int) -> Parts:
    """Room for one task vector of each source, in memory or, on a CPU, in a file."""
    import torch

    rooms: list[NDArray[Any]] = []
    if start.device.type == "cpu":
        rooms = [block.around.room(block.numel, np.float32) for _ in block.sources]
        added = [torch.from_numpy(room) for room in rooms]
    else:
        added = [start.new_empty(block.numel, dtype=torch.float32) for _ in block.sources]
    return Parts(Models(None, [start, *added], [slice(0, block.numel)]), rooms, held_bytes)


def apply_parts(prepared: Parts, weights: list[float], out: Tensor) -> bool | None:
    """Write the start and the weighted parts."""
    return passes.weighted_sum(prepared.models, np.array([1.0, *weights])[:, None], out)


def _prepare(block: Block, values: Values) -> Parts:
    """The first directions of each task vector; a new rank needs no new spectra."""
    base = cast("Tensor", block.base)
    start = small_as_float(base)
    prepared = room_for_parts(block, start, block.held_bytes(start))
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
