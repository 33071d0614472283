"""The one place that makes an experiment's parts and puts them together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints.anatomy import Anatomy, anatomy_of
from evomerge.checkpoints.family import open_family
from evomerge.checkpoints.matched import matching_beneath
from evomerge.checkpoints.open import Checkpoint
from evomerge.checkpoints.preflight import check_finite, preflight
from evomerge.checkpoints.relatedness import Relatedness, relate
from evomerge.errors import ConfigurationError, EvomergeError, ModelError, Problem
from evomerge.experiment.calibration import calibration_of, check_recipe
from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.demand import demand_for
from evomerge.experiment.paths import RUN
from evomerge.experiment.searcher_warnings import searcher_warnings
from evomerge.experiment.some_recipes import some_recipes
from evomerge.experiment.start import Start, read_start
from evomerge.experiment.tasks import (
    answer_warnings,
    check_answers,
    check_models,
    check_teachers,
    clock_warning,
    make_tasks,
    objectives_over,
    task_entries,
)
from evomerge.fitness.contamination import contamination_warning
from evomerge.fitness.estimators import make_estimator
from evomerge.fitness.select import Select
from evomerge.fitness.split import Split, split_items
from evomerge.merging.adapter_sources import check_adapters
from evomerge.merging.calibration import Calibration
from evomerge.merging.costs import Costs
from evomerge.merging.module import tokenizer_of
from evomerge.pools.placement import Demand
from evomerge.pools.worker import WorkerSpec
from evomerge.protocols import Estimator, Progress, Searcher, SearchSpace, Task
from evomerge.recipe import Merge, ModelSource, Recipe, canonical_json
from evomerge.records import Facts, Objective
from evomerge.search_spaces import make_space
from evomerge.search_spaces.limits import limited
from evomerge.searchers import SEARCHERS, make_searcher
from evomerge.zoo import zoo_path

if TYPE_CHECKING:
    from torch import Tensor, nn

IN_MEMORY = "memory:"  # what stands in place of the path of a state dict


@dataclass(frozen=True)
class InMemory:
    """What a Python user hands over instead of paths: state dicts, a module, a fitness."""

    models: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    build: Callable[[], nn.Module] | None = None
    python_tasks: Mapping[str, Task] = field(default_factory=dict)


@dataclass(frozen=True)
class Models:
    """Opened models that are known to fit together."""

    checkpoints: dict[str, Checkpoint]
    anatomy: Anatomy
    warnings: tuple[str, ...]
    relatedness: Relatedness


@dataclass(frozen=True)
class Parts:
    """An experiment, ready to run."""

    config: ExperimentConfig
    models: Models
    template: Recipe
    tasks: dict[str, Task]
    split: Split
    objectives: tuple[Objective, ...]
    costs: Costs
    limits: dict[str, float]
    space: SearchSpace
    estimator: Estimator
    searcher: Searcher
    start: Start
    select: Select
    worker: WorkerSpec

    @property
    def num_items(self) -> dict[str, int]:
        """Task -> length of a response column."""
        return {name: max(task.items) + 1 for name, task in self.tasks.items()}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know of the models, and of the tasks."""
        told = (
            contamination_warning(self.objectives, self.tasks),
            *answer_warnings(self.tasks, self.objectives),
            clock_warning(self.tasks),
            *searcher_warnings(self.config, self.space),
        )
        return (*self.models.warnings, *(text for text in told if text is not None))

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the trajectory, with models, tasks and groups by their content."""
        weights = {o.name: dict(o.weights) for o in self.objectives}
        has_groups = self.objectives != self.config.fitness.all_objectives()
        return {
            **self.config.identity(),
            "models": {name: source.sha256 for name, source in self.template.models.items()},
            "items": {name: task.fingerprint for name, task in self.tasks.items()},
            **({"weights": weights} if has_groups else {}),
            **({"texts": texts} if (texts := self.template.calibration) else {}),
            **({"start": sha256} if (sha256 := self.start.sha256) else {}),
            **({"chat_template": self._chat_template} if self._has_chat else {}),
        }

    @property
    def _has_chat(self) -> bool:
        return any(entry.get("chat_template") for entry in self.config.fitness.tasks.values())

    @property
    def _chat_template(self) -> str:
        """sha256 of what makes a conversation of a prompt; it stands beside the tensors."""
        tokenizer = tokenizer_of(self.models.checkpoints["base"])
        template = getattr(tokenizer, "chat_template", None)
        return hashlib.sha256(canonical_json(template).encode()).hexdigest()


def open_models(
    config: ExperimentConfig, in_memory: InMemory | None = None, progress: Progress | None = None
) -> Models:
    """Open and compare the models; zoo models are trained on first use.

    Raises:
        ConfigurationError: an unknown zoo.
        ModelError: everything that is missing, damaged, not finite, or does not fit.
    """
    given = (in_memory or InMemory()).models
    sources: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, path in config.models().items():
        try:
            if path.startswith(IN_MEMORY) and name not in given:
                raise ConfigurationError("was a state dict in memory: hand it over again")
            sources[name] = given[name] if name in given else resolve(path, progress)
        except EvomergeError as error:
            problems += [Problem(f"model {name}", str(p)) for p in error.problems]
    if problems:
        raise ConfigurationError(problems)
    family = open_family(
        sources,
        "base",
        allow_pickle=config.allow_pickle_weights,
        tokenizer=config.tokenizer,
        matches=config.matches,
        progress=progress,
    )
    checkpoints = family.checkpoints
    warnings = preflight(checkpoints, "base")
    for name, checkpoint in checkpoints.items():
        report = None if progress is None else partial(progress, f"reading {name}")
        try:
            check_finite(checkpoint, report)
        except ModelError as error:
            problems += [Problem(f"model {name}", str(p)) for p in error.problems]
    if problems:
        raise ModelError(problems)
    related = relate(checkpoints, "base", config.dtype)
    told = (*family.notes, *warnings, *related.warnings())
    return Models(checkpoints, anatomy_of(checkpoints["base"]), told, related)


def resolve(path: str, progress: Progress | None = None) -> str:
    """A model's folder or file; `zoo:` references are trained, `run:` ones merged on first use."""
    if path.startswith("zoo:"):
        return str(zoo_path(path, progress))
    if path.startswith(RUN):
        from evomerge.experiment.stacked import run_model  # it opens a run's models as is done here

        return str(run_model(path, progress))
    return str(Path(path).expanduser())


