"""One model's tensors as they are, or scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from evomerge.merging import passes
from evomerge.merging.operator import Operator, Values
from evomerge.merging.operators.linear import Sources, keep_sources
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor


def _apply(prepared: Sources, values: Values, out: Tensor) -> bool | None:
    scale = np.array([[cast("float", values["scale"])]])
    return passes.weighted_sum(prepared.models, scale, out)


PASSTHROUGH = Operator(
    name="passthrough",
    paper="Goddard et al. 2024, mergekit, https://arxiv.org/abs/2403.13257 (passthrough)",
    summary="One model's tensors, times a number",
    parameters=(Parameter("scale", "real", 1.0, "factor of every entry", low=-10, high=10),),
    needs_base=False,
    min_sources=1,
    max_sources=1,
    prepare=keep_sources,
    apply=_apply,
    notes="The source may be the base. mergekit scales with the parameter of the same name.",
)
