"""CycleQD, on pyribs' archives: one archive a task, each of them searched in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evomerge.protocols import SearchSpace
from evomerge.records import Evaluation, Facts, Genome
from evomerge.searchers.elites import Archives, Axes, Elites, check_grid
from evomerge.searchers.generation import Generations, read_designs
from evomerge.searchers.inheritance import DiscreteGenes, Floats
from evomerge.searchers.map_elites import Range
from evomerge.searchers.needs import unmet
from evomerge.searchers.options import StrictOptions, read_options

LEAST_WEIGHT = 1e-3  # of a parent, whatever the normal distribution says


class CycleQd:
    """CycleQD in the unit cube, generation by generation.

    Kuroki, Nakamura, Akiba & Tang, Agent Skill Acquisition for Large Language Models via CycleQD,
    arXiv:2410.14735. There is an archive (see `Archives`) for every task, which is an objective
    here: in it, this task is the quality and the others are the behaviours. Each generation breeds
    from the next archive in turn, and all archives take in all of its children.

    Parents are drawn by elite sampling: with a probability that is proportional to a product over
    quality and behaviours, each scaled from the archive's lowest and highest value to [alpha_low,
    alpha_high] (the published code scales to [.5, 1.3], and takes the number of a behaviour's cell
    for the behaviour). Two different parents are merged: w_1 / (w_1 + w_2) of the first, the rest
    of the second, with w ~ N(1, mix_std^2); the first generation is the designs (the experts, for
    most spaces), then random genomes, or children of a warm start's elites.

    Departures: what is merged are genomes, which is the same as merging models where a model is
    linear in its genome (task arithmetic without densities; not where genes are logarithmic,
    normalised, or no real numbers: those are crossed gene by gene). The paper's mutation goes along
    the singular vectors of a task vector's matrices, which a searcher does not see: here it is
    normal noise in the cube. Ranges of behaviours are learnt unless they are given.

    recommend() is the paper's last step: the average of the best elite of every archive, weighted
    by the softmax of their mean objectives. It is a genome only where all genes are real.
    """

    kind: ClassVar[str] = "cycle_qd"
    summary: ClassVar[str] = "CycleQD: an archive for each objective, bred from in turns"
    multi_objective: bool = True
    asks_designs: bool = True
    needs: frozenset[str] = frozenset({"genes", "several_objectives"})
    resumes_on_drift: bool = True

    class Options(StrictOptions):
        """Options of `cycle_qd`."""

        population: int = Field(24, ge=1, le=100_000, description="candidates a generation")
        tasks: list[str] | None = Field(
            None,
            min_length=2,
            description="objectives that have an archive, in the order of their turns; default: "
            "all of them",
        )
        cells: int | None = Field(
            None,
            ge=2,
            le=10_000,
            description="cells on each axis; default: about 225 in all, but at most 30 on an axis",
        )
        ranges: dict[str, Range] = Field(
            {},
            description="objective -> [low, high] that its cells divide; learnt where not given",
        )
        alpha_low: float = Field(
            0.5,
            ge=0,
            le=1000,
            description="of elite sampling: what the archive's lowest value counts",
        )
        alpha_high: float = Field(
            0.8,
            gt=0,
            le=1000,
            description="of elite sampling: what the archive's highest value counts",
        )
        mix_std: float = Field(
            0.03, ge=0, le=1, description="standard deviation of a parent's weight, whose mean is 1"
        )
        sigma: float = Field(
            0.05, ge=0, le=1, description="standard deviation of mutations, in a cube of side 1"
        )
        mutation_rate: float | None = Field(
            None,
            ge=0,
            le=1,
            description="share of a child's genes that change, among those that are no real "
            "numbers; default: one gene on average",
        )

    def __init__(self, space: SearchSpace, seed: int, facts: Facts, **options: Any) -> None:
        self.options = read_options(self.Options, options, self.kind)
        self.population = self.in_flight = self.options.population
        self._num_genes = len(space.genes)
        self._is_averaged = not unmet(frozenset({"reals"}), space, facts)
        self._tasks = tuple(self.options.tasks or facts.objectives)
        self._archives = self._make_archives(facts)
        self._genes = DiscreteGenes(space.genes, self.options.mutation_rate)
        self._generations = Generations(self)
        self._designs: list[Genome] = read_designs(facts.designs, self._num_genes).tolist()
        self._generator = np.random.default_rng(np.random.SeedSequence(seed))
        self._num_cycled = 0  # generations that were bred from an archive

    def ask(self, count: int) -> list[Genome]:
        """At most `count` genomes; empty while the rest of a generation is outstanding."""
        return self._generations.ask(count)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Gather evaluations until a generation is whole."""
        self._generations.tell(evaluations)

    def recommend(self) -> Genome | None:
        """The average of the best elites, where genomes can be averaged."""
        archives = [self._archives[task] for task in range(len(self._tasks))]
        if not self._is_averaged or len(archives[0]) == 0:
            return None
        best = [int(np.argmax(elites.qualities)) for elites in archives]
        means = np.array([elites.means[i] for elites, i in zip(archives, best, strict=True)])
        weights = np.exp(means - means.max())
        genomes = np.array([elites.genomes[i] for elites, i in zip(archives, best, strict=True)])
        genome: Genome = np.clip(weights @ genomes / weights.sum(), 0.0, 1.0).tolist()
        return genome

    def breed(self) -> list[Genome]:
        """The designs, once; and children of the elites of the archive in turn (see `Breeder`)."""
        designs, self._designs = self._designs, []
        missing = max(self.population - len(designs), 0)
        if missing == 0:
            return designs
        elites = self._archives[self._num_cycled % len(self._tasks)]
        if len(elites) == 0:
            strangers = self._genes.snap(self._generator.random((missing, self._num_genes)))
            return [*designs, *strangers.tolist()]
        self._num_cycled += 1
        return [*designs, *self._children(elites, missing).tolist()]

    def learn(self, generation: list[Evaluation]) -> None:
        """Put a generation into all archives (see `Breeder`)."""
        self._archives.tell(generation)

    def relearn(self, evaluations: list[Evaluation]) -> None:
        """New scores count as if they had been told at once (see `Breeder`)."""
        self._archives.tell(evaluations)

    def _children(self, elites: Elites, count: int) -> Floats:
        """Merged and mutated, shape (count, genes)."""
        generator = self._generator
        shares = elite_shares(elites, self.options.alpha_low, self.options.alpha_high)
        pairs = np.array([draw_pair(shares, generator) for _ in range(count)])
        first, second = elites.genomes[pairs[:, 0]], elites.genomes[pairs[:, 1]]
        weights = generator.normal(1.0, self.options.mix_std, (count, 2))
        weights = np.maximum(weights, LEAST_WEIGHT)
        weights /= weights.sum(axis=1, keepdims=True)
        noise = generator.normal(0.0, self.options.sigma, first.shape)
        children = weights[:, :1] * first + weights[:, 1:] * second + noise
        return self._genes.inherit(children, first, second, generator)

    def _make_archives(self, facts: Facts) -> Archives:
        """An archive for each task, with what was told to another run.

        Raises:
            ConfigurationError: see `check_grid`.
        """
        options, names = self.options, facts.objectives
        named = {"tasks": self._tasks}
        cells = check_grid(
            self.kind, names, named, options.cells, len(self._tasks) - 1, options.ranges
        )
        axes = [Axes(task, tuple(t for t in self._tasks if t != task)) for task in self._tasks]
        return Archives(axes, names, cells, options.ranges, facts.warm_start)


def elite_shares(elites: Elites, alpha_low: float, alpha_high: float) -> Floats:
    """The probability of each elite to become a parent, shape (elites,); it sums to 1.

    Where all elites have the same value, it does not count.
    """
    values = np.column_stack([elites.qualities, elites.behaviours])
    low, high = values.min(axis=0), values.max(axis=0)
    spread = np.where(high > low, high - low, 1.0)
    gamma = np.prod(alpha_low + (alpha_high - alpha_low) * (values - low) / spread, axis=1)
    total = gamma.sum()
    shares: Floats = gamma / total if total > 0 else np.full(len(gamma), 1 / len(gamma))
    return shares


def draw_pair(shares: Floats, generator: np.random.Generator) -> NDArray[np.int64]:
    """Two different parents; the same one twice where nobody else can be drawn. Shape (2,)."""
    is_alone = bool(np.count_nonzero(shares) < 2)
    pair: NDArray[np.int64] = generator.choice(len(shares), 2, replace=is_alone, p=shares)
    return pair
