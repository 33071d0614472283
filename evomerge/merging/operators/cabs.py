"""CABS: task vectors that are sparse in every group of entries, and do not overlap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from evomerge.merging.entrywise import add_owned
from evomerge.merging.operator import CHUNK, Block, Operator, Values
from evomerge.merging.order import memory_bytes
from evomerge.merging.reads import Models
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor

MOST_SOURCES = 255  # an owner's number is a byte
_WIDEST = 2**16  # a place in a group has 16 bits of a key

# Source, how many of a group, of so many entries, where, and the owners there.
_Own = Callable[[int, int, int, slice, NDArray[np.uint8]], None]


@dataclass
class _Prepared:
    """The models; who owns which entry is kept for each order of the sources, beside it."""

    block: Block
    models: Models
    nbytes: int


@dataclass
class _Owners:
    """Who owns each entry: 1 + the source's number, or 0."""

    held: NDArray[np.uint8]  # (numel,)
    there: Tensor  # the same, where the models are

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return memory_bytes(self.held) if self.there.device.type == "cpu" else self.there.nbytes

    def spill(self, move: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Let `move` bring the array elsewhere."""
        import torch

        if self.there.device.type == "cpu":
            self.held = move(self.held)
            self.there = torch.from_numpy(self.held)


def _prepare(block: Block, values: Values) -> _Prepared:
    del values
    models = Models(cast("Tensor", block.base), block.sources, [slice(0, block.numel)])
    return _Prepared(block, models, block.held_bytes(block.base, *block.sources))


def _apply(prepared: _Prepared, values: Values, out: Tensor) -> bool | None:
    """Write W_0 + w_k tau_k, k being the source that owns the entry."""
    block = prepared.block
    kept, group = int(cast("float", values["n"])), int(cast("float", values["m"]))
    priority = cast("tuple[float, ...]", values["priority"])
    order = sorted(range(len(priority)), key=lambda k: -priority[k])  # of equal ones, the first
    dense = values["tail"] == "dense"
    name = f"cabs {kept}:{group} {'dense' if dense else 'dropped'} tails, order {order}"
    owners = block.around.kept(name, lambda: _owners(block, kept, group, order, dense=dense))
    weights = cast("tuple[float, ...]", values["weight"])
    return add_owned(prepared.models, owners.there, weights, out)


def _owners(block: Block, kept: int, group: int, order: Sequence[int], *, dense: bool) -> _Owners:
    """One source after another takes the largest entries of each group that nobody has yet."""
    import torch

    held = block.around.room(block.numel, np.uint8)
    held[:] = 0
    own: _Own = _own_by_kernel(block) or partial(_own, block)
    for segment in block.segments:
        size = segment.stop - segment.start
        whole = segment.start + size - size % group
        step = max(1, CHUNK // group) * group
        for start in range(segment.start, whole, step):
            part = slice(start, min(start + step, whole))
            for k in order:
                own(k, kept, group, part, held[part])
        if dense and whole < segment.stop:
            tail, length = slice(whole, segment.stop), segment.stop - whole
            for k in order:
                own(k, length, length, tail, held[tail])
    there = torch.from_numpy(held)
    return _Owners(held, there.to(cast("Tensor", block.base).device))


def _own_by_kernel(
    block: Block,
) -> Callable[[int, int, int, slice, NDArray[np.uint8]], None] | None:
    """As `_own` of a block, if the kernels can go there."""
    fused = Models(block.base, block.sources, []).kernels_for()
    if fused is None:
        return None
    base, *sources = (
        np.array(fused.address_of(model), np.int64)
        for model in (cast("Tensor", block.base), *block.sources)
    )

    def own(k: int, kept: int, group: int, part: slice, owners: NDArray[np.uint8]) -> None:
        span = np.array([part.start, part.stop], np.int64)
        fused.own_groups(base, sources[k], np.uint8(k + 1), kept, group, owners, span)

    return own


def _own(
    block: Block, k: int, kept: int, group: int, part: slice, owners: NDArray[np.uint8]
) -> None:
    """Make a source the owner of the largest of each group that nobody owns, in whole groups."""
    base = cast("Tensor", block.base)[part].float()
    sizes = block.sources[k][part].float().sub(base).abs_().cpu().numpy()
    keys = sizes.view(np.uint32).reshape(-1, group).astype(np.uint64)
    rows = owners.reshape(-1, group)
    free = (keys != 0) & (rows == 0)
    if kept < group:
        # Of equal magnitudes the first is larger; what is zero, or owned, is 0.
        places = np.arange(group, 0, -1, dtype=np.uint64)
        keys = np.where(free, (keys << np.uint64(17)) | places, np.uint64(0))
        free &= keys >= np.partition(keys, group - kept, axis=1)[:, group - kept, None]
    rows[free] = k + 1


CABS = Operator(
    name="cabs",
    paper="Yang et al. 2025, CABS, https://arxiv.org/abs/2503.01874 (conflict-aware and balanced "
    "sparsification)",
    summary="Each expert in turn keeps the largest of every group of entries that no one has yet",
    parameters=(
        Parameter(
            "weight", "real", 1.0, "factor of a task vector", low=-10, high=10, per_source=True
        ),
        Parameter(
            "n", "integer", 64, "entries that an expert keeps of a group", low=1, high=_WIDEST
        ),
        Parameter("m", "integer", 256, "entries of a group", low=1, high=_WIDEST),
        Parameter(
            "priority",
            "real",
            0.0,
            "who chooses first: the highest; of equal ones, the earlier source",
            low=-10,
            high=10,
            per_source=True,
        ),
        Parameter(
            "tail",
            "choice",
            "dense",
            "what becomes of an incomplete group at a tensor's end",
            options=("dense", "dropped"),
        ),
    ),
    needs_base=True,
    min_sources=1,
    max_sources=MOST_SOURCES,
    prepare=_prepare,
    apply=_apply,
    notes="A tensor's entries, row by row, are cut into groups of m. In the order of their "
    "priorities, experts keep the n largest |tau| of each group among those that no expert before "
    "has kept, so that no entry has two; base + weight_k tau_k. Of equal magnitudes the first is "
    "kept, and an entry that did not move is kept by no one. An incomplete group at a tensor's end "
    "is left whole to the first expert that moved there (`tail: dense`), which biases and other "
    "vectors shorter than m are too. The authors' scripts disagree: the one for RoBERTa drops it "
    "(`tail: dropped`), the one for 7B models needs sizes that m divides, and lets a second expert "
    "share entries where n is at least m/2; here it takes what is left. Who owns an entry is one "
    "byte, kept for each order of the experts, n and m that comes up: a new order costs as much as "
    "preparing, new weights next to nothing.",
)
