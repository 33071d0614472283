"""From genes to the coefficients of experts that are bound together, and back.

Rows are spots, columns are experts. All results are rounded so that the way there and back is
exact: shares to whole millionths that sum to one million, ratios of a softmax to steps of its
logits.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]  # (spots, experts)
As = Literal["raw", "normalised", "softmax", "simplex", "pair"]

UNITS = 1_000_000  # a share is a whole number of millionths
STEP = 10_000  # a logit is a whole number of ten-thousandths
TRIES = 4000  # of points beside one that is a millionth off


def shares(kind: As, genes: Matrix) -> Matrix:
    """Coefficients, (spots, experts), from genes, (spots, experts), one column less for simplex.

    normalised: divided by the sum of magnitudes, so that signs stay and nothing explodes; equal
    shares where all are zero. softmax: of logits. simplex: by breaking a stick, such that uniform
    genes give uniform points of the simplex (Dirichlet(1, ..., 1)); a gene is the share of what is
    left that goes to the experts after its own, to the power of their number.
    """
    if kind == "softmax":
        steps = np.rint((genes - genes.max(axis=1, keepdims=True)) * STEP)
        odds = np.exp(steps / STEP)
        return _significant(odds / odds.sum(axis=1, keepdims=True))
    if kind == "simplex":
        later = np.arange(genes.shape[1], 0, -1)  # experts after each
        left = np.cumprod(genes ** (1.0 / later), axis=1)
        bounds = np.hstack([np.ones((len(genes), 1)), left, np.zeros((len(genes), 1))])
        return _units(bounds[:, :-1] - bounds[:, 1:]) / UNITS
    totals = np.abs(genes).sum(axis=1, keepdims=True)
    equal = np.full_like(genes, 1.0 / genes.shape[1])
    return _units(np.where(totals > 0, genes / np.where(totals > 0, totals, 1.0), equal)) / UNITS


def genes_of(kind: As, coefficients: Matrix, low: float, high: float) -> Matrix:
    """Genes that give these coefficients; `low` and `high` are the genes' range.

    Raises:
        ValueError: there are none in the range.
    """
    if kind == "softmax":
        if (coefficients <= 0).any():
            raise ValueError("a softmax is above zero everywhere")
        top = coefficients.max(axis=1, keepdims=True)
        steps = np.rint(np.log(coefficients / top) * STEP)
        found = high + steps / STEP
        if (found < low - 0.5 / STEP).any():
            raise ValueError(f"one share is more than exp({high - low:g}) times another")
        inside: Matrix = np.maximum(found, low)
        return inside
    if not np.allclose(np.abs(coefficients).sum(axis=1), 1.0, rtol=0, atol=1e-5):
        raise ValueError("the magnitudes of the experts' weights do not sum to 1")
    units = _units(coefficients)
    if kind == "simplex":
        if (units < 0).any():
            raise ValueError("a point of the simplex has no negative share")
        after = UNITS - np.cumsum(units, axis=1)
        before = after + units
        later = np.arange(units.shape[1] - 1, 0, -1)
        with np.errstate(divide="ignore", invalid="ignore"):
            kept = np.where(before > 0, after / before, 0.5)[:, :-1]
        powers: Matrix = kept**later
        return powers
    with np.errstate(divide="ignore", invalid="ignore"):
        room = np.where(units > 0, high / units, np.where(units < 0, low / units, np.inf))
    scale = room.min(axis=1, keepdims=True)
    found = units * scale
    exact = 2 * scale  # as far as units are
    if (found < low - exact).any() or (found > high + exact).any():
        raise ValueError(f"no multiple of the experts' weights lies in [{low:g}, {high:g}]")
    return _settled(np.clip(found, low, high), units, scale, low, high)


def _settled(genes: Matrix, units: Matrix, scale: Matrix, low: float, high: float) -> Matrix:
    """Genes moved, by less than two millionths, so that their shares are exactly these units.

    At the ends of the range, the multiple that was found may be rounded to others; some point
    beside it is not, and is found by trying.
    """
    found = genes.copy()
    for row in np.flatnonzero((shares("normalised", genes) != units / UNITS).any(axis=1)):
        moves = np.random.default_rng(0).uniform(-2, 2, (TRIES, genes.shape[1]))
        tried = np.clip(genes[row] + moves * scale[row], low, high)
        fits = (shares("normalised", tried) == units[row] / UNITS).all(axis=1)
        if fits.any():
            found[row] = tried[fits.argmax()]
    return found


def _units(values: Matrix) -> Matrix:
    """Whole millionths whose magnitudes sum to one million; the largest errors give way."""
    exact = values * UNITS
    whole = np.rint(exact) + 0.0  # never -0.0, which reads otherwise
    missing = UNITS - np.abs(whole).sum(axis=1)
    if not missing.any():
        return whole
    signs = np.where(exact < 0, -1.0, 1.0)
    error = (np.abs(exact) - np.abs(whole)) * np.sign(missing)[:, None]
    rank = np.argsort(np.argsort(-error, axis=1, kind="stable"), axis=1, kind="stable")
    step = np.where(rank < np.abs(missing)[:, None], np.sign(missing)[:, None], 0.0)
    moved: Matrix = whole + signs * step
    return moved


def _significant(values: Matrix, digits: int = 9) -> Matrix:
    """Rounded to significant digits, so that recipes read well."""
    exponents = digits - 1 - np.floor(np.log10(values))
    scale = 10.0**exponents
    rounded: Matrix = np.rint(values * scale) / scale
    return rounded


def is_step(value: float) -> bool:
    """Whether a bound of logits is a whole number of steps, so that clipping is exact."""
    return math.isclose(value * STEP, round(value * STEP), abs_tol=1e-6)


def best_pair(scores: Matrix) -> tuple[int, int, list[float]]:
    """The two experts with the highest scores, and the second one's share in each row.

    scores: (rows, experts). Experts are ranked by their sums, ties by their order; a share is the
    second of the softmax of the two scores in its row, as in mergekit-evolve and in Su & Geiping
    2025, arXiv:2502.04030.
    """
    steps = np.rint(scores * STEP)
    first, second = (int(i) for i in np.argsort(-steps.sum(axis=0), kind="stable")[:2])
    odds = np.exp((steps[:, second] - steps[:, first]) / STEP)
    shares_: list[float] = _significant(odds / (1.0 + odds)).tolist()
    return first, second, shares_


def scores_of(
    first: int, second: int, second_shares: list[float], num_experts: int, low: float, high: float
) -> Matrix:
    """Scores, (rows, experts), of which `best_pair` makes this pair with these shares.

    Raises:
        ValueError: there are none in the range.
    """
    share = np.array(second_shares)
    if not ((share > 0) & (share < 1)).all():
        raise ValueError("a pair's share lies between 0 and 1")
    gap = np.rint(np.log(share / (1.0 - share)) * STEP) / STEP
    if (np.abs(gap) > high - low + 0.5 / STEP).any():
        raise ValueError(f"a pair's share leaves what scores in [{low:g}, {high:g}] can say")
    scores = np.full((len(share), num_experts), low)
    scores[:, first] = np.clip(high - np.maximum(gap, 0), low, high)
    scores[:, second] = np.clip(high + np.minimum(gap, 0), low, high)
    return scores
