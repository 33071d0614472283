"""Layers of several models in one stack: left out, repeated, each with a scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.documents import Misfit, refuse
from evomerge.errors import ConfigurationError, Problem
from evomerge.genes import AtLeast, Constraint, Count, Flag, Gene, Integer, OneOf, Real, Value
from evomerge.recipe import Merge, Recipe, Slot
from evomerge.records import Genome
from evomerge.search_spaces.amounts import MOST, Amount, amount_misfits, counted
from evomerge.search_spaces.codec import Codec
from evomerge.search_spaces.config import SpaceConfig
from evomerge.search_spaces.cube import CubeSpace, base_alone
from evomerge.search_spaces.outside import BASE, outside_merges, outside_problems
from evomerge.search_spaces.searched import Bounds

# 17! orders are as many as coordinates between 0 and 1 can tell apart.
MOST_ORDERED = 16
SCALED = {"input": "input_scale", "branches": "branch_scale"}


class Scales(BaseModel):
    """A factor for each layer of the stack.

    of: its `input`, or what its `branches` add to the stream (which folds into weights exactly).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    range: Bounds
    of: Literal["input", "branches"] = "input"

    @model_validator(mode="after")
    def _sensible(self) -> Scales:
        if not 0 < self.range[0] < self.range[1]:
            what = f"expected 0 < low < high, got {list(self.range)}"
            refuse(self, [Misfit(("range",), what)])
        return self


class LayerStackConfig(SpaceConfig):
    """A search space file of kind `layer_stack`.

    arrange: `in_a_row`, all layers of all models one model after another, `repeats` times; or
    `by_position`, where each place of the stack takes any of the models' layers there, in any
    order, and the base's where it takes none (or nothing, without `keep_base`).
    models: the `experts`, or `all` with the base first. layers: the fewest and the most, as numbers
    or as multiples of the base's.
    """

    kind: Literal["layer_stack"]
    arrange: Literal["in_a_row", "by_position"] = "in_a_row"
    models: Literal["experts", "all"] = "experts"
    repeats: int = Field(default=1, ge=1, le=int(MOST))
    scales: Scales | None = None
    layers: tuple[Amount, Amount] = (0.5, 2.0)
    keep_base: bool = True
    outside: str = BASE

    @model_validator(mode="after")
    def _known(self) -> LayerStackConfig:
        refuse(self, self._misfits())
        return self

    def _misfits(self) -> Iterator[Misfit]:
        for place, amount in enumerate(self.layers):
            yield from amount_misfits(amount, ("layers", place), most=MOST)
        if self.arrange == "in_a_row" and not self.keep_base:
            yield Misfit(("keep_base",), "goes with `arrange: by_position`")
        if self.arrange == "by_position" and self.repeats > 1:
            yield Misfit(("repeats",), "goes with `arrange: in_a_row`")

    def check_experts(self, experts: Sequence[str]) -> list[Problem]:
        """Names that are nobody's, or a gene's; and more models than can be put in order."""
        problems = outside_problems(self.outside, experts)
        if self.arrange == "in_a_row":
            return problems
        for name in ("order", "scale"):
            if name in experts:
                what = "a gene of every place is called so: call the expert otherwise"
                problems.append(Problem(f"experts.{name}", what))
        count = len(experts) + (self.models == "all")
        if count > MOST_ORDERED:
            what = f"{count} models in every place are more than can be put in order"
            problems.append(Problem("space.arrange", what, f"{MOST_ORDERED} at most"))
        return problems


class LayerStack(CubeSpace):
    """What both arrangements share: the models, the depth, the scales."""

    def __init__(self, config: LayerStackConfig, template: Recipe, anatomy: Anatomy) -> None:
        super().__init__(template, anatomy)
        self._config = config
        self._models = (template.base, *self.experts) if config.models == "all" else self.experts
        least, most = (counted(amount, anatomy.num_layers) for amount in config.layers)
        self._depth = max(1, least), most
        if self._depth[0] > most:
            what = f"expected low <= high, got {self._depth[0]} to {most}"
            raise ConfigurationError(Problem("space.layers", what))
        if self._config.scales is not None and self._scale_of == "branches":
            anatomy.branch_outputs  # noqa: B018 (it says by name which models have none)
        self._alone: dict[str, dict[Any, Merge]] = {
            name: {"default": Merge.of_valid(sources=(name,))} for name in self._models
        }
        self._alone[template.base] = {}

    def _slot(self, model: str, layer: int, scale: Value | None) -> Slot:
        scaled: dict[str, Any] = {} if scale is None else {SCALED[self._scale_of]: scale}
        merges = self._alone[model]
        return Slot.of_valid(layer=layer, layers={}, merges=merges, **scaled)

    @property
    def _scale_of(self) -> str:
        return "input" if self._config.scales is None else self._config.scales.of

    def _scale_gene(self, name: str, when: Any) -> list[Gene]:
        scales = self._config.scales
        return [] if scales is None else [Real(name, *scales.range, when=when)]

    def _stack(self, slots: list[Slot]) -> Recipe:
        return self.recipe(
            base_alone(self.template.base),
            outside=outside_merges(self._config.outside, self.anatomy, self.experts, slots),
            slots=tuple(slots),
        )

    def _model_of(self, slot: Slot) -> str:
        """Whose layer a slot holds.

        Raises:
            ValueError: it is a merge.
        """
        for name, merges in self._alone.items():
            if slot.merges == merges:
                return name
        if not slot.merges:
            return self.template.base
        raise ValueError("a slot of the recipe is no model's own layer")

    def _scale_in(self, slot: Slot) -> float:
        scale: float = getattr(slot, SCALED[self._scale_of])
        return scale


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


def make_layer_stack(
    config: LayerStackConfig, template: Recipe, anatomy: Anatomy
) -> InARow | ByPosition:
    """The space with the file's arrangement."""
    kind = InARow if config.arrange == "in_a_row" else ByPosition
    return kind(config, template, anatomy)


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
