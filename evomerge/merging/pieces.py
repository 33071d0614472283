"""The plan of a recipe with segments: each group's pieces of the flattened parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from evomerge.merging.blocks import Effective, Group
from evomerge.merging.flat_order import FlatOrder
from evomerge.merging.operators.segments import SEGMENTS, joined_stretches
from evomerge.recipe import Segments


def plan_of_segments(
    segments: Segments, groups: Iterable[Group], order: FlatOrder
) -> dict[Group, Effective | None]:
    """What each group's values depend on; None for what is copied from the base.

    Groups are the same for all tables, so that two recipes differ in those alone whose pieces do.
    """
    names = sorted(segments.weights)
    stops = np.array(segments.stops, np.int64)
    table = np.array([segments.weights[name] for name in names]).T  # (stretches, models)
    plan: dict[Group, Effective | None] = {}
    for group in groups:
        inside = [name for name in group.names if name in order.spans]
        if len(inside) < len(group.names):  # what some models lack, too
            rest = group.of(name for name in group.names if name not in order.spans)
            plan[replace(rest, copied=True)] = None
        if inside:
            part = group if len(inside) == len(group.names) else group.of(inside)
            plan[part] = _effective(names, stops, table, [order.spans[name] for name in inside])
    return plan


def _effective(
    names: list[str],
    stops: NDArray[np.int64],
    table: NDArray[np.float64],
    spans: list[tuple[int, int]],
) -> Effective:
    """The pieces of tensors that are laid end to end, neighbours with equal weights as one."""
    ends, rows, done = [], [], 0
    for first, last in spans:
        here = slice(np.searchsorted(stops, first, "right"), np.searchsorted(stops, last) + 1)
        ends.append(np.minimum(stops[here], last) - first + done)
        rows.append(table[here])
        done += last - first
    joined_stops, joined = joined_stretches(np.concatenate(ends), np.concatenate(rows))
    used = [bool(column.any()) for column in joined.T]
    return Effective(
        operator=SEGMENTS.name,
        sources=tuple(name for name, take in zip(names, used, strict=True) if take),
        values=(
            ("stops", tuple(joined_stops.tolist())),
            ("weights", tuple(joined[:, used].T.reshape(-1).tolist())),
        ),
        mask_seed=0,
    )
