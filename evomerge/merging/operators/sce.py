"""SCE: select entries that differ between experts, weigh experts by their moves, agree on signs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from evomerge.merging.offsets import offsets
from evomerge.merging.operator import Block, Operator, Values, parts_of
from evomerge.merging.order import Magnitudes, memory_bytes
from evomerge.records import Parameter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

FLOOR = 1e-6  # of mergekit: less energy in all weighs all alike; the least divisor


@dataclass
class _Prepared:
    """What is kept: how much each entry varies, and in which order.

    The task vectors are computed where they are used: keeping them would take as much memory as the
    models themselves.
    """

    block: Block
    held: NDArray[Any]  # (numel,) float32, the sources' variance; nothing if that is on a GPU
    spread: Tensor  # the same, where the models are
    orders: list[Magnitudes]  # of each tensor's spreads
    varying: list[int]  # how many of them are above 0

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        models = self.block.held_bytes(self.block.base, *self.block.sources)
        on_gpu = self.spread.nbytes if self.spread.device.type != "cpu" else 0
        held = memory_bytes(self.held) + on_gpu
        return models + held + sum(order.nbytes for order in self.orders)

    def spill(self, move: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Let `move` bring the large arrays elsewhere."""
        import torch

        for order in self.orders:
            order.spill(move)
        if self.spread.device.type == "cpu":
            self.held = move(self.held)
            self.spread = torch.from_numpy(self.held)

    def parts(self, segment: slice) -> Iterator[slice]:
        """A tensor's place in pieces."""
        return parts_of(segment, len(self.block.sources), like=self.block.sources[0])


def _prepare(block: Block, values: Values) -> _Prepared:
    del values
    import numpy as np
    import torch

    device = cast("Tensor", block.base).device
    on_cpu = device.type == "cpu"
    held = block.around.room(block.numel, np.float32) if on_cpu else np.empty(0, np.float32)
    spread = torch.from_numpy(held) if on_cpu else torch.empty(block.numel, device=device)
    prepared = _Prepared(block, held, spread, [], [])
    for segment in block.segments:
        varying = 0
        for part in prepared.parts(segment):
            taus = offsets(block, part)
            varies = taus.amax(0) != taus.amin(0)  # rounding must not look like it
            found = taus.sub_(taus.mean(0)).square_().mean(0).mul_(varies)
            varying += int(found.count_nonzero())
            spread[part] = found
        prepared.orders.append(block.around.order(partial(_pieces, spread, segment)))
        prepared.varying.append(varying)
    return prepared


def _pieces(spread: Tensor, segment: slice) -> Iterator[Tensor]:
    for part in parts_of(segment):
        yield spread[part]


def _apply(prepared: _Prepared, values: Values, out: Tensor) -> None:
    """Write W_0 + sum w tau / sum w, over the selected entries and the sources that agree."""
    share, mergekit = cast("float", values["select_topk"]), values["compat"] == "mergekit"
    base = cast("Tensor", prepared.block.base)
    tensors = zip(prepared.block.segments, prepared.orders, prepared.varying, strict=True)
    for segment, order, varying in tensors:
        kept = int(share * varying)
        if share < 1 and kept == 0:
            out[segment].copy_(base[segment])
            continue
        # Entries that vary as much as the last one selected are selected too.
        least = 0.0 if share >= 1 else order.at(len(order) - kept)
        weights = _weights(prepared, segment, least, mergekit=mergekit)
        for part in prepared.parts(segment):
            shift = _agreed(_selected(prepared, part, least), weights, FLOOR if mergekit else 0)
            out[part].copy_(shift.add_(base[part].float()))


def _selected(prepared: _Prepared, part: slice, least: float) -> Tensor:
    """The task vectors where their variance is large enough, else 0."""
    import torch

    spread = prepared.spread[part]
    chosen = torch.empty_like(spread)  # in floats: a boolean costs ten times as much on a CPU
    torch.ge(spread, least, out=chosen)
    return offsets(prepared.block, part).mul_(chosen)


def _weights(prepared: _Prepared, segment: slice, least: float, *, mergekit: bool) -> Tensor:
    """Each source's part of all squared moves in a tensor, float32."""
    import torch

    count = len(prepared.block.sources)
    energy = prepared.spread.new_zeros(count, dtype=torch.float64)
    for part in prepared.parts(segment):
        energy += torch.stack([tau.dot(tau) for tau in _selected(prepared, part, least)])
    total = float(energy.sum())
    if total / (segment.stop - segment.start) < FLOOR if mergekit else total == 0:
        return torch.full_like(energy, 1 / count).float()
    return (energy / total).float()


def _agreed(taus: Tensor, weights: Tensor, floor: float) -> Tensor:
    """The weighted mean over the sources whose sign is that of the sum; a sum of 0 counts as +."""
    import torch

    signs = taus.sum(0).sign_().add_(0.5).sign_()
    agreeing = (taus * signs).clamp_(min=0)
    merged = torch.mv(agreeing.t(), weights)
    divisor = torch.mv(agreeing.sign_().t(), weights)
    if floor:
        divisor.clamp_(min=floor)
    else:  # where nothing agrees, nothing is divided
        divisor.add_(torch.eq(divisor, 0, out=torch.empty_like(divisor)))
    return merged.mul_(signs).div_(divisor)


SCE = Operator(
    name="sce",
    paper="Wan et al. 2024, FuseChat, https://arxiv.org/abs/2408.07990 (SCE)",
    summary="Keep the entries that vary most, weigh experts by their squared moves, agree on signs",
    parameters=(
        Parameter("select_topk", "real", 1.0, "share of the varying entries", low=0.0, high=1.0),
        Parameter(
            "compat",
            "choice",
            "published",
            "whose weights, of task vectors that are next to nothing",
            options=("published", "mergekit"),
            phase="prepare",
        ),
    ),
    needs_base=True,
    min_sources=1,
    max_sources=None,
    prepare=_prepare,
    apply=_apply,
    notes="Per tensor: the int(select_topk n) of the n entries with the largest variance over the "
    "experts (at 1 every entry, varying or not); an expert's weight is its part of the squared "
    "moves that are left; entries against the sign of their sum are erased, the others averaged. "
    "`compat: mergekit` weighs all experts alike where the mean squared move is below 1e-6 in all, "
    "as it is in short fine-tunes, and divides by no less than 1e-6; by default the paper's "
    "formula holds at any scale. Entries that tie with the last one selected are selected too; "
    "mergekit takes any of them.",
)
