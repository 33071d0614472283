"""Merges of LoRA adapters by their factors: concatenated, or cut to a rank again.

A sum of products is a product: sum_k w_k s_k B_k A_k = [w_1 s_1 B_1, ...] [A_1; ...]. So neither
the sum nor its singular values need the dense matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from evomerge.merging.operator import Block, Operator, Values, chunks
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Units:
    """The factors of one tensor, all sources' one after another; shape (rows, columns).

    left: (rows, units), with the scale in it; right: (units, columns); float32. owners: whose each
    unit is, (units,).
    """

    left: Tensor
    right: Tensor
    owners: Tensor

    @property
    def nbytes(self) -> int:
        """In memory."""
        return self.left.nbytes + self.right.nbytes + self.owners.nbytes


@dataclass
class Whole:
    """A tensor that an adapter holds whole: what each source adds to it, (sources, entries)."""

    taus: Tensor

    @property
    def nbytes(self) -> int:
        """In memory."""
        return self.taus.nbytes


@dataclass
class Prepared:
    """A base, and for each of its tensors what is made of the adapters' factors, or nothing."""

    base: Tensor
    segments: tuple[slice, ...]
    columns: tuple[int, ...]  # of each tensor
    parts: list[Any] = field(default_factory=list)
    base_bytes: int = 0

    @property
    def nbytes(self) -> int:
        """In memory."""
        parts: list[int] = [part.nbytes for part in self.parts if part is not None]
        return self.base_bytes + sum(parts)


def read_factors(block: Block) -> Prepared:
    """A block's tensors by the sources' factors; a `Whole` where a source has none and differs."""
    import torch

    base = cast("Tensor", block.base)
    prepared = Prepared(
        base,
        block.segments,
        tuple(shape[-1] if shape else 1 for shape in block.shapes),
        base_bytes=block.held_bytes(base),
    )
    by_source = [block.around.factors(name) for name in block.source_names]
    for number, segment in enumerate(block.segments):
        found = [factors[number] for factors in by_source]
        taus = [
            None if factor is not None else _difference(source[segment], base[segment])
            for factor, source in zip(found, block.sources, strict=True)
        ]
        if any(tau is not None for tau in taus):
            part: Any = Whole(
                torch.stack([s[segment].float() - base[segment].float() for s in block.sources])
            )
        elif all(factor is None for factor in found):
            part = None
        else:
            part = _units(found, base.device)
        prepared.parts.append(part)
    return prepared


def _difference(source: Tensor, base: Tensor) -> Tensor | None:
    """What a source adds, or None where it is the base's."""
    import torch

    if source.data_ptr() == base.data_ptr() or torch.equal(source, base.to(source.dtype)):
        return None
    return source


def _units(found: Sequence[tuple[Tensor, Tensor, float] | None], device: Any) -> Units:
    import torch

    lefts, rights, owners = [], [], []
    for k, factor in enumerate(found):
        if factor is not None:
            a, b, scale = factor
            lefts.append(b * scale)
            rights.append(a)
            owners.append(torch.full((len(a),), k))
    return Units(
        torch.cat(lefts, 1).to(device), torch.cat(rights).to(device), torch.cat(owners).to(device)
    )


def write_whole(base: Tensor, taus: Tensor, weights: Tensor, out: Tensor) -> None:
    """Base plus weighted differences, shape (entries,)."""
    for part in chunks(len(base), len(taus), like=base):
        out[part].copy_(base[part].float() + weights @ taus[:, part])


def write_product(base: Tensor, left: Tensor, right: Tensor, columns: int, out: Tensor) -> None:
    """Base plus left (rows, units) @ right (units, columns), in float32 and cast once."""
    import torch

    upright, result = base.view(-1, columns), out.view(-1, columns)
    for rows in chunks(len(upright), columns, like=base):
        result[rows].copy_(upright[rows].to(torch.float32, copy=True).addmm_(left[rows], right))


def weights_of(values: Values, like: Tensor, name: str = "weight") -> Tensor:
    """Each source's weight, (sources,), float32."""
    import torch

    return torch.tensor(values[name], dtype=torch.float32, device=like.device)


def _prepare_concat(block: Block, values: Values) -> Prepared:
    del values
    return read_factors(block)


