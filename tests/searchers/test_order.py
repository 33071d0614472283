"""The total order against pairs whose order the design fixes, and against a brute-force sort."""

from __future__ import annotations

import functools
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from searcher_calls import evaluation

from evomerge.records import Estimate, Evaluation, Failure, Score
from evomerge.searchers.order import is_scored, total_order


def test_a_candidate_dropped_at_a_rung_is_below_every_survivor_of_it() -> None:
    lucky_but_dropped = evaluation(0, [0.5], [0.99], rung=0)
    finalist = evaluation(1, [0.5], [0.10], rung=2)
    dropped_later = evaluation(2, [0.5], [0.95], rung=1)
    violating = evaluation(3, [0.5], [1.0], rung=2, violation=0.5)
    failed = evaluation(4, [0.5], None)
    impossible = evaluation(5, [0.5], None, violation=2.0)
    mixed = [impossible, violating, lucky_but_dropped, failed, finalist, dropped_later]
    assert [mixed[i].id for i in total_order(mixed)] == [1, 2, 0, 3, 4, 5]


def test_a_score_that_is_not_finite_or_comes_with_a_failure_is_none() -> None:
    assert is_scored(evaluation(0, [0.5], [0.0]))
    assert not is_scored(evaluation(0, [0.5], None))
    assert not is_scored(evaluation(0, [0.5], [0.3, math.nan]))
    score = Score({"f0": Estimate(0.9, 0.0, 10)})
    assert not is_scored(Evaluation(0, [0.5], score, Failure("non_finite", "made up")))


coarse = st.sampled_from([0.0, 0.5, 1.0, math.nan, -math.inf])


@st.composite
def evaluations(draw: st.DrawFn) -> list[Evaluation]:
    ids = draw(st.lists(st.integers(0, 40), unique=True, max_size=12))
    return [
        evaluation(
            i,
            [0.5],
            draw(st.none() | st.tuples(coarse)),
            rung=draw(st.integers(0, 2)),
            violation=draw(coarse),
        )
        for i in ids
    ]


@given(evaluations())
def test_it_is_the_lexicographic_order(some: list[Evaluation]) -> None:
    def better(a: Evaluation, b: Evaluation) -> int:
        def steps(e: Evaluation) -> list[Any]:
            scored = e.score is not None and math.isfinite(e.score.values[0])
            violation = e.violation if math.isfinite(e.violation) else math.inf
            worth = [-e.score.rung, -e.score.values[0]] if scored and e.score else [0, 0]
            return [not scored, violation, *worth, e.id]

        for left, right in zip(steps(a), steps(b), strict=True):
            if left != right:
                return -1 if left < right else 1
        return 0

    expected = sorted(some, key=functools.cmp_to_key(better))
    assert [some[i] for i in total_order(some)] == expected
