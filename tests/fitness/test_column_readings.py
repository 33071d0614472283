"""Readings of a few answers: brute force, simulated models, and other libraries as oracles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import binom
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression

from evomerge.errors import ConfigurationError
from evomerge.fitness.estimators.aipw import Aipw
from evomerge.fitness.estimators.anchors import Anchors, nested_kmeans
from evomerge.fitness.estimators.column import ColumnReading, RandomItems, Side
from evomerge.fitness.estimators.irt import GmpIrt, GpIrt, MpIrt, PIrt
from evomerge.fitness.estimators.irt_model import Items, ability, fit_items
from evomerge.fitness.estimators.irt_pool import (
    ItemPool,
    calibrated,
    fit_pool,
    read_items,
    read_responses,
)
from evomerge.fitness.estimators.stratified import Stratified, golden_ring, strata_of

Floats = NDArray[np.float64]
Make = Callable[..., ColumnReading]
PATTERNS: dict[str, Make] = {
    "random": RandomItems,
    "stratified": Stratified,
    "anchors": Anchors,
    "aipw": Aipw,
}
POOLED: dict[str, Make] = {"p": PIrt, "gp": GpIrt, "mp": MpIrt, "gmp": GmpIrt}
UNBIASED = ("random", "stratified", "aipw")


def simulate(
    num_models: int, num_items: int, seed: int, abilities: Floats | None = None
) -> tuple[Floats, Items, Floats]:
    """Answers by a 2PL model, its item parameters, and the abilities (models, 1)."""
    generator = np.random.default_rng(seed)
    a = generator.lognormal(0.2, 0.4, (num_items, 1))
    b = generator.normal(0, 1.2, num_items)
    theta = generator.normal(0, 1, (num_models, 1)) if abilities is None else abilities
    chance = expit(theta @ a.T - b)
    return (generator.random(chance.shape) < chance).astype(np.float64), Items(a, b), theta


def all_kinds(side: Side, pool: ItemPool, seed: int = 3) -> dict[str, ColumnReading]:
    made = {
        name: make(side, seed=seed, num_items=side.num_items) for name, make in PATTERNS.items()
    }
    for name, make in POOLED.items():
        for anchors in (False, True):
            made[f"{name}-irt {anchors}"] = make(
                side, seed=seed, num_items=side.num_items, pool=pool, anchors=anchors
            )
    made["mp-irt residuals"] = MpIrt(
        side, seed=seed, num_items=side.num_items, pool=pool, residuals=True
    )
    return made


@pytest.fixture(scope="module")
def world() -> tuple[Floats, Side, ItemPool]:
    """Ten candidates' answers to 120 items, four references', and a pool of 40 others."""
    answers, _, _ = simulate(54, 120, 0)
    return answers[:10], Side(answers[10:14], (1, 2)), fit_pool(answers[14:])


# Invariants


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True), st.integers(0, 7))
def test_orders_are_nested_fresh_and_repeatable(
    world: tuple[Floats, Side, ItemPool], counts: list[int], rotation: int
) -> None:
    _, side, pool = world
    counts = sorted(counts)
    again = all_kinds(side, pool)
    for name, reading in all_kinds(side, pool).items():
        order = reading.order(counts, rotation)
        assert len(order) == counts[-1] == len(set(order.tolist())), name
        assert order.min() >= 0, name
        assert order.max() < 120, name
        assert np.array_equal(order, again[name].order(counts, rotation)), name
        following = reading.order(counts, rotation + 1)
        assert not set(order.tolist()) & set(following.tolist()), name
        more = reading.order([*counts, 60], 0)  # a longer race begins like a shorter one
        assert np.array_equal(more[: counts[-1]], reading.order(counts, 0)), name


def test_other_seeds_and_rotations_choose_other_items(world: tuple[Floats, Side, ItemPool]) -> None:
    _, side, pool = world
    others = all_kinds(side, pool, seed=4)
    for name, reading in all_kinds(side, pool).items():
        assert not np.array_equal(reading.order([20], 0), others[name].order([20], 0)), name
        assert not np.array_equal(reading.order([20], 0), reading.order([20], 1)), name


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 120), st.integers(0, 9))
@example(1402, 35, 7)  # a weighted mean of ones was above 1, by rounding
def test_readings_do_not_depend_on_the_order_of_answers(
    world: tuple[Floats, Side, ItemPool], seed: int, count: int, which: int
) -> None:
    candidates, side, pool = world
    generator = np.random.default_rng(seed)
    seen = generator.permutation(120)[:count]
    shuffled = generator.permutation(seen)
    first, second = candidates[which], candidates[(which + 1) % 10]
    for name, reading in all_kinds(side, pool).items():
        found = reading.read(seen, first[seen])
        assert found == pytest.approx(reading.read(shuffled, first[shuffled]), abs=1e-7), name
        assert np.isfinite(found).all(), name
        assert found[1] >= 0, name
        if "irt" in name or name == "anchors":
            assert 0 <= found[0] <= 1, name
        gap, variance = reading.compare(seen, first[seen], second[seen])
        other = reading.read(seen, second[seen])
        assert gap == pytest.approx(found[0] - other[0], abs=1e-9), name
        back = reading.compare(seen, second[seen], first[seen])
        assert back == pytest.approx((-gap, variance), abs=1e-9), name


def test_all_items_seen_is_the_plain_mean(world: tuple[Floats, Side, ItemPool]) -> None:
    candidates, side, pool = world
    everything = np.arange(120)
    for name, reading in all_kinds(side, pool).items():
        for answers in candidates:
            value, variance = reading.read(everything, answers)
            assert value == pytest.approx(answers.mean(), abs=1e-9), name
            assert "irt" not in name or variance < 1e-3


def test_the_same_answers_differ_by_nothing(world: tuple[Floats, Side, ItemPool]) -> None:
    candidates, side, pool = world
    for name, reading in all_kinds(side, pool).items():
        seen = reading.order([30], 0)
        answers = candidates[0][seen]
        assert reading.compare(seen, answers, answers)[0] == pytest.approx(0, abs=1e-12), name


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("num_references", [0, 1, 2])
def test_few_or_constant_references_are_no_trouble(name: str, num_references: int) -> None:
    references = np.ones((num_references, 50))
    reading = PATTERNS[name](Side(references), seed=0, num_items=50)
    seen = reading.order([5, 20], 2)
    for answers in (np.zeros(20), np.ones(20), np.arange(20) / 19):
        value, variance = reading.read(seen, answers)
        assert value == pytest.approx(answers.mean(), abs=0.05)
        assert np.isfinite(variance)


@pytest.mark.parametrize("name", PATTERNS)
def test_columns_need_not_be_binary(name: str) -> None:
    generator = np.random.default_rng(0)
    hard = generator.normal(0, 1, 400)
    models = -5 + hard + generator.normal(0, 0.3, (5, 400))  # as log-likelihoods are
    reading = PATTERNS[name](Side(models[:4], (1, 2)), seed=0, num_items=400)
    gaps = []
    for rotation in range(10):
        seen = reading.order([30], rotation)
        gaps.append(reading.read(seen, models[4][seen])[0] - models[4].mean())
    error = np.sqrt(np.mean(np.square(gaps)))
    assert error < (0.35 if name == "random" else 0.12)  # a random mean's is 1.04 / sqrt(30) = .19


@pytest.mark.parametrize("name", PATTERNS)
def test_wrong_references_and_counts_are_refused(name: str) -> None:
    if name != "random":  # it has no use for references
        expected = r"expected \(models, 30\), got shape \(2, 20\)"
        with pytest.raises(ConfigurationError, match=expected):
            PATTERNS[name](Side(np.zeros((2, 20))), seed=0, num_items=30)
        with pytest.raises(ConfigurationError, match="finite"):
            PATTERNS[name](Side(np.full((2, 20), np.nan)), seed=0, num_items=20)
    reading = PATTERNS[name](Side(np.zeros((2, 20))), seed=0, num_items=20)
    for counts in ([], [0, 3], [5, 5], [10, 21]):
        with pytest.raises(ConfigurationError, match="rising counts from 1 to at most 20"):
            reading.order(counts, 0)


# Brute force over many samples


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_and_covered_by_its_interval(name: str) -> None:
    """Over seeds, at n = 30 and 100 of 1,000 items, for models of any ability."""
    abilities = np.r_[[0.2, 0.5, 0.8], np.linspace(-1.5, 1.5, 7)][:, None]
    answers, _, _ = simulate(10, 1000, 1, abilities)
    side = Side(answers[:3], (0, 1, 2))
    counts = (30, 100)
    gaps, covered = np.zeros((7, 2, 300)), np.zeros((7, 2, 300))
    for seed in range(300):
        reading = PATTERNS[name](side, seed=seed, num_items=1000)
        order = reading.order(counts, 0)
        for i, model in enumerate(answers[3:]):
            for j, count in enumerate(counts):
                seen = order[:count]
                value, variance = reading.read(seen, model[seen])
                gaps[i, j, seed] = value - model.mean()
                covered[i, j, seed] = abs(gaps[i, j, seed]) <= 1.96 * variance**0.5
    standard_error = gaps.std(axis=2) / 300**0.5
    assert (np.abs(gaps.mean(axis=2)) < 3.7 * standard_error).all()  # 14 tests at once
    assert ((covered.mean(axis=(0, 2)) > 0.92) & (covered.mean(axis=(0, 2)) < 0.98)).all()


@pytest.mark.parametrize(("linear", "num_seeds"), [(True, 200), (False, 25)])
def test_intervals_of_differences_hold_the_truth_and_are_narrow(
    linear: bool, num_seeds: int
) -> None:
    """Of two like models on 40 common items: paired, so narrower than two intervals would be."""
    generator = np.random.default_rng(3)
    chance = expit(np.linspace(-0.5, 0.5, 46)[:, None] - generator.normal(0, 2, 600))
    answers = (generator.random(chance.shape) < chance).astype(np.float64)
    side = Side(answers[:3], (0, 1, 2))
    options = {} if linear else {"pool": fit_pool(answers[6:], num_dimensions=1)}
    for name, make in (PATTERNS if linear else POOLED).items():
        covered, shares = [], []
        for seed in range(num_seeds):
            reading = make(side, seed=seed, num_items=600, **options)
            seen = reading.order([40], 0)
            for i, j in ((3, 4), (3, 5), (4, 5)):
                first, second = answers[i][seen], answers[j][seen]
                gap, variance = reading.compare(seen, first, second)
                off = gap - (answers[i].mean() - answers[j].mean())
                covered.append(abs(off) <= 1.96 * variance**0.5)
                apart = reading.read(seen, first)[1] + reading.read(seen, second)[1]
                shares.append(variance / apart)
        # An anchors' interval is a model's: it may be off further.
        assert np.mean(covered) > (0.92 if name in UNBIASED else 0.86), name
        assert np.mean(covered) < 0.98 or name not in UNBIASED, name
        assert np.mean(shares) < (0.8 if name == "random" else 1.0), name


def test_residuals_of_the_experts_are_inherited() -> None:
    """A weak family that was taught half of the items: their difficulty no longer matters."""
    abilities = np.r_[np.random.default_rng(1).normal(0, 1, 60), np.full(3, -2.0)][:, None]
    answers, _, _ = simulate(63, 300, 9, abilities)
    taught = np.random.default_rng(0).random(300) < 0.5
    family = np.where(taught, 1.0, answers[60:])
    pool = fit_pool(answers[:60], num_dimensions=1)
    side = Side(family[:2], (0, 1))
    gaps: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(60):
        for residuals in gaps:
            reading = MpIrt(side, seed=seed, num_items=300, pool=pool, residuals=residuals)
            seen = reading.order([60], 0)
            gaps[residuals].append(reading.read(seen, family[2][seen])[0] - family[2].mean())
    assert np.mean(np.abs(gaps[True])) < 0.8 * np.mean(np.abs(gaps[False]))


def test_a_merge_that_is_worse_at_everything_is_seen_with_residuals() -> None:
    """Its experts are as able as each other, so that no mix of them can tell it."""
    abilities = np.r_[np.random.default_rng(1).normal(0, 1, 60), np.zeros(2)][:, None]
    answers, items, _ = simulate(62, 600, 9, abilities)
    generator = np.random.default_rng(2)
    chance = expit(-items.b - 0.5)  # half a logit below ability 0 on each item
    merge = (generator.random(600) < chance).astype(np.float64)
    pool = fit_pool(answers[:60], num_dimensions=1)
    gaps: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(40):
        for residuals, found in gaps.items():
            reading = MpIrt(
                Side(answers[60:], (0, 1)), seed=seed, num_items=600, pool=pool, residuals=residuals
            )
            seen = reading.order([100], 0)
            found.append(reading.read(seen, merge[seen])[0] - merge.mean())
    assert np.mean(np.abs(gaps[True])) < 0.8 * np.mean(np.abs(gaps[False]))


def test_aipw_is_exactly_unbiased_over_all_samples() -> None:
    """The mean over every sample of 3 of 8 items is the mean of all, whatever the references."""
    from itertools import combinations

    generator = np.random.default_rng(0)
    reading = Aipw(Side(generator.random((2, 8))), seed=0, num_items=8, penalty=0.3)
    answers = generator.random(8) ** 2
    values = [reading.read(np.array(s), answers[list(s)])[0] for s in combinations(range(8), 3)]
    assert np.mean(values) == pytest.approx(answers.mean(), abs=1e-12)


def test_aipw_by_its_definition() -> None:
    """Each answer's own ridge fit to the others, by sklearn-free brute force."""
    generator = np.random.default_rng(1)
    reading = Aipw(Side(generator.random((3, 40))), seed=0, num_items=40, penalty=2.0)
    answers, seen = generator.random(40), generator.permutation(40)[:12]
    x, prior = reading._features, reading._prior
    values = []
    for i in seen:
        others = np.setdiff1d(seen, [i])
        penalty = np.diag([0.0, 2.0, 2.0, 2.0])
        off = answers[others] - x[others] @ prior
        beta = prior + np.linalg.solve(x[others].T @ x[others] + penalty, x[others].T @ off)
        left = np.setdiff1d(np.arange(40), others)
        correction = len(left) * (answers[i] - x[i] @ beta)
        values.append((answers[others].sum() + (x[left] @ beta).sum() + correction) / 40)
    assert reading.read(seen, answers[seen])[0] == pytest.approx(np.mean(values), abs=1e-12)


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_answers_that_are_all_alike_leave_a_plain_mean_in_doubt(right: float) -> None:
    """As if one more had been right and one wrong; a difference is read as it is."""
    reading = RandomItems(Side(), seed=0, num_items=500)
    seen, answers = np.arange(8), np.full(8, right)
    squares = 10 * np.var([*answers, 0.0, 1.0])
    assert reading.read(seen, answers) == (right, pytest.approx(squares / 7 / 8))
    assert reading.compare(seen, answers, np.zeros(8)) == (right, 0.0)
    assert reading.read(seen, np.full(8, 0.5))[1] == 0.0  # neither right nor wrong
    mixed = np.array([0.0, 1, 1, 0, 1, 1, 1, 1])
    assert reading.read(seen, -mixed)[1] == reading.read(seen, mixed)[1]


