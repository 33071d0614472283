"""What "best" means with several objectives, against brute force."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.fitness.select import Select
from evomerge.pareto import knee, non_dominated
from evomerge.records import Estimate

Row = tuple[float, float]


def rows(points: Sequence[Row]) -> list[dict[str, Estimate]]:
    return [{n: Estimate(v, 0.1, 9) for n, v in zip("ab", p, strict=True)} for p in points]


points = st.lists(st.tuples(*[st.integers(0, 8).map(lambda n: n / 8)] * 2), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(points, st.tuples(st.integers(0, 5), st.integers(1, 5)))
def test_weights_take_the_largest_weighted_mean_and_ties_the_first(
    chosen: list[Row], weights: tuple[int, int]
) -> None:
    order = Select(weights={"a": weights[0], "b": weights[1]}).order(rows(chosen))
    total = sum(weights)
    scalars = [(weights[0] * a + weights[1] * b) / total for a, b in chosen]
    assert sorted(order) == list(range(len(chosen)))
    assert order == sorted(range(len(chosen)), key=lambda i: -scalars[i])


def test_without_weights_all_objectives_count_alike() -> None:
    assert Select().order(rows([(0.9, 0.0), (0.5, 0.5), (0.0, 0.95)])) == [1, 2, 0]


@settings(max_examples=80, deadline=None)
@given(points, st.integers(0, 8).map(lambda n: n / 8))
def test_a_bound_comes_before_the_mean(chosen: list[Row], bound: float) -> None:
    first = Select(at_least={"b": bound}).order(rows(chosen))[0]
    reaching = [p for p in chosen if p[1] >= bound]
    if reaching:
        assert chosen[first] in reaching
        assert sum(chosen[first]) == max(map(sum, reaching))
    else:
        assert chosen[first][1] == max(b for _, b in chosen)


@settings(max_examples=80, deadline=None)
@given(points)
def test_the_knee_is_the_fronts(chosen: list[Row]) -> None:
    order = Select("knee").order(rows(chosen))
    assert sorted(order) == list(range(len(chosen)))
    front = np.flatnonzero(non_dominated(chosen))
    if len(front) > 2:
        assert order[0] == front[knee(np.array(chosen)[front])]


def test_a_knee_by_eye() -> None:
    assert Select("knee").order(rows([(1, 0), (0.9, 0.9), (0, 1), (0.8, 0.8)]))[0] == 1


def priced(accuracy: float, size: float) -> dict[str, Estimate]:
    return {"accuracy": Estimate(accuracy, 0.01, 10), "size": Estimate(-size, 0.0, 0)}


def test_a_cost_counts_for_a_tie_alone_unless_it_is_weighed() -> None:
    rows = [priced(0.5, 9e6), priced(0.5, 7e6), priced(0.6, 7.5e6), priced(0.4, 1e6)]
    assert Select().order(rows) == [2, 1, 0, 3]
    assert Select(weights={"accuracy": 1, "size": 1e-7}).order(rows) == [3, 2, 1, 0]


def test_a_bound_on_a_cost_lacks_in_shares_of_it() -> None:
    """Otherwise a parameter too many would outweigh any lack of accuracy."""
    rows = [priced(0.9, 8e6), priced(0.5, 4e6), priced(0.8, 4.4e6)]
    assert Select(at_least={"size": -4.2e6}).order(rows) == [1, 2, 0]
    assert Select(at_least={"size": -4.2e6, "accuracy": 0.7}).order(rows) == [2, 1, 0]


def test_the_knee_does_not_hang_on_a_costs_unit() -> None:
    points = [(0.0, 1.0), (0.55, 2.0), (0.8, 3.0), (0.9, 4.0), (1.0, 9.0)]
    orders = [
        Select("knee").order([priced(a, unit * c) for a, c in points])[0] for unit in (1.0, 1e9)
    ]
    assert orders[0] == orders[1] == 2
