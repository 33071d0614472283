"""Task vectors in pieces, and merges that are the base plus one prepared shift."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from evomerge.merging import passes
from evomerge.merging.operator import Block, Values, small_as_float
from evomerge.merging.order import memory_bytes
from evomerge.merging.reads import Models

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


def offsets(block: Block, part: slice) -> Tensor:
    """The task vectors of a part of a block, shape (sources, entries), float32."""
    import torch

    base = cast("Tensor", block.base)[part].float()
    return torch.stack([source[part].float() - base for source in block.sources])


@dataclass
class Shifted:
    """A base, and what is added to it: all that is left of the sources."""

    base: Tensor  # (numel,)
    shift: Tensor  # (numel,) float32
    nbytes: int
    is_moved: bool = field(default=False, init=False)  # two may hold it, and each let it be moved

    @cached_property
    def models(self) -> Models:
        """Both, as a weighted sum reads them."""
        return Models(None, [self.base, self.shift], [slice(0, self.shift.numel())])

    def spill(self, move: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Let `move` bring the shift elsewhere."""
        import torch

        if self.shift.device.type == "cpu" and not self.is_moved:
            moved = move(self.shift.numpy())
            self.nbytes += memory_bytes(moved) - self.shift.nbytes
            self.shift, self.is_moved = torch.from_numpy(moved), isinstance(moved, np.memmap)
            self.__dict__.pop("models", None)  # it knows the old address


def empty_shift(block: Block) -> Shifted:
    """A block's base with room for a shift."""
    import torch

    base = small_as_float(cast("Tensor", block.base))
    shift = torch.empty(block.numel, dtype=torch.float32, device=base.device)
    return Shifted(base, shift, block.held_bytes(base) + shift.nbytes)


def apply_shift(prepared: Shifted, values: Values, out: Tensor) -> bool | None:
    """Write W_0 + lambda shift; lambda is 1 where the operator has none."""
    factor = cast("float", values.get("lambda", 1.0))
    return passes.weighted_sum(prepared.models, np.array([[1.0], [factor]]), out)


def apply_alpha(prepared: Shifted, values: Values, out: Tensor) -> bool | None:
    """The same where the factor is called alpha, as papers do."""
    return apply_shift(prepared, {"lambda": values["alpha"]}, out)
