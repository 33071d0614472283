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
    known = {parameter.name for parameter in OPERATORS[operator].parameters}
    whole: dict[str, Any] = {name: 1.0 for name in ("t", "lambda", "density") if name in known}
    experts = space.experts
    weights: list[dict[str, float]] = [
        {name: float(name == chosen) for name in experts} for chosen in experts
    ]
    if "weight" in known:
        weights.append(dict.fromkeys(experts, round(1 / len(experts), 6)))
    designs = []
    for weight in weights:
        parameters = {**whole, "weight": weight} if "weight" in known else dict(whole)
        parameters |= {name: value for name, value in fixed.items() if name in known}
        merge = Merge(operator=operator, parameters=parameters)
        try:
            designs.append(space.encode(Recipe(**{**dict(space.template), "default": merge})))
        except ValueError:
            continue  # this space cannot say it
    return designs
