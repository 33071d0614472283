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
from evomerge.merging.reads import Models

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from evomerge.merging.sparsify import Limits

NO_NORM = 1e-7  # an L1 norm below this is not matched, as in mergekit
_MODES: dict[str, Mode] = {
    "none": "all",
    "largest": "at_least",
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

    models: Models
    held_bytes: int  # what base and sources cost
    drawn_bytes: int = 0  # what draws and ranks cost in memory
    orders: list[list[Magnitudes]] = field(default_factory=list)  # [source][segment]
    orders_are_shared: bool = False  # with all other blocks

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
        models = self.models
        moved = [move(tensor.cpu().numpy()) for tensor in (*models.draws, *models.ranks)]
        self.drawn_bytes = sum(map(memory_bytes, moved))
        tensors, count = [torch.from_numpy(array) for array in moved], len(models.draws)
        # Told anew to the kernels, which know the addresses of the old ones.
        self.models = replace(models, draws=tensors[:count], ranks=tensors[count:])


def prepare(row: Row, block: Block, values: Values) -> Prepared:
    """All that a block's task vectors need for any weights and densities."""
    base = cast("Tensor", block.base)
    arrays: list[NDArray[np.int16]] = []
    drawn = _drawn(block, arrays) if row.sparsify in ("random", "ranked") else []
    ranks = _ranked(block, arrays) if row.sparsify == "ranked" else []
    models = Models(
        base,
        block.sources,
        block.segments,
        draws=[one.to(base.device) for one in drawn],
        ranks=[one.to(base.device) for one in ranks],
    )
    held = block.held_bytes(base, *block.sources)
    drawn_bytes = sum(map(memory_bytes, arrays))
    if base.device.type != "cpu":
        drawn_bytes = sum(tensor.nbytes for tensor in (*models.draws, *models.ranks))
    prepared = Prepared(models, held, drawn_bytes)
    if row.sparsify in ("largest", "band"):
        _add_orders(prepared, block, values)
    return prepared


def _drawn(block: Block, arrays: list[NDArray[np.int16]]) -> list[Tensor]:
    """Each source's draws, on the CPU; where they lie is appended to arrays."""
    draws = [_room(block, arrays) for _ in block.sources]
    for name, drawn in zip(block.source_names, draws, strict=True):
        for tensor, segment in zip(block.names, block.segments, strict=True):
            sparsify.draw_into(block.mask_seed, tensor, name, drawn[segment])
    return draws


def _ranked(block: Block, arrays: list[NDArray[np.int16]]) -> list[Tensor]:
    """Each source's ranks, likewise."""
    ranked = [_room(block, arrays) for _ in block.sources]
    for source, ranks in zip(block.sources, ranked, strict=True):
        for shape, segment in zip(block.shapes, block.segments, strict=True):
            rank_into(_task_vector(block, source, segment), shape, ranks[segment].numpy())
    return ranked


def _room(block: Block, arrays: list[NDArray[np.int16]]) -> Tensor:
    """Two bytes for each entry of a block, on the CPU: to be kept, or to be copied to a GPU."""
    import torch

    is_kept = block.sources[0].device.type == "cpu"
    room = block.around.room if is_kept else np.empty
    arrays.append(room(block.numel, np.int16))
    return torch.from_numpy(arrays[-1])


def _add_orders(prepared: Prepared, block: Block, values: Values) -> None:
    scope = values.get("trim", "tensor")
    if scope == "auto":
        scope = "model" if values["compat"] == "published" else "tensor"
    if scope == "model":
        whole = [block.around.whole_model(name) for name in block.source_names]
        prepared.orders = [[one] * len(block.segments) for one in whole]
        prepared.orders_are_shared = True
        return
    prepared.orders = [
        [
            block.around.order(partial(_task_vector, block, source, segment))
            for segment in block.segments
        ]
        for source in block.sources
    ]


def _task_vector(block: Block, source: Tensor, segment: slice) -> Iterator[Tensor]:
    """A tensor's task vector in float32, chunk by chunk."""
    base = cast("Tensor", block.base)[segment]
    for part in chunks(len(base), like=base):
        yield source[segment][part].float() - base[part].float()


def selection(row: Row, prepared: Prepared, values: Values) -> Selection:
    """Which entries take part, and by what dropping the others is made up for."""
    mode = _MODES[row.sparsify]
    shape = (len(prepared.models.sources), len(prepared.models.segments))
    limits = np.zeros((*shape, 2), np.float32)
    for k in range(shape[0]) if mode != "all" else ():
        if prepared.orders and not prepared.orders_are_shared:
            limits[k] = [_limits(row, k, order, values) for order in prepared.orders[k]]
        else:
            limits[k] = _limits(row, k, prepared.orders[k][0] if prepared.orders else None, values)
    ones = np.ones(shape, np.float32)
    chosen = Selection(mode, limits, ones)
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
        before, after = passes.kept_mass(prepared.models, chosen)
        matched = np.minimum(before, after) >= NO_NORM
        made_up = np.where(matched, before / np.where(matched, after, 1), 1)
    return replace(chosen, factors=(chosen.factors * made_up).astype(np.float32))
