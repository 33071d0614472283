"""Merging state dicts in memory, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.open import open_checkpoint
from evomerge.merging.calibration.stand_in import StandIn
from evomerge.merging.materialise import Merger
from evomerge.recipe import Recipe

torch.set_num_threads(1)

States = Mapping[str, Mapping[str, Tensor]]


def merger_of(states: States, cache_bytes: int = 2**24) -> Merger:
    checkpoints = {name: open_checkpoint(state, name=name) for name, state in states.items()}
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
