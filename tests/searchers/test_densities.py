"""Parzen densities, beside optuna's and scipy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator, _ParzenEstimatorParameters
from scipy import stats

from evomerge.searchers.densities import CELLS, Alone, Column, Densities, Together
from evomerge.searchers.kernels import bandwidths, fine_masses

Array = NDArray[np.float64]

REAL, NUMBER, NAME = Column(None, True), Column(60, True), Column(3, False)
COLUMNS = [REAL, NUMBER, NAME, REAL, Column(50, True), Column(2, False), NAME]


def points_of(columns: list[Column], count: int, seed: int) -> Array:
    """Random points, values in the middle of their cells.

    Numbers are all different: which of two equal ones has which neighbour is left open.
    """
    generator = np.random.default_rng(seed)
    points = generator.random((count, len(columns)))
    for i, column in enumerate(columns):
        if column.size is not None:
            values = generator.choice(column.size, count, replace=not column.is_ordered)
            points[:, i] = (values + 0.5) / column.size
    return points


def optuna_densities(columns: list[Column], points: Array, weights: Array) -> Any:
    """The same mixture, as optuna's samplers make it."""
    space: dict[str, BaseDistribution] = {}
    observed: dict[str, Any] = {}
    for i, column in enumerate(columns):
        if column.size is None:
            space[str(i)], observed[str(i)] = FloatDistribution(0.0, 1.0), points[:, i]
            continue
        ordered = IntDistribution(0, column.size - 1)
        named = CategoricalDistribution(range(column.size))
        space[str(i)] = ordered if column.is_ordered else named
        observed[str(i)] = np.floor(points[:, i] * column.size)
    parameters = _ParzenEstimatorParameters(
        prior_weight=1.0,
        consider_magic_clip=True,
        consider_endpoints=False,
        weights=lambda n: np.ones(n),
        multivariate=True,
    )
    return _ParzenEstimator(observed, space, parameters, weights.copy())


def optuna_log_ratio(
    columns: list[Column], good: Array, bad: Array, weights: Array, at: Array
) -> Array:
    """How much likelier good than bad points are, by optuna."""
    asked = {
        str(i): at[:, i] if column.size is None else np.floor(at[:, i] * column.size)
        for i, column in enumerate(columns)
    }
    better = optuna_densities(columns, good, np.ones(len(good))).log_pdf(asked)
    worse = optuna_densities(columns, bad, weights).log_pdf(asked)
    return np.asarray(better - worse)


def given(columns: list[Column], points: Array) -> tuple[Array, NDArray[np.int64]]:
    """Points as `Together.log_ratio` takes them: listed genes by kind."""
    listed = [i for i, column in enumerate(columns) if column.size is not None]
    kinds = list(dict.fromkeys(columns[i] for i in listed))
    by_kind = [i for kind in kinds for i in listed if columns[i] == kind]
    sizes = np.array([columns[i].size for i in by_kind], dtype=np.int64)
    reals = [i for i, column in enumerate(columns) if column.size is None]
    return points[:, reals], np.floor(points[:, by_kind] * sizes).astype(np.int64)


@pytest.mark.parametrize(("num_good", "num_bad"), [(1, 1), (1, 8), (5, 40), (25, 50), (0, 3)])
def test_genes_that_are_modelled_together_have_optunas_densities(
    num_good: int, num_bad: int
) -> None:
    good, bad = points_of(COLUMNS, num_good, 1), points_of(COLUMNS, num_bad, 2)
    weights = np.linspace(0.2, 1.0, num_bad)
    model = Together(COLUMNS, samples=8)
    model.learn_good(good)
    model.learn_bad(bad, weights)
    at = np.vstack([points_of(COLUMNS, 40, 3), good])
    found = model.log_ratio(*given(COLUMNS, at))
    expected = optuna_log_ratio(COLUMNS, good, bad, weights, at)
    difference = found - expected  # a constant: mixtures are known up to a factor
    np.testing.assert_allclose(difference, difference[0], atol=1e-9)


@pytest.mark.parametrize("column", [NUMBER, NAME])
def test_genes_that_are_modelled_alone_have_optunas_densities(column: Column) -> None:
    assert column.size is not None
    good, bad = points_of([column] * 2, 6, 1), points_of([column] * 2, 30, 2)
    weights = np.linspace(0.2, 1.0, 30)
    model = Alone(column, samples=8)
    model.learn_good(good)
    model.learn_bad(bad, weights)
    cells = ((np.arange(column.size) + 0.5) / column.size)[:, None]
    for i in range(2):
        expected = optuna_log_ratio([column], good[:, [i]], bad[:, [i]], weights, cells)
        difference = np.log(model.ratio()[i]) - expected
        np.testing.assert_allclose(difference, difference[0], atol=1e-9)


def test_real_genes_that_are_modelled_alone_have_optunas_densities_in_cells() -> None:
    good, bad = points_of([REAL], 6, 1), points_of([REAL], 30, 2)
    model = Alone(REAL, samples=8)
    model.learn_good(good)
    model.learn_bad(bad, np.ones(30))
    middles = ((np.arange(CELLS) + 0.5) / CELLS)[:, None]
    expected = optuna_log_ratio([REAL], good, bad, np.ones(30), middles)
    difference = np.log(model.ratio()[0]) - expected
    assert np.ptp(difference) < 0.05 < np.ptp(expected)


