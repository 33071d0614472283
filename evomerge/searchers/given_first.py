"""The user's own merges before those of a searcher that would not ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from evomerge.protocols import Searcher
from evomerge.records import Evaluation, Genome


class GivenFirst:
    """Asks for given genomes, then for the searcher's, whose ids begin at 0 as if it were alone.

    What becomes of the given ones the searcher is not told; it knows them from its facts.
    """

    def __init__(self, searcher: Searcher, given: Sequence[Genome]) -> None:
        self._searcher = searcher
        self._given = list(given)
        self._handed_out = 0

    def __getattr__(self, name: str) -> Any:
        """What the searcher is: its population, its needs."""
        return getattr(self._searcher, name)

    def ask(self, count: int) -> list[Genome]:
        """At most `count` genomes: the given ones first."""
        piece = self._given[self._handed_out : self._handed_out + max(count, 0)]
        self._handed_out += len(piece)
        return piece or self._searcher.ask(count)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Pass on what the searcher asked for."""
        first = len(self._given)
        own = [replace(e, id=e.id - first) for e in evaluations if e.id >= first]
        if own:
            self._searcher.tell(own)

    def recommend(self) -> Genome | None:
        """What the searcher believes in."""
        return self._searcher.recommend()
