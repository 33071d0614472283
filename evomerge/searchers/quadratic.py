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
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Link = Literal["identity", "sigmoid", "softplus"]

RIDGE = 1e-6  # of the mean curvature: it decides what the points leave open, and nothing else
STEPS = 30  # of Gauss-Newton; a fit takes 5 to 15
SMALLEST = 1e-6  # change of the loss, relative, that still counts as progress
STEEPEST = 30.0  # a linear predictor beyond it is the link's limit, to double precision


@dataclass(frozen=True)
class Quadratic:
    """A fitted surrogate of one objective.

    weights: (terms,); covariance: (terms, terms), of the weights; sign: -1 for a softplus of
    objectives that are negative; noise: the variance of a score about the prediction, where the
    weights were right; leaving_out: computes `left_out`, which takes as long as the fit.
    """

    link: Link
    products: bool
    sign: float
    weights: Array
    covariance: Array
    noise: float
    leaving_out: Callable[[], Array]

    def predict(self, points: Array) -> Array:
        """Predicted scores of points of the cube; shape (points,)."""
        line, _ = self._line(2.0 * points - 1.0)
        return np.asarray(self.sign * _mean(self.link, line), dtype=np.float64)

    def error(self, points: Array) -> Array:
        """Standard errors of the predictions; shape (points,)."""
        rows = self.slopes(points)
        variance = np.einsum("ij,ij->i", rows @ self.covariance, rows)
        return np.asarray(np.sqrt(np.maximum(variance, 0.0)), dtype=np.float64)

    def slopes(self, points: Array) -> Array:
        """How predictions change with the weights; shape (points, terms)."""
        rows = terms(points, self.products)
        return rows * _slope(self.link, rows @ self.weights)[:, None]

    def rise(self, points: Array, mean: float, error: float) -> tuple[Array, Array]:
        """So much of the prediction and so much of its standard error, and how that changes.

        Returns:
            mean * prediction + error * standard error, (points,); its gradient, (points, genes).
        """
        x = 2.0 * points - 1.0
        line, uphill = self._line(x)
        slope = _slope(self.link, line)
        values = mean * self.sign * _mean(self.link, line)
        gradient = (mean * self.sign * slope)[:, None] * uphill
        if error:
            rows = terms(points, self.products)
            along = rows @ self.covariance
            deviation = np.sqrt(np.maximum((rows * along).sum(axis=1), 1e-300))
            linear, bend = bends(along, x.shape[1])
            outward = 2.0 * (linear + 2.0 * np.einsum("nij,nj->ni", bend, x))
            values = values + error * slope * deviation
            gradient += (error * slope / deviation)[:, None] * outward
            gradient += (error * deviation * _curvature(self.link, line))[:, None] * uphill
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

        By the leverages, which is exact for the identity.
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


def fit(
    points: Array,
    values: Array,
    errors: Array,
    link: Link | Literal["auto"],
    products: bool,
    relevance: Array | None = None,
    before: Quadratic | None = None,
) -> Quadratic:
    """Least squares, each point weighted by what its standard error leaves.

    points: (points, genes), in the cube; values, errors: (points,), and relevance, which multiplies
    the weights; by default it is 1. `auto` takes the link with the
    smallest misfit among those that the values' range allows: the identity always, the sigmoid for
    values in [0, 1], the softplus for values of one sign. With no more points than terms nothing
    can be left out; then values in [0, 1] get the sigmoid, and others the identity. An earlier
    fit, `before`, has its link kept where the values allow, and saves steps.
    """
    rows = terms(points, products)
    precision = _precision(errors)
    if relevance is not None:
        precision = precision * relevance
    bounded = bool((values >= 0).all() and (values <= 1).all())
    links: list[Link] = ["identity"]
    if link != "auto":
        links = [link]
    elif len(rows) <= rows.shape[1] + 1:
        links = ["sigmoid" if bounded else "identity"]
    else:
        links += ["sigmoid"] if bounded else []
        links += ["softplus"] if (values >= 0).all() or (values <= 0).all() else []
    if before is not None and before.link in links:
        links = [before.link]
    fits = [_fit(one, rows, values, precision, products, before) for one in links]
    return fits[0] if len(fits) == 1 else min(fits, key=lambda one: one.misfit)


