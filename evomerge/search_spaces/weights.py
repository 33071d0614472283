"""Operator parameters as genes: shared, or apart per expert, per group of layers, per component."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.documents import Misfit, refuse
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.merging import OPERATORS
from evomerge.merging.check import check_merge, resolved_parameters
from evomerge.recipe import Merge, Recipe, Slot
from evomerge.records import Genome, Real

# Six decimals are far below what changes an answer; they keep recipes readable, and make
# decode(encode(recipe)) == recipe exact in spite of rounding.
DECIMALS = 6


class Searched(BaseModel):
    """One searched parameter: along which axes it varies, and its range."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    per: tuple[Literal["expert", "layer", "component"], ...] = ()
    range: tuple[float, float]

    @model_validator(mode="after")
    def _sensible(self) -> Searched:
        misfits = []
        if self.range[0] >= self.range[1]:
            what = f"expected low < high, got {list(self.range)}"
            misfits.append(Misfit(("range",), what))
        if "component" in self.per and "layer" not in self.per:
            misfits.append(Misfit(("per",), "component needs layer beside it"))
        refuse(self, misfits)
        return self


class WeightsConfig(BaseModel):
    """A search space file of kind `weights`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["weights"]
    operator: str
    search: dict[str, Searched] = Field(min_length=1)
    fixed: dict[str, float | bool | str] = Field(default_factory=dict)
    layers_per_group: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _known(self) -> WeightsConfig:
        refuse(self, self._misfits())
        return self

    def _misfits(self) -> Iterator[Misfit]:
        if self.operator not in OPERATORS:
            hint = nearest(self.operator, OPERATORS)
            yield Misfit(("operator",), f"unknown operator {self.operator!r}", hint)
            return
        declared = {parameter.name: parameter for parameter in OPERATORS[self.operator].parameters}
        for name, searched in self.search.items():
            where = ("search", name)
            if name not in declared:
                what = f"{self.operator} has no such parameter"
                yield Misfit(where, what, nearest(name, declared))
                continue
            parameter = declared[name]
            if parameter.kind != "real" or parameter.low is None or parameter.high is None:
                yield Misfit(where, "is not a real number in a range, so cannot be searched")
                continue
            low, high = searched.range
            if low < parameter.low or high > parameter.high:
                what = (
                    f"{list(searched.range)} leaves the operator's "
                    f"[{parameter.low:g}, {parameter.high:g}]"
                )
                yield Misfit((*where, "range"), what)
            if "expert" in searched.per and not parameter.per_source:
                what = "it is one value for all experts: remove `expert`"
                yield Misfit((*where, "per"), what)
        for name in self.fixed.keys() & self.search.keys():
            yield Misfit(("fixed", name), "is searched already")
        merge = Merge(operator=self.operator, sources=("a",), parameters=dict(self.fixed))
        for problem in check_merge(merge, "base"):
            if problem.where.startswith("parameters."):
                key = problem.where.removeprefix("parameters.")
                yield Misfit(("fixed", key), problem.what, problem.hint)


@dataclass(frozen=True)
class Spot:
    """Where in a recipe a value stands: slots, or outside groups, or the recipe's default."""

    slots: tuple[int, ...] = ()
    component: str = "default"
    outside: tuple[str, ...] = ()

    def covers(self, layer: int | None, component: str) -> bool:
        """Whether the value is in force at a place of the model."""
        if not self.slots and not self.outside:
            return True
        if layer is None:
            return component in self.outside
        return layer in self.slots and self.component in ("default", component)


@dataclass(frozen=True)
class Locus:
    """What one gene sets: a parameter, of one source or of all, at one spot."""

    gene: Real
    parameter: str
    source: str | None
    spot: Spot


