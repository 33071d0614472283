"""What a search space file says of an operator's parameters, and what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.documents import Misfit, refuse
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.genes import Choice, Condition, Flag, Gene, Integer, Level, Real, Value
from evomerge.merging import OPERATORS, unknown
from evomerge.merging.check import check_merge
from evomerge.recipe import Merge
from evomerge.records import Parameter
from evomerge.search_spaces.codec import level_problem
from evomerge.search_spaces.shares import As, is_step
from evomerge.search_spaces.spots import Apart, first_fits
from evomerge.wording import in_brackets

Bounds = tuple[float, float]
FixedValue = float | bool | str
# Of the highest and the lowest logit: beyond, recipes' nine digits could not tell them apart.
FARTHEST = {"softmax": 200, "pair": 20}


class Varied(BaseModel):
    """The values that a searched parameter may have.

    levels: the numbers that it may have, instead of a range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    range: Bounds | None = None
    levels: tuple[float, ...] | None = None
    options: tuple[str, ...] | None = None
    scale: Literal["linear", "log"] = "linear"

    def range_misfits(self) -> Iterator[Misfit]:
        """What is wrong with the values by themselves."""
        if self.range is not None and self.range[0] >= self.range[1]:
            yield Misfit(("range",), f"expected low < high, got {in_brackets(self.range)}")
        if self.levels is not None:
            if self.range is not None:
                yield Misfit(("levels",), "expected one of range and levels")
            if problem := level_problem(self.levels):
                yield Misfit(("levels",), problem)
        if self.scale == "log" and self.levels is not None:
            yield Misfit(("scale",), "is of a range: levels are as they are")
        elif self.scale == "log" and (self.range is None or self.range[0] <= 0):
            yield Misfit(("scale",), "a log scale needs a range that begins above 0")

    def gene(self, name: str, parameter: Parameter, when: Condition | None = None) -> Gene:
        """The gene of a parameter that `parameter_misfits` has nothing against."""
        if parameter.kind == "flag":
            return Flag(name, when)
        if parameter.kind == "choice":
            return Choice(name, self.options or parameter.options, when)
        if self.levels is not None:
            return Level(name, self.levels, when)
        low, high = self.range or (0.0, 1.0)
        if parameter.kind == "integer":
            return Integer(name, int(low), int(high), when)
        return Real(name, low, high, log=self.scale == "log", when=when)


class Searched(Varied):
    """One searched parameter: along which axes it varies, and between which values.

    range: from where to where. levels: which numbers alone, as where each new value of what an
    operator prepares costs minutes. per: what has values of its own.
    layers_per_group, layer_groups: how fine, along the layers.
    apart: what else has values of its own; embedding and head, where layers or components have.
    values: how the experts' coefficients are bound together. gate: the magnitude below which an
    expert is off. scale: of the range. filters: parts of tensors' names: tensors whose name has one
    (of several, the first) have values of their own, beside those of the rest.
    """

    per: tuple[Literal["expert", "layer", "component"], ...] = ()
    layers_per_group: int | None = Field(default=None, ge=1)
    layer_groups: int | None = Field(default=None, ge=1)
    apart: tuple[Apart, ...] | None = None
    values: As = "raw"
    gate: float | None = Field(default=None, gt=0)
    filters: tuple[str, ...] = ()

    @property
    def by_layer(self) -> bool:
        """Whether layers have values of their own."""
        return "layer" in self.per

    @property
    def all_apart(self) -> tuple[Apart, ...]:
        """What is apart, also where the file is silent."""
        if self.apart is not None:
            return self.apart
        return ("embedding", "head") if {"layer", "component"} & set(self.per) else ()

    @model_validator(mode="after")
    def _sensible(self) -> Searched:
        refuse(self, self._misfits())
        return self

    def _misfits(self) -> Iterator[Misfit]:
        yield from self.range_misfits()
        if len(set(self.per)) < len(self.per):
            yield Misfit(("per",), f"says something twice: {', '.join(self.per)}")
        if self.layer_groups is not None and self.layers_per_group is not None:
            yield Misfit(("layer_groups",), "expected one of layers_per_group and layer_groups")
        if (self.layer_groups or self.layers_per_group) and not self.by_layer:
            key = "layer_groups" if self.layer_groups else "layers_per_group"
            yield Misfit((key,), "means nothing without `layer` in per")
        if "outside" in self.all_apart and {"embedding", "head"} & set(self.all_apart):
            yield Misfit(("apart",), "`outside` is embedding and head in one")
        if "component" in self.per and not (
            {"embedding", "head"} <= set(self.all_apart) or "outside" in self.all_apart
        ):
            what = "embedding and head are no component of a layer: leave them apart"
            yield Misfit(("apart",), what)
        yield from filter_misfits(self.filters)
        if self.values != "raw":
            yield from self._share_misfits()
        if self.levels is not None and (self.gate is not None or self.values != "raw"):
            yield Misfit(("levels",), "go with no gate, and with `values: raw` alone")
        if self.gate is not None:
            if self.range is not None and self.gate > max(map(abs, self.range)):
                yield Misfit(("gate",), "is beyond the range: every expert would be off")
            if "expert" not in self.per:
                yield Misfit(("gate",), "turns experts off one by one: add `expert` to per")

    def _share_misfits(self) -> Iterator[Misfit]:
        if "expert" not in self.per:
            yield Misfit(("values",), f"{self.values} is over experts: add `expert` to per")
        if self.scale == "log" or self.gate is not None:
            yield Misfit(("values",), f"{self.values} goes with no gate and no log scale")
        if self.values == "simplex" and self.range is not None:
            yield Misfit(("range",), "a simplex has none")
        if self.values in FARTHEST and self.range is not None:
            if not all(map(is_step, self.range)):
                yield Misfit(("range",), "logits go in steps of 0.0001")
            farthest, apart = FARTHEST[self.values], self.range[1] - self.range[0]
            if apart > farthest:
                what = f"logits that are {apart:g} apart leave the lower one nothing that counts"
                yield Misfit(("range",), what, f"at most {farthest}")