def _apply_concat(prepared: Prepared, values: Values, out: Tensor) -> None:
    weights = weights_of(values, prepared.base)
    for part, segment, columns in zip(
        prepared.parts, prepared.segments, prepared.columns, strict=True
    ):
        base, result = prepared.base[segment], out[segment]
        if part is None:
            result.copy_(base)
        elif isinstance(part, Whole):
            write_whole(base, part.taus, weights, result)
        else:
            write_product(base, part.left * weights[part.owners], part.right, columns, result)


@dataclass
class Turned:
    """Factors with orthonormal outsides: left (rows, p), right (q, columns); small cores between.

    core_left: (p, units); core_right: (units, q); owners: (units,).
    """

    left: Tensor
    core_left: Tensor
    core_right: Tensor
    right: Tensor
    owners: Tensor

    @property
    def nbytes(self) -> int:
        """In memory."""
        inside = self.core_left.nbytes + self.core_right.nbytes + self.owners.nbytes
        return self.left.nbytes + self.right.nbytes + inside


def _prepare_svd(block: Block, values: Values) -> Prepared:
    import torch

    del values
    prepared = read_factors(block)
    for number, part in enumerate(prepared.parts):
        if isinstance(part, Units):
            left, core_left = torch.linalg.qr(part.left.double())
            right, core_right = torch.linalg.qr(part.right.double().t())
            prepared.parts[number] = Turned(
                left.float(), core_left, core_right.t(), right.t().float(), part.owners
            )
    return prepared


def _apply_svd(prepared: Prepared, values: Values, out: Tensor) -> None:
    import torch

    weights, rank = weights_of(values, prepared.base), cast("int", values["rank"])
    for part, segment, columns in zip(
        prepared.parts, prepared.segments, prepared.columns, strict=True
    ):
        base, result = prepared.base[segment], out[segment]
        if part is None:
            result.copy_(base)
        elif isinstance(part, Whole):
            write_whole(base, part.taus, weights, result)
        else:
            core = (part.core_left * weights[part.owners].double()) @ part.core_right
            u, s, v = torch.linalg.svd(core, full_matrices=False)
            left = part.left @ (u[:, :rank] * s[:rank]).float()
            write_product(base, left, v[:rank].float() @ part.right, columns, result)


_WEIGHT = Parameter(
    "weight", "real", 1.0, "factor of a source's change", low=-10, high=10, per_source=True
)
_WHOLE = (
    "The sources are adapters. Tensors that no adapter changes are the base's; what an adapter "
    "holds whole (trained biases, `modules_to_save`) is merged as by task_arithmetic. "
)

LORA_CONCAT = Operator(
    name="lora_concat",
    paper="Hu et al. 2021, https://arxiv.org/abs/2106.09685 (W_0 + s B A); Mangrulkar et al., PEFT "
    "(add_weighted_adapter, combination_type cat)",
    summary="LoRA adapters' factors side by side: the exact weighted sum of their changes",
    parameters=(_WEIGHT,),
    needs_base=True,
    needs_adapters=True,
    min_sources=1,
    max_sources=None,
    prepare=_prepare_concat,
    apply=_apply_concat,
    notes="Base + [w_1 s_1 B_1, w_2 s_2 B_2, ...] [A_1; A_2; ...]: the same model as by "
    "task_arithmetic, of a rank that is the sum of the adapters', without dense task vectors. "
    + _WHOLE
    + "As an adapter (`--adapter`) it is written with these very factors.",
)

LORA_SVD = Operator(
    name="lora_svd",
    paper="Eckart & Young 1936, https://doi.org/10.1007/BF02288367; Mangrulkar et al., PEFT "
    "(add_weighted_adapter, combination_type svd)",
    summary="The weighted sum of LoRA adapters' changes, cut to its largest singular values",
    parameters=(
        _WEIGHT,
        Parameter("rank", "integer", 16, "of what is left of the sum", low=1, high=4096),
    ),
    needs_base=True,
    needs_adapters=True,
    min_sources=1,
    max_sources=None,
    prepare=_prepare_svd,
    apply=_apply_svd,
    notes="The nearest matrix of the given rank to sum_k w_k s_k B_k A_k, by the singular values "
    "of a core of (units, units) between orthonormal factors, which are prepared once; weights and "
    "rank are free. A rank of the adapters' ranks together loses nothing. " + _WHOLE,
)