@pytest.mark.parametrize("n", [10, 30, 100])
def test_intervals_of_few_right_or_wrong_answers_cover(n: int) -> None:
    """Exactly, by the binomial distribution; Wald's own fall to nothing at both ends."""
    rates, counts = np.linspace(0.02, 0.98, 97), np.arange(n + 1)
    reading, seen = RandomItems(Side(), seed=0, num_items=n), np.arange(n)
    read = [reading.read(seen, (seen < count).astype(np.float64)) for count in counts]
    value, half = np.array([(v, 1.96 * variance**0.5) for v, variance in read]).T
    held = np.abs(value - rates[:, None]) <= half  # (rates, counts)
    coverage = (binom.pmf(counts, n, rates[:, None]) * held).sum(axis=1)
    assert 0.93 < coverage.mean() < 0.97
    assert coverage.min() > 0.8


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_answers_that_are_all_alike_leave_aipw_in_doubt(right: float) -> None:
    """The references' variance counts as two more answers, and one more is right and one wrong."""
    generator = np.random.default_rng(3)
    side = Side((generator.random((3, 500)) < 0.9).astype(np.float64))
    reading = Aipw(side, seed=0, num_items=500)
    seen = reading.order([12], 0)
    _, variance = reading.read(seen, np.full(12, right))
    spread = side.references.var(axis=1).mean()  # they have nothing in common, but by chance
    squares = 14 * np.var([*np.full(12, right), 0.0, 1.0])
    assert variance == pytest.approx((squares + 2 * spread) / 13 / 12, rel=0.15)
    # A lot of answers speak for themselves.
    many, answers = np.arange(400), (generator.random(400) < 0.9).astype(np.float64)
    own = answers.var(ddof=1) / 400
    assert reading.read(many, answers)[1] == pytest.approx(own, rel=0.1)


