"""MAP-Elites, on pyribs: good candidates of every behaviour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from evomerge.protocols import SearchSpace
from evomerge.records import Evaluation, Facts, Genome
from evomerge.searchers.elites import Archives, Axes, check_grid
from evomerge.searchers.generation import Generations, read_designs
from evomerge.searchers.inheritance import DiscreteGenes, Floats
from evomerge.searchers.options import StrictOptions, read_options

Range = Annotated[list[float], Field(min_length=2, max_length=2)]


class MapElites:
    """MAP-Elites in the unit cube, generation by generation.

    Mouret & Clune, Illuminating Search Spaces by Mapping Elites, arXiv:1504.04909. The archive (see
    `Archives`) has a cell for every combination of behaviours, which are objectives: so it finds
    models that balance the skills in every way, with the best quality for each balance.

    Parents are elites, each with the same probability. Their children come in turns from the
    emitters: `gaussian` adds normal noise to one parent; `iso_line` adds less of it, and a normal
    multiple of the difference of two (Vassiliades & Mouret, Discovering the Elite Hypervolume by
    Leveraging Interspecies Correlation, arXiv:1804.03906). Both are pyribs' operators. Genes that
    are no real numbers are resampled (see `DiscreteGenes`). The first generation is the designs,
    then random genomes, or children of a warm start's elites.

    Departures: ranges of behaviours are learnt unless they are given, and candidates that leave the
    cube are clipped to it.
    """

    kind: ClassVar[str] = "map_elites"
    summary: ClassVar[str] = "MAP-Elites: the best of every balance of several objectives"
    multi_objective: bool = True
    asks_designs: bool = True
    needs: frozenset[str] = frozenset({"genes", "several_objectives"})
    resumes_on_drift: bool = True

    class Options(StrictOptions):
        """Options of `map_elites`."""

        population: int = Field(24, ge=1, le=100_000, description="candidates a generation")
        quality: str = Field(
            "mean",
            description="what is best in a cell: the objective of this name, or the mean of all "
            "that are measured",
        )
        behaviour: list[str] | None = Field(
            None,
            min_length=1,
            description="objectives that span the cells; default: all but the quality",
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
        emitters: list[Literal["gaussian", "iso_line"]] = Field(
            ["gaussian", "iso_line"], min_length=1, description="who makes children, in turns"
        )
        sigma: float = Field(
            0.1, gt=0, le=1, description="standard deviation of `gaussian`, in a cube of side 1"
        )
        iso_sigma: float = Field(0.01, ge=0, le=1, description="standard deviation of `iso_line`")
        line_sigma: float = Field(
            0.5, ge=0, le=10, description="standard deviation of `iso_line` along the difference"
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
        self._archives = self._make_archives(facts)
        self._genes = DiscreteGenes(space.genes, self.options.mutation_rate)
        self._generations = Generations(self)
        self._designs: list[Genome] = read_designs(facts.designs, self._num_genes).tolist()
        own, *theirs = np.random.SeedSequence(seed).generate_state(3, np.uint64)
        self._generator = np.random.default_rng(own)
        self._operators = self._make_operators(theirs)
        self._num_bred = 0

    def ask(self, count: int) -> list[Genome]:
        """At most `count` genomes; empty while the rest of a generation is outstanding."""
        return self._generations.ask(count)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Gather evaluations until a generation is whole."""
        self._generations.tell(evaluations)

    def recommend(self) -> Genome | None:
        """None: the archive is made of candidates."""
        return None

    def breed(self) -> list[Genome]:
        """The designs, once; and children of elites (see `Breeder`)."""
        designs, self._designs = self._designs, []
        missing = max(self.population - len(designs), 0)
        if missing == 0:
            return designs
        elites = self._archives[0]
        if len(elites) == 0:
            strangers = self._genes.snap(self._generator.random((missing, self._num_genes)))
            return [*designs, *strangers.tolist()]
        return [*designs, *self._children(elites.genomes, missing).tolist()]

    def learn(self, generation: list[Evaluation]) -> None:
        """Put a generation into the archive (see `Breeder`)."""
        self._archives.tell(generation)

    def relearn(self, evaluations: list[Evaluation]) -> None:
        """New scores count as if they had been told at once (see `Breeder`)."""
        self._archives.tell(evaluations)

    def _children(self, genomes: Floats, count: int) -> Floats:
        """Children of elites, from the emitters in turns; shape (count, genes).

        genomes: of the elites, shape (elites, genes).
        """
        names = self.options.emitters
        turns = (self._num_bred + np.arange(count)) % len(names)
        self._num_bred += count
        parents = genomes[self._generator.integers(len(genomes), size=(2, count))]
        children = np.empty((count, self._num_genes))
        for turn, name in enumerate(names):
            if not (mine := turns == turn).any():
                continue
            if name == "gaussian":
                parents[1, mine] = parents[0, mine]
                children[mine] = self._operators[name].ask(parents[0, mine])
            else:
                children[mine] = self._operators[name].ask(parents[:, mine])
        return self._genes.inherit(children, parents[0], parents[1], self._generator)

    def _make_archives(self, facts: Facts) -> Archives:
        """The archive, with what was told to another run.

        Raises:
            ConfigurationError: see `check_grid`.
        """
        options, names = self.options, facts.objectives
        quality = None if options.quality == "mean" else options.quality
        behaviour = options.behaviour
        if behaviour is None:
            behaviour = [name for name in names if name != quality]
        named = {"quality": [quality] if quality else [], "behaviour": behaviour}
        cells = check_grid(self.kind, names, named, options.cells, len(behaviour), options.ranges)
        axes = Axes(quality, tuple(behaviour))
        return Archives([axes], names, cells, options.ranges, facts.warm_start)

    def _make_operators(self, seeds: Sequence[np.uint64]) -> dict[str, Any]:
        """Pyribs' operators, each with a generator of its own."""
        from ribs.emitters.operators import GaussianOperator, IsoLineOperator

        options = self.options
        return {
            "gaussian": GaussianOperator(options.sigma, seed=seeds[0]),
            "iso_line": IsoLineOperator(options.iso_sigma, options.line_sigma, seed=seeds[1]),
        }
