"""Merges that are one tensor plus a weighted sum of others, all of them prepared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.merging import passes
from evomerge.merging.operator import Block
from evomerge.merging.order import memory_bytes
from evomerge.merging.reads import Models

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


def apply_parts(prepared: Parts, weights: Sequence[float], out: Tensor) -> bool | None:
    """Write the start and the weighted parts."""
    return passes.weighted_sum(prepared.models, np.array([1.0, *weights])[:, None], out)
