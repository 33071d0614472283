"""Points of the unit cube, and the values of typed genes: there and back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigurationError, Problem
from evomerge.genes import (
    All,
    AllDifferent,
    AtLeast,
    Beyond,
    Choice,
    Condition,
    Constraint,
    Count,
    Flag,
    Gene,
    Integer,
    Level,
    OneOf,
    Real,
    Value,
    num_options,
)

CENTER = 0.5  # where a gene stands that does not matter
SET, UNSET = 0.75, 0.25  # where a flag stands
LEVELS_APART = 1e-5  # relative; what is nearer to a level, as six digits are, is the level


class Codec:
    """Values of genes as coordinates in [0, 1], in the order of the genes.

    Every point of the cube has values; different points may have the same. `genome` is the inverse
    of `values`: of all points with the same values it gives one.

    Args:
        genes: with different names; a condition asks genes before its own alone.
        constraints: what binds some of them; no gene is in two.

    Raises:
        ConfigurationError: naming the genes that are declared wrongly, or whose value can never
            matter.
    """

    def __init__(self, genes: Sequence[Gene], constraints: Sequence[Constraint] = ()) -> None:
        self.genes = tuple(genes)
        self.constraints = tuple(constraints)
        self._index = {gene.name: number for number, gene in enumerate(self.genes)}
        if not self.genes:
            raise ConfigurationError(Problem("space", "no genes: there is nothing to search"))
        if problems := self._problems():
            raise ConfigurationError(problems)
        reals = [(i, g) for i, g in enumerate(self.genes) if isinstance(g, Real)]
        linear = [(i, g) for i, g in reals if not g.log]
        self._linear = np.array([i for i, _ in linear], dtype=np.intp)
        self._low = np.array([g.low for _, g in linear])
        self._high = np.array([g.high for _, g in linear])
        self._scale = np.array(
            [np.nan if g.decimals is None else 10.0**g.decimals for _, g in linear]
        )
        self._logs = [(i, g) for i, g in reals if g.log]
        self._discrete = [(i, g) for i, g in enumerate(self.genes) if not isinstance(g, Real)]
        self._groups = [(c, [self._index[name] for name in c.genes]) for c in self.constraints]
        counted = {i for c, members in self._groups if isinstance(c, Count) for i in members}
        self._discrete = [(i, g) for i, g in self._discrete if i not in counted]

    # --- from coordinates to values ---------------------------------------------------------------

    def values(self, genome: Sequence[float]) -> list[Value]:
        """The value of every gene, of inactive ones too; the constraints are kept.

        Repeats that are to be rejected stay as they are (see `violations`).
        """
        point = np.asarray(genome, dtype=np.float64)
        spread = np.zeros(len(point))
        spread[self._linear] = self._real(point[self._linear])
        values: list[Any] = spread.tolist()
        for i, real in self._logs:
            values[i] = _log_value(real, genome[i])
        for i, gene in self._discrete:
            values[i] = _discrete_value(gene, genome[i])
        for constraint, members in self._groups:
            if isinstance(constraint, Count):
                chosen = _chosen(constraint, point[members])
                for i, is_set in zip(members, chosen, strict=True):
                    values[i] = is_set
            elif constraint.repeats == "next":
                self._make_different(members, values)
        return values

    def active(self, values: Sequence[Value]) -> list[bool]:
        """Which genes matter, given the values of all."""
        known: dict[str, Value] = {}
        active = []
        for gene, value in zip(self.genes, values, strict=True):
            holds = gene.when is None or gene.when.holds(known)
            active.append(holds)
            if holds:
                known[gene.name] = value
        return active

    def violations(self, genome: Any) -> list[str]:
        """What makes it no point of the cube, and which constraints it breaks."""
        if not isinstance(genome, list | tuple) or len(genome) != len(self.genes):
            return [f"expected a list of {len(self.genes)} numbers"]
        try:
            point = np.asarray(genome, dtype=np.float64)
        except (TypeError, ValueError):
            return [f"expected a list of {len(self.genes)} numbers"]
        if point.shape != (len(self.genes),):
            return [f"expected a list of {len(self.genes)} numbers"]
        inside = (point >= 0.0) & (point <= 1.0)  # False for NaN
        if not inside.all():
            return [
                f"{self.genes[i].name}: {genome[i]} is outside [0, 1]"
                for i in np.flatnonzero(~inside)
            ]
        found: list[str] = []
        if not any(isinstance(c, AllDifferent) and c.repeats == "reject" for c in self.constraints):
            return found
        values = self.values(genome)
        for constraint, members in self._groups:
            if isinstance(constraint, AllDifferent) and constraint.repeats == "reject":
                chosen = [values[i] for i in members]
                twice = sorted({v for v in chosen if chosen.count(v) > 1})
                found += [f"{constraint}: {value} stands twice" for value in twice]
        return found

    # --- from values to coordinates ---------------------------------------------------------------

    def genome(self, values: Mapping[str, Value]) -> list[float]:
        """A point of the cube with these values; genes without one stand in the middle.

        Raises:
            ValueError: no gene of that name, a value that its gene cannot have, or a broken
                constraint.
        """
        if unknown := sorted(values.keys() - self._index.keys()):
            raise ValueError(f"no gene {unknown[0]!r}")
        genome = [
            coordinate_of(gene, values[gene.name]) if gene.name in values else CENTER
            for gene in self.genes
        ]
        found = self.values(genome)
        for name, value in values.items():
            if not self._same(name, found[self._index[name]], value):
                broken = next((c for c in self.constraints if name in c.genes), None)
                why = f" ({broken})" if broken else ""
                raise ValueError(f"{name}: cannot be {value}{why}")
        return genome

    # --- inside -----------------------------------------------------------------------------------

    def _same(self, name: str, found: Value, wanted: Value) -> bool:
        """Equal, numbers as far as their decimals go."""
        gene = self.genes[self._index[name]]
        if isinstance(gene, Level):
            return _is_level(float(found), wanted)
        if not isinstance(gene, Real):
            return found == wanted
        step = 10.0 ** -(12 if gene.decimals is None else gene.decimals)
        relative, absolute = (step, 0.0) if gene.log else (0.0, step)
        return math.isclose(float(found), float(wanted), rel_tol=relative, abs_tol=absolute)

    def _real(self, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        raw = self._low + (self._high - self._low) * coordinates
        rounded = np.rint(raw * self._scale) / self._scale
        rounded = np.where(np.isnan(self._scale), raw, rounded)
        # Never -0.0, which reads otherwise.
        clipped: NDArray[np.float64] = np.clip(rounded, self._low, self._high) + 0.0
        return clipped

    def _make_different(self, members: list[int], values: list[Any]) -> None:
        first = self.genes[members[0]]
        low, size = first.low, first.high - first.low + 1  # type: ignore[union-attr]
        taken: set[int] = set()
        for i in members:
            value = values[i]
            while value in taken:
                value = low + (value - low + 1) % size
            taken.add(value)
            values[i] = value

    def _problems(self) -> list[Problem]:
        problems = []
        before: dict[str, Gene] = {}
        for gene in self.genes:
            if gene.name in before:
                problems.append(Problem(gene.name, "two genes have this name"))
            problems += [Problem(gene.name, what) for what in _gene_problems(gene, before)]
            before[gene.name] = gene
        bound: set[str] = set()
        for constraint in self.constraints:
            unknown = [name for name in constraint.genes if name not in before]
            problems += [Problem(str(constraint), f"no gene {name!r}") for name in unknown]
            twice = bound.intersection(constraint.genes)
            problems += [Problem(name, "is in two constraints") for name in sorted(twice)]
            bound.update(constraint.genes)
            if not unknown:
                members = [before[name] for name in constraint.genes]
                problems += [Problem(str(constraint), what) for what in _bound(constraint, members)]
        return problems


def _gene_problems(gene: Gene, before: Mapping[str, Gene]) -> list[str]:
    """What is wrong with a declaration; a gene with one value alone is dead."""
    if isinstance(gene, Real):
        if not (math.isfinite(gene.low) and math.isfinite(gene.high) and gene.low < gene.high):
            return [f"expected low < high, got [{gene.low:g}, {gene.high:g}]"]
        if gene.log and gene.low <= 0:
            return [f"a log scale begins above 0, got [{gene.low:g}, {gene.high:g}]"]
    elif isinstance(gene, Integer) and gene.low >= gene.high:
        return [f"can only be {gene.low}" if gene.low == gene.high else "expected low < high"]
    elif isinstance(gene, Level):
        if problem := level_problem(gene.levels):
            return [problem]
    elif isinstance(gene, Choice) and len(set(gene.options)) < max(2, len(gene.options)):
        return [f"expected two or more different options, got {', '.join(gene.options)}"]
    if gene.when is None:
        return []
    if unknown := [name for name in gene.when.genes if name not in before]:
        return [f"matters only when {gene.when}, and no gene before it is called {unknown[0]!r}"]
    return [] if _can_hold(gene.when, before) else [f"never matters: {gene.when} cannot be"]


def level_problem(levels: Sequence[float]) -> str | None:
    """What is wrong with the levels of a gene."""
    apart = len(levels) > 1 and all(a < b for a, b in itertools.pairwise(levels))
    if apart and not any(_is_level(a, b) for a, b in itertools.pairwise(levels)):
        return None
    told = ", ".join(f"{level:g}" for level in levels)
    return f"expected two or more numbers, each higher than the one before, got {told or 'none'}"


def _is_level(level: float, value: Value) -> bool:
    """Equal, as far as recipes that are written by hand go."""
    return math.isclose(level, float(value), rel_tol=LEVELS_APART, abs_tol=1e-12)


def _can_hold(condition: Condition, genes: Mapping[str, Gene]) -> bool:
    """Whether a condition on its own can be met."""
    if isinstance(condition, All):
        return all(_can_hold(one, genes) for one in condition.conditions)
    if isinstance(condition, AtLeast):
        return condition.count <= len(condition.genes)
    if isinstance(condition, Beyond):
        gene = genes[condition.gene]
        return isinstance(gene, Real) and max(abs(gene.low), abs(gene.high)) >= condition.threshold
    if isinstance(condition, OneOf):
        return any(_can_be(genes[condition.gene], value) for value in condition.values)
    return True


def _can_be(gene: Gene, value: Value) -> bool:
    try:
        coordinate_of(gene, value)
    except ValueError:
        return False
    return True


def _bound(constraint: Constraint, members: Sequence[Gene]) -> list[str]:
    """What is wrong with a constraint on these genes."""
    if isinstance(constraint, Count):
        if not all(isinstance(gene, Flag) for gene in members):
            return ["expected flags"]
        if not 0 <= constraint.least <= constraint.most <= len(members):
            return [f"expected 0 <= least <= most <= {len(members)}"]
        if constraint.least == constraint.most and constraint.most in (0, len(members)):
            return ["leaves nothing to choose"]
        return []
    ranges = {(g.low, g.high) if isinstance(g, Integer) else None for g in members}
    if len(ranges) != 1 or None in ranges:
        return ["expected integers of one range"]
    low, high = ranges.pop() or (0, 0)
    if high - low + 1 < len(members):
        return [f"{len(members)} different numbers do not fit into {low} to {high}"]
    return []


def _log_value(gene: Real, coordinate: float) -> float:
    span = math.log(gene.high) - math.log(gene.low)
    value = math.exp(math.log(gene.low) + span * coordinate)
    value = value if gene.decimals is None else float(f"{value:.{gene.decimals}g}")
    return min(max(value, gene.low), gene.high)


def _discrete_value(gene: Integer | Level | Choice | Flag, coordinate: float) -> Value:
    if isinstance(gene, Flag):
        return coordinate >= CENTER
    options = num_options(gene) or 1
    place = min(int(coordinate * options), options - 1)
    if isinstance(gene, Integer):
        return gene.low + place
    # Never -0.0, which reads otherwise.
    return gene.levels[place] + 0.0 if isinstance(gene, Level) else gene.options[place]


def _chosen(count: Count, coordinates: NDArray[np.float64]) -> list[bool]:
    """Who is set: who says yes, as far as the count goes, by the height of the coordinates."""
    wanted = int(np.clip((coordinates >= CENTER).sum(), count.least, count.most))
    order = np.argsort(-coordinates, kind="stable")
    chosen = np.zeros(len(coordinates), dtype=bool)
    chosen[order[:wanted]] = True
    found: list[bool] = chosen.tolist()
    return found


def coordinate_of(gene: Gene, value: Value) -> float:
    """Where a gene stands that has a value.

    Raises:
        ValueError: it cannot have it.
    """
    refused = ValueError(f"{gene.name}: cannot be {value!r}")
    if isinstance(gene, Flag):
        if not isinstance(value, bool):
            raise refused
        return SET if value else UNSET
    if isinstance(gene, Choice):
        if value not in gene.options:
            raise refused
        return (gene.options.index(str(value)) + 0.5) / len(gene.options)
    if isinstance(value, str | bool):
        raise refused
    if isinstance(gene, Level):
        place = next((i for i, level in enumerate(gene.levels) if _is_level(level, value)), None)
        if place is None:
            raise refused
        return (place + 0.5) / len(gene.levels)
    if not gene.low <= value <= gene.high:
        raise ValueError(f"{gene.name}: {value} is outside [{gene.low}, {gene.high}]")
    if isinstance(gene, Integer):
        if value != int(value):
            raise refused
        return (int(value) - gene.low + 0.5) / (gene.high - gene.low + 1)
    if gene.log:
        span = math.log(gene.high) - math.log(gene.low)
        return min(max((math.log(value) - math.log(gene.low)) / span, 0.0), 1.0)
    return (value - gene.low) / (gene.high - gene.low)
