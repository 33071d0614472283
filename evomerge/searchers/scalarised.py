"""One objective out of several, for searchers that only search one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

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


class Scalarised:
    """A searcher of one objective that is told one number of several.

    The augmented Chebyshev function with weights that are drawn uniformly from the simplex is
    ParEGO's (Knowles, ParEGO: A Hybrid Algorithm With On-Line Landscape Approximation for
    Expensive Multiobjective Optimization Problems, IEEE TEC 10 (2006), eq. 2). Where the scale or
    the weights change, everything is told again: a searcher that models all it was told then sees
    one function, one of generations sees it from the next generation on. So is what another run was
    told, to those that go on learning from it; others have begun where that was best at first.

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
        self._known: dict[CandidateId, Evaluation] = {}
        self._lowest = np.full(len(self._names), np.inf)
        self._highest = np.full(len(self._names), -np.inf)
        self._draw = 0
        self._weights = self._drawn()
        for evaluation in facts.warm_start:
            self._widen(evaluation)
        self._before = facts.warm_start
        told_before = tuple(map(self._scalar, self._before))
        self._searcher = make(replace(facts, objectives=(NAME,), warm_start=told_before))
        self.needs = self._searcher.needs
        self.resumes_on_drift = self._searcher.resumes_on_drift
        self._every = config.every or self._searcher.population

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
        return self._searcher.ask(count)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Tell one number of each; of everybody, where the numbers have changed."""
        own = [evaluation for evaluation in evaluations if evaluation.id >= 0]
        before = self._lowest.copy(), self._highest.copy()
        for evaluation in own:
            self._widen(evaluation)
        changed = not all(map(np.array_equal, before, (self._lowest, self._highest)))
        fresh = {evaluation.id for evaluation in own}
        others = [e for id_, e in self._known.items() if id_ not in fresh] if changed else []
        self._known.update((evaluation.id, evaluation) for evaluation in own)
        if changed:
            self._tell_warm_start()
        self._pass_on([*others, *own])
        if self._config.kind == "parego" and len(self._known) // self._every != self._draw:
            self._draw = len(self._known) // self._every
            self._weights = self._drawn()
            self._tell_warm_start()
            self._pass_on(list(self._known.values()))

    def recommend(self) -> Genome | None:
        """What the searcher believes in; under parego that is one point of the front, and none."""
        return None if self._config.kind == "parego" else self._searcher.recommend()

    def _pass_on(self, evaluations: Sequence[Evaluation]) -> None:
        ordered = sorted(evaluations, key=lambda evaluation: evaluation.id)
        self._searcher.tell([self._scalar(evaluation) for evaluation in ordered])

    def _tell_warm_start(self) -> None:
        """Tell again what another run was told, to searchers that keep it."""
        again = getattr(self._searcher, "tell_warm_start", None)
        if self._before and again is not None:
            again(tuple(map(self._scalar, self._before)))

    def _widen(self, evaluation: Evaluation) -> None:
        """The range of what was told."""
        if evaluation.score is not None and is_scored(evaluation):
            values = np.array(evaluation.score.values)
            self._lowest = np.minimum(self._lowest, values)
            self._highest = np.maximum(self._highest, values)

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

    def _scalar(self, evaluation: Evaluation) -> Evaluation:
        """The evaluation with one number."""
        if evaluation.score is None or not is_scored(evaluation):
            return evaluation
        estimates = list(evaluation.score.objectives.values())
        values = np.array(evaluation.score.values)
        spread = self._highest - self._lowest
        scale = np.where(spread > 0, spread, 1.0)
        errors = self._weights * np.array([e.standard_error for e in estimates]) / scale
        distances = self._weights * (self._highest - values) / scale
        if self._config.kind == "weighted_sum":
            value, error = -float(distances.sum()), float(np.sqrt((errors**2).sum()))
        else:
            farthest = int(np.argmax(distances))
            value = -float(distances[farthest] + RHO * distances.sum())
            error = float(errors[farthest])
        number = Estimate(value, error, max(e.num_items for e in estimates))
        return replace(evaluation, score=Score({NAME: number}, evaluation.score.rung))
