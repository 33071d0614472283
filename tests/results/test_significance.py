"""Tests of differences, each beside scipy's, or all subsets counted one by one."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, permutation_test, ttest_ind, ttest_rel

from evomerge.results.significance import (
    BY_ERROR,
    BY_ITEM,
    BY_RUN,
    BY_SEED,
    NONE,
    by_errors,
    holm,
    over_items,
    over_runs,
)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    """A hypothesis falls when every intersection that it is part of falls (Marcus et al. 1976)."""
    places = range(len(p_values))
    every = [c for size in range(1, len(p_values) + 1) for c in combinations(places, size)]
    for place, adjusted in enumerate(holm(p_values)):
        expected = max(len(c) * min(p_values[i] for i in c) for c in every if place in c)
        assert adjusted == pytest.approx(min(1.0, expected))


def test_holm_of_nothing() -> None:
    assert holm([]) == []


@pytest.mark.parametrize("effect", [0.0, 0.06, 0.12, 0.3])
def test_items_are_paired_as_in_a_permutation_test(effect: float) -> None:
    generator = np.random.default_rng(3)
    easy = generator.normal(size=300)
    ours, theirs = (
        (easy + 0.7 * generator.normal(size=300) + shift > 0).astype(float)
        for shift in (3 * effect, 0.0)
    )
    gap = over_items({"a": ours}, {"a": theirs})
    test = permutation_test(
        (ours, theirs),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        rng=np.random.default_rng(0),
    )
    assert gap.value == pytest.approx(test.statistic)
    assert (gap.method, gap.count) == (BY_ITEM, 300)
    assert gap.p is not None
    assert gap.low is not None
    assert gap.high is not None
    # Two tests of the same: on whole items they differ by about one item's step.
    assert gap.p == pytest.approx(test.pvalue, abs=0.03 if test.pvalue < 0.2 else 0.15)
    assert (gap.p < 0.05) == (gap.low > 0 or gap.high < 0)  # p and interval say the same


def test_alike_answers_are_no_difference() -> None:
    same = {"a": np.array([0.0, 1.0, 1.0])}
    gap = over_items(same, same)
    assert (gap.value, gap.low, gap.high, gap.p) == (0.0, 0.0, 0.0, 1.0)


def test_seeds_are_paired_as_scipy_does() -> None:
    generator = np.random.default_rng(0)
    ours, theirs = generator.normal(0.4, 1, 7), generator.normal(0, 1, 7)
    gap = over_runs(*({str(i): [v] for i, v in enumerate(of)} for of in (ours, theirs)))
    test = ttest_rel(ours, theirs)
    ends = test.confidence_interval(0.95)
    assert (gap.method, gap.count) == (BY_SEED, 7)
    assert gap.value == pytest.approx((ours - theirs).mean())
    assert gap.p == pytest.approx(test.pvalue)
    assert (gap.low, gap.high) == pytest.approx((ends.low, ends.high))


def test_only_shared_seeds_make_pairs() -> None:
    ours = {"0": [1.0], "1": [2.0], "2": [4.0], "9": [100.0]}
    theirs = {"0": [0.5], "1": [1.7], "2": [3.0], "8": [-50.0]}
    gap = over_runs(ours, theirs)
    assert gap.count == 3
    assert gap.p == pytest.approx(ttest_rel([1, 2, 4], [0.5, 1.7, 3.0]).pvalue)


def test_other_seeds_are_welchs() -> None:
    ours, theirs = [1.0, 1.2, 0.9, 1.4], [0.7, 0.8, 0.3]
    gap = over_runs(
        {str(i): [v] for i, v in enumerate(ours)}, {str(i + 9): [v] for i, v in enumerate(theirs)}
    )
    test = ttest_ind(ours, theirs, equal_var=False)
    ends = test.confidence_interval(0.95)
    assert (gap.method, gap.count) == (BY_RUN, 7)
    assert gap.p == pytest.approx(test.pvalue)
    assert (gap.low, gap.high) == pytest.approx((ends.low, ends.high))


def test_too_few_runs_are_not_tested() -> None:
    gap = over_runs({"0": [1.0], "1": [2.0]}, {"0": [0.0]})
    assert (gap.value, gap.p, gap.method) == (1.5, None, NONE)


def test_the_same_gap_at_every_seed_is_as_sure_as_its_signs() -> None:
    ours, theirs = ({str(i): [i + gap] for i in range(4)} for gap in (0.5, 0.0))
    assert over_runs(ours, theirs).p == 2 / 2**4
    assert over_runs(ours, ours).p == 1.0


def test_other_items_are_told_apart_by_their_errors() -> None:
    gap = by_errors((0.8, 0.03), (0.7, 0.04), 500)
    assert gap.method == BY_ERROR
    assert gap.p == pytest.approx(2 * norm.cdf(-2))
    assert (gap.low, gap.high) == pytest.approx((0.1 - 1.96 * 0.05, 0.1 + 1.96 * 0.05))
    assert by_errors((0.8, 0.0), (0.7, 0.0), 1).method == NONE
