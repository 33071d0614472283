"""What is merged together, and with what: a model cut into blocks, a recipe resolved onto them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import ConfigurationError, EvomergeError, ModelError, Problem, nearest
from evomerge.merging.check import check_merge, resolved_parameters
from evomerge.merging.operator import CHUNK, Operator, Value
from evomerge.merging.operators.segments import SEGMENTS
from evomerge.merging.table import OPERATORS
from evomerge.recipe import Recipe


@dataclass(frozen=True)
class Group:
    """Tensors of one place that are merged in one step: one large one, or small ones.

    names: in the merged model; origins: of the base's tensors that stand there.
    slot, component: whose merge they take; slot is None outside the layers.
    copied: they come from the base as they are (integers, and what no other model has).
    """

    names: tuple[str, ...]
    origins: tuple[str, ...]
    slot: int | None
    component: str
    copied: bool

    def of(self, names: Iterable[str]) -> Group:
        """The same group with some of its tensors alone."""
        origin = dict(zip(self.names, self.origins, strict=True))
        chosen = tuple(names)
        return replace(self, names=chosen, origins=tuple(origin[name] for name in chosen))


@dataclass(frozen=True)
class Effective:
    """All that a group's values depend on, beside the base's tensors; equal ones give equal ones.

    layers: the layer that the base gives and that each source gives, where layers are rearranged
    and not all of these are the slot's own number.
    depth: the slot's, from 0 to 1, where layers are rearranged and it matters.
    branch_scale: the slot's, where the group has outputs of residual branches: their factor.
    """

    operator: str
    sources: tuple[str, ...]
    values: tuple[tuple[str, Value], ...]
    mask_seed: int
    layers: tuple[int, ...] | None = None
    depth: float | None = None
    branch_scale: float = 1.0

    def prepare_key(self, operator: Operator) -> tuple[object, ...]:
        """What the operator's prepared data depend on; the branch scale comes after it."""
        fixed = tuple(
            (name, value)
            for name, value in self.values
            if operator.parameter(name).phase == "prepare"
        )
        return (self.operator, self.sources, fixed, self.mask_seed, self.layers, self.depth)


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
    # A layer that a shallower model has not may still be merged with another one of its layers.
    roles = {anatomy.roles[name] for name in others if name in anatomy.places}
    origin = checkpoints[base]
    open_groups: dict[tuple[object, ...], list[list[str]]] = {}
    filled: dict[int, int] = {}
    for name in origin.names:
        place = anatomy.places[name]
        dtype, size = origin.dtype(name), math.prod(origin.shape(name))
        known = name in others or (place.layer is not None and anatomy.roles[name] in roles)
        lacking = len(checkpoints) > 1 and not known  # a model alone is merged, too
        copied = not dtype.is_floating_point or lacking or size == 0
        parts = open_groups.setdefault((place.layer, place.component, copied, dtype), [])
        if parts and filled[id(parts[-1])] + size <= CHUNK:
            parts[-1].append(name)
        else:
            parts.append([name])
            filled[id(parts[-1])] = 0
        filled[id(parts[-1])] += size
    return tuple(
        Group(tuple(names), tuple(names), layer, component, copied)  # type: ignore[arg-type]
        for (layer, component, copied, _), parts in open_groups.items()
        for names in parts
    )


def arranged(groups: tuple[Group, ...], recipe: Recipe, anatomy: Anatomy) -> tuple[Group, ...]:
    """The groups of the merged model: the base's, in the recipe's slots, exceptions on their own.

    Raises:
        ModelError: a slot's tensors cannot be named (see `Anatomy.name_in_slot`).
    """
    if not recipe.keeps_layers(anatomy.num_layers):
        of_layer: dict[int | None, list[Group]] = {}
        for group in groups:
            of_layer.setdefault(group.slot, []).append(group)
        stack = list(of_layer.get(None, ()))
        for number, slot in enumerate(recipe.slots or ()):
            for group in of_layer.get(slot.layer_of(recipe.base), ()):
                names = tuple(anatomy.name_in_slot(name, number) for name in group.origins)
                stack.append(replace(group, names=names, slot=number))
        groups = tuple(stack)
    if not recipe.tensors:
        return groups
    parts = []
    for group in groups:
        alone = [name for name in group.names if name in recipe.tensors]
        rest = [name for name in group.names if name not in recipe.tensors]
        parts += [group.of(part) for part in (rest, *([name] for name in alone)) if part]
    return tuple(parts)


