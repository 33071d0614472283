"""What one worker of an experiment needs of a machine, from the headers of the models' files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from evomerge.checkpoints.open import Checkpoint
from evomerge.merging.costs import Costs
from evomerge.merging.stack import SPARE_BYTES
from evomerge.pools.placement import Demand, demand_of
from evomerge.pools.worker import CACHE_BYTES
from evomerge.protocols import SearchSpace
from evomerge.recipe import Recipe

SAMPLES = 32  # recipes whose sizes are looked at
SIZES = 2  # the stream of the run's seed that they are from


def demand_for(
    checkpoints: Mapping[str, Checkpoint],
    template: Recipe,
    space: SearchSpace,
    costs: Costs,
    threads: int,
) -> Demand:
    """Bytes and threads of a worker; the largest structure is that of some random recipes."""
    base, dtype = checkpoints[template.base], template.dtype
    entries = {name: math.prod(base.shape(name)) for name in base.names}
    parameters = max(1, sum(entries.values()))
    stored = base.size_bytes / parameters
    bytes_each = stored if dtype is None else getattr(torch, dtype).itemsize
    of_base = costs.of_base(template)
    recipes = list(_samples(space, template.mask_seed))
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


def _samples(space: SearchSpace, seed: int) -> Iterator[Recipe]:
    """Some recipes of a space."""
    generator = np.random.default_rng(np.random.SeedSequence([seed, SIZES]))
    for genome in (space.sample(generator) for _ in range(SAMPLES)):
        if not space.violations(genome):
            yield space.decode(genome)
