"""Drives a searcher, records its calls, and makes them again; a script too, for a new process."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from evomerge.genes import Choice, Constraint, Flag, Gene, Integer, Level, OneOf, Real
from evomerge.protocols import Searcher
from evomerge.records import Estimate, Evaluation, Facts, Failure, Genome, Responses, Score
from evomerge.search_spaces.codec import Codec
from evomerge.searchers import SEARCHERS, make_searcher
from evomerge.searchers.scalarised import ScalariseConfig

# Options that keep a searcher's first steps short, for tests that look at the steps after them.
SMALL: dict[str, dict[str, Any]] = {
    "random": {"population": 8},
    "cma_es": {"population": 8},
    "cma_es_mixed": {"population": 8},
    "nsga2": {"population": 8},
    "nsga3": {"population": 8},
    "sobol": {"population": 8},
    "tpe": {"population": 4, "startup": 4, "samples": 8},
    "gp": {"population": 4, "ahead": 1, "startup": 12},
    "successive": {"population": 8, "min_points": 4, "samples": 8},
    "rl_agent": {"population": 8},
    "map_elites": {"population": 8},
    "cycle_qd": {"population": 8},
    "m2n2": {"archive": 5, "in_flight": 8},
    "map_pareto": {"population": 8, "design": 8, "steps": 3, "compromises": 12},
    "greedy_soup": {},
    "kinship": {},
    "frank_wolfe": {},
}

# How many candidates the longer tests tell a searcher, where 50 would take too long.
LENGTH: dict[str, int] = {"tpe": 40, "gp": 16, "successive": 40, "map_pareto": 30}

# The smallest population, and the most genes, of those with such a limit of their own.
LEAST_POPULATION: dict[str, int] = {"cma_es_mixed": 4}
MOST_GENES: dict[str, int] = {"cma_es_mixed": 200}

Shape = Literal["reals", "mixed", "conditional"]


def genes_of(shape: Shape, num_genes: int) -> tuple[Gene, ...]:
    """So many genes: real ones, or all types in turns, or such that hang on those before them."""
    genes: list[Gene] = []
    for i in range(num_genes):
        name = f"g{i}"
        when = None
        if shape == "conditional" and i % 3 and i > 1:
            asked = genes[i - i % 3]
            when = OneOf(asked.name, (True,)) if isinstance(asked, Flag) else None
        if shape == "reals":
            genes.append(Real(name, -1.0, 1.0))
        elif i % 3 == 0:
            genes.append(Flag(name))
        elif i % 3 == 1:
            genes.append(Choice(name, ("a", "b", "c"), when))
        elif shape == "conditional" and i % 12 == 8:
            genes.append(Level(name, (0.01, 0.1, 0.3, 0.5, 1.0), when))
        elif i % 2:
            genes.append(Integer(name, -2, 5, when))
        else:
            genes.append(Real(name, 0.1, 10.0, log=True, when=when))
    return tuple(genes)


@dataclass(frozen=True)
class Cube:
    """A search space of which a searcher may only see the genes."""

    num_genes: int
    shape: Shape = "reals"
    constraints: tuple[Constraint, ...] = ()

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        return genes_of(self.shape, self.num_genes)

    @cached_property
    def _codec(self) -> Codec:
        return Codec(self.genes, self.constraints)

    def sample(self, generator: np.random.Generator) -> Genome:
        return generator.random(self.num_genes).tolist()

    def active(self, genome: Genome) -> list[bool]:
        return self._codec.active(self._codec.values(genome))


class Lines:
    """A space of lineages in one number, which is crossed by averaging."""

    total = 100
    genes: tuple[Gene, ...] = ()
    constraints: tuple[Constraint, ...] = ()

    def sample(self, generator: np.random.Generator) -> Genome:
        return {"at": float(generator.random())}

    def active(self, genome: Genome) -> list[bool]:
        return []

    def cross(self, first: Genome, second: Genome, mix: float, split: int) -> Genome:
        share = (mix * split + (1 - mix) * (self.total - split)) / self.total
        return {"at": (1 - share) * first["at"] + share * second["at"]}


def evaluation(
    candidate: int,
    genome: Genome,
    values: Sequence[float] | None,
    *,
    rung: int = 0,
    violation: float = 0.0,
) -> Evaluation:
    """An evaluation with these values and answers made from them, or a failure."""
    if values is None:
        return Evaluation(candidate, genome, None, Failure("merge", "made up"), violation)
    estimates = {f"f{i}": Estimate(value, 0.01, 10) for i, value in enumerate(values)}
    return Evaluation(candidate, genome, Score(estimates, rung), None, violation, answers(values))


def answers(values: Sequence[float]) -> dict[str, Responses]:
    """Twelve right or wrong answers to each of two tasks: the better the value, the more right."""
    finite = [value if math.isfinite(value) else -1.0 for value in values]
    found = {}
    for number, task in enumerate(("t", "u")):
        level = math.exp(min(finite[number % len(finite)], 0.0))
        places = (np.arange(12) * 7 % 12 + number) / 12
        score = (places < level).astype(np.float32)
        found[task] = Responses(task, np.arange(12), {"score": score})
    return found


def point_of(genome: Genome) -> list[float]:
    """A genome's numbers, whatever it is."""
    return [genome["at"]] if isinstance(genome, dict) else genome


