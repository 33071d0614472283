"""Linear combinations of models that change along a block: what recipes with segments are made of.

No recipe names it, so it stands in no table: see pieces.py for who does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from evomerge.merging import passes
from evomerge.merging.operator import Operator, Values
from evomerge.merging.operators.linear import Sources, keep_sources
from evomerge.merging.reads import Models
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor


def _apply(prepared: Sources, values: Values, out: Tensor) -> bool | None:
    """Write sum_k w_k x_k of each piece; a model without weight there is not read."""
    sources = prepared.models.sources
    stops = np.array(values["stops"], np.int64)
    table = np.array(cast("tuple[float, ...]", values["weights"])).reshape(len(sources), len(stops))
    if stops[-1] != out.numel():  # the kernels would write beyond
        raise ValueError(f"pieces of {stops[-1]} entries for a block of {out.numel()}")
    pieces = [slice(a, b) for a, b in zip([0, *stops[:-1].tolist()], stops.tolist(), strict=True)]
    looked = []
    for used in np.unique(table != 0, axis=1).T:
        chosen = np.flatnonzero(((table != 0) == used[:, None]).all(axis=0))
        places = [pieces[i] for i in chosen]
        if not used.any():
            for place in places:
                out[place].zero_()
            continue
        read = [source for source, take in zip(sources, used, strict=True) if take]
        weights = table[used][:, chosen]
        looked.append(passes.weighted_sum(Models(None, read, places), weights, out))
    return None if None in looked else all(looked)


def joined_stretches(
    stops: NDArray[np.int64], rows: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Stretches with neighbours of equal rows as one; stops (stretches,), rows (stretches, ...)."""
    last = np.ones(len(stops), np.bool_)
    last[:-1] = (rows[1:] != rows[:-1]).any(axis=1)
    return stops[last], rows[last]


SEGMENTS = Operator(
    name="segments",
    paper="Abrantes et al. 2025, Competition and Attraction Improve Model Fusion, "
    "https://arxiv.org/abs/2508.16204",
    summary="A linear combination of models, another one in each piece of a block",
    parameters=(
        Parameter("stops", "real", 0.0, "where each piece ends"),
        Parameter("weights", "real", 0.0, "of each source in each piece, source by source"),
    ),
    needs_base=False,
    min_sources=0,
    max_sources=None,
    prepare=keep_sources,
    apply=_apply,
)
