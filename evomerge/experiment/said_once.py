"""Merges that were worked out tensor by tensor, said as generally as a recipe can."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from evomerge.merging import OPERATORS
from evomerge.recipe import Merge, Slot, canonical_json

Merges = Mapping[str, Merge]  # by the name of a merged tensor
Place = tuple[int | None, str]  # the slot, None outside the layers, and the component


def said_once(
    operator: str,
    slots: list[Slot],
    merges: Merges,
    place_of: Mapping[str, Place],
    num_layers: int | None,
) -> dict[str, Any]:
    """The parts of a recipe that give every tensor its merge.

    Args:
        operator: of all merges.
        slots: the merged model's layers, without merges.
        merges: every tensor's, complete; all have the same parameters.
        place_of: where every tensor is.
        num_layers: of the models; None where they differ, so that the slots have to be said.
    """
    merges = _without_defaults(operator, merges)
    default = _most_common(merges.values())
    said: dict[str, Any] = {"outside": {}, "tensors": {}}
    places: dict[Place, list[str]] = {}
    for name in merges:
        places.setdefault(place_of[name], []).append(name)
    of_slot = {
        number: _most_common(m for n, m in merges.items() if place_of[n][0] == number)
        for number in range(len(slots))
        if any(inside == number for inside, _ in places)
    }
    written: dict[int, dict[str, Merge]] = {}
    for number, common in of_slot.items():
        if common != default:
            written[number] = {"default": _beyond(common, default)}
    for (slot, component), names in places.items():
        general = default if slot is None else of_slot[slot]
        common = _most_common(merges[name] for name in names)
        if common != general:
            target = said["outside"] if slot is None else written.setdefault(slot, {})
            target[component] = _beyond(common, general)
        for name in names:
            if merges[name] != common:
                said["tensors"][name] = _beyond(merges[name], common)
    stack = [
        slot.model_copy(update={"merges": written.get(number, {})})
        for number, slot in enumerate(slots)
    ]
    in_order = all(slot == Slot(layer=number) for number, slot in enumerate(stack))
    plain = in_order and len(stack) == num_layers
    first = Merge(operator=operator).over(default)
    return {"default": first, **said, "slots": None if plain else tuple(stack)}


def _without_defaults(operator: str, merges: Merges) -> Merges:
    """The merges less what is the operator's own default in all of them."""
    usual = {
        parameter.name
        for parameter in OPERATORS[operator].parameters
        if all(m.parameters.get(parameter.name) == parameter.default for m in merges.values())
    }
    return {
        name: merge.model_copy(
            update={"parameters": {k: v for k, v in merge.parameters.items() if k not in usual}}
        )
        for name, merge in merges.items()
    }


def _most_common(merges: Iterable[Merge]) -> Merge:
    counted = Counter(canonical_json(merge.model_dump(mode="json")) for merge in merges)
    return Merge.model_validate_json(counted.most_common(1)[0][0])


def _beyond(merge: Merge, general: Merge) -> Merge:
    """What a merge says that a more general one does not."""
    parameters = {k: v for k, v in merge.parameters.items() if general.parameters.get(k) != v}
    sources = None if merge.sources == general.sources else merge.sources
    return Merge(sources=sources, parameters=parameters)
