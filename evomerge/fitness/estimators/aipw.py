"""Doubly robust: a prediction of every item from the references, and the seen items correct it.

Augmented inverse probability weighting (Robins, Rotnitzky & Zhao 1994), known as prediction-powered
inference where the prediction comes from a model (Angelopoulos et al. 2023, arXiv:2301.09633).
The prediction is a ridge regression that is cross-fitted with every answer as its own fold, in
closed form (Wu & Gagnon-Bartsch 2018, arXiv:1708.01229). An in-sample fit would make the correction
zero. Unbiased where items are drawn at random, which is to say not after a race has chosen them
by their answers; a wrong prediction costs precision only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.fitness.estimators.column import (
    Floats,
    Positions,
    RandomItems,
    Side,
    check_side,
    mean_of,
    one_more_of_each,
)

BEFOREHAND = 2.0  # answers that weigh as much as what the references say of the variance


class Aipw:
    """Mean prediction plus mean cross-fitted residual.

    penalty: the ridge's, in answers: how many of them weigh as much as the prior, which is the
        coefficients with which the references predict each other.

    The variance of the residuals is shrunken to that with which the references predict each other
    (Smyth 2004, doi:10.2202/1544-6115.1027, eq. 4, with 2 prior degrees of freedom). Where answers
    are right or wrong, it counts one of each more, as a plain mean does, less what the references
    explain.
    """

    def __init__(self, side: Side, *, seed: int, num_items: int, penalty: float = 10.0) -> None:
        check_side(side, num_items)
        self._random = RandomItems(side, seed=seed, num_items=num_items)
        references, self._num_items = side.references, num_items
        spread = references.std(axis=1)
        useful = references[spread > 0]
        centred = useful - useful.mean(axis=1, keepdims=True)
        scaled = centred / useful.std(axis=1, keepdims=True)
        self._features = np.column_stack([np.ones(num_items), scaled.T])  # (N, 1 + references)
        self._penalty = np.full(1 + len(useful), penalty)
        self._penalty[0] = 0.0
        scale = float(spread[spread > 0].mean()) if len(useful) else 0.0
        coefficient = exchangeable_coefficient(scaled)
        self._prior = np.full(1 + len(useful), scale * coefficient)
        self._prior[0] = 0.0
        explained = len(useful) * coefficient * likeness(scaled)
        # Of the variance of one like the references; copies may explain more than all by rounding.
        self._unexplained = max(0.0, 1 - explained)
        # Of what they leave unexplained in one like them; nothing where there are none.
        self._variance = float((spread**2).mean()) * self._unexplained if len(useful) else 0.0
        self._offset = self._features @ self._prior  # (N,), mean 0

    def order(self, counts: Sequence[int], rotation: int) -> Positions:
        """At random."""
        return self._random.order(counts, rotation)

    def read(self, seen: Positions, answers: Floats) -> tuple[float, float]:
        """Value and variance (of the cross-fitted residuals)."""
        value, variance = self._read(seen, answers - self._offset[seen])
        n = len(seen)
        if n > 1:
            squares = variance * n * (n - 1) + one_more_of_each(answers) * self._unexplained
            prior = BEFOREHAND if self._variance > 0 else 0.0
            variance = (squares + prior * self._variance) / (n - 1 + prior) / n
        return value, variance  # the offset's mean over all items is 0

    def compare(self, seen: Positions, first: Floats, second: Floats) -> tuple[float, float]:
        """The reading is affine in the answers, so it is that of the paired differences."""
        return self._read(seen, first - second)

    def _read(self, seen: Positions, answers: Floats) -> tuple[float, float]:
        """The leave-one-out estimate.

        For answer i, f is fitted to the others; the other items count as answered, and item i
        corrects f for the N - n + 1 items that are left, of which it is a random one:
        N value_i = sum_others y + sum_left f + (N - n + 1) (y_i - f_i), and the mean over i is
        unbiased.
        """
        from scipy.linalg import cho_factor, cho_solve

        n, total = len(seen), self._num_items
        if n < 2:
            return mean_of(answers)
        x = self._features[seen]  # (n, p)
        factor = cho_factor(x.T @ x + np.diag(self._penalty), check_finite=False)
        inverse_x = cho_solve(factor, x.T, check_finite=False)  # (p, n)
        beta = inverse_x @ answers
        leverage = np.minimum(np.einsum("np,pn->n", x, inverse_x), 1 - 1e-9)
        loo = (answers - x @ beta) / (1 - leverage)  # y_i - f_i
        all_x = np.zeros(len(beta))
        all_x[0] = total  # features are centred: the sum over all items is the intercept's
        seen_x = x.sum(axis=0)
        left = all_x - seen_x + x  # (n, p): the features' sum over the items that are left
        predicted = left @ beta - np.einsum("np,pn->n", left, inverse_x) * loo
        values = (answers.sum() - answers + predicted + (total - n + 1) * loo) / total
        spread = loo - loo.mean()
        return float(values.mean()), float(spread @ spread) / (n - 1) / n


def exchangeable_coefficient(scaled: Floats) -> float:
    """With which each of K standardised columns predicts another one like them.

    rho / (1 + (K - 1) rho), rho their likeness; of no columns, 0.
    """
    rho = likeness(scaled)
    return rho / (1 + (len(scaled) - 1) * rho) if len(scaled) else 0.0


def likeness(scaled: Floats) -> float:
    """The mean correlation of standardised columns, 0 at least; 1/2 where there is one alone."""
    num = len(scaled)
    if num < 2:
        return 0.5 * num
    correlation = scaled @ scaled.T / scaled.shape[1]
    return max(float(correlation[np.triu_indices(num, 1)].mean()), 0.0)
