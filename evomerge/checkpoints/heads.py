"""Models with and without a head: what they have in common can be merged."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.derived import Derived, Made
from evomerge.checkpoints.numbering import component_by_words
from evomerge.checkpoints.open import Checkpoint


def settle_heads(
    checkpoints: Mapping[str, Checkpoint], base: str
) -> tuple[dict[str, Checkpoint], list[str]]:
    """The models with the base's heads, and what was done for it; no tensor is read.

    A head that a model lacks is the base's own there: its task vector is zero. A head that the base
    lacks is left out. A head that is missing because it is tied to the embedding, where the base's
    is not, stays missing: the base's would not be what that model computes.
    """
    found, notes = dict(checkpoints), []
    origin = checkpoints[base]
    for name, checkpoint in checkpoints.items():
        if name == base or set(checkpoint.names) == set(origin.names):
            continue
        lacking = _heads(origin, set(origin.names) - set(checkpoint.names))
        surplus = _heads(checkpoint, set(checkpoint.names) - set(origin.names))
        if checkpoint.tied and origin.config and not origin.tied:
            lacking = ()
        if origin.tied and checkpoint.config and not checkpoint.tied:
            surplus = ()
        if not lacking and not surplus:
            continue
        tensors: dict[str, str | Made] = {n: n for n in checkpoint.names if n not in surplus}
        for head in lacking:
            make = partial(origin.tensor, head)
            tensors[head] = Made(origin.shape(head), origin.dtype(head), make)
        found[name] = Derived(
            checkpoint,
            tensors,
            beside=origin if lacking else None,
            change={"heads": {"of the base": lacking, "left out": surplus}},
        )
        if lacking:
            notes.append(f"{name}: has no {_listed(lacking)}: the base's own takes its place")
        if surplus:
            notes.append(f"{name}: {_listed(surplus)}, which the base does not store, is left out")
    return found, notes


def _heads(checkpoint: Checkpoint, names: set[str]) -> tuple[str, ...]:
    """Those of the names that belong to a head."""
    if not names:
        return ()
    places = anatomy_of(checkpoint).places
    # A tied head that is stored all the same is the embedding to the modules: its name tells.
    return tuple(
        sorted(
            name
            for name in names
            if places[name].layer is None
            and "head" in (places[name].component, component_by_words(name, None))
        )
    )


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
