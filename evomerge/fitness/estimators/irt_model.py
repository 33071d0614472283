"""Item response theory: the two-parameter logistic model with D dimensions, fitted with priors.

P(y = 1) = sigmoid(a_i . theta - b_i) (Birnbaum 1968; Reckase 2009 for D > 1), theta ~ N(0, I),
a_i ~ N(mean, spread^2) and b_i ~ N(0, spread^2). The posterior's mode is reported:
without priors theta runs off to infinity on 10 to 30 answers. Answers may be fractions in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from evomerge.errors import ConfigurationError
from evomerge.fitness.estimators.column import Floats, Positions

DISCRIMINATION_SPREAD = 0.5  # of a_i around its prior mean
DIFFICULTY_SPREAD = 2.0  # of b_i around 0


@dataclass(frozen=True)
class Items:
    """Item parameters: discriminations a (items, D) and difficulties b (items,)."""

    a: Floats
    b: Floats

    def __len__(self) -> int:
        return len(self.b)

    @property
    def num_dimensions(self) -> int:
        """D."""
        return int(self.a.shape[1])

    def probabilities(self, theta: Floats, at: Positions | slice = slice(None)) -> Floats:
        """Of a right answer to each item, for one ability (D,)."""
        return np.asarray(expit(self.a[at] @ theta - self.b[at]))


def fit_items(
    responses: Floats, num_dimensions: int = 2, iterations: int = 60
) -> tuple[Items, Floats]:
    """Item parameters and abilities (models, D) of a pool, at the posterior's mode.

    responses: (models, items) in [0, 1]; NaN where a model has not answered.

    Raises:
        ConfigurationError: an answer is out of range.
    """
    seen = ~np.isnan(responses)
    y = np.where(seen, responses, 0.0)
    if y.min(initial=0) < 0 or y.max(initial=0) > 1:
        raise ConfigurationError("response pool: expected answers in [0, 1] (or NaN: not answered)")
    weight = seen.astype(np.float64)
    num_models, num_items = responses.shape
    split = num_models * num_dimensions
    theta, items = _start(y, weight, num_dimensions)
    mean_a = np.zeros(num_dimensions)
    mean_a[0] = 1.0  # the others may have either sign

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        theta = flat[:split].reshape(num_models, num_dimensions)
        a = flat[split : split + num_items * num_dimensions].reshape(num_items, num_dimensions)
        b = flat[split + num_items * num_dimensions :]
        z = theta @ a.T - b
        e = np.exp(-np.abs(z))  # once, for the loss and for p: it is most of the time
        p = np.where(z >= 0, 1.0, e) / (1 + e)
        nll = float((weight * (np.maximum(z, 0) + np.log1p(e) - y * z)).sum())
        residual = weight * (p - y)
        off_a = (a - mean_a) / DISCRIMINATION_SPREAD**2
        off_b = b / DIFFICULTY_SPREAD**2
        prior = (theta**2).sum() + ((a - mean_a) * off_a).sum() + (b * off_b).sum()
        gradient = np.concatenate(
            [
                (residual @ a + theta).ravel(),
                (residual.T @ theta + off_a).ravel(),
                -residual.sum(axis=0) + off_b,
            ]
        )
        return nll + 0.5 * float(prior), gradient

    start = np.concatenate([theta.ravel(), items.a.ravel(), items.b])
    flat = minimize(
        loss, start, jac=True, method="L-BFGS-B", options={"maxiter": iterations, "maxcor": 10}
    ).x
    a = flat[split : split + num_items * num_dimensions].reshape(num_items, num_dimensions)
    b = flat[split + num_items * num_dimensions :]
    return _whitened(flat[:split].reshape(num_models, num_dimensions), Items(a, b))


def _whitened(theta: Floats, items: Items) -> tuple[Items, Floats]:
    """The same model with abilities of mean 0 and covariance I, which is their prior from here on.

    The priors of the fit settle the scale of a and theta only in part: where models differ much,
    abilities come out wider than their prior, and a new model would be pulled too hard to 0.
    """
    num_models, d = theta.shape
    if num_models <= d:
        return items, theta
    centre = theta.mean(axis=0)
    spread = (theta - centre).T @ (theta - centre) / num_models
    root = np.linalg.cholesky(spread + 1e-6 * np.eye(d))
    return (
        Items(items.a @ root, items.b - items.a @ centre),
        np.linalg.solve(root, (theta - centre).T).T,
    )


def _start(y: Floats, weight: Floats, num_dimensions: int) -> tuple[Floats, Items]:
    """Abilities from mean scores and principal components, difficulties from items' means."""
    num_models, num_items = y.shape
    per_item = (y.sum(axis=0) + 1) / (weight.sum(axis=0) + 2)
    residual = weight * (y - per_item)
    score = residual.sum(axis=1) / np.maximum(weight.sum(axis=1), 1)
    theta = np.zeros((num_models, num_dimensions))
    theta[:, 0] = (score - score.mean()) / max(float(score.std()), 1e-9)
    if num_dimensions > 1:
        flat = residual - weight * score[:, None]
        flat = flat - np.outer(theta[:, 0], theta[:, 0] @ flat) / max(theta[:, 0] @ theta[:, 0], 1)
        left, _, _ = np.linalg.svd(flat, full_matrices=False)
        taken = left[:, : num_dimensions - 1]
        # A singular vector's sign is arbitrary: the largest entry is made positive.
        taken = taken * np.sign(taken[np.abs(taken).argmax(axis=0), range(taken.shape[1])])
        theta[:, 1 : 1 + taken.shape[1]] = taken * num_models**0.5
    a = np.zeros((num_items, num_dimensions))
    a[:, 0] = 1.0
    return theta, Items(a, -np.log(per_item / (1 - per_item)))


def fit_logistic(
    x: Floats,
    offset: Floats,
    answers: Floats,
    mean: Floats,
    precision: Floats,
    iterations: int = 30,
) -> tuple[Floats, Floats]:
    """The mode w of P(y = 1) = sigmoid(x w + offset), w ~ N(mean, precision^-1), and covariance.

    x: (n, D); offset, answers: (n,); mean: (D,); precision: (D, D). Newton's method, with halved
    steps where one overshoots; the covariance is Laplace's, the inverse Hessian at the mode.
    """
    w = mean.copy()

    def objective(w: Floats) -> float:
        z = x @ w + offset
        off = w - mean
        nll = np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z))) - answers * z
        return float(nll.sum() + 0.5 * off @ precision @ off)

    value = objective(w)
    for _ in range(iterations):
        p = expit(x @ w + offset)
        gradient = x.T @ (p - answers) + precision @ (w - mean)
        hessian = (x.T * (p * (1 - p))) @ x + precision
        step = np.linalg.solve(hessian, gradient)
        if gradient @ step < 1e-10:
            break
        size = 1.0
        while (lower := objective(w - size * step)) > value and size > 1e-4:
            size /= 2
        w, value = w - size * step, lower
    p = expit(x @ w + offset)
    return w, np.linalg.inv((x.T * (p * (1 - p))) @ x + precision)


def ability(items: Items, seen: Positions, answers: Floats) -> tuple[Floats, Floats]:
    """A model's ability (D,) from a few answers, and its posterior covariance (Laplace)."""
    d = items.num_dimensions
    return fit_logistic(items.a[seen], -items.b[seen], answers, np.zeros(d), np.eye(d))
