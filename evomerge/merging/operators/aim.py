"""AIM: what a merge changes is held back where the base's activations are large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from evomerge.merging.operator import Block, PostStep, Values, Whose
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class _Columns:
    base: Tensor
    parts: list[tuple[slice, tuple[int, ...], Tensor]]  # of linear weights: place, shape, I (in,)
    nbytes: int


def _collects(values: Values) -> tuple[tuple[str, Whose], ...]:
    del values
    return (("mean", "base"),)


def _prepare(block: Block, values: Values) -> _Columns:
    del values
    base = cast("Tensor", block.base)
    parts = []
    for segment, shape, mean in zip(
        block.segments, block.shapes, block.around.statistics("mean"), strict=True
    ):
        if mean is not None:
            parts.append((segment, shape, mean / mean.max().clamp(min=1e-30)))
    held = sum(importance.nbytes for _, _, importance in parts)
    return _Columns(base, parts, held + block.held_bytes(base))


def _apply(prepared: _Columns, values: Values, merged: Tensor) -> None:
    """Make it W_0 + (W - W_0) (1 - (1 - omega) I), column by column."""
    omega = cast("float", values["omega"])
    for segment, shape, importance in prepared.parts:
        base = prepared.base[segment].view(shape)
        tensor = merged[segment].view(shape)
        tensor.addcmul_(tensor - base, importance, value=omega - 1)


AIM_STEP = PostStep(
    name="aim",
    paper="Nobari et al. 2025, Activation-Informed Merging of Large Language Models, "
    "https://arxiv.org/abs/2502.02421",
    summary="Holds back what the merge changed where the base's activations are large",
    parameters=(Parameter("omega", "real", 0.4, "what is left at the largest", low=0, high=1),),
    needs="activations",
    collects=_collects,
    prepare=_prepare,
    apply=_apply,
    notes="W_0 + (W - W_0) (1 - (1 - omega) I_j) in input column j of a linear layer's weight, "
    "where I is the mean of |x_j| over all tokens of the calibration texts in the base, divided by "
    "the layer's largest. Embeddings, heads that are tied to them, biases and norms are left.",
)
