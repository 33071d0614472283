"""Some recipes of a space: what is looked at before a search, to know what it may ask for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from evomerge.protocols import SearchSpace
from evomerge.recipe import Recipe

SAMPLES = 32  # random recipes that are looked at
STREAM = 2  # of the run's seed, that they are from


def some_recipes(space: SearchSpace, seed: int) -> Iterator[Recipe]:
    """A space's designs, and some random recipes."""
    generator = np.random.default_rng(np.random.SeedSequence([seed, STREAM]))
    for genome in (*space.designs(), *(space.sample(generator) for _ in range(SAMPLES))):
        if not space.violations(genome):
            yield space.decode(genome)
