"""Candidates one by one: each is bred as soon as the one some numbers before it is told."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from evomerge.records import CandidateId, Evaluation, Genome


class SteadyBreeder(Protocol):
    """What a steady-state searcher does itself."""

    def first(self, count: int) -> list[Genome]:
        """At least so many genomes to begin with."""
        ...

    def child(self, elsewhere: Sequence[Genome]) -> Genome:
        """The next genome; different from those that are outstanding."""
        ...

    def join(self, evaluation: Evaluation) -> None:
        """Take in a candidate."""
        ...

    def relearn(self, evaluations: list[Evaluation]) -> None:
        """Take in new scores of candidates of before."""
        ...


class Stream:
    """Turns calls of any size into a stream in which number i + lag is bred when i is told.

    So a genome depends on the candidates that far before it alone, and not on how calls are cut
    into batches. Nobody waits as long as at most `lag` candidates are outstanding.
    """

    def __init__(self, breeder: SteadyBreeder, lag: int) -> None:
        self._breeder = breeder
        self._first = deque(breeder.first(lag))
        self._ready: deque[Genome] = deque(self._first.popleft() for _ in range(lag))
        self._outstanding: deque[Genome] = deque()  # asked for and not told, oldest first
        self._told: set[CandidateId] = set()

    def ask(self, count: int) -> list[Genome]:
        """At most `count` genomes; empty while those before them have to be told."""
        asked = [self._ready.popleft() for _ in range(min(max(count, 0), len(self._ready)))]
        self._outstanding.extend(asked)
        return list(asked)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Take in evaluations in the order of their ids; references (ids below 0) are ignored.

        Raises:
            ValueError: more candidates are told than were asked for; then nothing is taken in.
        """
        own = sorted((e for e in evaluations if e.id >= 0), key=lambda e: e.id)
        new = {e.id for e in own} - self._told
        if len(new) > len(self._outstanding):
            raise ValueError(
                f"told {len(new)} new candidates where {len(self._outstanding)} that were asked "
                f"for are outstanding: ids {sorted(new)}"
            )
        for evaluation in own:
            if evaluation.id in self._told:
                self._breeder.relearn([evaluation])
                continue
            self._told.add(evaluation.id)
            self._outstanding.popleft()
            self._breeder.join(evaluation)
            self._ready.append(self._first.popleft() if self._first else self._child())

    def _child(self) -> Genome:
        return self._breeder.child([*self._outstanding, *self._ready])
