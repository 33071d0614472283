"""MAP: a front from few measurements, by quadratics fitted to the objectives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evomerge.errors import ConfigurationError, Problem
from evomerge.protocols import SearchSpace
from evomerge.records import CandidateId, Evaluation, Facts, Genome
from evomerge.searchers.charts import Chart, base_genome, whole_cube
from evomerge.searchers.generation import Generations, read_designs
from evomerge.searchers.map_rounds import POOL, Rounds, Surrogate
from evomerge.searchers.nesting import Nesting, start_nesting
from evomerge.searchers.options import StrictOptions, read_options
from evomerge.searchers.order import is_scored
from evomerge.searchers.quadratic import Quadratic, terms
from evomerge.searchers.quadratic_fit import fit, squares_of
from evomerge.searchers.surrogate_front import by_bins, relevance, sobol

Array = NDArray[np.float64]
Measurement = tuple[Array, Array, Array]  # a genome, its scores and their standard errors

MOST_GENES = 40  # with all products of genes: 861 terms, and a design of 1,722 points
MORE = 1.25  # times as many points, before links are chosen anew
FRESH = 0.01  # of the points, that are worth a fit: fewer hardly change it
BAYESIAN_ROUNDS = 4  # after the first half of the design


class MapPareto:
    """MAP (model merging with amortised Pareto fronts), inside the cube and in rounds.

    Li et al. 2024, arXiv:2406.07529. A design is measured; each objective gets a quadratic with a
    link (see quadratic.py); many compromises at once find the front that the quadratics predict
    (see predicted_front.py); those points of it that together add most hypervolume are measured,
    the quadratics are fitted anew, and so on. Where none adds anything, points follow that would if
    they were two standard errors better (with several objectives, and unless the surrogate is
    certain of all), and then those that are least certain.

    The design has (T + 1)(T + 2) points for T genes, twice what a quadratic has terms: the known
    designs, the experts alone (or each gene alone, where no expert can be said alone) and the base
    make up half of it at most (the user's own merges are all among them), Sobol points the rest. It
    grows with T^2: 12 points for 2 genes, 20 for 3, 132 for 10, 1,722 for 40, which is the most.
    With more genes a smaller `design` has to be said, and the quadratics go without products of
    genes.

    Variants: `bayesian` measures half of the design first and the rest in four rounds, where the
    surrogate is worst (`by_bins`). `nested` merges experts in pairs (see nesting.py), each a
    problem of two coefficients: 12 points a pair, instead of a design that grows with T^2.

    Departures from the paper and its code: Sobol points instead of uniform ones; the front is
    looked for where points were sampled, whereas the published code goes on to [-3, 3], and by
    gradients rather than by NSGA-III (a twentieth of the time, and 1.03 times the hypervolume, in
    the mean of 14 kinds of surrogates of 2 to 20 genes and 2 to 4 objectives); points of the
    predicted front are measured and learnt from, whereas the paper reports predictions; the link
    can be chosen by leaving points out, at first and whenever there are a quarter more of them;
    points are weighted by their standard errors. A race's rungs count through these errors alone.
    With one objective, the second is the surrogate's own uncertainty, so that a round has what is
    predicted to be best and what may be better.

    Where a round has few points beside a quadratic's terms (16 from 15 genes on), a fit follows the
    one before, which takes a tenth of the time (see quadratic_fit.py).

    A warm start's evaluations are data of the quadratics; the design is measured nevertheless, and
    can be made smaller.
    """

    kind: ClassVar[str] = "map_pareto"
    summary: ClassVar[str] = "MAP: fronts of up to 40 real genes from few candidates"
    multi_objective: bool = True
    asks_designs: bool = True
    needs: frozenset[str] = frozenset({"genes", "reals"})
    resumes_on_drift: bool = True

    class Options(StrictOptions):
        """Options of `map_pareto`."""

        variant: Literal["plain", "bayesian", "nested"] = Field(
            "plain",
            description="plain: one design; bayesian: a design that grows where the surrogate is "
            "worst; nested: experts are merged in pairs, for many of them",
        )
        design: int | None = Field(
            None,
            ge=2,
            le=100_000,
            description="points that are measured first; default (T + 1)(T + 2) for T genes",
        )
        population: int = Field(
            16,
            ge=1,
            le=10_000,
            description="points of the predicted front a round, which takes about the same time "
            "whatever their number",
        )
        until: Literal["budget", "front"] = Field(
            "budget",
            description="front: finish once every point of the predicted front is measured; budget:"
            " measure where the surrogate is least certain then",
        )
        link: Literal["auto", "identity", "sigmoid", "softplus"] = Field(
            "auto",
            description="what the quadratic goes through; auto: what predicts points best that "
            "were left out, for each objective (the sigmoid for scores in [0, 1] alone)",
        )
        preference: list[float] | None = Field(
            None,
            description="nested: what each objective counts when a pair is merged; default equal",
        )
        compromises: int | None = Field(
            None,
            ge=4,
            le=10_000,
            description="compromises between the objectives, whose optima are the predicted front; "
            "default three for each point of a round (two with one objective), from 16 to 100",
        )
        steps: int = Field(
            60, ge=1, le=100_000, description="of L-BFGS-B at most, towards those optima, twice"
        )

    def __init__(self, space: SearchSpace, seed: int, facts: Facts, **options: Any) -> None:
        import scipy.linalg  # noqa: F401  (it brings a BLAS of its own, which has to be found)
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

        self.options = read_options(self.Options, options, self.kind)
        self._num_genes = len(space.genes)
        self.population = self.in_flight = self.options.population
        self._num_objectives = len(facts.objectives)
        self._check()
        self._blas = ThreadpoolController().select(user_api="blas")
        self._generator = np.random.default_rng(np.random.SeedSequence(seed))
        self._rounds = Rounds(
            self.population,
            len(facts.objectives),
            self.options.compromises,
            self.options.steps,
            self.options.until == "budget",
            self._generator,
        )
        self._chart = whole_cube(self._num_genes)
        self._fitted: list[Quadratic] = []  # to the chart, last
        self._has_relearned = False  # scores have changed since
        self._chosen_from = 0  # points that their links were chosen from
        warm = (self._measurement(evaluation) for evaluation in facts.warm_start)
        self._warm = [one for one in warm if one is not None]
        self._measured: dict[CandidateId, Measurement | None] = {}
        self._nesting: Nesting | None = None
        if self.options.variant == "nested":
            self._nesting = start_nesting(space.genes, facts, self.options.preference)
        self._given: list[Genome] = read_designs(facts.given, self._num_genes).tolist()
        self._known = self._known_points(space, facts)
        # Points of the design that are measured together.
        self._design_parts = self._parts_of_design()
        self._generations = Generations(self)

    def ask(self, count: int) -> list[Genome]:
        """At most `count` genomes; empty while the rest of a round is outstanding."""
        return self._generations.ask(count)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Gather evaluations until a round is whole."""
        self._generations.tell(evaluations)

    def recommend(self) -> Genome | None:
        """None: the front is made of candidates."""
        return None

    def breed(self) -> list[Genome]:
        """The design, a part of it, or points of the predicted front (see `Breeder`)."""
        with self._blas.limit(limits=1):
            while self._nesting is not None:
                genomes = self._nesting.breed(self._fit_chart, self._generator)
                if genomes:
                    given, self._given = self._given, []
                    return [*given, *genomes]
                self._chart, self._nesting = self._nesting.chart, None
            if self._design_parts:
                return self._chart.genomes(self._part_of_design(self._design_parts.pop(0)))
            return self._chart.genomes(self._round())

    def learn(self, generation: list[Evaluation]) -> None:
        """Take in a round (see `Breeder`)."""
        self._measured.update((one.id, self._measurement(one)) for one in generation)

    def relearn(self, evaluations: list[Evaluation]) -> None:
        """New scores replace the old ones; they count from the next round on (see `Breeder`)."""
        self._has_relearned = True
        for one in evaluations:
            before, now = self._measured.get(one.id), self._measurement(one)
            if (before is None) != (now is None):  # the last fit was to other points
                self._fitted = [replace(model, num_points=0) for model in self._fitted]
            self._measured[one.id] = now

    def _measurement(self, evaluation: Evaluation) -> Measurement | None:
        """None for what has no score of every objective."""
        score = evaluation.score
        if score is None or not is_scored(evaluation) or len(score.values) != self._num_objectives:
            return None
        errors = [estimate.standard_error for estimate in score.objectives.values()]
        return (
            np.asarray(evaluation.genome, dtype=np.float64),
            np.asarray(score.values, dtype=np.float64),
            np.asarray(errors, dtype=np.float64),
        )

    def _check(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigurationError: too many genes, or another number of preferences than objectives.
        """
        num_genes, options = self._num_genes, self.options
        if num_genes > MOST_GENES and options.design is None and options.variant != "nested":
            size = (num_genes + 1) * (num_genes + 2)
            raise ConfigurationError(
                Problem(
                    "searcher.kind (map_pareto)",
                    f"a design of (T + 1)(T + 2) = {size} points for T = {num_genes} genes; at most"
                    f" {MOST_GENES} genes",
                    "use a space with fewer genes (one coefficient per expert), variant: nested, "
                    "or say a smaller `design`: then products of genes are left out",
                )
            )
        if options.preference is not None and (
            len(options.preference) != self._num_objectives
            or min(options.preference, default=0) < 0
            or sum(options.preference) <= 0
        ):
            raise ConfigurationError(
                Problem(
                    "searcher.preference (map_pareto)",
                    f"expected {self._num_objectives} numbers from 0, not all 0, "
                    f"got {options.preference}",
                )
            )

    def _known_points(self, space: SearchSpace, facts: Facts) -> Array:
        """The designs, each expert (or gene) alone, and the base; shape (points, genes)."""
        base = base_genome(space.genes)
        origin = np.zeros(self._num_genes) if base is None else base
        alone: list[Genome] = list(facts.experts)
        if not alone:
            alone = [np.where(row > 0, 1.0, origin).tolist() for row in np.eye(self._num_genes)]
        return read_designs([*facts.designs, *alone, origin.tolist()], self._num_genes)

    def _parts_of_design(self) -> list[int]:
        """How many points are measured together, until the design is done."""
        size = self.options.design or (self._num_genes + 1) * (self._num_genes + 2)
        if self.options.variant == "nested":
            return []
        if self.options.variant == "plain":
            return [size]
        rest = size - (size + 1) // 2
        rounds = min(BAYESIAN_ROUNDS, rest)
        return [size - rest, *(len(part) for part in np.array_split(np.arange(rest), rounds or 1))]

    def _part_of_design(self, size: int) -> Array:
        """Points of the design: the first with what is known, later ones where it is uncertain."""
        if self._measured:
            points, models, scales = self._fit_chart(self._chart)
            pool = sobol(max(POOL, size), self._chart.dimensions, self._generator)
            if not models:
                return pool[:size]
            return pool[by_bins(models, scales, points, pool, size)]
        known = self._known[: max(size // 2, 1, len(self._given))]
        missing = max(size - len(known), 0)
        return np.vstack([known, sobol(missing, self._num_genes, self._generator)])

    def _round(self) -> Array:
        """Points of the predicted front that were not measured, and uncertain ones."""
        surrogate = self._fit_chart(self._chart, anew=False)
        return self._rounds.points(surrogate, self._chart.dimensions, bool(self._measured))

    def _fit_chart(self, chart: Chart, *, anew: bool = True) -> Surrogate:
        """Quadratics of a chart's coordinates, from everything that was measured on it.

        anew: also where next to nothing has come since the last fit.
        """
        measured = [*self._warm, *(one for one in self._measured.values() if one is not None)]
        if len(measured) < 2:
            return Surrogate(np.empty((0, chart.dimensions)), [], np.ones(self._num_objectives))
        genomes, told, errs = (
            np.concatenate(column).reshape(len(measured), -1)
            for column in zip(*measured, strict=True)
        )
        points, inside = chart.points(genomes)
        points, told, errs = points[inside], told[inside], errs[inside]
        if len(points) < 2:
            return Surrogate(points, [], np.ones(self._num_objectives))
        ranges = np.ptp(told, axis=0)
        scales = np.where(ranges > 0, ranges, 1.0)
        if not anew and self._fitted and not self._has_relearned:
            fresh = len(points) - self._fitted[0].num_points
            if 0 <= fresh < FRESH * len(points):
                return Surrogate(points, self._fitted, scales)
        products = chart.dimensions <= MOST_GENES
        rows = terms(points, products)
        squares, counts = squares_of(rows), relevance(told, rows.shape[1])
        before: list[Quadratic | None] = [None] * self._num_objectives
        if chart is self._chart and len(points) < MORE * self._chosen_from:
            before = list(self._fitted)
        models = [
            fit(
                points,
                told[:, k],
                errs[:, k],
                self.options.link,
                products,
                counts,
                before[k],
                rows,
                squares,
            )
            for k in range(self._num_objectives)
        ]
        if chart is self._chart:
            self._fitted, self._has_relearned = models, False
            self._chosen_from = len(points) if before[0] is None else self._chosen_from
        return Surrogate(points, models, scales)
