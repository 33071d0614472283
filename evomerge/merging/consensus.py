"""Agreement on signs between weighted task vectors (TIES, elect and disjoint merge)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Compat = Literal["published", "mergekit"]


def elect(taus: Tensor, compat: Compat, majority: Callable[[Tensor], None]) -> Tensor:
    """The sign that each entry takes, of shape (entries,).

    taus: (sources, entries). Where they cancel exactly, mergekit takes +; as published,
    `majority` is called to replace the zeros of the signs in place.
    """
    import torch

    sums = taus.sum(0)
    if compat == "mergekit":
        return torch.where(sums < 0, -1.0, 1.0)
    signs = torch.sign(sums)
    if ((sums == 0) & (taus.amax(0) > 0)).any():
        majority(signs)
    return signs


def disjoint_sum(
    taus: Tensor, signs: Tensor, normalize: bool, weights: Tensor | None = None
) -> Tensor:
    """The sum of the entries that have the elected sign, of shape (entries,); changes `taus`.

    Normalised by how many they are, or by the sum of their `weights`, shape (sources,).
    """
    import torch

    agreeing = taus.mul_(signs).clamp_min_(0)
    total = agreeing.sum(0).mul_(signs)
    if not normalize:
        return total
    took_part = (agreeing > 0).to(torch.float32)
    if weights is None:
        return total.div_(took_part.sum(0).clamp_min_(1))
    divisor = torch.mv(took_part.t(), weights)
    divisor[divisor == 0] = 1
    return total.div_(divisor)
