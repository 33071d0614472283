"""Lineages as a search space: descendants of the models by mixing ratio and split point (M2N2).

A point is a table, and has no fixed dimension: there are no genes, and a searcher makes new points
by crossing known ones. As JSON

    {"stops": [120, 410], "weights": {"math": [0.3, 1.0], "code": [0.8, 0.0]}}

says that entries 0 to 119 of the flattened parameters are .3 of math's and .8 of code's, and
entries 120 to 409 are math's own. See lineage.py for how descendants come by such tables.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.genes import Constraint, Gene
from evomerge.merging.operators.segments import joined_stretches
from evomerge.recipe import SEGMENTS_DEFAULT, Recipe, Segments
from evomerge.records import Genome
from evomerge.search_spaces.config import SpaceConfig
from evomerge.search_spaces.lineage import Angle, Gram, Lineage, cross, rounded

MOST_BIRTHS = 4  # of a random lineage
LARGEST = sys.float_info.max


class Seeds(Protocol):
    """The flattened parameters of the models, as merging/flat_order.py lays them out."""

    total: int  # entries of each model

    def read(self, model: str, start: int, stop: int) -> NDArray[Any]:
        """Entries [start, stop) of a model, shape (stop - start,), of a floating dtype."""
        ...


class NichesConfig(SpaceConfig):
    """A search space file of kind `niches`.

    angle: of the whole vectors, as in the published code, or of each part alone.
    split: whether children have a split point; without one, they are SLERP_mix of their parents.
    seeds: what lineages begin with: the experts, or the base, too.
    """

    kind: Literal["niches"]
    angle: Angle = "whole"
    split: bool = True
    seeds: Literal["experts", "all"] = "experts"


class Niches:
    """Lineages over a family of models.

    template: what all recipes share; its merges do not count. seeds: needed to make new lineages;
    without it, all the base's tensors are taken to be floating-point and every model's.
    """

    def __init__(
        self,
        config: NichesConfig,
        template: Recipe,
        anatomy: Anatomy,
        *,
        seeds: Seeds | None = None,
    ) -> None:
        self._config = config
        self._template = template
        experts = sorted(name for name in template.models if name != template.base)
        self.seeds = (*experts, template.base) if config.seeds == "all" else tuple(experts)
        if not self.seeds:
            raise ConfigurationError(Problem("experts", "niches needs at least one"))
        self.total = sum(anatomy.sizes.values()) if seeds is None else seeds.total
        self._read = None if seeds is None else seeds.read
        self._gram: Gram | None = None
        self._shared = {
            **dict(template),
            "default": SEGMENTS_DEFAULT,
            "outside": {},
            "slots": None,
            "tensors": {},
        }
        self.genes: tuple[Gene, ...] = ()
        self.constraints: tuple[Constraint, ...] = ()

    def decode(self, genome: Genome) -> Recipe:
        """The recipe of a table without violations, which is not validated again."""
        weights = {
            name: tuple([weight + 0.0 for weight in genome["weights"][name]])
            for name in self.seeds
            if any(genome["weights"][name])
        }
        segments = Segments.model_construct(stops=tuple(genome["stops"]), weights=weights)
        return Recipe.model_construct(**{**self._shared, "segments": segments})

    def encode(self, recipe: Recipe) -> Genome:
        """The table of a recipe with segments.

        Raises:
            ValueError: it has none, or differs in what no table says.
        """
        if recipe.segments is None:
            raise ValueError("segments: the recipe has none, and this space has nothing else")
        for name in Recipe.model_fields:
            mine, theirs = self._shared.get(name), getattr(recipe, name)
            if name != "segments" and mine != theirs:
                raise ValueError(f"{name}: the recipe has {theirs!r} where this space has {mine!r}")
        zeros = dict.fromkeys(self.seeds, (0.0,) * len(recipe.segments.stops))
        table = {**zeros, **recipe.segments.weights}
        genome = {
            "stops": list(recipe.segments.stops),
            "weights": {name: list(weights) for name, weights in table.items()},
        }
        if problems := self.violations(genome):
            raise ValueError("; ".join(problems))
        return genome

    def violations(self, genome: Genome) -> list[str]:
        """What is wrong with a table: its stops, its models, its coefficients."""
        if not isinstance(genome, dict) or set(genome) != {"stops", "weights"}:
            return ["expected a table with stops and weights"]
        stops, weights = genome["stops"], genome["weights"]
        if not isinstance(stops, list) or not stops or any(type(stop) is not int for stop in stops):
            return ["stops: expected a list of whole numbers"]
        if not isinstance(weights, dict):
            return ["weights: expected a list of coefficients for each of the seeds"]
        found = [*self._stop_problems(stops), *self._weight_problems(weights, len(stops))]
        if not found and not any(any(weights[name]) for name in self.seeds):
            found.append("weights: all coefficients are 0")
        return found

    def sample(self, generator: np.random.Generator) -> Genome:
        """A random lineage: some births, each of two parents among the seeds and earlier births.

        Raises:
            ConfigurationError: the space was made without seeds.
        """
        known = [Lineage.seed(k, len(self.seeds), self.total) for k in range(len(self.seeds))]
        for _ in range(int(generator.integers(1, MOST_BIRTHS + 1))):
            first, second = generator.choice(len(known), 2, replace=len(known) < 2)
            mix, split = float(generator.random()), int(generator.integers(self.total))
            known.append(self._cross(known[first], known[second], mix, split))
        return self._genome(known[-1])

    def designs(self) -> list[Genome]:
        """Each seed alone, and their average."""
        count = len(self.seeds)
        alone = [Lineage.seed(k, count, self.total) for k in range(count)]
        average = Lineage(alone[0].stops, np.full((1, count), 1 / count))
        return [self._genome(lineage) for lineage in (*alone, average)]

    def alone(self) -> dict[str, Genome]:
        """The table of each expert alone."""
        base = self._template.base
        tables = zip(self.seeds, self.designs(), strict=False)  # the average comes after the seeds
        return {name: table for name, table in tables if name != base}

    def active(self, genome: Genome) -> list[bool]:
        """Nothing: there are no genes."""
        del genome
        return []

    def cross(self, first: Genome, second: Genome, mix: float, split: int) -> Genome:
        """The child of two tables; see `lineage.cross`. Without split points, `split` is ignored.

        Raises:
            ConfigurationError: the space was made without seeds.
        """
        return self._genome(self._cross(self._lineage(first), self._lineage(second), mix, split))

    def _cross(self, first: Lineage, second: Lineage, mix: float, split: int) -> Lineage:
        split = split if self._config.split else self.total
        return cross(first, second, mix, split, self._known_gram(), self._config.angle)

    def _known_gram(self) -> Gram:
        if self._gram is None:
            read = self._read
            if read is None:
                what = "this space was made without seeds, and crossing reads the models"
                raise ConfigurationError(Problem("niches", what))
            names = self.seeds
            self._gram = Gram(
                lambda seed, start, stop: read(names[seed], start, stop), len(names), self.total
            )
        return self._gram

    def _lineage(self, genome: Genome) -> Lineage:
        columns = [genome["weights"][name] for name in self.seeds]
        return Lineage(np.array(genome["stops"], np.int64), np.array(columns, np.float64).T)

    def _genome(self, lineage: Lineage) -> Genome:
        """The table, rounded, so that another library's last bits are nowhere in it."""
        stops, rows = joined_stretches(lineage.stops, rounded(lineage.coefficients))
        weights = dict(zip(self.seeds, rows.T.tolist(), strict=True))
        return {"stops": stops.tolist(), "weights": weights}

    def _stop_problems(self, stops: list[int]) -> Iterator[str]:
        if stops[0] <= 0:
            yield f"stops: expected numbers above 0, got {stops[0]}"
        for before, after in pairwise(stops):
            if after <= before:
                yield f"stops: expected ascending numbers, got {after} after {before}"
                break
        if stops[-1] != self.total:
            yield f"stops: the last one is {stops[-1]}, the models have {self.total} entries"

    def _weight_problems(self, weights: dict[str, Any], num_stretches: int) -> Iterator[str]:
        for name in sorted(weights.keys() - set(self.seeds), key=str):
            yield f"weights.{name}: is no seed ({nearest(str(name), self.seeds)})"
        for name in self.seeds:
            if name not in weights:
                yield f"weights.{name}: is missing"
                continue
            given = weights[name]
            if not isinstance(given, list) or not {*map(type, given)} <= {int, float}:
                yield f"weights.{name}: expected a list of numbers"
            elif len(given) != num_stretches:
                yield f"weights.{name}: expected {num_stretches} coefficients, got {len(given)}"
            elif not all(abs(weight) <= LARGEST for weight in given):  # NaN is not, either
                yield f"weights.{name}: holds a coefficient that is not finite"