def test_fine_masses_are_those_of_truncated_normal_distributions() -> None:
    centres, spreads = np.array([0.0, 0.5, 0.93]), np.array([0.2, 0.03, 0.5])
    edges = np.linspace(0.0, 1.0, CELLS + 1)
    for centre, spread, masses in zip(
        centres, spreads, fine_masses(centres, spreads, CELLS), strict=True
    ):
        law = stats.truncnorm(-centre / spread, (1 - centre) / spread, centre, spread)
        np.testing.assert_allclose(masses, np.diff(law.cdf(edges)), atol=0.01)


@pytest.mark.parametrize("groups", [[[0, 1, 2]], [[0], [1], [2]]], ids=["together", "alone"])
def test_draws_follow_the_good_density(groups: list[list[int]]) -> None:
    columns = [REAL, NUMBER, NAME]
    good = points_of(columns, 3, 5)
    densities = Densities(columns, groups, samples=1)  # nothing is chosen
    densities.learn(good, points_of(columns, 4, 6), np.ones(4))
    drawn = [densities.draw(np.random.default_rng(i)) for i in range(4000)]
    found = np.array([[one(i) for i in range(3)] for one in drawn])
    widths = bandwidths(good[:, :1])[:, 0]
    laws = [
        stats.truncnorm(-c / s, (1 - c) / s, c, s)
        for c, s in zip([*good[:, 0], 0.5], [*widths, 1.0], strict=True)
    ]
    result = stats.kstest(found[:, 0], lambda x: np.mean([law.cdf(x) for law in laws], axis=0))
    assert result.pvalue > 1e-3
    reference = optuna_densities(columns, good, np.ones(3)).sample(np.random.RandomState(0), 4000)
    for i, column in enumerate(columns[1:], start=1):
        assert column.size is not None
        cells = np.floor(found[:, i] * column.size).astype(int)
        counts = np.bincount(cells, minlength=column.size)
        others = np.bincount(reference[str(i)].astype(int), minlength=column.size)
        assert stats.chi2_contingency([counts, others]).pvalue > 1e-3


def test_genes_of_a_group_are_drawn_together_and_of_others_are_not() -> None:
    ends = np.array([[0.02, 0.02], [0.98, 0.98]] * 20)  # bandwidths of a forty-second
    middle = np.full((1, 2), 0.5)

    def agreeing(groups: list[list[int]]) -> float:
        densities = Densities([REAL, REAL], groups, samples=1)
        densities.learn(ends, middle, np.ones(1))
        drawn = [densities.draw(np.random.default_rng(i)) for i in range(400)]
        return float(np.mean([(one(0) < 0.5) == (one(1) < 0.5) for one in drawn]))

    assert agreeing([[0, 1]]) > 0.95
    assert 0.4 < agreeing([[0], [1]]) < 0.6


@pytest.mark.parametrize("groups", [[[0, 1, 2]], [[0], [1], [2]]], ids=["together", "alone"])
def test_what_is_avoided_is_as_bad_as_what_was_told_to_be(groups: list[list[int]]) -> None:
    columns = [REAL, NUMBER, NAME]
    good, bad, later = (points_of(columns, n, n) for n in (3, 10, 2))

    def drawn(told: Array, avoided: Array) -> list[float]:
        densities = Densities(columns, groups, samples=64)
        densities.learn(good, told, np.ones(len(told)))
        for point in avoided:
            densities.avoid(point)
        one = densities.draw(np.random.default_rng(0))
        return [one(i) for i in range(3)]

    # Two more than ten are more than a tenth more, so that all is found anew.
    assert drawn(bad, later) == drawn(np.vstack([bad, later]), later[:0])
    assert drawn(bad, later[:0]) != drawn(bad, np.repeat(good, 3, axis=0))


def test_what_is_avoided_is_less_likely_before_bandwidths_are_found_anew() -> None:
    good, bad = points_of(COLUMNS, 5, 1), points_of(COLUMNS, 40, 2)
    model = Together(COLUMNS, samples=8)
    model.learn_good(good)
    model.learn_bad(bad, np.ones(40))
    before = model.log_ratio(*given(COLUMNS, good))
    model.avoid(good[0])
    after = model.log_ratio(*given(COLUMNS, good))
    assert after[0] < before[0] - 0.1
    assert (after <= before).all()


def test_points_that_lack_a_group_say_nothing_of_it() -> None:
    columns = [REAL, NAME, REAL, REAL]
    groups = [[0, 1], [2, 3]]
    good, bad = points_of(columns, 4, 1), points_of(columns, 9, 2)
    lacking, others = points_of(columns, 6, 3), points_of(columns, 6, 4)
    lacking[:, 2:] = others[:, 2:] = np.nan
    lacking[:, :2] = others[:, :2]

    def second_group(more: Array) -> list[float]:
        densities = Densities(columns, groups, samples=16)
        both = np.vstack([bad, more])
        densities.learn(good, both, np.ones(len(both)))
        one = densities.draw(np.random.default_rng(0))
        return [one(2), one(3)]

    assert second_group(lacking) == second_group(lacking[:0])


def test_bandwidths_leave_out_what_is_missing() -> None:
    points = np.random.default_rng(0).random((12, 3))
    points[::3, 0] = np.nan
    points[:, 2] = np.nan
    has = ~np.isnan(points[:, 0])
    found = bandwidths(points)
    np.testing.assert_array_equal(found[has, :1], bandwidths(points[has, :1]))
    assert np.isnan(found[~has, 0]).all()
    assert np.isnan(found[:, 2]).all()
