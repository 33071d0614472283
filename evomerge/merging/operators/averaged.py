"""What spectral operators do with tensors that are no matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evomerge.merging.offsets import offsets
from evomerge.merging.operator import Block, parts_of
from evomerge.merging.spectra import others_of

if TYPE_CHECKING:
    from torch import Tensor


def average_others(block: Block, shift: Tensor) -> None:
    """Write the mean task vector of all tensors that are no matrices."""
    for segment in others_of(block):
        for part in parts_of(segment, len(block.sources)):
            shift[part] = offsets(block, part).mean(0)
