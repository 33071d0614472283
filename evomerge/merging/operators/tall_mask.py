"""TALL masks: where a merged task vector says the same as one expert's, and what several say."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from evomerge.merging.entrywise import Kept, add_agreed_sum, keep_models
from evomerge.merging.operator import Block, Operator, Values
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor


def _prepare(block: Block, values: Values) -> Kept:
    del values
    return keep_models(block)


def _apply_consensus(prepared: Kept, values: Values, out: Tensor) -> bool | None:
    """Write W_0 + lambda T where at least min_tasks masks are set."""
    thresholds = cast("tuple[float, ...]", values["threshold"])
    least, scale = cast("float", values["min_tasks"]), cast("float", values["lambda"])
    ones = [1.0] * len(thresholds)
    return add_agreed_sum(prepared.models, thresholds, ones, least, scale, out)


def _apply_first(prepared: Kept, values: Values, out: Tensor) -> bool | None:
    """Write W_0 + T where the first source's mask is set."""
    count = len(prepared.models.sources)
    thresholds = [cast("float", values["threshold"])] * count
    first = [1.0] + [0.0] * (count - 1)
    return add_agreed_sum(prepared.models, thresholds, first, 1.0, 1.0, out)


_PAPER = (
    "Wang et al. 2024, Localizing task information (TALL masks), https://arxiv.org/abs/2405.07813"
)
_MASK = (
    "A source's mask is |tau_k| > threshold |T - tau_k|, where T is the unscaled sum of all task "
    "vectors: what the others add there is less than what is left of the source. The paper tries "
    "thresholds of 0.2 to 0.6. Masks are computed entry by entry while merging: nothing is "
    "prepared or kept. "
)

CONSENSUS_TA = Operator(
    name="consensus_ta",
    paper=_PAPER,
    summary="The sum of the task vectors, where it keeps what several experts say",
    parameters=(
        Parameter(
            "threshold",
            "real",
            0.4,
            "how much the others may add to what a source's mask keeps",
            low=0.0,
            high=100.0,
            per_source=True,
        ),
        Parameter("min_tasks", "integer", 2, "masks that an entry needs", low=0, high=1000),
        Parameter("lambda", "real", 0.4, "factor of the merged task vector", low=-10, high=10),
    ),
    needs_base=True,
    min_sources=2,
    max_sources=None,
    prepare=_prepare,
    apply=_apply_consensus,
    notes="Base + lambda T at the entries where at least min_tasks masks are set, the base at all "
    f"others. {_MASK}min_tasks 2, the paper's, drops the entries that only one source or none "
    "needs; 1 drops those that none needs; 0 is task arithmetic, and more than there are sources "
    "is the base. The paper tunes lambda; the default here is ours. The authors compare rounded "
    "weights, |W_0 - W_k| and |W_0 + T - W_k|; here the task vectors themselves are compared, "
    "which differs where both sides are equal but for rounding.",
)

TALL_MASK = Operator(
    name="tall_mask",
    paper=_PAPER,
    summary="The first expert, as far as a mask can recover it from the sum of all task vectors",
    parameters=(
        Parameter(
            "threshold",
            "real",
            0.4,
            "how much the others may add to what the mask keeps",
            low=0.0,
            high=100.0,
        ),
    ),
    needs_base=True,
    min_sources=1,
    max_sources=None,
    prepare=_prepare,
    apply=_apply_first,
    notes="Base + T at the entries where the first source's mask is set, the base at all others: "
    "one task's model, as it is stored by one bit an entry beside T. Name the expert first that is "
    f"to be recovered; the order of the others does not matter. {_MASK}FusionBench 0.2.33 compares "
    "|W_0 - tau_k| with the right side, a weight with a task vector: it agrees with the paper only "
    "where the base is zero; its copy of the authors' functions agrees everywhere.",
)
