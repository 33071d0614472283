"""NSGA-III against pymoo itself; directions; what was scored again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.util.ref_dirs import get_reference_directions
from searcher_calls import Setting, bowls, evaluation

from evomerge.errors import ConfigurationError
from evomerge.records import Evaluation
from evomerge.searchers.nsga3 import Nsga3, _directions, num_directions


def made(num_objectives: int = 3, **options: Any) -> Nsga3:
    searcher = Setting("nsga3", 4, 5, num_objectives, options=options).make()
    assert isinstance(searcher, Nsga3)
    return searcher


def tell_next(searcher: Nsga3, first_id: int, num_objectives: int = 3) -> list[Evaluation]:
    told = [
        evaluation(first_id + i, genome, bowls(genome, num_objectives))
        for i, genome in enumerate(searcher.ask(1000))
    ]
    searcher.tell(told)
    return told


def test_the_genomes_are_pymoos() -> None:
    directions = get_reference_directions("das-dennis", 3, n_partitions=4)
    algorithm = NSGA3(directions, seed=5)
    problem = Problem(n_var=4, n_obj=3, xl=np.zeros(4), xu=np.ones(4))
    algorithm.setup(problem, termination=NoTermination())
    searcher = made(partitions=4)
    assert searcher.population == 15
    for generation in range(10):
        offspring = algorithm.ask()
        told = tell_next(searcher, 15 * generation)
        assert np.array_equal([e.genome for e in told], offspring.get("X"))
        offspring.set("F", -np.array([bowls(x, 3) for x in offspring.get("X")]))
        algorithm.tell(infills=offspring)


@pytest.mark.parametrize("num_objectives", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("population", [8, 32, 91])
def test_there_are_as_many_directions_as_the_population_allows(
    num_objectives: int, population: int
) -> None:
    directions = _directions(num_objectives, population, None)
    assert len(directions) <= population
    assert len(np.unique(directions.round(9), axis=0)) == len(directions)
    assert np.allclose(directions.sum(axis=1), 1)
    assert (directions >= 0).all()
    if num_objectives == 2:
        assert len(directions) == population
    if num_objectives == 3:
        parts = max(p for p in range(1, 100) if math.comb(p + 2, 2) <= population)
        assert len(directions) == num_directions(parts, 3)


def test_a_population_smaller_than_its_directions_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least the 91 directions of 12 partitions"):
        made(partitions=12, population=90)
    assert made(partitions=12, population=92).population == 92
    assert made(partitions=12).population == 91
    assert made().population == 32


def test_a_best_value_that_was_taken_back_is_forgotten() -> None:
    searcher = made(population=15)
    told = tell_next(searcher, 0)
    alive = next(iter(searcher._living.evaluations))
    lucky = evaluation(alive, told[alive].genome, [100.0] * 3)
    searcher.tell([lucky])
    norm = searcher._living.algorithm.survival.norm
    assert norm.ideal_point.tolist() == [-100.0] * 3
    searcher.tell([told[alive]])
    norm = searcher._living.algorithm.survival.norm
    assert (norm.ideal_point > -1.0).all()


def test_failures_do_not_move_the_front() -> None:
    searcher = made(population=15)
    first_id = 0
    for generation in range(12):
        genomes = searcher.ask(1000)
        searcher.tell(
            [
                evaluation(first_id + i, g, None if (i + generation) % 3 else bowls(g, 3))
                for i, g in enumerate(genomes)
            ]
        )
        first_id += len(genomes)
    norm = searcher._living.algorithm.survival.norm
    assert np.isfinite(norm.ideal_point).all()
    assert np.isfinite(norm.nadir_point).all()
    living = searcher._living.evaluations.values()
    assert all(e.score for e in living)
