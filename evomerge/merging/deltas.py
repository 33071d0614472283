"""What the task-vector family prepares: task vectors, their order of magnitude, random draws."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

from evomerge.merging import sparsify
from evomerge.merging.operator import CHUNK, Block, Values, chunks, held_bytes, small_as_float

if TYPE_CHECKING:
    from torch import Tensor

    from evomerge.merging.sparsify import Magnitudes

NO_NORM = 1e-7  # an L1 norm below this is not matched, as in mergekit


@dataclass(frozen=True)
class Row:
    """What tells the methods of the family apart."""

    sparsify: Literal["none", "magnitude", "random"]
    consensus: bool


@dataclass
class Prepared:
    """What is kept of a block: task vectors, and what its row of the family sparsifies by."""

    base: Tensor  # (numel,), float32 where small
    tau: Tensor  # (sources, numel) float32
    segments: tuple[slice, ...]  # where each tensor lies
    magnitudes: list[list[Magnitudes]]  # [source][segment]; for magnitude
    draws: Tensor | None  # (sources, numel) int16; for random
    mass: list[list[float]]  # [source][segment], the sum of |tau|; for random
    nbytes: int
    sparse: Tensor | None = None  # (sources, numel), of the densities last asked for; where small
    sparse_of: tuple[float, ...] | None = None
    factors: dict[tuple[float, ...], list[list[float]]] = field(default_factory=dict)


def prepare(row: Row, block: Block, values: Values) -> Prepared:
    """All that a block's task vectors need for any weights and densities."""
    import torch

    base = small_as_float(cast("Tensor", block.base))
    tau = torch.empty((len(block.sources), block.numel), dtype=torch.float32, device=base.device)
    for source, difference in zip(block.sources, tau, strict=True):
        for part in chunks(block.numel):
            torch.sub(source[part].float(), base[part].float(), out=difference[part])
    prepared = Prepared(base, tau, block.segments, [], None, [], tau.nbytes + held_bytes(base))
    if row.sparsify == "magnitude":
        _prepare_magnitudes(prepared, block, values)
    elif row.sparsify == "random":
        _prepare_draws(prepared, block)
    if row.sparsify != "none" and block.numel <= CHUNK:
        prepared.sparse = torch.empty_like(tau)
        prepared.nbytes += tau.nbytes
    return prepared


def _prepare_magnitudes(prepared: Prepared, block: Block, values: Values) -> None:
    scope = values["trim"]
    if scope == "auto":
        scope = "model" if values["compat"] == "published" else "tensor"
    if scope == "model":
        whole = [block.whole_model(name) for name in block.source_names]
        prepared.magnitudes = [[one] * len(block.segments) for one in whole]
        return
    prepared.magnitudes = [
        [sparsify.ascending_magnitudes(tau[part]) for part in block.segments]
        for tau in prepared.tau
    ]
    prepared.nbytes += prepared.tau.nbytes


def _prepare_draws(prepared: Prepared, block: Block) -> None:
    import torch

    sizes = [part.stop - part.start for part in block.segments]
    drawn = [
        [
            sparsify.draws(block.mask_seed, name, source, size)
            for name, size in zip(block.names, sizes, strict=True)
        ]
        for source in block.source_names
    ]
    prepared.draws = torch.stack([torch.cat(row) for row in drawn]).to(prepared.tau.device)
    prepared.mass = [
        [float(tau[part].abs().sum()) for part in block.segments] for tau in prepared.tau
    ]
    prepared.nbytes += prepared.draws.nbytes


def sparse(row: Row, prepared: Prepared, values: Values, part: slice) -> Tensor:
    """The sparsified task vectors, shape (sources, entries); not owned."""
    import torch

    if row.sparsify == "none":
        return prepared.tau[:, part]
    densities = cast("tuple[float, ...]", values["density"])
    if prepared.sparse is not None and prepared.sparse_of == densities:
        return prepared.sparse
    taus = prepared.sparse
    if taus is None:
        taus = torch.empty_like(prepared.tau[:, part], memory_format=torch.contiguous_format)
    prepared.sparse_of = None
    for k, (tau, density) in enumerate(zip(prepared.tau, densities, strict=True)):
        if density >= 1:
            taus[k] = tau[part]
        elif prepared.draws is not None:
            sparsify.drop_into(tau[part], prepared.draws[k, part], density, taus[k])
        else:
            for (start, stop), ascending in zip(
                within(prepared, part), prepared.magnitudes[k], strict=True
            ):
                inside = slice(start + part.start, stop + part.start)
                sparsify.trim_into(tau[inside], ascending, density, taus[k, start:stop])
    prepared.sparse_of = densities
    return taus


def within(prepared: Prepared, part: slice) -> list[tuple[int, int]]:
    """Where the tensors lie within a part: the part of one tensor, or a whole block."""
    if len(prepared.segments) == 1:
        return [(0, part.stop - part.start)]
    return [(segment.start, segment.stop) for segment in prepared.segments]


def rescale(prepared: Prepared, values: Values) -> list[list[float]] | None:
    """By what dropping is made up for, [source][segment]; None where it is not."""
    how = values["rescale"]
    if how == "auto":
        how = "density" if values["compat"] == "published" else "l1"
    densities = cast("tuple[float, ...]", values["density"])
    if how == "none":
        return None
    if how == "density":
        made_up = [1 / min(density, 1.0) if density > 0 else 0.0 for density in densities]
        return [[factor] for factor in made_up]
    if densities not in prepared.factors:
        prepared.factors.clear()  # a candidate asks for every chunk; the next has other densities
        prepared.factors[densities] = [
            [_l1_factor(prepared, k, i, density) for i in range(len(prepared.segments))]
            for k, density in enumerate(densities)
        ]
    return prepared.factors[densities]


def _l1_factor(prepared: Prepared, k: int, i: int, density: float) -> float:
    """The ratio of L1 norms of one task vector before and after dropping."""
    import torch

    if density >= 1:
        return 1.0
    segment = prepared.segments[i]
    draws = cast("Tensor", prepared.draws)
    after = 0.0
    for inner in chunks(segment.stop - segment.start):
        part = slice(segment.start + inner.start, segment.start + inner.stop)
        kept = torch.empty_like(prepared.tau[k, part])
        sparsify.drop_into(prepared.tau[k, part], draws[k, part], density, kept)
        after += float(kept.abs_().sum())
    before = prepared.mass[k][i]
    return 1.0 if min(before, after) < NO_NORM else before / after
