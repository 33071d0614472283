"""Fits of quadratics to scores: least squares behind a link, anew or from the fit before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.searchers.links import Link, inverse_of, mean_of, slope_of
from evomerge.searchers.quadratic import Quadratic, terms

Array = NDArray[np.float64]

RIDGE = 1e-6  # of the mean curvature: it decides what the points leave open, and nothing else
STEPS = 30  # of Gauss-Newton; a fit takes 5 to 15, and 2 to 20 from the one before
SMALLEST = 1e-6  # change of the loss, relative, that still counts as progress
FOLLOWED = 1e-5  # the same, from the fit before: a thousandth of a standard error of the weights
HALVES = tuple(0.5**power for power in range(12))  # of a step, until it goes down
STEEP = 10.0  # times as much as that may be what a whole step would promise; else it was a poor one
TINY = 1e-300  # instead of 0, where it divides
FEW = 1 / 8  # of the terms: so many new points, and the inverse is brought up to date


@dataclass(frozen=True)
class _Problem:
    """What is fitted: sign * values by the link of rows @ weights.

    rows: (points, terms); squares: (points,), see `squares_of`; target: (points,), sign *
    values; precision: (points,).
    """

    link: Link
    products: bool
    sign: float
    rows: Array
    squares: Array
    target: Array
    precision: Array

    def loss(self, line: Array, ridge: float, weights: Array) -> float:
        """Weighted squares of the residuals, and the ridge's."""
        residual = self.target - mean_of(self.link, line)
        return float((self.precision * residual**2).sum() + ridge * (weights**2).sum())

    def downhill(self, line: Array, ridge: float, weights: Array) -> Array:
        """Half of how the loss falls with the weights; shape (terms,)."""
        pull = self.precision * slope_of(self.link, line) * (self.target - mean_of(self.link, line))
        return np.asarray(pull @ self.rows - ridge * weights)

    def root(self, line: Array) -> Array:
        """What a point's residual changes by with its linear predictor, weighted; (points,)."""
        return np.asarray(np.sqrt(self.precision) * slope_of(self.link, line))

    def scaled(self, line: Array) -> Array:
        """The rows whose squares make up the normal matrix; shape (points, terms)."""
        return np.asarray(self.rows * self.root(line)[:, None])


def fit(
    points: Array,
    values: Array,
    errors: Array,
    link: Link | Literal["auto"],
    products: bool,
    relevance: Array | None = None,
    before: Quadratic | None = None,
    rows: Array | None = None,
    squares: Array | None = None,
) -> Quadratic:
    """Least squares, each point weighted by what its standard error leaves.

    points: (points, genes), in the cube; values, errors: (points,), and relevance, which multiplies
    the weights; by default it is 1. `auto` takes the link with the
    smallest misfit among those that the values' range allows: the identity always, the sigmoid for
    values in [0, 1], the softplus for values of one sign. With no more points than terms nothing
    can be left out; then values in [0, 1] get the sigmoid, and others the identity. An earlier
    fit, `before`, to the first of the points has its link kept where the values allow, and saves
    time; if those points are other ones now, its `num_points` has to be 0. rows: the points' terms,
    and squares: `squares_of` them, where they are known.
    """
    rows = terms(points, products) if rows is None else rows
    squares = squares_of(rows) if squares is None else squares
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
    fits = []
    for one in links:
        sign = -1.0 if one == "softplus" and (values <= 0).all() else 1.0
        problem = _Problem(one, products, sign, rows, squares, sign * values, precision)
        fits.append(_fit(problem, before))
    return fits[0] if len(fits) == 1 else min(fits, key=lambda one: one.misfit)


def squares_of(rows: Array) -> Array:
    """The sum of the squares of each point's terms; shape (points,)."""
    return np.asarray(np.einsum("ij,ij->i", rows, rows))


def _precision(errors: Array) -> Array:
    """Weights of mean 1: an error far below the others' is no certainty (a cost has none)."""
    variance = np.where(np.isfinite(errors), errors, 0.0) ** 2
    if not variance.any():
        return np.ones(len(errors))
    weights = 1.0 / (variance + variance.mean())
    return np.asarray(weights / weights.mean())


def _fit(problem: _Problem, before: Quadratic | None) -> Quadratic:
    """From the fit before, where it is one of the same kind and of nearly as many points."""
    num_points, num_terms = problem.rows.shape
    weights = np.zeros(num_terms)
    weights[0] = inverse_of(problem.link, float(problem.target.mean()))
    if before is not None and (before.link, before.sign) == (problem.link, problem.sign):
        # With fewer points than terms, the ridge makes up most of the normal matrix.
        few = 0 <= num_points - before.num_points <= FEW * num_terms
        if few and before.num_points > num_terms:
            followed = _follow(problem, before)
            if followed is not None:
                return followed
        weights = before.weights
    return _gauss_newton(problem, weights)


