"""CMA-ES, from pycma: one objective, up to some thousand genes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evomerge.errors import ConfigurationError, Problem
from evomerge.protocols import SearchSpace
from evomerge.records import Evaluation, Facts, Genome
from evomerge.searchers.cma_restarts import Restarts, Start
from evomerge.searchers.cma_strategy import Coordinates, make_strategy, round_one, shaped
from evomerge.searchers.cma_warm import Distribution, best_of, promising
from evomerge.searchers.generation import Generations, read_designs
from evomerge.searchers.options import StrictOptions, read_options
from evomerge.searchers.order import OrderKey, is_scored, order_key, total_order
from evomerge.searchers.stagnation import Stagnation

DIAGONAL_ABOVE = 500  # genes; a full covariance matrix then learns too slowly and costs n^3
SHORTEST_STEP = 0.1  # of the mean, where a generation is all noise


class CmaEs:
    """CMA-ES in the unit cube, with restarts (see cma_restarts.py).

    Hansen, The CMA Evolution Strategy: A Tutorial, arXiv:1604.00772.

    It is told positions in the total order of a generation (see order.py) instead of values, which
    is all that CMA-ES uses: failures and candidates that racing dropped need no made-up value. So
    the criteria of pycma that look at values are replaced by Auger & Hansen's, which look at the
    scores; those that look at the distribution are pycma's. A candidate that is told again after
    its generation was learnt changes nothing: a distribution cannot forget.

    Of discrete genes it samples the numbers of the cells (see cells.py), and their standard
    deviations are kept from vanishing: without that, such a gene freezes as soon as the
    distribution lies within one cell. That is the lower bound of LB+IC-CMA-ES (Marty, Hansen,
    Auger, Semet & Heron, PPSN 2024), without its centring, for which pycma takes numpy's global
    generator.

    What another run was told gives the first mean, step size and covariance (see cma_warm.py).

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
            "[0, 1] for every gene; a warm start has its own",
        )
        sigma0: float = Field(
            1 / 6, gt=0, le=1, description="first standard deviation, in a cube of side 1"
        )
        diagonal: bool | Literal["auto"] = Field(
            "auto", description=f"learn variances alone; auto: above {DIAGONAL_ABOVE} genes"
        )
        discrete: Literal["cells", "ignore"] = Field(
            "cells",
            description="cells: discrete genes keep a standard deviation that reaches the next "
            "value; ignore: they are treated as if they were real",
        )
        noise: Literal["ignore", "adapt"] = Field(
            "ignore",
            description="adapt: the smaller the share of a generation's variance that the scores' "
            "standard errors leave, the shorter the steps of the mean",
        )
        restarts: int = Field(
            9, ge=0, le=30, description="restarts after convergence, each with twice the population"
        )
        restart: Literal["ipop", "bipop"] = Field(
            "ipop",
            description="bipop: in between, restarts with small populations and steps, which have "
            "used as many evaluations in the end; they are not counted",
        )
        restart_from: Literal["x0", "designs", "random"] = Field(
            "x0",
            description="first mean of a restart: x0 again, the space's designs in turn, or a "
            "random point",
        )
        warm_share: float = Field(
            0.1, gt=0, le=1, description="share of a warm start's candidates from which to begin"
        )
        warm_width: float = Field(
            0.01,
            gt=0,
            le=1,
            description="least standard deviation of a warm start: how far this run's optimum may "
            "be from that one's",
        )

    def __init__(self, space: SearchSpace, seed: int, facts: Facts, **options: Any) -> None:
        self.options = read_options(self.Options, options, self.kind)
        self._num_genes = len(space.genes)
        self._coordinates = Coordinates(space, use_cells=self.options.discrete == "cells")
        self._x0 = _first_mean(self.options.x0, self._num_genes, facts)
        self._designs = read_designs(facts.designs, self._num_genes)
        if self.options.restart_from == "designs":
            _need_designs(facts, "restart_from", "use restart_from: x0, or random")
        self._generator = np.random.default_rng(np.random.SeedSequence(seed))
        self._generations = Generations(self)
        population = self.options.population or 4 + int(3 * math.log(self._num_genes))
        start = Start(population, self.options.sigma0)
        self._restarts = Restarts(
            self.options.restart, self.options.restarts, start, self._generator
        )
        self._num_starts = 0
        self._finished = False
        self._believed: tuple[OrderKey, Genome] | None = None  # of the runs before this one
        self._best: OrderKey | None = None  # since the last start
        self._strategy: Any = None
        warm = best_of(facts.warm_start, self.options.warm_share)
        points = read_designs([e.genome for e in warm], self._num_genes, unique=False)
        self._start(start, promising(points, self.options.warm_width) if warm else None)

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
            self._asked = [np.array(x) for x in self._strategy.ask()]
        return [self._coordinates.genome(x) for x in self._asked]

    def learn(self, generation: list[Evaluation]) -> None:
        """One step of the distribution (see `Breeder`)."""
        order = total_order(generation)
        positions = np.empty(len(order))
        positions[order] = np.arange(len(order))
        told = [
            self._coordinates.told(np.asarray(evaluation.genome), x)
            for x, evaluation in zip(self._asked, generation, strict=True)
        ]
        if self.options.noise == "adapt":
            self._strategy.sp.cmean = max(SHORTEST_STEP, signal_share(generation))
        with self._blas.limit(limits=1):
            self._strategy.tell(told, positions.tolist())
        best = order_key(generation[order[0]])
        self._best = best if self._best is None else min(self._best, best)
        is_spent = self._restarts.spend(len(generation))
        is_flat = self._stagnation.is_flat([generation[i] for i in order])
        if self._strategy.stop() or is_flat or is_spent:
            self._restart()

    def relearn(self, evaluations: list[Evaluation]) -> None:
        """Nothing: see the class (and `Breeder`)."""

    def _start(self, start: Start, warm: Distribution | None) -> None:
        """A fresh distribution."""
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

        self._blas = ThreadpoolController().select(user_api="blas")
        self.population = self.in_flight = start.population
        self._best = None
        self._stagnation = Stagnation(self._num_genes, start.population)
        diagonal = self.options.diagonal
        first = self._first_mean_of_run()
        with self._blas.limit(limits=1):
            self._strategy = make_strategy(
                self._coordinates,
                round_one(first, start.sigma) if warm is None else shaped(warm, first),
                start.population,
                self._generator,
                diagonal=self._num_genes > DIAGONAL_ABOVE if diagonal == "auto" else diagonal,
            )

    def _restart(self) -> None:
        """Begin again, or finish."""
        if self._best is not None and (self._believed is None or self._best < self._believed[0]):
            self._believed = self._best, self._mean()
        start = self._restarts.next()
        if start is None:
            self._finished = True
            return
        self._num_starts += 1
        self._start(start, None)

    def _first_mean_of_run(self) -> NDArray[np.float64]:
        """Where this run begins, in the cube; shape (max(genes, 2),)."""
        mean = self._x0.copy()
        if self._num_starts and self.options.restart_from == "designs":
            mean[: self._num_genes] = self._designs[(self._num_starts - 1) % len(self._designs)]
        elif self._num_starts and self.options.restart_from == "random":
            mean[: self._num_genes] = self._generator.random(self._num_genes)
        return mean

    def _mean(self) -> Genome:
        """The mean of the distribution, in the cube."""
        return self._coordinates.genome(np.asarray(self._strategy.result.xfavorite))


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
    if count == 0 or noise == 0.0 or total == 0.0:
        return 1.0
    return max(0.0, 1.0 - noise / total)


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
        _need_designs(facts, "x0", "use x0: center, or a list of values")
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


def _need_designs(facts: Facts, option: str, instead: str) -> None:
    """Refuse an option that begins at designs where there are none."""
    if not facts.designs:
        raise ConfigurationError(
            Problem(
                f"searcher.{option} (cma_es)",
                "the search space can express neither an expert nor the uniform merge",
                instead,
            )
        )
