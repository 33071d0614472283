"""The five seams of evomerge. Whatever fulfils one of these can be named in an experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from evomerge.genes import Constraint, Gene
from evomerge.recipe import Recipe
from evomerge.records import (
    Candidate,
    CandidateId,
    Cohort,
    Evaluation,
    Failure,
    Genome,
    ItemId,
    Job,
    Outcome,
    Request,
    Responses,
    Score,
    Told,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import nn


Progress = Callable[[str, int, int], None]  # what is being done, how much of it, of how much


class SearchSpace(Protocol):
    """Says which merges are possible, and what a genome means."""

    @property
    def genes(self) -> tuple[Gene, ...]:
        """What its genomes are made of: a genome is a list of coordinates in [0, 1], one for each.

        None for a space whose genomes are something else, which few searchers can search.
        """
        ...

    def decode(self, genome: Genome) -> Recipe:
        """The recipe of a genome. Pure."""
        ...

    def encode(self, recipe: Recipe) -> Genome:
        """The genome of a recipe: `decode(encode(r)) == r`.

        Raises:
            ValueError: the space cannot express the recipe.
        """
        ...

    def violations(self, genome: Genome) -> list[str]:
        """What makes the genome impossible; checked before any merge."""
        ...

    def sample(self, generator: np.random.Generator) -> Genome:
        """A random genome."""
        ...

    def designs(self) -> list[Genome]:
        """Genomes worth trying first: each expert alone and the uniform merge, for most spaces."""
        ...

    def alone(self) -> Mapping[str, Genome]:
        """The genome of each expert alone, by name, as far as the space can say it."""
        ...

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """What binds genes together; every point of the cube keeps them, by repair or violation."""
        ...

    def active(self, genome: Genome) -> list[bool]:
        """Which genes matter where the genome stands, shape (genes,)."""
        ...


@runtime_checkable
class LineageSpace(Protocol):
    """A space whose genomes are descendants: new ones are made by crossing known ones."""

    total: int  # entries of a model's flattened parameters: a split point is below it

    def cross(self, first: Genome, second: Genome, mix: float, split: int) -> Genome:
        """The child of two genomes.

        mix: the second parent's share left of the split; right of it, it is 1 - mix.
        """
        ...


class Searcher(Protocol):
    """Proposes genomes: a deterministic function of its seed and its sequence of calls.

    It reads no clock, budget, worker count, file or global generator. There is no save and load: to
    resume, the recorded calls are made again. Made as `Kind(space, seed, facts, **options)`.
    """

    multi_objective: bool  # whether it can search more than one objective
    needs: frozenset[str]  # what it cannot do without: see searchers/needs.py
    resumes_on_drift: bool  # may go on from recorded genomes that a replay no longer reproduces

    @property
    def population(self) -> int:
        """Candidates that it wants to be asked for together, by default."""
        ...

    @property
    def in_flight(self) -> int:
        """Candidates that may be asked for and not yet told, by default."""
        ...

    def ask(self, count: int) -> list[Genome]:
        """At most `count` genomes.

        An empty list changes nothing; with nothing in flight, the search is finished.
        """
        ...

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Evaluations in candidate order; a repeated id replaces what was told before."""
        ...

    def recommend(self) -> Genome | None:
        """What the searcher believes in, where that is not a candidate (a distribution's mean)."""
        ...


class ResidentModel(Protocol):
    """The one model that a worker keeps, with the current candidate's tensors in it."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def version(self) -> int:
        """Rises with every recipe that is written."""
        ...


class Task(Protocol):
    """Asks a model; runs in the worker.

    Equal models give equal responses, whenever and wherever they are asked. A task that measures
    time cannot promise that: it has an attribute `deterministic`, which is False.
    """

    @property
    def items(self) -> Sequence[ItemId]: ...

    @property
    def fingerprint(self) -> str:
        """sha256 of what is asked and how: a run is not resumed with other items."""
        ...

    def respond(self, model: ResidentModel, items: Sequence[ItemId]) -> Responses:
        """Responses in the order of `items`.

        An item that the model alone could not answer is named in `failures`, with the worst score
        that there is. Where there is no worst score, the candidate fails. It also fails where none
        of the items that it was asked is answered, but that is not the task's to say.

        Raises:
            CandidateError: the model cannot be measured (a non-finite answer, for one).
        """
        ...


@runtime_checkable
class PreparedTask(Protocol):
    """A task that has to see other models than the candidate, once, before it is asked."""

    def prepare(self, model: ResidentModel, write: Callable[[str], None]) -> None:
        """Called once by each worker, before its first job, with the run's base in `model`.

        write: puts a model of the run, by its name, into `model`. What is left there is written
            over by the first candidate.
        """
        ...


class Estimator(Protocol):
    """Chooses what to measure and turns responses into scores; runs in the driver.

    All methods are pure functions of the cohort and its measurements.
    """

    num_incumbents: int  # how many incumbents it wants to measure beside a cohort
    needs_history: bool  # whether it learns from what was told before
    needs_genes: bool  # whether it places candidates by their genomes
    is_complete: bool  # whether all candidates of a search answer the same items

    def requests(self, cohort: Cohort) -> list[Request]:
        """What to measure next; called when nothing of the cohort is outstanding.

        May name incumbents. An empty list means that the cohort is done.
        """
        ...

    def scores(self, cohort: Cohort) -> Mapping[CandidateId, Score]:
        """Scores of the cohort's living candidates; may re-score incumbents."""
        ...

    def failures(self, cohort: Cohort) -> Mapping[CandidateId, Failure]:
        """Why candidates of a cohort that is done have no score, where that is their own fault."""
        ...

    def needed(self, cohort: Cohort) -> list[tuple[Candidate, Mapping[str, Sequence[ItemId]]]]:
        """Who had to answer what (task -> items) until a cohort was done, incumbents too."""
        ...

    def told(self, cohort: Cohort) -> list[Told]:
        """Which of the cohort's candidates have a score, and on which items it rests."""
        ...

    def told_anew(self, cohort: Cohort) -> Mapping[CandidateId, Score]:
        """Scores of everybody in the cohort's history, in the light of all of it.

        For the last choice, where it needs history: what was told early was told knowing little.
        """
        ...

    def expected_items(self, num_candidates: int) -> int:
        """Item evaluations that a cohort of this size costs, for plans."""
        ...


class Pool(Protocol):
    """Runs jobs. What it returns does not depend on how many workers it has."""

    @property
    def slots(self) -> int:
        """Workers that it has, or expects."""
        ...

    def submit(self, job: Job) -> None: ...

    def cancel(self) -> list[Job]:
        """Take back what no worker has begun."""
        ...

    def collect(self, timeout_s: float) -> list[Outcome]:
        """Outcomes in order of arrival; may be empty.

        Raises:
            NoWorkersLeft: nothing can be measured any more.
        """
        ...

    def close(self) -> None: ...


class Observer(Protocol):
    """Watches a search, and cannot change it."""

    def asked(self, candidates: Sequence[Candidate]) -> None: ...

    def measured(self, outcome: Outcome) -> None: ...

    def told(self, evaluations: Sequence[Evaluation]) -> None: ...
