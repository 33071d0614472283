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
    signs = add_up(taus).sign_()
    if compat == "mergekit":
        return signs.add_(0.5).sign_()
    # 1 where a sum of zero hides something positive; without booleans, which are slow on a CPU.
    if float(taus.amax(0).sign_().sub_(signs.abs()).max()) > 0:
        majority(signs)
    return signs


def disjoint_sum(
    taus: Tensor, signs: Tensor, normalize: bool, weights: Tensor | None = None
) -> Tensor:
    """The sum of the entries that have the elected sign, of shape (entries,); changes `taus`.

    Normalised by how many they are, or by the sum of their `weights`, shape (sources,).
    """
    agreeing = taus.mul_(signs).clamp_min_(0)
    total = add_up(agreeing).mul_(signs)
    if not normalize:
        return total
    took_part = agreeing.sign_()
    if weights is None:
        return total.div_(add_up(took_part).clamp_min_(1))
    divisor = add_up(took_part, weights)
    nobody = divisor.sign().abs_().neg_().add_(1)  # 1 where the divisor is exactly 0
    return total.div_(divisor.add_(nobody))


def add_up(rows: Tensor, weights: Tensor | None = None) -> Tensor:
    """The weighted sum over the first dimension; twice as fast as `sum`."""
    import torch

    return torch.mv(rows.t(), rows.new_ones(len(rows)) if weights is None else weights)
