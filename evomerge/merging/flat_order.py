"""The one order in which a family's parameters are flattened, and how stretches of it are read.

Of the base's tensors, in the order of their names, all entries row by row (C order) of those that

    are floating-point, and have entries,
    stand with the base's shape in every other model,
    are not tied to one before: tied tensors, which are stored once, are flattened once.

All other tensors are no part of it: a merge takes them from the base as they are.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from evomerge.errors import Problem
from evomerge.recipe import Segments

if TYPE_CHECKING:
    from torch import Tensor

    from evomerge.checkpoints.open import Checkpoint


@dataclass(frozen=True)
class FlatOrder:
    """Where each tensor that takes part lies, first entry and the one after its last.

    spans: by the base's names, in the order of their first entries; tied tensors have one span.
    total: the number of entries.
    """

    spans: Mapping[str, tuple[int, int]]
    total: int

    def problems(self, segments: Segments) -> list[Problem]:
        """What does not fit about segments over these models."""
        if segments.stops[-1] == self.total:
            return []
        what = f"the last one is {segments.stops[-1]}, and the models have {self.total} entries"
        return [Problem("segments.stops", what)]


def flat_order(checkpoints: Mapping[str, Checkpoint], base: str) -> FlatOrder:
    """The order of a family; no tensor is read."""
    origin = checkpoints[base]
    others = [model for name, model in checkpoints.items() if name != base]
    known = [set(model.names) for model in others]
    spans: dict[str, tuple[int, int]] = {}
    placed: dict[Hashable, tuple[int, int]] = {}
    total = 0
    for name in origin.names:
        shape = origin.shape(name)
        size = math.prod(shape)
        if not origin.dtype(name).is_floating_point or not size:
            continue
        if not all(
            name in names and model.shape(name) == shape
            for names, model in zip(known, others, strict=True)
        ):
            continue
        place = origin.stored_at(name)
        if place not in placed:
            placed[place] = (total, total + size)
            total += size
        spans[name] = placed[place]
    return FlatOrder(spans, total)


class FlatModels:
    """Stretches of the flattened parameters of a family, read from its checkpoints.

    Attributes:
        order: see the module's text.
        total: the number of entries.
    """

    def __init__(self, checkpoints: Mapping[str, Checkpoint], base: str) -> None:
        self.order = flat_order(checkpoints, base)
        self.total = self.order.total
        self._checkpoints = dict(checkpoints)
        once = {span: name for name, span in reversed(list(self.order.spans.items()))}
        self._placed = sorted((*span, name) for span, name in once.items())
        self._stops = [stop for _, stop, _ in self._placed]
        self._made: dict[str, tuple[str, Tensor]] = {}  # what was computed last, by model

    def read(self, model: str, start: int, stop: int) -> NDArray[Any]:
        """Entries [start, stop) of a model, float32, or float64 where they are stored so.

        Only these entries are read; a tensor that a model computes is kept until the next one.
        """
        import torch

        parts = []
        place = bisect_right(self._stops, start)
        while start < stop:
            first, last, name = self._placed[place]
            end = min(stop, last)
            part = self._flat(model, name)[start - first : end - first]
            parts.append(part if part.dtype == torch.float64 else part.float())
            start, place = end, place + 1
        flat = parts[0] if len(parts) == 1 else torch.cat([torch.empty(0), *parts])
        found: NDArray[Any] = flat.numpy()
        return found

    def _flat(self, model: str, name: str) -> Tensor:
        checkpoint = self._checkpoints[model]
        if not checkpoint.is_made(name):
            return checkpoint.tensor(name).reshape(-1)
        if self._made.get(model, ("", None))[0] != name:
            self._made[model] = name, checkpoint.tensor(name).reshape(-1)
        return self._made[model][1]
