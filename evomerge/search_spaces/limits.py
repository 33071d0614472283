"""What candidates may cost: whoever costs more is refused before any merge."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from evomerge.errors import ConfigurationError, Problem
from evomerge.genes import Constraint, Gene
from evomerge.merging.costs import COSTS, Costs
from evomerge.protocols import LineageSpace, SearchSpace
from evomerge.recipe import Recipe
from evomerge.records import Genome
from evomerge.wording import in_short


class ShareOfBase(BaseModel):
    """A limit as a share of what the base costs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    of_base: float = Field(gt=0)


Limit = Annotated[float, Field(ge=1)] | ShareOfBase | None


class LimitsConfig(BaseModel):
    """What no candidate may exceed, by the costs of merging/costs.py."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    parameters: Limit = None
    layers: Limit = None
    bytes: Limit = None
    flops_per_token: Limit = None

    def given(self) -> dict[str, float | ShareOfBase]:
        """Those limits that there are."""
        values = {name: getattr(self, name) for name in COSTS}
        return {name: limit for name, limit in values.items() if limit is not None}

    def resolved(self, costs: Costs, template: Recipe) -> dict[str, float]:
        """Every limit as a number.

        Raises:
            ConfigurationError: a limit that no candidate can keep.
        """
        base, least = costs.of_base(template), costs.least(template)
        limits = {
            name: limit.of_base * base[name] if isinstance(limit, ShareOfBase) else limit
            for name, limit in self.given().items()
        }
        problems = [
            Problem(
                f"limits.{name}",
                f"{in_short(limit)} is too little for any model of this family",
                f"one layer, with what is outside the layers, has {in_short(least[name])}",
            )
            for name, limit in limits.items()
            if limit < least[name]
        ]
        if problems:
            raise ConfigurationError(problems)
        return limits


class Limited:
    """A search space whose genomes violate it, too, where their recipes cost more than the limits.

    limits: by the names of costs.
    """

    def __init__(
        self,
        space: SearchSpace,
        costs: Callable[[Recipe], Mapping[str, float]],
        limits: Mapping[str, float],
    ) -> None:
        self.space = space
        self._costs = costs
        self._limits = dict(limits)
        self._last: tuple[Genome, Recipe] | None = None  # who is checked is decoded next

    @property
    def genes(self) -> tuple[Gene, ...]:
        """The space's own."""
        return self.space.genes

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """The space's own."""
        return self.space.constraints

    def active(self, genome: Genome) -> list[bool]:
        """The space's own."""
        return self.space.active(genome)

    def alone(self) -> Mapping[str, Genome]:
        """The space's own, as far as they keep the limits."""
        return {n: g for n, g in self.space.alone().items() if not self.violations(g)}

    def decode(self, genome: Genome) -> Recipe:
        """The space's own recipe."""
        if self._last is None or self._last[0] != genome:
            self._last = (copy.deepcopy(genome), self.space.decode(genome))
        return self._last[1]

    def encode(self, recipe: Recipe) -> Genome:
        """The space's own genome, whatever the recipe costs.

        Raises:
            ValueError: the space cannot express the recipe.
        """
        return self.space.encode(recipe)

    def sample(self, generator: np.random.Generator) -> Genome:
        """A random genome of the space, whatever it costs."""
        return self.space.sample(generator)

    def designs(self) -> list[Genome]:
        """The space's own that keep the limits."""
        return [genome for genome in self.space.designs() if not self.violations(genome)]

    def violations(self, genome: Genome) -> list[str]:
        """The space's own; where there are none, the limits that are exceeded."""
        if own := self.space.violations(genome):
            return own
        costs = self._costs(self.decode(genome))
        return [
            f"{name}: {_apart(costs[name], limit)}"
            for name, limit in self._limits.items()
            if costs[name] > limit
        ]


class LimitedLineages(Limited):
    """The same, of a space whose genomes are crossed."""

    space: LineageSpace  # type: ignore[assignment]

    @property
    def total(self) -> int:
        """The space's own."""
        return self.space.total

    def cross(self, first: Genome, second: Genome, mix: float, split: int) -> Genome:
        """The space's own child, whatever it costs."""
        return self.space.cross(first, second, mix, split)


def limited(
    space: SearchSpace,
    costs: Callable[[Recipe], Mapping[str, float]],
    limits: Mapping[str, float],
) -> SearchSpace:
    """The space within limits; itself where there are none."""
    if not limits:
        return space
    kind = LimitedLineages if isinstance(space, LineageSpace) else Limited
    return kind(space, costs, limits)


def seldom_kept(space: SearchSpace, tries: int = 200) -> str:
    """A warning where no design and no random point keeps the limits; empty where some do."""
    if not isinstance(space, Limited) or space.designs():
        return ""
    generator = np.random.default_rng(0)
    found = [space.violations(space.sample(generator)) for _ in range(tries)]
    if not all(found):
        return ""
    return f"none of {tries} random candidates keeps the limits: {found[0][0]}"


def _apart(cost: float, limit: float) -> str:
    """Both in short, or in full where they would read the same."""
    shown, allowed = in_short(cost), in_short(limit)
    if shown == allowed:
        shown, allowed = f"{cost:,.10g}", f"{limit:,.10g}"
    return f"{shown}, the limit is {allowed}"
