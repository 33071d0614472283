"""The weighted average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from evomerge.errors import CandidateError
from evomerge.merging import passes
from evomerge.merging.operator import Block, Operator, Values
from evomerge.merging.reads import Models
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor

CANCELLED = 1e-3  # |sum w| below this share of sum |w| is refused: the quotient would be noise


@dataclass
class Sources:
    """The models' entries, which is all that a weighted sum needs."""

    models: Models
    nbytes: int


def keep_sources(block: Block, values: Values) -> Sources:
    """Prepare a weighted sum."""
    del values
    models = Models(None, block.sources, [slice(0, block.numel)])
    return Sources(models, block.held_bytes(*block.sources))


def _apply(prepared: Sources, values: Values, out: Tensor) -> bool | None:
    """Write sum_k w_k x_k, divided by sum_k w_k if normalised."""
    weights = list(cast("tuple[float, ...]", values["weight"]))
    if values["normalize"]:
        total = sum(weights)
        if abs(total) <= CANCELLED * sum(map(abs, weights)):
            raise CandidateError(
                f"linear: the weights {weights} sum to {total:g}, which is no scale"
            )
        weights = [weight / total for weight in weights]
    return passes.weighted_sum(prepared.models, np.array(weights)[:, None], out)


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
    prepare=keep_sources,
    apply=_apply,
)