class Weights:
    """Coefficients of one operator, from one for everything to one per expert, layer and component.

    The embedding (with what else stands before the layers) and the head (with the final norm) have
    genes of their own where a parameter varies by layer.
    """

    def __init__(self, config: WeightsConfig, template: Recipe, anatomy: Anatomy) -> None:
        self._config = config
        self._template = template
        self._anatomy = anatomy
        self._experts = tuple(name for name in template.models if name != template.base)
        self._present = {(place.layer, place.component) for place in anatomy.places.values()}
        self._loci = tuple(
            locus
            for parameter, searched in config.search.items()
            for locus in self._loci_of(parameter, searched)
        )
        self.genes: tuple[Real, ...] = tuple(locus.gene for locus in self._loci)

    def decode(self, genome: Genome) -> Recipe:
        """The recipe whose parameters stand where the genome points in their ranges."""
        default: dict[str, Any] = dict(self._config.fixed)
        slots: dict[tuple[int, str], dict[str, Any]] = {}
        outside: dict[str, dict[str, Any]] = {}
        for locus, coordinate in zip(self._loci, genome, strict=True):
            gene = locus.gene
            value = round(gene.low + (gene.high - gene.low) * float(coordinate), DECIMALS)
            value = min(max(value, gene.low), gene.high) + 0.0  # never -0.0, which reads otherwise
            places = [
                *(slots.setdefault((s, locus.spot.component), {}) for s in locus.spot.slots),
                *(outside.setdefault(group, {}) for group in locus.spot.outside),
            ]
            for place in places or [default]:
                if locus.source is None:
                    place[locus.parameter] = value
                else:
                    place.setdefault(locus.parameter, {})[locus.source] = value
        return Recipe(
            **{
                **dict(self._template),
                "default": Merge(operator=self._config.operator, parameters=default),
                "outside": {group: Merge(parameters=p) for group, p in outside.items()},
                "slots": self._slots(slots),
            }
        )

    def encode(self, recipe: Recipe) -> Genome:
        """The genome of a recipe that says the same as one of this space.

        Raises:
            ValueError: another operator, a value out of range, or a difference that no gene makes.
        """
        self._check_template(recipe)
        values = {place: self._values(recipe, *place) for place in sorted(self._present, key=str)}
        genome = []
        for locus in self._loci:
            gene = locus.gene
            found = {
                self._of_source(at_place[locus.parameter], locus.source)
                for place, at_place in values.items()
                if locus.spot.covers(*place)
            }
            if len(found) > 1:
                raise ValueError(f"{gene.name}: one gene, but the recipe has {sorted(found)}")
            value = found.pop()
            if not gene.low <= value <= gene.high:
                raise ValueError(f"{gene.name}: {value} is outside [{gene.low}, {gene.high}]")
            genome.append((value - gene.low) / (gene.high - gene.low))
        same = self.decode(genome)
        for place, at_place in values.items():
            for name, value in self._values(same, *place).items():
                if not _alike(value, at_place[name]):
                    raise ValueError(
                        f"{name}: the recipe has {at_place[name]} where this space has {value}"
                    )
        return genome

    def violations(self, genome: Genome) -> list[str]:
        """None for points of the unit cube; otherwise what is wrong with the genome."""
        if not isinstance(genome, list) or len(genome) != len(self.genes):
            return [f"expected a list of {len(self.genes)} numbers"]
        return [
            f"{gene.name}: {coordinate} is outside [0, 1]"
            for gene, coordinate in zip(self.genes, genome, strict=True)
            if not 0.0 <= coordinate <= 1.0
        ]

    # --- how the genes lie over the model ---------------------------------------------------------

    @property
    def _layers(self) -> range:
        return range(self._anatomy.num_layers)

    def _loci_of(self, parameter: str, searched: Searched) -> list[Locus]:
        sources = self._experts if "expert" in searched.per else (None,)
        spots = self._spots(searched)
        return [
            Locus(
                Real(".".join(filter(None, (parameter, source, name))), *searched.range),
                parameter,
                source,
                spot,
            )
            for source in sources
            for name, spot in spots.items()
        ]

    def _spots(self, searched: Searched) -> dict[str, Spot]:
        if "layer" not in searched.per:
            return {"": Spot()}
        before = tuple(g for g in ("embedding", "other") if (None, g) in self._present)
        after = tuple(g for g in ("norm", "head") if (None, g) in self._present)
        spots = {"embedding": Spot(outside=before)} if before else {}
        size = self._config.layers_per_group
        for first in range(0, self._anatomy.num_layers, size):
            group = tuple(self._layers)[first : first + size]
            name = f"layer_{first}" if len(group) == 1 else f"layers_{first}_{group[-1]}"
            components = ("attention", "mlp", "norm", "other")
            if "component" not in searched.per:
                with_tensors = {layer for layer, _ in self._present}
                if slots := tuple(s for s in group if s in with_tensors):
                    spots[name] = Spot(slots)
                continue
            for component in components:  # layers need not be alike: a gene for what is there
                if slots := tuple(s for s in group if (s, component) in self._present):
                    spots[f"{name}.{component}"] = Spot(slots, component)
        if after:
            spots["head"] = Spot(outside=after)
        return spots

    def _slots(self, values: dict[tuple[int, str], dict[str, Any]]) -> tuple[Slot, ...] | None:
        if not values:
            return None
        merges: dict[int, dict[str, Merge]] = {layer: {} for layer in self._layers}
        for (slot, component), parameters in values.items():
            merges[slot][component] = Merge(parameters=parameters)
        return tuple(
            Slot.model_validate({"layer": layer, "merges": merge})
            for layer, merge in merges.items()
        )

    def _check_template(self, recipe: Recipe) -> None:
        """What no gene of any space changes must be as in all recipes of this one."""
        if recipe.tensors or not recipe.keeps_layers(len(self._layers)):
            raise ValueError("the recipe rearranges layers, or names tensors: this space cannot")
        for name in ("base", "dtype", "tokenizer", "mask_seed"):
            mine, theirs = getattr(self._template, name), getattr(recipe, name)
            if mine != theirs:
                raise ValueError(f"{name}: the recipe has {theirs!r} where this space has {mine!r}")

    def _values(self, recipe: Recipe, layer: int | None, component: str) -> dict[str, Any]:
        """Every parameter that is in force at a place, with the operator's defaults."""
        merge = recipe.merge_for(layer, component)
        if merge.operator != self._config.operator:
            raise ValueError(f"expected operator {self._config.operator}, got {merge.operator}")
        if problems := check_merge(merge, recipe.base):
            raise ValueError("; ".join(map(str, problems)))
        sources = merge.sources or ()
        if sorted(sources) != sorted(self._experts):
            raise ValueError(f"the recipe merges {sources} where this space has {self._experts}")
        values: dict[str, Any] = dict(resolved_parameters(merge))
        return {
            name: dict(zip(sources, value, strict=True)) if isinstance(value, tuple) else value
            for name, value in values.items()
        }

    def _of_source(self, value: Any, source: str | None) -> float:
        """One source's value, or the one that all sources have."""
        if not isinstance(value, dict):
            return float(value)
        if source is not None:
            return float(value[source])
        if len(set(value.values())) > 1:
            raise ValueError(f"one gene for all experts, but the recipe has {value}")
        return float(next(iter(value.values())))


def _alike(one: Any, other: Any) -> bool:
    """Equal, as far as the decimals of recipes go."""
    if isinstance(one, dict):
        return all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=0, abs_tol=10**-DECIMALS)
    return bool(one == other)


def check_experts(config: WeightsConfig, experts: tuple[str, ...]) -> None:
    """Refuse a family of models that the space's operator cannot merge.

    Raises:
        ConfigurationError: too few or too many experts.
    """
    operator = OPERATORS[config.operator]
    low, high = operator.min_sources, operator.max_sources
    if len(experts) < low or (high is not None and len(experts) > high):
        wanted = f"{low}" if low == high else f"{low} to {high}" if high else f"at least {low}"
        raise ConfigurationError(
            Problem("experts", f"{config.operator} merges {wanted}, got {len(experts)}")
        )
