"""Bottom and top layers from one expert, the middle from another, averaged where they meet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import model_validator

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.documents import Misfit, refuse
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.genes import Gene, Integer
from evomerge.recipe import Merge, Recipe, Slot
from evomerge.records import Genome
from evomerge.search_spaces.amounts import Amount, amount_misfits, counted
from evomerge.search_spaces.codec import Codec
from evomerge.search_spaces.config import SpaceConfig
from evomerge.search_spaces.cube import CubeSpace
from evomerge.search_spaces.outside import outside_problems

CUTS = ("bottom", "top", "transition")


class LayerSwapConfig(SpaceConfig):
    """A search space file of kind `layer_swap`.

    bottom, top: the fewest and the most layers (or shares of them) from the outer expert at either
    end. transition: of how many layers of the inner expert at each border the mean of both is
    taken. outer, inner: the experts; the first and the second by default. outside: where embedding,
    final norm and head are from.
    """

    kind: Literal["layer_swap"]
    bottom: tuple[Amount, Amount]
    top: tuple[Amount, Amount]
    transition: tuple[Amount, Amount] = (0, 1)
    outer: str | None = None
    inner: str | None = None
    outside: str = "ends"

    @model_validator(mode="after")
    def _known(self) -> LayerSwapConfig:
        refuse(self, self._misfits())
        return self

    def _misfits(self) -> Iterator[Misfit]:
        for key in CUTS:
            low, high = getattr(self, key)
            for place, amount in enumerate((low, high)):
                yield from amount_misfits(amount, (key, place), most=1.0)

    def check_experts(self, experts: Sequence[str]) -> list[Problem]:
        """Fewer than two, or names that are nobody's."""
        if len(experts) < 2:
            return [Problem("experts", f"layers are swapped between two, got {len(experts)}")]
        problems = outside_problems(self.outside, experts)
        if len(experts) > 2 and self.outer is None and self.inner is None:
            what = f"layers are swapped between two of the {len(experts)}: name them"
            problems.append(Problem("space.outer, space.inner", what))
        for key in ("outer", "inner"):
            name = getattr(self, key)
            if name is not None and name not in experts:
                problems.append(Problem(f"space.{key}", "no such expert", nearest(name, experts)))
        if self.outer is not None and self.outer == self.inner:
            problems.append(Problem("space.inner", f"{self.inner!r} is the outer expert already"))
        return problems

    def pair(self, experts: Sequence[str]) -> tuple[str, str]:
        """Outer and inner."""
        outer = self.outer or next(e for e in experts if e != self.inner)
        return outer, self.inner or next(e for e in experts if e != outer)


class LayerSwap(CubeSpace):
    """Two experts cut into three pieces. Bandarkar et al. 2025, arXiv:2410.01335.

    The paper's numbers are chosen by hand (5 at the bottom, 2 at the top, 1 in transition, of 32).
    """

    def __init__(self, config: LayerSwapConfig, template: Recipe, anatomy: Anatomy) -> None:
        super().__init__(template, anatomy)
        self._config = config
        self._outer, self._inner = config.pair(self.experts)
        genes: list[Gene] = []
        self._fixed: dict[str, int] = {}
        for name in CUTS:
            low, high = (counted(a, anatomy.num_layers) for a in getattr(config, name))
            if low < high:
                genes.append(Integer(name, low, high))
            elif low == high:
                self._fixed[name] = low
            else:
                what = f"expected low <= high, got {low} to {high} layers"
                raise ConfigurationError(Problem(f"space.{name}", what))
        if not genes:
            raise ConfigurationError(Problem("space", "every cut has one place: nothing to search"))
        self.codec = Codec(genes)
        if told := self.violations([0.0] * len(genes)):
            raise ConfigurationError(Problem("space", f"even the least cuts: {told[0]}"))

    def decode(self, genome: Genome) -> Recipe:
        """The recipe with these cuts."""
        bottom, top, transition = self._cuts(genome)
        last_inner = self.anatomy.num_layers - top
        outer = Merge.of_valid(sources=(self._outer,))
        inner = Merge.of_valid(sources=(self._inner,))
        both = Merge.of_valid(operator="linear", sources=(self._outer, self._inner))
        slots = []
        for layer in range(self.anatomy.num_layers):
            if not bottom <= layer < last_inner:
                merge = outer
            elif (bottom and layer < bottom + transition) or (
                top and layer >= last_inner - transition
            ):
                merge = both
            else:
                merge = inner
            slots.append(Slot.of_valid(layer=layer, layers={}, merges={"default": merge}))
        return self.of_layers(slots, self._config.outside)

    def encode(self, recipe: Recipe) -> Genome:
        """The genome of a recipe with such cuts.

        Raises:
            ValueError: no genome says it.
        """
        self.check_template(recipe)
        kinds = [
            slot.merges["default"].sources
            for slot in recipe.slots or ()
            if "default" in slot.merges
        ]
        bottom = next((i for i, k in enumerate(kinds) if k != (self._outer,)), len(kinds))
        top = next((i for i, k in enumerate(kinds[::-1]) if k != (self._outer,)), len(kinds))
        both = (self._outer, self._inner)
        inside = kinds[bottom : len(kinds) - top]
        transition = next((i for i, k in enumerate(inside) if k != both), len(inside))
        if not bottom or not transition:
            transition = next((i for i, k in enumerate(inside[::-1]) if k != both), transition)
        found = {"bottom": bottom, "top": top}
        if bottom or top:  # without a border, any transition says the same
            found["transition"] = transition
        free = {gene.name for gene in self.genes}
        return self.encode_values(recipe, {k: v for k, v in found.items() if k in free})

    def violations(self, genome: Genome) -> list[str]:
        """Also cuts that leave the inner expert no layer of its own."""
        if found := super().violations(genome):
            return found
        bottom, top, transition = self._cuts(genome)
        borders = bool(bottom) + bool(top)
        left = self.anatomy.num_layers - bottom - top - borders * transition
        if left >= 1:
            return []
        return [
            f"bottom {bottom}, top {top} and transitions of {transition} leave {self._inner} none "
            f"of {self.anatomy.num_layers} layers"
        ]

    def designs(self) -> list[Genome]:
        """Few outer layers and many, within the ranges."""
        found = [[place] * len(self.genes) for place in (0.1, 0.5)]
        return [genome for genome in found if not self.violations(genome)]

    def _cuts(self, genome: Genome) -> tuple[int, int, int]:
        known = {**self._fixed}
        for gene, value in zip(self.genes, self.codec.values(genome), strict=True):
            known[gene.name] = int(value)
        return known["bottom"], known["top"], known["transition"]
