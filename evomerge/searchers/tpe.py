"""Tree-structured Parzen estimators, from optuna: mixed and conditional spaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from evomerge.protocols import SearchSpace
from evomerge.records import Evaluation, Facts, Genome
from evomerge.searchers.first_points import CANDIDATE, TRIES, FirstPoints, first_new, foreign
from evomerge.searchers.options import StrictOptions, read_options
from evomerge.searchers.order import is_scored
from evomerge.searchers.parameters import Parameters
from evomerge.searchers.standing import standing
from evomerge.searchers.window import AskedAhead, Window

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class ParzenStudy:
    """The good and the bad of what is told, as densities, and genomes likelier good than bad.

    Bergstra, Bardenet, Bengio & Kegl, Algorithms for Hyper-Parameter Optimization, NeurIPS 2011, as
    optuna has it (Watanabe 2023, arXiv:2304.11127), for several objectives after Ozaki, Tanigaki,
    Watanabe, Nomura & Onishi, JAIR 73 (2022).

    The best tenth (25 at most, with one objective) is good. Only who has a score of the highest
    rung and violates nothing is compared by value; the others rank after, in the order of
    `standing` (see standing.py), as violations of a constraint. Who has no score stands with the
    outstanding: bad, and never counted. Genes that do not matter are no part of a trial.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        num_objectives: int,
        multivariate: bool | Literal["auto"],
        num_samples: int,
    ) -> None:
        from evomerge.searchers.optuna_study import StudyOfSpace

        self.parameters = Parameters(space)
        self._seed = seed
        self._num_objectives = num_objectives
        self._num_samples = num_samples
        self._multivariate = num_objectives == 1 if multivariate == "auto" else multivariate
        self._is_conditional = any(gene.when is not None for gene in space.genes)
        self._study = StudyOfSpace(self.parameters, num_objectives, only_active=True)
        self.is_empty = True  # nothing is known that has a score

    def learn(self, known: Sequence[Evaluation]) -> None:
        """Forget all else, and know these."""
        scored = [e for e in known if is_scored(e)]
        self.is_empty = not scored
        self._seen = [e.genome for e in known]
        if self.is_empty:
            return
        values, violations = standing(scored, self._num_objectives)
        limits = violations.tolist() if violations.any() else [None] * len(scored)
        self._study.learn(
            list(zip(scored, values.tolist(), limits, strict=True)),
            outstanding=[e.genome for e in known if not is_scored(e)],
        )

    def propose(self, number: int, waiting: Sequence[Genome]) -> Genome:
        """The next genome; a random one where nothing has a score, or all proposals are known."""
        seeds = (
            np.random.SeedSequence([self._seed, CANDIDATE, number, attempt])
            for attempt in range(0 if self.is_empty else TRIES)
        )
        likely = (self._study.propose(self._sampler, seed, waiting) for seed in seeds)
        seen = [*self._seen, *waiting] if self.parameters.is_finite else []
        return first_new(likely, self.parameters, self._seed, number, seen)

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import TPESampler

        return TPESampler(
            n_startup_trials=0,
            n_ei_candidates=self._num_samples,
            multivariate=self._multivariate,
            group=self._multivariate and self._is_conditional,
            constant_liar=True,
            seed=seed,
        )


class Tpe(AskedAhead):
    """TPE over typed genes; only those that matter are modelled and proposed.

    See `ParzenStudy`. First come the designs, then evenly spread points, then what the model
    proposes: `ahead` populations ahead of what is told (see window.py), the outstanding counting as
    bad. A fresh sampler is made for each candidate, seeded by its number. What another run was told
    is learnt as this run's own, and takes the place of as many of the spread points.

    A candidate takes 14 ms of one core at 24 real genes and 200 evaluations, 20 to 25 ms where they
    are mixed or conditional, and 100 ms at 200 genes (optuna 5.0). On the sphere
    of 5 genes, 60 candidates come to -.0102 in the mean of 31 seeds with the default window, to
    -.0070 one by one; optuna's own loop to -.0075, random search to -.10
    (benchmarks/results/searcher_toys.txt).

    A real gene is modelled by its coordinate, an integer by its value, a choice and a flag as
    categories; of flags that are counted, those that the constraint leaves are learnt. In a space
    without real genes, a genome that was asked for before gives way to another proposal, and after
    four of them to random ones.
    """

    kind: ClassVar[str] = "tpe"
    summary: ClassVar[str] = (
        "TPE: choices and conditions, few evaluations; any number of objectives"
    )
    multi_objective: bool = True
    asks_designs: bool = True
    needs: frozenset[str] = frozenset({"genes"})
    resumes_on_drift: bool = True

    class Options(StrictOptions):
        """Options of `tpe`."""

        population: int = Field(
            4,
            ge=1,
            le=100_000,
            description="candidates that are proposed from the same evaluations",
        )
        ahead: int = Field(
            1,
            ge=0,
            le=1000,
            description="populations that are asked for before the oldest is told; 0 waits for it",
        )
        designs: bool = Field(
            True, description="whether the space's designs (each expert alone, ...) come first"
        )
        startup: int = Field(
            10, ge=0, le=100_000, description="evenly spread points after the designs"
        )
        multivariate: bool | Literal["auto"] = Field(
            "auto",
            description="model genes together instead of one by one; auto: with one objective",
        )
        samples: int = Field(
            24, ge=1, le=100_000, description="draws from the good, of which the best is taken"
        )

    def __init__(self, space: SearchSpace, seed: int, facts: Facts, **options: Any) -> None:
        self.options = read_options(self.Options, options, self.kind)
        self.population = self.options.population
        self.in_flight = self.population * (1 + self.options.ahead)
        self._model = ParzenStudy(
            space,
            seed,
            len(facts.objectives),
            self.options.multivariate,
            self.options.samples,
        )
        self._before = foreign(facts.warm_start)
        self._model.learn(self._before)
        self._first = FirstPoints(
            self._model.parameters,
            seed,
            facts.designs if self.options.designs else facts.given,
            max(self.options.startup - len(self._before), 0),
        )
        self._window = Window(self, self.population, self.options.ahead)

    def learn(self, known: Sequence[Evaluation]) -> None:
        """See `Proposer`."""
        self._model.learn([*self._before, *known])

    def propose(self, number: int, waiting: Sequence[Genome]) -> Genome:
        """The next candidate (see `Proposer`)."""
        if number < self._first.count:
            return self._first[number]
        return self._model.propose(number, waiting)
