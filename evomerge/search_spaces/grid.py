"""Parameters of one operator over a model: their values as a recipe, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.merging.check import check_merge, resolved_parameters
from evomerge.recipe import Merge, Recipe, Slot
from evomerge.search_spaces.spots import Spot

# What a recipe written by hand may differ by and still say the same.
TOLERANCE = 1e-6

RowValue = Any  # a number, flag or name; or a mapping from experts to numbers


@dataclass(frozen=True)
class Row:
    """A parameter at a spot; where `per_expert`, its value there has a number for each expert."""

    parameter: str
    spot: Spot
    per_expert: bool


@dataclass
class _Target:
    """The merges that say the same rows."""

    rows: tuple[int, ...]
    slots: list[tuple[int, str]] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)
    is_default: bool = False


class Grid:
    """Writes rows of values into recipes of one operator, and reads them from recipes."""

    def __init__(
        self,
        operator: str,
        fixed: Mapping[str, Any],
        experts: Sequence[str],
        anatomy: Anatomy,
        rows: Sequence[Row],
    ) -> None:
        self.rows = tuple(rows)
        self._operator, self._fixed, self._experts = operator, dict(fixed), tuple(experts)
        self._anatomy = anatomy

    def merges(self, values: Sequence[RowValue]) -> dict[str, Any]:
        """A recipe's default, outside, slots and tensors, for one value for each row."""
        default = Merge.of_valid(operator=self._operator, parameters=dict(self._fixed))
        outside: dict[str, Merge] = {}
        tensors: dict[str, Merge] = {}
        inside: list[dict[Any, Merge]] | None = None
        if self._has_slots:
            inside = [{} for _ in range(self._anatomy.num_layers)]
        for target in self._targets:
            parameters = {self.rows[i].parameter: values[i] for i in target.rows}
            if target.is_default:
                default.parameters.update(parameters)
                continue
            merge = Merge.of_valid(operator=None, sources=None, parameters=parameters)
            for group in target.outside:
                outside[group] = merge
            tensors |= dict.fromkeys(target.tensors, merge)
            for slot, component in target.slots:
                inside[slot][component] = merge  # type: ignore[index]
        slots = (
            None
            if inside is None
            else tuple(
                Slot.of_valid(layer=layer, layers={}, merges=merges)
                for layer, merges in enumerate(inside)
            )
        )
        return {"default": default, "outside": outside, "slots": slots, "tensors": tensors}

    def read(self, recipe: Recipe) -> list[RowValue]:
        """The values of a recipe that says the same as one of `merges`.

        Raises:
            ValueError: another operator, or a difference that no row makes.
        """
        if not recipe.keeps_layers(self._anatomy.num_layers) or recipe.is_scaled:
            raise ValueError("the recipe rearranges or scales layers: this space cannot")
        if unknown := sorted(recipe.tensors.keys() - self._anatomy.places.keys()):
            raise ValueError(f"the recipe names a tensor {unknown[0]}, which there is not")
        at = self._at(recipe)
        found = [self._row_value(row, at) for row in self.rows]
        searched: dict[str, set[str]] = {tensor: set() for tensor in at}
        for row in self.rows:
            for tensor in row.spot.covers:
                searched[tensor].add(row.parameter)
        settled = resolved_parameters(self._settled)
        for tensor, values in at.items():
            for name, value in values.items():
                if name in searched[tensor]:
                    continue
                expected = self._by_expert(settled[name])
                if not alike(value, expected):
                    raise ValueError(
                        f"{name}: the recipe has {value} where this space has {expected}"
                    )
        return found

    @cached_property
    def _settled(self) -> Merge:
        """The operator with what is fixed."""
        return Merge(
            operator=self._operator, sources=tuple(sorted(self._experts)), parameters=self._fixed
        )

    @cached_property
    def _has_slots(self) -> bool:
        return any(row.spot.slots and not row.spot.by_name for row in self.rows)

    @cached_property
    def _targets(self) -> list[_Target]:
        """Who says what: merges with the same rows are one object."""
        said: dict[tuple[str, Any], list[int]] = {}
        for i, row in enumerate(self.rows):
            spot = row.spot
            keys: list[tuple[str, Any]] = [("tensor", name) for name in sorted(spot.covers)]
            if not spot.by_name:
                keys = [("slot", (s, spot.component)) for s in spot.slots]
                keys += [("outside", group) for group in spot.outside]
            for key in keys or [("default", None)]:
                said.setdefault(key, []).append(i)
        targets: dict[tuple[str, tuple[int, ...]], _Target] = {}
        for (kind, where), rows in said.items():
            key = ("default" if kind == "default" else "", tuple(rows))
            target = targets.setdefault(key, _Target(tuple(rows)))
            if kind == "slot":
                target.slots.append(where)
            elif kind == "outside":
                target.outside.append(where)
            elif kind == "tensor":
                target.tensors.append(where)
            else:
                target.is_default = True
        return list(targets.values())

    def _at(self, recipe: Recipe) -> dict[str, dict[str, Any]]:
        """Every tensor's parameters."""
        known: dict[tuple[int | None, str, str | None], dict[str, Any]] = {}
        at = {}
        for name, place in self._anatomy.places.items():
            key = place.layer, place.component, name if name in recipe.tensors else None
            if key not in known:
                known[key] = self._values(recipe, recipe.merge_for(*key))
            at[name] = known[key]
        return at

    def _values(self, recipe: Recipe, merge: Merge) -> dict[str, Any]:
        """Every parameter that is in force in a merge, with the operator's defaults."""
        if merge.operator != self._operator:
            raise ValueError(f"expected operator {self._operator}, got {merge.operator}")
        if problems := check_merge(merge, recipe.base):
            raise ValueError("; ".join(map(str, problems)))
        sources = merge.sources or ()
        if sorted(sources) != sorted(self._experts):
            raise ValueError(f"the recipe merges {sources} where this space has {self._experts}")
        values = resolved_parameters(merge)
        return {
            name: dict(zip(sources, value, strict=True)) if isinstance(value, tuple) else value
            for name, value in values.items()
        }

    def _row_value(self, row: Row, at: Mapping[str, Mapping[str, Any]]) -> RowValue:
        """A row's value, which must be the same for all its tensors."""
        found: list[Any] = []
        for tensor in sorted(row.spot.covers):
            value = at[tensor][row.parameter]
            if not row.per_expert and isinstance(value, dict):
                if len(set(value.values())) > 1:
                    raise ValueError(f"one gene for all experts, but the recipe has {value}")
                value = next(iter(value.values()))
            if value not in found:
                found.append(value)
        if len(found) > 1:
            name = ".".join(filter(None, (row.parameter, row.spot.name)))
            raise ValueError(f"{name}: one gene, but the recipe has {found}")
        return found[0]

    def _by_expert(self, value: Any) -> Any:
        """One value for each source, by name, where there is one for each."""
        if isinstance(value, tuple):
            return dict(zip(sorted(self._experts), value, strict=True))
        return value


def alike(one: Any, other: Any) -> bool:
    """Equal, as far as the decimals of recipes go."""
    if isinstance(one, dict):
        return all(alike(one[key], other[key]) for key in one)
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=0, abs_tol=TOLERANCE)
    return bool(one == other)
