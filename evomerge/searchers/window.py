"""Candidates one at a time, a fixed number of populations ahead of what is told.

Model-based searchers propose a candidate from all that is known. A run asks and tells in pieces of
any size, and asks ahead so that its workers are busy; so what may be known is fixed by counting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from evomerge.records import CandidateId, Evaluation, Genome
from evomerge.searchers.first_points import foreign


class Proposer(Protocol):
    """What a model-based searcher does itself: a function of these arguments and nothing else."""

    def learn(self, known: Sequence[Evaluation]) -> None:
        """Forget all else, and know what is told of the first candidates, in their order."""
        ...

    def propose(self, number: int, waiting: Sequence[Genome]) -> Genome:
        """The next candidate.

        number: of candidates asked for before.
        waiting: those of them that are not known, and count as outstanding.
        """
        ...


class Window:
    """Turns calls of any size into candidates with a fixed lag.

    Candidates come in blocks of `population`. Those of block b are proposed when all of the blocks
    up to b - 1 - `ahead` are told, from exactly these; the others count as outstanding, even where
    they are told by then. So how calls are cut changes nothing, and with `ahead` 0 a block is a
    generation. Ids are numbers in the order of asking, from 0.
    """

    def __init__(self, proposer: Proposer, population: int, ahead: int) -> None:
        self._proposer = proposer
        self._population = population
        self._ahead = ahead
        self._genomes: list[Genome] = []  # all that were asked for
        self._told: dict[CandidateId, Evaluation] = {}
        self._num_told = 0  # up to the first that is not
        self._num_known = 0
        self._is_stale = False  # what is known was told anew

    def ask(self, count: int) -> list[Genome]:
        """At most `count` genomes; fewer where the next block waits for an older one."""
        first = len(self._genomes)
        while len(self._genomes) < first + count:
            number = len(self._genomes)
            num_known = max(number // self._population - self._ahead, 0) * self._population
            if num_known > self._num_told:
                break
            if num_known != self._num_known or self._is_stale:
                self._num_known, self._is_stale = num_known, False
                self._proposer.learn([self._told[i] for i in range(num_known)])
            waiting = self._genomes[num_known:]
            self._genomes.append(self._proposer.propose(number, waiting))
        return [list(genome) for genome in self._genomes[first:]]

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Take in evaluations; references (ids below 0) are not the searcher's and are ignored.

        Raises:
            ValueError: a candidate is told that was never asked for; then nothing is taken in.
        """
        own = {e.id: e for e in evaluations if e.id >= 0}
        if unasked := sorted(id_ for id_ in own if id_ >= len(self._genomes)):
            raise ValueError(
                f"told candidates {unasked} when {len(self._genomes)} were asked for: "
                "ids count from 0"
            )
        self._told.update(own)
        self._is_stale = self._is_stale or any(id_ < self._num_known for id_ in own)
        while self._num_told in self._told:
            self._num_told += 1

    def forget(self) -> None:
        """Let the proposer learn anew before it proposes again."""
        self._is_stale = True


class AskedAhead:
    """What searchers share that learn from all they were told, by a window: `Window` has the order.

    They set `_window`, and `_before`: what another run was told.
    """

    _window: Window
    _before: list[Evaluation]

    def ask(self, count: int) -> list[Genome]:
        """At most `count` genomes; fewer where more has to be told first."""
        return self._window.ask(count)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Remember evaluations."""
        self._window.tell(evaluations)

    def tell_warm_start(self, evaluations: Sequence[Evaluation]) -> None:
        """Other numbers of what another run was told, the same candidates (see scalarised.py)."""
        self._before = foreign(evaluations)
        self._window.forget()

    def recommend(self) -> Genome | None:
        """None: they believe in nothing but their candidates."""
        return None