def wire(
    config: ExperimentConfig,
    in_memory: InMemory | None = None,
    progress: Progress | None = None,
    start: Start | None = None,
    calibration: Calibration | None = None,
) -> Parts:
    """Make all parts of an experiment; nothing is written and nothing is measured.

    start, calibration: what the run began with, if there is one already.

    Raises:
        ConfigurationError, ModelError: with all the problems of the first step that has any.
    """
    from evomerge.experiment.stacked import pin_runs

    config = pin_runs(config)
    given = in_memory or InMemory()
    if problems := config.space.check_experts(tuple(config.experts)):
        raise ConfigurationError(problems)
    entries = task_entries(config.fitness, allow_code=config.allow_code)
    tasks = make_tasks(entries, given.python_tasks)
    objectives = objectives_over(config.fitness, {n: len(task.items) for n, task in tasks.items()})
    config.budget.reached_at(objectives)  # a target that cannot be is said before models are read
    check_teachers(tasks, tuple(config.models()))
    check_answers(tasks, objectives)
    split = split_items(
        {name: task.items for name, task in tasks.items()},
        config.fitness.split.search,
        config.fitness.split.fresh,
        config.fitness.split.holdout,
        config.fitness.split.seed,
    )
    estimator = make_estimator(config.fitness.estimator, objectives, split.search, config.seed)
    models = open_models(config, given, progress)
    check_models(tasks, entries, models.checkpoints["base"].config)
    if config.calibration is None:
        calibration = None
    elif calibration is None:
        tokenizer = tokenizer_of(models.checkpoints["base"])
        known = config.models()
        calibration = calibration_of(
            config.calibration, known, tasks, split, config.seed, tokenizer
        )
    template = make_template(config, models, calibration)
    costs = Costs(models.checkpoints["base"], models.anatomy)
    limits = config.limits.resolved(costs, template)
    space: SearchSpace = make_space(config.space, template, models.anatomy, models.checkpoints)
    space = limited(space, costs, limits)
    recipes = list(some_recipes(space, config.seed))
    if wrong := check_adapters(recipes, models.checkpoints):
        raise ConfigurationError(wrong)
    for recipe in recipes if calibration is None else ():
        check_recipe(recipe)
    if estimator.needs_genes and not space.genes:
        what = "needs a space whose genomes are lists of numbers"
        raise ConfigurationError(Problem("fitness.estimator", what))
    if not estimator.is_complete and "complete_responses" in SEARCHERS[config.searcher.kind].needs:
        what = f"{config.searcher.kind} compares candidates item by item"
        hint = "an estimator that asks everybody the same: full, or subset without rotate"
        raise ConfigurationError(Problem("fitness.estimator", what, hint))
    if start is None:
        start = read_start(config, space, template, objectives, tasks, split)
    facts = facts_of(space, objectives, models, start)
    return Parts(
        config=config,
        models=models,
        template=template,
        tasks=tasks,
        split=split,
        objectives=objectives,
        costs=costs,
        limits=limits,
        space=space,
        estimator=estimator,
        searcher=make_searcher(
            config.searcher.kind,
            space,
            config.seed,
            facts,
            config.searcher.options,
            config.searcher.scalarise,
        ),
        start=start,
        select=Select(
            config.fitness.select.kind,
            config.fitness.select.weights,
            config.fitness.select.at_least,
        ),
        worker=worker_spec(
            config,
            given,
            models,
            demand_for(models.checkpoints, template, recipes, costs, config.threads_per_worker),
            calibration,
        ),
    )


