"""What groups of runs are called: by what differs between them, as far as that is short."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.results.comparable import differing
from evomerge.results.contender import PLACES, Contender

LONGEST = 44  # characters of a name made of settings
_NO_NAME = ("models.", "items.", "start.")  # contents, which say nothing to anybody

Settings = Mapping[str, Any]


def group_names(groups: Sequence[Sequence[Contender]], by: str | None) -> list[str]:
    """A name for each group, no two alike."""
    firsts = [runs[0] for runs in groups]
    if by == "name":
        names = [run.experiment for run in firsts]
    else:
        said = [run.settings if by else {**run.settings, **run.budget} for run in firsts]
        prefixes = [PLACES[by]] if by else list(PLACES.values())
        names = [_name(one, said, prefixes, everything=by is None) for one in said]
    if len(set(names)) == len(names) and all(0 < len(name) <= LONGEST for name in names):
        return names
    return [
        run.name if len(runs) == 1 else f"{run.name} and {len(runs) - 1} more"
        for run, runs in zip(firsts, groups, strict=True)
    ]


def _name(
    one: Settings, every: Sequence[Settings], prefixes: Sequence[str], everything: bool
) -> str:
    """The kinds that differ, then the other keys; "" where contents alone differ."""
    keys = differing(every)
    if len(every) == 1:
        return str(one.get("searcher.kind", ""))
    parts, told = [], set()
    for prefix in prefixes:
        own = [key for key in keys if key.startswith(f"{prefix}.")]
        told.update(own)
        if own:
            kind = str(one.get(f"{prefix}.kind", ""))
            alike = [s for s in every if s.get(f"{prefix}.kind") == one.get(f"{prefix}.kind")]
            rest = [key for key in differing(alike) if key in own]
            parts.append(" ".join([kind, *(_setting(key, one) for key in rest)]))
    others = [key for key in keys if key not in told] if everything else []
    if any(key.startswith(_NO_NAME) for key in others):
        return ""
    return ", ".join([*parts, *(_setting(key, one) for key in others)])


def _setting(key: str, one: Settings) -> str:
    value = one.get(key)
    return f"{key.rpartition('.')[2]}={'-' if value is None else value}"
