"""Gaussian processes: how few evaluations they need, and what they leave alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from searcher_calls import Setting, bowls, drive, evaluation
from toy_spaces import best_of, branch_value, branches, branin, cube, sphere

from evomerge.records import Estimate, Genome, Score
from evomerge.searchers.gp import levelled, most_telling


@pytest.mark.slow
def test_branin_is_solved_in_a_fraction_of_the_evaluations_of_random() -> None:
    options = {"population": 1, "startup": 6}
    found = [best_of("gp", cube(2), branin, 30, seed, **options) for seed in range(3)]
    random = [best_of("random", cube(2), branin, 300, seed) for seed in range(3)]
    assert min(found) > -0.397887 - 0.02
    assert np.mean(found) > np.mean(random)


def test_a_sphere_is_solved_in_batches() -> None:
    found = best_of("gp", cube(4), sphere, 36, 0)
    assert found > -0.002
    assert best_of("random", cube(4), sphere, 1000, 0) < found


def test_conditional_and_mixed_genes_are_searched() -> None:
    found = best_of("gp", branches(), branch_value, 40, 1)
    random = [best_of("random", branches(), branch_value, 40, seed) for seed in range(9)]
    assert found > float(np.median(random))


def test_a_dropped_candidate_is_nowhere_better_than_a_survivor() -> None:
    told = [(0.9, 0), (0.5, 2), (0.3, 2), (0.4, 1), (0.1, 1), (0.05, 0)]
    scores = [Score({"f": Estimate(value, 0.0, 1)}, rung) for value, rung in told]
    assert levelled(scores)[:, 0].tolist() == [0.1, 0.5, 0.3, 0.3, 0.1, 0.05]


def test_the_best_and_the_latest_are_kept() -> None:
    values = [9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 0.0, 0.0]
    told = [evaluation(i, [0.5], [value]) for i, value in enumerate(values)]
    assert [e.id for e in most_telling(told, 4)] == [0, 2, 6, 7]
    assert [e.id for e in most_telling(told, 5)] == [0, 2, 4, 6, 7]
    assert most_telling(told, 8) == told


def test_the_search_stays_where_candidates_do_not_fail() -> None:
    def right_half(genome: Genome, num_objectives: int) -> list[float] | None:
        return bowls(genome, num_objectives) if genome[0] > 0.4 else None

    setting = Setting("gp", 2, options={"startup": 8})
    calls = drive(setting.make(), 32, itertools.repeat(4), itertools.repeat(4), 1, right_half)
    told = [entry for call in calls if call[0] == "tell" for entry in call[1]]
    assert sum(values is None for _, _, values in told[16:]) <= 6
    best = max(values[0] for _, _, values in told if values is not None)
    assert best > -((0.4 - 1 / 3) ** 2) - 0.01


@pytest.mark.parametrize("num_objectives", [1, 2])
def test_threads_and_generators_are_left_as_they_were(num_objectives: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    setting = Setting("gp", 3, num_objectives=num_objectives, options={"startup": 4})
    calls = drive(setting.make(), 8, itertools.repeat(4), itertools.repeat(4), num_objectives)
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_num_threads(1)
    again = drive(setting.make(), 8, itertools.repeat(4), itertools.repeat(4), num_objectives)
    torch.set_num_threads(threads)
    assert again == calls


def test_a_warm_start_is_learnt_from() -> None:
    points = np.random.default_rng(0).random((24, 2)).tolist()
    warm = tuple(evaluation(i, g, bowls(g, 1)) for i, g in enumerate(points))
    (first,) = Setting("gp", 2, warm_start=warm).make().ask(1)
    assert bowls(first, 1)[0] > -0.005
