"""The archive against the paper's formulas, written as loops over exact fractions."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.searchers.niche_archive import NicheArchive

Rows = list[list[Fraction]]


def niche(rows: Rows, alpha: int) -> tuple[list[Fraction], list[Fraction]]:
    """What an item is worth, and f: with z the sums, c the best scores; nothing where z is 0."""
    num_items = len(rows[0])
    worth = []
    for j in range(num_items):
        z = sum(row[j] for row in rows)
        worth.append(max(row[j] for row in rows) / z**alpha if z else Fraction(0))
    return worth, [
        sum((s * w for s, w in zip(row, worth, strict=True)), Fraction(0)) for row in rows
    ]


class ByHand:
    """An archive of rows that begin as zeros; who lives in a row, by number."""

    def __init__(self, size: int, alpha: int, num_items: int) -> None:
        self.alpha = alpha
        self.rows: Rows = [[Fraction(0)] * num_items for _ in range(size)]
        self.members: list[int | None] = [None] * size

    def insert(self, member: int, scores: list[Fraction]) -> list[int]:
        """Rows that may go, the newcomer's last: all that are within rounding of the worst."""
        _, fitness = niche([*self.rows, scores], self.alpha)
        least = min(fitness)
        return [i for i, f in enumerate(fitness) if f - least <= Fraction(1, 10**9)]

    def put(self, row: int, member: int, scores: list[Fraction]) -> None:
        if row < len(self.rows):
            self.rows[row], self.members[row] = scores, member

    def second(self, first: int) -> list[Fraction]:
        """How likely each row is to be the second parent, up to a factor."""
        worth, _ = niche(self.rows, self.alpha)
        return [
            sum(
                (
                    w * max(a - b, Fraction(0))
                    for w, a, b in zip(worth, row, self.rows[first], strict=True)
                ),
                Fraction(0),
            )
            for row in self.rows
        ]


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, list[list[Fraction]]]:
    """Size, alpha, and scores to insert one after the other; rows of zeros and twins among them."""
    num_items = draw(st.integers(1, 5))
    values = draw(
        st.sampled_from([[0, 1], [0, Fraction(1, 4), Fraction(1, 2), 1], [0, 3, Fraction(1, 8)]])
    )
    row = st.lists(st.sampled_from(values).map(Fraction), min_size=num_items, max_size=num_items)
    rows = draw(st.lists(row, min_size=1, max_size=12))
    return draw(st.integers(1, 5)), draw(st.sampled_from([0, 1, 2])), rows


@settings(max_examples=200, deadline=None)
@given(histories(), st.integers(0, 2**32))
def test_who_leaves_and_who_breeds_is_as_by_hand(history: Any, seed: int) -> None:
    size, alpha, rows = history
    archive: NicheArchive[int] = NicheArchive(size, float(alpha))
    by_hand = ByHand(size, alpha, len(rows[0]))
    for member, scores in enumerate(rows):
        before = list(by_hand.members)
        worst = by_hand.insert(member, scores)
        left = archive.insert(member, [float(s) for s in scores])
        row = before.index(left) if left in before and left is not None else None
        if left == member:
            row = size
        elif left is None:
            row = archive._rows.index(member)
            assert before[row] is None
        assert row in worst
        assert row == min(worst)  # of equal ones the first
        by_hand.put(row, member, scores)
        assert archive.members == tuple(m for m in by_hand.members if m is not None)
        _, fitness = niche(by_hand.rows, alpha)
        for found, f in archive.fitness().items():
            assert found in by_hand.members
            assert np.isclose(f, float(fitness[by_hand.members.index(found)]), atol=1e-12)
    check_parents(archive, by_hand, seed)


def check_parents(archive: NicheArchive[int], by_hand: ByHand, seed: int) -> None:
    """The drawn ones are those that the lots fall on."""
    _, fitness = niche(by_hand.rows, by_hand.alpha)
    alive = [m is not None for m in by_hand.members]
    lots = np.random.default_rng(seed).random(2)

    def drawn(weights: list[Fraction], allowed: list[bool], lot: float) -> set[int]:
        weights = [w if a else Fraction(0) for w, a in zip(weights, allowed, strict=True)]
        if not sum(weights):
            weights = [Fraction(a) for a in allowed]
        found, start = set(), Fraction(0)
        for i, weight in enumerate(weights):
            low, high = float(start / sum(weights)), float((start + weight) / sum(weights))
            if weight and low - 1e-9 <= lot <= high + 1e-9:
                found.add(i)
            start += weight
        return found

    for attraction in (True, False):
        first, second = archive.parents(np.random.default_rng(seed), attraction)
        row = by_hand.members.index(first)
        assert row in drawn(fitness, alive, lots[0])
        if not attraction:
            expected = drawn(fitness, alive, lots[1])
        elif sum(by_hand.second(row)):
            expected = drawn(by_hand.second(row), alive, lots[1])
        else:  # nobody can do what the first cannot
            others = [a and i != row for i, a in enumerate(alive)]
            expected = drawn(fitness, others, lots[1]) if any(others) else {row}
        assert by_hand.members.index(second) in expected


