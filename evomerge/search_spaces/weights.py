"""Operator parameters as genes: shared, or apart per expert, per group of layers, per component."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.documents import Misfit, refuse
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.genes import Beyond, Gene, Real, Value
from evomerge.merging import OPERATORS
from evomerge.merging.check import check_merge
from evomerge.recipe import Merge, OperatorName, Recipe
from evomerge.records import Genome
from evomerge.search_spaces.codec import CENTER, Codec
from evomerge.search_spaces.config import SpaceConfig, count_problems
from evomerge.search_spaces.cube import CubeSpace
from evomerge.search_spaces.designs import expert_merges, plain_merges
from evomerge.search_spaces.grid import Grid, Row, RowValue, alike
from evomerge.search_spaces.searched import (
    FixedValue,
    Searched,
    as_said,
    check_filters,
    matching,
    operator_misfits,
)
from evomerge.search_spaces.shares import genes_of, shares
from evomerge.search_spaces.spots import Spot, layer_groups, spots_of


class WeightsConfig(SpaceConfig):
    """A search space file of kind `weights`.

    fixed: values of parameters that are not searched; or, under the name of a gene (where * stands
    for anything), values of genes that are then not searched.
    expert_groups: experts that share their genes, by the name of the group.
    """

    kind: Literal["weights"]
    operator: OperatorName
    search: dict[str, Searched] = Field(min_length=1)
    fixed: dict[str, FixedValue] = Field(default_factory=dict)
    layers_per_group: int = Field(default=1, ge=1)
    expert_groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> WeightsConfig:
        refuse(self, self._misfits())
        return self

    def _misfits(self) -> Iterator[Misfit]:
        yield from operator_misfits(self.operator, self.search, self.fixed)
        by_layer = any(searched.by_layer for searched in self.search.values())
        if self.layers_per_group > 1 and not by_layer:
            yield Misfit(("layers_per_group",), "means nothing without `layer` in a per")
        for name, searched in self.search.items():
            if searched.values == "pair":
                what = "pairs are chosen layer by layer: see layer_choice"
                yield Misfit(("search", name, "values"), what)
        members = [expert for group in self.expert_groups.values() for expert in group]
        for expert in sorted({e for e in members if members.count(e) > 1}):
            yield Misfit(("expert_groups",), f"{expert} is in two groups")
        for group, own in self.expert_groups.items():
            if not own:
                yield Misfit(("expert_groups", group), "names no expert")

    def check_experts(self, experts: Sequence[str]) -> list[Problem]:
        """Too few or too many, or groups of others."""
        problems = count_problems(self.operator, experts)
        for group, members in self.expert_groups.items():
            problems += [
                Problem(f"space.expert_groups.{group}", f"no expert {m!r}", nearest(m, experts))
                for m in members
                if m not in experts
            ]
            if group in experts and group not in self._grouped:
                what = "an expert that is not in the group is called so: call it otherwise"
                problems.append(Problem(f"space.expert_groups.{group}", what))
        for name, searched in self.search.items():
            if searched.values != "raw" and len(self.voices(experts)) < 2:
                what = f"a {searched.values} share of one is always 1: nothing to search"
                problems.append(Problem(f"space.search.{name}.values", what))
        return problems

    @property
    def _grouped(self) -> dict[str, str]:
        """Each member's group."""
        return {member: group for group, all_ in self.expert_groups.items() for member in all_}

    def voices(self, experts: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Who has genes of their own: groups, and experts in none; and who follows them."""
        grouped = self._grouped
        found: dict[str, tuple[str, ...]] = {}
        for expert in experts:
            name = grouped.get(expert, expert)
            found[name] = (*found.get(name, ()), expert)
        return found


@dataclass
class _Block:
    """The genes of a parameter: a matrix of spots and experts, or a column of spots."""

    parameter: str
    searched: Searched
    is_whole: bool  # an integer
    spots: list[Spot]
    names: list[list[str]]  # of genes, by spot and voice
    numbers: list[list[int | None]] = field(default_factory=list)  # of genes; None: fixed
    constants: dict[tuple[int, int], Value] = field(default_factory=dict)
    gates: dict[tuple[int, int], tuple[int, float]] = field(default_factory=dict)  # gene, threshold

    @cached_property
    def picks(self) -> list[Callable[[Sequence[Value]], tuple[Any, ...]]]:
        """What takes each spot's values from those of all genes (for fixed ones, any other)."""
        rows = [tuple(n if n is not None else 0 for n in row) for row in self.numbers]
        return [itemgetter(*row) if len(row) > 1 else _only(row[0]) for row in rows]


class Weights(CubeSpace):
    """Parameters of one operator, from one for everything to one per expert, layer and component.

    The embedding (with what else stands before the layers) and the head (with the final norm) have
    genes of their own where a parameter varies by layer, unless the file says otherwise.
    """

    def __init__(self, config: WeightsConfig, template: Recipe, anatomy: Anatomy) -> None:
        super().__init__(template, anatomy)
        self._config = config
        self._voices = config.voices(self.experts)
        blocks = [self._block(name, searched) for name, searched in config.search.items()]
        # Weights that switch experts off come before what then does not matter.
        self._blocks = sorted(blocks, key=lambda block: block.searched.gate is None)
        self._fix()
        self.codec = Codec(self._declare())
        rows = [
            Row(block.parameter, spot, "expert" in block.searched.per)
            for block in self._blocks
            for spot in block.spots
        ]
        whole = {key: value for key, value in config.fixed.items() if "." not in key}
        self._grid = Grid(config.operator, whole, self.experts, anatomy, rows)

    def decode(self, genome: Genome) -> Recipe:
        """The recipe whose parameters stand where the genome points in their ranges."""
        values = self.codec.values(genome)
        rows: list[RowValue] = []
        for block in self._blocks:
            rows += self._rows(block, values)
        return self.recipe(**self._grid.merges(rows))

    def encode(self, recipe: Recipe) -> Genome:
        """The genome of a recipe that says the same as one of this space.

        Raises:
            ValueError: another operator, a value out of range, or a difference that no gene makes.
        """
        self.check_template(recipe)
        rows = iter(self._grid.read(recipe))
        values: dict[str, Value] = {}
        wanted: list[RowValue] = []
        for block in self._blocks:
            own = [next(rows) for _ in block.spots]
            wanted += own
            values |= self._values_of(block, own)
        genome = self.codec.genome(values)
        coded = self.codec.values(genome)
        theirs = iter(wanted)
        for block in self._blocks:
            for i, mine in enumerate(self._rows(block, coded)):
                self._check_row(block, i, mine, next(theirs), coded)
        return genome

    def _check_row(
        self, block: _Block, spot: int, mine: RowValue, theirs: RowValue, values: Sequence[Value]
    ) -> None:
        """Compare what the space says at a spot with what a recipe says.

        Raises:
            ValueError: they differ where it matters: not of an expert that is off.
        """
        if block.gates:
            mine, theirs = dict(mine), dict(theirs)
            for voice, members in enumerate(self._voices.values()):
                number, threshold = block.gates.get((spot, voice), (None, 0.0))
                if number is not None and abs(float(values[number])) < threshold:
                    for member in members:
                        del mine[member], theirs[member]
        if not alike(mine, theirs):
            name = ".".join(filter(None, (block.parameter, block.spots[spot].name)))
            raise ValueError(f"{name}: the recipe has {theirs} where this space has {mine}")

    def designs(self) -> list[Genome]:
        """Each expert alone and the uniform merge, as far as the space can say them."""
        return plain_merges(self, self._config.operator, self._config.fixed)

    def alone(self) -> dict[str, Genome]:
        """The genome of each expert alone, as far as the space can say it."""
        return expert_merges(self, self._config.operator, self._config.fixed)

    # --- the genes --------------------------------------------------------------------------------

    def _block(self, parameter: str, searched: Searched) -> _Block:
        groups = None
        if searched.by_layer:
            size = searched.layers_per_group or self._config.layers_per_group
            groups = layer_groups(self.anatomy.num_layers, size, searched.layer_groups)
        spots = spots_of(
            self.anatomy,
            groups,
            by_component="component" in searched.per,
            apart=searched.all_apart,
            filters=searched.filters,
        )
        check_filters(searched.filters, self.anatomy, f"space.search.{parameter}.filters")
        voices: list[str] = list(self._voices) if "expert" in searched.per else [""]
        if searched.values == "simplex":
            voices = voices[:-1]  # the last one has what is left
        names = [
            [".".join(filter(None, (parameter, voice, spot.name))) for voice in voices]
            for spot in spots
        ]
        is_whole = OPERATORS[self._config.operator].parameter(parameter).kind == "integer"
        return _Block(parameter, searched, is_whole, spots, names)

    def _fix(self) -> None:
        """Take out the genes that the file fixes.

        Raises:
            ConfigurationError: no gene of such a name, or a value that it cannot have.
        """
        problems = []
        for pattern, value in self._config.fixed.items():
            if "." not in pattern:
                continue
            block = next(b for b in self._blocks if b.parameter == pattern.split(".")[0])
            where = f"space.fixed.{pattern}"
            known = [name for row in block.names for name in row]
            found = set(matching(known, pattern))
            if not found:
                problems.append(Problem(where, "fits no gene", nearest(pattern, known)))
            elif block.searched.values != "raw":
                what = f"{block.searched.values} coefficients are bound together"
                problems.append(Problem(where, f"one cannot be fixed: {what}"))
            merge = Merge(
                operator=self._config.operator,
                sources=self.experts,
                parameters={block.parameter: value},
            )
            problems += [
                Problem(where, problem.what, problem.hint)
                for problem in check_merge(merge, self.template.base)
            ]
            for i, row in enumerate(block.names):
                for j, name in enumerate(row):
                    if name in found:
                        block.constants[i, j] = value
        if problems:
            raise ConfigurationError(problems)

    def _declare(self) -> list[Gene]:
        """All genes: parameter by parameter, expert by expert, spot by spot."""
        genes: list[Gene] = []
        for block in self._blocks:
            block.numbers = [[None] * len(row) for row in block.names]
            for j in range(len(block.names[0]) if block.names else 0):
                for i, row in enumerate(block.names):
                    if (i, j) not in block.constants:
                        block.numbers[i][j] = len(genes)
                        genes.append(self._gene(block, row[j], block.spots[i], j))
        return genes

    def _gene(self, block: _Block, name: str, spot: Spot, voice: int) -> Gene:
        searched = block.searched
        parameter = OPERATORS[self._config.operator].parameter(block.parameter)
        if searched.values in ("normalised", "simplex"):
            low, high = searched.range or (0.0, 1.0)
            return Real(name, low, high, decimals=None)
        if searched.values == "softmax":
            low, high = searched.range or (0.0, 1.0)
            return Real(name, low, high, decimals=4)
        return searched.gene(name, parameter, self._gate_of(block, spot, voice))

    def _gate_of(self, block: _Block, spot: Spot, voice: int) -> Beyond | None:
        """What an expert's other parameters hang on where its weight is gated in the same spot."""
        if "expert" not in block.searched.per:
            return None
        for other in self._blocks[: self._blocks.index(block)]:
            gate = other.searched.gate
            places = [i for i, one in enumerate(other.spots) if one.covers >= spot.covers]
            if gate is None or not places:
                continue
            number = other.numbers[places[0]][voice]
            if number is not None:
                block.gates[block.spots.index(spot), voice] = number, gate
                return Beyond(other.names[places[0]][voice], gate)
        return None

    # --- values -----------------------------------------------------------------------------------

    def _rows(self, block: _Block, values: Sequence[Value]) -> list[RowValue]:
        """A parameter's values, spot by spot."""
        table: list[Any] = [pick(values) for pick in block.picks]
        if block.constants:
            table = [
                [block.constants.get((i, j), value) for j, value in enumerate(row)]
                for i, row in enumerate(table)
            ]
        searched = block.searched
        if block.is_whole:
            table = [[as_said(value) for value in row] for row in table]
        if block.gates:
            table = [list(row) for row in table]
        for (i, j), (number, threshold) in block.gates.items():
            if abs(float(values[number])) < threshold:
                table[i][j] = self._idle(block, i, j)  # it is off, so this says nothing
        if searched.values != "raw":
            table = shares(searched.values, np.array(table, dtype=np.float64)).tolist()
        elif (gate := searched.gate) is not None:
            table = [[v if abs(v) >= gate else 0.0 for v in row] for row in table]
        if "expert" not in searched.per:
            return [row[0] for row in table]
        if self._config.expert_groups:
            return [
                {
                    expert: value
                    for value, followers in zip(row, self._voices.values(), strict=True)
                    for expert in followers
                }
                for row in table
            ]
        return [dict(zip(self.experts, row, strict=True)) for row in table]

    def _idle(self, block: _Block, spot: int, voice: int) -> Value:
        """The value that stands where a gene does not matter."""
        number = block.numbers[spot][voice]
        return block.constants[spot, voice] if number is None else self._center[number]

    @cached_property
    def _center(self) -> list[Value]:
        return self.codec.values([CENTER] * len(self.genes))

    def _values_of(self, block: _Block, rows: Sequence[RowValue]) -> dict[str, Value]:
        """The values of a parameter's genes that give these rows.

        Raises:
            ValueError: there are none.
        """
        searched = block.searched
        if "expert" in searched.per:
            table = [[row[members[0]] for members in self._voices.values()] for row in rows]
        else:
            table = [[row] for row in rows]
        if searched.gate is not None and searched.range is not None:
            low, high = searched.range
            off = min(max(0.0, low), high)  # whatever is nearest to 0 is off, if anything is
            table = [[value or off for value in row] for row in table]
        if searched.values != "raw":
            low, high = searched.range or (0.0, 1.0)
            matrix = np.array(table, dtype=np.float64)
            table = genes_of(searched.values, matrix, low, high).tolist()
        return {
            name: table[i][j]
            for i, row in enumerate(block.names)
            for j, name in enumerate(row)
            if (i, j) not in block.constants
        }


def _only(number: int) -> Callable[[Sequence[Value]], tuple[Any, ...]]:
    return lambda values: (values[number],)
