"""What the task-vector family prepares: orders of magnitude, random draws, ranks in rows.

Task vectors themselves are not kept: computing W_k - W_0 where it is used costs less than reading
it from memory, and the models stay in their mapped files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from evomerge.merging import passes, sparsify
from evomerge.merging.operator import Block, Values, chunks
from evomerge.merging.order import Magnitudes, memory_bytes, rank_into
from evomerge.merging.passes import Mode, Selection

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from evomerge.merging.sparsify import Limits

NO_NORM = 1e-7  # an L1 norm below this is not matched, as in mergekit
_MODES: dict[str, Mode] = {
    "none": "all",
    "largest": "magnitude",
    "band": "magnitude",
    "random": "draw",
    "ranked": "rank",
}


@dataclass(frozen=True)
class Row:
    """What tells the methods of the family apart."""

    sparsify: Literal["none", "largest", "band", "random", "ranked"]
    consensus: bool


@dataclass
class Prepared:
    """What is kept of a block."""

    base: Tensor  # (numel,)
    sources: tuple[Tensor, ...]  # each (numel,)
    source_names: tuple[str, ...]
    segments: tuple[slice, ...]  # where each tensor lies
    held_bytes: int  # what base and sources cost
    orders: list[list[Magnitudes]] = field(default_factory=list)  # [source][segment]
    orders_are_shared: bool = False  # with all other blocks
    draws: list[Tensor] = field(default_factory=list)  # each (numel,) int16
    ranks: list[Tensor] = field(default_factory=list)  # each (numel,) int16
    drawn_bytes: int = 0  # what draws and ranks cost in memory

    @property
    def nbytes(self) -> int:
        """Bytes in memory, without what other blocks share."""
        own = [] if self.orders_are_shared else [one for row in self.orders for one in row]
        return self.held_bytes + self.drawn_bytes + sum(order.nbytes for order in own)

    def spill(self, move: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Let `move` bring the large arrays elsewhere."""
        import torch

        if not self.orders_are_shared:
            for order in (one for row in self.orders for one in row):
                order.spill(move)
        if self.base.device.type == "cpu":
            moved = [move(tensor.numpy()) for tensor in (*self.draws, *self.ranks)]
            count, self.drawn_bytes = len(self.draws), sum(map(memory_bytes, moved))
            tensors = [torch.from_numpy(array) for array in moved]
            self.draws, self.ranks = tensors[:count], tensors[count:]


def prepare(row: Row, block: Block, values: Values) -> Prepared:
    """All that a block's task vectors need for any weights and densities."""
    base = cast("Tensor", block.base)
    held = block.held_bytes(base, *block.sources)
    prepared = Prepared(base, block.sources, block.source_names, block.segments, held)
    if row.sparsify in ("largest", "band"):
        _add_orders(prepared, block, values)
    if row.sparsify in ("random", "ranked"):
        prepared.draws = [_room(prepared, block) for _ in block.sources]
        for name, drawn in zip(block.source_names, prepared.draws, strict=True):
            for tensor, segment in zip(block.names, block.segments, strict=True):
                sparsify.draw_into(block.mask_seed, tensor, name, drawn[segment])
    if row.sparsify == "ranked":
        prepared.ranks = [_room(prepared, block) for _ in block.sources]
        for source, ranks in zip(block.sources, prepared.ranks, strict=True):
            for shape, segment in zip(block.shapes, block.segments, strict=True):
                rank_into(_task_vector(block, source, segment), shape, ranks[segment].numpy())
    device = prepared.base.device
    prepared.draws = [draws.to(device) for draws in prepared.draws]
    prepared.ranks = [ranks.to(device) for ranks in prepared.ranks]
    return prepared


def _room(prepared: Prepared, block: Block) -> Tensor:
    """Two bytes for each entry of a block, on the CPU."""
    import torch

    array = block.room(block.numel, np.int16)
    prepared.drawn_bytes += memory_bytes(array)
    return torch.from_numpy(array)


def _add_orders(prepared: Prepared, block: Block, values: Values) -> None:
    scope = values.get("trim", "tensor")
    if scope == "auto":
        scope = "model" if values["compat"] == "published" else "tensor"
    if scope == "model":
        whole = [block.whole_model(name) for name in block.source_names]
        prepared.orders = [[one] * len(block.segments) for one in whole]
        prepared.orders_are_shared = True
        return
    prepared.orders = [
        [block.order(partial(_task_vector, block, source, segment)) for segment in block.segments]
        for source in block.sources
    ]


def _task_vector(block: Block, source: Tensor, segment: slice) -> Iterator[Tensor]:
    """A tensor's task vector in float32, chunk by chunk."""
    base = cast("Tensor", block.base)[segment]
    for part in chunks(len(base)):
        yield source[segment][part].float() - base[part].float()


def selection(row: Row, prepared: Prepared, values: Values) -> Selection:
    """Which entries take part, and by what dropping the others is made up for."""
    mode = _MODES[row.sparsify]
    shape = (len(prepared.sources), len(prepared.segments))
    limits = np.zeros((*shape, 2), np.float32)
    for k in range(shape[0]) if mode != "all" else ():
        if prepared.orders and not prepared.orders_are_shared:
            limits[k] = [_limits(row, k, order, values) for order in prepared.orders[k]]
        else:
            limits[k] = _limits(row, k, prepared.orders[k][0] if prepared.orders else None, values)
    ones = np.ones(shape, np.float32)
    chosen = Selection(mode, limits, ones, prepared.draws, prepared.ranks)
    return _made_up(row, prepared, values, chosen)


def _limits(row: Row, k: int, order: Magnitudes | None, values: Values) -> Limits:
    density = _of(values, "density", k)
    if order is None:
        if row.sparsify == "random":
            return sparsify.level_of_density(density)
        return sparsify.levels_of_ranks(density, _of(values, "epsilon", k))
    if row.sparsify == "band":
        return sparsify.without_outliers(order, density, _of(values, "gamma", k))
    return sparsify.largest(order, density)


def _of(values: Values, parameter: str, k: int) -> float:
    """A parameter's value for one source."""
    return cast("tuple[float, ...]", values[parameter])[k]


def _made_up(row: Row, prepared: Prepared, values: Values, chosen: Selection) -> Selection:
    """The selection with the factors that make up for what is dropped."""
    how = values.get("rescale", "none")
    own = "probability" if row.sparsify == "ranked" else "density"
    if how == "auto":
        how = own if values["compat"] == "published" else "l1"
    if how == "none":
        return chosen
    if how == "probability":
        return replace(chosen, divide=True)
    if how == "density":
        densities = np.array(values["density"])[:, None]
        made_up = np.where(densities > 0, 1 / np.clip(densities, 1e-12, 1), 0)
    else:
        before, after = passes.kept_mass(prepared.base, prepared.sources, chosen, prepared.segments)
        matched = np.minimum(before, after) >= NO_NORM
        made_up = np.where(matched, before / np.where(matched, after, 1), 1)
    return replace(chosen, factors=(chosen.factors * made_up).astype(np.float32))