def test_references_that_are_copies_leave_no_variance_below_zero() -> None:
    generator = np.random.default_rng(0)
    for num_items in range(20, 60):
        row = (generator.random(num_items) < 0.5).astype(np.float64)
        reading = Aipw(Side(np.tile(row, (3, 1))), seed=0, num_items=num_items)
        seen = reading.order([8], 0)
        assert reading.read(seen, row[seen])[1] >= 0


def test_references_make_estimates_better() -> None:
    """Of models like the references, on 150 samples: the whole point of the others."""
    generator = np.random.default_rng(2)
    hard = generator.normal(0, 3, 1000)  # most items are hard for all or for none
    answers = (generator.random((4, 1000)) < expit(0.3 - hard)).astype(np.float64)
    error: dict[str, float] = {}
    for name, make in PATTERNS.items():
        gaps = []
        for seed in range(150):
            reading = make(Side(answers[:3]), seed=seed, num_items=1000)
            seen = reading.order([30], 0)
            gaps.append(reading.read(seen, answers[3][seen])[0] - answers[3].mean())
        error[name] = float(np.mean(np.abs(gaps)))
    assert max(error["stratified"], error["aipw"]) < 0.85 * error["random"]
    assert error["anchors"] < 0.95 * error["random"]


# Strata


@pytest.mark.parametrize("total", [240, 500, 720, 752, 1000])
def test_every_window_takes_strata_in_proportion(total: int) -> None:
    """Within three of proportional, anywhere in the ring; random windows are off by far more."""
    stratum = np.sort(np.random.default_rng(0).integers(0, 6, total))
    ring = golden_ring(stratum, np.random.default_rng(1))
    shares = np.bincount(stratum) / total
    assert sorted(ring.tolist()) == list(range(total))
    for start in range(0, total, 7):
        for length in (10, 30, 100, 200):
            window = np.take(ring, range(start, start + length), mode="wrap")
            counts = np.bincount(stratum[window], minlength=6)
            assert np.abs(counts - length * shares).max() < 3


