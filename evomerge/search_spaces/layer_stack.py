"""Layers of several models in one stack: left out, repeated, each with a scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.documents import Misfit, refuse
from evomerge.errors import ConfigurationError, Problem
from evomerge.genes import Gene, Real, Value
from evomerge.recipe import Merge, Recipe, Slot
from evomerge.search_spaces.amounts import MOST, Amount, amount_misfits, counted
from evomerge.search_spaces.config import SpaceConfig
from evomerge.search_spaces.cube import CubeSpace
from evomerge.search_spaces.outside import BASE, outside_problems
from evomerge.search_spaces.searched import Bounds
from evomerge.wording import in_brackets

# 17! orders are as many as coordinates between 0 and 1 can tell apart.
MOST_ORDERED = 16
SCALED = {"input": "input_scale", "branches": "branch_scale"}


class Scales(BaseModel):
    """A factor for each layer of the stack.

    of: its `input`, or what its `branches` add to the stream (which folds into weights exactly).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    range: Bounds
    of: Literal["input", "branches"] = "input"

    @model_validator(mode="after")
    def _sensible(self) -> Scales:
        if not 0 < self.range[0] < self.range[1]:
            what = f"expected 0 < low < high, got {in_brackets(self.range)}"
            refuse(self, [Misfit(("range",), what)])
        return self


class LayerStackConfig(SpaceConfig):
    """A search space file of kind `layer_stack`.

    arrange: `in_a_row`, all layers of all models one model after another, `repeats` times; or
    `by_position`, where each place of the stack takes any of the models' layers there, in any
    order, and the base's where it takes none (or nothing, without `keep_base`).
    models: the `experts`, or `all` with the base first. layers: the fewest and the most, as numbers
    or as multiples of the base's.
    """

    kind: Literal["layer_stack"]
    arrange: Literal["in_a_row", "by_position"] = "in_a_row"
    models: Literal["experts", "all"] = "experts"
    repeats: int = Field(default=1, ge=1, le=int(MOST))
    scales: Scales | None = None
    layers: tuple[Amount, Amount] = (0.5, 2.0)
    keep_base: bool = True
    outside: str = BASE

    @model_validator(mode="after")
    def _known(self) -> LayerStackConfig:
        refuse(self, self._misfits())
        return self

    def _misfits(self) -> Iterator[Misfit]:
        for place, amount in enumerate(self.layers):
            yield from amount_misfits(amount, ("layers", place), most=MOST)
        if self.arrange == "in_a_row" and not self.keep_base:
            yield Misfit(("keep_base",), "goes with `arrange: by_position`")
        if self.arrange == "by_position" and self.repeats > 1:
            yield Misfit(("repeats",), "goes with `arrange: in_a_row`")

    def check_experts(self, experts: Sequence[str]) -> list[Problem]:
        """Names that are nobody's, or a gene's; and more models than can be put in order."""
        problems = outside_problems(self.outside, experts)
        if self.arrange == "in_a_row":
            return problems
        for name in ("order", "scale"):
            if name in experts:
                what = "a gene of every place is called so: call the expert otherwise"
                problems.append(Problem(f"experts.{name}", what))
        count = len(experts) + (self.models == "all")
        if count > MOST_ORDERED:
            what = f"{count} models in every place are more than can be put in order"
            problems.append(Problem("space.arrange", what, f"{MOST_ORDERED} at most"))
        return problems


class LayerStack(CubeSpace):
    """What both arrangements share: the models, the depth, the scales."""

    def __init__(self, config: LayerStackConfig, template: Recipe, anatomy: Anatomy) -> None:
        super().__init__(template, anatomy)
        self._config = config
        self._models = (template.base, *self.experts) if config.models == "all" else self.experts
        least, most = (counted(amount, anatomy.num_layers) for amount in config.layers)
        self._depth = max(1, least), most
        if self._depth[0] > most:
            what = f"expected low <= high, got {self._depth[0]} to {most}"
            raise ConfigurationError(Problem("space.layers", what))
        if self._config.scales is not None and self._scale_of == "branches":
            anatomy.branch_outputs  # noqa: B018 (it says by name which models have none)
        self._alone: dict[str, dict[Any, Merge]] = {
            name: {"default": Merge.of_valid(sources=(name,))} for name in self._models
        }
        self._alone[template.base] = {}

    def _slot(self, model: str, layer: int, scale: Value | None) -> Slot:
        scaled: dict[str, Any] = {} if scale is None else {SCALED[self._scale_of]: scale}
        merges = self._alone[model]
        return Slot.of_valid(layer=layer, layers={}, merges=merges, **scaled)

    @property
    def _scale_of(self) -> str:
        return "input" if self._config.scales is None else self._config.scales.of

    def _scale_gene(self, name: str, when: Any) -> list[Gene]:
        scales = self._config.scales
        return [] if scales is None else [Real(name, *scales.range, when=when)]

    def _stack(self, slots: list[Slot]) -> Recipe:
        return self.of_layers(slots, self._config.outside)

    def _model_of(self, slot: Slot) -> str:
        """Whose layer a slot holds.

        Raises:
            ValueError: it is a merge.
        """
        for name, merges in self._alone.items():
            if slot.merges == merges:
                return name
        if not slot.merges:
            return self.template.base
        raise ValueError("a slot of the recipe is no model's own layer")

    def _scale_in(self, slot: Slot) -> float:
        scale: float = getattr(slot, SCALED[self._scale_of])
        return scale
