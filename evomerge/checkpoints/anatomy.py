"""Which layer, and which component of it, every tensor of a model belongs to."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, groupby
from typing import TYPE_CHECKING

from evomerge.checkpoints.numbering import spots_by_number
from evomerge.checkpoints.residual import branch_outputs
from evomerge.errors import ModelError, Problem, nearest

if TYPE_CHECKING:
    from evomerge.checkpoints.open import Checkpoint

COMPONENTS = ("embedding", "attention", "mlp", "norm", "head", "other")


@dataclass(frozen=True)
class Place:
    """A tensor's layer (None outside the layers) and component (one of COMPONENTS).

    Inside the layers there are only attention, mlp, norm and other.
    """

    layer: int | None
    component: str


@dataclass(frozen=True)
class Anatomy:
    """Every tensor's place.

    Attributes:
        places: by tensor name.
        num_layers: layers are counted from 0.
        roles: by tensor name; counterparts in other layers have the same role.
        sizes: parameters, by tensor name.
        model_type: as config.json has it; "" without one.
    """

    places: Mapping[str, Place]
    num_layers: int
    roles: Mapping[str, str] = field(repr=False)
    sizes: Mapping[str, int] = field(repr=False)
    model_type: str = ""

    def names_of(self, layer: int | None, component: str) -> tuple[str, ...]:
        """The tensors of one place, sorted."""
        return self._by_place.get(Place(layer, component), ())

    def name_in_layer(self, name: str, layer: int) -> str:
        """The counterpart of a layer's tensor in another layer, which may be a deeper model's.

        Raises:
            ModelError: if the tensor is in no layer, or the other layer has no counterpart.
        """
        place = self.places.get(name)
        if place is None:
            raise ModelError(Problem(repr(name), "no such tensor", nearest(name, self.places)))
        if place.layer is None:
            raise ModelError(Problem(repr(name), "is in no layer"))
        if layer >= self.num_layers:
            return self.name_in_slot(name, layer)
        found = self._by_role.get((self.roles[name], layer))
        if found is None:
            raise ModelError(Problem(repr(name), f"layer {layer} has no counterpart"))
        return found

    def name_in_slot(self, name: str, slot: int) -> str:
        """What a layer's tensor is called where it is layer `slot` of a rearranged model.

        The model may have grown: `slot` need not be a layer that there is.

        Raises:
            ModelError: the names' numbers do not count the layers one by one, in one stack.
        """
        place = self.places[name]
        if place.layer is None or place.layer == slot:
            return name
        found = self._by_role.get((self.roles[name], slot))
        if found is not None:
            return found
        step = self._number_step
        if step is None:
            what = "no name can be made for it: the layers' numbers have gaps, or several stacks"
            raise ModelError(Problem(f"{name!r} as layer {slot}", what))
        stem, tail = self._around_number(name)
        return f"{stem}{slot + step}{tail}"

    @cached_property
    def names_in_layers(self) -> tuple[str, ...]:
        """All tensors that are in a layer."""
        return tuple(name for name, place in self.places.items() if place.layer is not None)

    def inside_block(self, name: str) -> tuple[str, str]:
        """Of a layer's tensor: what counts the layers, and the tensor's name inside its layer.

        "model.layers" and "mlp.up.weight", for "model.layers.3.mlp.up.weight".
        """
        stem, tail = self._around_number(name)
        return stem.removesuffix("."), tail.removeprefix(".")

    def slot_of(self, name: str, origin: str) -> int | None:
        """The layer that a tensor is in where layers are rearranged; None outside the layers.

        name: in the rearranged model; origin: what it is there beside (see `name_in_slot`).
        """
        if self.places[origin].layer is None:
            return None
        stem, tail = self._around_number(origin)
        return int(name[len(stem) : len(name) - len(tail)]) - (self._number_step or 0)

    @cached_property
    def branch_outputs(self) -> frozenset[str]:
        """The tensors that make what the layers' residual branches add (see residual.py).

        Raises:
            ConfigurationError: they are not known for such a model.
        """
        inside = {
            name: (layer, self.inside_block(name)[1])
            for name in self.names_in_layers
            if (layer := self.places[name].layer) is not None
        }
        return branch_outputs(self.model_type, inside)

    @property
    def counts_plainly(self) -> bool:
        """Whether the numbers in names are those of the layers."""
        return self._number_step == 0

    def num_layers_of(self, names: Collection[str]) -> int:
        """How many layers another model has that names its tensors as this one does."""
        if self._number_step is None or not self.num_layers:
            return self.num_layers
        return next(
            number
            for number in count()
            if not any(self.name_in_slot(name, number) in names for name in self._of_each_role)
        )

    def beyond(self, num_layers: int) -> frozenset[str]:
        """The names in layers that only one of two models has: this one, and one of so many."""
        fewer, more = sorted((self.num_layers, num_layers))
        return frozenset(
            self.name_in_slot(name, layer)
            for layer in range(fewer, more)
            for name in self._of_each_role
        )

    def table(self) -> list[tuple[str, str, int, int]]:
        """Rows of (layers, component, tensors, parameters); layers that look alike share a row.

        The counts of a row are of all its layers together; "-" stands for outside the layers.
        """
        counts: dict[int | None, dict[str, tuple[int, int]]] = defaultdict(dict)
        for place, names in self._by_place.items():
            total = sum(self.sizes[name] for name in names)
            counts[place.layer][place.component] = (len(names), total)
        alike = [
            [layer for layer, _ in group]
            for _, group in groupby(
                [(i, counts[i]) for i in range(self.num_layers)], key=lambda item: item[1]
            )
        ]
        rows = [("-", c, *counts[None][c]) for c in COMPONENTS if c in counts[None]]
        for layers in alike:
            first, last = layers[0], layers[-1]
            label = f"{first}" if first == last else f"{first}-{last}"
            for component in COMPONENTS:
                if component in counts[first]:
                    tensors, size = counts[first][component]
                    rows.append((label, component, tensors * len(layers), size * len(layers)))
        return rows

    def _around_number(self, name: str) -> tuple[str, str]:
        """What stands before and after the number of a tensor's layer."""
        tail = self.roles[name].partition("*")[2]
        return name.removesuffix(tail).rstrip("0123456789"), tail

    @cached_property
    def _number_step(self) -> int | None:
        """What is added to a layer to have its number in names; None if that varies."""
        steps = set()
        for name, place in self.places.items():
            if place.layer is not None:
                stem, tail = self._around_number(name)
                steps.add(int(name[len(stem) : len(name) - len(tail)]) - place.layer)
        return steps.pop() if len(steps) == 1 else None

    @cached_property
    def _of_each_role(self) -> tuple[str, ...]:
        """A tensor of each role that there is in the layers, which need not be alike."""
        inside = {self.roles[name]: name for name, p in self.places.items() if p.layer is not None}
        return tuple(inside.values())

    @cached_property
    def _by_place(self) -> dict[Place, tuple[str, ...]]:
        names: dict[Place, list[str]] = defaultdict(list)
        for name in sorted(self.places):
            names[self.places[name]].append(name)
        return {place: tuple(found) for place, found in names.items()}

    @cached_property
    def _by_role(self) -> dict[tuple[str, int], str]:
        return {
            (self.roles[name], place.layer): name
            for name, place in self.places.items()
            if place.layer is not None
        }


def anatomy_of(checkpoint: Checkpoint) -> Anatomy:
    """The anatomy of a model: from its module tree, else from the numbers in its names.

    The names decide where there is no config, or transformers does not know its class.
    """
    from evomerge.checkpoints.module_tree import spots_by_module  # it needs torch

    shapes = {name: checkpoint.shape(name) for name in checkpoint.names}
    spots = spots_by_module(checkpoint.config, shapes) if checkpoint.config else None
    if spots is None:
        spots = spots_by_number(shapes)
    layers = Counter(spot.layer for spot in spots.values() if spot.layer is not None)
    return Anatomy(
        places={name: Place(spot.layer, spot.component) for name, spot in spots.items()},
        num_layers=max(layers, default=-1) + 1,
        roles={name: spot.role for name, spot in spots.items()},
        sizes={name: math.prod(shape) for name, shape in shapes.items()},
        model_type=str(checkpoint.config.get("model_type", "")),
    )