def test_strata_are_patterns_in_order_of_their_score() -> None:
    references = np.array([[0, 1, 0, 1, 1], [0, 1, 0, 0, 0], [0, 1, 0, 1, 0]], dtype=float)
    assert strata_of(references, 8).tolist() == [0, 3, 0, 2, 1]
    many = np.random.default_rng(0).random((3, 200))
    sizes = np.bincount(strata_of(many, 8))
    assert len(sizes) == 8
    assert sizes.min() >= 24
    assert strata_of(np.zeros((0, 4)), 8).tolist() == [0] * 4


def test_post_stratified_mean_by_hand() -> None:
    """Two kinds, 3/4 and 1/4 of the items; 5 and 5 answers: .75 x .8 + .25 x .4 = .7."""
    references = np.repeat([[0.0, 1.0]], 40, axis=0).T.reshape(1, -1)
    references = np.r_[np.zeros(60), np.ones(20)][None]
    reading = Stratified(Side(references), seed=0, num_items=80)
    seen = np.r_[np.arange(5), np.arange(60, 65)]
    answers = np.array([1, 1, 1, 1, 0, 0, 1, 0, 1, 0], dtype=float)
    assert reading.read(seen, answers)[0] == pytest.approx(0.7)
    assert reading.read(seen[:6], answers[:6])[0] == pytest.approx(4 / 6)  # too few of one kind


