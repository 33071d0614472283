"""Which layers and components take part in a merge at all; elsewhere the base stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.documents import Misfit, refuse
from evomerge.errors import ConfigurationError, Problem
from evomerge.genes import Count, Flag, Gene, Value
from evomerge.merging import OPERATORS
from evomerge.recipe import Merge, OperatorName, Recipe, Slot
from evomerge.records import Genome
from evomerge.search_spaces.amounts import Amount, amount_misfits, counted
from evomerge.search_spaces.codec import Codec
from evomerge.search_spaces.config import SpaceConfig, count_problems
from evomerge.search_spaces.cube import CubeSpace, base_alone
from evomerge.search_spaces.designs import plain_merges
from evomerge.search_spaces.searched import FixedValue, Searched, operator_misfits
from evomerge.search_spaces.spots import layer_groups, spots_of
from evomerge.search_spaces.weights import Weights, WeightsConfig


class Mask(BaseModel):
    """What is switched on and off.

    per: the axes along which switches differ; layers always. least, most: how many switches are on
    (for each expert, where experts have their own): a number, or a share of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    per: tuple[Literal["expert", "layer", "component"], ...] = ("layer",)
    layers_per_group: int | None = Field(default=None, ge=1)
    layer_groups: int | None = Field(default=None, ge=1)
    least: Amount = 1
    most: Amount = 1.0

    @model_validator(mode="after")
    def _sensible(self) -> Mask:
        misfits = []
        if "layer" not in self.per:
            misfits.append(Misfit(("per",), "switches lie along the layers: add `layer`"))
        if self.layer_groups is not None and self.layers_per_group is not None:
            what = "expected one of layers_per_group and layer_groups"
            misfits.append(Misfit(("layer_groups",), what))
        refuse(self, misfits)
        return self


class MasksConfig(SpaceConfig):
    """A search space file of kind `masks`.

    outside: whether embedding, head and final norm are `merged`, or the `base`'s.
    """

    kind: Literal["masks"]
    operator: OperatorName
    search: dict[str, Searched] = Field(default_factory=dict)
    fixed: dict[str, FixedValue] = Field(default_factory=dict)
    mask: Mask = Mask()
    outside: Literal["merged", "base"] = "merged"

    @model_validator(mode="after")
    def _known(self) -> MasksConfig:
        refuse(self, self._misfits())
        return self

    def _misfits(self) -> Iterator[Misfit]:
        yield from operator_misfits(self.operator, self.search, self.fixed)
        for name, searched in self.search.items():
            if searched.filters:
                what = "switches are for components, not for single tensors"
                yield Misfit(("search", name, "filters"), what)
        for key in ("least", "most"):
            yield from amount_misfits(getattr(self.mask, key), ("mask", key), most=1.0)
        if self.operator in OPERATORS and "expert" in self.mask.per:
            weight = [p for p in OPERATORS[self.operator].parameters if p.name == "weight"]
            if not weight or not weight[0].per_source:
                what = f"{self.operator} has no weight for each expert that could be 0"
                yield Misfit(("mask", "per"), what)
        for name, searched in self.search.items():
            if {"layer", "component"} & set(searched.per):
                yield Misfit(("search", name, "per"), "a mask goes with values for the whole model")
            if searched.gate is not None or searched.all_apart:
                yield Misfit(("search", name), "a mask goes with neither gate nor apart")

    def weights(self) -> WeightsConfig | None:
        """The merge where it is not masked; None where nothing of it is searched."""
        if not self.search:
            return None
        data = self.model_dump(include={"operator", "search", "fixed"}, exclude_defaults=True)
        return WeightsConfig.model_validate({"kind": "weights", **data})

    def check_experts(self, experts: Sequence[str]) -> list[Problem]:
        """Too few or too many."""
        inner = self.weights()
        if inner is None:
            return count_problems(self.operator, experts)
        return inner.check_experts(experts)