def test_the_papers_own_quantities_for_right_and_wrong_answers() -> None:
    """c_j = 1: an item that two can answer gives half a point to each."""
    archive: NicheArchive[str] = NicheArchive(3)
    archive.insert("both", [1, 1, 0, 0])
    archive.insert("first", [1, 0, 0, 0])
    archive.insert("third", [0, 0, 1, 0])
    assert archive.fitness() == {"both": 1.5, "first": 0.5, "third": 1.0}
    # A newcomer that knows what all know leaves the one that only shares: 1/3 + ... of the first.
    assert archive.insert("fourth", [0, 0, 0, 1]) == "first"


def test_where_nothing_is_shared_the_mean_decides_and_otherwise_what_is_rare() -> None:
    for alpha, out in ((0.0, "rare"), (1.0, "again")):
        archive: NicheArchive[str] = NicheArchive(3, alpha)
        archive.insert("many", [1, 1, 1, 0])
        archive.insert("as many", [1, 1, 1, 0])
        archive.insert("rare", [0, 0, 0, 1])
        assert archive.insert("again", [1, 1, 0, 0]) == out  # 2 against 1, or 2/3 against 1


def test_draws_are_as_likely_as_the_formulas_say() -> None:
    archive: NicheArchive[str] = NicheArchive(3)
    archive.insert("a", [1, 1, 0, 0, 0])
    archive.insert("b", [0, 0, 1, 0, 0])
    archive.insert("c", [0, 0, 1, 1, 1])  # f: 2, 1/2, 5/2
    generator = np.random.default_rng(0)
    pairs = [archive.parents(generator) for _ in range(20_000)]
    firsts = [np.mean([first == name for first, _ in pairs]) for name in "abc"]
    assert np.allclose(firsts, [0.4, 0.1, 0.5], atol=0.015)
    # After a: b gains 1/2, c gains 5/2. After b: a 2, c 2. After c: a alone.
    for first, likely in (("a", [0, 1 / 6, 5 / 6]), ("b", [0.5, 0, 0.5]), ("c", [1, 0, 0])):
        seconds = [second for one, second in pairs if one == first]
        found = [np.mean([second == name for second in seconds]) for name in "abc"]
        assert np.allclose(found, likely, atol=0.03)
    plain = [archive.parents(generator, attraction=False) for _ in range(20_000)]
    twice = np.mean([first == second for first, second in plain])
    assert abs(twice - (0.4**2 + 0.1**2 + 0.5**2)) < 0.015  # with replacement


def test_negative_scores_count_from_the_worst_member_up() -> None:
    """Log-likelihoods: shifted by any constant, an item means the same, unless it is above 0."""
    generator = np.random.default_rng(1)
    rows = generator.random((9, 6))
    archives = [NicheArchive[int](4), NicheArchive[int](4)]
    for member, row in enumerate(rows):
        left = [
            a.insert(member, row - shift) for a, shift in zip(archives, (3.0, 50.0), strict=True)
        ]
        assert left[0] == left[1]
        found = [list(archive.fitness().values()) for archive in archives]
        assert np.allclose(*found)
    shown = np.array([archives[0].scores(member) for member in archives[0].members])
    points = shown - shown.min(axis=0)
    f = (points * points.max(axis=0) / points.sum(axis=0)).sum(axis=1)
    assert np.allclose(list(archives[0].fitness().values()), f)


def test_the_dead_and_the_rescored() -> None:
    archive: NicheArchive[str] = NicheArchive(2)
    archive.insert("a", [1, 0])
    archive.insert("b", [0, 1])
    archive.replace("b", [0, 0])
    assert archive.fitness() == {"a": 1.0, "b": 0.0}
    archive.remove("a")
    assert archive.members == ("b",)
    assert "a" not in archive
    assert archive.parents(np.random.default_rng(0)) == ("b", "b")
    archive.remove("b")
    assert len(archive) == 0
    with pytest.raises(ValueError, match="no parents"):
        archive.parents(np.random.default_rng(0))
    assert archive.insert("c", [0, 0]) is None  # a row is free


def test_what_cannot_be_inserted_changes_nothing() -> None:
    archive: NicheArchive[str] = NicheArchive(2)
    archive.insert("a", [1, 0])
    for scores in ([1, 0, 1], [1, float("nan")], [[1, 0]]):
        with pytest.raises(ValueError, match="expected 2 finite scores"):
            archive.insert("b", scores)
    with pytest.raises(ValueError, match="already"):
        archive.insert("a", [1, 0])
    assert archive.fitness() == {"a": 1.0}


def test_another_process_with_other_threads_decides_the_same() -> None:
    code = (
        "import numpy as np; from evomerge.searchers.niche_archive import NicheArchive; "
        "g = np.random.default_rng(0); a = NicheArchive(15); "
        "print([a.insert(i, g.random(1437)) for i in range(60)], a.parents(g), a.fitness())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"OPENBLAS_NUM_THREADS": threads, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(said) == 1
