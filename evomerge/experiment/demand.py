"""What one worker of an experiment needs of a machine, from the headers of the models' files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from evomerge.checkpoints.open import Checkpoint
from evomerge.merging.costs import Costs
from evomerge.merging.stack import SPARE_BYTES
from evomerge.pools.placement import Demand, demand_of
from evomerge.pools.worker import CACHE_BYTES
from evomerge.recipe import Recipe


def demand_for(
    checkpoints: Mapping[str, Checkpoint],
    template: Recipe,
    recipes: Sequence[Recipe],
    costs: Costs,
    threads: int,
) -> Demand:
    """Bytes and threads of a worker; the largest structure is that of some recipes."""
    base, dtype = checkpoints[template.base], template.dtype
    entries = {name: math.prod(base.shape(name)) for name in base.names}
    parameters = max(1, sum(entries.values()))
    stored = base.size_bytes / parameters
    bytes_each = stored if dtype is None else getattr(torch, dtype).itemsize
    of_base = costs.of_base(template)
    largest = max([costs(recipe)["parameters"] for recipe in recipes], default=0)
    is_arranged = any(not recipe.keeps_layers(of_base["layers"]) for recipe in recipes)
    return demand_of(
        parameters,
        bytes_each,
        shared_bytes=sum(checkpoint.size_bytes for checkpoint in checkpoints.values()),
        num_models=len(checkpoints),
        cache_bytes=CACHE_BYTES,
        largest_parameters=max(entries.values(), default=0),
        growth=largest / of_base["parameters"],
        spare_bytes=SPARE_BYTES if is_arranged else 0,
        threads=threads,
    )
