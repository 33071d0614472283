"""What a model-based searcher asks for before it has a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from evomerge.records import Evaluation, Genome
from evomerge.searchers.generation import read_designs
from evomerge.searchers.parameters import Parameters
from evomerge.searchers.sobol import MOST_DIMENSIONS, SobolPoints

STARTUP, CANDIDATE, RANDOM, DICE = range(4)  # what a stream of random numbers is for
TRIES = 4  # of a kind, to find a genome that was not asked for, in spaces that are finite


class FirstPoints:
    """The designs, then evenly spread points: the first candidates.

    Args:
        designs: asked for as they are, each once.
        num_spread: scrambled Sobol points after them; random ones where there are no direction
            numbers for so many genes.
    """

    def __init__(
        self, parameters: Parameters, seed: int, designs: Sequence[Genome], num_spread: int
    ) -> None:
        num_genes = len(parameters.genes)
        self._genomes: list[Genome] = read_designs(designs, num_genes).tolist()
        self.count = len(self._genomes) + num_spread
        if num_spread == 0:
            return
        seeds = np.random.SeedSequence([seed, STARTUP])
        generator = np.random.default_rng(seeds)
        spread = (
            SobolPoints(num_genes, seeds).next(num_spread)
            if num_genes <= MOST_DIMENSIONS
            else generator.random((num_spread, num_genes))
        )
        self._genomes += [parameters.tidy(point, generator) for point in spread.tolist()]

    def __getitem__(self, number: int) -> Genome:
        return self._genomes[number]


def random_genome(parameters: Parameters, seed: int, number: int, attempt: int = 0) -> Genome:
    """A random genome in a candidate's place."""
    stream = np.random.SeedSequence([seed, RANDOM, number, attempt])
    generator = np.random.default_rng(stream)
    return parameters.tidy(generator.random(len(parameters.genes)).tolist(), generator)


def first_new(
    likely: Iterable[Genome],
    parameters: Parameters,
    seed: int,
    number: int,
    seen: Sequence[Genome],
) -> Genome:
    """The first of what is likely that was not seen, or else a random one, seen or not."""
    for genome in likely:
        if genome not in seen:
            return genome
    for attempt in range(TRIES):
        genome = random_genome(parameters, seed, number, attempt)
        if genome not in seen:
            break
    return genome


def foreign(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """What another run was told, with ids below those of this run, in its order."""
    return [replace(e, id=i - len(evaluations)) for i, e in enumerate(evaluations)]
