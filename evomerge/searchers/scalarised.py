"""One objective out of several, for searchers that only search one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evomerge.errors import Problem, nearest
from evomerge.protocols import Searcher
from evomerge.records import CandidateId, Estimate, Evaluation, Facts, Genome, Score
from evomerge.searchers.options import StrictOptions
from evomerge.searchers.order import is_scored

NAME = "scalarised"
RHO = 0.05  # Knowles 2006, eq. 2


class ScalariseConfig(StrictOptions):
    """How several objectives become one.

    All kinds work on objectives that are scaled to [0, 1] between the worst and the best value that
    was told so far.
    """

    kind: Literal["weighted_sum", "chebyshev", "parego"] = Field(
        description="weighted_sum: finds the convex parts of a front; chebyshev: minus the largest "
        "weighted distance from the best values, any part; parego: chebyshev with weights that "
        "are drawn anew, so that one run goes along the front"
    )
    weights: dict[str, float] = Field(
        {}, description="objective -> weight, above 0; all the same by default; not for parego"
    )
    every: int | None = Field(
        None, ge=1, description="parego: candidates between draws; default: the population"
    )

    def problems(self, objectives: Sequence[str]) -> list[Problem]:
        """What does not fit these objectives."""
        where = "searcher.scalarise"
        found = []
        if len(objectives) < 2:
            found.append(Problem(where, f"there is one objective alone: {objectives[0]}"))
        if self.kind == "parego" and self.weights:
            found.append(Problem(f"{where}.weights", "parego draws its weights", "remove them"))
        if self.kind != "parego" and self.every is not None:
            found.append(Problem(f"{where}.every", f"{self.kind} draws nothing", "remove it"))
        for name, weight in self.weights.items():
            if name not in objectives:
                what = f"no objective {name!r}"
                found.append(Problem(f"{where}.weights", what, nearest(name, objectives)))
            elif weight <= 0 or not math.isfinite(weight):
                what = f"expected a number above 0, got {weight:g}"
                found.append(Problem(f"{where}.weights.{name}", what))
        return found


class _Told(NamedTuple):
    """An evaluation, and what its number is made of; None where it has no score."""

    evaluation: Evaluation
    values: tuple[float, ...] | None
    errors: tuple[float, ...] = ()
    num_items: int = 0
    rung: int = 0


def _told(evaluation: Evaluation) -> _Told:
    if evaluation.score is None or not is_scored(evaluation):
        return _Told(evaluation, None)
    estimates = evaluation.score.objectives.values()
    return _Told(
        evaluation,
        evaluation.score.values,
        tuple(estimate.standard_error for estimate in estimates),
        max(estimate.num_items for estimate in estimates),
        evaluation.score.rung,
    )


class Scalarised:
    """A searcher of one objective that is told one number of several.

    The augmented Chebyshev function with weights that are drawn uniformly from the simplex is
    ParEGO's (Knowles, ParEGO: A Hybrid Algorithm With On-Line Landscape Approximation for
    Expensive Multiobjective Optimization Problems, IEEE TEC 10 (2006), eq. 2). Where the scale or
    the weights change, everything is told again: a searcher that models all it was told then sees
    one function, one of generations sees it from the next generation on. So is what another run was
    told, to those that go on learning from it; others have begun where that was best at first.

    Candidates are passed on one by one in the order of their ids, each with the scale and the
    weights that those up to it make. One that models all it was told gets no more of them than it
    needs to go on. So how calls are cut changes nothing.

    The standard error of the number is that of the objectives, as if they were independent: of the
    sum, or of the objective with the largest distance.
    """

    multi_objective = True

    def __init__(
        self, make: Callable[[Facts], Searcher], facts: Facts, config: ScalariseConfig, seed: int
    ) -> None:
        self._config = config
        self._seed = seed
        self._names = facts.objectives
        self._waiting: dict[CandidateId, Evaluation] = {}  # told, and not passed on
        self._known: dict[CandidateId, _Told] = {}  # passed on, in the order of ids from 0
        self._lowest = np.full(len(self._names), np.inf)
        self._highest = np.full(len(self._names), -np.inf)
        self._draw = 0
        self._weights = self._drawn()
        self._before = [_told(evaluation) for evaluation in facts.warm_start]
        self._widen(self._before)
        told_before = self._scalars(self._before)
        self._searcher = make(replace(facts, objectives=(NAME,), warm_start=tuple(told_before)))
        self.needs = self._searcher.needs
        self.resumes_on_drift = self._searcher.resumes_on_drift
        self._num_asked = 0
        self._every = config.every or self._searcher.population
        # Given by searchers that learn from all they were told (see window.py).
        self._tell_warm_start = getattr(self._searcher, "tell_warm_start", None)

    @property
    def population(self) -> int:
        """The searcher's own."""
        return self._searcher.population

    @property
    def in_flight(self) -> int:
        """The searcher's own."""
        return self._searcher.in_flight

    def ask(self, count: int) -> list[Genome]:
        """The searcher's own genomes."""
        genomes = self._searcher.ask(count)
        while len(genomes) < count and self._pass_on_next():
            genomes += self._searcher.ask(count - len(genomes))
        self._num_asked += len(genomes)
        return genomes

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Tell one number of each; of everybody, where the numbers have changed.

        Raises:
            ValueError: a candidate is told that was never asked for; then nothing is taken in.
        """
        own = sorted((e for e in evaluations if e.id >= 0), key=lambda e: e.id)
        if unasked := [e.id for e in own if e.id >= self._num_asked]:
            raise ValueError(
                f"told candidates {unasked} when {self._num_asked} were asked for: ids count from 0"
            )
        again = [e for e in own if e.id in self._known]
        self._waiting.update((e.id, e) for e in own if e.id not in self._known)
        if again:
            self._pass_on(again)
        if self._tell_warm_start is None:
            while self._pass_on_next():
                pass

    def recommend(self) -> Genome | None:
        """What the searcher believes in; under parego that is one point of the front, and none."""
        return None if self._config.kind == "parego" else self._searcher.recommend()

    def _pass_on_next(self) -> bool:
        """Pass on the next candidate, if it is told."""
        evaluation = self._waiting.pop(len(self._known), None)
        if evaluation is not None:
            self._pass_on([evaluation])
        return evaluation is not None

    def _pass_on(self, evaluations: Sequence[Evaluation]) -> None:
        """Take in evaluations, and tell what is new of them, or of all with another function."""
        before = *self._lowest, *self._highest, self._draw
        news = [_told(evaluation) for evaluation in evaluations]
        self._widen(news)
        self._known.update((told.evaluation.id, told) for told in news)
        if self._config.kind == "parego" and len(self._known) // self._every != self._draw:
            self._draw = len(self._known) // self._every
            self._weights = self._drawn()
        if before != (*self._lowest, *self._highest, self._draw):
            news = list(self._known.values())
            if self._before and self._tell_warm_start is not None:
                self._tell_warm_start(self._scalars(self._before))
        self._searcher.tell(self._scalars(news))

    def _widen(self, news: Sequence[_Told]) -> None:
        """The range of what was told."""
        for told in news:
            if told.values is not None:
                self._lowest = np.minimum(self._lowest, told.values)
                self._highest = np.maximum(self._highest, told.values)

    def _drawn(self) -> NDArray[np.float64]:
        """Weights that sum to one; for parego the draw's own, whatever was drawn before."""
        if self._config.kind == "parego":
            generator = np.random.default_rng(np.random.SeedSequence([self._seed, self._draw]))
            drawn: NDArray[np.float64] = generator.dirichlet(np.ones(len(self._names)))
            return drawn
        given: Mapping[str, float] = self._config.weights
        weights = np.array([given.get(name, 1.0 if not given else 0.0) for name in self._names])
        shares: NDArray[np.float64] = weights / weights.sum()
        return shares

    def _scalars(self, told: Sequence[_Told]) -> list[Evaluation]:
        """The evaluations with one number each."""
        scored = [one for one in told if one.values is not None]
        if not scored:
            return [one.evaluation for one in told]
        spread = self._highest - self._lowest
        shares = self._weights / np.where(spread > 0, spread, 1.0)
        distances = shares * (self._highest - np.array([one.values for one in scored]))
        errors = shares * np.array([one.errors for one in scored])
        if self._config.kind == "weighted_sum":
            numbers, error = -distances.sum(axis=1), np.sqrt((errors**2).sum(axis=1))
        else:
            farthest = np.arange(len(scored)), distances.argmax(axis=1)
            numbers, error = -(distances[farthest] + RHO * distances.sum(axis=1)), errors[farthest]
        pairs = zip(numbers.tolist(), error.tolist(), strict=True)
        return [
            one.evaluation if one.values is None else _with_number(one, *next(pairs))
            for one in told
        ]


def _with_number(told: _Told, number: float, error: float) -> Evaluation:
    """An evaluation that has been scored, with one number (`replace` takes three times as long)."""
    one = told.evaluation
    score = Score({NAME: Estimate(number, error, told.num_items)}, told.rung)
    return Evaluation(one.id, one.genome, score, one.failure, one.violation, one.responses)
