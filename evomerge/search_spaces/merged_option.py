"""A merge as one of the things that a layer may be, with what of it is searched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from evomerge.documents import Misfit, refuse
from evomerge.errors import Problem
from evomerge.genes import Condition, Gene, Real, Value
from evomerge.merging import OPERATORS
from evomerge.recipe import Merge, OperatorName
from evomerge.search_spaces.codec import coordinate_of
from evomerge.search_spaces.config import count_problems
from evomerge.search_spaces.searched import FixedValue, Searched, as_said, operator_misfits
from evomerge.search_spaces.shares import best_pair, genes_of, scores_of, shares

# What a layer is split into where its parts have parameters of their own; the rest is norms.
PARTS = {"attention": "attention", "mlp": "mlp", "rest": "default"}


class OptionConfig(BaseModel):
    """A merge of all experts; or, with a pair, of the two that have the highest scores.

    search: as in `weights`, along experts and components.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    operator: OperatorName
    search: dict[str, Searched] = Field(default_factory=dict)
    fixed: dict[str, FixedValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> OptionConfig:
        refuse(self, self._misfits())
        return self

    def _misfits(self) -> Iterator[Misfit]:
        yield from operator_misfits(self.operator, self.search, self.fixed)
        for name, searched in self.search.items():
            if "layer" in searched.per:
                yield Misfit(("search", name, "per"), "each layer has its own already")
            if searched.apart is not None or searched.gate is not None:
                yield Misfit(("search", name), "a layer's merge goes with neither apart nor gate")
            if searched.filters:
                yield Misfit(("search", name, "filters"), "a layer's merge goes without them")
        for name in self.fixed:
            if "." in name:
                yield Misfit(("fixed", name), "genes of a layer's merge cannot be fixed")

        if sum(searched.values == "pair" for searched in self.search.values()) > 1:
            yield Misfit(("search",), "one pair is enough")

    @property
    def has_pair(self) -> bool:
        """Whether two experts are picked by their scores."""
        return any(searched.values == "pair" for searched in self.search.values())

    def problems(self, experts: Sequence[str]) -> list[Problem]:
        """Too few or too many experts."""
        if self.has_pair:
            return [Problem("experts", "a pair needs two")] if len(experts) < 2 else []
        found = count_problems(self.operator, experts)
        for name, searched in self.search.items():
            if searched.values != "raw" and len(experts) < 2:
                found.append(Problem(name, f"a {searched.values} share of one is always 1"))
        return found


class MergedOption:
    """The genes of such a merge in one slot, and what they mean."""

    def __init__(self, config: OptionConfig, experts: Sequence[str]) -> None:
        self._config = config
        self._experts = tuple(experts)
        split = any("component" in searched.per for searched in config.search.values())
        self._parts = list(PARTS) if split else ["rest"]
        self._own = self.genes("", None)
        self.num_genes = len(self._own)

    def genes(self, prefix: str, when: Condition | None) -> list[Gene]:
        """Parameter by parameter, part by part, expert by expert."""
        found: list[Gene] = []
        for name, searched in self._config.search.items():
            parameter = OPERATORS[self._config.operator].parameter(name)
            low, high = searched.range or (0.0, 1.0)
            for row in self._rows(searched):
                part = row if len(self._rows(searched)) > 1 else ""
                for voice in self._voices(searched):
                    label = ".".join(filter(None, (prefix, name, voice, part)))
                    if searched.values == "raw":
                        found.append(searched.gene(label, parameter, when))
                    else:
                        decimals = 4 if searched.values in ("softmax", "pair") else None
                        found.append(Real(label, low, high, decimals=decimals, when=when))
        return found

    def merges(self, values: Sequence[Value]) -> dict[Any, Merge]:
        """A slot's merges, for one value for each gene."""
        parameters: dict[str, dict[str, Any]] = {part: {} for part in self._parts}
        sources = tuple(sorted(self._experts))
        start = 0
        for name, searched in self._config.search.items():
            rows, voices = self._rows(searched), self._voices(searched)
            table: list[Any] = [
                [as_said(value) for value in values[start + r * len(voices) :][: len(voices)]]
                for r in range(len(rows))
            ]
            start += len(rows) * len(voices)
            if searched.values == "pair":
                first, second, each = best_pair(np.array(table, dtype=np.float64))
                sources = self._experts[first], self._experts[second]
                found: list[Any] = [
                    {sources[0]: round(1.0 - share, 9), sources[1]: share} for share in each
                ]
            elif searched.values != "raw":
                bound = shares(searched.values, np.array(table, dtype=np.float64)).tolist()
                found = [dict(zip(self._experts, row, strict=True)) for row in bound]
            elif "expert" in searched.per:
                found = [dict(zip(self._experts, row, strict=True)) for row in table]
            else:
                found = [row[0] for row in table]
            for part in self._parts:
                parameters[part][name] = found[rows.index(part) if len(rows) > 1 else 0]
        return {
            PARTS[part]: Merge.of_valid(
                operator=self._config.operator,
                sources=sources,
                parameters={**self._config.fixed, **parameters[part]},
            )
            for part in self._parts
        }

    def read(self, merges: dict[Any, Merge]) -> dict[int, Value]:
        """The values, by the number of the gene, that give these merges.

        Raises:
            ValueError: none do.
        """
        if set(merges) != {PARTS[part] for part in self._parts}:
            raise ValueError("other components are merged")
        if any(merge.operator != self._config.operator for merge in merges.values()):
            raise ValueError("another operator")
        flat: list[Value] = []
        for name, searched in self._config.search.items():
            rows = [
                merges[PARTS[row]].parameters.get(name)
                for row in (self._rows(searched) if self._parts != ["rest"] else ["rest"])
            ]
            if any(value is None for value in rows):
                raise ValueError(f"no {name}")
            flat += self._flat(searched, rows, merges["default"].sources or ())
        for gene, value in zip(self._own, flat, strict=True):
            coordinate_of(gene, value)  # another merge may have the range for it
        if self.merges(flat) != merges:
            raise ValueError("something else is said of the merge")
        return dict(enumerate(flat))

    def alone(self, expert: str) -> dict[int, Value] | None:
        """The values with which the merge is one expert; None if there are none that are known."""
        if self._config.operator != "linear" or list(self._config.search) != ["weight"]:
            return None
        weight = {name: float(name == expert) for name in self._experts}
        parameters: dict[str, Any] = {**self._config.fixed, "weight": weight}
        sources = tuple(sorted(self._experts))
        merge = Merge(operator="linear", sources=sources, parameters=parameters)
        try:
            return self.read({PARTS[part]: merge for part in self._parts})
        except ValueError:
            return None

    def _flat(self, searched: Searched, rows: list[Any], sources: tuple[str, ...]) -> list[Value]:
        low, high = searched.range or (0.0, 1.0)
        if searched.values == "pair":
            first, second = (self._experts.index(source) for source in sources)
            each = [_of(row, sources[1]) for row in rows]
            scores = scores_of(first, second, each, len(self._experts), low, high)
            return [float(score) for score in scores.ravel()]
        if "expert" not in searched.per:
            if any(isinstance(row, dict) for row in rows):
                raise ValueError("one number for all experts is needed")
            return rows
        table = [[_of(row, expert) for expert in self._experts] for row in rows]
        if searched.values == "raw":
            return [value for row in table for value in row]
        matrix = np.array(table, dtype=np.float64)
        return [float(gene) for gene in genes_of(searched.values, matrix, low, high).ravel()]

    def _rows(self, searched: Searched) -> list[str]:
        """The parts that have values of their own."""
        return self._parts if "component" in searched.per else ["rest"]

    def _voices(self, searched: Searched) -> tuple[str, ...]:
        if "expert" not in searched.per:
            return ("",)
        return self._experts[:-1] if searched.values == "simplex" else self._experts


def _of(row: Any, source: str) -> float:
    """A source's number among those of all.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(row, dict) or source not in row:
        raise ValueError(f"no number for {source}")
    return float(row[source])
