"""Parzen densities, beside optuna's and scipy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator, _ParzenEstimatorParameters
from optuna.samplers._tpe.sampler import default_weights
from scipy import stats

from evomerge.searchers.densities import Densities
from evomerge.searchers.genes_alone import Alone
from evomerge.searchers.genes_together import Together
from evomerge.searchers.kernels import CELLS, Column, bandwidths, cell_masses, recency

Array = NDArray[np.float64]

REAL, NUMBER, NAME = Column(None, True), Column(10, True), Column(3, False)
UNORDERED = [REAL, NAME, REAL, Column(2, False), NAME, Column(20, False)]  # or real
TYPES = [REAL, NUMBER, NAME, Column(4, True), NUMBER, Column(1000, True)]


def points_of(columns: list[Column], count: int, seed: int) -> Array:
    """Random points, values in the middle of their cells."""
    points = np.random.default_rng(seed).random((count, len(columns)))
    for i, column in enumerate(columns):
        if column.size is not None:
            points[:, i] = (np.floor(points[:, i] * column.size) + 0.5) / column.size
    return points


def optuna_densities(columns: list[Column], points: Array, weights: Array) -> Any:
    """The same mixture, as optuna's samplers make it."""
    space: dict[str, BaseDistribution] = {}
    for i, column in enumerate(columns):
        names = CategoricalDistribution(range(column.size or 1))
        space[str(i)] = FloatDistribution(0.0, 1.0) if column.is_ordered else names
    parameters = _ParzenEstimatorParameters(
        prior_weight=1.0,
        consider_magic_clip=True,
        consider_endpoints=False,
        weights=lambda n: np.ones(n),
        multivariate=True,
    )
    return _ParzenEstimator(as_optuna(columns, points), space, parameters, weights.copy())


def as_optuna(columns: list[Column], points: Array) -> dict[str, Array]:
    """Coordinates of reals, and numbers of names."""
    return {
        str(i): points[:, i] if column.size is None else np.floor(points[:, i] * column.size)
        for i, column in enumerate(columns)
    }


def optuna_log_ratio(columns: list[Column], good: Array, bad: Array, at: Array) -> Array:
    """How much likelier good than bad points are, by optuna."""
    better = optuna_densities(columns, good, np.ones(len(good))).log_pdf(as_optuna(columns, at))
    worse = optuna_densities(columns, bad, default_weights(len(bad)))
    return np.asarray(better - worse.log_pdf(as_optuna(columns, at)))


def log_density(columns: list[Column], points: Array, weights: Array, at: Array) -> Array:
    """Of a mixture, kernel by kernel and gene by gene."""
    centres = np.vstack([points, np.full(len(columns), 0.5)])
    widths = np.vstack([bandwidths(points), np.ones(len(columns))])
    kernels = np.log(np.append(weights, 1.0))[:, None] + np.zeros(len(at))
    for n, (centre, width) in enumerate(zip(centres, widths, strict=True)):
        for i, column in enumerate(columns):
            if not column.is_ordered:
                assert column.size is not None
                other = 1.0 / (len(points) + 1)
                same = (np.floor(at[:, i] * column.size) == np.floor(centre[i] * column.size)) * 1.0
                mass = (same + other) / (1 + column.size * other)
                kernels[n] += np.log(mass if n < len(points) else np.full(len(at), 1 / column.size))
            elif column.size is None or column.size > CELLS:
                low, high = -centre[i] / width[i], (1 - centre[i]) / width[i]
                kernels[n] += stats.truncnorm(low, high, centre[i], width[i]).logpdf(at[:, i])
            else:
                middles = (np.arange(column.size) + 0.5) / column.size
                normal = stats.norm(centre[i], width[i])
                total = np.logaddexp.reduce(normal.logpdf(middles))
                kernels[n] += normal.logpdf(at[:, i]) - total
    return np.asarray(np.logaddexp.reduce(kernels, axis=0))


def learnt(model: Any, good: Array, bad: Array) -> Any:
    """The model, having learnt these."""
    model.learn_good(good)
    model.learn_bad(bad)
    return model


def drawn_after(
    densities: Densities, good: Array, bad: Array, avoided: Array, columns: list[int]
) -> list[float]:
    """These columns of a point, drawn when some points were learnt and others avoided."""
    densities.learn(good, bad)
    for point in avoided:
        densities.avoid(point)
    point = densities.draw(np.random.default_rng(0))
    return [point(i) for i in columns]


@pytest.mark.parametrize(("num_good", "num_bad"), [(1, 1), (1, 8), (5, 40), (25, 300), (0, 3)])
def test_reals_and_names_that_are_modelled_together_have_optunas_densities(
    num_good: int, num_bad: int
) -> None:
    good, bad = points_of(UNORDERED, num_good, 1), points_of(UNORDERED, num_bad, 2)
    at = np.vstack([points_of(UNORDERED, 50, 3), good])
    found = learnt(Together(UNORDERED, samples=8), good, bad).log_ratio(at)
    expected = optuna_log_ratio(UNORDERED, good, bad, at)
    difference = found - expected  # a constant: mixtures are known up to a factor
    np.testing.assert_allclose(difference, difference[0], atol=1e-9)


