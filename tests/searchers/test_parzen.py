"""The split into good and bad, and what the model of `successive` does with it."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from searcher_calls import evaluation
from toy_spaces import branches, cube, five_of_twenty

from evomerge.pareto import front_ranks, hypervolume
from evomerge.records import Evaluation, Genome
from evomerge.searchers.parzen import MOST_BAD, MOST_GOOD, ParzenModel, best_tenth

Array = NDArray[np.float64]


def test_the_best_tenth_is_good() -> None:
    values = np.random.default_rng(0).permutation(400).astype(float)
    told = [evaluation(i, [0.5], [value]) for i, value in enumerate(values.tolist())]
    for count, expected in ((1, 1), (10, 1), (11, 2), (95, 10), (400, MOST_GOOD)):
        good = best_tenth(told[:count], 1)
        assert len(good) == expected
        assert sorted(values[good]) == sorted(values[:count])[-expected:]


def test_a_lower_rung_and_a_violation_come_after_all_that_are_valid() -> None:
    told = [evaluation(i, [0.5], [float(i)], rung=int(i < 2)) for i in range(12)]
    assert sorted(best_tenth(told, 1)) == [0, 1]
    told[0] = evaluation(0, [0.5], [0.0], violation=1.0, rung=1)
    assert sorted(best_tenth(told, 1)) == [1, 11]


@pytest.mark.parametrize("seed", range(4))
def test_of_several_objectives_whole_fronts_are_good_and_of_the_last_those_with_most_volume(
    seed: int,
) -> None:
    angles = np.random.default_rng(seed).random(12) * np.pi / 2
    front = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    values = np.vstack([front + 1.0, front, np.zeros((126, 2))])
    told = [evaluation(i, [0.5], value) for i, value in enumerate(values.tolist())]
    ranks = front_ranks(values)
    good = best_tenth(told, 2)
    assert len(good) == 15
    assert set(np.flatnonzero(ranks == 0)) < set(good)
    last = values[[i for i in good if ranks[i] == 1]]
    reference = front.min(axis=0) - 0.1 * np.ptp(front, axis=0)
    most = max(hypervolume(front[list(some)], reference) for some in combinations(range(12), 3))
    assert hypervolume(last, reference) > (1 - 1 / np.e) * most  # what greedy choice guarantees


def told_of(points: Array, values: Array, first: int = 0) -> list[Evaluation]:
    """Evaluations of these points."""
    pairs = zip(points.tolist(), values.tolist(), strict=True)
    return [evaluation(first + i, point, [value]) for i, (point, value) in enumerate(pairs)]


def learnt(model: ParzenModel, told: list[Evaluation]) -> ParzenModel:
    """The model, having learnt these."""
    model.learn(told, [e.genome for e in told])
    return model


@pytest.fixture
def bowl() -> list[Evaluation]:
    """200 points of the square, the best about .3, .3."""
    points = np.random.default_rng(1).random((200, 2))
    return told_of(points, -((points - 0.3) ** 2).sum(axis=1))


CROWD: list[Genome] = np.random.default_rng(2).normal(0.3, 0.1, (60, 2)).clip(0, 1).tolist()


@pytest.mark.parametrize("jointly", [True, False])
def test_proposals_go_where_good_points_are(jointly: bool, bowl: list[Evaluation]) -> None:
    model = learnt(ParzenModel(cube(2), 0, 1, jointly, 64), bowl)
    proposed = np.array([model.propose(200 + i, []) for i in range(40)])
    values = [e.score.values[0] for e in bowl if e.score]
    assert np.mean(-((proposed - 0.3) ** 2).sum(axis=1)) > np.quantile(values, 0.9)


@pytest.mark.parametrize("jointly", [True, False])
def test_proposals_keep_away_from_what_is_outstanding(
    jointly: bool, bowl: list[Evaluation]
) -> None:
    def distance(waiting: list[Genome]) -> float:
        model = learnt(ParzenModel(cube(2), 0, 1, jointly, 64), bowl)
        proposed = np.array([model.propose(200 + i, waiting) for i in range(40)])
        return float(np.linalg.norm(proposed - 0.3, axis=1).mean())

    assert distance(CROWD) > 1.05 * distance([])


def test_what_was_outstanding_is_forgotten_when_more_is_known(bowl: list[Evaluation]) -> None:
    model, fresh = (ParzenModel(cube(2), 0, 1, True, 64) for _ in range(2))
    learnt(model, bowl[:100]).propose(100, CROWD)
    alone, crowded = (learnt(model, bowl).propose(200, waiting) for waiting in ([], CROWD))
    assert alone == learnt(fresh, bowl).propose(200, [])
    assert crowded == learnt(fresh, bowl).propose(200, CROWD) != alone


def test_a_candidate_that_is_told_with_another_genome_has_that() -> None:
    points = np.random.default_rng(1).random((60, 5))
    values = -((points - 0.3) ** 2).sum(axis=1)
    model = ParzenModel(cube(5), 0, 1, True, 64)
    learnt(model, told_of(1.0 - points, values))
    fresh = learnt(ParzenModel(cube(5), 0, 1, True, 64), told_of(points, values))
    assert learnt(model, told_of(points, values)).propose(60, []) == fresh.propose(60, [])


def test_the_oldest_of_many_bad_points_are_let_go() -> None:
    points = np.random.default_rng(1).random((MOST_BAD + 100, 2))
    values = np.zeros(len(points))
    values[-40:] = 1.0  # these are good, and no others
    other = points.copy()
    other[:50] = 0.5

    def proposed(points: Array) -> list[Genome]:
        model = learnt(ParzenModel(cube(2), 0, 1, True, 64), told_of(points, values))
        return [model.propose(1000 + i, []) for i in range(9)]

    assert proposed(points) == proposed(other)
    other[-60:-40] = proposed(points)[0]
    assert proposed(points) != proposed(other)


def test_genes_that_do_not_matter_have_no_coordinate() -> None:
    space = branches()
    parameters = ParzenModel(space, 0, 1, True, 8).parameters
    for generator in np.random.default_rng(0).spawn(10):
        genome = space.sample(generator)
        coordinates = parameters.coordinates(genome)
        assert np.isnan(coordinates).tolist() == [not on for on in space.active(genome)]
        typed = np.floor(coordinates[0] * 3), np.floor(genome[0] * 3)
        assert typed[0] == typed[1]


def test_counted_flags_are_counted_and_no_genome_is_asked_for_twice() -> None:
    space = five_of_twenty()
    model = ParzenModel(space, 0, 1, True, 8)
    genomes = [
        model.parameters.tidy(space.sample(g), g) for g in np.random.default_rng(0).spawn(20)
    ]
    told = [evaluation(i, g, [float(-i)]) for i, g in enumerate(genomes)]
    model.learn(told[:10], genomes)  # the others were dropped at a lower rung
    waiting: list[list[float]] = []
    for number in range(20, 60):
        propose = model.random if number % 5 == 0 else model.propose
        waiting.append(propose(number, waiting))
    meanings = [space.meaning(genome) for genome in waiting]
    assert all(sum(map(bool, meaning.values())) == 5 for meaning in meanings)
    assert len({tuple(genome) for genome in [*genomes, *waiting]}) == 60
