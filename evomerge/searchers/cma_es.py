"""CMA-ES, from pycma: one objective, up to some thousand genes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evomerge.errors import ConfigurationError, Problem
from evomerge.protocols import SearchSpace
from evomerge.records import Evaluation, Facts, Genome
from evomerge.searchers.generation import Generations, read_designs
from evomerge.searchers.options import StrictOptions, read_options
from evomerge.searchers.order import OrderKey, is_scored, order_key, total_order

DIAGONAL_ABOVE = 500  # genes; a full covariance matrix then learns too slowly and costs n^3
SHORTEST_STEP = 0.1  # of the mean, where a generation is all noise
TOLERANCE = 1e-12  # Auger & Hansen's TolFun


class CmaEs:
    """CMA-ES in the unit cube, with restarts that double the population.

    Hansen, The CMA Evolution Strategy: A Tutorial, arXiv:1604.00772; restarts as in Auger & Hansen,
    A Restart CMA Evolution Strategy With Increasing Population Size, CEC 2005.

    It is told positions in the total order of a generation (see order.py) instead of values, which
    is all that CMA-ES uses: failures and candidates that racing dropped need no made-up value. So
    the criteria of pycma that look at values are replaced by Auger & Hansen's, which look at the
    scores; those that look at the distribution are pycma's. A restart begins at the same x0, with
    the same stream of random numbers. A candidate that is told again after its generation was
    learnt changes nothing: a distribution cannot forget.

    With `noise: adapt` the scores' standard errors count too: the mean's learning rate is the share
    of a generation's variance that they leave (as LRA-CMA-ES sets it by the signal-to-noise ratio
    that it observes: Nomura, Akimoto & Ono 2023, arXiv:2304.03473; here the noise is known). Items
    that all candidates share make errors of differences smaller than those of scores, so this is
    for few items that rotate.

    Bounds are pycma's smooth transformation. Its random numbers come from the seed (pycma's own
    default is numpy's global state), it reads and writes no file, and its linear algebra runs on
    one thread: with some hundred genes, the eigenvectors depend on the number of threads.
    """

    kind: ClassVar[str] = "cma_es"
    summary: ClassVar[str] = "CMA-ES with restarts: one objective, the default choice"
    multi_objective: bool = False
    needs: frozenset[str] = frozenset({"genes"})
    resumes_on_drift: bool = True

    class Options(StrictOptions):
        """Options of `cma_es`."""

        population: int | None = Field(
            None, ge=3, le=100_000, description="candidates a generation; default 4 + 3 ln(genes)"
        )
        x0: Literal["center", "designs", "first_design"] | list[float] = Field(
            "center",
            description="first mean: the cube's centre, the mean of the space's designs (each "
            "expert alone and the uniform merge, for most), the first of them, or one value in "
            "[0, 1] for every gene",
        )
        sigma0: float = Field(
            1 / 6, gt=0, le=1, description="first standard deviation, in a cube of side 1"
        )
        diagonal: bool | Literal["auto"] = Field(
            "auto", description=f"learn variances alone; auto: above {DIAGONAL_ABOVE} genes"
        )
        noise: Literal["ignore", "adapt"] = Field(
            "ignore",
            description="adapt: the smaller the share of a generation's variance that the scores' "
            "standard errors leave, the shorter the steps of the mean",
        )
        restarts: int = Field(
            9, ge=0, le=30, description="restarts after convergence, each with twice the population"
        )

    def __init__(self, space: SearchSpace, seed: int, facts: Facts, **options: Any) -> None:
        self.options = read_options(self.Options, options, self.kind)
        self._num_genes = len(space.genes)
        self._x0 = _first_mean(self.options.x0, self._num_genes, facts)
        self._generator = np.random.default_rng(np.random.SeedSequence(seed))
        self._generations = Generations(self)
        self._restarts_left = self.options.restarts
        self._finished = False
        self._believed: tuple[OrderKey, Genome] | None = None  # of the runs before this one
        self._best: OrderKey | None = None  # since the last start
        self._best_values: deque[float] = deque()
        self._strategy: Any = None
        self._start(self.options.population or 4 + int(3 * math.log(self._num_genes)))

    def ask(self, count: int) -> list[Genome]:
        """At most `count` genomes; empty while the rest of a generation is outstanding."""
        return self._generations.ask(count)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Gather evaluations until a generation is whole."""
        self._generations.tell(evaluations)

    def recommend(self) -> Genome | None:
        """The mean of the distribution, of that run which saw the best candidate."""
        if self._best is None:
            return self._believed[1] if self._believed is not None else None
        if self._believed is not None and self._believed[0] < self._best:
            return self._believed[1]
        return self._mean()

    def breed(self) -> list[Genome]:
        """A generation of pycma's (see `Breeder`)."""
        if self._finished:
            return []
        with self._blas.limit(limits=1):
            self._asked = [np.clip(x, 0.0, 1.0) for x in self._strategy.ask()]
        return [x[: self._num_genes].tolist() for x in self._asked]

    def learn(self, generation: list[Evaluation]) -> None:
        """One step of the distribution (see `Breeder`)."""
        order = total_order(generation)
        positions = np.empty(len(order))
        positions[order] = np.arange(len(order))
        told = [x.copy() for x in self._asked]
        for x, evaluation in zip(told, generation, strict=True):
            x[: self._num_genes] = np.clip(evaluation.genome, 0.0, 1.0)
        if self.options.noise == "adapt":
            self._strategy.sp.cmean = max(SHORTEST_STEP, signal_share(generation))
        with self._blas.limit(limits=1):
            self._strategy.tell(told, positions.tolist())
        best = order_key(generation[order[0]])
        self._best = best if self._best is None else min(self._best, best)
        if self._strategy.stop() or self._is_flat([generation[i] for i in order]):
            self._restart()

    def relearn(self, evaluations: list[Evaluation]) -> None:
        """Nothing: see the class (and `Breeder`)."""

    def _start(self, population: int) -> None:
        """A fresh distribution."""
        import cma
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

        self._blas = ThreadpoolController().select(user_api="blas")
        self.population = self.in_flight = population
        self._best = None
        self._best_values = deque(maxlen=10 + math.ceil(30 * self._num_genes / population))
        diagonal = self.options.diagonal
        options = {
            "popsize": population,
            "bounds": [0.0, 1.0],
            "CMA_diagonal": self._num_genes > DIAGONAL_ABOVE if diagonal == "auto" else diagonal,
            # From 300 genes on, pycma would take TPA, which draws from numpy's global generator.
            "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA,
            "randn": lambda *shape: self._generator.standard_normal(shape),
            "seed": np.nan,  # touch no generator
            "signals_filename": "",
            "verbose": -9,
            "verb_log": 0,
            "verb_disp": 0,
            # These compare values, and are given positions.
            "tolfun": 0,
            "tolfunhist": 0,
            "tolfunrel": 0,
            "tolstagnation": 0,
        }
        self._strategy = cma.CMAEvolutionStrategy(self._x0, self.options.sigma0, options)

    def _restart(self) -> None:
        """Begin again with twice the population, or finish."""
        if self._best is not None and (self._believed is None or self._best < self._believed[0]):
            self._believed = self._best, self._mean()
        if self._restarts_left == 0:
            self._finished = True
            return
        self._restarts_left -= 1
        self._start(2 * self.population)

    def _is_flat(self, generation: list[Evaluation]) -> bool:
        """Auger & Hansen's equalfunvals and TolFun: the best values have stopped to differ.

        generation: from the best to the worst.
        """
        values = [e.score.values[0] if e.score and is_scored(e) else -math.inf for e in generation]
        self._best_values.append(values[0])
        if len(self._best_values) < (self._best_values.maxlen or 0):
            return False
        if len(set(self._best_values)) == 1:
            return True
        values += self._best_values
        return max(values) - min(values) < TOLERANCE

    def _mean(self) -> Genome:
        """The mean of the distribution, in the cube."""
        favourite = np.asarray(self._strategy.result.xfavorite)[: self._num_genes]
        genome: list[float] = np.clip(favourite, 0.0, 1.0).tolist()
        return genome


