"""Where a search may begin: merges that need no search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.merging import OPERATORS
from evomerge.recipe import Merge, Recipe
from evomerge.records import Genome
from evomerge.search_spaces.cube import CubeSpace


def plain_merges(space: CubeSpace, operator: str, fixed: Mapping[str, Any]) -> list[Genome]:
    """Each expert alone and the uniform merge, as far as the space can say them.

    fixed: what the space fixes of the operator.
    """
    found = list(expert_merges(space, operator, fixed).values())
    if any(parameter.name == "weight" for parameter in OPERATORS[operator].parameters):
        equal = dict.fromkeys(space.experts, round(1 / len(space.experts), 6))
        found += _said(space, operator, fixed, equal)
    return found


def expert_merges(space: CubeSpace, operator: str, fixed: Mapping[str, Any]) -> dict[str, Genome]:
    """Each expert alone, by name, as far as the space can say it; see `plain_merges`."""
    found = {}
    for chosen in space.experts:
        weight = {name: float(name == chosen) for name in space.experts}
        for genome in _said(space, operator, fixed, weight):
            found[chosen] = genome
    return found


def _said(
    space: CubeSpace, operator: str, fixed: Mapping[str, Any], weight: Mapping[str, float]
) -> list[Genome]:
    """The genome of a merge with these weights, if the space can say it."""
    known = {parameter.name for parameter in OPERATORS[operator].parameters}
    if not known & {"weight", "t"}:
        return []  # it gives all experts the same say
    parameters: dict[str, Any] = {n: 1.0 for n in ("t", "lambda", "density") if n in known}
    parameters |= {"weight": dict(weight)} if "weight" in known else {}
    parameters |= {name: value for name, value in fixed.items() if name in known}
    merge = Merge(operator=operator, parameters=parameters)
    try:
        return [space.encode(Recipe(**{**dict(space.template), "default": merge}))]
    except ValueError:
        return []
