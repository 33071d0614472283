"""Genes: what a searcher may vary, of which type, when it matters, and what binds genes together.

All of it is plain data. A search space declares its genes; its codec (search_spaces/codec.py) turns
points of the unit cube into their values and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Value = bool | int | float | str
Values = Mapping[str, Value]  # of the genes that are active, by name


@dataclass(frozen=True)
class Real:
    """A number in [low, high]; where `log`, equal steps of the cube are equal ratios.

    decimals: what values are rounded to (significant digits where `log`), so that a recipe reads
    well and says exactly what its genome says. None: not at all, for what is rounded later.
    """

    name: str
    low: float
    high: float
    log: bool = False
    decimals: int | None = 6
    when: Condition | None = None


@dataclass(frozen=True)
class Integer:
    """A whole number in [low, high], both included."""

    name: str
    low: int
    high: int
    when: Condition | None = None


@dataclass(frozen=True)
class Level:
    """One of some numbers, which rise."""

    name: str
    levels: tuple[float, ...]
    when: Condition | None = None


@dataclass(frozen=True)
class Choice:
    """One of some names."""

    name: str
    options: tuple[str, ...]
    when: Condition | None = None


@dataclass(frozen=True)
class Flag:
    """Yes or no."""

    name: str
    when: Condition | None = None


Gene = Real | Integer | Level | Choice | Flag


def num_options(gene: Gene) -> int | None:
    """How many values a gene has; None for a real one.

    Of a gene with n values, the coordinates in [i / n, (i + 1) / n) all mean value i.
    """
    if isinstance(gene, Real):
        return None
    if isinstance(gene, Flag):
        return 2
    if isinstance(gene, Integer):
        return gene.high - gene.low + 1
    return len(gene.levels if isinstance(gene, Level) else gene.options)


KINDS: dict[type, str] = {
    Real: "real",
    Integer: "integer",
    Level: "level",
    Choice: "choice",
    Flag: "flag",
}


# --- when a gene matters --------------------------------------------------------------------------


class Condition(Protocol):
    """What makes a gene matter, as far as the genes before it go; it says so as text, too.

    Conditions that are the same are equal, and have the same hash.
    """

    @property
    def genes(self) -> tuple[str, ...]:
        """Whom it asks."""
        ...

    def holds(self, values: Values) -> bool:
        """Whether it is so, for genes with these values."""
        ...


@dataclass(frozen=True)
class OneOf:
    """A gene is active and has one of these values."""

    gene: str
    values: tuple[Value, ...]

    def holds(self, values: Values) -> bool:
        """Whether it is so, for genes with these values."""
        return self.gene in values and values[self.gene] in self.values

    @property
    def genes(self) -> tuple[str, ...]:
        """Whom it asks."""
        return (self.gene,)

    def __str__(self) -> str:
        told = (("yes" if v else "no") if isinstance(v, bool) else f"{v}" for v in self.values)
        return f"{self.gene} is {' or '.join(told)}"


@dataclass(frozen=True)
class NoneIs:
    """None of some genes has this value."""

    genes: tuple[str, ...]
    value: Value

    def holds(self, values: Values) -> bool:
        """Whether it is so, for genes with these values."""
        return all(values.get(gene) != self.value for gene in self.genes)

    def __str__(self) -> str:
        return f"none of {_listed(self.genes)} is {self.value}"


@dataclass(frozen=True)
class AtLeast:
    """At least so many of some flags are set."""

    genes: tuple[str, ...]
    count: int

    def holds(self, values: Values) -> bool:
        """Whether it is so, for genes with these values."""
        return sum(bool(values.get(gene, False)) for gene in self.genes) >= self.count

    def __str__(self) -> str:
        return f"at least {self.count} of {_listed(self.genes)} set"


@dataclass(frozen=True)
class Beyond:
    """A number's magnitude is at least so large."""

    gene: str
    threshold: float

    def holds(self, values: Values) -> bool:
        """Whether it is so, for genes with these values."""
        return self.gene in values and abs(float(values[self.gene])) >= self.threshold

    @property
    def genes(self) -> tuple[str, ...]:
        """Whom it asks."""
        return (self.gene,)

    def __str__(self) -> str:
        return f"|{self.gene}| >= {self.threshold:g}"


@dataclass(frozen=True)
class All:
    """Several conditions at once."""

    conditions: tuple[Condition, ...]

    def holds(self, values: Values) -> bool:
        """Whether it is so, for genes with these values."""
        return all(condition.holds(values) for condition in self.conditions)

    @property
    def genes(self) -> tuple[str, ...]:
        """Whom it asks."""
        return tuple(gene for condition in self.conditions for gene in condition.genes)

    def __str__(self) -> str:
        return " and ".join(str(condition) for condition in self.conditions)


# --- what binds genes together --------------------------------------------------------------------


@dataclass(frozen=True)
class AllDifferent:
    """Integers of one range, no two of them the same.

    repeats: what becomes of a value that an earlier gene has: it is moved on to the `next` free one
    (from the highest to the lowest), or the genome is `reject`-ed.
    """

    genes: tuple[str, ...]
    repeats: Literal["next", "reject"] = "next"

    def __str__(self) -> str:
        return f"{_listed(self.genes)} all different"


@dataclass(frozen=True)
class Count:
    """Of some flags, at least `least` and at most `most` are set; equal: exactly so many.

    Where more coordinates say yes than may, the highest of them count; where fewer, the highest of
    those that say no are set as well. So every point of the cube keeps it.
    """

    genes: tuple[str, ...]
    least: int
    most: int

    def __str__(self) -> str:
        few = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
        return f"{few} of {_listed(self.genes)} set"


Constraint = AllDifferent | Count


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, ..., {names[-1]}"
