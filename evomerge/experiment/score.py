"""Score a model that no search made, on the items that a search would use."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.preflight import check_finite
from evomerge.documents import read_yaml
from evomerge.errors import ConfigurationError, ModelError, Problem
from evomerge.experiment.paths import find_in_catalogue
from evomerge.experiment.recipes import open_recipe_models, read_recipe, read_texts, with_texts
from evomerge.experiment.stacked import pinned
from evomerge.experiment.tasks import (
    answer_warnings,
    check_answers,
    check_models,
    check_teachers,
    make_tasks,
    objectives_over,
    task_entries,
)
from evomerge.experiment.wire import resolve
from evomerge.fitness.config import read_fitness
from evomerge.fitness.estimators.estimate import Items, estimate
from evomerge.fitness.split import split_items
from evomerge.measurement import checked, wanted_columns
from evomerge.merging.calibration import Calibration
from evomerge.merging.costs import Costs
from evomerge.pools.worker import Worker, WorkerSpec
from evomerge.protocols import Progress
from evomerge.recipe import Merge, ModelSource, Recipe
from evomerge.records import Candidate, Job, Measurements, Objective

Entries = Mapping[str, dict[str, Any]]  # task -> its entry in a fitness file


def score_recipe(
    recipe: Recipe,
    tasks: Entries,
    objectives: Iterable[Objective],
    items: dict[str, Items],
    *,
    costs: Costs | None = None,
    allow_pickle_weights: bool = False,
    calibration: Calibration | None = None,
) -> dict[str, dict[str, Any]]:
    """Part of the split -> objective -> value, standard error and number of items.

    costs: over the recipe's base, where an objective is a cost. calibration: the texts of operators
    that look at data.

    Raises:
        ModelError: the model cannot be merged or measured.
    """
    given = tuple(objectives)
    objectives = tuple(o for o in given if not o.agreement)
    if given and not objectives:
        what = "compares a candidate's answers with its neighbours', and a single model has none"
        raise ConfigurationError(Problem("objectives: agreement", what))
    models = {name: resolve(source.path) for name, source in recipe.models.items()}
    spec = WorkerSpec(
        models,
        recipe.base,
        tasks,
        dtype=recipe.dtype,
        allow_pickle=allow_pickle_weights,
        tokenizer=recipe.tokenizer,
        calibration=calibration,
        matches=recipe.matches,
    )
    worker = Worker(spec, "driver")
    sizes = {task: 1 + max(max(part[task], default=0) for part in items.values()) for task in tasks}
    measurements = Measurements(sizes, costs)
    candidate = Candidate(0, None, recipe)
    rows: dict[str, dict[str, Any]] = {}
    for number, (part, wanted) in enumerate(items.items()):
        asked = {task: tuple(ids) for task, ids in wanted.items() if ids}
        if not asked:
            continue
        outcome = checked(worker.run(Job(number, 0, recipe, asked)), wanted_columns(objectives))
        if outcome.failure is not None:
            raise ModelError(Problem("the model cannot be scored", outcome.failure.reason))
        for responses in outcome.responses:
            measurements.add(recipe.fingerprint, responses)
        if failure := measurements.why_not(recipe.fingerprint, asked, 0):
            raise ModelError(Problem("the model cannot be scored", failure.reason))
        rows[part] = {
            name: asdict(e)
            for name, e in estimate(objectives, measurements, candidate, asked).items()
        }
    return rows


def score_model(
    model: str,
    fitness: str,
    *,
    allow_code: bool = False,
    allow_pickle_weights: bool = False,
    calibration: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Score a folder, a zoo model or a recipe file with a fitness file.

    calibration: texts of operators that look at data; None reads those beside a recipe's file.

    Raises:
        ConfigurationError, ModelError: what cannot be read or measured.
    """
    path = Path(fitness)
    if not path.is_file():
        path = find_in_catalogue(fitness, "fitness", Path.cwd())
    config = read_fitness(read_yaml(path))
    entries = task_entries(config, allow_code=allow_code)
    tasks = make_tasks(entries)
    objectives = objectives_over(config, {name: len(task.items) for name, task in tasks.items()})
    check_answers(tasks, objectives)
    for warning in answer_warnings(tasks, objectives):
        logging.getLogger("evomerge").warning(warning)
    recipe = recipe_of(model)
    texts = read_texts(recipe, Path(model), calibration)
    recipe = with_texts(recipe, texts)
    check_teachers(tasks, tuple(recipe.models))
    checkpoints = open_recipe_models(
        recipe, progress=progress, allow_pickle_weights=allow_pickle_weights
    )
    for checkpoint in checkpoints.values():
        check_finite(checkpoint)
    check_models(tasks, entries, checkpoints[recipe.base].config)
    split = split_items(
        {name: task.items for name, task in tasks.items()},
        config.split.search,
        config.split.fresh,
        config.split.holdout,
        config.split.seed,
    )
    items: dict[str, Items] = {
        "search": split.search,
        "fresh": split.fresh,
        "holdout": split.holdout,
    }
    return score_recipe(
        recipe,
        entries,
        objectives,
        items,
        costs=Costs(checkpoints[recipe.base], anatomy_of(checkpoints[recipe.base])),
        allow_pickle_weights=allow_pickle_weights,
        calibration=texts if recipe.calibration else None,
    )


def recipe_of(model: str) -> Recipe:
    """The recipe of a recipe file; for a model, the one that changes nothing."""
    if model.endswith((".yaml", ".yml")):
        return read_recipe(Path(model))
    return Recipe(
        base="base",
        models={"base": ModelSource(path=pinned(model))},
        default=Merge(operator="linear", sources=("base",), parameters={"weight": 1.0}),
    )