# Anchors


def test_kmeans_is_as_good_as_another_librarys() -> None:
    points = np.random.default_rng(0).normal(0, 1, (300, 3))
    points[:100] += 4
    ones, none = np.ones(300), np.empty((0, 3))

    def inertia(centres: Floats) -> float:
        return float(((points[:, None] - centres) ** 2).sum(axis=2).min(axis=1).sum())

    ours = [
        inertia(nested_kmeans(points, ones, none, 12, np.random.default_rng(i))) for i in range(10)
    ]
    theirs = KMeans(12, n_init=10, random_state=0).fit(points).inertia_
    assert min(ours) < 1.03 * theirs
    assert np.median(ours) < 1.15 * theirs


def test_fixed_centres_stay() -> None:
    points = np.random.default_rng(0).normal(0, 1, (50, 2))
    fixed = np.array([[3.0, 3.0], [0.5, 0.0]])
    centres = nested_kmeans(points, np.ones(50), fixed, 5, np.random.default_rng(1))
    assert np.array_equal(centres[:2], fixed)
    assert len(centres) == 5


def test_weights_are_the_clusters_shares() -> None:
    """Three items each of kind 0 and 2 of kind 1; two answers of kind 0 share its weight."""
    side = Side(np.array([[0, 0, 0, 1, 1], [0, 0, 0, 1, 0.9]]))
    reading = Anchors(side, seed=0, num_items=5)
    value, _ = reading.read(np.array([0, 1, 3]), np.array([1.0, 0.0, 1.0]))
    assert value == pytest.approx(0.3 * 1 + 0.3 * 0 + 0.4 * 1)
    assert set(reading.order([2], 0).tolist()) & {3, 4}


