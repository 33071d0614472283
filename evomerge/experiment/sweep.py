"""A sweep: the same experiment with several searchers and several seeds, from one file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from evomerge.documents import Document, Strict, check_options, collect, parse, read_yaml
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.experiment.config import (
    ExperimentConfig,
    SearcherConfig,
    parse_experiment,
)
from evomerge.experiment.paths import find_in_catalogue
from evomerge.searchers import OPTIONS

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # what a run's folder may be called
OWN_KEYS = ("searcher", "seed", "name")  # of an experiment: the sweep says them


class SweepConfig(Strict):
    """A sweep's file.

    experiment: a file, a name in the catalogue, or an experiment itself; its searcher and its seed
        are replaced. seeds: a list, or how many: 3 is [0, 1, 2]. searchers: name -> kind and
        options, or a list of kinds; the experiment's own if there are none. change: other keys of
        the experiment, for all runs alike.
    """

    experiment: str | dict[str, Any]
    seeds: (
        Annotated[int, Field(ge=1)]
        | Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)]
    ) = 3
    searchers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    change: dict[str, Any] = Field(default_factory=dict)

    @field_validator("seeds")
    @classmethod
    def _once_each(cls, seeds: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(seeds, tuple) and len(set(seeds)) < len(seeds):
            raise ValueError("a seed stands twice")
        return seeds

    @field_validator("searchers")
    @classmethod
    def _names(cls, searchers: dict[str, Any]) -> dict[str, Any]:
        for name in searchers:
            if not NAME.fullmatch(name):
                what = "is to be a folder's name: letters, digits, dots, dashes"
                raise ValueError(f"{name!r} {what}")
        return searchers

    @field_validator("change")
    @classmethod
    def _of_the_experiment(cls, change: dict[str, Any]) -> dict[str, Any]:
        for key in change:
            if key in OWN_KEYS:
                raise ValueError(f"{key!r} is the sweep's: see `searchers` and `seeds`")
            if key not in ExperimentConfig.model_fields:
                hint = nearest(key, ExperimentConfig.model_fields)
                raise ValueError(f"an experiment has no key {key!r} ({hint})")
        return change

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """One by one."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep; its folder has its name."""

    searcher: str
    seed: int
    config: ExperimentConfig

    @property
    def name(self) -> str:
        """The searcher's name, and the seed."""
        return f"{self.searcher}-{self.seed}"


def read_sweep(path: Path) -> list[PlannedRun]:
    """The runs of a sweep's file, in its order: seed by seed, and in each all searchers.

    So the searchers can be compared as soon as the first seeds are done.

    Raises:
        ConfigurationError: with every problem of the file, and of the experiment.
    """
    document = _with_named_searchers(read_yaml(path))
    sweep = parse(SweepConfig, document)
    problems: list[Problem] = []
    for name in sweep.searchers:
        collect(problems, partial(parse, SearcherConfig, document.part("searchers", name)))
        check_options(problems, document, ("searchers", name), OPTIONS, noted=["scalarise"])
    if problems:
        raise ConfigurationError(problems)
    experiment = _experiment(document, sweep)
    configs: dict[str, ExperimentConfig] = {}
    for name in sweep.searchers or [""]:
        searcher = sweep.searchers.get(name)
        config = collect(problems, partial(_config, document, experiment, searcher))
        if config is not None:
            configs[name or config.searcher.kind] = config
    if problems:
        raise ConfigurationError(dict.fromkeys(problems))
    return [
        PlannedRun(name, seed, config.model_copy(update={"seed": seed, "name": f"{name}-{seed}"}))
        for seed in sweep.all_seeds
        for name, config in configs.items()
    ]


def _with_named_searchers(document: Document) -> Document:
    """A list of searchers as a mapping: each is called by its kind."""
    data = document.data
    listed = data.get("searchers") if isinstance(data, dict) else None
    if not isinstance(listed, list):
        return document
    named: dict[str, Any] = {}
    for index, entry in enumerate(listed):
        options = {"kind": entry} if isinstance(entry, str) else entry
        kind = options.get("kind") if isinstance(options, dict) else None
        where = document.where(("searchers", index))
        if not isinstance(kind, str):
            what = f"should be a kind, or a mapping with a kind, got {entry!r}"
            raise ConfigurationError(Problem(where, what))
        if kind in named:
            hint = "write a mapping: a name for each, with its kind and options"
            raise ConfigurationError(Problem(where, f"{kind} stands twice", hint))
        named[kind] = options
    return replace(document, data={**data, "searchers": named})


def _experiment(document: Document, sweep: SweepConfig) -> Document:
    """The experiment that a sweep names or holds."""
    if isinstance(sweep.experiment, dict):
        return document.part("experiment")
    folder = document.path.parent if document.path else Path.cwd()
    try:
        return read_yaml(find_in_catalogue(sweep.experiment, "experiments", folder))
    except ConfigurationError as error:
        place = document.where(("experiment",))
        raise ConfigurationError(
            Problem(f"{place} -> {p.where}", p.what, p.hint) for p in error.problems
        ) from None


def _config(
    document: Document, experiment: Document, searcher: dict[str, Any] | None
) -> ExperimentConfig:
    """The experiment with one searcher, and with what is changed for all."""
    folder = document.path.parent if document.path else Path.cwd()
    change = {k: _near(v, folder) for k, v in document.data.get("change", {}).items()}
    if not isinstance(experiment.data, dict):
        return parse_experiment(experiment)  # says so
    own = {} if searcher is None else {"searcher": searcher}
    data = {**experiment.data, **change, **own}
    try:
        return parse_experiment(replace(experiment, data=data))
    except ConfigurationError as error:
        raise ConfigurationError(
            Problem(f"{document.path} -> {p.where}", p.what, p.hint) for p in error.problems
        ) from None


def _near(value: Any, folder: Path) -> Any:
    """A file beside the sweep's, which the experiment's folder does not have."""
    if isinstance(value, str) and (folder / value).is_file():
        return str((folder / value).resolve())
    return value


def fair_share(config: ExperimentConfig, jobs: int) -> ExperimentConfig:
    """The experiment with its part of the workers, where so many runs go on at once.

    A cluster's `auto` stays: who has how much of the cluster is decided there.
    """
    pool = config.pool
    total = pool.num_workers if pool.kind == "local" else pool.workers
    if jobs == 1 or not isinstance(total, int) or total == 0:
        return config
    data = {**pool.model_dump(exclude_unset=True), "workers": max(1, total // jobs)}
    return config.model_copy(update={"pool": parse(type(pool), Document(data))})


def folders(runs: Sequence[PlannedRun], folder: Path) -> dict[str, dict[int, Path]]:
    """Searcher -> seed -> the folder of its run."""
    found: dict[str, dict[int, Path]] = {}
    for run in runs:
        found.setdefault(run.searcher, {})[run.seed] = folder / run.name
    return found
