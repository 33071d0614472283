"""NearSwap: the base, moved towards another model where the two are near."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from evomerge.merging.operator import Block, Operator, Values, chunks, small_as_float
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class _Prepared:
    base: Tensor  # (numel,)
    other: Tensor  # (numel,)
    nbytes: int


def _prepare(block: Block, values: Values) -> _Prepared:
    del values
    base, other = small_as_float(cast("Tensor", block.base)), small_as_float(block.sources[0])
    return _Prepared(base, other, block.held_bytes(base, other))


def _apply(prepared: _Prepared, values: Values, out: Tensor) -> None:
    """Write a + (b - a) min(1, t / |b - a|), which is a plus b - a cut to [-t, t]."""
    t = cast("float", values["t"])
    for part in chunks(out.numel(), like=out):
        base = prepared.base[part].float()
        out[part].copy_((prepared.other[part].float() - base).clamp_(-t, t).add_(base))


NEARSWAP = Operator(
    name="nearswap",
    paper="alchemonaut 2024, https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    summary="Every entry of the base goes towards the other model, by at most t",
    parameters=(
        Parameter("t", "real", 1e-4, "the farthest that an entry moves", low=0.0, high=10.0),
    ),
    needs_base=True,
    min_sources=1,
    max_sources=1,
    prepare=_prepare,
    apply=_apply,
    notes="a + (b - a) min(1, t / |b - a|): entries nearer than t are swapped, the others move by "
    "t. mergekit divides by no less than 1e-6, which changes nothing unless t is smaller still.",
)
