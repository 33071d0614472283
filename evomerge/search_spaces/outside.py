"""Where a model of rearranged or chosen layers has its embedding, head and final norm from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.errors import Problem, nearest
from evomerge.recipe import Merge, Slot
from evomerge.search_spaces.spots import AFTER, BEFORE

BASE, ENDS, UNIFORM = "base", "ends", "uniform"
HELP = (
    "`base`; a model's name; `uniform`, the experts' mean; or `ends`: the embedding as the first "
    "layer, norm and head as the last one"
)


def outside_problems(outside: str, experts: Sequence[str]) -> list[Problem]:
    """What is wrong with a file's `outside`."""
    known = [BASE, *experts, UNIFORM, ENDS]
    taken = [
        Problem(f"experts.{name}", "means something else in `outside`: call the expert otherwise")
        for name in (BASE, UNIFORM, ENDS)
        if name in experts
    ]
    if outside in known:
        return taken
    return [
        *taken,
        Problem("space.outside", f"expected {HELP}, got {outside!r}", nearest(outside, known)),
    ]


def outside_merges(
    outside: str, anatomy: Anatomy, experts: Sequence[str], slots: Sequence[Slot]
) -> dict[Any, Merge]:
    """A recipe's `outside`, where its default is the base alone.

    `ends` takes the merge of the layer's norms, which is that of whatever a file does not split.
    """
    there = {place.component for place in anatomy.places.values() if place.layer is None}
    before, after = [g for g in BEFORE if g in there], [g for g in AFTER if g in there]
    if outside == BASE:
        return {}
    if outside == UNIFORM:
        # By name: sources that are left out would be the default's, which is the base alone.
        mean = tuple(sorted(experts))
        uniform = Merge.of_valid(operator="linear", sources=mean, parameters={"normalize": True})
        return dict.fromkeys([*before, *after], uniform)
    if outside == ENDS:
        first, last = (_whole(slot) for slot in (slots[0], slots[-1]))
        merges = dict.fromkeys(before, first) | dict.fromkeys(after, last)
        return {group: merge for group, merge in merges.items() if merge is not None}
    alone = Merge.of_valid(sources=(outside,))
    return dict.fromkeys([*before, *after], alone)


def _whole(slot: Slot) -> Merge | None:
    return slot.merges.get("norm", slot.merges.get("default"))
