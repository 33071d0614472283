"""Discrete genes of children: from parents, and how often not, against counted shares."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.genes import Choice, Flag, Gene, Integer, Real
from evomerge.searchers.inheritance import DiscreteGenes

MIXED = (Real("r", 0, 1), Flag("f"), Choice("c", ("a", "b", "c")), Integer("i", 0, 7))


def children(genes: tuple[Gene, ...], rate: float | None, num: int = 20_000) -> np.ndarray:
    """Children of a parent whose values are all the first ones, and one with the last ones."""
    first, second = np.zeros((num, len(genes))), np.ones((num, len(genes)))
    generator = np.random.default_rng(1)
    real = np.full((num, len(genes)), 1.5)
    return DiscreteGenes(genes, rate).inherit(real, first, second, generator)


def test_without_mutation_a_gene_comes_from_either_parent() -> None:
    made = children(MIXED, 0.0)
    assert (made[:, 0] == 1.0).all()  # real genes are the caller's, in the cube
    for column, size in ((1, 2), (2, 3), (3, 8)):
        low, high = 0.5 / size, 1 - 0.5 / size
        assert set(made[:, column]) == {low, high}
        assert (made[:, column] == high).mean() == pytest.approx(0.5, abs=0.02)


def test_a_mutation_leads_to_every_other_value_alike() -> None:
    made = children(MIXED[3:], 1.0)
    counts = np.bincount((made[:, 0] * 8).astype(int), minlength=8) / len(made)
    # From the first value or the last one, to each of the seven others.
    assert counts == pytest.approx([0.5 / 7] + [1 / 7] * 6 + [0.5 / 7], abs=0.01)


def test_by_default_one_gene_mutates_on_average() -> None:
    genes = tuple(Choice(f"c{i}", tuple("abcdefghij")) for i in range(20))
    parents = np.full((5000, 20), 0.05)
    made = DiscreteGenes(genes, None).inherit(parents, parents, parents, np.random.default_rng(2))
    changed = (made != 0.05).sum(axis=1)
    assert changed.min() == 1  # no clones
    # Binomial(20, 1/20), whose zeros become ones.
    assert changed.mean() == pytest.approx(1 + 0.95**20, abs=0.05)


def test_a_gene_with_one_value_has_it() -> None:
    genes = (Integer("one", 3, 3), Integer("other", 4, 4))
    parents = np.full((3, 2), 0.9)
    made = DiscreteGenes(genes, None)
    assert (made.inherit(parents, parents, parents, np.random.default_rng(0)) == 0.5).all()


def test_snapping_keeps_values_and_moves_them_to_the_middle() -> None:
    points = np.array([[0.33, 0.49, 0.99, 1.0], [0.0, 0.5, 0.34, 0.0]])
    snapped = DiscreteGenes(MIXED, None).snap(points)
    assert snapped == pytest.approx(
        np.array([[0.33, 0.25, 5 / 6, 15 / 16], [0.0, 0.75, 0.5, 1 / 16]])
    )
