"""All models' layers in a row, several times over, each in or out."""

from __future__ import annotations

from itertools import pairwise

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.errors import ConfigurationError, Problem
from evomerge.genes import Constraint, Count, Flag, Gene, OneOf, Value
from evomerge.recipe import Recipe
from evomerge.records import Genome
from evomerge.search_spaces.codec import Codec
from evomerge.search_spaces.layer_stack import LayerStack, LayerStackConfig


class InARow(LayerStack):
    """All models' layers in a row, several times over, with a flag for each: in or out.

    Akiba et al. 2025, arXiv:2403.13187, merging in the data flow space: with M layers in all and r
    repetitions, an indicator of length T = M r. The paper scales by a matrix over pairs of layers;
    here each place of the row has a factor for its layer's input.
    """

    def __init__(self, config: LayerStackConfig, template: Recipe, anatomy: Anatomy) -> None:
        super().__init__(config, template, anatomy)
        self._steps = [
            (model, layer)
            for _ in range(config.repeats)
            for model in self._models
            for layer in range(anatomy.num_layers)
        ]
        self._labels = [
            ".".join(
                filter(
                    None,
                    (
                        f"round_{number // (len(self._models) * anatomy.num_layers)}"
                        if config.repeats > 1
                        else "",
                        model,
                        f"layer_{layer}",
                    ),
                )
            )
            for number, (model, layer) in enumerate(self._steps)
        ]
        flags: list[Gene] = [Flag(label) for label in self._labels]
        scales = [
            gene
            for label in self._labels
            for gene in self._scale_gene(f"scale.{label}", OneOf(label, (True,)))
        ]
        least, most = self._depth[0], min(self._depth[1], len(flags))
        if least >= most == len(flags):
            what = f"{least} or more of {len(flags)} in a row leave nothing to choose"
            raise ConfigurationError(Problem("space.layers", what, "fewer, or more `repeats`"))
        constraint: list[Constraint] = [Count(tuple(self._labels), least, most)]
        self.codec = Codec([*flags, *scales], constraint)

    def decode(self, genome: Genome) -> Recipe:
        """The recipe of the layers that are in."""
        values = self.codec.values(genome)
        count = len(self._steps)
        scaled = self._config.scales is not None
        return self._stack(
            [
                self._slot(*self._steps[i], values[count + i] if scaled else None)
                for i in range(count)
                if values[i]
            ]
        )

    def encode(self, recipe: Recipe) -> Genome:
        """The genome of a recipe of such layers; each stands at the first place where it can.

        Raises:
            ValueError: no genome says it.
        """
        self.check_template(recipe)
        values: dict[str, Value] = dict.fromkeys(self._labels, False)
        place = -1
        for slot in recipe.slots or ():
            wanted = self._model_of(slot), slot.layer
            later = range(place + 1, len(self._steps))
            place = next((i for i in later if self._steps[i] == wanted), -1)
            if place < 0:
                raise ValueError(f"layer {wanted[1]} of {wanted[0]} stands where it cannot")
            values[self._labels[place]] = True
            if self._config.scales is not None:
                values[f"scale.{self._labels[place]}"] = self._scale_in(slot)
        return self.encode_values(recipe, values)

    def designs(self) -> list[Genome]:
        """Each model as it is; and each pair of models, the second's layers after the first's."""
        size = self.anatomy.num_layers
        starts = [number * size for number in range(len(self._models))]
        chosen = [set(range(start, start + size)) for start in starts]
        if self._depth[1] >= 2 * size:
            pairs = [one | other for one, other in pairwise(chosen)]
            chosen += pairs
        found = []
        for places in chosen:
            if self._depth[0] <= len(places) <= self._depth[1]:
                values: dict[str, Value] = {
                    label: i in places for i, label in enumerate(self._labels)
                }
                if self._config.scales is not None:
                    low, high = self._config.scales.range
                    scale = min(max(1.0, low), high)
                    values |= {f"scale.{label}": scale for label in self._labels}
                found.append(self.codec.genome(values))
        return found
