"""The lag of what is known, against its definition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searcher_calls import evaluation

from evomerge.records import Evaluation, Genome
from evomerge.searchers.window import Window


class Watcher:
    """A proposer that writes down what it was given."""

    def __init__(self) -> None:
        self.known: list[Evaluation] = []
        self.seen: list[tuple[list[int], list[Genome]]] = []

    def learn(self, known: Sequence[Evaluation]) -> None:
        self.known = list(known)

    def propose(self, number: int, waiting: Sequence[Genome]) -> Genome:
        assert number == len(self.seen)
        self.seen.append(([e.id for e in self.known], list(waiting)))
        return [float(number)]


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(0, 3), sizes, sizes)
def test_a_candidate_knows_the_blocks_before_the_window_whatever_the_cuts(
    population: int, ahead: int, asks: list[int], tells: list[int]
) -> None:
    watcher = Watcher()
    window = Window(watcher, population, ahead)
    asked = told = 0
    for turn in range(20):
        genomes = window.ask(asks[turn % len(asks)])
        assert genomes == [[float(asked + i)] for i in range(len(genomes))]
        asked += len(genomes)
        stop = min(told + tells[turn % len(tells)], asked)
        window.tell([evaluation(i, [float(i)], [0.0]) for i in range(told, stop)])
        told = stop
    assert asked > 0
    for number, (known, waiting) in enumerate(watcher.seen):
        first_open = max(number // population - ahead, 0) * population
        assert known == list(range(first_open))
        assert waiting == [[float(i)] for i in range(first_open, number)]


def test_it_asks_for_no_more_than_the_window_and_goes_on_when_a_block_is_whole() -> None:
    window = Window(Watcher(), population=3, ahead=1)
    assert len(window.ask(100)) == 6
    window.tell([evaluation(i, [0.0], [0.0]) for i in (0, 2)])
    assert window.ask(100) == []
    window.tell([evaluation(1, [0.0], [0.0])])
    assert len(window.ask(2)) == 2
    assert len(window.ask(100)) == 1


def test_what_is_told_again_replaces_what_is_known() -> None:
    watcher = Watcher()
    window = Window(watcher, population=1, ahead=0)
    for value in (1.0, 2.0):
        window.ask(1)
        window.tell([evaluation(0, [0.0], [value])])
        if value == 1.0:
            continue
        window.tell([evaluation(1, [1.0], [0.0]), evaluation(0, [0.5], [7.0])])
    window.ask(1)
    assert [(e.genome, e.score and e.score.values) for e in watcher.known] == [
        ([0.5], (7.0,)),
        ([1.0], (0.0,)),
    ]


def test_references_are_ignored_and_what_was_never_asked_for_is_refused() -> None:
    window = Window(Watcher(), population=2, ahead=0)
    window.tell([evaluation(-1, [0.0], [0.0])])
    with pytest.raises(ValueError, match=r"told candidates \[0\] when 0 were asked for"):
        window.tell([evaluation(0, [0.0], [0.0])])
    assert np.array_equal(window.ask(1), [[0.0]])
