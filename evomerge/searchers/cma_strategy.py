"""Pycma's strategy object, set up for the unit cube with discrete genes in it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evomerge.protocols import SearchSpace
from evomerge.records import Genome
from evomerge.searchers.cells import cells_of, middles, places
from evomerge.searchers.cma_warm import Distribution

Vector = NDArray[np.float64]
LEAST_STD = 0.2  # of discrete genes, in cells: Marty et al., LB+IC-CMA-ES, PPSN 2024


class Coordinates:
    """What pycma searches: a gene's coordinate, or the number of its cell where it has cells.

    There are two dimensions at least, because pycma cannot search in one: what is no gene has no
    meaning.
    """

    def __init__(self, space: SearchSpace, *, use_cells: bool) -> None:
        self.num_genes = len(space.genes)
        self.cells = np.zeros(max(self.num_genes, 2), dtype=np.int64)
        if use_cells:
            self.cells[: self.num_genes] = cells_of(space)
        self.is_discrete = self.cells > 0

    def genome(self, x: Vector) -> Genome:
        """What pycma's coordinates mean in the cube."""
        if self.is_discrete.any():
            x = np.where(self.is_discrete, middles(self._numbers(x), self.cells), x)
        genome: list[float] = np.clip(x[: self.num_genes], 0.0, 1.0).tolist()
        return genome

    def told(self, genome: Vector, asked: Vector) -> Vector:
        """The inverse of `genome`: within the cells that were asked for, what was asked for."""
        x = asked.copy()
        x[: self.num_genes] = np.clip(genome, 0.0, 1.0)
        number = places(x, self.cells)
        is_same = self.is_discrete & (number == self._numbers(asked))
        return np.where(is_same, asked, np.where(self.is_discrete, number, x))

    def _numbers(self, x: Vector) -> Vector:
        return np.clip(np.rint(x), 0, np.maximum(self.cells - 1, 0))


class Beginning(NamedTuple):
    """A first normal distribution in the cube, padded to pycma's dimensions."""

    mean: Vector
    sigma: float
    stds: Vector  # in units of sigma
    correlation: Vector | None  # (dimensions, dimensions); None: none


def round_one(mean: Vector, sigma: float) -> Beginning:
    """The same standard deviation for all genes."""
    return Beginning(mean, sigma, np.ones(len(mean)), None)


def shaped(warm: Distribution, padding: Vector) -> Beginning:
    """Any distribution of the genes; what pycma has beyond them is as wide as they are in the mean.

    padding: shape (dimensions,); taken where there is no gene.
    """
    num_genes = len(warm.mean)
    stds = np.sqrt(np.diag(warm.covariance))
    sigma = float(np.exp(np.log(stds).mean()))
    correlation, relative = np.eye(len(padding)), np.ones(len(padding))
    correlation[:num_genes, :num_genes] = warm.covariance / np.outer(stds, stds)
    relative[:num_genes] = stds / sigma
    mean = np.concatenate([warm.mean, padding[num_genes:]])
    return Beginning(mean, sigma, relative, correlation)


def make_strategy(
    coordinates: Coordinates,
    beginning: Beginning,
    population: int,
    generator: np.random.Generator,
    *,
    diagonal: bool,
) -> Any:
    """A `CMAEvolutionStrategy` that draws from the generator, touches no file and prints nothing.

    diagonal: learn variances alone; then there are no correlations in the beginning either.
    """
    import cma

    options = {
        "popsize": population,
        "bounds": [0.0, 1.0],
        "CMA_diagonal": diagonal,
        # From 300 genes on, pycma would take TPA, which draws from numpy's global generator.
        "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA,
        "randn": lambda *shape: generator.standard_normal(shape),
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
    mean, sigma, stds, correlation = beginning
    if (is_discrete := coordinates.is_discrete).any():
        scale = np.maximum(coordinates.cells, 1)
        lowest, highest = np.where(is_discrete, -0.5, 0.0), np.where(is_discrete, scale - 0.5, 1.0)
        weights = cma.recombination_weights.RecombinationWeights(population)
        least = min(LEAST_STD, weights.mueff / coordinates.num_genes)
        options["bounds"] = [lowest.tolist(), highest.tolist()]
        options["minstd"] = np.where(is_discrete, least, 0.0)
        mean, stds = np.where(is_discrete, mean * scale - 0.5, mean), stds * scale
    if (stds != 1).any():
        options["CMA_stds"] = stds
    strategy = cma.CMAEvolutionStrategy(mean, sigma, options)
    if correlation is not None and not diagonal:
        strategy.sm.C = correlation.copy()
        strategy.sm.update_now(-1)
        strategy._updateBDfromSM()
    return strategy
