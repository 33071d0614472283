"""Each place of the stack takes any of the models' layers there, in any order."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.errors import ConfigurationError, Problem
from evomerge.genes import AtLeast, Flag, Gene, Integer, Value
from evomerge.recipe import Recipe, Slot
from evomerge.records import Genome
from evomerge.search_spaces.codec import Codec
from evomerge.search_spaces.layer_stack import LayerStack, LayerStackConfig


class ByPosition(LayerStack):
    """Each place of the stack takes any of the models' layers there, in any order.

    Su & Geiping 2025, arXiv:2502.04030, depth-wise integration (DIS). The paper scales the output
    of a place, which is the next place's input; after the last one a scale changes nothing but what
    a norm takes out again. Here each place's input is scaled.
    """

    def __init__(self, config: LayerStackConfig, template: Recipe, anatomy: Anatomy) -> None:
        super().__init__(config, template, anatomy)
        num_orders = math.factorial(len(self._models))
        genes: list[Gene] = []
        for layer in range(anatomy.num_layers):
            bits = tuple(f"layer_{layer}.{model}" for model in self._models)
            genes += [Flag(bit) for bit in bits]
            if len(bits) > 1:
                genes.append(Integer(f"layer_{layer}.order", 0, num_orders - 1, AtLeast(bits, 2)))
            when = None if config.keep_base else AtLeast(bits, 1)
            genes += self._scale_gene(f"layer_{layer}.scale", when)
        self._width = len(genes) // max(1, anatomy.num_layers)
        self.codec = Codec(genes)
        if config.keep_base and self._depth[1] < anatomy.num_layers:
            what = f"at most {self._depth[1]}, and the base stands in every place that takes none"
            raise ConfigurationError(Problem("space.layers", what, "keep_base: false"))

    def decode(self, genome: Genome) -> Recipe:
        """The recipe of the layers in the order of their places."""
        return self._stack(self._slots(self._values(genome)))

    def violations(self, genome: Genome) -> list[str]:
        """Also too few layers."""
        if found := super().violations(genome):
            return found
        if self._config.keep_base and self._depth[0] <= self.anatomy.num_layers:
            return []  # the base stands wherever nothing is taken, and too many are left out
        count = sum(len(chosen) for chosen, _ in self._places(self._values(genome)))
        least, most = self._depth
        if least <= count <= most:
            return []
        return [f"layers: {count}, where {least} to {most} may be"]

    def encode(self, recipe: Recipe) -> Genome:
        """The genome of a recipe of such layers.

        Raises:
            ValueError: no genome says it.
        """
        self.check_template(recipe)
        values: dict[str, Value] = {}
        for layer in range(self.anatomy.num_layers):
            slots = [slot for slot in recipe.slots or () if slot.layer == layer]
            held = [self._model_of(slot) for slot in slots]
            own = [m for m in held if m in self._models]
            values |= {f"layer_{layer}.{model}": model in own for model in self._models}
            if len(own) > 1:
                order = [*own, *(m for m in self._models if m not in own)]
                values[f"layer_{layer}.order"] = _number_of(order, self._models)
            if self._config.scales is not None and slots:
                values[f"layer_{layer}.scale"] = self._scale_in(slots[0])
        return self.encode_values(recipe, values)

    def designs(self) -> list[Genome]:
        """All layers of one model, for each."""
        found = []
        for chosen in self._models:
            values: dict[str, Value] = {}
            for layer in range(self.anatomy.num_layers):
                values |= {f"layer_{layer}.{model}": model == chosen for model in self._models}
                if self._config.scales is not None:
                    low, high = self._config.scales.range
                    values[f"layer_{layer}.scale"] = min(max(1.0, low), high)
            found.append(self.codec.genome(values))
        return [genome for genome in found if not self.violations(genome)]

    def active(self, genome: Genome) -> list[bool]:
        """Which genes matter, when what is too much has been left out."""
        return self.codec.active(self._values(genome))

    def _values(self, genome: Genome) -> list[Value]:
        """The genes' values; of too many layers those are left out whose coordinates are lowest."""
        values = self.codec.values(genome)
        per_place = len(self._models)
        bits = [
            layer * self._width + i
            for layer in range(self.anatomy.num_layers)
            for i in range(per_place)
        ]
        counts = [0] * self.anatomy.num_layers
        for i in bits:
            counts[i // self._width] += bool(values[i])
        fewest = 1 if self._config.keep_base else 0
        excess = sum(max(count, fewest) for count in counts) - self._depth[1]
        if excess > 0:
            for i in sorted((i for i in bits if values[i]), key=lambda i: genome[i]):
                place = i // self._width
                if excess > 0 and counts[place] > fewest:
                    values[i] = False
                    counts[place] -= 1
                    excess -= 1
        return values

    def _places(self, values: Sequence[Value]) -> list[tuple[list[str], Value | None]]:
        """For each place its models in their order, and its scale."""
        count = len(self._models)
        found = []
        for layer in range(self.anatomy.num_layers):
            own = values[layer * self._width : (layer + 1) * self._width]
            chosen = [model for model, bit in zip(self._models, own, strict=False) if bit]
            if len(chosen) > 1:
                order = _ordered(int(own[count]), self._models)
                chosen.sort(key=order.index)
            if not chosen and self._config.keep_base:
                chosen = [self.template.base]
            found.append((chosen, own[-1] if self._config.scales is not None else None))
        return found

    def _slots(self, values: Sequence[Value]) -> list[Slot]:
        slots = []
        for layer, (chosen, scale) in enumerate(self._places(values)):
            for number, model in enumerate(chosen):
                slots.append(self._slot(model, layer, scale if number == 0 else None))
        return slots


def _ordered(number: int, names: Sequence[str]) -> list[str]:
    """The permutation with this number, in lexicographic order of positions (Lehmer code)."""
    left = list(names)
    found = []
    for size in range(len(names), 0, -1):
        place, number = divmod(number, math.factorial(size - 1))
        found.append(left.pop(place))
    return found


def _number_of(order: Sequence[str], names: Sequence[str]) -> int:
    """The number of a permutation: the inverse of `_ordered`."""
    left = list(names)
    number = 0
    for name in order:
        place = left.index(name)
        left.pop(place)
        number += place * math.factorial(len(left))
    return number