def filter_misfits(filters: tuple[str, ...]) -> Iterator[Misfit]:
    """What is wrong with filters by themselves."""
    for number, part in enumerate(filters):
        if part == "":
            what = "an empty one is in every name: the rest needs none"
            yield Misfit(("filters", number), what)
        if part in filters[:number]:
            yield Misfit(("filters", number), f"{part!r} stands twice")


def check_filters(filters: Sequence[str], anatomy: Anatomy, where: str) -> None:
    """Refuse filters that are in no tensor's name.

    Raises:
        ConfigurationError: naming them.
    """
    parts = {part for name in anatomy.places for part in name.split(".")}
    problems = [
        Problem(where, f"{part!r} is in no tensor's name (but in those of filters before it)", hint)
        for part, names in first_fits(anatomy.places, filters).items()
        if not names
        for hint in [nearest(part, parts)]
    ]
    if problems:
        raise ConfigurationError(problems)


def operator_misfits(
    operator: str, search: Mapping[str, Searched], fixed: Mapping[str, Any]
) -> Iterator[Misfit]:
    """Everything that an operator has against what a file searches and fixes."""
    if operator not in OPERATORS:
        yield Misfit(("operator",), *unknown(operator))
        return
    for name, searched in search.items():
        where = ("search", name)
        yield from parameter_misfits(operator, name, searched, where, shares=searched.values)
        yield from per_expert_misfits(operator, name, searched, where)
    yield from fixed_misfits(operator, fixed, search)


def parameter_misfits(
    operator: str, name: str, varied: Varied, where: tuple[str | int, ...], *, shares: As = "raw"
) -> Iterator[Misfit]:
    """What an operator has against a parameter's being searched like this."""
    declared = {parameter.name: parameter for parameter in OPERATORS[operator].parameters}
    if name not in declared:
        yield Misfit(where, f"{operator} has no such parameter", nearest(name, declared))
        return
    parameter = declared[name]
    if varied.scale == "log" and parameter.kind != "real":
        yield Misfit((*where, "scale"), f"is a {parameter.kind}, so has no log scale")
    if parameter.kind in ("flag", "choice"):
        if varied.range is not None:
            yield Misfit(where, f"is a {parameter.kind}, so has no range")
        if varied.levels is not None:
            yield Misfit(where, f"is a {parameter.kind}, so has no levels")
        yield from _option_misfits(parameter, varied, where)
        return
    if varied.options is not None:
        yield Misfit((*where, "options"), "is a number: give its range, or `levels`")
    bounds = (
        -math.inf if parameter.low is None else parameter.low,
        math.inf if parameter.high is None else parameter.high,
    )
    if varied.levels is not None:
        yield from _level_misfits(parameter, varied.levels, bounds, (*where, "levels"))
        return
    if varied.range is None:
        if shares != "simplex":
            yield Misfit((*where, "range"), "is needed: [low, high] (or give `levels`)")
        yield from _share_bounds(shares, 0.0, bounds, where)
        return
    low, high = varied.range
    if parameter.kind == "integer" and (low != int(low) or high != int(high)):
        yield Misfit(
            (*where, "range"), f"{name} is a whole number, got {in_brackets(varied.range)}"
        )
    if shares == "raw" and (low < bounds[0] or high > bounds[1]):
        what = f"{in_brackets(varied.range)} leaves the operator's {in_brackets(bounds)}"
        yield Misfit((*where, "range"), what)
    yield from _share_bounds(shares, low, bounds, where)


