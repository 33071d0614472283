"""One model's tensors as they are, or scaled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from evomerge.merging.operator import Block, Operator, Values, chunks, small_as_float
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class _Prepared:
    source: Tensor  # (numel,)
    nbytes: int


def _prepare(block: Block, values: Values) -> _Prepared:
    del values
    source = small_as_float(block.sources[0])
    return _Prepared(source, block.held_bytes(source))


def _apply(prepared: _Prepared, values: Values, out: Tensor) -> None:
    scale = cast("float", values["scale"])
    if scale == 1:
        out.copy_(prepared.source)  # a copy in another dtype needs no scratch
        return
    for part in chunks(out.numel()):
        out[part].copy_(prepared.source[part].float() * scale)


PASSTHROUGH = Operator(
    name="passthrough",
    paper="Goddard et al. 2024, mergekit, https://arxiv.org/abs/2403.13257 (passthrough)",
    summary="One model's tensors, times a number",
    parameters=(Parameter("scale", "real", 1.0, "factor of every entry", low=-10, high=10),),
    needs_base=False,
    min_sources=1,
    max_sources=1,
    prepare=_prepare,
    apply=_apply,
    notes="The source may be the base. mergekit scales with the parameter of the same name.",
)
