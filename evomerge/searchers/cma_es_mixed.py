"""CatCMA with margin, from cmaes: one objective, and genes of all types."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evomerge.errors import ConfigurationError, Problem
from evomerge.protocols import SearchSpace
from evomerge.records import Evaluation, Facts, Genome
from evomerge.searchers.cells import categories_of, cells_of, middles, places
from evomerge.searchers.cma_warm import best_of, promising
from evomerge.searchers.generation import Generations, read_designs
from evomerge.searchers.options import StrictOptions, read_options
from evomerge.searchers.order import OrderKey, order_key, total_order
from evomerge.searchers.stagnation import Stagnation

MOST_GENES = 200  # a sample costs the square of them with a large factor, a generation the cube
DOUBT = 0.5  # share of the uniform distribution in categories that are learnt from designs


class CmaEsMixed:
    """CatCMA with margin in the unit cube, with restarts that double the population.

    Hamano, Saito, Nomura, Uchida & Shirakawa, CatCMA with Margin: Stochastic Optimization for
    Continuous, Integer, and Categorical Variables, arXiv:2504.07884. Real genes and integers share
    one normal distribution, names and flags have a probability for each value. A flag that is
    counted (see cells.py) is a real number.

    It is told positions in the total order of a generation, as `cma_es` is, and stops by the same
    criteria. A candidate that is told again after its generation was learnt changes nothing. What
    another run was told cannot be told to it: the best of them, or the designs, give the first
    mean, covariance and probabilities.
    """

    kind: ClassVar[str] = "cma_es_mixed"
    summary: ClassVar[str] = f"CatCMA with margin: reals, integers, names; up to {MOST_GENES} genes"
    multi_objective: bool = False
    needs: frozenset[str] = frozenset({"genes"})
    resumes_on_drift: bool = True

    class Options(StrictOptions):
        """Options of `cma_es_mixed`."""

        population: int | None = Field(
            None, ge=4, le=100_000, description="candidates a generation; default 4 + 3 ln(genes)"
        )
        x0: Literal["center", "designs"] = Field(
            "center",
            description="first mean: the cube's centre, and all names as likely; or that of the "
            "space's designs (each expert alone and the uniform merge, for most)",
        )
        sigma0: float = Field(
            1 / 6, gt=0, le=1, description="first standard deviation, in a cube of side 1"
        )
        restarts: int = Field(
            9, ge=0, le=30, description="restarts after convergence, each with twice the population"
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
        self._check(space, facts)
        self._cells = cells_of(space)
        named = categories_of(space)
        self._reals = np.flatnonzero(self._cells == 0)
        self._integers = np.flatnonzero((self._cells > 0) & ~named)
        self._named = np.flatnonzero(named)
        self._generator = np.random.default_rng(np.random.SeedSequence(seed))
        self._generations = Generations(self)
        self._restarts_left = self.options.restarts
        self._finished = False
        self._believed: tuple[OrderKey, Genome] | None = None  # of the runs before this one
        self._best: OrderKey | None = None  # since the last start
        self._strategy: Any = None
        population = self.options.population or 4 + int(3 * math.log(len(self._cells)))
        warm = best_of(facts.warm_start, self.options.warm_share)
        known = [e.genome for e in warm] if warm else []
        self._designs = read_designs(facts.designs, len(self._cells))
        self._start(population, read_designs(known, len(self._cells), unique=False))

    def ask(self, count: int) -> list[Genome]:
        """At most `count` genomes; empty while the rest of a generation is outstanding."""
        return self._generations.ask(count)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Gather evaluations until a generation is whole."""
        self._generations.tell(evaluations)

    def recommend(self) -> Genome | None:
        """The likeliest values, of that run which saw the best candidate."""
        if self._best is None:
            return self._believed[1] if self._believed is not None else None
        if self._believed is not None and self._believed[0] < self._best:
            return self._believed[1]
        return self._mode()

    def breed(self) -> list[Genome]:
        """A generation of the library's (see `Breeder`)."""
        if self._finished:
            return []
        with self._blas.limit(limits=1):
            self._asked = [self._strategy.ask() for _ in range(self.population)]
        self._genomes = [
            self._genome(solution.x, solution.z, solution.c) for solution in self._asked
        ]
        return list(self._genomes)

    def learn(self, generation: list[Evaluation]) -> None:
        """One step of the distribution (see `Breeder`)."""
        order = total_order(generation)
        told = [
            (self._asked[i] if e.genome == self._genomes[i] else self._solution(e.genome), position)
            for position, i in enumerate(order)
            for e in [generation[i]]
        ]
        with self._blas.limit(limits=1):
            self._strategy.tell(told)
        best = order_key(generation[order[0]])
        self._best = best if self._best is None else min(self._best, best)
        is_flat = self._stagnation.is_flat([generation[i] for i in order])
        if is_flat or (self._has_gaussian() and self._strategy.should_stop()):
            self._restart()

    def relearn(self, evaluations: list[Evaluation]) -> None:
        """Nothing: see the class (and `Breeder`)."""

    # --- between genomes and the library's solutions ----------------------------------------------

    def _genome(self, x: Any, z: Any, c: Any) -> Genome:
        """x: reals; z: numbers of integers' cells; c: one-hot rows of names."""
        point = np.zeros(len(self._cells))
        if len(self._reals):
            point[self._reals] = x
        if len(self._integers):
            point[self._integers] = z
        if len(self._named):
            point[self._named] = np.argmax(c, axis=1)
        genome: list[float] = np.clip(middles(point, self._cells), 0.0, 1.0).tolist()
        return genome

    def _solution(self, genome: Genome) -> Any:
        """A solution that was not the library's own, as if it had drawn the cells' middles."""
        raw = self._gaussian(np.clip(np.asarray(genome, dtype=np.float64), 0.0, 1.0))
        num_reals = len(self._reals)
        return dataclasses.replace(
            self._asked[0],
            x=raw[:num_reals] if num_reals else None,
            z=raw[num_reals:] if len(self._integers) else None,
            c=self._one_hot(np.asarray([genome])).astype(bool)[0] if len(self._named) else None,
            _v_raw=raw if self._has_gaussian() else None,
        )

    def _gaussian(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """The part of points that is normally distributed; shape (..., reals + integers)."""
        numbers = places(points, self._cells)
        return np.concatenate([numbers[..., self._reals], numbers[..., self._integers]], axis=-1)

    def _one_hot(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """The named genes of points; shape (n, names, most options)."""
        numbers = places(points, self._cells)[:, self._named].astype(np.intp)
        one_hot: NDArray[np.float64] = np.eye(int(self._cells[self._named].max()))[numbers]
        return one_hot

    def _has_gaussian(self) -> bool:
        return len(self._reals) + len(self._integers) > 0

    def _mode(self) -> Genome:
        """The distribution's mean, and the likeliest names."""
        strategy, num_reals = self._strategy, len(self._reals)
        mean = strategy._mean if self._has_gaussian() else np.empty(0)
        most = self._cells[self._integers] - 1
        z = np.clip(np.rint(mean[num_reals:]), 0, most)
        return self._genome(mean[:num_reals], z, strategy._q if len(self._named) else None)

    # --- starts -----------------------------------------------------------------------------------

    def _start(self, population: int, warm: NDArray[np.float64]) -> None:
        """A fresh distribution. warm: good points of another run, shape (n, genes)."""
        from cmaes import CatCMAwM  # type: ignore[import-untyped]
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

        self._blas = ThreadpoolController().select(user_api="blas")
        self.population = self.in_flight = population
        self._best = None
        self._stagnation = Stagnation(len(self._cells), population)
        counts = self._cells[self._integers].tolist()
        options: dict[str, Any] = {
            "x_space": [[0.0, 1.0]] * len(self._reals) or None,
            "z_space": [list(range(count)) for count in counts] or None,
            "c_space": self._cells[self._named].tolist() or None,
            "population_size": population,
            "seed": int(self._generator.integers(2**31)),
        }
        if self._has_gaussian():
            options |= self._normal(warm)
        if len(self._named) and (len(warm) or self.options.x0 == "designs"):
            options["cat_param"] = self._probabilities(warm if len(warm) else self._designs)
        self._strategy = CatCMAwM(**options)

    def _normal(self, warm: NDArray[np.float64]) -> dict[str, Any]:
        """The first normal distribution, in numbers of cells where there are some."""
        here = np.concatenate([self._reals, self._integers])
        scale = np.maximum(self._cells[here], 1)
        mean, sigma = np.full(len(here), 0.5), self.options.sigma0
        covariance = np.eye(len(here))
        if len(warm):
            mean, covariance = promising(warm[:, here], self.options.warm_width)
            _, logarithm = np.linalg.slogdet(covariance)
            sigma = math.exp(logarithm / 2 / len(here))
            covariance = covariance / sigma**2
        elif self.options.x0 == "designs":
            mean = self._designs[:, here].mean(axis=0)
        return {
            "mean": np.where(self._cells[here] > 0, mean * scale - 0.5, mean),
            "sigma": sigma,
            "cov": covariance * np.outer(scale, scale),
        }

    def _probabilities(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """How often points have each name, mixed with the uniform; shape (names, most options)."""
        cells = self._cells[self._named]
        uniform = (np.arange(cells.max()) < cells[:, None]) / cells[:, None]
        learnt: NDArray[np.float64] = self._one_hot(points).mean(axis=0)
        return DOUBT * uniform + (1 - DOUBT) * learnt

    def _restart(self) -> None:
        """Begin again with twice the population, or finish."""
        if self._best is not None and (self._believed is None or self._best < self._believed[0]):
            self._believed = self._best, self._mode()
        if self._restarts_left == 0:
            self._finished = True
            return
        self._restarts_left -= 1
        self._start(2 * self.population, np.empty((0, len(self._cells))))

    def _check(self, space: SearchSpace, facts: Facts) -> None:
        """Refuse too many genes, and designs as a mean where there are none."""
        problems = []
        if len(space.genes) > MOST_GENES:
            text = f"expected at most {MOST_GENES} genes, got {len(space.genes)}"
            problems.append(Problem(f"searcher.kind ({self.kind})", text, "use cma_es"))
        if self.options.x0 == "designs" and not facts.designs:
            problems.append(
                Problem(
                    f"searcher.x0 ({self.kind})",
                    "the search space can express neither an expert nor the uniform merge",
                    "use x0: center",
                )
            )
        if problems:
            raise ConfigurationError(problems)
