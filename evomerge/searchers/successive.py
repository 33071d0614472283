"""BOHB's sampler, for cohorts that race: the model of the highest rung that has seen enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from evomerge.protocols import SearchSpace
from evomerge.records import Evaluation, Facts, Genome
from evomerge.searchers.first_points import DICE, FirstPoints, foreign
from evomerge.searchers.options import StrictOptions, read_options
from evomerge.searchers.order import is_scored
from evomerge.searchers.parzen import ParzenModel
from evomerge.searchers.window import AskedAhead, Window


class Successive(AskedAhead):
    """TPE on the highest rung that has seen enough, and some random candidates, by cohorts.

    BOHB: Falkner, Klein & Hutter 2018, arXiv:1807.01774, with the estimator `racing` as its
    successive halving (Hyperband with one bracket): a cohort is one population, which the race
    cuts. It is made for the role that SMAC with Hyperband has in GPTailor, whose first candidates
    are the space's designs. The model learns from the candidates that reached rung r or a higher
    one, for the highest r that `min_points` did; where none has so many, from all that have a
    score; and with fewer scores than `min_points` in all, candidates are random.

    Departures: a tenth of the candidates is random, not a third (races of 6 cohorts, means of 24
    seeds: with a tenth, a third, none and all of them random, 10 conditional genes come to -.037,
    -.035, -.034 and -.054, 6 reals to -.040, -.038, -.034 and -.102, 24 reals to -.79, -.84, -.78
    and -1.31, 5 of 20 flags to -.85, -.87, -.87 and -1.33: the first three are not told apart; the
    optima are 0, but for the flags' -.68). The best tenth is good, not 15 %; bandwidths are
    distances to neighbours (see `ParzenModel`); and one model serves all genes, those with a
    condition in groups. Who reached a higher rung ranks above who did not, rather than being a
    point of that rung's own model. Failures are bad points at every rung, and a rung needs no more
    points than a population. Without a race there is one rung, and it is TPE by generations with
    random candidates in between.

    A candidate takes 1 ms of one core at 20 genes and 2 to 3.4 ms at 200, whatever the population
    and the number of objectives; 5 where each of 200 has twenty names, 3 where conditions part
    them into 41 groups, and some 10 where into 80.
    """

    kind: ClassVar[str] = "successive"
    summary: ClassVar[str] = "BOHB: TPE by cohorts, for `racing`; any genes, several objectives"
    multi_objective: bool = True
    asks_designs: bool = True
    needs: frozenset[str] = frozenset({"genes"})
    resumes_on_drift: bool = True

    class Options(StrictOptions):
        """Options of `successive`."""

        population: int = Field(
            27, ge=1, le=100_000, description="candidates of a cohort; 27 is cut to 9, 3 and 1"
        )
        designs: bool = Field(
            True, description="whether the space's designs (each expert alone, ...) come first"
        )
        random_share: float = Field(
            0.1, ge=0, le=1, description="share of the candidates that are random (BOHB's rho)"
        )
        min_points: int | None = Field(
            None,
            ge=1,
            le=100_000,
            description="scores that a rung's model needs; default genes + 1, at most a population",
        )
        multivariate: bool | Literal["auto"] = Field(
            True, description="model genes together, as BOHB does; auto: with one objective"
        )
        samples: int = Field(
            64, ge=1, le=10_000, description="draws from the good, of which the best is taken"
        )

    def __init__(self, space: SearchSpace, seed: int, facts: Facts, **options: Any) -> None:
        self.options = read_options(self.Options, options, self.kind)
        self.population = self.in_flight = self.options.population
        default = min(len(space.genes) + 1, self.population)
        self._min_points = self.options.min_points or default
        self._seed = seed
        num_objectives, jointly = len(facts.objectives), self.options.multivariate
        self._model = ParzenModel(
            space,
            seed,
            num_objectives,
            num_objectives == 1 if jointly == "auto" else jointly,
            self.options.samples,
        )
        self._before = foreign(facts.warm_start)
        self.learn([])
        designs = facts.designs if self.options.designs else facts.given
        self._first = FirstPoints(self._model.parameters, seed, designs, 0)
        self._window = Window(self, self.population, ahead=0)

    def learn(self, known: Sequence[Evaluation]) -> None:
        """See `Proposer`."""
        known = [*self._before, *known]
        seen = [evaluation.genome for evaluation in known]
        self._model.learn(at_highest_rung(known, self._min_points), seen)

    def propose(self, number: int, waiting: Sequence[Genome]) -> Genome:
        """The next candidate (see `Proposer`)."""
        if number < self._first.count:
            return self._first[number]
        dice = np.random.default_rng(np.random.SeedSequence([self._seed, DICE, number]))
        if dice.random() < self.options.random_share:
            return self._model.random(number, waiting)
        return self._model.propose(number, waiting)


def at_highest_rung(evaluations: Sequence[Evaluation], enough: int) -> list[Evaluation]:
    """Who reached the highest rung that enough did, and the failures; none where too few score."""
    rungs = sorted((e.score.rung for e in evaluations if e.score and is_scored(e)), reverse=True)
    if len(rungs) < enough:
        return []
    lowest = rungs[enough - 1]
    return [e for e in evaluations if not (e.score and is_scored(e)) or e.score.rung >= lowest]
