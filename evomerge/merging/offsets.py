"""Task vectors in pieces, and merges that are the base plus one prepared shift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from evomerge.merging.operator import Block, Values, chunks, small_as_float

if TYPE_CHECKING:
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


def empty_shift(block: Block) -> Shifted:
    """A block's base with room for a shift."""
    import torch

    base = small_as_float(cast("Tensor", block.base))
    shift = torch.empty(block.numel, dtype=torch.float32, device=base.device)
    return Shifted(base, shift, block.held_bytes(base) + shift.nbytes)


def apply_shift(prepared: Shifted, values: Values, out: Tensor) -> None:
    """Write W_0 + lambda shift; lambda is 1 where the operator has none."""
    factor = cast("float", values.get("lambda", 1.0))
    for part in chunks(out.numel()):
        out[part].copy_(prepared.base[part].float().add(prepared.shift[part], alpha=factor))
