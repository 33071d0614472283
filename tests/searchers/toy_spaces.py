"""Small spaces of typed genes with functions of which the optimum is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from searcher_calls import evaluation

from evomerge.genes import Choice, Constraint, Count, Flag, Gene, Integer, OneOf, Real, Value
from evomerge.records import Facts, Genome
from evomerge.search_spaces.codec import Codec
from evomerge.searchers import make_searcher

Meaning = dict[str, Any]


class TypedSpace:
    """A space of these genes."""

    def __init__(self, genes: Sequence[Gene], constraints: Sequence[Constraint] = ()) -> None:
        self.genes, self.constraints = tuple(genes), tuple(constraints)
        self.codec = Codec(genes, constraints)

    def sample(self, generator: np.random.Generator) -> Genome:
        return generator.random(len(self.genes)).tolist()

    def active(self, genome: list[float]) -> list[bool]:
        return self.codec.active(self.codec.values(genome))

    def meaning(self, genome: list[float]) -> dict[str, Value]:
        """The values that matter."""
        values, active = self.codec.values(genome), self.active(genome)
        return {g.name: v for g, v, on in zip(self.genes, values, active, strict=True) if on}


def branches() -> TypedSpace:
    """A choice of three, each with two reals and an integer of its own."""
    genes: list[Gene] = [Choice("kind", ("a", "b", "c"))]
    for kind in "abc":
        when = OneOf("kind", (kind,))
        genes += [Real(f"{kind}{i}", -1.0, 1.0, when=when) for i in range(2)]
        genes.append(Integer(f"{kind}n", 0, 9, when))
    return TypedSpace(genes)


def branch_value(meaning: Meaning) -> float:
    """At most 0: kind b, both reals at .4, its integer at 7."""
    kind = meaning["kind"]
    distance = sum((meaning[f"{kind}{i}"] - 0.4) ** 2 for i in range(2))
    return {"a": -0.3, "b": 0.0, "c": -0.2}[kind] - distance - 0.02 * abs(meaning[f"{kind}n"] - 7)


WEIGHTS = np.random.default_rng(9).random(20)
LEAST_WEIGHT = float(np.sort(WEIGHTS)[:5].sum())


def five_of_twenty() -> TypedSpace:
    """Twenty flags, of which five are set."""
    names = [f"f{i}" for i in range(20)]
    return TypedSpace([Flag(name) for name in names], [Count(tuple(names), 5, 5)])


def lightness(meaning: Meaning) -> float:
    """At most -LEAST_WEIGHT, by the five lightest flags."""
    return -float(sum(WEIGHTS[int(name[1:])] for name, is_set in meaning.items() if is_set))


def cube(num_genes: int) -> TypedSpace:
    """Reals in [0, 1]."""
    return TypedSpace([Real(f"x{i}", 0.0, 1.0, decimals=None) for i in range(num_genes)])


def sphere(meaning: Meaning) -> float:
    """At most 0, at .3."""
    return -float(sum((x - 0.3) ** 2 for x in meaning.values()))


def branin(meaning: Meaning) -> float:
    """Minus Branin's function, at most -.397887, on the unit square."""
    x, y = 15 * meaning["x0"] - 5, 15 * meaning["x1"]
    bowl = (y - 5.1 / (4 * np.pi**2) * x**2 + 5 / np.pi * x - 6) ** 2
    return -float(bowl + 10 * (1 - 1 / (8 * np.pi)) * np.cos(x) + 10)


def best_of(
    kind: str,
    space: TypedSpace,
    function: Callable[[Meaning], float],
    num_candidates: int,
    seed: int,
    **options: Any,
) -> float:
    """The best value of so many candidates."""
    searcher = make_searcher(kind, space, seed, Facts(), options)  # type: ignore[arg-type]
    best: list[float] = []
    while len(best) < num_candidates:
        genomes = searcher.ask(min(searcher.in_flight, num_candidates - len(best)))
        values = [function(space.meaning(genome)) for genome in genomes]
        told = zip(genomes, values, strict=True)
        searcher.tell([evaluation(len(best) + i, g, [value]) for i, (g, value) in enumerate(told)])
        best += values
    return max(best)
