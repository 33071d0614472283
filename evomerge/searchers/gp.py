"""Gaussian processes, from optuna: few evaluations that are dear."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evomerge.protocols import SearchSpace
from evomerge.records import Evaluation, Facts, Genome, Score
from evomerge.searchers.first_points import CANDIDATE, FirstPoints, foreign, random_genome
from evomerge.searchers.options import StrictOptions, read_options
from evomerge.searchers.order import is_scored, total_order
from evomerge.searchers.parameters import Parameters
from evomerge.searchers.window import AskedAhead, Window

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class GaussianProcess(AskedAhead):
    """Bayesian optimisation with a Gaussian process for every objective.

    Optuna's: Matern 5/2 with a length scale for each gene; the expected improvement, in logarithms
    (Ament et al. 2023, arXiv:2310.20708), or that of the hypervolume (Daulton, Balandat & Bakshy
    2020, arXiv:2006.05078), jointly with what is outstanding. It learns the noise, one level for
    all candidates: optuna's takes no standard errors.

    Reals are modelled by coordinates, integers as steps, choices and flags by whether they are
    equal; genes that do not matter stand in the middle, for every genome alike. Scores of lower
    rungs are lowered to the worst of the rungs above (see `levelled`). Who fails or violates gives
    no value but the median, and breaks a constraint which is modelled too, so that the search stays
    away from there without a cliff in the objectives.

    A candidate takes .2 s of one core at 24 real genes and 100 evaluations, .3 s at 200, .7 s at
    400, and at 200 some 1.2 s with mixed genes, with failures or with two objectives (optuna 5.0).
    Above `history` evaluations the best and the latest are kept, half of it each.
    First come the designs, then evenly spread points, then what the model proposes (see window.py);
    a fresh sampler for each candidate, on one thread. What another run was told is learnt as this
    run's own, and takes the place of as many of the spread points.
    """

    kind: ClassVar[str] = "gp"
    summary: ClassVar[str] = "Gaussian processes: fewest evaluations, up to some 30 genes"
    multi_objective: bool = True
    asks_designs: bool = True
    comfortable_genes: ClassVar[int] = 40  # above, an ask takes more than a second
    needs: frozenset[str] = frozenset({"genes"})
    resumes_on_drift: bool = True

    class Options(StrictOptions):
        """Options of `gp`."""

        population: int = Field(
            4, ge=1, le=1000, description="candidates that are proposed from the same evaluations"
        )
        ahead: int = Field(
            0,
            ge=0,
            le=1000,
            description="populations that are asked for before the oldest is told; 0 waits for it",
        )
        designs: bool = Field(
            True, description="whether the space's designs (each expert alone, ...) come first"
        )
        startup: int = Field(
            10, ge=1, le=100_000, description="evenly spread points after the designs"
        )
        history: int = Field(
            200, ge=4, le=100_000, description="evaluations that are learnt from at most"
        )

    def __init__(self, space: SearchSpace, seed: int, facts: Facts, **options: Any) -> None:
        from evomerge.searchers.optuna_study import StudyOfSpace

        self.options = read_options(self.Options, options, self.kind)
        self.population = self.options.population
        self.in_flight = self.population * (1 + self.options.ahead)
        self._seed = seed
        self._num_objectives = len(facts.objectives)
        self._parameters = Parameters(space)
        self._study = StudyOfSpace(self._parameters, self._num_objectives, only_active=False)
        self._before = foreign(facts.warm_start)
        self.learn([])
        self._first = FirstPoints(
            self._parameters,
            seed,
            facts.designs if self.options.designs else facts.given,
            max(self.options.startup - len(self._before), 0),
        )
        self._window = Window(self, self.population, self.options.ahead)

    def learn(self, known: Sequence[Evaluation]) -> None:
        """See `Proposer`."""
        kept = most_telling([*self._before, *known], self.options.history)
        scores = [e.score if is_scored(e) and not e.violation > 0 else None for e in kept]
        valid = np.array([score is not None for score in scores], dtype=bool)
        self._is_empty = bool(valid.sum() < 2)  # nothing can be told from one value
        if self._is_empty:
            return
        values = np.empty((len(kept), self._num_objectives))
        values[valid] = levelled([score for score in scores if score is not None])
        values[~valid] = np.median(values[valid], axis=0)
        limits = [None] * len(kept) if valid.all() else np.where(valid, -1.0, 1.0).tolist()
        self._study.learn(list(zip(kept, values.tolist(), limits, strict=True)))

    def propose(self, number: int, waiting: Sequence[Genome]) -> Genome:
        """The next candidate (see `Proposer`)."""
        if number < self._first.count:
            return self._first[number]
        if self._is_empty:
            return random_genome(self._parameters, self._seed, number)
        seed = np.random.SeedSequence([self._seed, CANDIDATE, number])
        with one_thread():
            return self._study.propose(sampler, seed, waiting)


def sampler(seed: int) -> BaseSampler:
    """Optuna's, which begins at once."""
    from optuna.samplers import GPSampler

    return GPSampler(seed=seed, n_startup_trials=0, warn_independent_sampling=False)


def levelled(scores: Sequence[Score]) -> NDArray[np.float64]:
    """Values that respect the rungs of a race, shape (n, objectives), maximised.

    From the highest rung down, a value above the worst of the rungs over it is lowered to that: so
    whoever was dropped is nowhere better than a survivor.
    """
    values = np.array([score.values for score in scores], dtype=np.float64)
    rungs = np.array([score.rung for score in scores])
    worst = np.full(values.shape[1], np.inf)
    for rung in sorted(set(rungs.tolist()), reverse=True):
        values[rungs == rung] = np.minimum(values[rungs == rung], worst)
        worst = values[rungs == rung].min(axis=0)
    return values


def most_telling(evaluations: Sequence[Evaluation], most: int) -> list[Evaluation]:
    """All, or the latest and the best of them: half of `most` each, in the order told."""
    if len(evaluations) <= most:
        return list(evaluations)
    latest = range(len(evaluations) - most // 2, len(evaluations))
    best = [i for i in total_order(evaluations) if i not in latest][: most - most // 2]
    return [evaluations[i] for i in sorted([*best, *latest])]


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch and linear algebra on one thread for a while: sums depend on their number."""
    import torch
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(threads)