class Masks(CubeSpace):
    """A merge with switches: where one is off, the base stays, or one expert is left out.

    As in LwPTV (Zhang et al. 2025, arXiv:2506.09093), which finds the switches by a saliency score.
    """

    def __init__(self, config: MasksConfig, template: Recipe, anatomy: Anatomy) -> None:
        super().__init__(template, anatomy)
        self._config = config
        inner = config.weights()
        self._inner = None if inner is None else Weights(inner, template, anatomy)
        mask = config.mask
        groups = layer_groups(anatomy.num_layers, mask.layers_per_group, mask.layer_groups)
        by_component = "component" in mask.per
        # What is outside has no switch: it goes apart, and is left out.
        spots = spots_of(anatomy, groups, by_component=by_component, apart=("embedding", "head"))
        self._spots = [spot for spot in spots if spot.slots]
        self._per_expert = "expert" in mask.per
        self._voices: tuple[str, ...] = self.experts if self._per_expert else ("",)
        self._switches = {
            voice: tuple(".".join(filter(None, ("mask", voice, s.name))) for s in self._spots)
            for voice in self._voices
        }
        total = len(self._spots)
        least, most = max(1, counted(mask.least, total)), min(total, counted(mask.most, total))
        if not least <= most or least == total:
            what = f"{least} to {most} of {total} switches leave nothing to choose"
            raise ConfigurationError(Problem("space.mask", what))
        self._most = most
        flags: list[Gene] = [Flag(n) for names in self._switches.values() for n in names]
        self._num_flags = len(flags)
        constraints = [Count(names, least, most) for names in self._switches.values()]
        self.codec = Codec([*flags, *(self._inner.genes if self._inner else ())], constraints)

    def decode(self, genome: Genome) -> Recipe:
        """The merge, with the base where it is switched off."""
        values = self.codec.values(genome)
        merge = self._merge(genome)
        slots: list[dict[Any, Merge]] = [{} for _ in range(self.anatomy.num_layers)]
        width = len(self._spots)
        for i, spot in enumerate(self._spots):
            on = [bool(values[v * width + i]) for v in range(len(self._voices))]
            if (said := self._said(merge, on)) is not None:
                for slot in spot.slots:
                    slots[slot][spot.component] = said
        outside = {}
        if self._config.outside == "base":
            there = {p.component for p in self.anatomy.places.values() if p.layer is None}
            outside = dict.fromkeys(sorted(there), base_alone(self.template.base))
        made = tuple(
            Slot.of_valid(layer=layer, layers={}, merges=merges)
            for layer, merges in enumerate(slots)
        )
        return self.recipe(merge, outside=outside, slots=made)

    def encode(self, recipe: Recipe) -> Genome:
        """The genome of a recipe with such switches.

        Raises:
            ValueError: no genome says it.
        """
        self.check_template(recipe)
        if recipe.slots is None or not recipe.keeps_layers(self.anatomy.num_layers):
            raise ValueError("the recipe has no slots, or rearranges layers")
        flags: dict[str, Value] = {}
        # Of an expert without weight, so many are on as may be.
        weightless = [v for v in self._voices if v and not self._weight(recipe.default).get(v)]
        for i, spot in enumerate(self._spots):
            merge = recipe.slots[spot.slots[0]].merges.get(spot.component)  # type: ignore[call-overload]
            weight = {} if merge is None else merge.parameters.get("weight")
            for voice in self._voices:
                lost = isinstance(weight, dict) and weight.get(voice) == 0.0
                is_off = merge is not None and (merge.operator is not None or lost)
                on = i < self._most if voice in weightless else not is_off
                flags[self._switches[voice][i]] = on
        genome = self.codec.genome(flags)
        if self._inner is not None:
            whole = Recipe.of_valid(**{**dict(recipe), "slots": None, "outside": {}, "tensors": {}})
            genome[self._num_flags :] = self._inner.encode(whole)
        if self.decode(genome) != recipe:
            raise ValueError("the recipe says something that no gene of this space says")
        return genome

    def designs(self) -> list[Genome]:
        """Each expert alone and the uniform merge with all switches on, as far as they may be."""
        if self._inner is None:
            return []
        return [
            [1.0] * self._num_flags + design
            for design in plain_merges(self._inner, self._config.operator, self._config.fixed)
        ]

    def _merge(self, genome: Genome) -> Merge:
        if self._inner is None:
            return Merge.of_valid(
                operator=self._config.operator, parameters=dict(self._config.fixed)
            )
        return self._inner.decode(genome[self._num_flags :]).default

    def _weight(self, merge: Merge) -> dict[str, float]:
        """Each expert's weight where nothing is switched off."""
        weight = merge.parameters.get("weight")
        if isinstance(weight, dict):
            return {name: float(value) for name, value in weight.items()}
        default = OPERATORS[self._config.operator].parameter("weight").default
        return dict.fromkeys(self.experts, float(default if weight is None else weight))

    def _said(self, merge: Merge, on: Sequence[bool]) -> Merge | None:
        """What a slot has to say where some are switched off; None: nothing else than the rest.

        An expert without weight is neither on nor off.
        """
        if all(on):
            return None
        if not self._per_expert:
            return base_alone(self.template.base)
        weight = self._weight(merge)
        kept = {
            name: value if is_on else 0.0
            for (name, value), is_on in zip(weight.items(), on, strict=True)
        }
        if kept == weight:
            return None
        if not any(kept.values()):
            return base_alone(self.template.base)
        return Merge.of_valid(parameters={"weight": kept})