def _level_misfits(
    parameter: Parameter, levels: Sequence[float], bounds: Bounds, where: tuple[str | int, ...]
) -> Iterator[Misfit]:
    """Levels that the operator does not take."""
    for number, level in enumerate(levels):
        if parameter.kind == "integer" and level != int(level):
            what = f"{parameter.name} is a whole number, got {level:g}"
            yield Misfit((*where, number), what)
        elif not bounds[0] <= level <= bounds[1]:
            what = f"{level:g} leaves the operator's {in_brackets(bounds)}"
            yield Misfit((*where, number), what)


def _share_bounds(
    shares: As, low: float, bounds: Bounds, where: tuple[str | int, ...]
) -> Iterator[Misfit]:
    """Shares that the operator does not take: they go from 0 to 1, with a sign where genes have."""
    lowest = -1.0 if shares == "normalised" and low < 0 else 0.0
    if shares != "raw" and (lowest < bounds[0] or bounds[1] < 1):
        what = f"shares from {lowest:g} to 1 leave the operator's [{bounds[0]:g}, {bounds[1]:g}]"
        yield Misfit((*where, "values"), what)


def _option_misfits(
    parameter: Parameter, varied: Varied, where: tuple[str | int, ...]
) -> Iterator[Misfit]:
    if varied.options is None:
        return
    if parameter.kind == "flag":
        yield Misfit((*where, "options"), "is true or false, so has no options")
        return
    for option in varied.options:
        if option not in parameter.options:
            hint = nearest(option, parameter.options)
            yield Misfit((*where, "options"), f"{parameter.name} is never {option!r}", hint)
    if len(set(varied.options)) < max(2, len(varied.options)):
        yield Misfit((*where, "options"), "expected two or more different ones")


def per_expert_misfits(
    operator: str, name: str, searched: Searched, where: tuple[str | int, ...]
) -> Iterator[Misfit]:
    """What an operator has against a parameter's having a value for each expert."""
    declared = {parameter.name: parameter for parameter in OPERATORS[operator].parameters}
    if name not in declared or "expert" not in searched.per:
        return
    if searched.gate is not None and name != "weight":
        yield Misfit((*where, "gate"), f"turns experts off by their weight, and this is {name}")
    if searched.values == "pair":
        if not declared[name].per_source or OPERATORS[operator].max_sources != 2:
            what = f"a pair is for weights of operators of two models, which {operator} is not"
            yield Misfit((*where, "values"), what)
    elif not declared[name].per_source:
        what = "it is one value for all experts: remove `expert`"
        yield Misfit((*where, "per"), what)


def fixed_misfits(
    operator: str, fixed: Mapping[str, Any], searched: Mapping[str, Any]
) -> Iterator[Misfit]:
    """What is wrong with fixed values; keys with a dot name genes, which come later."""
    whole = {key: value for key, value in fixed.items() if "." not in key}
    for name in whole.keys() & searched.keys():
        yield Misfit(("fixed", name), "is searched already")
    for name in fixed.keys() - whole.keys():
        parameter = name.split(".")[0]
        if parameter not in searched:
            what = f"{parameter} is not searched, so has no genes that can be fixed"
            yield Misfit(("fixed", name), what, nearest(parameter, searched))
    merge = Merge(operator=operator, sources=("a",), parameters=whole)
    for problem in check_merge(merge, "base"):
        if problem.where.startswith("parameters."):
            key = problem.where.removeprefix("parameters.")
            yield Misfit(("fixed", key), problem.what, problem.hint)


def as_said(value: Value) -> Value:
    """A gene's value as recipes have it, where whole numbers are floats as well."""
    return float(value) if type(value) is int else value


def matching(names: list[str], pattern: str) -> list[str]:
    """The names that a pattern with * fits."""
    return [name for name in names if fnmatchcase(name, pattern)]
