"""A walk through the layers, step by step: take one from somewhere, skip it, or go back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.documents import Misfit, refuse
from evomerge.errors import ConfigurationError, Problem
from evomerge.genes import Choice, Gene, Value, Values
from evomerge.recipe import Merge, Recipe, Slot
from evomerge.records import Genome
from evomerge.search_spaces.amounts import MOST, Amount, amount_misfits, counted
from evomerge.search_spaces.codec import Codec
from evomerge.search_spaces.config import SpaceConfig
from evomerge.search_spaces.cube import CubeSpace
from evomerge.search_spaces.merged_option import MergedOption, OptionConfig
from evomerge.search_spaces.outside import UNIFORM, outside_problems

SKIP, BACK = "skip it", "go back"  # with blanks, as nobody calls a model


class LayerWalkConfig(SpaceConfig):
    """A search space file of kind `layer_walk`.

    merges: what can be taken beside the experts' layers; merges without anything that is searched.
    steps: how many there are at most, as a number or a multiple of the layers. outside: where
    embedding, final norm and head are from.
    """

    kind: Literal["layer_walk"]
    merges: dict[str, OptionConfig] = Field(default_factory=dict)
    steps: Amount = 1.5
    skip: bool = True
    back: bool = True
    outside: str = UNIFORM

    @model_validator(mode="after")
    def _known(self) -> LayerWalkConfig:
        misfits = list(amount_misfits(self.steps, ("steps",), most=MOST))
        for name, option in self.merges.items():
            if option.search:
                misfits.append(
                    Misfit(("merges", name, "search"), "a walk takes merges as they are")
                )
            if name in (SKIP, BACK):
                misfits.append(Misfit(("merges", name), "is a step already: call it otherwise"))
        refuse(self, misfits)
        return self

    def check_experts(self, experts: Sequence[str]) -> list[Problem]:
        """Experts that the merges cannot take, and names that are nobody's."""
        problems = outside_problems(self.outside, experts)
        for name in {SKIP, BACK} & set(experts):
            problems.append(Problem(f"experts.{name}", "is a step of the walk: call it otherwise"))
        for name in self.merges.keys() & set(experts):
            what = "a model is called so: call the merge otherwise"
            problems.append(Problem(f"space.merges.{name}", what))
        for name, option in self.merges.items():
            found = option.problems(experts)
            problems += [Problem(f"space.merges.{name}", p.what, p.hint) for p in found]
        return problems


@dataclass(frozen=True)
class Walking:
    """The steps so far have not left the model."""

    genes: tuple[str, ...]
    num_layers: int

    def holds(self, values: Values) -> bool:
        """Whether it is so, for steps with these values."""
        steps = [values[gene] for gene in self.genes if gene in values]
        return len(steps) == len(self.genes) and 0 <= position(steps) < self.num_layers

    def __str__(self) -> str:
        return f"the steps before it end within the {self.num_layers} layers"


def position(steps: Sequence[Value]) -> int:
    """The layer that a walk stands before."""
    return sum(-1 if step == BACK else 1 for step in steps)


