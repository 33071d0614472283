"""Generations, handed out piece by piece and gathered whole.

CMA-ES and NSGA-II learn from a whole generation at once, whereas a run asks for as many candidates
as suit it, and tells them as they are done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evomerge.records import CandidateId, Evaluation, Genome


class Breeder(Protocol):
    """What a generational searcher does itself."""

    def breed(self) -> list[Genome]:
        """The next whole generation; an empty list ends the search."""
        ...

    def learn(self, generation: list[Evaluation]) -> None:
        """Take in a whole generation, in the order in which it was bred."""
        ...

    def relearn(self, evaluations: list[Evaluation]) -> None:
        """Take in new scores of candidates of earlier generations."""
        ...


class Generations:
    """Turns calls of any size into whole generations.

    While a generation is handed out but not completely told, `ask` returns an empty list. New ids
    belong to the current generation, in ascending order, which is the order of asking; so a run can
    go on from recorded genomes that are not the ones that were bred.
    """

    def __init__(self, breeder: Breeder) -> None:
        self._breeder = breeder
        self._genomes: list[Genome] = []  # the current generation
        self._handed_out = 0
        self._told: dict[CandidateId, Evaluation] = {}
        self._finished: set[CandidateId] = set()  # ids of earlier generations

    def ask(self, count: int) -> list[Genome]:
        """At most `count` genomes of the current generation, or of the next one."""
        if count <= 0:
            return []
        if not self._genomes:
            self._genomes = self._breeder.breed()
        piece = self._genomes[self._handed_out : self._handed_out + count]
        self._handed_out += len(piece)
        return list(piece)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Gather evaluations; references (ids below 0) are not the searcher's and are ignored.

        Raises:
            ValueError: more candidates are told than were asked for; then nothing is taken in.
        """
        own = [evaluation for evaluation in evaluations if evaluation.id >= 0]
        told = self._told | {e.id: e for e in own if e.id not in self._finished}
        if len(told) > self._handed_out:
            raise ValueError(
                f"told {len(told)} candidates of a generation of which "
                f"{self._handed_out} were asked for: ids {sorted(told)}"
            )
        self._told = told
        if again := [evaluation for evaluation in own if evaluation.id in self._finished]:
            self._breeder.relearn(again)
        if self._genomes and len(told) == len(self._genomes):
            self._genomes, self._handed_out, self._told = [], 0, {}
            self._finished.update(told)
            self._breeder.learn([told[candidate] for candidate in sorted(told)])


def read_designs(
    designs: Sequence[Genome], num_genes: int, *, unique: bool = True
) -> NDArray[np.float64]:
    """The designs in the cube, in order, each once if `unique`; shape (designs, num_genes).

    Raises:
        ValueError: a design has another length than the space, or a value that is not finite.
    """
    known: list[tuple[float, ...]] = []
    for design in designs:
        values = np.asarray(design, dtype=np.float64)
        if values.shape != (num_genes,) or not np.isfinite(values).all():
            raise ValueError(f"designs: expected {num_genes} finite values, got {design!r}")
        known.append(tuple(np.clip(values, 0.0, 1.0).tolist()))
    kept = list(dict.fromkeys(known)) if unique else known
    return np.array(kept, dtype=np.float64).reshape(-1, num_genes)
