"""A run whose models or files lie elsewhere now: on another disk, or on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.documents import Document, parse
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.paths import RUN, absolute_model
from evomerge.experiment.wire import IN_MEMORY
from evomerge.fitness.config import FitnessConfig


def moved(
    config: ExperimentConfig, models: Mapping[str, str], folders: Mapping[str, str]
) -> ExperimentConfig:
    """The experiment with other paths; nothing else may change by this.

    Args:
        config: as it is frozen in the run's folder.
        models: name -> where the model is now.
        folders: old -> new; whatever path of a model, a task or a pool of answers lies in an old
            one lies in the new one. What a search began with is in its ledger.

    Raises:
        ConfigurationError: a model that the run has not, or a folder that no path is in.
    """
    names = config.models()
    problems = [
        Problem(f"--model {name}", "no such model in this run", nearest(name, names))
        for name in models
        if name not in names
    ]
    here = Path.cwd()
    absolute = {str(Path(old).expanduser()): absolute_model(n, here) for old, n in folders.items()}
    # The folder inside another is looked at first, whatever the order in which they were said.
    absolute = {old: absolute[old] for old in sorted(absolute, key=len, reverse=True)}
    used: set[str] = set()
    found = {name: _replaced(path, absolute, used) for name, path in names.items()}
    fitness = _replaced(
        config.fitness.model_dump(mode="json", exclude_defaults=True), absolute, used
    )
    problems += [
        Problem(f"--moved {old}", "no path of this run is in that folder", _paths(names))
        for old in absolute
        if old not in used
    ]
    if problems:
        raise ConfigurationError(problems)
    found |= {name: absolute_model(path, here) for name, path in models.items()}
    changed = {
        "base": found.pop("base"),
        "experts": found,
        "fitness": parse(FitnessConfig, Document(fitness)),
    }
    return parse(ExperimentConfig, Document({**dict(config), **changed}))


def check_models_are_there(config: ExperimentConfig) -> None:
    """That the folders and files of the models exist.

    Raises:
        ConfigurationError: naming each that does not, and how to say where it is.
    """
    problems = []
    for name, path in config.models().items():
        text = path.removeprefix(RUN).partition("#")[0] if path.startswith(RUN) else path
        if not text.startswith(("zoo:", IN_MEMORY)) and not Path(text).exists():
            hint = f"where is it now? --model {name}=PATH, or --moved OLD=NEW for many"
            problems.append(Problem(f"model {name}", f"there is no {text}", hint))
    if problems:
        raise ConfigurationError(problems)


def _replaced(value: Any, folders: Mapping[str, str], used: set[str]) -> Any:
    """A JSON value with every path in the old folders led to the new ones."""
    if isinstance(value, dict):
        return {key: _replaced(inner, folders, used) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, folders, used) for inner in value]
    if not isinstance(value, str):
        return value
    for old, new in folders.items():
        for kind in ("", RUN, "python:"):
            begin = kind + old.rstrip("/")
            if value == begin or value.startswith((f"{begin}/", f"{begin}#")):
                used.add(old)
                return kind + new.rstrip("/") + value.removeprefix(begin)
    return value


def _paths(models: Mapping[str, str]) -> str:
    return f"its models: {', '.join(models.values())}"
