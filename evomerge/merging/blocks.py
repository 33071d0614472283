"""What is merged together, and with what: a model cut into blocks, a recipe resolved onto them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import ConfigurationError, Problem
from evomerge.merging.check import check_merge, resolved_parameters
from evomerge.merging.operator import CHUNK, Operator, Value
from evomerge.merging.table import OPERATORS
from evomerge.recipe import Recipe


@dataclass(frozen=True)
class Group:
    """Tensors of one place that are merged in one step: one large one, or small ones.

    slot, component: whose merge they take; slot is None outside the layers.
    copied: they come from the base as they are (integers, and what no other model has).
    """

    names: tuple[str, ...]
    slot: int | None
    component: str
    copied: bool


@dataclass(frozen=True)
class Effective:
    """All that a group's values depend on; equal ones give equal tensors."""

    operator: str
    sources: tuple[str, ...]
    values: tuple[tuple[str, Value], ...]
    mask_seed: int
    layer: int | None  # the layer that the sources read

    def prepare_key(self, operator: Operator) -> tuple[object, ...]:
        """What the operator's prepared data depend on."""
        fixed = tuple(
            (name, value)
            for name, value in self.values
            if operator.parameter(name).phase == "prepare"
        )
        return (self.operator, self.sources, fixed, self.mask_seed, self.layer)


def groups_of(
    checkpoints: Mapping[str, Checkpoint], anatomy: Anatomy, base: str
) -> tuple[Group, ...]:
    """The base's tensors, cut into groups of at most one chunk, or one tensor."""
    others = {
        name
        for model, checkpoint in checkpoints.items()
        if model != base
        for name in checkpoint.names
    }
    origin = checkpoints[base]
    open_groups: dict[tuple[object, ...], list[list[str]]] = {}
    filled: dict[int, int] = {}
    for name in origin.names:
        place = anatomy.places[name]
        dtype, size = origin.dtype(name), math.prod(origin.shape(name))
        copied = not dtype.is_floating_point or name not in others or size == 0
        parts = open_groups.setdefault((place.layer, place.component, copied, dtype), [])
        if parts and filled[id(parts[-1])] + size <= CHUNK:
            parts[-1].append(name)
        else:
            parts.append([name])
            filled[id(parts[-1])] = 0
        filled[id(parts[-1])] += size
    return tuple(
        Group(tuple(names), layer, component, copied)  # type: ignore[arg-type]
        for (layer, component, copied, _), parts in open_groups.items()
        for names in parts
    )


def resolve(recipe: Recipe, groups: tuple[Group, ...]) -> dict[Group, Effective | None]:
    """What each group's values depend on; None for what is copied from the base.

    Raises:
        ConfigurationError: with all that is wrong with the recipe's merges.
    """
    resolved: dict[tuple[int | None, str], Effective] = {}
    problems: dict[Problem, None] = {}
    plan: dict[Group, Effective | None] = {}
    for group in groups:
        if group.copied:
            plan[group] = None
            continue
        inside = group.slot is not None
        place = (-1, "") if inside and recipe.slots is None else (group.slot, group.component)
        if place not in resolved:
            merge = recipe.merge_for(group.slot, group.component)
            if found := check_merge(merge, recipe.base):
                problems.update(dict.fromkeys(_placed(found, group)))
                continue
            values = tuple(resolved_parameters(merge).items())
            resolved[place] = Effective(
                merge.operator or "", merge.sources or (), values, recipe.mask_seed, None
            )
        plan[group] = resolved[place]
    if problems:
        raise ConfigurationError(problems)
    return plan


def joined(
    plan: Mapping[Group, Effective | None], origin: Checkpoint
) -> dict[Group, Effective | None]:
    """The same plan in fewer steps: groups that merge alike are one, up to a chunk.

    A small model with one merge for all its layers is then written in a few steps instead of one
    for each layer and component. What is joined depends on the recipe alone, so its values do too.
    """
    fewer: dict[Group, Effective | None] = {}
    open_ones: dict[tuple[object, ...], Group] = {}  # the last group of each kind
    filled: dict[tuple[object, ...], int] = {}
    for group, effective in plan.items():
        kind = (effective, group.copied, origin.dtype(group.names[0]))
        size = sum(math.prod(origin.shape(name)) for name in group.names)
        if kind in open_ones and filled[kind] + size <= CHUNK:
            before = open_ones[kind]
            del fewer[before]
            group = replace(before, names=before.names + group.names)
            size += filled[kind]
        fewer[group] = effective
        open_ones[kind], filled[kind] = group, size
    return fewer


def check_recipe(recipe: Recipe, anatomy: Anatomy) -> list[Problem]:
    """Everything about a recipe that does not fit the operators or the model."""
    problems = []
    slots = recipe.slots
    if slots is not None and [slot.layer for slot in slots] != list(range(anatomy.num_layers)):
        layers = [slot.layer for slot in slots]
        what = f"layers {layers} of a model of {anatomy.num_layers} layers"
        problems.append(
            Problem("slots", f"{what}: layer structure is not supported by this operator set yet")
        )
        return problems
    places = {
        (place.layer, place.component): Group((), place.layer, place.component, copied=False)
        for place in anatomy.places.values()
    }
    try:
        resolve(recipe, tuple(places.values()))
    except ConfigurationError as error:
        problems += error.problems
    return problems


def _placed(problems: list[Problem], group: Group) -> list[Problem]:
    """Problems of one merge, with its place in the recipe."""
    where = f"outside {group.component}" if group.slot is None else f"slot {group.slot}"
    if group.slot is not None:
        where += f" {group.component}"
    return [
        Problem(f"{where}: {problem.where}", problem.what, problem.hint) for problem in problems
    ]


def operator_of(effective: Effective) -> Operator:
    """The operator that an effective merge names."""
    return OPERATORS[effective.operator]
