"""Operators that read adapters' factors take adapters alone, which is said before a search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from evomerge.checkpoints.adapters import adapted_beneath
from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import Problem
from evomerge.merging.table import OPERATORS
from evomerge.recipe import Recipe


def check_adapters(
    recipes: Iterable[Recipe], checkpoints: Mapping[str, Checkpoint]
) -> list[Problem]:
    """The sources of recipes that would have to be adapters and are none, each once."""
    found: dict[Problem, None] = {}
    for recipe in recipes:
        experts = tuple(name for name in recipe.models if name != recipe.base)
        for merge in recipe.merges():
            complete = merge.over(recipe.default)
            operator = OPERATORS.get(complete.operator or "")
            if operator is not None and operator.needs_adapters:
                sources = complete.sources if complete.sources is not None else experts
                found |= dict.fromkeys(no_adapters(operator.name, sources, checkpoints))
    return list(found)


def no_adapters(
    operator: str, sources: Iterable[str], checkpoints: Mapping[str, Checkpoint]
) -> list[Problem]:
    """Those sources of one merge."""
    return [
        Problem(
            f"model {source}",
            f"{operator} merges LoRA adapters by their factors, and "
            f"{checkpoints[source].where} is none",
            "task_arithmetic merges models of any kind",
        )
        for source in sources
        if source in checkpoints and adapted_beneath(checkpoints[source]) is None
    ]
