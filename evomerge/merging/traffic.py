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
    """Bytes that are read from the models and written to the one in memory.

    All tensors count, also those that a worker need not write because they are as before.
    """
    merger = Merger(checkpoints, anatomy, recipe.base)
    base = checkpoints[recipe.base]
    total = 0
    for group, effective in merger.plan(recipe).items():
        for origin in group.origins:
            read = [recipe.base]
            if effective is not None:
                needs_base = operator_of(effective).needs_base
                read = [*effective.sources, *([recipe.base] if needs_base else [])]
            widths = [_width(checkpoints[model], origin, base) for model in (recipe.base, *read)]
            total += math.prod(base.shape(origin)) * sum(widths)
    return total


def _width(model: Checkpoint, origin: str, base: Checkpoint) -> int:
    """Bytes of an entry of what a model gives beside the base's tensor."""
    return (model if origin in set(model.names) else base).dtype(origin).itemsize