# Item response theory


def test_parameters_are_recovered() -> None:
    answers, items, theta = simulate(400, 150, 5)
    answers[np.random.default_rng(0).random(answers.shape) < 0.2] = np.nan  # a pool has gaps
    found, abilities = fit_items(answers, 1)
    assert np.corrcoef(found.a[:, 0], items.a[:, 0])[0, 1] > 0.9
    assert np.corrcoef(found.b, items.b)[0, 1] > 0.95
    assert np.corrcoef(abilities[:, 0], theta[:, 0])[0, 1] > 0.95
    assert abilities.mean() == pytest.approx(0, abs=1e-6)
    assert abilities.std() == pytest.approx(1, abs=1e-3)


def test_two_dimensions_are_recovered() -> None:
    generator = np.random.default_rng(0)
    a = np.abs(generator.normal(0, 1.2, (200, 2))) * generator.permuted(
        np.tile([1.0, 0.2], (200, 1)), axis=1
    )
    theta = generator.normal(0, 1, (300, 2))
    chance = expit(theta @ a.T - generator.normal(0, 1, 200))
    found, abilities = fit_items((generator.random(chance.shape) < chance).astype(float), 2)
    fitted = expit(abilities @ found.a.T - found.b)
    one, ability_1 = fit_items((generator.random(chance.shape) < chance).astype(float), 1)
    worse = expit(ability_1 @ one.a.T - one.b)
    assert np.corrcoef(fitted.ravel(), chance.ravel())[0, 1] > 0.95
    assert np.square(fitted - chance).mean() < 0.8 * np.square(worse - chance).mean()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 3))
def test_ability_is_a_penalised_logistic_regression(seed: int, count: int, d: int) -> None:
    """sklearn's with C = 1 has the prior N(0, I); the difficulty enters as a known coefficient."""
    generator = np.random.default_rng(seed)
    items = Items(generator.normal(1, 0.5, (count, d)), np.zeros(count))
    answers = (generator.random(count) < 0.5).astype(float)
    answers[0] = 1 - answers[-1] if count > 1 else answers[0]
    theta, covariance = ability(items, np.arange(count), answers)
    if len(set(answers.tolist())) == 2:
        theirs = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10, max_iter=1000)
        theirs.fit(items.a, answers.astype(int))
        assert theta == pytest.approx(theirs.coef_[0], abs=1e-4)
    p = items.probabilities(theta)
    precision = (items.a.T * (p * (1 - p))) @ items.a + np.eye(d)
    assert covariance @ precision == pytest.approx(np.eye(d), abs=1e-8)


