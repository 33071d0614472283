"""Merging state dicts in memory, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints.adapters import as_adapter
from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.open import open_checkpoint
from evomerge.merging import OPERATORS
from evomerge.merging.calibration.stand_in import StandIn
from evomerge.merging.materialise import Merger
from evomerge.recipe import Recipe

torch.set_num_threads(1)

States = Mapping[str, Mapping[str, Tensor]]


def merger_of(states: States, cache_bytes: int = 2**24, operator: str = "") -> Merger:
    """What merges the states; where the operator wants adapters, the same as adapters."""
    checkpoints = {name: open_checkpoint(state, name=name) for name, state in states.items()}
    if operator in OPERATORS and OPERATORS[operator].needs_adapters:
        checkpoints |= {
            name: as_adapter(checkpoint, checkpoints["base"])
            for name, checkpoint in checkpoints.items()
            if name != "base"
        }
    anatomy, statistics = anatomy_of(checkpoints["base"]), StandIn(checkpoints)
    return Merger(checkpoints, anatomy, "base", cache_bytes, statistics=statistics)


def recipe_of(
    models: Any, operator: str, sources: Any = None, *, mask_seed: int = 0, **parameters: Any
) -> Recipe:
    default = {"operator": operator, "parameters": parameters, "sources": sources}
    return Recipe.model_validate(
        {
            "base": "base",
            "models": {name: name for name in models},
            "default": default,
            "mask_seed": mask_seed,
        }
    )