@pytest.mark.parametrize(("num_good", "num_bad"), [(1, 8), (5, 40), (0, 3)])
def test_numbers_are_modelled_by_the_density_in_the_middle_of_each(
    num_good: int, num_bad: int
) -> None:
    good, bad = points_of(TYPES, num_good, 1), points_of(TYPES, num_bad, 2)
    at = np.vstack([points_of(TYPES, 50, 3), good])
    coarse = [Column(None, True) if c.size == 1000 else c for c in TYPES]
    found = learnt(Together(coarse, samples=8), good, bad).log_ratio(at)
    better = log_density(TYPES, good, np.ones(num_good), at)
    worse = log_density(TYPES, bad, default_weights(num_bad), at)
    difference = found - (better - worse)
    np.testing.assert_allclose(difference, difference[0], atol=1e-9)


@pytest.mark.parametrize("column", [NUMBER, NAME])
def test_genes_that_are_modelled_alone_have_the_same_densities(column: Column) -> None:
    assert column.size is not None
    good, bad = points_of([column] * 2, 6, 1), points_of([column] * 2, 30, 2)
    model = learnt(Alone(column, samples=8), good, bad)
    cells = ((np.arange(column.size) + 0.5) / column.size)[:, None]
    for i in range(2):
        better = log_density([column], good[:, [i]], np.ones(6), cells)
        worse = log_density([column], bad[:, [i]], recency(bad)[:, i], cells)
        difference = np.log(model.ratio()[i]) - (better - worse)
        np.testing.assert_allclose(difference, difference[0], atol=1e-9)


def test_real_genes_that_are_modelled_alone_have_optunas_densities_in_cells() -> None:
    good, bad = points_of([REAL], 6, 1), points_of([REAL], 30, 2)
    model = learnt(Alone(REAL, samples=8), good, bad)
    middles = ((np.arange(CELLS) + 0.5) / CELLS)[:, None]
    expected = optuna_log_ratio([REAL], good, bad, middles)
    difference = np.log(model.ratio()[0]) - expected
    assert np.ptp(difference) < 0.05 < np.ptp(expected)


def test_cell_masses_are_those_of_truncated_normal_distributions() -> None:
    edges = np.linspace(0.0, 1.0, CELLS + 1)
    for centre, width in ((0.0, 0.2), (0.5, 0.03), (0.93, 0.5)):
        law = stats.truncnorm(-centre / width, (1 - centre) / width, centre, width)
        found = cell_masses(np.array(centre), np.array(width), CELLS)
        assert np.abs(found - np.diff(law.cdf(edges))).sum() < 0.02


def test_a_kernel_that_is_far_narrower_than_a_cell_is_in_one() -> None:
    assert cell_masses(np.array(0.001), np.array(1e-5), 4).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_up_and_down_are_alike_however_far_away() -> None:
    columns = [Column(51, True)] * 12
    centre = 25.5 / 51
    bad, up, down = np.full((60, 12), centre), np.full((1, 12), centre), np.full((1, 12), centre)
    up[0, 0], down[0, 0] = 34.5 / 51, 16.5 / 51
    model = learnt(Together(columns, samples=8), np.vstack([up, down]), bad)
    ratio = model.log_ratio(np.vstack([up, down]))
    np.testing.assert_allclose(ratio[0], ratio[1])
    np.testing.assert_allclose(
        ratio[0] - model.log_ratio(bad[:1])[0],
        (
            log_density(columns, np.vstack([up, down]), np.ones(2), up)
            - log_density(columns, bad, recency(bad)[:, 0], up)
            - log_density(columns, np.vstack([up, down]), np.ones(2), bad[:1])
            + log_density(columns, bad, recency(bad)[:, 0], bad[:1])
        )[0],
    )


@pytest.mark.parametrize("groups", [[[0, 1, 2]], [[0], [1], [2]]], ids=["together", "alone"])
def test_draws_follow_the_good_density(groups: list[list[int]]) -> None:
    columns = [REAL, NUMBER, NAME]
    good = points_of(columns, 3, 5)
    densities = Densities(columns, groups, samples=1)  # nothing is chosen
    densities.learn(good, points_of(columns, 4, 6))
    drawn = [densities.draw(np.random.default_rng(i)) for i in range(4000)]
    found = np.array([[one(i) for i in range(3)] for one in drawn])
    assert len(np.unique(found[:, 0])) == 4000
    widths = np.vstack([bandwidths(good), np.ones(3)])
    centres = np.vstack([good, np.full(3, 0.5)])
    laws = [
        [stats.truncnorm(-c / s, (1 - c) / s, c, s) for c, s in zip(*both, strict=True)]
        for both in zip(centres.T, widths.T, strict=True)
    ]
    result = stats.kstest(found[:, 0], lambda x: np.mean([law.cdf(x) for law in laws[0]], axis=0))
    assert result.pvalue > 1e-3
    edges = np.linspace(0.0, 1.0, 11)
    expected = np.mean([np.diff(law.cdf(edges)) for law in laws[1]], axis=0)
    counts = np.bincount(np.floor(found[:, 1] * 10).astype(int), minlength=10)
    assert stats.chisquare(counts, 4000 * expected).pvalue > 1e-3
    reference = optuna_densities([NAME], good[:, 2:], np.ones(3))
    shares = np.exp(reference.log_pdf({"0": np.arange(3.0)}))
    counts = np.bincount(np.floor(found[:, 2] * 3).astype(int), minlength=3)
    assert stats.chisquare(counts, 4000 * shares).pvalue > 1e-3


