"""Every slot takes its layer from one model, or from a merge of several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Literal

from pydantic import Field, model_validator

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.documents import Misfit, refuse
from evomerge.errors import Problem
from evomerge.genes import Gene, Value
from evomerge.recipe import Recipe, Slot
from evomerge.records import Genome
from evomerge.search_spaces.codec import Codec
from evomerge.search_spaces.config import SpaceConfig
from evomerge.search_spaces.contents import ContentsConfig, make_contents
from evomerge.search_spaces.cube import CubeSpace
from evomerge.search_spaces.outside import BASE, outside_problems
from evomerge.search_spaces.spots import group_name, layer_groups


class LayerChoiceConfig(SpaceConfig):
    """A search space file of kind `layer_choice`.

    layers: what a layer may be. layers_per_group, layer_groups: neighbours that choose together.
    outside: where embedding, final norm and head are from.
    """

    kind: Literal["layer_choice"]
    layers: ContentsConfig = ContentsConfig()
    layers_per_group: int | None = Field(default=None, ge=1)
    layer_groups: int | None = Field(default=None, ge=1)
    outside: str = BASE

    @model_validator(mode="after")
    def _known(self) -> LayerChoiceConfig:
        refuse(self, self._misfits())
        return self

    def _misfits(self) -> Iterator[Misfit]:
        if self.layers.choose == "base":
            yield Misfit(("layers", "choose"), "leaves nothing to choose")
        if self.layer_groups is not None and self.layers_per_group is not None:
            yield Misfit(("layer_groups",), "expected one of layers_per_group and layer_groups")

    def check_experts(self, experts: Sequence[str]) -> list[Problem]:
        """Experts that the merges cannot take, and names that are nobody's."""
        return [*self.layers.problems(experts), *outside_problems(self.outside, experts)]


class LayerChoice(CubeSpace):
    """A model whose layers are chosen one by one, each in its own place."""

    def __init__(self, config: LayerChoiceConfig, template: Recipe, anatomy: Anatomy) -> None:
        super().__init__(template, anatomy)
        self._config = config
        self._contents = make_contents(config.layers, template.base, self.experts)
        self._groups = layer_groups(
            anatomy.num_layers, config.layers_per_group, config.layer_groups
        )
        genes: list[Gene] = []
        for group in self._groups:
            genes += self._contents.genes(group_name(group), None)
        self.codec = Codec(genes)
        self._width = len(genes) // max(1, len(self._groups))

    def decode(self, genome: Genome) -> Recipe:
        """The recipe whose slots hold what was chosen."""
        values = self.codec.values(genome)
        slots: list[Slot] = []
        for number, group in enumerate(self._groups):
            own = values[number * self._width : (number + 1) * self._width]
            merges = self._contents.merges(own)
            slots += [Slot.of_valid(layer=i, layers={}, merges=merges) for i in group]
        return self.of_layers(slots, self._config.outside)

    def encode(self, recipe: Recipe) -> Genome:
        """The genome of a recipe of such layers.

        Raises:
            ValueError: no genome says it.
        """
        self.check_template(recipe)
        if recipe.slots is None or not recipe.keeps_layers(self.anatomy.num_layers):
            raise ValueError("the recipe has no slots, or rearranges layers")
        values: dict[str, Value] = {}
        for number, group in enumerate(self._groups):
            own = self._contents.read(recipe.slots[group[0]].merges)
            start = number * self._width
            values |= {self.genes[start + i].name: value for i, value in own.items()}
        return self.encode_values(recipe, values)

    def designs(self) -> list[Genome]:
        """All layers of one expert, for each."""
        found = []
        for expert in self.experts:
            own = self._contents.alone(expert)
            if own is None:
                continue
            values = {
                self.genes[number * self._width + i].name: value
                for number in range(len(self._groups))
                for i, value in own.items()
            }
            with suppress(ValueError):  # the ranges may leave an expert alone out
                found.append(self.codec.genome(values))
        return found