def facts_of(
    space: SearchSpace, objectives: Sequence[Objective], models: Models, start: Start
) -> Facts:
    """What the searcher may know before it asks."""
    experts = tuple(models.relatedness.relations)
    alone = space.alone()
    return Facts(
        designs=(*start.designs, *space.designs()),
        given=start.designs,
        warm_start=start.warm_start,
        objectives=tuple(o.name for o in objectives),
        experts=tuple(alone[name] for name in experts) if set(experts) <= set(alone) else (),
        gram=tuple(map(tuple, models.relatedness.delta_gram.tolist())),
    )


def worker_spec(
    config: ExperimentConfig,
    in_memory: InMemory,
    models: Models,
    demand: Demand,
    calibration: Calibration | None = None,
) -> WorkerSpec:
    """What a worker is sent, once."""
    return WorkerSpec(
        models={
            name: in_memory.models.get(name) or resolve(path)
            for name, path in config.models().items()
        },
        base="base",
        tasks={
            name: entry
            for name, entry in task_entries(config.fitness, allow_code=config.allow_code).items()
            if name not in in_memory.python_tasks
        },
        threads=config.threads_per_worker,
        sha256={
            name: checkpoint.sha256()
            for name, checkpoint in models.checkpoints.items()
            if name not in in_memory.models  # the very same tensors
        },
        dtype=config.dtype,
        allow_pickle=config.allow_pickle_weights,
        tokenizer=config.tokenizer,
        matches=config.matches,
        matchings={
            name: matching
            for name, checkpoint in models.checkpoints.items()
            if (matching := matching_beneath(checkpoint)) is not None
        },
        build=in_memory.build,
        python_tasks=in_memory.python_tasks,
        demand=demand,
        calibration=calibration,
    )


def make_template(
    config: ExperimentConfig, models: Models, calibration: Calibration | None = None
) -> Recipe:
    """What all recipes of the run share; masks have the run's seed."""
    sources = {
        name: ModelSource(
            path=resolve(path),
            sha256=models.checkpoints[name].sha256(),
            match=config.matches.get(name),
        )
        for name, path in config.models().items()
    }
    return Recipe(
        base="base",
        models=sources,
        default=Merge(operator="linear"),  # each recipe has its own
        dtype=config.dtype,
        tokenizer=config.tokenizer,
        mask_seed=config.seed,
        calibration=None if calibration is None else calibration.sha256,
    )