def test_genes_of_a_group_are_drawn_together_and_of_others_are_not() -> None:
    ends = np.array([[0.02, 0.02], [0.98, 0.98]] * 20)  # bandwidths of a forty-second
    middle = np.full((1, 2), 0.5)

    def agreeing(groups: list[list[int]]) -> float:
        densities = Densities([REAL, REAL], groups, samples=1)
        densities.learn(ends, middle)
        drawn = [densities.draw(np.random.default_rng(i)) for i in range(400)]
        return float(np.mean([(one(0) < 0.5) == (one(1) < 0.5) for one in drawn]))

    assert agreeing([[0, 1]]) > 0.95
    assert 0.4 < agreeing([[0], [1]]) < 0.6


@pytest.mark.parametrize("groups", [[[0, 1, 2]], [[0], [1], [2]]], ids=["together", "alone"])
def test_what_is_avoided_is_as_bad_as_what_was_told_to_be(groups: list[list[int]]) -> None:
    columns = [REAL, NUMBER, NAME]
    good, bad, later = (points_of(columns, n, n) for n in (3, 10, 2))

    def drawn(told: Array, avoided: Array) -> list[float]:
        return drawn_after(Densities(columns, groups, samples=64), good, told, avoided, [0, 1, 2])

    # Two more than ten are more than a tenth more, so that all is found anew.
    assert drawn(bad, later) == drawn(np.vstack([bad, later]), later[:0])
    assert drawn(bad, later[:0]) != drawn(bad, np.repeat(good, 3, axis=0))


@pytest.mark.parametrize("maker", [Together, Alone])
def test_what_is_avoided_is_less_likely_before_bandwidths_are_found_anew(maker: Any) -> None:
    columns = [NUMBER, NUMBER]
    good, bad = points_of(columns, 5, 1), points_of(columns, 40, 2)
    model = learnt(maker(columns if maker is Together else NUMBER, 8), good, bad)

    def likely() -> Array:
        if isinstance(model, Together):
            return model.log_ratio(good)
        cells = np.floor(good * 10).astype(int)
        return np.asarray(np.log(model.ratio()[np.arange(2), cells]).sum(axis=1))

    before = likely()
    model.avoid(good[0])
    assert likely()[0] < before[0] - 0.02
    assert (likely() <= before).all()


def test_points_that_lack_a_group_say_nothing_of_it() -> None:
    columns = [REAL, NAME, REAL, REAL, REAL]
    groups = [[0, 1], [2, 3], [4]]
    good, bad = points_of(columns, 4, 1), points_of(columns, 40, 2)
    lacking = points_of(columns, 6, 3)
    lacking[:, 3:] = np.nan
    lacking[:3, 2] = np.nan  # or a part of the group

    def others(told: Array, avoided: Array) -> list[float]:
        return drawn_after(Densities(columns, groups, samples=16), good, told, avoided, [2, 3, 4])

    alone = others(bad, lacking[:0])
    assert others(np.vstack([lacking, bad, lacking]), lacking[:0]) == alone
    assert others(bad, lacking) == alone


def test_bandwidths_are_optunas_and_leave_out_what_is_missing() -> None:
    points = np.random.default_rng(0).random((12, 3))
    points[::3, 0] = np.nan
    points[:, 2] = np.nan
    found = bandwidths(points)
    for i in range(2):
        has = ~np.isnan(points[:, i])
        optuna = optuna_densities([REAL], points[has][:, [i]], np.ones(has.sum()))
        (law,) = optuna._mixture_distribution.distributions
        np.testing.assert_allclose(found[has, i], law.sigma[:-1])
        assert np.isnan(found[~has, i]).all()
    assert np.isnan(found[:, 2]).all()


@pytest.mark.parametrize("count", [0, 1, 24, 25, 26, 27, 60, 300])
def test_points_weigh_what_optuna_has_by_those_that_have_a_gene(count: int) -> None:
    points = np.full((2 * count, 2), np.nan)
    points[::2, 0] = 0.5
    points[:, 1] = 0.5
    found = recency(points)
    np.testing.assert_allclose(found[::2, 0], default_weights(count))
    np.testing.assert_allclose(found[:, 1], default_weights(2 * count))
    assert (found[1::2, 0] == 0).all()
