"""Genomes as parameters, against the codec of search spaces."""

from __future__ import annotations

import numpy as np
import pytest
from searcher_calls import Shape, genes_of

from evomerge.genes import (
    AllDifferent,
    AtLeast,
    Beyond,
    Choice,
    Constraint,
    Count,
    Flag,
    Gene,
    Integer,
    NoneIs,
    OneOf,
    Real,
    Value,
)
from evomerge.search_spaces.codec import Codec
from evomerge.searchers.parameters import Parameters

FLAGS = tuple(f"f{i}" for i in range(6))
SLOTS = tuple(f"s{i}" for i in range(3))


class Space:
    """A space of these genes."""

    def __init__(self, genes: tuple[Gene, ...], constraints: tuple[Constraint, ...] = ()) -> None:
        self.genes, self.constraints = genes, constraints
        self.codec = Codec(genes, constraints)

    def active(self, genome: list[float]) -> list[bool]:
        return self.codec.active(self.codec.values(genome))

    def meaning(self, genome: list[float]) -> dict[str, Value]:
        """The values that matter."""
        values, active = self.codec.values(genome), self.active(genome)
        return {g.name: v for g, v, on in zip(self.genes, values, active, strict=True) if on}


def pruning() -> Space:
    """Flags that are counted, with genes that hang on them and on one another."""
    genes: list[Gene] = [Flag("f0"), Real("x0", 0.0, 1.0, when=OneOf("f0", (False,)))]
    for i in range(1, 6):
        genes.append(Flag(f"f{i}"))
        genes.append(Choice(f"c{i}", ("a", "b"), OneOf(f"f{i}", (False,))))
        genes.append(Real(f"w{i}", -1.0, 1.0, when=OneOf(f"c{i}", ("b",))))
        genes.append(Integer(f"n{i}", 1, 4, Beyond(f"w{i}", 0.5)))
    genes.append(Real("last", 0.0, 1.0, when=AtLeast(FLAGS[3:], 1)))
    return Space(tuple(genes), (Count(FLAGS, 2, 3),))


def removal() -> Space:
    """Different integers, with genes that hang on them."""
    genes: list[Gene] = [Integer(name, 0, 4) for name in SLOTS]
    genes += [Real(f"x{i}", 0.1, 10.0, log=True, when=NoneIs(SLOTS, i)) for i in range(5)]
    return Space(tuple(genes), (AllDifferent(SLOTS),))


SPACES = {shape: Space(genes_of(shape, 9)) for shape in ("reals", "mixed", "conditional")}
SPACES |= {"pruning": pruning(), "removal": removal()}


@pytest.mark.parametrize("name", SPACES)
def test_what_is_read_and_written_again_means_the_same(name: Shape) -> None:
    space = SPACES[name]
    parameters = Parameters(space)  # type: ignore[arg-type]
    generator = np.random.default_rng(0)
    for _ in range(300):
        genome = generator.random(len(space.genes)).tolist()
        tidy = parameters.tidy(genome, generator)
        assert space.meaning(tidy) == space.meaning(genome)
        assert parameters.read(tidy) == parameters.read(genome)
        bound = {name for c in space.constraints for name in c.genes}
        for gene, at, on in zip(space.genes, tidy, space.active(genome), strict=True):
            assert on or gene.name in bound or at == 0.5


@pytest.mark.parametrize("name", SPACES)
def test_only_those_that_matter_are_asked_and_random_values_cover_the_space(name: Shape) -> None:
    space = SPACES[name]
    parameters = Parameters(space)  # type: ignore[arg-type]
    generator = np.random.default_rng(0)
    bound = {name for c in space.constraints for name in c.genes}
    seen: dict[str, set[Value]] = {gene.name: set() for gene in space.genes}
    for _ in range(400):
        asked: list[int] = []

        def suggest(i: int, asked: list[int] = asked) -> float | int:
            asked.append(i)
            size = parameters.sizes[i]
            return float(generator.random()) if size is None else int(generator.integers(size))

        genome = parameters.write(suggest, generator)
        meaning = space.meaning(genome)
        assert len(asked) == len(set(asked))
        assert {space.genes[i].name for i in asked} == meaning.keys() | bound
        for key, value in meaning.items():
            seen[key].add(value)
    for gene, size in zip(space.genes, parameters.sizes, strict=True):
        assert len(seen[gene.name]) >= (50 if size is None else size)


def test_chance_decides_which_flags_too_many_are_dropped() -> None:
    space = pruning()
    parameters = Parameters(space)  # type: ignore[arg-type]
    generator = np.random.default_rng(0)
    counts = dict.fromkeys(FLAGS, 0)
    for _ in range(600):
        genome = parameters.write(lambda i: 1 if parameters.sizes[i] else 0.5, generator)
        for flag in FLAGS:
            counts[flag] += bool(space.meaning(genome)[flag])
    # Three of six: 300 each, with a standard deviation of 12.
    assert all(240 < count < 360 for count in counts.values()), counts
