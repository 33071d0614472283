"""Exactly so many layers less; what is kept is one model's layer, or a merge of several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import combinations
from typing import Any, Literal

from pydantic import model_validator

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.documents import Misfit, refuse
from evomerge.errors import ConfigurationError, Problem
from evomerge.genes import (
    AllDifferent,
    Condition,
    Constraint,
    Count,
    Flag,
    Gene,
    Integer,
    NoneIs,
    OneOf,
    Value,
)
from evomerge.recipe import Recipe, Slot
from evomerge.records import Genome
from evomerge.search_spaces.amounts import Amount, amount_misfits, counted
from evomerge.search_spaces.codec import Codec
from evomerge.search_spaces.config import SpaceConfig
from evomerge.search_spaces.contents import ContentsConfig, make_contents
from evomerge.search_spaces.cube import CubeSpace
from evomerge.search_spaces.outside import BASE, outside_problems

# GPTailor's first trials: three orders of removal, and these scales for each set of experts.
SCALES = (0.3, 0.5, 0.6, 0.7, 0.8, 1.0)


class LayerPruningConfig(SpaceConfig):
    """A search space file of kind `layer_pruning`.

    remove: how many layers, or which share of them. by: `number`, a gene for each removed layer
    that says which; or `flag`, a gene for each layer. repeats: what becomes of a layer that is
    removed twice (by number): the `next` one goes instead, or the genome is `reject`-ed.
    layers: what a kept layer may be. outside: where embedding, final norm and head are from.
    """

    kind: Literal["layer_pruning"]
    remove: Amount
    by: Literal["number", "flag"] = "number"
    repeats: Literal["next", "reject"] = "next"
    layers: ContentsConfig = ContentsConfig(choose="base")
    outside: str = BASE

    @model_validator(mode="after")
    def _known(self) -> LayerPruningConfig:
        refuse(self, self._misfits())
        return self

    def _misfits(self) -> Iterator[Misfit]:
        yield from amount_misfits(self.remove, ("remove",), most=1.0)
        if self.repeats == "reject" and self.by == "flag":
            yield Misfit(("repeats",), "flags cannot repeat")

    def check_experts(self, experts: Sequence[str]) -> list[Problem]:
        """Experts that the merges cannot take, and names that are nobody's."""
        return [*self.layers.problems(experts), *outside_problems(self.outside, experts)]