def test_p_irt_by_its_formula(world: tuple[Floats, Side, ItemPool]) -> None:
    candidates, side, pool = world
    seen, unseen = np.arange(0, 120, 4), np.setdiff1d(np.arange(120), np.arange(0, 120, 4))
    y = candidates[0]
    theta, _ = ability(pool.items, seen, y[seen])
    chance = expit(pool.items.a[unseen] @ theta - pool.items.b[unseen])
    p_irt = 30 / 120 * y[seen].mean() + (1 - 30 / 120) * chance.mean()
    made = {k: f(side, seed=0, num_items=120, pool=pool) for k, f in POOLED.items()}
    value = {k: reading.read(seen, y[seen])[0] for k, reading in made.items()}
    assert value["p"] == pytest.approx(p_irt, abs=1e-9)
    features = np.column_stack([pool.items.a, pool.items.b])
    anchors = Anchors(side, seed=0, num_items=120, features=features).read(seen, y[seen])[0]
    assert pool.error is not None
    assert pool.variance is not None
    lam = pool.error**2 / (pool.error**2 + pool.variance / (4 * 30))
    assert value["gp"] == pytest.approx(lam * anchors + (1 - lam) * p_irt, abs=1e-9)
    assert value["gmp"] == pytest.approx(0.5 * anchors + 0.5 * value["mp"], abs=1e-9)


def test_variance_of_p_irt_by_finite_differences(world: tuple[Floats, Side, ItemPool]) -> None:
    """theta's covariance through the unseen items' mean, and the held-out misfit of their share."""
    candidates, side, pool = world
    seen, unseen = np.arange(0, 120, 4), np.setdiff1d(np.arange(120), np.arange(0, 120, 4))
    theta, covariance = ability(pool.items, seen, candidates[0][seen])
    steps = 1e-5 * np.eye(len(theta))
    above, below = (
        np.array([pool.items.probabilities(theta + sign * s, unseen).sum() / 120 for s in steps])
        for sign in (1, -1)
    )
    slope = (above - below) / 2e-5
    assert pool.misfit is not None
    expected = slope @ covariance @ slope + (1 - 30 / 120) ** 2 * pool.misfit
    reading = PIrt(side, seed=0, num_items=120, pool=pool)
    assert reading.read(seen, candidates[0][seen])[1] == pytest.approx(expected, rel=1e-6)


def test_mp_irt_without_answers_is_the_mean_of_the_experts(
    world: tuple[Floats, Side, ItemPool],
) -> None:
    _, side, pool = world
    reading = MpIrt(side, seed=0, num_items=120, pool=pool)
    gamma = [ability(pool.items, np.arange(120), side.references[k])[0] for k in side.experts]
    expected = pool.items.probabilities(np.mean(gamma, axis=0)).mean()
    none = np.array([], dtype=np.int64)
    assert reading.read(none, np.array([]))[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["p", "mp"])
def test_intervals_of_irt_hold_the_truth(name: str) -> None:
    answers, _, _ = simulate(120, 400, 7)
    pool = fit_pool(answers[:80])
    side = Side(answers[80:83], (0, 1, 2))
    covered = []
    for seed in range(20):
        reading = POOLED[name](side, seed=seed, num_items=400, pool=pool)
        seen = reading.order([30], 0)
        for y in answers[83:]:
            value, variance = reading.read(seen, y[seen])
            covered.append(abs(value - y.mean()) <= 1.96 * variance**0.5)
    assert 0.9 < np.mean(covered) < 0.99


def test_without_a_pool_the_error_names_the_alternatives() -> None:
    side = Side(np.zeros((3, 20)), (1, 2))
    for make in POOLED.values():
        with pytest.raises(ConfigurationError, match=r"3 references; .* `stratified`, `anchors`"):
            make(side, seed=0, num_items=20)
    items = Items(np.ones((30, 1)), np.zeros(30))
    with pytest.raises(ConfigurationError, match="expected 20 items, got 30"):
        PIrt(side, seed=0, num_items=20, pool=ItemPool(items))
    with pytest.raises(ConfigurationError, match="no experts"):
        MpIrt(
            Side(side.references),
            seed=0,
            num_items=20,
            pool=ItemPool(Items(items.a[:20], items.b[:20])),
        )
    with pytest.raises(ConfigurationError, match="at least 10 models, got 4"):
        fit_pool(np.zeros((4, 20)))