def _gauss_newton(problem: _Problem, weights: Array) -> Quadratic:
    """Gauss-Newton with halved steps, and a ridge that keeps a saturated link finite."""
    from scipy.linalg import cho_factor, cho_solve
    from scipy.linalg.lapack import dpotri

    loss, line = np.inf, problem.rows @ weights
    for _ in range(1 if problem.link == "identity" else STEPS):
        scaled = problem.scaled(line)
        normal = scaled.T @ scaled
        ridge = _ridge(float(np.trace(normal)), len(normal))
        normal[np.diag_indices_from(normal)] += ridge
        factor = cho_factor(normal, overwrite_a=True, check_finite=False)
        step = cho_solve(factor, problem.downhill(line, ridge, weights), check_finite=False)
        last = loss
        for size in HALVES:
            trial = weights + size * step
            ahead = problem.rows @ trial
            now = problem.loss(ahead, ridge, trial)
            if now <= last:
                break
        else:
            break
        weights, line, loss = trial, ahead, now
        if last - loss <= SMALLEST * loss:
            break
    inverse = dpotri(np.triu(factor[0]))[0]
    inverse += np.triu(inverse, 1).T
    return _fitted(problem, weights, line, inverse, ridge)


def _follow(problem: _Problem, before: Quadratic) -> Quadratic | None:
    """The minimum from the one before, at a hundredth of the cost where there are many terms.

    New points take as many ranks from the inverse of the normal matrix (Sherman, Morrison and
    Woodbury), which is scaled by what its trace has become; how much the other points count, each
    beside the others, stays as it was there. The gradient is exact, so that conjugate gradients,
    for which this inverse is the preconditioner, go to the minimum of a fit from scratch, in 2 to
    20 steps.

    Returns:
        None where they do not go down.
    """
    from scipy.linalg.blas import dgemm

    weights, told = before.weights, before.num_points
    line = problem.rows @ weights
    root = problem.root(line)
    traces = root**2 * problem.squares
    ridge = _ridge(float(traces.sum()), len(weights))
    inverse = before.inverse * (before.ridge / _ridge(float(traces[:told].sum()), len(weights)))
    new = problem.rows[told:] * root[told:, None]
    taken = new @ inverse
    gained = np.linalg.solve(np.eye(len(new)) + taken @ new.T, taken)
    inverse = dgemm(-1.0, taken.T, gained, 1.0, inverse, overwrite_c=1)
    loss = problem.loss(line, ridge, weights)
    step, uphill, fell = np.zeros_like(weights), np.zeros_like(weights), np.inf
    for _ in range(STEPS):
        downhill = problem.downhill(line, ridge, weights)
        newton = inverse @ downhill
        falls = float(downhill @ newton)
        # Polak and Ribiere's multiple of the last step, as long as it goes down.
        step = newton + max(float(falls + uphill @ newton) / fell, 0.0) * step
        if downhill @ step <= 0.0:
            step = newton
        along = problem.rows @ step
        bend = float(((problem.root(line) * along) ** 2).sum() + ridge * (step @ step))
        size = float(downhill @ step) / max(bend, TINY)
        trial, ahead = weights + size * step, line + size * along
        now = problem.loss(ahead, ridge, trial)
        if not now <= loss * (1.0 + FOLLOWED):
            return None
        last, uphill, fell = loss, -downhill, max(falls, TINY)
        weights, line, loss = trial, ahead, now
        if last - loss <= FOLLOWED * loss and falls <= STEEP * FOLLOWED * loss:
            return _fitted(problem, weights, line, inverse, ridge)
    return None


def _ridge(trace: float, num_terms: int) -> float:
    return RIDGE * max(trace / num_terms, 1e-12)


def _fitted(
    problem: _Problem, weights: Array, line: Array, inverse: Array, ridge: float
) -> Quadratic:
    residual = problem.target - mean_of(problem.link, line)
    bound = len(weights) - ridge * float(np.trace(inverse))  # the trace of the hat matrix
    noise = float((problem.precision * residual**2).sum()) / max(len(line) - bound, 1.0)

    def leaving_out() -> Array:
        scaled = problem.scaled(line)
        leverage = np.einsum("ij,ij->i", scaled @ inverse, scaled)
        return np.asarray(residual / np.maximum(1.0 - leverage, 0.05))

    return Quadratic(
        problem.link,
        problem.products,
        problem.sign,
        weights,
        inverse,
        max(noise, 1e-12),
        ridge,
        len(line),
        leaving_out,
    )
