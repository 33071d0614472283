"""Numbers that a file may give as shares: 8 layers, or 0.25 of them."""

from __future__ import annotations

from evomerge.documents import Misfit

Amount = int | float  # a whole number counts; a fraction is a share, and 1.0 is all

MOST = 100.0  # times the layers, of models that repeat them


def counted(amount: Amount, total: int) -> int:
    """How many of `total` are meant."""
    return amount if isinstance(amount, int) else round(amount * total)


def amount_misfits(amount: Amount, where: tuple[str | int, ...], *, most: float) -> list[Misfit]:
    """What is wrong with an amount; `most` is the largest share."""
    if isinstance(amount, int):
        return [] if amount >= 0 else [Misfit(where, f"expected 0 or more, got {amount}")]
    if 0 <= amount <= most:
        return []
    return [Misfit(where, f"a share lies between 0 and {most:g}, got {amount:g}")]