def test_error_is_calibrated_on_models_that_the_fit_has_not_seen() -> None:
    """Items whose parameters are nonsense show a large error; the true ones hardly any."""
    answers, items, _ = simulate(60, 400, 8)
    good = calibrated(items, answers)
    shuffled = np.random.default_rng(0).permutation(400)
    bad = calibrated(Items(items.a * 3, items.b[shuffled]), answers)
    assert good.misfit is not None
    assert bad.misfit is not None
    assert bad.misfit > 1.5 * good.misfit
    assert good.variance == pytest.approx(answers.var(axis=1).mean())


# Files


def test_tiny_benchmarks_parameters_give_their_curve(tmp_path: Path) -> None:
    """Their `item_curve`: sigmoid((a * theta - b).sum(axis=1)), with (1, D, items) arrays."""
    generator = np.random.default_rng(0)
    a, theta = generator.normal(1, 0.3, (1, 4, 30)), generator.normal(0, 1, (1, 4, 1))
    for rows in (4, 1):
        b = generator.normal(0, 1, (1, rows, 30))
        curve = 1 / (1 + np.exp(-(a * theta - b).sum(axis=1)))
        np.savez(tmp_path / "items.npz", A=a, B=b)
        (tmp_path / "items.json").write_text(json.dumps({"A": a.tolist(), "B": b.tolist()}))
        for name in ("items.npz", "items.json"):
            items = read_items(tmp_path / name, 30)
            assert items.probabilities(theta[0, :, 0]) == pytest.approx(curve[0], abs=1e-12)


def test_pools_come_from_three_kinds_of_files(tmp_path: Path) -> None:
    matrix = np.array([[0, 1, np.nan], [1, 0.5, 0]])
    np.savez(tmp_path / "pool.npz", responses=matrix, models=np.array(["a", "b"]))
    (tmp_path / "pool.csv").write_text("0,1,\n1,.5,0\n")
    (tmp_path / "pool.json").write_text("[[0, 1, null], [1, 0.5, 0]]")
    (tmp_path / "object.json").write_text('{"responses": [[0, 1, null], [1, 0.5, 0]]}')
    for name in ("pool.npz", "pool.csv", "pool.json", "object.json"):
        assert np.array_equal(read_responses(tmp_path / name, 3), matrix, equal_nan=True)


def write_pickled(path: Path) -> None:
    np.savez(path, responses=np.array([{"a": 1}], dtype=object))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[[0, 1]]", r"expected \(models, 3 or more\).* got shape \(1, 2\)"),
        ("a.json", "[[0, 1, 2]]", r"answers in \[0, 1\]"),
        ("a.json", "[[0, 1, 0], [1]]", "rows of equal length"),
        ("a.json", "{", "is no .json of plain numbers"),
        ("a.json", '{"other": 1}', "expected an array `responses`, got other"),
        ("a.csv", "x,y,z\n1,0,1\n", "no heading"),
        ("a.csv", "1,0,1\n1,0\n", "rows of equal length"),
        ("a.npz", "nonsense", "is no .npz"),
        ("a.npz", write_pickled, "is no .npz of plain numbers"),
        ("a.pickle", "", "numpy.savez"),
        ("a.npy", "", "numpy.savez"),
        ("missing.csv", None, "cannot be read"),
        ("missing.npz", None, "cannot be read"),
    ],
)
def test_files_that_are_no_pool(tmp_path: Path, name: str, content: Any, message: str) -> None:
    if callable(content):
        content(tmp_path / name)
    elif content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        read_responses(tmp_path / name, 3)


def test_wrong_shapes_of_parameters(tmp_path: Path) -> None:
    for a, b, message in (
        ((1, 2, 2), (1, 2, 2), r"A: expected \(1, dimensions, 3 or more\), got .* \(1, 2, 2\)"),
        ((1, 2, 3), (1, 3, 3), r"B: expected \(1, 2, 3\) or \(1, 1, 3\), got shape \(1, 3, 3\)"),
    ):
        np.savez(tmp_path / "items.npz", A=np.ones(a), B=np.ones(b))
        with pytest.raises(ConfigurationError, match=message):
            read_items(tmp_path / "items.npz", 3)
