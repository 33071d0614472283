"""A search space whose genomes are points of the unit cube."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.genes import Constraint, Gene
from evomerge.recipe import Merge, Recipe, Slot
from evomerge.records import Genome
from evomerge.search_spaces.codec import Codec
from evomerge.search_spaces.fulfilled import fulfilled
from evomerge.search_spaces.outside import outside_merges


class CubeSpace(ABC):
    """What such spaces share: genomes are lists of coordinates, which a codec turns into values.

    A kind sets `codec`, and says what values mean (`decode`) and which values a recipe has
    (`encode`).
    """

    codec: Codec

    def __init__(self, template: Recipe, anatomy: Anatomy) -> None:
        self.template = template
        self.anatomy = anatomy
        self.experts = tuple(name for name in template.models if name != template.base)

    @abstractmethod
    def decode(self, genome: Genome) -> Recipe:
        """The recipe of a genome without violations. Pure."""

    @abstractmethod
    def encode(self, recipe: Recipe) -> Genome:
        """The genome of a recipe of this space: `decode(encode(r)) == r`.

        Raises:
            ValueError: the space cannot express the recipe.
        """

    @abstractmethod
    def designs(self) -> list[Genome]:
        """Genomes worth trying first."""

    def alone(self) -> dict[str, Genome]:
        """The genome of each expert alone, by name; none, unless a kind says otherwise."""
        return {}

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """What binds genes together."""
        return self.codec.constraints

    @property
    def genes(self) -> tuple[Gene, ...]:
        """Typed, in the order of the genome's coordinates."""
        return self.codec.genes

    def violations(self, genome: Genome) -> list[str]:
        """What makes the genome no point of the space."""
        return self.codec.violations(genome)

    def sample(self, generator: np.random.Generator) -> Genome:
        """A point of the cube, uniformly."""
        point: list[float] = generator.random(len(self.genes)).tolist()
        return point

    def active(self, genome: Genome) -> list[bool]:
        """Which genes matter where the genome stands."""
        return self.codec.active(self.codec.values(genome))

    def where_it_matters(
        self, number: int, point: Sequence[float], generator: np.random.Generator
    ) -> Genome:
        """A point beside this one at which a gene matters, as far as conditions go."""
        return fulfilled(self.codec, point, number, generator)

    def encode_values(self, recipe: Recipe, values: dict[str, Any]) -> Genome:
        """The genome with these values, if it decodes to the recipe.

        Raises:
            ValueError: it does not.
        """
        genome = self.codec.genome(values)
        if self.violations(genome) or self.decode(genome) != recipe:
            raise ValueError("the recipe says something that no gene of this space says")
        return genome

    def check_template(self, recipe: Recipe) -> None:
        """What no gene of any space changes must be as in all recipes of this one.

        Raises:
            ValueError: naming what differs.
        """
        for name in ("base", "dtype", "tokenizer", "chat_template", "mask_seed"):
            mine, theirs = getattr(self.template, name), getattr(recipe, name)
            if mine != theirs:
                raise ValueError(f"{name}: the recipe has {theirs!r} where this space has {mine!r}")

    def of_layers(self, slots: Sequence[Slot], outside: str) -> Recipe:
        """The recipe of these layers, over the base; `outside` as the files have it."""
        return self.recipe(
            base_alone(self.template.base),
            outside=outside_merges(outside, self.anatomy, self.experts, slots),
            slots=tuple(slots),
        )

    def recipe(
        self,
        default: Merge,
        *,
        outside: dict[Any, Merge] | None = None,
        slots: tuple[Slot, ...] | None = None,
        tensors: dict[str, Merge] | None = None,
    ) -> Recipe:
        """The template with these merges, which are known to be valid, so that nobody looks again.

        Validation takes longer than all the rest of decoding.
        """
        said = {
            "default": default,
            "outside": outside or {},
            "slots": slots,
            "tensors": tensors or {},
        }
        return Recipe.of_valid(**{**dict(self.template), **said})


def base_alone(base: str) -> Merge:
    """The base's tensors as they are."""
    return Merge.of_valid(operator="passthrough", sources=(base,))
