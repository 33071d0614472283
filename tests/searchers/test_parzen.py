"""The split into good and bad, and what the model of `successive` does with it."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from searcher_calls import evaluation
from toy_spaces import branches, cube, five_of_twenty

from evomerge.pareto import front_ranks, hypervolume
from evomerge.searchers.parzen import MOST_GOOD, ParzenModel, best_tenth, recency


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


@pytest.mark.parametrize("count", [0, 1, 24, 25, 26, 60, 500])
def test_the_latest_bad_points_weigh_as_optuna_has_them(count: int) -> None:
    from optuna.samplers._tpe.sampler import default_weights

    np.testing.assert_allclose(recency(count), default_weights(count))


@pytest.mark.parametrize("jointly", [True, False])
def test_proposals_go_where_good_points_are(jointly: bool) -> None:
    model = ParzenModel(cube(5), 0, 1, jointly, 64)
    points = np.random.default_rng(1).random((200, 5))
    values = -((points - 0.3) ** 2).sum(axis=1)
    model.learn(
        [
            evaluation(i, x.tolist(), [v])
            for i, (x, v) in enumerate(zip(points, values, strict=True))
        ]
    )
    proposed = np.array([model.propose(200 + i, []) for i in range(40)])
    assert np.mean(-((proposed - 0.3) ** 2).sum(axis=1)) > np.quantile(values, 0.9)


def test_genes_that_do_not_matter_are_not_learnt() -> None:
    space = branches()
    told = [evaluation(i, space.sample(np.random.default_rng(i)), [0.1 * i]) for i in range(30)]
    other = [
        evaluation(
            e.id,
            [
                x if on else 1 - x
                for x, on in zip(e.genome, space.active(list(e.genome)), strict=True)
            ],
            [0.1 * e.id],
        )
        for e in told
    ]
    first, second = (ParzenModel(space, 3, 1, True, 16) for _ in range(2))
    first.learn(told)
    second.learn(other)
    assert [first.propose(n, []) for n in range(8)] == [second.propose(n, []) for n in range(8)]


def test_counted_flags_are_counted_and_no_genome_is_asked_for_twice() -> None:
    space = five_of_twenty()
    model = ParzenModel(space, 0, 1, True, 8)
    genomes = [
        model.parameters.tidy(space.sample(g), g) for g in np.random.default_rng(0).spawn(20)
    ]
    model.learn([evaluation(i, g, [float(-i)]) for i, g in enumerate(genomes)])
    waiting: list[list[float]] = []
    for number in range(20, 60):
        waiting.append(model.propose(number, waiting))
    meanings = [space.meaning(genome) for genome in waiting]
    assert all(sum(map(bool, meaning.values())) == 5 for meaning in meanings)
    assert len({tuple(genome) for genome in [*genomes, *waiting]}) == 60
