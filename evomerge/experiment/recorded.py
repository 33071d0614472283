"""A run's ledger, as estimators see it: for reading its answers again without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from scipy import stats

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.open import open_checkpoint
from evomerge.documents import read_yaml
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.run import read_run_config
from evomerge.experiment.tasks import objectives_over
from evomerge.experiment.wire import IN_MEMORY, resolve
from evomerge.fitness.config import read_fitness
from evomerge.fitness.estimators import ESTIMATORS
from evomerge.fitness.split import Split, split_items
from evomerge.ledger import LEDGER, REFERENCES, Ledger
from evomerge.merging.costs import Costs
from evomerge.recipe import Recipe
from evomerge.records import (
    Candidate,
    CandidateId,
    Evaluation,
    Measurements,
    Objective,
)
from evomerge.results.references import models_of

Json = dict[str, Any]
CostOf = Callable[[Recipe], Mapping[str, float]]


@dataclass(frozen=True)
class Recorded:
    """What a run's ledger holds for an estimator.

    cohorts: those that have scores, in their order; the last one may be cut short by the budget.
    lags: for each of them, how many were told before it was asked for; in their order, if empty.
    """

    folder: Path
    objectives: tuple[Objective, ...]
    split: Split
    seed: int
    ledger: Ledger
    measurements: Measurements
    costs: CostOf
    references: tuple[Candidate, ...]
    cohorts: tuple[tuple[Candidate, ...], ...]
    evaluations: Mapping[CandidateId, Evaluation]
    lags: tuple[int, ...] = ()

    @property
    def models(self) -> tuple[Candidate, ...]:
        """The references that answered all search items."""
        return models_of(self.references)

    def answered(self, candidate: Candidate) -> dict[str, tuple[int, ...]]:
        """The search items that a candidate has answered."""
        return {
            task: self.measurements.answered(candidate.fingerprint, task, ids)
            for task, ids in self.split.search.items()
        }


def read_run(folder: Path) -> Recorded:
    """Open a run to read it again.

    Raises:
        ConfigurationError: there is no run, or nothing was told in it.
    """
    config = read_run_config(folder)
    costs = _costs_of(config)
    ledger = Ledger(folder / LEDGER, read_only=True, costs=costs)
    evaluations = ledger.evaluations()
    asked = ledger.asked_ids()
    cohorts, lags = _cohorts(ledger, asked)
    if not cohorts:
        raise ConfigurationError(f"{folder}: no candidate has a score yet")
    fitness, num_items = config.fitness, ledger.meta["num_items"]
    return Recorded(
        folder=folder,
        objectives=objectives_over(fitness, num_items),
        split=split_items(
            {task: range(number) for task, number in num_items.items()},
            fitness.split.search,
            fitness.split.fresh,
            fitness.split.holdout,
            fitness.split.seed,
        ),
        seed=config.seed,
        ledger=ledger,
        measurements=ledger.measurements,
        costs=costs,
        references=tuple(
            ledger.candidates[id_] for id_ in sorted(asked[REFERENCES], reverse=True)
        ),  # as they were asked: -1, -2, ...
        cohorts=cohorts,
        lags=lags,
        evaluations=evaluations,
    )


def read_estimator(text: str, num_items: int | None = None) -> dict[str, Any]:
    """An estimator's entry: of its kind alone, of YAML in braces, or of a fitness file.

    num_items: its `items`, where it has such an option.

    Raises:
        ConfigurationError: no such kind, or no such file.
    """
    if text.lstrip().startswith("{"):
        try:
            config = yaml.safe_load(text)
        except yaml.YAMLError as error:
            what = f"is no YAML: {' '.join(str(error).split())}"
            raise ConfigurationError(Problem("--estimator", what)) from None
    elif text.endswith((".yaml", ".yml")):
        config = dict(read_fitness(read_yaml(Path(text))).estimator)
    else:
        config = {"kind": text}
    kind = str(config.get("kind", "full"))
    if kind not in ESTIMATORS:
        hint = nearest(kind, ESTIMATORS)
        raise ConfigurationError(Problem("--estimator", f"unknown kind {kind!r}", hint))
    return config if num_items is None else {**config, "items": num_items}


def _cohorts(
    ledger: Ledger, asked: Mapping[int, Sequence[CandidateId]]
) -> tuple[tuple[tuple[Candidate, ...], ...], tuple[int, ...]]:
    """The cohorts with scores, and how many of them were told when each was asked for."""
    cohorts: list[tuple[Candidate, ...]] = []
    lags: dict[int, int] = {}
    cut: tuple[Candidate, ...] = ()
    for kind, number, data in ledger.events("asked", "told", "scored"):
        if number < 0:
            continue
        if kind == "asked":
            lags[number] = len(cohorts)
            continue
        own = {entry["id"] for entry in data}
        scored = tuple(ledger.candidates[id_] for id_ in asked[number] if id_ in own)
        if kind == "told":
            cohorts, cut = [*cohorts, scored], ()
        else:
            cut = scored
    found = (*cohorts, *((cut,) if cut else ()))
    return found, tuple(lags[number] for number in range(len(found)))


def _costs_of(config: ExperimentConfig) -> CostOf:
    """What recipes cost, over the run's base, which is opened when somebody asks."""
    known: list[Costs] = []

    def cost_of(recipe: Recipe) -> Mapping[str, float]:
        if not known:
            if config.base.startswith(IN_MEMORY):
                what = "cannot be told: the run's base was a state dict in memory"
                raise ConfigurationError(Problem("costs", what))
            base = open_checkpoint(
                resolve(config.base), name="base", allow_pickle=config.allow_pickle_weights
            )
            known.append(Costs(base, anatomy_of(base)))
        return known[0](recipe)

    return cost_of


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Their rank correlation; None where one of them does not vary."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(stats.spearmanr(first, second).statistic)
