"""Operator parameters as genes: shared, or apart per expert, per group of layers, per component."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.merging import OPERATORS
from evomerge.recipe import Merge, Recipe, Slot
from evomerge.records import Genome, Real

# Six decimals are far below what changes an answer; they keep recipes readable, and make
# decode(encode(recipe)) == recipe exact in spite of rounding.
DECIMALS = 6


class Searched(BaseModel):
    """One searched parameter: along which axes it varies, and its range."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per: tuple[Literal["expert", "layer", "component"], ...] = ()
    range: tuple[float, float]

    @model_validator(mode="after")
    def _sensible(self) -> Searched:
        if self.range[0] >= self.range[1]:
            raise ValueError(f"range: expected low < high, got {list(self.range)}")
        if "component" in self.per and "layer" not in self.per:
            raise ValueError("per: component needs layer beside it")
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
        if self.operator not in OPERATORS:
            hint = nearest(self.operator, OPERATORS)
            raise ValueError(f"unknown operator {self.operator!r} ({hint})")
        declared = {parameter.name: parameter for parameter in OPERATORS[self.operator].parameters}
        for name in (*self.search, *self.fixed):
            if name not in declared:
                hint = nearest(name, declared)
                raise ValueError(f"{self.operator} has no parameter {name!r} ({hint})")
        for name, searched in self.search.items():
            parameter = declared[name]
            if parameter.kind != "real" or parameter.low is None or parameter.high is None:
                raise ValueError(f"{name} is not a real number in a range, so cannot be searched")
            low, high = searched.range
            if low < parameter.low or high > parameter.high:
                raise ValueError(
                    f"{name}: the range {list(searched.range)} leaves the operator's "
                    f"[{parameter.low}, {parameter.high}]"
                )
            if "expert" in searched.per and not parameter.per_source:
                raise ValueError(f"{name} is one value for all experts: remove `expert` from `per`")
        return self


@dataclass(frozen=True)
class Spot:
    """Where in a recipe a value stands: slots, or outside groups, or the recipe's default."""

    slots: tuple[int, ...] = ()
    component: str = "default"
    outside: tuple[str, ...] = ()

    @property
    def probes(self) -> list[tuple[int | None, str]]:
        """(slot, component) pairs at which the recipe must agree about the value."""
        return [(slot, self.component) for slot in self.slots] + [(None, g) for g in self.outside]


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
        if recipe.slots is not None and [s.layer for s in recipe.slots] != list(self._layers):
            raise ValueError("the recipe rearranges layers, which this space cannot")
        genome = []
        for locus in self._loci:
            values = {self._value(recipe, locus, *probe) for probe in self._probes(locus.spot)}
            if len(values) > 1:
                raise ValueError(f"{locus.gene.name}: one gene, but the recipe has {values}")
            value, gene = values.pop(), locus.gene
            if not gene.low <= value <= gene.high:
                raise ValueError(f"{gene.name}: {value} is outside [{gene.low}, {gene.high}]")
            genome.append((value - gene.low) / (gene.high - gene.low))
        self._check_fixed(recipe)
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
        present = {
            (place.layer is None, place.component) for place in self._anatomy.places.values()
        }
        before = tuple(g for g in ("embedding", "other") if (True, g) in present)
        after = tuple(g for g in ("norm", "head") if (True, g) in present)
        spots = {"embedding": Spot(outside=before)} if before else {}
        size = self._config.layers_per_group
        for first in range(0, self._anatomy.num_layers, size):
            slots = tuple(self._layers)[first : first + size]
            name = f"layer_{first}" if len(slots) == 1 else f"layers_{first}_{slots[-1]}"
            if "component" in searched.per:
                for component in ("attention", "mlp", "norm", "other"):
                    if (False, component) in present:
                        spots[f"{name}.{component}"] = Spot(slots, component)
            else:
                spots[name] = Spot(slots)
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

    def _probes(self, spot: Spot) -> list[tuple[int | None, str]]:
        """Everywhere that a spot's value is in force."""
        if spot.probes:
            return spot.probes
        return [(None, "other"), *((layer, "default") for layer in self._layers)]

    def _value(self, recipe: Recipe, locus: Locus, slot: int | None, component: str) -> float:
        merge = recipe.merge_for(slot, component)
        if merge.operator != self._config.operator:
            raise ValueError(f"expected operator {self._config.operator}, got {merge.operator}")
        value: Any = merge.parameters.get(locus.parameter)
        if isinstance(value, dict) and locus.source is not None:
            value = value.get(locus.source)
        if not isinstance(value, int | float):
            raise ValueError(
                f"{locus.gene.name}: the recipe has {value!r} where a number is needed"
            )
        return float(value)

    def _check_fixed(self, recipe: Recipe) -> None:
        for probe in self._probes(Spot()):
            parameters = recipe.merge_for(*probe).parameters
            for name, value in self._config.fixed.items():
                if parameters.get(name) != value:
                    raise ValueError(f"{name}: fixed to {value}, got {parameters.get(name)}")


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
