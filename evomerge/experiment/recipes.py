"""Recipes that people write: read, checked, and their models opened."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.family import open_family
from evomerge.checkpoints.layer_stack import are_alike, layer_settings
from evomerge.checkpoints.open import Checkpoint
from evomerge.checkpoints.preflight import check_finite, preflight
from evomerge.checkpoints.relatedness import relate
from evomerge.documents import parse, read_yaml
from evomerge.errors import ConfigurationError, ModelError, Problem
from evomerge.experiment.calibration import check_recipe as check_operators_of
from evomerge.experiment.calibration import looking
from evomerge.experiment.mergekit_file import is_mergekit
from evomerge.experiment.mergekit_yaml import recipe_from_mergekit
from evomerge.experiment.paths import absolute_model
from evomerge.experiment.stacked import pinned
from evomerge.experiment.wire import resolve
from evomerge.merging.adapter_sources import check_adapters
from evomerge.merging.blocks import check_recipe
from evomerge.merging.calibration import CALIBRATION, Calibration, read_calibration
from evomerge.merging.check import check_merge
from evomerge.protocols import Progress
from evomerge.recipe import Merge, Recipe


def read_recipe(
    path: str | Path,
    *,
    notes: list[str] | None = None,
    progress: Progress | None = None,
    allow_pickle_weights: bool = False,
) -> Recipe:
    """A recipe file, or mergekit's; its models' paths are relative to it.

    Args:
        path: of the file.
        notes: takes what is not quite as in mergekit.
        progress: for models that are made on first use.
        allow_pickle_weights: for a mergekit file, whose models' tensor names are read.

    Raises:
        ConfigurationError: every problem of the file.
        ModelError: a mergekit file's models cannot be read.
    """
    document = read_yaml(Path(path))
    if is_mergekit(document.data):
        recipe, found = recipe_from_mergekit(
            document, partial(resolve, progress=progress), allow_pickle=allow_pickle_weights
        )
        if notes is not None:
            notes += found
        return recipe
    if isinstance(document.data, dict) and isinstance(document.data.get("models"), dict):
        for name, source in document.data["models"].items():
            where = source.get("path") if isinstance(source, dict) else source
            if isinstance(where, str):
                absolute = pinned(absolute_model(where, Path(path).parent))
                document.data["models"][name] = (
                    {**source, "path": absolute} if isinstance(source, dict) else absolute
                )
    return parse(Recipe, document)


def read_texts(recipe: Recipe, path: Path | None, given: Path | None) -> Calibration | None:
    """The texts of operators that look at data: those given, else those beside a recipe's file.

    Raises:
        ConfigurationError: they cannot be read.
    """
    if given is not None:
        return read_calibration(given)
    beside = None if path is None else path.parent / CALIBRATION
    if beside is not None and beside.exists() and looking(recipe):
        return read_calibration(beside)
    return None


def with_texts(recipe: Recipe, calibration: Calibration | None) -> Recipe:
    """A recipe that names its texts, if operators look at any.

    Raises:
        ConfigurationError: there are none, or the recipe names others.
    """
    if not looking(recipe):
        return recipe
    if calibration is None:
        check_operators_of(recipe)
    elif recipe.calibration is None:
        return recipe.model_copy(update={"calibration": calibration.sha256})
    return recipe


def open_recipe_models(
    recipe: Recipe,
    sources: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    *,
    notes: list[str] | None = None,
    allow_pickle_weights: bool = False,
) -> dict[str, Checkpoint]:
    """The opened models of a recipe, after its operators and the models were checked.

    Args:
        recipe: what to merge.
        sources: state dicts in memory, by the recipe's names.
        progress: for models that are made on first use, and for reading them.
        notes: takes what was changed to make the models fit, and what looks like a mistake; without
            it, the logger "evomerge" is told.
        allow_pickle_weights: read .pt and .bin files.

    Raises:
        ConfigurationError, ModelError: everything that is wrong.
    """
    experts = tuple(name for name in recipe.models if name != recipe.base)
    merges: Iterable[Merge] = (
        recipe.default,
        *(recipe.merge_for(None, component) for component in recipe.outside),
        *(
            recipe.merge_for(number, component)
            for number, slot in enumerate(recipe.slots or ())
            for component in slot.merges
        ),
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
    family = open_family(
        found,
        recipe.base,
        allow_pickle=allow_pickle_weights,
        tokenizer=recipe.tokenizer,
        chat_template=recipe.chat_template,
        matches=recipe.matches,
        progress=progress,
    )
    checkpoints = family.checkpoints
    warnings = preflight(checkpoints, recipe.base, uneven=recipe.slots is not None)
    _check_finite(checkpoints, progress)
    related = relate(checkpoints, recipe.base, recipe.dtype)
    said = [*family.notes, *warnings, *related.warnings()]
    if notes is None:
        for note in said:
            logging.getLogger("evomerge").warning(note)
    else:
        notes += said
    if wrong := check_adapters([recipe], checkpoints):
        raise ConfigurationError(wrong)
    anatomy = anatomy_of(checkpoints[recipe.base])
    num_layers = {n: anatomy.num_layers_of(set(model.names)) for n, model in checkpoints.items()}
    if unlike := check_recipe(recipe, anatomy, num_layers):
        raise ConfigurationError(unlike)
    if misplaced := list(_kind_problems(recipe, checkpoints, num_layers)):
        raise ConfigurationError(misplaced)
    return checkpoints


def _kind_problems(
    recipe: Recipe, checkpoints: Mapping[str, Checkpoint], num_layers: Mapping[str, int]
) -> Iterator[Problem]:
    """Layers of which a model's config says other things than the base's of the slot's own."""
    if recipe.slots is None or not checkpoints[recipe.base].config:
        return
    kinds = {
        name: layer_settings(checkpoint.config, num_layers[name])
        for name, checkpoint in checkpoints.items()
        if checkpoint.config
    }
    for number, slot in enumerate(recipe.slots):
        own = slot.layer_of(recipe.base)
        merges = (recipe.merge_for(number, "default"), *slot.merges.values())
        for source in dict.fromkeys(name for merge in merges for name in merge.sources or ()):
            layer = slot.layer_of(source)
            if source in kinds and not are_alike(kinds[source][layer], kinds[recipe.base][own]):
                what = f"config.json says other things of layer {layer} of {source} than of "
                what += f"layer {own} of {recipe.base}, which the slot would be"
                hint = "give the slot a `layer` of the same kind"
                yield Problem(f"slots.{number}", what, hint)


def _check_finite(checkpoints: Mapping[str, Checkpoint], progress: Progress | None) -> None:
    """Refuse NaN and Inf before the merge: some operators would drop them in silence."""
    problems: list[Problem] = []
    for name, checkpoint in checkpoints.items():
        report = None if progress is None else partial(progress, f"reading {name}")
        try:
            check_finite(checkpoint, report, checksum=False)
        except ModelError as error:
            problems += [Problem(f"model {name}", str(p)) for p in error.problems]
    if problems:
        raise ModelError(problems)
