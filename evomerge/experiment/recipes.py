"""Recipes that people write: read, checked, and their models opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.family import open_family
from evomerge.checkpoints.open import Checkpoint
from evomerge.checkpoints.preflight import preflight
from evomerge.documents import parse, read_yaml
from evomerge.errors import ConfigurationError, Problem
from evomerge.experiment.wire import Progress, resolve
from evomerge.merging.blocks import check_recipe
from evomerge.merging.check import check_merge
from evomerge.recipe import Merge, Recipe


def read_recipe(path: str | Path) -> Recipe:
    """A recipe file; its models' paths are relative to it.

    Raises:
        ConfigurationError: every problem of the file.
    """
    document = read_yaml(Path(path))
    if isinstance(document.data, dict) and isinstance(document.data.get("models"), dict):
        for name, source in document.data["models"].items():
            where = source.get("path") if isinstance(source, dict) else source
            if isinstance(where, str) and not where.startswith("zoo:"):
                absolute = str((Path(path).parent / Path(where).expanduser()).resolve())
                document.data["models"][name] = (
                    {**source, "path": absolute} if isinstance(source, dict) else absolute
                )
    return parse(Recipe, document)


def open_recipe_models(
    recipe: Recipe,
    sources: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    *,
    allow_pickle_weights: bool = False,
) -> dict[str, Checkpoint]:
    """The opened models of a recipe, after its operators and the models were checked.

    Raises:
        ConfigurationError, ModelError: everything that is wrong.
    """
    experts = tuple(name for name in recipe.models if name != recipe.base)
    merges: Iterable[Merge] = (
        recipe.default,
        *(merge.over(recipe.default) for merge in recipe.outside.values()),
        *(merge.over(recipe.default) for s in recipe.slots or () for merge in s.merges.values()),
    )
    problems: dict[str, Problem] = {}
    for merge in merges:
        complete = merge if merge.sources is not None else Merge(sources=experts).over(merge)
        problems.update((str(p), p) for p in check_merge(complete, recipe.base))
    if problems:
        raise ConfigurationError(problems.values())
    given = sources or {}
    found: dict[str, Any] = {
        name: given[name]
        if isinstance(given.get(name), Mapping)
        else resolve(source.path, progress)
        for name, source in recipe.models.items()
    }
    checkpoints = open_family(found, recipe.base, allow_pickle=allow_pickle_weights).checkpoints
    preflight(checkpoints, recipe.base)
    if unlike := check_recipe(recipe, anatomy_of(checkpoints[recipe.base])):
        raise ConfigurationError(unlike)
    return checkpoints
