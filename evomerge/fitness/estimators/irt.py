"""Readings by item response theory: a few answers place a model, and the pool tells the rest.

    p-IRT    (n/N) mean(seen) + (1 - n/N) mean over unseen items of sigmoid(z)
    gp-IRT   lam (weighted anchors) + (1 - lam) p-IRT, lam = b^2 / (b^2 + v / (4n))
    mp-IRT   p-IRT with theta = sum_k lam_k gamma_k over the experts' abilities gamma
    gmp-IRT  1/2 (weighted anchors) + 1/2 mp-IRT

p and gp: tinyBenchmarks (Maia Polo et al. 2024, arXiv:2402.14992), with theta at the posterior's
mode. mp and gmp: MERGE^3 (Mencattini et al. 2025, arXiv:2502.10436), where lam is fitted without
constraint; here lam_k ~ N(1/K, 1). b and v come from models that the item parameters have
not seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from evomerge.errors import ConfigurationError
from evomerge.fitness.estimators.anchors import Anchors
from evomerge.fitness.estimators.column import Floats, Positions, RandomItems, Side, check_side
from evomerge.fitness.estimators.irt_model import ability, fit_logistic
from evomerge.fitness.estimators.irt_pool import ItemPool, calibrated

CAUTION = 10  # answers that a correlation of residuals has to outweigh
# Logits by which all items may be off for a merge, a standard deviation. Of .25, .5 and 1 on two
# leaderboards, .25 and .5 were the same at 100 answers, and 1 worse.
SHIFT = 0.25


class PIrt:
    """p-IRT: seen items count as answered, unseen ones as predicted.

    pool: item parameters of exactly these items; see irt_pool.
    anchors: whether the items to answer are anchor points of the item parameters, or random.

    The variance is that of theta's posterior, through the predictions of the unseen items, plus the
    model's misfit on held-out models (the references, where the pool is a file of parameters).

    Raises:
        ConfigurationError: there is no pool, or it is of other items.
    """

    def __init__(
        self,
        side: Side,
        *,
        seed: int,
        num_items: int,
        pool: ItemPool | None = None,
        anchors: bool = False,
    ) -> None:
        check_side(side, num_items)
        self._pool = checked_pool(pool, side, num_items, seed)
        self._items = self._pool.items
        features = np.column_stack([self._items.a, self._items.b])
        self._anchors = Anchors(side, seed=seed, num_items=num_items, features=features)
        self._chosen = (
            self._anchors if anchors else RandomItems(side, seed=seed, num_items=num_items)
        )
        d = self._items.num_dimensions
        self._design = self._items.a  # (items, parameters): z = design @ parameters - b
        self._mean, self._precision = np.zeros(d), np.eye(d)

    def order(self, counts: Sequence[int], rotation: int) -> Positions:
        """Anchor points or random items."""
        return self._chosen.order(counts, rotation)

    def read(self, seen: Positions, answers: Floats) -> tuple[float, float]:
        """Value and variance."""
        value, variance, _ = self._read(seen, answers)
        return value, variance

    def compare(self, seen: Positions, first: Floats, second: Floats) -> tuple[float, float]:
        """The values' difference; variances add up, less what the residuals have in common."""
        value, variance, residual = self._read(seen, first)
        other, other_variance, other_residual = self._read(seen, second)
        size = float(np.sqrt((residual @ residual) * (other_residual @ other_residual)))
        common = float(residual @ other_residual) / size if size > 0 else 0.0
        common = min(max(common, 0.0), 0.95) * len(seen) / (len(seen) + CAUTION)
        shared = 2 * common * float(np.sqrt(variance * other_variance))
        return value - other, variance + other_variance - shared

    def _read(self, seen: Positions, answers: Floats) -> tuple[float, float, Floats]:
        """Value, variance, and the residuals of the seen answers (n,)."""
        items, total = self._items, len(self._items)
        w, covariance = fit_logistic(
            self._design[seen], -items.b[seen], answers, self._mean, self._precision
        )
        p = expit(self._design @ w - items.b)
        residual = answers - p[seen]
        value = (float(answers.sum()) + float(p.sum() - p[seen].sum())) / total
        slope = p * (1 - p)
        slope[seen] = 0.0
        gradient = slope @ self._design / total  # of the value
        misfit = (1 - len(seen) / total) ** 2 * (self._pool.misfit or 0.0)
        return value, float(gradient @ covariance @ gradient) + misfit, residual