def resolve(
    recipe: Recipe, groups: tuple[Group, ...], anatomy: Anatomy
) -> dict[Group, Effective | None]:
    """What each group's values depend on; None for what is copied from the base.

    Raises:
        ConfigurationError: with all that is wrong with the recipe's merges.
    """
    resolved: dict[tuple[int | None, str], Effective] = {}
    problems: dict[Problem, list[str]] = {}  # of a merge, with the places that have it
    plan: dict[Group, Effective | None] = {}
    for group in groups:
        scale = _branch_scale(recipe, group, anatomy)
        if group.copied:
            if scale != 1:
                what = "would scale a tensor that is copied from the base: no other model has it"
                problems.setdefault(Problem("branch_scale", what), []).append(
                    _place_of(group, None)
                )
            plan[group] = None
            continue
        inside = group.slot is not None
        place = (-1, "") if inside and recipe.slots is None else (group.slot, group.component)
        alone = bool(recipe.tensors) and group.names[:1] and group.names[0] in recipe.tensors
        if place not in resolved or alone:
            tensor = group.names[0] if alone else None
            merge = recipe.merge_for(group.slot, group.component, tensor)
            if found := check_merge(merge, recipe.base):
                for problem in found:
                    problems.setdefault(problem, []).append(_place_of(group, tensor))
                continue
            sources = merge.sources or ()
            layers, depth = _rearrangement(recipe, group.slot, sources, anatomy.num_layers)
            effective = Effective(
                merge.operator or "",
                sources,
                tuple(resolved_parameters(merge).items()),
                recipe.mask_seed,
                layers,
                depth if OPERATORS[merge.operator or ""].place in ("depth", "both") else None,
            )
            if alone:
                plan[group] = _scaled(effective, scale)
                continue
            resolved[place] = effective
        plan[group] = _scaled(resolved[place], scale)
    if problems:
        raise ConfigurationError(_placed(problem, places) for problem, places in problems.items())
    return plan


def _branch_scale(recipe: Recipe, group: Group, anatomy: Anatomy) -> float:
    """The slot's, where it changes a tensor of the group.

    Raises:
        ConfigurationError: what the branches' outputs are is not known for such a model.
    """
    if recipe.slots is None or group.slot is None:
        return 1.0
    scale = recipe.slots[group.slot].branch_scale
    return 1.0 if scale == 1 or anatomy.branch_outputs.isdisjoint(group.origins) else scale


def _scaled(effective: Effective, scale: float) -> Effective:
    return effective if scale == 1 else replace(effective, branch_scale=scale)


def _rearrangement(
    recipe: Recipe, slot: int | None, sources: tuple[str, ...], num_layers: int
) -> tuple[tuple[int, ...] | None, float | None]:
    """The layers and the depth of an effective merge."""
    if recipe.slots is None or slot is None:
        return None, None
    given, count = recipe.slots[slot], len(recipe.slots)
    layers = tuple(given.layer_of(model) for model in (recipe.base, *sources))
    in_place = all(layer == slot for layer in layers)
    same_depth = in_place and count == num_layers
    return None if in_place else layers, None if same_depth else slot / max(1, count - 1)


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
        kind = (effective, group.copied, origin.dtype(group.origins[0]))
        size = sum(math.prod(origin.shape(name)) for name in group.origins)
        if kind in open_ones and filled[kind] + size <= CHUNK:
            before = open_ones[kind]
            del fewer[before]
            group = replace(
                before, names=before.names + group.names, origins=before.origins + group.origins
            )
            size += filled[kind]
        fewer[group] = effective
        open_ones[kind], filled[kind] = group, size
    return fewer


