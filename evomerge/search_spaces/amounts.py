"""Numbers that a file may give as shares: 8 layers, or 0.25 of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from evomerge.documents import Misfit
from evomerge.errors import ConfigurationError, Problem


def _no_flag(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("should be a number, got a flag")
    return value


# A whole number counts; a fraction is a share, and 1.0 is all.
Amount = Annotated[int | float, BeforeValidator(_no_flag)]

MOST = 100.0  # times the layers, of models that repeat them


def counted(amount: Amount, total: int) -> int:
    """How many of `total` are meant.

    Raises:
        ConfigurationError: far more than anybody can want.
    """
    count = amount if isinstance(amount, int) else round(amount * total)
    if count > MOST * max(1, total):
        raise ConfigurationError(Problem("space", f"{count} of {total}: more than {MOST:g} times"))
    return count


def amount_misfits(amount: Amount, where: tuple[str | int, ...], *, most: float) -> list[Misfit]:
    """What is wrong with an amount; `most` is the largest share."""
    if isinstance(amount, int):
        return [] if amount >= 0 else [Misfit(where, f"expected 0 or more, got {amount}")]
    if 0 <= amount <= most:
        return []
    return [Misfit(where, f"a share lies between 0 and {most:g}, got {amount:g}")]