def _precision(errors: Array) -> Array:
    """Weights of mean 1: an error far below the others' is no certainty (a cost has none)."""
    variance = np.where(np.isfinite(errors), errors, 0.0) ** 2
    if not variance.any():
        return np.ones(len(errors))
    weights = 1.0 / (variance + variance.mean())
    return np.asarray(weights / weights.mean())


def _fit(
    link: Link,
    rows: Array,
    values: Array,
    precision: Array,
    products: bool,
    before: Quadratic | None,
) -> Quadratic:
    """Gauss-Newton with halved steps, and a ridge that keeps a saturated link finite."""
    from scipy.linalg import cho_factor, cho_solve
    from scipy.linalg.blas import dtrsm
    from scipy.linalg.lapack import dpotri

    sign = -1.0 if link == "softplus" and (values <= 0).all() else 1.0
    target, root = sign * values, np.sqrt(precision)
    weights = np.zeros(rows.shape[1])
    weights[0] = _inverse(link, float(target.mean()))
    if before is not None and (before.link, before.sign) == (link, sign):
        weights = before.weights
    loss = np.inf
    for _ in range(1 if link == "identity" else STEPS):
        line = rows @ weights
        slopes = rows * (root * _slope(link, line))[:, None]
        normal = slopes.T @ slopes
        ridge = RIDGE * max(float(np.trace(normal)) / len(normal), 1e-12)
        normal[np.diag_indices_from(normal)] += ridge
        factor = cho_factor(normal, overwrite_a=True, check_finite=False)
        downhill = slopes.T @ (root * (target - _mean(link, line))) - ridge * weights
        step = cho_solve(factor, downhill, check_finite=False)
        last, size = loss, 1.0
        for _ in range(12):
            trial = weights + size * step
            now = _loss(link, rows @ trial, target, precision, ridge, trial)
            if now <= last:
                break
            size /= 2
        else:
            break
        weights, loss = trial, now
        if last - loss <= SMALLEST * loss:
            break
    line = rows @ weights
    residual = target - _mean(link, line)
    upper = np.triu(factor[0])  # U of U'U, the normal matrix
    inverse = dpotri(upper)[0]
    inverse += np.triu(inverse, 1).T
    bound = len(weights) - ridge * float(np.trace(inverse))  # the trace of the hat matrix
    noise = float((precision * residual**2).sum()) / max(len(rows) - bound, 1.0)
    noise = max(noise, 1e-12)

    def leaving_out() -> Array:
        slopes = rows * _slope(link, line)[:, None]
        scaled = dtrsm(1.0, upper, slopes.T, trans_a=1)  # its square is s' (U'U)^-1 s
        leverage = precision * np.einsum("ij,ij->j", scaled, scaled)
        return np.asarray(residual / np.maximum(1.0 - leverage, 0.05))

    return Quadratic(link, products, sign, weights, inverse * noise, noise, leaving_out)


def _loss(
    link: Link, line: Array, target: Array, precision: Array, ridge: float, weights: Array
) -> float:
    residual = target - _mean(link, line)
    return float((precision * residual**2).sum() + ridge * (weights**2).sum())


def _mean(link: Link, line: Array) -> Array:
    """The link's mean of a linear predictor."""
    if link == "identity":
        return line
    line = np.clip(line, -STEEPEST, STEEPEST)
    return 1.0 / (1.0 + np.exp(-line)) if link == "sigmoid" else np.log1p(np.exp(line))


def _slope(link: Link, line: Array) -> Array:
    """The derivative of the mean; never quite 0, so that a saturated point can come back."""
    if link == "identity":
        return np.ones(len(line))
    share = 1.0 / (1.0 + np.exp(-np.clip(line, -STEEPEST, STEEPEST)))
    return np.maximum(share * (1.0 - share) if link == "sigmoid" else share, 1e-6)


def _curvature(link: Link, line: Array) -> Array:
    """The derivative of the slope."""
    if link == "identity":
        return np.zeros(len(line))
    share = 1.0 / (1.0 + np.exp(-np.clip(line, -STEEPEST, STEEPEST)))
    change = share * (1.0 - share)
    return change * (1.0 - 2.0 * share) if link == "sigmoid" else change


def _inverse(link: Link, mean: float) -> float:
    """The linear predictor of a mean, kept from the link's limits."""
    if link == "identity":
        return mean
    if link == "sigmoid":
        inside = min(max(mean, 0.01), 0.99)
        return float(np.log(inside / (1 - inside)))
    return float(np.log(np.expm1(max(mean, 1e-3)))) if mean < STEEPEST else mean
