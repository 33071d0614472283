"""What a candidate costs in memory traffic."""

from __future__ import annotations

import math
from collections.abc import Mapping

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.open import Checkpoint
from evomerge.merging.blocks import operator_of
from evomerge.merging.materialise import Merger
from evomerge.recipe import Recipe


def bytes_moved(recipe: Recipe, checkpoints: Mapping[str, Checkpoint], anatomy: Anatomy) -> int:
    """Bytes that are read from the models and written to the one in memory, at most.

    All tensors count, also those that a worker need not write because they are as before.
    """
    merger = Merger(checkpoints, anatomy, recipe.base)
    base = checkpoints[recipe.base]
    total = 0
    for group, effective in merger.plan(recipe).items():
        for origin in group.origins:
            width = base.dtype(origin).itemsize
            read = 1
            if effective is not None:
                read = len(effective.sources) + operator_of(effective).needs_base
            total += math.prod(base.shape(origin)) * width * (1 + read)
    return total