def check_recipe(
    recipe: Recipe, anatomy: Anatomy, num_layers: Mapping[str, int] | None = None
) -> list[Problem]:
    """Everything about a recipe that does not fit the operators or the models.

    Args:
        recipe: what to merge.
        anatomy: the base's.
        num_layers: of each model; as many as the base's by default.

    Where segments end hangs on the models' tensors: see `FlatOrder.problems`.
    """
    if recipe.segments is not None:
        return []
    depths = dict.fromkeys(recipe.models, anatomy.num_layers) | dict(num_layers or {})
    if problems := _slot_problems(recipe, anatomy.num_layers, depths):
        return problems
    tensors = tuple(
        Group((name,), (name,), place.layer, place.component, copied=False)
        for name, place in anatomy.places.items()
    )
    try:
        groups = arranged(tensors, recipe, anatomy)
        known = [name for group in groups for name in group.names]
        problems = [
            Problem(f"tensors.{name}", "the merged model has no such tensor", nearest(name, known))
            for name in sorted(recipe.tensors.keys() - set(known))
        ]
        for group, effective in resolve(recipe, groups, anatomy).items():
            problems += _counterpart_problems(group, effective, anatomy, depths)
    except EvomergeError as error:
        problems += error.problems
    return list(dict.fromkeys(problems))  # a layer's tensors have the same


def _slot_problems(recipe: Recipe, num_layers: int, depths: Mapping[str, int]) -> list[Problem]:
    """Layers that the models do not have."""
    if recipe.slots is None:
        return []
    if not recipe.slots and num_layers:
        return [Problem("slots", "a model without layers: name at least one slot")]
    problems = []
    for number, slot in enumerate(recipe.slots):
        named = [("layer", slot.layer, recipe.base, num_layers)]
        named += [(f"layers.{m}", layer, m, depths[m]) for m, layer in slot.layers.items()]
        problems += [
            Problem(f"slots.{number}.{key}", _no_layer(layer, model, count))
            for key, layer, model, count in named
            if layer >= count
        ]
    return problems


def _no_layer(layer: int, model: str, count: int) -> str:
    return f"there is no layer {layer}: {model} has {count}, counted from 0"


def _counterpart_problems(
    group: Group, effective: Effective | None, anatomy: Anatomy, depths: Mapping[str, int]
) -> list[Problem]:
    """Tensors that a layer does not have which a source is to give; layers need not be alike."""
    if effective is None or group.slot is None:
        return []
    problems: list[Problem] = []
    own = (anatomy.places[group.origins[0]].layer,) * len(effective.sources)
    layers = own if effective.layers is None else effective.layers[1:]
    for source, layer in zip(effective.sources, layers, strict=True):
        if layer is None or layer >= depths[source]:
            what = _no_layer(layer or 0, source, depths[source])
            problems.append(Problem(f"slot {group.slot}, {source}", what))
            continue
        for name in group.origins:
            try:
                anatomy.name_in_layer(name, layer)
            except ModelError as error:
                where = f"slot {group.slot}, {source}"
                problems += [Problem(f"{where}: {p.where}", p.what) for p in error.problems]
    return problems


def _place_of(group: Group, tensor: str | None) -> str:
    if tensor is not None:
        return f"tensors {tensor}"
    return (
        f"outside {group.component}"
        if group.slot is None
        else f"slot {group.slot} {group.component}"
    )


def _placed(problem: Problem, places: list[str]) -> Problem:
    """A merge's problem, said once for all the places in the recipe that have it."""
    different = list(dict.fromkeys(places))
    where = different[0] if len(different) == 1 else f"{different[0]} and {len(different) - 1} more"
    return Problem(f"{where}: {problem.where}", problem.what, problem.hint)


def operator_of(effective: Effective) -> Operator:
    """The operator that an effective merge names."""
    return SEGMENTS if effective.operator == SEGMENTS.name else OPERATORS[effective.operator]