class LayerWalk(CubeSpace):
    """A model as a walk. Han et al. 2025, RMM, arXiv:2503.21272.

    At each step one takes the layer at one's position from an expert or a merge and goes on, skips
    it, or goes back by one, so that layers repeat.
    """

    def __init__(self, config: LayerWalkConfig, template: Recipe, anatomy: Anatomy) -> None:
        super().__init__(template, anatomy)
        self._config = config
        self._taken: dict[str, dict[Any, Merge]] = {
            name: {"default": Merge.of_valid(sources=(name,))} for name in self.experts
        }
        for name, option in config.merges.items():
            self._taken[name] = MergedOption(option, self.experts).merges(())
        steps = counted(config.steps, anatomy.num_layers)
        if steps < anatomy.num_layers:
            what = f"{steps} steps cannot cross {anatomy.num_layers} layers"
            raise ConfigurationError(Problem("space.steps", what))
        # A walk that arrives has as many steps as layers, and two for each that goes back.
        detours = (steps - anatomy.num_layers) // 2 if config.back else 0
        steps = anatomy.num_layers + 2 * detours
        moves = (*self._taken, *([SKIP] if config.skip else []), *([BACK] if config.back else []))
        names = [f"step_{i}" for i in range(steps)]
        first = tuple(move for move in moves if move != BACK)
        if len(first) < 2:
            what = f"the first step can only take {first[0]}'s layer" if first else "no steps"
            raise ConfigurationError(Problem("space", what, "allow `skip`, or name merges"))
        genes: list[Gene] = []
        for i, name in enumerate(names):
            # Nobody is anywhere else before the first steps: a shorter walk cannot be over.
            when = Walking(tuple(names[:i]), anatomy.num_layers) if i else None
            genes.append(Choice(name, moves if i else first, when))
        self.codec = Codec(genes)

    def decode(self, genome: Genome) -> Recipe:
        """The recipe of the layers that the walk takes."""
        slots, _ = self._walk(self.codec.values(genome))
        return self.of_layers(slots, self._config.outside)

    def violations(self, genome: Genome) -> list[str]:
        """Also walks that leave the model the wrong way, do not arrive, or take nothing."""
        if found := super().violations(genome):
            return found
        slots, end = self._walk(self.codec.values(genome))
        if end < 0:
            return ["the walk goes back beyond layer 0"]
        if end < self.anatomy.num_layers:
            steps = len(self.genes)
            return [f"the walk is at layer {end} of {self.anatomy.num_layers} after {steps} steps"]
        return [] if slots else ["the walk takes no layer"]

    def encode(self, recipe: Recipe) -> Genome:
        """The genome of a recipe of such layers, with the fewest steps.

        Raises:
            ValueError: no genome says it.
        """
        self.check_template(recipe)
        moves: list[str] = []
        at = 0
        for slot in recipe.slots or ():
            moves += [SKIP] * (slot.layer - at) + [BACK] * (at - slot.layer)
            known = [name for name, merges in self._taken.items() if merges == slot.merges]
            if not known:
                raise ValueError("a slot of the recipe is none of the layers that can be taken")
            moves.append(known[0])
            at = slot.layer + 1
        moves += [SKIP] * (self.anatomy.num_layers - at)
        if len(moves) > len(self.genes):
            raise ValueError(
                f"the recipe takes {len(moves)} steps, and there are {len(self.genes)}"
            )
        values: Mapping[str, Value] = {f"step_{i}": move for i, move in enumerate(moves)}
        return self.encode_values(recipe, dict(values))

    def designs(self) -> list[Genome]:
        """All layers from one, for each that can be taken."""
        layers = range(self.anatomy.num_layers)
        return [self.codec.genome({f"step_{i}": name for i in layers}) for name in self._taken]

    def where_it_matters(
        self, number: int, point: Sequence[float], generator: np.random.Generator
    ) -> Genome:
        """A walk that is still under way at a step, and arrives: after going back often enough."""
        layers = self.anatomy.num_layers
        if layers < 2:
            return super().where_it_matters(number, point, generator)
        detours = max(0, math.ceil((number + 1 - layers) / 2))
        moves = [""] + [BACK, ""] * detours + [""] * (layers - 1)
        taken = list(self._taken)
        steps: dict[str, Value] = {
            f"step_{i}": move or taken[int(generator.integers(len(taken)))]
            for i, move in enumerate(moves)
        }
        walk = self.codec.genome(steps)
        return [*walk[: len(moves)], *point[len(moves) :]]

    def _walk(self, steps: Sequence[Value]) -> tuple[list[Slot], int]:
        """The layers taken, and where the walk ends."""
        slots: list[Slot] = []
        at = 0
        for step in steps:
            if not 0 <= at < self.anatomy.num_layers:
                break
            if step == BACK:
                at -= 1
                continue
            if step != SKIP:
                merges = self._taken[str(step)]
                slots.append(Slot.of_valid(layer=at, layers={}, merges=merges))
            at += 1
        return slots, at
