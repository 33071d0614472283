"""MagMax: every entry from the expert that moved it farthest."""

from __future__ import annotations

from evomerge.merging.offsets import Shifted, apply_shift, empty_shift, offsets
from evomerge.merging.operator import Block, Operator, Values, chunks
from evomerge.records import Parameter


def _prepare(block: Block, values: Values) -> Shifted:
    """The farthest moves; of equally far ones that of the later source, as in the authors' code."""
    del values
    import torch

    prepared = empty_shift(block)
    for part in chunks(block.numel, len(block.sources)):
        farthest, *others = offsets(block, part)
        for tau in others:
            farthest = torch.where(tau.abs() >= farthest.abs(), tau, farthest)
        prepared.shift[part] = farthest
    return prepared


MAGMAX = Operator(
    name="magmax",
    paper="Marczak et al. 2024, https://arxiv.org/abs/2407.06322 (maximum magnitude selection)",
    summary="Every entry takes the task vector of the largest magnitude there",
    parameters=(
        Parameter("lambda", "real", 0.5, "factor of the merged task vector", low=-10, high=10),
    ),
    needs_base=True,
    min_sources=1,
    max_sources=None,
    prepare=_prepare,
    apply=apply_shift,
    notes="Base + lambda tau_k, with k the source of the largest |tau_k| entry by entry. Where "
    "magnitudes are equal, the later source wins: the order of the sources matters there.",
)
