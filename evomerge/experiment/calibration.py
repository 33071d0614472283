"""The calibration set of an experiment: from files and tasks to plain texts, and what comes of it.

Texts of a task are those of its search items: what is held out stays unseen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.experiment.calibration_config import CalibrationConfig, TextsConfig
from evomerge.fitness.gold_texts import texts_of_items
from evomerge.fitness.split import Split
from evomerge.fitness.texts import FilePrompts
from evomerge.merging import OPERATORS
from evomerge.merging.blocks import operator_of
from evomerge.merging.calibration import Calibration, Collected
from evomerge.merging.calibration.statistics import KINDS
from evomerge.merging.materialise import Merger
from evomerge.merging.surroundings import no_texts
from evomerge.protocols import Progress, Task
from evomerge.recipe import Recipe

DRAWN = 3  # the stream of the run's seed that texts are from


def calibration_of(
    config: CalibrationConfig,
    models: Iterable[str],
    tasks: Mapping[str, Task],
    split: Split,
    seed: int,
    tokenizer: Any,
) -> Calibration:
    """The texts that an experiment names.

    Raises:
        ConfigurationError: everything that is not there.
    """
    known = tuple(models)
    problems = [
        Problem(f"calibration.of.{model}", "no such model", nearest(model, known))
        for model in config.of
        if model not in known
    ]
    found: dict[str, tuple[str, ...]] = {}
    parts: dict[str, TextsConfig] = {f"of.{model}": own for model, own in config.of.items()}
    for place, part in {"": config, **parts}.items():
        if not part.is_given:
            continue
        where = ".".join(filter(None, ("calibration", place)))
        try:
            every = list(_texts(where, part, tasks, split, tokenizer))
            found[place.removeprefix("of.")] = _drawn(every, config.samples, seed)
        except ConfigurationError as error:
            problems += error.problems
    if problems:
        raise ConfigurationError(problems)
    return Calibration(
        texts=found.pop("", ()), of=found, length=config.length, threads=config.threads
    )


def _texts(
    where: str, part: TextsConfig, tasks: Mapping[str, Task], split: Split, tokenizer: Any
) -> Sequence[str]:
    if part.texts is not None:
        prompts = FilePrompts(where, part.texts, part.field)
        return [prompts.prompt(item) for item in prompts.items]
    name = part.task or ""
    if name not in tasks:
        raise ConfigurationError(
            Problem(f"{where}.task", f"no task {name!r}", nearest(name, tasks))
        )
    return [t for t in texts_of_items(name, tasks[name], split.search[name], tokenizer) if t]


def _drawn(texts: Sequence[str], samples: int, seed: int) -> tuple[str, ...]:
    """Some texts, in their order."""
    if len(texts) <= samples:
        return tuple(texts)
    generator = np.random.default_rng(np.random.SeedSequence([seed, DRAWN]))
    chosen = sorted(generator.choice(len(texts), samples, replace=False).tolist())
    return tuple(texts[i] for i in chosen)


def check_recipe(recipe: Recipe) -> None:
    """Refuse operators that look at data, where there are none.

    Raises:
        ConfigurationError: naming the operators, and what to write.
    """
    if lacking := looking(recipe):
        raise ConfigurationError(no_texts(name) for name in lacking)


def looking(recipe: Recipe) -> list[str]:
    """The operators of a recipe that look at data."""
    named = dict.fromkeys(merge.operator for merge in recipe.merges() if merge.operator)
    known = {name: OPERATORS.get(name) for name in named}
    return [name for name, found in known.items() if found and found.needs != "nothing"]


def wanted(
    recipes: Iterable[Recipe], checkpoints: Mapping[str, Checkpoint], anatomy: Anatomy, base: str
) -> list[tuple[str, str]]:
    """What recipes will ask for: kinds of statistics, each with a model."""
    merger = Merger(checkpoints, anatomy, base)
    found: dict[tuple[str, str], None] = {}
    for recipe in recipes:
        if not looking(recipe):
            continue
        for effective in merger.plan(recipe).values():
            if effective is None:
                continue
            for kind, whose in operator_of(effective).collects(dict(effective.values)):
                models = effective.sources if whose == "sources" else (base,)
                found |= dict.fromkeys((kind, model) for model in models)
    return list(found)


def collect(
    calibration: Calibration,
    needed: Sequence[tuple[str, str]],
    checkpoints: Mapping[str, Checkpoint],
    base: str,
    progress: Progress | None = None,
) -> None:
    """Collect before workers start, each of which would do it for itself, without a word."""
    collected = Collected(calibration, checkpoints, base, progress)
    for kind, model in needed:
        collected.of(kind, model)


def told(
    calibration: Calibration,
    recipes: Sequence[Recipe],
    checkpoints: Mapping[str, Checkpoint],
    anatomy: Anatomy,
    base: str,
) -> list[str]:
    """What recipes will have collected, for people.

    Raises:
        ConfigurationError: an operator cannot stand where it stands.
    """
    if not any(map(looking, recipes)):
        return ["calibration: no operator of this space looks at data"]
    needed = wanted(recipes, checkpoints, anatomy, base)
    if not needed:
        return ["calibration: what is collected is collected for each candidate anew"]
    collected = Collected(calibration, checkpoints, base)
    lines = []
    for kind, model in needed:
        tokens = collected.tokens(model)
        there = " (there already)" if collected.is_collected(kind, model) else ""
        lines.append(
            f"calibration: {KINDS[kind]} of {model}, from {len(tokens)} texts with "
            f"{sum(map(len, tokens)):,} tokens{there}"
        )
    return lines
