"""Operator parameters as curves over depth: few genes for many layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.documents import Misfit, refuse
from evomerge.errors import ConfigurationError, Problem
from evomerge.genes import Real, Value
from evomerge.merging import OPERATORS, unknown
from evomerge.recipe import OperatorName, Recipe
from evomerge.records import Genome
from evomerge.search_spaces.codec import Codec
from evomerge.search_spaces.config import SpaceConfig, count_problems
from evomerge.search_spaces.cube import CubeSpace
from evomerge.search_spaces.designs import expert_merges, plain_merges
from evomerge.search_spaces.grid import Grid, Row, RowValue
from evomerge.search_spaces.searched import (
    Bounds,
    FixedValue,
    Varied,
    check_filters,
    filter_misfits,
    fixed_misfits,
    parameter_misfits,
)
from evomerge.search_spaces.spots import BEFORE, Apart, Spot, layer_groups, spots_of
from evomerge.wording import in_brackets

# Knots are coarse beside the values between them, so that they can be read off again exactly.
KNOT_DECIMALS = 4
VALUE_DECIMALS = 9
CurveName = Literal["attention", "mlp", "other"]


class Straight(BaseModel):
    """A straight line: the value in the first layer, and what the last one has more."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    first: Bounds
    growth: Bounds


class Curve(BaseModel):
    """A parameter as a function of depth: through knots at equal distances, or straight.

    knots: how many (1: a constant), for the whole model or for attention, mlp and all `other`
    tensors apart. range: of each knot. straight: as LiNeS has it. per: whether experts have curves
    of their own. filters: parts of tensors' names: tensors whose name has one (of several, the
    first) have a curve of their own. outside: whether embedding, norm and head lie at both ends, or
    all at the first one, as in mergekit's gradients.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    per: tuple[Literal["expert"], ...] = ()
    knots: int | dict[CurveName, int] | None = None
    range: Bounds | None = None
    straight: Straight | None = None
    filters: tuple[str, ...] = ()
    outside: Literal["ends", "first"] = "ends"

    @property
    def bounds(self) -> Bounds:
        """What all values are within."""
        if self.straight is None:
            return self.range or (0.0, 1.0)
        first, growth = self.straight.first, self.straight.growth
        return first[0] + min(0.0, growth[0]), first[1] + max(0.0, growth[1])

    @model_validator(mode="after")
    def _sensible(self) -> Curve:
        refuse(self, self._misfits())
        return self

    def _misfits(self) -> Iterator[Misfit]:
        yield from filter_misfits(self.filters)
        if self.filters and isinstance(self.knots, dict):
            yield Misfit(("filters",), "go with one number of knots for all")
        if (self.straight is None) == (self.knots is None):
            yield Misfit((), "expected one of knots and straight")
            return
        if self.straight is not None:
            for key in ("first", "growth"):
                low, high = getattr(self.straight, key)
                if low >= high:
                    yield Misfit(("straight", key), f"expected low < high, got {[low, high]}")
            if self.range is not None:
                yield Misfit(("range",), "a straight line has `first` and `growth` instead")
            return
        if isinstance(self.knots, dict):
            if missing := sorted({"attention", "mlp", "other"} - self.knots.keys()):
                yield Misfit(("knots",), f"also needed for {', '.join(missing)}")
            counts = list(self.knots.values())
        else:
            counts = [self.knots or 0]
        if any(count < 1 for count in counts):
            yield Misfit(("knots",), "expected 1 or more")
        if self.range is None:
            yield Misfit(("range",), "is needed: [low, high] of each knot")
        elif self.range[0] >= self.range[1]:
            yield Misfit(("range",), f"expected low < high, got {in_brackets(self.range)}")


class DepthProfileConfig(SpaceConfig):
    """A search space file of kind `depth_profile`."""

    kind: Literal["depth_profile"]
    operator: OperatorName
    search: dict[str, Curve] = Field(min_length=1)
    fixed: dict[str, FixedValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> DepthProfileConfig:
        refuse(self, self._misfits())
        return self

    def _misfits(self) -> Iterator[Misfit]:
        if self.operator not in OPERATORS:
            yield Misfit(("operator",), *unknown(self.operator))
            return
        declared = {parameter.name: parameter for parameter in OPERATORS[self.operator].parameters}
        for name, curve in self.search.items():
            where = ("search", name)
            within = Varied(range=curve.bounds)
            yield from parameter_misfits(self.operator, name, within, where)
            if name not in declared:
                continue
            if declared[name].kind != "real":
                yield Misfit(where, "is no real number, so has no curve")
            if curve.per and not declared[name].per_source:
                yield Misfit((*where, "per"), "it is one value for all experts: remove `expert`")
        yield from fixed_misfits(self.operator, self.fixed, self.search)
        for name in self.fixed:
            if "." in name:
                yield Misfit(("fixed", name), "genes of curves cannot be fixed")

    def check_experts(self, experts: Sequence[str]) -> list[Problem]:
        """Too few or too many."""
        return count_problems(self.operator, experts)


@dataclass(frozen=True)
class _Line:
    """One curve of one parameter: its genes for each expert, and where it lies.

    basis: (spots, genes); the values of the spots are basis @ genes.
    """

    parameter: str
    voices: tuple[str, ...]
    genes: tuple[str, ...]
    spots: tuple[Spot, ...]
    basis: NDArray[np.float64]


class DepthProfile(CubeSpace):
    """Parameters of one operator as functions of depth.

    Wang et al. 2025, LiNeS, arXiv:2410.17146 (straight lines); mergekit's gradients (knots). The
    embedding lies at depth 0, the final norm and the head at depth 1; where `other` tensors have a
    curve of their own, they take that one's.
    """

    def __init__(self, config: DepthProfileConfig, template: Recipe, anatomy: Anatomy) -> None:
        super().__init__(template, anatomy)
        self._config = config
        self._lines = [
            line for name, curve in config.search.items() for line in self._lines_of(name, curve)
        ]
        genes = [
            Real(_named(line, voice, gene), *self._range(line, gene), decimals=KNOT_DECIMALS)
            for line in self._lines
            for voice in line.voices
            for gene in line.genes
        ]
        self.codec = Codec(genes)
        rows = [
            Row(line.parameter, spot, line.voices != ("",))
            for line in self._lines
            for spot in line.spots
        ]
        self._grid = Grid(config.operator, config.fixed, self.experts, anatomy, rows)

    def decode(self, genome: Genome) -> Recipe:
        """The recipe whose parameters lie on the curves."""
        values = np.array(self.codec.values(genome), dtype=np.float64)
        rows: list[RowValue] = []
        start = 0
        for line in self._lines:
            shape = len(line.voices), len(line.genes)
            knots = values[start : start + shape[0] * shape[1]].reshape(shape)
            start += knots.size
            scale = 10.0**VALUE_DECIMALS
            table = np.rint(line.basis @ knots.T * scale) / scale + 0.0
            low, high = self._config.search[line.parameter].bounds
            listed = np.clip(table, low, high).tolist()
            if line.voices == ("",):
                rows += [row[0] for row in listed]
            else:
                rows += [dict(zip(self.experts, row, strict=True)) for row in listed]
        return self.recipe(**self._grid.merges(rows))

    def encode(self, recipe: Recipe) -> Genome:
        """The genome of a recipe whose parameters lie on such curves.

        Raises:
            ValueError: they do not, or it differs in what no gene says.
        """
        self.check_template(recipe)
        rows = iter(self._grid.read(recipe))
        values: dict[str, Value] = {}
        for line in self._lines:
            own = [next(rows) for _ in line.spots]
            for voice in line.voices:
                along = np.array([row[voice] if voice else row for row in own])
                knots = np.linalg.lstsq(line.basis, along, rcond=None)[0]
                # Hand-written values need not lie on a curve.
                if np.abs(line.basis @ knots - along).max() > 1e-6:
                    raise ValueError(f"{line.parameter}: the recipe's values lie on no such curve")
                for gene, knot in zip(line.genes, knots, strict=True):
                    values[_named(line, voice, gene)] = _within(knot, *self._range(line, gene))
        return self.codec.genome(values)

    def designs(self) -> list[Genome]:
        """Each expert alone and the uniform merge, as far as the space can say them."""
        return plain_merges(self, self._config.operator, self._config.fixed)

    def alone(self) -> dict[str, Genome]:
        """The genome of each expert alone, as far as the space can say it."""
        return expert_merges(self, self._config.operator, self._config.fixed)

    def _range(self, line: _Line, gene: str) -> Bounds:
        curve = self._config.search[line.parameter]
        if curve.straight is not None:
            return curve.straight.first if gene == "first" else curve.straight.growth
        return curve.bounds

    def _lines_of(self, parameter: str, curve: Curve) -> list[_Line]:
        """The curves of a parameter.

        Raises:
            ConfigurationError: more knots than layers, so that some could never matter.
        """
        layers = layer_groups(self.anatomy.num_layers, 1, None)
        apart: tuple[Apart, ...] = ("embedding", "head")
        parts: dict[str, list[Spot]]
        counts: dict[str, int]
        if isinstance(curve.knots, dict):
            by_component = spots_of(self.anatomy, layers, by_component=True, apart=apart)
            parts = {
                name: [s for s in by_component if (_curve_of(s)) == name] for name in curve.knots
            }
            counts = dict(curve.knots.items())
        else:
            check_filters(curve.filters, self.anatomy, f"space.search.{parameter}.filters")
            filtered = spots_of(self.anatomy, layers, apart=apart, filters=curve.filters)
            parts = {part: [s for s in filtered if _filter_of(s) == part] for part in curve.filters}
            parts[""] = [s for s in filtered if not s.by_name]
            parts = {part: spots for part, spots in parts.items() if spots}
            counts = dict.fromkeys(parts, curve.knots or 2)
        lines = []
        for name, spots in parts.items():
            if not spots:
                continue  # a model without MLPs has no curve for them
            depths = np.array([self._depth(spot, curve) for spot in spots])
            genes: tuple[str, ...] = ("first", "growth")
            if curve.straight is not None:
                basis = np.stack([np.ones(len(depths)), depths], axis=1)
            else:
                genes = tuple(
                    ".".join(filter(None, (name, f"knot_{k}"))) for k in range(counts[name])
                )
                many = counts[name] > 4 * (self.anatomy.num_layers + 2)
                basis = np.zeros((0, 1)) if many else _between(depths, counts[name])
            if curve.filters and len(basis):  # a filter's tensors need not lie near every knot
                near = [bool(column.any()) for column in basis.T]
                genes = tuple(g for g, is_near in zip(genes, near, strict=True) if is_near)
                basis = basis[:, near]
            if np.linalg.matrix_rank(basis) < len(genes):
                what = f"{len(genes)} genes for a curve over {len(set(depths))} depths"
                where = ".".join(filter(None, ("space.search", parameter, name)))
                raise ConfigurationError(
                    Problem(where, what, "some could never matter: take fewer")
                )
            voices = self.experts if curve.per else ("",)
            lines.append(_Line(parameter, voices, genes, tuple(spots), basis))
        return lines

    def _depth(self, spot: Spot, curve: Curve) -> float:
        """How deep a spot lies, from 0 to 1."""
        if not spot.slots:
            return 0.0 if set(spot.outside) <= set(BEFORE) or curve.outside == "first" else 1.0
        return spot.slots[0] / max(1, self.anatomy.num_layers - 1)


def _filter_of(spot: Spot) -> str:
    """The filter that a spot's tensors fit; spots are named by place, then filter."""
    return spot.name.partition(".")[2] if spot.by_name else ""


def _curve_of(spot: Spot) -> str:
    return spot.component if spot.component in ("attention", "mlp") else "other"


def _within(knot: float, low: float, high: float) -> float:
    """A knot that was read off, which the codec rounds; what lies at an end of its range is there.

    Ends need not be such round numbers as all other knots are.
    """
    for end in (low, high):
        if abs(knot - end) < 1e-6:
            return end
    return float(knot)


def _named(line: _Line, voice: str, gene: str) -> str:
    return ".".join(filter(None, (line.parameter, voice, gene)))


def _between(depths: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """What each of `count` knots at equal distances adds to the values at these depths."""
    if count == 1:
        return np.ones((len(depths), 1))
    places = np.linspace(0.0, 1.0, count)
    return np.stack([np.interp(depths, places, row) for row in np.eye(count)], axis=1)