def signal_share(generation: Sequence[Evaluation]) -> float:
    """The share of the variance of a generation's scores that their standard errors leave, 0 to 1.

    Within the rungs of a race, for only there can values be compared; 1 where nothing can be told.
    """
    total, noise, count = 0.0, 0.0, 0
    scores = [e.score for e in generation if e.score is not None and is_scored(e)]
    for rung in {score.rung for score in scores}:
        estimates = [next(iter(s.objectives.values())) for s in scores if s.rung == rung]
        if len(estimates) > 1:
            values = np.array([estimate.value for estimate in estimates])
            total += float(((values - values.mean()) ** 2).sum())
            noise += float(np.mean([e.standard_error**2 for e in estimates])) * (len(values) - 1)
            count += 1
    if count == 0 or noise == 0.0:
        return 1.0
    return max(0.0, 1.0 - noise / total) if total > 0 else 0.0


def _first_mean(
    x0: Literal["center", "designs", "first_design"] | list[float], num_genes: int, facts: Facts
) -> NDArray[np.float64]:
    """The first mean, shape (max(num_genes, 2),): pycma cannot search in one dimension.

    Raises:
        ConfigurationError: x0 has another length than the space or leaves the cube, or there are
            no designs to take the mean of.
    """
    mean = np.full(max(num_genes, 2), 0.5)
    if isinstance(x0, str) and x0 != "center":
        if not facts.designs:
            raise ConfigurationError(
                Problem(
                    "searcher.x0 (cma_es)",
                    "the search space can express neither an expert nor the uniform merge",
                    "use x0: center, or a list of values",
                )
            )
        known = read_designs(facts.designs, num_genes)
        mean[:num_genes] = known[0] if x0 == "first_design" else known.mean(axis=0)
    elif not isinstance(x0, str):
        if len(x0) != num_genes or not all(0 <= value <= 1 for value in x0):
            raise ConfigurationError(
                Problem(
                    "searcher.x0 (cma_es)",
                    f"expected {num_genes} values in [0, 1], got {len(x0)}: {x0!r}",
                )
            )
        mean[:num_genes] = x0
    return mean
