"""The nouns of evomerge: plain data that travels between its parts.

A searcher proposes *genomes*; a search space decodes each into a *recipe* (see recipe.py); a job
measures some items of one candidate; its outcome holds *responses*; an estimator turns the
responses of a *cohort* into *scores*; the searcher is told *evaluations*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.recipe import Recipe

CandidateId = int  # counted from 0 in the order of asking; references have negative ids
ItemId = int  # position of an item in its task's documents
Genome = Any  # a JSON value that its search space understands; for most: a list in [0, 1]

SHOWN_GENES = 8  # of a genome, in the line that shows a candidate


# --- what can be varied ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """A typed, bounded parameter of an operator.

    `per_source` parameters (real ones) may be one value, or one for each source. An integer may be
    written as a whole float. `phase` says when it is read: a `prepare` parameter fixes what is
    cached, an `apply` parameter is free for each candidate.
    """

    name: str
    kind: Literal["real", "integer", "flag", "choice"]
    default: float | bool | str
    help: str
    low: float | None = None
    high: float | None = None
    options: tuple[str, ...] = ()
    per_source: bool = False
    phase: Literal["prepare", "apply"] = "apply"


# --- what is measured -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Responses:
    """What one model answered to some items of one task.

    columns: name -> float32 values, shape (len(items),); `score` is always there, higher is better.
    texts: what was generated, where something was.
    failures: item -> why it could not be answered. Its score is then the worst that there is of the
        task, and its other columns are NaN.
    """

    task: str
    items: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.float32]]
    texts: tuple[str, ...] | None = None
    failures: Mapping[ItemId, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Why a candidate has no score."""

    kind: Literal["violation", "merge", "task", "non_finite", "worker", "memory", "timeout"]
    reason: str


@dataclass(frozen=True)
class Candidate:
    """A genome that was asked for, or a reference, and the recipe that it decodes to.

    `recipe` is None when the genome violates its space; `violations` then says how.
    """

    id: CandidateId
    genome: Genome | None
    recipe: Recipe | None
    violations: tuple[str, ...] = ()
    label: str = ""

    @property
    def fingerprint(self) -> str:
        """The recipe's fingerprint; candidates with the same one share their responses."""
        return self.recipe.fingerprint if self.recipe is not None else ""

    def __repr__(self) -> str:
        """In a line, without the recipe, which says every slot of a merged model."""
        genome = self.genome
        if isinstance(genome, list):  # some are long
            numbers = [f"{x:.4g}" if isinstance(x, float) else str(x) for x in genome[:SHOWN_GENES]]
            more = [f"... {len(genome)} in all"] if len(genome) > SHOWN_GENES else []
            genome = f"[{', '.join(numbers + more)}]"
        said = f"label={self.label!r}" if self.label else f"genome={genome}"
        what = self.violations or self.fingerprint[:12]
        return f"Candidate({self.id}, {said}, {what})"


@dataclass(frozen=True)
class Request:
    """An estimator's wish: these items of this task, for this candidate."""

    candidate: CandidateId
    task: str
    items: tuple[ItemId, ...]


@dataclass(frozen=True)
class Job:
    """What travels to a worker: a recipe and, for each task, item ids."""

    id: int
    candidate: CandidateId
    recipe: Recipe
    items: Mapping[str, tuple[ItemId, ...]]

    @property
    def num_items(self) -> int:
        """Item evaluations that the job costs."""
        return sum(len(items) for items in self.items.values())


@dataclass(frozen=True)
class Outcome:
    """What comes back: responses, or a failure; and where the time went, in seconds."""

    job: Job
    responses: tuple[Responses, ...] = ()
    failure: Failure | None = None
    worker: str = ""
    merge_s: float = 0.0
    measure_s: float = 0.0
    forward_s: float = 0.0  # the part of measure_s inside the model's forward passes


@dataclass(frozen=True)
class FailedJob:
    """A failure, and what was asked when it happened."""

    failure: Failure
    items: Mapping[str, frozenset[ItemId]]
    cohort: int


