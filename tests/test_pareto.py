"""Dominance, hypervolume and knee against brute force, geometry and moocore."""

from __future__ import annotations

import itertools
from typing import Any

import moocore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evomerge.pareto import BLOCK, best, best_first, front_ranks, hypervolume, knee, non_dominated
from evomerge.records import Estimate, Evaluation, Score

# Few different coordinates, so that equal points and ties in one objective are common.
grids = st.integers(1, 4).flatmap(
    lambda m: st.lists(st.lists(st.integers(0, 4), min_size=m, max_size=m), min_size=1, max_size=12)
)


def dominates(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return bool((a >= b).all() and (a > b).any())


@given(grids)
def test_non_dominated_is_what_nobody_dominates(points: list[list[int]]) -> None:
    values = np.array(points, float)
    expected = [not any(dominates(b, a) for b in values) for a in values]
    assert non_dominated(values).tolist() == expected
    oracle = moocore.is_nondominated(values, maximise=True, keep_weakly=True)
    assert np.array_equal(non_dominated(values), oracle)


def test_more_points_than_are_compared_at_once() -> None:
    points = np.random.default_rng(0).integers(0, 60, (3 * BLOCK, 3))
    better = (points[:, None] >= points).all(axis=2) & (points[:, None] > points).any(axis=2)
    assert non_dominated(points).tolist() == (~better.any(axis=0)).tolist()
    sphere = np.abs(np.random.default_rng(1).normal(size=(2 * BLOCK + 5, 2)))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    assert non_dominated(sphere).all()
    assert non_dominated(np.vstack([sphere, 0.9 * sphere])).sum() == len(sphere)


def test_a_nan_is_never_in_the_front_and_pushes_nobody_out() -> None:
    values = [[np.nan, 9.0], [1.0, 2.0], [9.0, np.nan], [2.0, 1.0], [1.0, 1.0]]
    assert non_dominated(values).tolist() == [False, True, False, True, False]
    assert non_dominated(np.empty((0, 2))).tolist() == []


@settings(max_examples=50, deadline=None)
@given(grids)
def test_hypervolume_counts_the_unit_cells_below_the_points(points: list[list[int]]) -> None:
    values = np.array(points, float)
    num_objectives = values.shape[1]
    cells = itertools.product(range(4), repeat=num_objectives)
    covered = sum((values >= np.array(cell) + 1).all(axis=1).any() for cell in cells)
    assert hypervolume(values, np.zeros(num_objectives)) == pytest.approx(covered, abs=1e-9)


@pytest.mark.parametrize("enough", [None, 0, 1, 13, 40, 99])
def test_fronts_are_pymoos_until_enough_are_on_one(enough: int | None) -> None:
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    points = np.random.default_rng(3).integers(0, 9, (40, 3)).astype(float)
    _, expected = NonDominatedSorting().do(-points, return_rank=True)
    found = front_ranks(points, enough)
    ranked = found < len(points)
    assert (found[ranked] == expected[ranked]).all()
    count = 40 if enough is None else min(enough, 40)
    last = np.sort(expected)[count - 1] if count else -1
    assert ranked.tolist() == (expected <= last).tolist()


def test_hypervolume_agrees_with_moocore_away_from_the_grid() -> None:
    generator = np.random.default_rng(0)
    for num_objectives in (2, 3, 4):
        values = generator.normal(size=(60, num_objectives))
        oracle = moocore.hypervolume(values, ref=np.full(num_objectives, -0.5), maximise=True)
        assert hypervolume(values, np.full(num_objectives, -0.5)) == pytest.approx(oracle)


def test_hypervolume_of_nothing_better_than_the_reference_is_zero() -> None:
    assert hypervolume([[0.0, 5.0], [np.nan, 9.0]], [0.0, 0.0]) == 0.0
    assert hypervolume(np.empty((0, 3)), [0.0, 0.0, 0.0]) == 0.0
    with pytest.raises(ValueError, match=r"expected shape \(2,\), got \(3,\)"):
        hypervolume([[1.0, 2.0]], [0.0, 0.0, 0.0])


def test_the_knee_of_a_quarter_circle_is_at_45_degrees() -> None:
    angles = np.linspace(0, np.pi / 2, 91)
    circle = np.column_stack([np.cos(angles), np.sin(angles)])
    assert knee(circle) == 45
    # Its scale, its origin and what is dominated do not matter.
    assert knee(np.vstack([circle * [1000, 0.01] + [-3, 70], [[-1e9, -1e9]]])) == 45


def test_the_knee_of_a_sphere_s_octant_is_in_its_middle() -> None:
    grid = np.linspace(0, 1, 9)
    raw = np.array([x for x in itertools.product(grid, repeat=3) if sum(x) > 0])
    sphere = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    found = sphere[knee(sphere)]
    assert found == pytest.approx(np.full(3, 3**-0.5))


def test_three_objectives_whose_extremes_are_no_unit_points() -> None:
    extremes = np.array([[1.0, 0.6, 0.0], [0.0, 1.0, 0.1], [0.1, 0.0, 1.0]])
    between = np.array([[0.55, 0.72, 0.55], [0.82, 0.35, 0.65], [0.3, 0.75, 0.7]])
    values = np.vstack([extremes, between])
    assert non_dominated(values).all()
    normal = np.cross(extremes[1] - extremes[0], extremes[2] - extremes[0])
    bulges = (values - extremes[0]) @ (normal * np.sign(normal.sum()))
    assert knee(values) == np.argmax(bulges) != np.argmax(values.sum(axis=1))


@given(
    st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_two_objectives_against_the_distance_from_a_line(
    points: list[tuple[int, int]], shuffler: Any
) -> None:
    values = np.array(points, float)
    front = np.unique(values[non_dominated(values)], axis=0)
    (x0, y0), (x1, y1) = front[0], front[-1]  # the ends: ascending in x
    bulges = [(x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) for x, y in front]
    best = front[np.isclose(bulges, max(bulges))]
    assert (values[knee(values)] == best).all(axis=1).any()
    shuffler.shuffle(points)
    again = np.array(points, float)
    assert (again[knee(again)] == best).all(axis=1).any()


def test_the_knee_of_degenerate_fronts() -> None:
    assert knee([[1.0, 2.0]]) == 0
    assert knee([[0.0, 0.0], [3.0, 3.0], [3.0, 3.0]]) == 1
    assert knee([[np.nan, 1.0], [0.5, 0.5]]) == 1
    assert knee([[1.0], [4.0], [2.0]]) == 1
    # The third objective does not differ, and the second extreme is the first.
    assert knee([[0.0, 1.0, 5.0], [1.0, 0.0, 5.0], [0.7, 0.7, 5.0]]) == 2
    with pytest.raises(ValueError, match="at least one point"):
        knee(np.empty((0, 2)))
    with pytest.raises(ValueError, match="expected shape"):
        knee([1.0, 2.0])


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(0, 3), min_size=2, max_size=2)),
        min_size=1,
        max_size=30,
    )
)
def test_the_best_is_the_first_of_all(rows):
    """`best_first` ranks whole fronts; the short cut must find the same head."""
    evaluations = [
        Evaluation(
            number,
            [],
            Score({str(k): Estimate(v / 3, 0.0, 1) for k, v in enumerate(values)}, rung),
        )
        for number, (rung, values) in enumerate(rows)
    ]
    assert best(evaluations) == best_first(evaluations)[0]
    assert best([]) is None


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), max_size=12))
def test_costs_decide_between_equal_means_alone(rows: list[tuple[int, int, int]]) -> None:
    """By brute force: front, then accuracy, then age; `best` is the first of all."""
    told = [
        Evaluation(
            i, None, Score({"a": Estimate(a / 3, 0.1, 5), "c": Estimate(-1e6 * c, 0.0, 0)}, rung)
        )
        for i, (a, c, rung) in enumerate(rows)
    ]

    def dominated(i: int, living: set[int]) -> bool:
        a, c, _ = rows[i]
        return any(
            rows[j][0] >= a and rows[j][1] <= c and rows[j][:2] != (a, c) for j in living - {i}
        )

    expected: list[int] = []
    for rung in (2, 1, 0):
        living = {i for i, row in enumerate(rows) if row[2] == rung}
        while living:
            front = [i for i in living if not dominated(i, living)]
            expected += sorted(front, key=lambda i: (-rows[i][0], i))
            living -= set(front)
    assert [e.id for e in best_first(told)] == expected
    found = best(told)
    assert (None if found is None else found.id) == (expected[0] if expected else None)
