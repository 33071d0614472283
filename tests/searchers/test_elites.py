"""Archives against brute force: whatever is told, in whatever pieces, twice or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from brute_archive import brute_archive
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.records import Estimate, Evaluation, Failure, Genome, Score
from evomerge.searchers.elites import Archives, Axes, Elites

NAMES = ("f0", "f1", "f2")
CELLS = 4
AXES = (Axes(None, NAMES), Axes("f0", ("f1", "f2")), Axes("f2", ("f0",)))
PLACES = ((None, (0, 1, 2)), (0, (1, 2)), (2, (0,)))

# Eighths, so that values often fall onto borders and are often equal.
values = st.tuples(*[st.integers(-4, 8).map(lambda n: n / 8)] * 3)


def evaluation(
    candidate: int, genome: Genome, row: Any, rung: int = 0, violation: float = 0.0
) -> Evaluation:
    if row is None:
        return Evaluation(candidate, genome, None, Failure("merge", "made up"), violation)
    estimates = {name: Estimate(value, 0.0, 10) for name, value in zip(NAMES, row, strict=True)}
    return Evaluation(candidate, genome, Score(estimates, rung), None, violation)


def archives(ranges: Any = None, warm_start: Any = (), axes: Any = AXES) -> Archives:
    return Archives(axes, NAMES, CELLS, ranges or {}, warm_start)


def cells_of(elites: Elites) -> dict[tuple[int, ...], int]:
    shape = (CELLS,) * elites.behaviours.shape[1]
    places = zip(*np.unravel_index(elites.cells, shape), strict=True)
    return {
        tuple(map(int, place)): int(i) for place, i in zip(places, elites.ids.tolist(), strict=True)
    }


@st.composite
def tells(draw: st.DrawFn) -> list[list[Evaluation]]:
    """Batches of evaluations; some ids come again."""
    count = draw(st.integers(1, 12))
    told = [
        evaluation(
            draw(st.integers(0, 30)),
            [0.5],
            draw(st.none() | values),
            rung=draw(st.sampled_from([0, 0, 0, 1])),
            violation=draw(st.sampled_from([0.0, 0.0, 0.0, 1.0])),
        )
        for _ in range(count)
    ]
    cuts = sorted(draw(st.lists(st.integers(0, count), max_size=3)))
    return [told[a:b] for a, b in zip([0, *cuts], [*cuts, count], strict=True)]


@settings(deadline=None, max_examples=60)
@given(tells(), st.sampled_from([(), ("f1",), NAMES]))
def test_they_are_what_brute_force_makes_of_the_last_tells(
    batches: list[list[Evaluation]], given_ranges: tuple[str, ...]
) -> None:
    made = archives({name: [0.0, 1.0] for name in given_ranges})
    told: dict[int, Evaluation] = {}
    ranges = {NAMES.index(name): (0.0, 1.0) for name in given_ranges}
    for batch in batches:
        made.tell(batch)
        told |= {e.id: e for e in batch}
        for number, (quality, behaviour) in enumerate(PLACES):
            expected = brute_archive(told, quality, behaviour, CELLS, ranges)
            assert cells_of(made[number]) == expected


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(values, max_size=4), max_size=6))
def test_an_elite_is_never_replaced_by_a_worse_one_in_its_cell(rows: Any) -> None:
    made = archives({name: [-0.5, 1.0] for name in NAMES})
    before: list[dict[int, float]] = [{} for _ in AXES]
    first = 0
    for batch in rows:
        made.tell([evaluation(first + i, [0.5], row) for i, row in enumerate(batch)])
        first += len(batch)
        for number, old in enumerate(before):
            elites = made[number]
            now = dict(zip(elites.cells.tolist(), elites.qualities.tolist(), strict=True))
            assert all(now[cell] >= quality for cell, quality in old.items())
            before[number] = now


def test_what_elites_say_of_themselves_is_what_was_told() -> None:
    made = archives()
    made.tell([evaluation(4, [0.1, 0.2], (0.5, 0.25, 1.0)), evaluation(5, [1.2, 0], (0.5, 0, 0))])
    elites = made[1]
    assert elites.ids.tolist() == [5, 4]
    assert elites.genomes.tolist() == [[1.0, 0.0], [0.1, 0.2]]
    assert elites.qualities.tolist() == [0.5, 0.5]
    assert elites.behaviours.tolist() == [[0.0, 0.0], [0.25, 1.0]]
    assert elites.means.tolist() == pytest.approx([0.5 / 3, 1.75 / 3])


def test_a_cost_in_bytes_is_a_behaviour_and_counts_in_no_mean() -> None:
    def told(candidate: int, skill: float, size: float) -> Evaluation:
        estimates = {"f0": Estimate(skill, 0.1, 10), "f1": Estimate(-size, 0.0, 0)}
        return Evaluation(candidate, [0.5], Score(estimates))

    made = Archives([Axes(None, ("f1",))], NAMES[:2], CELLS, {})
    made.tell([told(i, 0.5 + i / 100, 1e9 + i * 1e6) for i in range(8)])
    elites = made[0]
    assert elites.ids.tolist() == [7, 5, 3, 1]
    assert elites.qualities.tolist() == pytest.approx([0.57, 0.55, 0.53, 0.51])


def test_those_of_another_run_are_the_oldest_and_keep_no_rung() -> None:
    theirs = [
        evaluation(0, [0.1], (0.5, 0.0, 0.0), rung=1),
        evaluation(1, [0.2], (0.9, 0.0, 0.0), rung=2),
        evaluation(1, [0.3], (0.6, 0.0, 0.0), rung=2),  # told again
        evaluation(2, [0.4], (0.6, 1.0, 0.0), rung=2),
        evaluation(3, [0.5], None),
        Evaluation(4, [0.6], Score({"f0": Estimate(1.0, 0.0, 1)}, 2)),  # had one objective
    ]
    made = archives({"f1": [0.0, 1.0], "f2": [0.0, 1.0]}, theirs)
    assert made[1].genomes.tolist() == [[0.3], [0.4]]
    assert made[1].ids.tolist() == [-2, -1]
    made.tell([evaluation(0, [0.7], (0.6, 0.0, 0.0)), evaluation(1, [0.8], (0.7, 1.0, 0.0))])
    assert made[1].ids.tolist() == [-2, 1]


def test_nobody_is_in_new_archives() -> None:
    for number in range(len(AXES)):
        assert len(archives()[number]) == 0


def test_who_was_dropped_does_not_enter_with_those_who_were_not() -> None:
    made = archives({name: [0.0, 1.0] for name in NAMES})
    made.tell([evaluation(0, [0.5], (0.1, 0.1, 0.1))])
    made.tell([evaluation(1, [0.5], (0.2, 0.9, 0.9), rung=1), evaluation(2, [0.5], (0.9,) * 3)])
    made.tell([evaluation(3, [0.5], (0.1, 0.1, 0.1), rung=1), evaluation(4, [0.5], (0.9,) * 3)])
    assert made[1].ids.tolist() == [3, 1]