class Measurements:
    """Every response and failure so far: the one matrix that all statistics are functions of.

    Both are kept by the recipe's fingerprint: equal recipes share what is known of them. What a
    recipe costs is known without an answer: `costs` says it, cost by cost.
    """

    def __init__(
        self,
        num_items: Mapping[str, int],
        costs: Callable[[Recipe], Mapping[str, float]] | None = None,
    ) -> None:
        self.num_items = dict(num_items)  # task -> number of all its items
        self._cost_of = costs
        self._costs: dict[str, Mapping[str, float]] = {}
        self.item_evaluations = 0
        self._failed: dict[str, list[FailedJob]] = {}
        self._failed_items: dict[tuple[str, str], dict[ItemId, str]] = {}
        self._columns: dict[tuple[str, str], dict[str, NDArray[np.float32]]] = {}

    def add(self, fingerprint: str, responses: Responses) -> None:
        """Record responses; an item that was answered before keeps its first answer."""
        columns = self._columns.setdefault((fingerprint, responses.task), {})
        fresh = self.missing(fingerprint, responses.task, responses.items.tolist())
        self.item_evaluations += len(fresh)
        chosen: Any = slice(None)  # all of them, as nearly always
        if len(fresh) < len(responses.items):
            chosen = np.isin(responses.items, fresh)
        for name, values in responses.columns.items():
            if name not in columns:
                columns[name] = np.full(self.num_items[responses.task], np.nan, np.float32)
            columns[name][responses.items[chosen]] = values[chosen]
        self.fail_items(fingerprint, responses.task, responses.failures)

    def fail_items(self, fingerprint: str, task: str, failures: Mapping[ItemId, str]) -> None:
        """Record why single items have the worst score; an earlier reason stays."""
        if failures:
            known = self._failed_items.setdefault((fingerprint, task), {})
            for item, reason in failures.items():
                known.setdefault(item, reason)

    def failed_items(self, fingerprint: str) -> dict[str, Mapping[ItemId, str]]:
        """Task -> item -> why it could not be answered, of the tasks where there are such."""
        return {task: told for (of, task), told in self._failed_items.items() if of == fingerprint}

    def fail(
        self,
        fingerprint: str,
        failure: Failure,
        items: Mapping[str, Iterable[ItemId]],
        cohort: int,
    ) -> None:
        """Record that a job for these items failed.

        It counts for those items alone: whoever fails in a last choice, or further on in a race,
        has not failed for a search that never asks for that.
        """
        asked = {task: frozenset(ids) for task, ids in items.items()}
        self._failed.setdefault(fingerprint, []).append(FailedJob(failure, asked, cohort))

    def can_answer(self, fingerprint: str, items: Mapping[str, Sequence[ItemId]]) -> bool:
        """Whether a candidate can answer the items, as far as is known.

        It cannot where a job failed that asked for some that are missing; nor where all of them
        are answered, and none of a task's soundly. The latter is a function of these items'
        answers alone: which jobs brought them, and what else was answered, changes nothing.
        """
        failed = self._failed.get(fingerprint, ())
        if not failed and not any((fingerprint, task) in self._failed_items for task in items):
            return True
        missing = {task: self.missing(fingerprint, task, wanted) for task, wanted in items.items()}
        if any(missing.values()):
            return all(
                job.items.get(task, frozenset()).isdisjoint(lacking)
                for task, lacking in missing.items()
                for job in failed
            )
        return self._unsound(fingerprint, items) is None

    def why_not(
        self, fingerprint: str, items: Mapping[str, Sequence[ItemId]], cohort: int
    ) -> Failure | None:
        """Why a cohort's items cannot be answered; None where they can."""
        if self.can_answer(fingerprint, items):
            return None
        if any(self.missing(fingerprint, task, wanted) for task, wanted in items.items()):
            return self.failure(fingerprint, cohort)
        return self._unsound(fingerprint, items)

    def _unsound(self, fingerprint: str, items: Mapping[str, Sequence[ItemId]]) -> Failure | None:
        """That every one of some task's items failed, if so."""
        for task, wanted in items.items():
            told = self._failed_items.get((fingerprint, task), {})
            if wanted and all(item in told for item in wanted):
                # Of many reasons the ledger keeps a few, by job: which is the commonest may depend
                # on jobs, and what is told of a candidate must not.
                reasons = {told[item] for item in wanted}
                reason = reasons.pop() if len(reasons) == 1 else "for more than one reason"
                return Failure("task", f"{task}: no item could be answered: {reason}")
        return None

    def failure(self, fingerprint: str, cohort: int) -> Failure | None:
        """Why a recipe failed, as a cohort sees it: what failed in later ones comes last."""
        failed = self._failed.get(fingerprint, ())
        in_view = sorted(failed, key=lambda job: not -1 <= job.cohort <= cohort)
        return in_view[0].failure if in_view else None

    def failed_jobs(self, fingerprint: str) -> tuple[FailedJob, ...]:
        """What was asked of a recipe and failed."""
        return tuple(self._failed.get(fingerprint, ()))

    def missing(self, fingerprint: str, task: str, items: Iterable[ItemId]) -> tuple[ItemId, ...]:
        """Those of the items that nobody has answered yet."""
        wanted = tuple(items)
        columns = self._columns.get((fingerprint, task))
        if not columns or not wanted:
            return wanted
        is_missing = np.isnan(columns["score"][list(wanted)])
        return tuple(wanted[place] for place in np.flatnonzero(is_missing))

    def answered(self, fingerprint: str, task: str, items: Iterable[ItemId]) -> tuple[ItemId, ...]:
        """Those of the items that have an answer."""
        wanted = tuple(items)
        missing = set(self.missing(fingerprint, task, wanted))
        return tuple(item for item in wanted if item not in missing)

    def values(
        self, fingerprint: str, task: str, items: Sequence[ItemId], column: str = "score"
    ) -> NDArray[np.float64]:
        """One column at the items, shape (len(items),), as float64; NaN where not yet answered.

        Raises:
            ConfigurationError: the task's answers have no such column.
        """
        columns = self._columns.get((fingerprint, task))
        if columns is None:
            return np.full(len(items), np.nan)
        if column not in columns:
            raise ConfigurationError(
                Problem(f"task {task}", f"no column {column!r}", nearest(column, columns))
            )
        return columns[column][np.asarray(items, dtype=np.int64)].astype(np.float64)

    def columns(self, fingerprint: str, task: str) -> tuple[str, ...]:
        """The columns of the answers to a task, as far as there are any."""
        return tuple(self._columns.get((fingerprint, task), ()))

    def cost(self, candidate: Candidate, name: str) -> float:
        """What a candidate's merged model costs; a pure function of its recipe.

        Raises:
            ValueError: nobody said how costs are told, or the candidate has no recipe.
        """
        fingerprint = candidate.fingerprint
        if fingerprint not in self._costs:
            if self._cost_of is None or candidate.recipe is None:
                raise ValueError(f"the {name} of candidate {candidate.id} cannot be told")
            self._costs[fingerprint] = self._cost_of(candidate.recipe)
        return self._costs[fingerprint][name]


