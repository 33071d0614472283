"""The paired bootstrap against scipy, and how often its intervals hold what they should."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from evomerge.records import Measurements, Objective, Responses
from evomerge.results.intervals import mean_estimate, mean_of_objectives, paired_gain

ITEMS = {"a": tuple(range(60)), "b": tuple(range(25))}


def measured(seed: int, *, gap: float = 0.1, binary: bool = True) -> Measurements:
    """Two models whose answers to an item resemble each other."""
    generator = np.random.default_rng(seed)
    measurements = Measurements({task: len(ids) for task, ids in ITEMS.items()})
    for task, ids in ITEMS.items():
        easy = generator.normal(size=len(ids))
        for model, ability in (("one", gap), ("two", 0.0)):
            raw = easy + 0.5 * generator.normal(size=len(ids)) + ability
            score = (raw > 0).astype(np.float32) if binary else raw.astype(np.float32)
            columns = {"score": score, "margin": raw.astype(np.float32)}
            measurements.add(model, Responses(task, np.array(ids), columns))
    return measurements


def scores(measurements: Measurements, model: str, task: str) -> np.ndarray:
    return measurements.values(model, task, ITEMS[task])


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_scipys_paired_bootstrap(seed: int, binary: bool) -> None:
    measurements = measured(seed, binary=binary)
    objectives = [Objective("o", {"a": 1.0})]
    value, low, high = paired_gain(objectives, measurements, "one", "two", ITEMS, seed)
    pair = [scores(measurements, model, "a") for model in ("one", "two")]
    theirs = bootstrap(
        pair,
        lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    assert value == pytest.approx(pair[0].mean() - pair[1].mean())
    # A quantile at 2.5 % of 10,000 draws has a Monte Carlo error of about 0.03 standard errors;
    # with right and wrong answers it moves in steps of one item.
    close = 0.15 * theirs.standard_error + (1.01 / 60 if binary else 0)
    assert abs(low - theirs.confidence_interval.low) <= close
    assert abs(high - theirs.confidence_interval.high) <= close


def test_tasks_are_strata_with_their_weights() -> None:
    measurements = measured(3, binary=False)
    objectives = [Objective("o", {"a": 0.2, "b": 0.8})]
    value, low, high = paired_gain(objectives, measurements, "one", "two", ITEMS, 0)
    gaps = {t: scores(measurements, "one", t) - scores(measurements, "two", t) for t in "ab"}
    assert value == pytest.approx(0.2 * gaps["a"].mean() + 0.8 * gaps["b"].mean())
    variance = 0.04 * gaps["a"].var() / 60 + 0.64 * gaps["b"].var() / 25
    assert (high - low) / 2 == pytest.approx(1.96 * variance**0.5, rel=0.06)


def test_two_objectives_on_the_same_items_are_not_independent() -> None:
    """A mean of two equal objectives is as sure as one of them, and not surer."""
    measurements = measured(4)
    once = [Objective("o", {"a": 1.0})]
    twice = [Objective("o", {"a": 1.0}), Objective("p", {"a": 1.0})]
    assert paired_gain(twice, measurements, "one", "two", ITEMS, 0) == pytest.approx(
        paired_gain(once, measurements, "one", "two", ITEMS, 0)
    )
    both = mean_estimate(mean_of_objectives(twice, measurements, "one", ITEMS))
    assert both == pytest.approx(
        mean_estimate(mean_of_objectives(once, measurements, "one", ITEMS))
    )
    answers = scores(measurements, "one", "a")
    assert both == pytest.approx((answers.mean(), answers.std(ddof=1) / 60**0.5))

    # and objectives of opposite sense cancel, item by item
    opposed = [Objective("o", {"a": 1.0}, "margin"), Objective("p", {"a": 1.0}, "margin", -1)]
    value, low, high = paired_gain(opposed, measurements, "one", "two", ITEMS, 0)
    assert (value, low, high) == pytest.approx((0, 0, 0))


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """150 simulated pairs of 60 items: 95 % nominal; the percentile bootstrap is a bit narrow."""
    objectives = [Objective("o", {"a": 1.0})]
    held = 0
    for seed in range(150):
        measurements = measured(seed, gap=0.3, binary=False)
        _, low, high = paired_gain(objectives, measurements, "one", "two", ITEMS, seed)
        held += low <= 0.3 <= high
    assert 0.90 <= held / 150 <= 0.98


def test_a_draw_depends_on_the_seed_alone() -> None:
    measurements = measured(0, binary=False)
    objectives = [Objective("o", {"a": 1.0})]
    first, again, other = (
        paired_gain(objectives, measurements, "one", "two", ITEMS, seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first[1:] != other[1:]


def test_one_number_has_no_interval() -> None:
    measurements = Measurements({"n": 1})
    for model, value in (("one", 3.0), ("two", 1.0)):
        measurements.add(model, Responses("n", np.array([0]), {"score": np.float32([value])}))
    gain = paired_gain([Objective("o", {"n": 1.0})], measurements, "one", "two", {"n": (0,)}, 0)
    assert gain == (2.0, 2.0, 2.0)


def test_costs_are_left_out_of_means_and_gains() -> None:
    measurements = measured(4)
    plain = [Objective("o", {"a": 0.5, "b": 0.5})]
    with_cost = [*plain, Objective("size", {}, sign=-1, cost="parameters")]
    for model in ("one", "two"):
        one, other = (
            mean_estimate(mean_of_objectives(o, measurements, model, ITEMS))
            for o in (plain, with_cost)
        )
        assert one == other
    gains = [paired_gain(o, measurements, "one", "two", ITEMS, 0) for o in (plain, with_cost)]
    assert gains[0] == gains[1]