def bowls(genome: Genome, num_objectives: int) -> list[float]:
    """Maximised; every objective has its optimum elsewhere in the cube."""
    x = np.asarray(point_of(genome))
    return [
        -float(((x - (k + 1) / (num_objectives + 2)) ** 2).sum()) for k in range(num_objectives)
    ]


def sometimes_failing(genome: Genome, num_objectives: int) -> list[float] | None:
    """Bowls; about a quarter of the genomes fails, decided by their digits."""
    if int(sum(point_of(genome)) * 1e6) % 4 == 0:
        return None
    return bowls(genome, num_objectives)


def fewest_objectives(searcher: Any) -> int:
    """How many objectives a searcher (or a kind of it) must be told."""
    return 2 if "several_objectives" in searcher.needs else 1


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
    shape: Shape = "reals"
    constraints: tuple[Constraint, ...] = ()
    warm_start: tuple[Evaluation, ...] = ()
    given: tuple[Genome, ...] = ()
    scalarise: ScalariseConfig | None = None

    @property
    def needs(self) -> frozenset[str]:
        known = SEARCHERS.get(self.kind)
        return known.needs if known else frozenset()

    def space(self) -> Any:
        if "lineages" in self.needs:
            return Lines()
        return Cube(self.num_genes, self.shape, self.constraints)

    def make(self) -> Searcher:
        """The searcher, given what it needs."""
        several = fewest_objectives(self)
        objectives = tuple(f"f{i}" for i in range(max(self.num_objectives, several)))
        experts, gram = self.experts()
        facts = Facts(
            designs=self.designs or experts,
            objectives=objectives,
            experts=experts,
            gram=gram,
            warm_start=self.warm_start,
            given=self.given,
        )
        options = self.options or {}
        return make_searcher(self.kind, self.space(), self.seed, facts, options, self.scalarise)

    def experts(self) -> tuple[tuple[Genome, ...], tuple[tuple[float, ...], ...]]:
        """Three experts somewhere in the space, if the searcher needs some; and their relation."""
        if not {"experts", "lineages"} & self.needs:
            return (), ()
        generator = np.random.default_rng(5)
        space = self.space()
        gram = tuple((1.0,) * i + (4.0,) + (1.0,) * (2 - i) for i in range(3))
        return tuple(space.sample(generator) for _ in range(3)), gram


def drive(
    searcher: Searcher,
    num_candidates: int,
    ask_counts: Iterator[int],
    tell_counts: Iterator[int],
    num_objectives: int = 1,
    measure: Measure = sometimes_failing,
) -> list[list[Any]]:
    """Ask and tell in pieces until so many candidates are told; every call with its content."""
    num_objectives = max(num_objectives, fewest_objectives(searcher))
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
    """A list of num_genes finite Python floats in [0, 1]; or a lineage of the toy space."""
    if isinstance(genome, dict):
        return 0 <= genome["at"] <= 1
    return (
        isinstance(genome, list)
        and len(genome) == num_genes
        and all(type(x) is float and math.isfinite(x) and 0 <= x <= 1 for x in genome)
    )


if __name__ == "__main__":
    for setting, calls in json.load(sys.stdin):
        print(json.dumps(replay(Setting(**setting).make(), calls)))
