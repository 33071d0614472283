"""evomerge's search for the same time, in one process, and the judging of all that was found."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from accounting import CLOCKS, Account, Moment
from cases import Case

from evomerge.experiment.run import run_experiment
from evomerge.fitness import forward
from evomerge.pools.worker import Worker, WorkerSpec
from evomerge.recipe import Merge, ModelSource, Recipe
from evomerge.records import CandidateId, Evaluation, ItemId, Job, Outcome
from evomerge.run import Run

MANY = 1_000_000  # candidates: time ends the search


class TimeIsUp(BaseException):
    """Ends a search between two cohorts; no Exception, which observers' failures would be."""


@dataclass
class Stopwatch:
    """Watches a run: when its phases begin, candidates, forward passes; and ends it in time."""

    seconds: float | None
    clock: str
    start: Moment = field(default_factory=Moment.now)
    begun: dict[str, Moment] = field(default_factory=dict)  # phase -> when it first began
    forward_s: dict[str, float] = field(default_factory=dict)  # phase -> seconds
    told_of: set[CandidateId] = field(default_factory=set)  # incumbents are told of again
    _phase: str = ""

    def phase(self, name: str) -> None:
        """Of an observer."""
        self._phase = name
        self.begun.setdefault(name, Moment.now())

    def measured(self, outcome: Outcome) -> None:
        """Of an observer."""
        self.forward_s[self._phase] = self.forward_s.get(self._phase, 0.0) + outcome.forward_s

    def told(self, evaluations: Sequence[Evaluation]) -> None:
        """Of an observer."""
        self.told_of.update(evaluation.id for evaluation in evaluations)
        if self.seconds is not None and self.spent().by(self.clock) >= self.seconds:
            raise TimeIsUp

    @property
    def num_told(self) -> int:
        """Of candidates."""
        return len(self.told_of)

    def spent(self) -> Moment:
        """Since the run was started."""
        return Moment.now().since(self.start)


@dataclass(frozen=True)
class OurFind:
    """The chosen recipe, and the time: all of it, and the search's share.

    before: opening the models and measuring references. The search's own candidates and their
    forward passes are those of `search`.
    """

    recipe: Recipe
    account: Account
    search: Account
    before: Moment


def search(
    case: Case,
    *,
    seed: int,
    seconds: float,
    clock: str,
    races: bool,
    folder: Path,
    dtype: str = "float32",
) -> OurFind:
    """Search until the time is up, then choose, as `evomerge run` does.

    What counts: everything from the start of the run to the moment when its best is chosen, with
    the opening of models and the 25 references that every run measures. The run is ended in between
    to end it by the clock, and resumed for the choice: its second opening does not count.
    """
    shutil.rmtree(folder, ignore_errors=True)
    vars(forward)["time"] = SimpleNamespace(perf_counter=CLOCKS[clock])  # what ForwardClock asks
    finale_s = case.finale_s if races else case.finale_s / 6  # the recommended one alone is new
    watch = Stopwatch(seconds - finale_s, clock)
    watchers: Any = [watch]  # of an observer, it has what it needs
    config = case.experiment(seed, races=races, candidates=MANY, dtype=dtype)
    try:
        run_experiment(config, folder, watchers=watchers)
        raise RuntimeError("the search has ended before its time")
    except TimeIsUp:
        spent = watch.spent()
    again = Stopwatch(None, clock)
    watchers = [again]
    config = case.experiment(seed, races=races, candidates=watch.num_told, dtype=dtype)
    run_experiment(config, folder, watchers=watchers)
    if again.num_told:
        raise RuntimeError("the run went on searching")
    choice = again.begun["holdout"].since(again.begun["finalists"])
    forward_s = sum(watch.forward_s.values())
    search_s = watch.forward_s.get("search", 0.0)
    whole = Account(clock, watch.num_told, spent, forward_s) + Account(
        clock, 0, choice, again.forward_s.get("finalists", 0.0)
    )
    before = watch.begun["search"].since(watch.start)
    within = Account(clock, watch.num_told, spent.since(before), search_s)
    run = Run(folder)
    recipe = run.candidate(run.status()["final"]["best"]["candidate"]).recipe
    assert recipe is not None
    return OurFind(recipe, whole, within, before)


def holdout_scores(
    case: Case,
    models: Mapping[str, str],
    recipe: Recipe | None,
    items: Mapping[str, Sequence[ItemId]],
) -> dict[str, list[float]]:
    """Task -> a score for each item, in the order of the ids; the same scorer for all.

    recipe: of these models; None is the base alone, such as a merged model's folder.
    """
    if recipe is None:
        recipe = Recipe(
            base="base",
            models={"base": ModelSource(path="base")},
            default=Merge(operator="linear", sources=("base",), parameters={"weight": 1.0}),
            dtype="float32",
        )
    spec: Any = WorkerSpec(dict(models), "base", case.entries(), dtype="float32")
    asked = {task: tuple(sorted(ids)) for task, ids in items.items()}
    outcome = Worker(spec, "driver").run(Job(0, 0, recipe, asked))
    if outcome.failure is not None:
        raise RuntimeError(outcome.failure.reason)
    scores = {}
    for responses in outcome.responses:
        by_item = dict(zip(responses.items, responses.columns["score"], strict=True))
        scores[responses.task] = [float(by_item[item]) for item in asked[responses.task]]
    return scores
