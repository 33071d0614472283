"""How the values of a parameter lie over a model: where one value ends and the next begins."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from evomerge.checkpoints.anatomy import Anatomy

INSIDE = ("attention", "mlp", "norm", "other")
BEFORE, AFTER = ("embedding", "other"), ("norm", "head")  # groups outside the layers
Apart = Literal["embedding", "head", "norms", "outside"]
Place = tuple[int | None, str]  # layer, component


@dataclass(frozen=True)
class Spot:
    """Places with one value: some layers' component (or all of it), and groups outside the layers.

    slots: empty, with an empty `outside`: whatever has no value of its own.
    covers: the names of the tensors where the value is in force.
    by_name: the value is for these tensors alone, whatever else is where they are.
    """

    name: str
    slots: tuple[int, ...] = ()
    component: str = "default"
    outside: tuple[str, ...] = ()
    covers: frozenset[str] = frozenset()
    by_name: bool = False

    @property
    def is_default(self) -> bool:
        """Whether it is what a recipe says for everything else."""
        return not (self.slots or self.outside or self.by_name)


def spots_of(
    anatomy: Anatomy,
    groups: Sequence[Sequence[int]] | None,
    *,
    by_component: bool = False,
    apart: Collection[Apart] = (),
    filters: Sequence[str] = (),
) -> list[Spot]:
    """The spots of a parameter; only those where there is something.

    Args:
        anatomy: of the base.
        groups: layers that share a value; None: all layers, and all else that is not `apart`.
        by_component: whether attention, MLP and the rest of a layer have values of their own.
        apart: what has one of its own besides; `outside` is embedding and head in one. What is not
            apart takes the first and the last group's.
        filters: parts of names: tensors whose first one it is have values of their own.
    """
    present = {(place.layer, place.component) for place in anatomy.places.values()}
    before = tuple(g for g in BEFORE if (None, g) in present)
    after = tuple(g for g in AFTER if (None, g) in present)
    norms = "norms" in apart
    all_layers = tuple(range(anatomy.num_layers))
    found: list[Spot] = []
    if norms:
        after = tuple(g for g in after if g != "norm")
        outside = ("norm",) if (None, "norm") in present else ()
        with_norm = tuple(i for i in all_layers if (i, "norm") in present)
        if outside or with_norm:
            found.append(Spot("norms", with_norm, "norm", outside))
    if "outside" in apart and (before or after):
        found.append(Spot("outside", outside=(*before, *after)))
    if "embedding" in apart and before:
        found.insert(0, Spot("embedding", outside=before))
    head = [Spot("head", outside=after)] if "head" in apart and after else []
    if groups is None and not by_component:
        found += [*head, Spot("")]
    else:
        joined_before = before if not {"embedding", "outside"} & set(apart) else ()
        joined_after = after if not {"head", "outside"} & set(apart) else ()
        inside = _inside(present, groups, all_layers, by_component=by_component, norms=norms)
        if inside:
            first = inside[0]
            inside[0] = Spot(first.name, first.slots, first.component, joined_before)
            last = inside[-1]
            inside[-1] = Spot(last.name, last.slots, last.component, (*last.outside, *joined_after))
        elif rest := (*joined_before, *joined_after):
            inside = [Spot("outside", outside=rest)]
        place = 1 if found and found[0].name == "embedding" else 0
        found = [*found[:place], *inside, *found[place:], *head]
    return _split(_covering(found, present, anatomy), filters)


def layer_groups(num_layers: int, size: int | None, count: int | None) -> list[tuple[int, ...]]:
    """Neighbouring layers that share a value: so many each, or so many groups, as equal as can be.

    Fewer groups than asked for where there are fewer layers.
    """
    if count is not None:
        count = min(count, num_layers)
        edges = [round(i * num_layers / count) for i in range(count + 1)] if count else [0]
        return [tuple(range(a, b)) for a, b in pairwise(edges)]
    step = size or 1
    return [
        tuple(range(first, min(first + step, num_layers))) for first in range(0, num_layers, step)
    ]


def group_name(group: Sequence[int]) -> str:
    """`layer_3`, or `layers_0_3`."""
    return f"layer_{group[0]}" if len(group) == 1 else f"layers_{group[0]}_{group[-1]}"


def first_fits(names: Iterable[str], filters: Sequence[str]) -> dict[str, set[str]]:
    """Filter -> the names that contain it and none of the filters before it."""
    rest, found = set(names), {}
    for part in filters:
        found[part] = {name for name in rest if part in name}
        rest -= found[part]
    return found


def _split(spots: Sequence[Spot], filters: Sequence[str]) -> list[Spot]:
    """The same spots, with their filtered tensors in spots of their own; without empty ones."""
    found = []
    for spot in spots:
        rest = spot.covers
        for part, names in first_fits(rest, filters).items():
            name = ".".join(filter(None, (spot.name, part)))
            if names:
                found.append(replace(spot, name=name, covers=frozenset(names), by_name=True))
            rest -= names
        if rest:
            found.append(replace(spot, covers=rest))
    return found


def _inside(
    present: Collection[Place],
    groups: Sequence[Sequence[int]] | None,
    all_layers: tuple[int, ...],
    *,
    by_component: bool,
    norms: bool,
) -> list[Spot]:
    """The spots inside the layers, which need not be alike: a value for what is there."""
    spots = []
    for group in groups if groups is not None else [all_layers]:
        name = "" if groups is None else group_name(group)
        components = [c for c in INSIDE if not (norms and c == "norm")]
        if not by_component:
            slots = tuple(s for s in group if any((s, c) in present for c in components))
            if slots:
                spots.append(Spot(name, slots))
            continue
        for component in components:
            slots = tuple(s for s in group if (s, component) in present)
            if slots:
                spots.append(Spot(".".join(filter(None, (name, component))), slots, component))
    return spots


def _covering(spots: Sequence[Spot], present: Collection[Place], anatomy: Anatomy) -> list[Spot]:
    """The same spots with the tensors for which their values are in force; without empty ones.

    What names a component goes before what is for whole layers, and that before the default.
    """
    taken: set[Place] = set()
    covers: dict[int, set[Place]] = {}
    order = sorted(
        range(len(spots)), key=lambda i: (spots[i].is_default, spots[i].component == "default")
    )
    for i in order:
        spot = spots[i]
        mine = {
            (layer, component)
            for layer, component in present
            if spot.is_default
            or (layer is None and component in spot.outside)
            or (layer in spot.slots and spot.component in ("default", component))
        }
        covers[i] = mine - taken
        taken |= mine
    names: dict[Place, list[str]] = {}
    for name, place in anatomy.places.items():
        names.setdefault((place.layer, place.component), []).append(name)
    return [
        replace(spot, covers=frozenset(name for place in covers[i] for name in names[place]))
        for i, spot in enumerate(spots)
        if covers[i]
    ]