class LayerPruning(CubeSpace):
    """A model with fewer layers. Su et al. 2025, GPTailor, arXiv:2506.20480."""

    def __init__(self, config: LayerPruningConfig, template: Recipe, anatomy: Anatomy) -> None:
        super().__init__(template, anatomy)
        self._config = config
        self._contents = make_contents(config.layers, template.base, self.experts)
        num_layers = anatomy.num_layers
        self._num_removed = counted(config.remove, num_layers)
        if not 0 < self._num_removed < num_layers:
            what = f"{self._num_removed} of {num_layers} layers: expected 1 to {num_layers - 1}"
            raise ConfigurationError(Problem("space.remove", what))
        removals, constraint = self._removals()
        self._num_removals = len(removals)
        genes: list[Gene] = list(removals)
        for layer in range(num_layers):
            genes += self._contents.genes(f"layer_{layer}", self._is_kept(layer, removals))
        self.codec = Codec(genes, [constraint])
        self._width = (len(genes) - len(removals)) // num_layers

    def decode(self, genome: Genome) -> Recipe:
        """The recipe of the kept layers, in their order."""
        values = self.codec.values(genome)
        removed = self._removed(values)
        slots = []
        for layer in range(self.anatomy.num_layers):
            if layer not in removed:
                start = self._num_removals + layer * self._width
                merges = self._contents.merges(values[start : start + self._width])
                slots.append(Slot.of_valid(layer=layer, layers={}, merges=merges))
        return self.of_layers(slots, self._config.outside)

    def encode(self, recipe: Recipe) -> Genome:
        """The genome of a recipe of so many layers.

        Raises:
            ValueError: no genome says it.
        """
        self.check_template(recipe)
        slots = recipe.slots or ()
        values = self._removing(set(range(self.anatomy.num_layers)) - {s.layer for s in slots})
        for slot in slots:
            values |= self._of_layer(slot.layer, self._contents.read(slot.merges))
        return self.encode_values(recipe, values)

    def designs(self) -> list[Genome]:
        """Late layers removed, or middle ones, or alternating ones.

        With the base's layers alone, and with each set of experts at several scales where the space
        has such: for three experts that makes 129, as many as GPTailor's first trials.
        """
        found: list[Genome] = []
        for order in removal_orders(self.anatomy.num_layers):
            values = self._removing(set(order[: self._num_removed]))
            for contents in self._uniform_contents():
                with suppress(ValueError):  # not every scale lies in every range
                    found.append(self.codec.genome(values | contents))
        return found

    # --- inside -----------------------------------------------------------------------------------

    def _removals(self) -> tuple[list[Gene], Constraint]:
        last = self.anatomy.num_layers - 1
        if self._config.by == "number":
            genes: list[Gene] = [Integer(f"removed_{i}", 0, last) for i in range(self._num_removed)]
            names = tuple(gene.name for gene in genes)
            return genes, AllDifferent(names, self._config.repeats)
        genes = [Flag(f"removed.layer_{layer}") for layer in range(last + 1)]
        names = tuple(gene.name for gene in genes)
        return genes, Count(names, self._num_removed, self._num_removed)

    def _is_kept(self, layer: int, removals: Sequence[Gene]) -> Condition:
        if self._config.by == "flag":
            return OneOf(removals[layer].name, (False,))
        return NoneIs(tuple(gene.name for gene in removals), layer)

    def _removed(self, values: Sequence[Value]) -> set[Any]:
        if self._config.by == "number":
            return set(values[: self._num_removals])
        return {layer for layer in range(self._num_removals) if values[layer]}

    def _removing(self, layers: set[int]) -> dict[str, Value]:
        """The values that remove these layers."""
        if len(layers) != self._num_removed:
            raise ValueError(f"{len(layers)} layers are missing; here {self._num_removed} are")
        if self._config.by == "number":
            return {f"removed_{i}": layer for i, layer in enumerate(sorted(layers))}
        return {f"removed.layer_{i}": i in layers for i in range(self.anatomy.num_layers)}

    def _of_layer(self, layer: int, own: dict[int, Value]) -> dict[str, Value]:
        start = self._num_removals + layer * self._width
        return {self.genes[start + i].name: value for i, value in own.items()}

    def _uniform_contents(self) -> list[dict[str, Value]]:
        """The same contents in all layers, for each set of experts and each scale."""
        layers = range(self.anatomy.num_layers)
        if self._config.layers.choose == "base":
            return [{}]
        if self._config.layers.choose == "one":
            each = [self._contents.alone(expert) for expert in self.experts]
            return [
                {k: v for layer in layers for k, v in self._of_layer(layer, own).items()}
                for own in each
                if own is not None
            ]
        found: list[dict[int, Value]] = [dict.fromkeys(range(len(self.experts)), False)]
        weights = [i for i, n in enumerate(self._config.layers.search) if n == "weight"]
        numbers = range(len(self.experts))
        sizes = {1, 2, 3} if len(numbers) <= 3 else {1, len(numbers)}  # all sets would be many
        for scale in SCALES if weights else (None,):
            for size in sorted(sizes):
                for chosen in combinations(numbers, size):
                    own: dict[int, Value] = {i: i in chosen for i in numbers}
                    if scale is not None:
                        own[len(self.experts) + weights[0]] = scale
                    found.append(own)
        return [
            {k: v for layer in layers for k, v in self._of_layer(layer, own).items()}
            for own in found
        ]


def removal_orders(num_layers: int) -> list[list[int]]:
    """Layers in the order in which to remove them, three times.

    The last first; the middle first; every other one from the end, those with odd numbers first.
    """
    last_first = list(range(num_layers - 1, -1, -1))
    middle = (num_layers - 1) / 2
    middle_first = sorted(range(num_layers), key=lambda i: (abs(i - middle), i))
    alternating = sorted(range(num_layers), key=lambda i: (i % 2 == 0, -i))
    return [last_first, middle_first, alternating]
