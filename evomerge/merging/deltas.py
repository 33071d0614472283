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
from evomerge.merging.order import Order, order_of, ranks_in_rows
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
    orders: list[list[Order]] = field(default_factory=list)  # [source][segment]
    orders_are_shared: bool = False  # with all other blocks
    draws: list[Tensor] = field(default_factory=list)  # each (numel,) int16
    ranks: list[Tensor] = field(default_factory=list)  # each (numel,) int16
    is_spilled: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes in memory, without what other blocks share."""
        own = [] if self.orders_are_shared else [one for row in self.orders for one in row]
        drawn = sum(t.nbytes for t in (*self.draws, *self.ranks) if not self.is_spilled)
        return self.held_bytes + drawn + sum(order.nbytes for order in own)

    def spill(self, move: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Let `move` bring the large arrays elsewhere."""
        import torch

        if not self.orders_are_shared:
            for order in (one for row in self.orders for one in row):
                order.spill(move)
        if self.base.device.type != "cpu":
            return
        self.is_spilled = True
        self.draws = [torch.from_numpy(move(draws.numpy())) for draws in self.draws]
        self.ranks = [torch.from_numpy(move(ranks.numpy())) for ranks in self.ranks]


def prepare(row: Row, block: Block, values: Values) -> Prepared:
    """All that a block's task vectors need for any weights and densities."""
    base = cast("Tensor", block.base)
    held = block.held_bytes(base, *block.sources)
    prepared = Prepared(base, block.sources, block.source_names, block.segments, held)
    if row.sparsify in ("largest", "band"):
        _add_orders(prepared, block, values)
    if row.sparsify in ("random", "ranked"):
        prepared.draws = [_draws_of(block, source) for source in block.source_names]
    if row.sparsify == "ranked":
        prepared.ranks = [_ranks_of(block, source) for source in block.sources]
    return prepared


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
        [order_of(partial(_task_vector, block, source, segment)) for segment in block.segments]
        for source in block.sources
    ]


def _task_vector(block: Block, source: Tensor, segment: slice) -> Iterator[Tensor]:
    """A tensor's task vector in float32, chunk by chunk."""
    base = cast("Tensor", block.base)[segment]
    for part in chunks(len(base)):
        yield source[segment][part].float() - base[part].float()


def _draws_of(block: Block, source: str) -> Tensor:
    import torch

    drawn = [
        sparsify.draws(block.mask_seed, name, source, segment.stop - segment.start)
        for name, segment in zip(block.names, block.segments, strict=True)
    ]
    together = drawn[0] if len(drawn) == 1 else torch.cat(drawn)
    return together.to(cast("Tensor", block.base).device)


def _ranks_of(block: Block, source: Tensor) -> Tensor:
    import torch

    ranked = []
    for shape, segment in zip(block.shapes, block.segments, strict=True):
        tau = torch.cat(list(_task_vector(block, source, segment)))
        ranked.append(ranks_in_rows(tau, shape))
    return torch.from_numpy(np.concatenate(ranked)).to(source.device)


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


def _limits(row: Row, k: int, order: Order | None, values: Values) -> Limits:
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
