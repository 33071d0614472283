"""Crossover and mutation by the types of genes, against what each may do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from searcher_calls import Cube

from evomerge.searchers.cells import categories_of, cells_of, places, snapped
from evomerge.searchers.variation import VariationOptions, exchanged, operators, renamed, stepped

SPACE: Any = Cube(12, "mixed")
CELLS = cells_of(SPACE)
NAMED = categories_of(SPACE)
NUMBERS = ~NAMED & (CELLS > 0)


def vary(num_parents: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    problem = Problem(n_var=12, n_obj=1, xl=np.zeros(12), xu=np.ones(12))
    parents = snapped(generator.random((num_parents, 12)), CELLS)
    mating = np.arange(num_parents).reshape(-1, 2)
    made = operators(SPACE, VariationOptions())
    population = Population.new(X=parents)
    crossed = made["crossover"].do(problem, population, mating, random_state=generator)
    children = made["mutation"].do(problem, crossed, random_state=generator)
    return parents, children.get("X")


def test_children_lie_in_the_middles_of_cells() -> None:
    _, children = vary(400, 0)
    assert np.array_equal(snapped(children, CELLS), children)
    assert children.min() >= 0
    assert children.max() <= 1


def test_names_come_from_either_parent_or_about_one_gene_in_a_genome_mutates() -> None:
    parents, children = vary(4000, 1)
    half = len(parents) // 2
    # Pymoo puts all first children before all second ones.
    first, second = parents[0::2], parents[1::2]
    of_first = (children[:half] == first)[:, NAMED]
    of_second = (children[:half] == second)[:, NAMED]
    different = (first != second)[:, NAMED]
    # Uncrossed pairs (a tenth) keep theirs; the others exchange half.
    share = (of_first & different).sum() / different.sum()
    assert share == pytest.approx(0.55 * (1 - 0.9 / 12), abs=0.03)
    foreign = ~(of_first | of_second) & ~different
    assert foreign.sum() / (~different).sum() == pytest.approx(0.9 / 12, abs=0.02)


def test_a_renamed_gene_has_any_other_value_as_likely() -> None:
    generator = np.random.default_rng(2)
    cells = np.array([4, 2, 0])
    points = snapped(np.full((60_000, 3), 0.3), cells)
    numbers = places(renamed(points, cells, generator), cells)
    share = np.bincount(numbers[:, 0].astype(int), minlength=4) / len(numbers)
    assert share == pytest.approx([1 / 9, 2 / 3, 1 / 9, 1 / 9], abs=0.01)
    assert (numbers[:, 1] == 1).mean() == pytest.approx(1 / 3, abs=0.01)
    assert (numbers[:, 2] == 0.3).all()


def test_an_integer_that_moved_moves_a_cell_at_least() -> None:
    cells = np.array([8, 8, 8, 8, 0])
    before = np.array([[4.5 / 8, 4.5 / 8, 4.5 / 8, 7.5 / 8, 0.5]])
    after = before + np.array([[0.001, -0.001, 0.3, 0.001, 0.001]])
    assert stepped(before, after, cells).tolist() == [[5, 3, 6, 7, 0.501]]
    assert stepped(before, before, cells)[0, :4].tolist() == [4, 4, 4, 7]


def test_a_pairs_children_have_all_its_genes() -> None:
    parents = np.random.default_rng(3).random((2, 50, 6))
    children = exchanged(parents, np.random.default_rng(4))
    assert np.array_equal(np.sort(children, axis=0), np.sort(parents, axis=0))
    assert 0.4 < (children == parents).mean() < 0.6
