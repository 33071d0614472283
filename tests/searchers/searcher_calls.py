"""Drives a searcher, records its calls, and makes them again; a script too, for a new process."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.genes import Real
from evomerge.protocols import Searcher
from evomerge.records import Estimate, Evaluation, Facts, Failure, Genome, Score
from evomerge.searchers import make_searcher


@dataclass(frozen=True)
class Cube:
    """A search space of which a searcher may only see the genes."""

    num_genes: int

    @property
    def genes(self) -> tuple[Real, ...]:
        return tuple(Real(f"g{i}", -1.0, 1.0) for i in range(self.num_genes))

    def sample(self, generator: np.random.Generator) -> Genome:
        return generator.random(self.num_genes).tolist()


def evaluation(
    candidate: int,
    genome: Genome,
    values: Sequence[float] | None,
    *,
    rung: int = 0,
    violation: float = 0.0,
) -> Evaluation:
    """An evaluation with these values, or a failure."""
    if values is None:
        return Evaluation(candidate, genome, None, Failure("merge", "made up"), violation)
    estimates = {f"f{i}": Estimate(value, 0.01, 10) for i, value in enumerate(values)}
    return Evaluation(candidate, genome, Score(estimates, rung), None, violation)


def bowls(genome: Genome, num_objectives: int) -> list[float]:
    """Maximised; every objective has its optimum elsewhere in the cube."""
    x = np.asarray(genome)
    return [
        -float(((x - (k + 1) / (num_objectives + 2)) ** 2).sum()) for k in range(num_objectives)
    ]


def sometimes_failing(genome: Genome, num_objectives: int) -> list[float] | None:
    """Bowls; about a quarter of the genomes fails, decided by their digits."""
    if int(sum(genome) * 1e6) % 4 == 0:
        return None
    return bowls(genome, num_objectives)


Measure = Callable[[Genome, int], "list[float] | None"]


@dataclass
class Setting:
    """How a searcher was made."""

    kind: str
    num_genes: int
    seed: int = 0
    num_objectives: int = 1
    designs: tuple[Genome, ...] = ()
    options: dict[str, Any] | None = None

    def make(self) -> Searcher:
        objectives = tuple(f"f{i}" for i in range(self.num_objectives))
        facts = Facts(designs=self.designs, objectives=objectives)
        cube: Any = Cube(self.num_genes)
        return make_searcher(self.kind, cube, self.seed, facts, self.options or {})


def drive(
    searcher: Searcher,
    num_candidates: int,
    ask_counts: Iterator[int],
    tell_counts: Iterator[int],
    num_objectives: int = 1,
    measure: Measure = sometimes_failing,
) -> list[list[Any]]:
    """Ask and tell in pieces until so many candidates are told; every call with its content."""
    calls: list[list[Any]] = []
    waiting: list[Evaluation] = []
    num_asked = 0
    while num_asked < num_candidates or waiting:
        genomes: list[Genome] = []
        if num_asked < num_candidates:
            genomes = searcher.ask(count := next(ask_counts))
            calls.append(["ask", count, genomes])
        for genome in genomes:
            waiting.append(evaluation(num_asked, genome, measure(genome, num_objectives)))
            num_asked += 1
        if not genomes and not waiting:
            break  # finished
        size = next(tell_counts) if genomes else len(waiting)
        told, waiting = waiting[:size], waiting[size:]
        searcher.tell(told)
        calls.append(["tell", [[e.id, e.genome, e.score and e.score.values] for e in told]])
    return calls


def asked(calls: list[list[Any]]) -> list[Genome]:
    """All genomes of recorded calls, in order."""
    return [genome for call in calls if call[0] == "ask" for genome in call[2]]


def replay(searcher: Searcher, calls: list[list[Any]]) -> list[Genome]:
    """Make recorded calls again; the genomes that are asked for this time."""
    genomes: list[Genome] = []
    for call in calls:
        if call[0] == "ask":
            genomes += searcher.ask(call[1])
        else:
            searcher.tell([evaluation(*told) for told in call[1]])
    return genomes


def in_cube(genome: Genome, num_genes: int) -> bool:
    """A list of num_genes finite Python floats in [0, 1]."""
    return (
        isinstance(genome, list)
        and len(genome) == num_genes
        and all(type(x) is float and math.isfinite(x) and 0 <= x <= 1 for x in genome)
    )


if __name__ == "__main__":
    for setting, calls in json.load(sys.stdin):
        print(json.dumps(replay(Setting(**setting).make(), calls)))
