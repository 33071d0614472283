"""A quadratic of the genes with a link, fitted to scores: the surrogate of `map_pareto`.

Li et al., MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic Approximation,
arXiv:2406.07529, section 3: near the base model a task's metric is a quadratic of the merging
coefficients; a metric that is bounded is a quadratic behind a sigmoid or a softplus (section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evomerge.searchers.links import Link, curvature_of, mean_of, slope_of

Array = NDArray[np.float64]


class Tangents(NamedTuple):
    """A quadratic for each point: a + bx + xAx, with x of the coordinates moved to [-1, 1].

    constant: (points,); linear: (points, genes); bend: (points, genes, genes), symmetric.
    """

    constant: Array
    linear: Array
    bend: Array

    def rise(self, x: Array) -> tuple[Array, Array]:
        """Each one's value at a place of its own, and how it changes with the cube's coordinates.

        x: (points, genes). Returns: (points,); (points, genes).
        """
        bent = (self.bend @ x[:, :, None])[:, :, 0]
        values = self.constant + (x * (self.linear + bent)).sum(axis=1)
        return values, 2.0 * (self.linear + 2.0 * bent)


@dataclass(frozen=True)
class Quadratic:
    """A fitted surrogate of one objective.

    weights: (terms,); inverse: (terms, terms), of the normal matrix (nearly, where a fit followed
    another), which times the noise is the weights' covariance; sign: -1 for a softplus of
    objectives that are negative; noise: the variance of a score about the prediction, where the
    weights were right; ridge: what the fit added to the normal matrix's diagonal; num_points: that
    it was fitted to; leaving_out: computes `left_out`, which takes as long as a fit from scratch.
    """

    link: Link
    products: bool
    sign: float
    weights: Array
    inverse: Array
    noise: float
    ridge: float
    num_points: int
    leaving_out: Callable[[], Array]

    def predict(self, points: Array) -> Array:
        """Predicted scores of points of the cube; shape (points,)."""
        line, _ = self._line(2.0 * points - 1.0)
        return np.asarray(self.sign * mean_of(self.link, line), dtype=np.float64)

    def error(self, points: Array, rows: Array | None = None) -> Array:
        """Standard errors of the predictions; shape (points,). rows: the terms, if known."""
        rows = self.slopes(points, rows)
        variance = self.noise * np.einsum("ij,ij->i", rows @ self.inverse, rows)
        return np.asarray(np.sqrt(np.maximum(variance, 0.0)), dtype=np.float64)

    def slopes(self, points: Array, rows: Array | None = None) -> Array:
        """How predictions change with the weights; shape (points, terms). rows: as above."""
        rows = terms(points, self.products) if rows is None else rows
        return rows * slope_of(self.link, rows @ self.weights)[:, None]

    def tangents(self, points: Array, rows: Array | None = None) -> Tangents:
        """Of each point, a quadratic that nowhere exceeds the line's standard error.

        The error is the root of r'Hr, with r the terms and H the weights' covariance. By Cauchy and
        Schwarz it is at least r'Hs / root of s'Hs, whatever s; there are equal values and gradients
        where s are the terms of the same point. rows: the points' terms, if known.
        """
        rows = terms(points, self.products) if rows is None else rows
        along = self.noise * (rows @ self.inverse)
        deviation = np.sqrt(np.maximum((rows * along).sum(axis=1), 1e-300))
        along /= deviation[:, None]
        return Tangents(along[:, 0], *bends(along, points.shape[1]))

    def rise(
        self, points: Array, mean: float, error: float, tangents: Tangents | None = None
    ) -> tuple[Array, Array]:
        """So much of the prediction and so much of its standard error, and how that changes.

        tangents: of as many points nearby, in place of the standard errors, for a fraction of the
        time.

        Returns:
            mean * prediction + error * standard error, (points,); its gradient, (points, genes).
        """
        x = 2.0 * points - 1.0
        line, uphill = self._line(x)
        slope = slope_of(self.link, line)
        values = mean * self.sign * mean_of(self.link, line)
        gradient = (mean * self.sign * slope)[:, None] * uphill
        if error:
            deviation, outward = (tangents or self.tangents(points)).rise(x)
            values = values + error * slope * deviation
            gradient += (error * slope)[:, None] * outward
            gradient += (error * deviation * curvature_of(self.link, line))[:, None] * uphill
        return values, gradient

    def _line(self, x: Array) -> tuple[Array, Array]:
        """What the link takes, (points,), and how it changes with the points, (points, genes).

        x: (points, genes), in [-1, 1]; a coordinate of the cube is half an x.
        """
        linear, bend = self._bends
        bent = x @ bend
        return self.weights[0] + (x * (linear + bent)).sum(axis=1), 2.0 * (linear + 2.0 * bent)

    @cached_property
    def _bends(self) -> tuple[Array, Array]:
        num_terms = len(self.weights)
        # 1 + T + T + T (T - 1) / 2 terms with products, 1 + 2 T without.
        num_genes = (math.isqrt(8 * num_terms + 1) - 3) // 2 if self.products else num_terms // 2
        return bends(self.weights, num_genes)

    @cached_property
    def left_out(self) -> Array:
        """What each point's score is away from the prediction of a fit without it; (points,).

        By the leverages, which is exact for the identity and a fit from scratch.
        """
        return self.leaving_out()

    @cached_property
    def misfit(self) -> float:
        """Mean squared error of predictions of points that were left out."""
        return float(np.mean(self.left_out**2))


def terms(points: Array, products: bool) -> Array:
    """The quadratic's terms, of coordinates moved to [-1, 1]; shape (points, terms)."""
    x = 2.0 * points - 1.0
    genes = x.shape[1]
    found = np.empty((len(x), 1 + 2 * genes + (genes * (genes - 1) // 2 if products else 0)))
    found[:, 0] = 1.0
    found[:, 1 : 1 + genes] = x
    start = 1 + 2 * genes
    np.square(x, out=found[:, 1 + genes : start])
    if products:
        for gene in range(genes - 1):  # in the order of _pairs
            stop = start + genes - 1 - gene
            np.multiply(x[:, gene : gene + 1], x[:, gene + 1 :], out=found[:, start:stop])
            start = stop
    return found


@cache
def _pairs(num_genes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The genes of each product; not to be changed."""
    first, second = np.triu_indices(num_genes, 1)
    return first, second


def bends(weights: Array, num_genes: int) -> tuple[Array, Array]:
    """The b, (..., genes), and the symmetric A, (..., genes, genes), of a constant + bx + xAx.

    weights: (..., terms), of the terms of x (see `terms`).
    """
    squares = 1 + num_genes
    matrix = np.zeros((*weights.shape[:-1], num_genes, num_genes))
    matrix[..., np.arange(num_genes), np.arange(num_genes)] = weights[..., squares:][
        ..., :num_genes
    ]
    if weights.shape[-1] > squares + num_genes:
        first, second = _pairs(num_genes)
        matrix[..., first, second] = weights[..., squares + num_genes :] / 2
        matrix[..., second, first] = matrix[..., first, second]
    return weights[..., 1:squares], matrix
