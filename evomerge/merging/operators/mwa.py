"""Metrics-weighted averaging: checkpoints weighed by a number that each of them has."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import CandidateError
from evomerge.merging import passes
from evomerge.merging.operator import Operator, Values
from evomerge.merging.operators.linear import Sources, keep_sources
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor


def shares_of(
    metric: tuple[float, ...], penalty: float, *, lower_is_better: bool
) -> NDArray[np.float64]:
    """Each checkpoint's share of the mean, (checkpoints,); they sum to 1.

    Raises:
        CandidateError: no share follows from the metric.
    """
    values = np.array(metric)
    if penalty == 0:
        return np.full(len(values), 1 / len(values))
    if lower_is_better and values.min() <= 0:
        raise CandidateError(
            f"mwa: a metric of which less is better must be above 0, got {list(metric)}"
        )
    if values.max() <= 0:
        raise CandidateError(f"mwa: no checkpoint has a metric above 0: {list(metric)}")
    with np.errstate(divide="ignore"):  # a metric of 0 has no share
        logs = (-penalty if lower_is_better else penalty) * np.log(values)
    powers = np.exp(logs - logs.max())
    shares: NDArray[np.float64] = powers / powers.sum()
    return shares


def _apply(prepared: Sources, values: Values, out: Tensor) -> bool | None:
    """Write sum_k m_k^p x_k / sum_k m_k^p."""
    shares = shares_of(
        cast("tuple[float, ...]", values["metric"]),
        cast("float", values["penalty"]),
        lower_is_better=bool(values["lower_is_better"]),
    )
    return passes.weighted_sum(prepared.models, shares[:, None], out)


MWA = Operator(
    name="mwa",
    paper="Yu and Choi 2025, Metrics-weighted averaging, https://arxiv.org/abs/2504.18580",
    summary="The mean of checkpoints, weighed by a metric of each: loss, steps or score",
    parameters=(
        Parameter(
            "metric",
            "real",
            1.0,
            "a checkpoint's loss, number of steps, or score",
            low=0.0,
            high=1e12,
            per_source=True,
        ),
        Parameter("penalty", "real", 1.0, "exponent of the metric", low=0.0, high=1000.0),
        Parameter("lower_is_better", "flag", False, "of the metric, as of a loss"),
    ),
    needs_base=False,
    min_sources=1,
    max_sources=None,
    prepare=keep_sources,
    apply=_apply,
    notes="sum m_k^p x_k / sum m_k^p, with -p for p where lower is better: one number to tune, "
    "however many checkpoints there are. A penalty of 0 is the plain mean, a high one the best "
    "checkpoint alone. The paper weighs by training loss and by steps with one penalty factor; the "
    "power is our form of it. A metric of 0 has no share; as a loss it is refused.",
)
