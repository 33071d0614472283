"""Paired differences, told apart or not: intervals, Wilcoxon's test, Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """What one side of some pairs has more than the other, on average.

    low, high: the 95 % interval of the mean by Student's t.
    p: two-sided, of Wilcoxon's signed-rank test (zeros split, exact where there are no ties).
    p_holm: the same, corrected for all comparisons of its family.
    """

    name: str
    pairs: int
    ahead: int
    mean: float
    low: float
    high: float
    p: float
    p_holm: float

    @property
    def verdict(self) -> str:
        """Whether "the first side has more" holds, at the level of the family's corrected test."""
        if self.p_holm < LEVEL:
            return "holds" if self.mean > 0 else "does not hold: the reverse"
        return "not told apart"

    def row(self, digits: int = 3) -> str:
        """A row of a table in Markdown; see `HEAD`."""
        mean, low, high = (f"{value:+.{digits}f}" for value in (self.mean, self.low, self.high))
        return (
            f"| {self.name} | {mean} [{low}, {high}] | {self.ahead} of {self.pairs} "
            f"| {figure(self.p)} | {figure(self.p_holm)} | {self.verdict} |"
        )


HEAD = (
    "| | paired difference, 95 % interval | ahead in | p | p, Holm | |\n|---|---|---|---|---|---|"
)


def differences(gains: Mapping[str, ArrayLike]) -> list[Difference]:
    """One family of comparisons: for each name, first side less second, shape (pairs,).

    Raises:
        ValueError: fewer than two pairs.
    """
    values = {name: np.asarray(gain, np.float64) for name, gain in gains.items()}
    if any(len(gain) < 2 for gain in values.values()):
        raise ValueError("expected two pairs or more")
    ps = [wilcoxon(gain) for gain in values.values()]
    found = []
    for (name, gain), p, p_holm in zip(values.items(), ps, holm(ps), strict=True):
        half = stats.t.ppf(1 - LEVEL / 2, len(gain) - 1) * gain.std(ddof=1) / len(gain) ** 0.5
        mean, ahead = float(gain.mean()), int((gain > 0).sum())
        low, high = mean - float(half), mean + float(half)
        found.append(Difference(name, len(gain), ahead, mean, low, high, p, p_holm))
    return found


def wilcoxon(gain: ArrayLike) -> float:
    """Two-sided p; 1 where all differences are zero."""
    values = np.asarray(gain)
    if not values.any():
        return 1.0
    return float(stats.wilcoxon(values, zero_method="zsplit").pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """Step-down corrected p-values, in the given order (Holm 1979)."""
    corrected, running = [0.0] * len(ps), 0.0
    for rank, place in enumerate(np.argsort(ps, kind="stable")):
        running = max(running, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = running
    return corrected


def figure(p: float) -> str:
    """A p-value as it is printed."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}".replace("e-0", "e-")
