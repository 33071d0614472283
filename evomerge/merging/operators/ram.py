"""Reinforced agent merging: what only one expert changed is kept, what several did is averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from evomerge.merging.offsets import Shifted, apply_shift, empty_shift, offsets
from evomerge.merging.operator import Block, Operator, Values, chunks, parts_of
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor


def _prepare_ram(block: Block, values: Values) -> Shifted:
    epsilon = cast("float", values["epsilon"])
    prepared = empty_shift(block)
    for part in chunks(block.numel, len(block.sources)):
        total, _, count = _active(block, part, epsilon)
        prepared.shift[part] = total / count.clamp(min=1)
    return prepared


def _active(block: Block, part: slice, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of the moves above epsilon, whose they are (sources, entries), and how many."""
    import torch

    taus = offsets(block, part)
    active = torch.empty_like(taus)  # in floats: a boolean costs ten times as much on a CPU
    torch.gt(taus.abs(), epsilon, out=active)
    return taus.mul_(active).sum(0), active, active.sum(0)


@dataclass
class _Prepared:
    shifted: Shifted  # the base, and the shared moves averaged
    unique: Tensor  # (numel,) float32, moves of one source alone
    owner: Tensor  # (numel,) int32, whose they are
    segments: tuple[slice, ...]
    shared: Tensor  # (segments, sources) how many shared moves a source takes part in
    alone: Tensor  # (segments, sources) how many it makes alone
    nbytes: int


def _prepare_plus(block: Block, values: Values) -> _Prepared:
    import torch

    epsilon = cast("float", values["epsilon"])
    shifted = empty_shift(block)
    unique = torch.empty_like(shifted.shift)
    owner = torch.empty_like(unique, dtype=torch.int32)
    places = torch.arange(len(block.sources), dtype=torch.float32, device=unique.device)
    shared = unique.new_zeros((len(block.segments), len(block.sources)), dtype=torch.float64)
    alone = torch.zeros_like(shared)
    for i, segment in enumerate(block.segments):
        for part in parts_of(segment, len(block.sources)):
            total, active, count = _active(block, part, epsilon)
            by_one = torch.eq(count, 1, out=torch.empty_like(count))
            unique[part] = total * by_one
            owner[part] = (places @ (active * by_one)).int()
            shifted.shift[part] = (total - unique[part]) / count.clamp(min=1)
            alone[i] += active @ by_one
            shared[i] += active.sum(1) - active @ by_one
    nbytes = shifted.nbytes + unique.nbytes + owner.nbytes
    return _Prepared(shifted, unique, owner, block.segments, shared, alone, nbytes)


def _apply_plus(prepared: _Prepared, values: Values, out: Tensor) -> None:
    """Write W_0 + shared + (1 + r clip(shared / alone, 0, alpha)) unique."""
    r, alpha = cast("float", values["r"]), cast("float", values["alpha"])
    # Who does nothing alone has nothing to scale: any ratio will do.
    factors = 1 + r * (prepared.shared / prepared.alone.clamp(min=1)).clamp(0, alpha)
    for i, segment in enumerate(prepared.segments):
        of_source = factors[i].float()
        for part in parts_of(segment, like=out):
            merged = of_source.index_select(0, prepared.owner[part]).mul_(prepared.unique[part])
            merged.add_(prepared.shifted.shift[part]).add_(prepared.shifted.base[part])
            out[part].copy_(merged)


EPSILON = Parameter(
    "epsilon", "real", 1e-5, "an entry moved if it moved farther", low=0, high=1, phase="prepare"
)
PAPER = "Yuan et al. 2026, https://arxiv.org/abs/2601.13572"

RAM = Operator(
    name="ram",
    paper=f"{PAPER} (RAM)",
    summary="Entries that one expert moved take its move, entries that several moved the mean",
    parameters=(EPSILON,),
    needs_base=True,
    min_sources=1,
    max_sources=None,
    prepare=_prepare_ram,
    apply=apply_shift,
    notes="An entry's shift is the mean of the task vectors that are larger than epsilon there; "
    "the others do not count. The authors' code and mergekit agree.",
)

RAMPLUS_TL = Operator(
    name="ramplus_tl",
    paper=f"{PAPER} (RAM+), per tensor as in mergekit",
    summary="RAM, with the moves that an expert makes alone scaled up where it shares many others",
    parameters=(
        Parameter("r", "real", 0.1, "how much to scale up", low=0.0, high=10.0),
        Parameter("alpha", "real", 0.2, "the largest ratio that counts", low=0.0, high=10.0),
        EPSILON,
    ),
    needs_base=True,
    min_sources=1,
    max_sources=None,
    prepare=_prepare_plus,
    apply=_apply_plus,
    notes="Shared moves are averaged as in `ram`; those of one expert alone are multiplied by "
    "1 + r clip(shared / alone, 0, alpha), the ratio of that expert's counts in the tensor. The "
    "authors' code counts over the whole model, and its factor is 1 + (r - 1) min(1, ratio): this "
    "is mergekit's variant, which has the name for it (tensor-local).",
)