class GpIrt(PIrt):
    """gp-IRT: p-IRT leans on weighted anchors as far as the pool's items predict badly."""

    def _read(self, seen: Positions, answers: Floats) -> tuple[float, float, Floats]:
        value, variance, residual = super()._read(seen, answers)
        error, spread = self._pool.error or 0.0, self._pool.variance or 0.25
        lam = error**2 / (error**2 + spread / (4 * len(seen)))
        return (*mixed(lam, self._anchors.read(seen, answers), (value, variance)), residual)


class MpIrt(PIrt):
    """mp-IRT: a merge's ability is a mix of its experts'.

    residuals: whether it also has what ability does not tell. Not in the paper: each expert's
        residual y - sigmoid(z) enters z with a coefficient ~ N(0, 1), so that items which similar
        models get right or wrong against expectation are predicted so; and a shift ~ N(0, SHIFT^2)
        of all items takes up that a mix of abilities can be wrong on the whole.

    Raises:
        ConfigurationError: also where the side names no experts.
    """

    def __init__(
        self,
        side: Side,
        *,
        seed: int,
        num_items: int,
        pool: ItemPool | None = None,
        anchors: bool = False,
        residuals: bool = False,
    ) -> None:
        super().__init__(side, seed=seed, num_items=num_items, pool=pool, anchors=anchors)
        if not side.experts:
            raise ConfigurationError("mp-IRT mixes the experts' abilities: no experts are given")
        answers = side.references[list(side.experts)]
        everything = np.arange(num_items)
        gamma = np.stack([ability(self._items, everything, row)[0] for row in answers])
        num = len(gamma)
        self._design = self._items.a @ gamma.T  # gamma: (experts, D)
        self._mean, self._precision = np.full(num, 1 / num), np.eye(num)
        if residuals:
            surprises = answers - expit(gamma @ self._items.a.T - self._items.b)  # (experts, N)
            self._design = np.column_stack([self._design, surprises.T, np.ones(num_items)])
            self._mean = np.r_[self._mean, np.zeros(num + 1)]
            self._precision = np.diag(np.r_[np.ones(2 * num), SHIFT**-2])


class GmpIrt(MpIrt):
    """gmp-IRT: half weighted anchors, half mp-IRT."""

    def _read(self, seen: Positions, answers: Floats) -> tuple[float, float, Floats]:
        value, variance, residual = super()._read(seen, answers)
        return (*mixed(0.5, self._anchors.read(seen, answers), (value, variance)), residual)


def mixed(
    lam: float, first: tuple[float, float], second: tuple[float, float]
) -> tuple[float, float]:
    """A mix, lam of it the first; both read the same answers, so their errors add up in full."""
    error = lam * first[1] ** 0.5 + (1 - lam) * second[1] ** 0.5
    return lam * first[0] + (1 - lam) * second[0], error**2


def checked_pool(pool: ItemPool | None, side: Side, num_items: int, seed: int) -> ItemPool:
    """The pool, calibrated on the references if nothing else has done so.

    Raises:
        ConfigurationError: there is none, or it is of other items.
    """
    if pool is None:
        raise ConfigurationError(
            "item response theory needs a pool of other models' answers (or item parameters): "
            f"item parameters cannot be identified from {len(side.references)} references; "
            "without one use `stratified`, `anchors` or `aipw`, which read their response patterns"
        )
    if len(pool.items) != num_items:
        raise ConfigurationError(
            f"response pool: expected {num_items} items, got {len(pool.items)}"
        )
    if pool.misfit is None:
        return calibrated(pool.items, side.references, seed=seed)
    return pool
