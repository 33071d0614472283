"""Merged task vectors as products of two thin matrices: exact where they are, else the nearest.

A merge that is linear in the task vectors, W_0 + sum_k c_k tau_k, of adapters tau_k = s_k B_k A_k
over W_0 is W_0 + [c_1 s_1 B_1, c_2 s_2 B_2, ...] [A_1; A_2; ...]: of rank sum_k r_k, without any
error (as `cat` of PEFT's add_weighted_adapter). It is linear with

    task_arithmetic                c_k = lambda w_k, divided by what `normalize` and `compat` say
    dare_linear, all densities 1   the same
    linear                         c_k = w_k / sum w if normalised, w_k if the weights sum to 1
    segments                       the same in one piece, if the weights sum to 1
    lora_concat                    c_k = w_k

Whatever else is merged has a nearest matrix of rank r, from the singular values (Eckart & Young
1936).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints.adapters import Adapted, adapted_beneath
from evomerge.checkpoints.open import Checkpoint
from evomerge.merging.blocks import Effective
from evomerge.merging.operators.segments import SEGMENTS

_KNOWN = {"weight", "normalize", "lambda", "compat", "density", "rescale"}
_SUMS_TO_1 = 1e-6
_ROUNDING = 1e-6  # of the weights' norm: what a sum in float32 of some terms may be off by
_RELATIVE = 1e-5  # of the task vector's norm


@dataclass(frozen=True)
class LowRankChange:
    """B (out, r) @ A (r, in), in float32, for a merged task vector; exact: none of it is lost."""

    a: Tensor
    b: Tensor
    exact: bool

    @property
    def rank(self) -> int:
        """The number of rows of A."""
        return self.a.shape[0]


def coefficients(effective: Effective) -> dict[str, float] | None:
    """Each source's c_k where a merge is W_0 + sum_k c_k tau_k, else None."""
    values: dict[str, Any] = dict(effective.values)
    if effective.operator == SEGMENTS.name:
        weights = values["weights"] if len(values["stops"]) == 1 else ()
        return _named(effective, weights, 1.0) if abs(sum(weights) - 1) <= _SUMS_TO_1 else None
    if not values.keys() <= _KNOWN:
        return None
    weights = values.get("weight", ())
    total = sum(weights)
    if effective.operator == "linear":
        if not values["normalize"]:
            return _named(effective, weights, 1.0) if abs(total - 1) <= _SUMS_TO_1 else None
        return _named(effective, weights, 1 / total) if total else None
    if effective.operator == "dare_linear" and min(values["density"]) < 1:
        return None
    if effective.operator not in ("task_arithmetic", "dare_linear", "lora_concat"):
        return None
    if effective.operator == "lora_concat":
        return _named(effective, weights, 1.0)
    divisor = 1.0
    if values["normalize"]:
        divisor = float(len(weights)) if values["compat"] == "published" else total
    return _named(effective, weights, values["lambda"] / divisor) if divisor else None


def _named(effective: Effective, weights: Any, factor: float) -> dict[str, float]:
    return {
        source: weight * factor for source, weight in zip(effective.sources, weights, strict=True)
    }


def concatenated(
    name: str, effective: Effective, checkpoints: Mapping[str, Checkpoint], base: str
) -> tuple[Tensor, Tensor] | None:
    """A (sum r_k, in) and B (out, sum r_k) of a tensor's merge, where it is linear in adapters."""
    factors = coefficients(effective)
    if factors is None:
        return None
    stack: list[tuple[Tensor, Tensor]] = []
    for source, factor in factors.items():
        if source == base or factor == 0:
            continue
        model = checkpoints[source]
        if not isinstance(model, Adapted) or model.origin is not checkpoints[base]:
            return None
        changes = model.adapter.tensors
        if name in changes.replaced or name in changes.added:
            return None
        if name in changes.low_rank:
            a, b, scale = model.adapter.factors(name)
            stack.append((a, b * (factor * scale)))
    if not stack:
        return None
    return torch.cat([a for a, _ in stack]), torch.cat([b for _, b in stack], dim=1)


def own_rank(effective: Effective, checkpoints: Mapping[str, Checkpoint]) -> int | None:
    """The rank of a merge that has one by its operator's definition, else None."""
    operator = effective.operator.partition("|")[0].strip()
    rank = dict(effective.values).get("rank")
    if operator not in ("lora_svd", "lora_lego") or not isinstance(rank, int):
        return None
    found = (adapted_beneath(checkpoints[source]) for source in effective.sources)
    ranks = [c.rank for a in found if a for c in a.adapter.tensors.low_rank.values()]
    return rank or max(ranks, default=None)


def low_rank_change(
    delta: Tensor, scale: float, stack: tuple[Tensor, Tensor] | None, rank: int | None, default: int
) -> LowRankChange:
    """A merged task vector as B @ A.

    Args:
        delta: (out, in), float32.
        scale: the norm of the weights that it was found beside.
        stack: the factors that should be exact; they are compared with delta.
        rank: the largest that may be used; None keeps a stack whole.
        default: the rank for what is no stack, if none is given.
    """
    full = min(delta.shape)
    if stack is not None:
        a, b = stack
        allowed = _ROUNDING * scale + _RELATIVE * float(delta.norm())
        if float((delta - b @ a).norm()) <= allowed:
            wanted = min(full, a.shape[0] if rank is None else rank)
            if a.shape[0] <= wanted:
                return LowRankChange(a.contiguous(), b.contiguous(), exact=True)
            # The singular values of a thin product, without making it.
            q_b, r_b = torch.linalg.qr(b.double())
            q_a, r_a = torch.linalg.qr(a.double().t())
            u, s, v = torch.linalg.svd(r_b @ r_a.t(), full_matrices=False)
            return _cut(q_b @ u, s, v @ q_a.t(), wanted, exact=wanted == full)
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    return _cut(u, s, v, min(full, default if rank is None else rank), exact=False)


def _cut(u: Tensor, s: Tensor, v: Tensor, rank: int, *, exact: bool) -> LowRankChange:
    """The first singular directions, their values shared between both factors."""
    root = s[:rank].sqrt()
    a, b = root[:, None] * v[:rank], u[:, :rank] * root
    return LowRankChange(a.float().contiguous(), b.float().contiguous(), exact)