# --- what it means --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    """What is maximised: a weighted mean over tasks of one response column, or minus a cost.

    `sign` is -1 for what the user wants small; it is applied once, so that everything inside
    evomerge maximises. `agreement` counts the neighbours whose answers are compared with a
    candidate's own (see fitness/agreement.py); 0 takes the answers' values.
    """

    name: str
    weights: Mapping[str, float]  # task -> weight; they sum to 1; none for a cost
    column: str = "score"
    sign: int = 1
    cost: str | None = None  # what the merged model costs, instead of what it answers
    agreement: int = 0


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error, from `num_items` item evaluations: 0 for a cost."""

    value: float
    standard_error: float
    num_items: int

    @property
    def is_cost(self) -> bool:
        """Whether it is known exactly from the recipe, in units of its own."""
        return self.num_items == 0


@dataclass(frozen=True)
class Score:
    """One estimate per objective, all maximised.

    `rung` counts the stages that a candidate survived: one dropped at rung r ranks below every
    survivor of r, whatever their values.
    """

    objectives: Mapping[str, Estimate]
    rung: int = 0

    @property
    def values(self) -> tuple[float, ...]:
        """The objectives' values, in their declared order."""
        return tuple(estimate.value for estimate in self.objectives.values())

    @property
    def mean(self) -> float:
        """The mean of the objectives that were measured; parameters are not added to accuracies."""
        measured = [e.value for e in self.objectives.values() if not e.is_cost]
        return float(np.mean(measured or self.values))


@dataclass(frozen=True)
class Evaluation:
    """What a searcher is told of one candidate: a score, or why there is none."""

    id: CandidateId
    genome: Genome
    score: Score | None
    failure: Failure | None = None
    violation: float = 0.0
    responses: Mapping[str, Responses] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """A candidate that was told, the items on which that rests (task -> ids), and its rung."""

    candidate: Candidate
    items: Mapping[str, Sequence[ItemId]]
    rung: int = 0


@dataclass(frozen=True)
class Cohort:
    """The candidates of one ask, and what an estimator may compare them with.

    `incumbents` are the best that were told when the cohort was asked, best first, and `history`
    is everything that was told then, for estimators that learn from it: so an estimate does not
    depend on what arrives first. `references` are models that answered all search items: the base,
    each expert, and their uniform merge. All estimates are pure functions of `measurements`.
    """

    index: int
    candidates: tuple[Candidate, ...]
    measurements: Measurements
    incumbents: tuple[Candidate, ...] = ()
    references: tuple[Candidate, ...] = ()
    history: tuple[Told, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What a searcher may know before it asks.

    designs: genomes worth trying first: what the user names, then each expert alone and the
        uniform merge, where the space can express them.
    given: the user's own merges among the designs, which are asked for before all others.
    experts: the genome of each expert alone; empty where the space cannot express all of them.
    gram: inner products of the experts' task vectors, (experts, experts), in the same order, up to
        a common factor; empty where nobody knows.
    warm_start: what another run was told, in its order, as far as this space can express it; the
        ids are that run's.
    """

    designs: tuple[Genome, ...] = ()
    objectives: tuple[str, ...] = ("score",)
    given: tuple[Genome, ...] = ()
    experts: tuple[Genome, ...] = ()
    gram: tuple[tuple[float, ...], ...] = ()
    warm_start: tuple[Evaluation, ...] = ()


@dataclass(frozen=True)
class Budget:
    """When a search stops; what is None does not count.

    patience: candidates without progress, see stopping.py.
    """

    candidates: int | None = None
    item_evaluations: int | None = None
    hours: float | None = None
    patience: int | None = None
