"""The weighted average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from evomerge.errors import CandidateError
from evomerge.merging.operator import Block, Operator, Values, chunks, held_bytes
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor

CANCELLED = 1e-3  # |sum w| below this share of sum |w| is refused: the quotient would be noise


@dataclass
class _Prepared:
    rows: list[Tensor]  # each (numel,)
    stack: Tensor | None  # (sources, numel) float32 of a small block
    nbytes: int


def _prepare(block: Block, values: Values) -> _Prepared:
    del values
    import torch

    rows = block.rows()
    if len({row.dtype for row in rows}) == 1 and rows[0].dtype == torch.float32:
        small = next(iter(chunks(block.numel))).stop == block.numel
        if small:
            stack = torch.stack(rows)
            return _Prepared([], stack, stack.nbytes)
    return _Prepared(rows, None, sum(map(held_bytes, rows)))


def _apply(prepared: _Prepared, values: Values, out: Tensor) -> None:
    """Write sum_k w_k x_k, divided by sum_k w_k if normalised."""
    import torch

    weights = list(cast("tuple[float, ...]", values["weight"]))
    if values["normalize"]:
        total = sum(weights)
        if abs(total) <= CANCELLED * sum(map(abs, weights)):
            raise CandidateError(
                f"linear: the weights {weights} sum to {total:g}, which is no scale"
            )
        weights = [weight / total for weight in weights]
    if prepared.stack is not None:
        merged = torch.mv(prepared.stack.t(), prepared.stack.new_tensor(weights))
        out.copy_(merged)
        return
    for part in chunks(out.numel()):
        merged = prepared.rows[0][part].float() * weights[0]
        for row, weight in zip(prepared.rows[1:], weights[1:], strict=True):
            merged.add_(row[part], alpha=weight)
        out[part].copy_(merged)


LINEAR = Operator(
    name="linear",
    paper="Wortsman et al. 2022, Model soups, https://arxiv.org/abs/2203.05482 (sec. 2)",
    summary="Weighted average of the models' parameters",
    parameters=(
        Parameter(
            "weight",
            "real",
            1.0,
            "share of a source",
            low=-10.0,
            high=10.0,
            per_source=True,
        ),
        Parameter("normalize", "flag", True, "divide by the sum of the weights"),
    ),
    needs_base=False,
    min_sources=1,
    max_sources=None,
    prepare=_prepare,
    apply=_apply,
)
