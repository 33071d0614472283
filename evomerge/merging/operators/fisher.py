"""Fisher merging: each entry averaged by how much each model's likelihood hangs on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from evomerge.errors import CandidateError
from evomerge.merging.operator import Block, Operator, Values, Whose, chunks
from evomerge.records import Parameter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_NORM_FLOOR = 1e-6  # FusionBench's


@dataclass
class _Prepared:
    sources: tuple[Tensor, ...]  # each (numel,)
    fishers: tuple[Tensor, ...]  # each (numel,) float32; of one tensor a view of a mapped file
    norms: tuple[float, ...]
    nbytes: int


def _kind(values: Values) -> str:
    return f"fisher_{values['labels']}"


def _collects(values: Values) -> tuple[tuple[str, Whose], ...]:
    return ((_kind(values), "sources"),)


def _prepare(block: Block, values: Values) -> _Prepared:
    kind = _kind(values)
    held = block.held_bytes(*block.sources)
    fishers = []
    for name in block.source_names:
        parts = block.around.statistics(kind, name)
        flat, is_copy = _flat(block, parts)
        fishers.append(flat)
        held += flat.nbytes * is_copy
    norms = tuple(block.around.statistics_norm(kind, name) for name in block.source_names)
    return _Prepared(block.sources, tuple(fishers), norms, held)


def _flat(block: Block, parts: Sequence[Tensor | None]) -> tuple[Tensor, bool]:
    """All tensors' statistics end to end, and whether they are a copy; zeros where none are."""
    import torch

    if len(parts) == 1 and parts[0] is not None:
        return parts[0].reshape(-1), parts[0].device.type != "cpu"  # on a CPU a view of the file
    flat = torch.zeros(block.numel, dtype=torch.float32, device=block.sources[0].device)
    for segment, part in zip(block.segments, parts, strict=True):
        if part is not None:
            flat[segment] = part.reshape(-1)
    return flat, True


def _apply(prepared: _Prepared, values: Values, out: Tensor) -> None:
    """Write sum_k l_k (F_k + floor) x_k / sum_k l_k (F_k + floor)."""
    import torch

    shares = list(cast("tuple[float, ...]", values["weight"]))
    if values["normalize"]:
        shares = [w / (n + _NORM_FLOOR) for w, n in zip(shares, prepared.norms, strict=True)]
    if (largest := max(shares)) == 0:
        raise CandidateError("fisher: all weights are 0")
    floor = cast("float", values["floor"])
    used = [k for k, share in enumerate(shares) if share]
    first, *others = used
    for part in chunks(out.numel(), 2 * len(used), like=out):
        start = prepared.sources[first][part].float()
        total = (prepared.fishers[first][part] + floor).mul_(shares[first] / largest)
        moved = torch.zeros_like(start)
        for k in others:  # as moves from one of them, so that equal models stay what they are
            own = (prepared.fishers[k][part] + floor).mul_(shares[k] / largest)
            moved.addcmul_(prepared.sources[k][part].float() - start, own)
            total.add_(own)
        out[part].copy_(start + moved.div_(total))


FISHER = Operator(
    name="fisher",
    paper="Matena & Raffel 2022, Merging Models with Fisher-Weighted Averaging, "
    "https://arxiv.org/abs/2111.09832",
    summary="Average of each entry, weighted by how much a model's likelihood hangs on it",
    parameters=(
        Parameter(
            "weight",
            "real",
            1.0,
            "factor of a source's Fisher diagonal",
            low=0.0,
            high=1e6,
            per_source=True,
        ),
        Parameter("floor", "real", 1e-6, "added to all Fisher entries", low=1e-20, high=1e6),
        Parameter("normalize", "flag", False, "divide each model's Fisher by its norm"),
        Parameter(
            "labels",
            "choice",
            "sampled",
            "of which tokens gradients are taken",
            options=("sampled", "data", "expected"),
            phase="prepare",
        ),
    ),
    needs_base=False,
    min_sources=1,
    max_sources=None,
    needs="gradients",
    collects=_collects,
    prepare=_prepare,
    apply=_apply,
    notes="sum w_k (F_k + floor) x_k / sum w_k (F_k + floor), where F_k is the mean over the "
    "calibration texts of the squared gradient of a text's log-likelihood. `labels: sampled` draws "
    "each next token from the model, as in the paper (an unbiased estimate of the Fisher matrix's "
    "diagonal); `data` takes the text's own tokens (the empirical Fisher). FusionBench squares the "
    "gradient of sum_v sqrt(p_v) log p_v instead, which is another number as soon as gradients of "
    "different tokens are not orthogonal: `labels: expected`; it also divides each F_k by its norm "
    "over the whole model by default: `normalize: true` (it adds the floor before). Where all F_k "
    "are far below the floor the merge is the weighted mean. Entries without gradient count as 0.",
)
