"""BOHB's sampler: which rung is modelled, and a race that it wins."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from searcher_calls import Setting, evaluation
from toy_spaces import TypedSpace, branch_value, branches, cube, sphere

from evomerge.records import Facts, Genome
from evomerge.searchers import make_searcher
from evomerge.searchers.successive import at_highest_rung


@pytest.mark.parametrize(
    ("enough", "expected"),
    [(1, [5, 7]), (2, [1, 5, 7]), (3, [0, 1, 3, 5, 7]), (5, [0, 1, 2, 3, 4, 5, 6, 7]), (8, [])],
)
def test_the_highest_rung_that_enough_reached_is_modelled(enough: int, expected: list[int]) -> None:
    rungs = [1, 2, 0, 1, 0, 3, 0]
    told = [evaluation(i, [0.5], [0.0], rung=rung) for i, rung in enumerate(rungs)]
    told.append(evaluation(7, [0.5], None))
    assert [e.id for e in at_highest_rung(told, enough)] == expected


def race(
    kind: str, space: TypedSpace, function: Callable[..., float], seed: int, cohorts: int
) -> float:
    """The true value of the best finalist, where the lower rungs are noisy.

    Cohorts of 27 are cut to 9, 3 and 1; an answer to the first rung has an error of .1.
    """
    generator = np.random.default_rng(seed)
    searcher = make_searcher(kind, space, seed, Facts(), {"population": 27})  # type: ignore[arg-type]
    best = -np.inf
    for cohort in range(cohorts):
        genomes: list[Genome] = searcher.ask(27)
        true = np.array([function(space.meaning(genome)) for genome in genomes])
        alive, rungs, values = np.arange(27), np.zeros(27, dtype=int), np.zeros(27)
        for rung in range(4):
            rungs[alive] = rung
            values[alive] = true[alive] + generator.normal(0, 0.1 / 3 ** (rung / 2), len(alive))
            if rung < 3:
                alive = alive[np.argsort(-values[alive])[: len(alive) // 3]]
        searcher.tell(
            [
                evaluation(27 * cohort + i, g, [float(values[i])], rung=int(rungs[i]))
                for i, g in enumerate(genomes)
            ]
        )
        best = max(best, float(true[alive].max()))
    return best


@pytest.mark.parametrize(
    ("space", "function"), [(cube(6), sphere), (branches(), branch_value)], ids=["reals", "mixed"]
)
def test_it_wins_races_against_random_cohorts(
    space: TypedSpace, function: Callable[..., float]
) -> None:
    found = [race("successive", space, function, seed, 6) for seed in range(4)]
    random = [race("random", space, function, seed, 6) for seed in range(4)]
    assert np.mean(found) > 0.75 * np.mean(random)


def test_a_share_of_the_candidates_is_random_and_designs_come_first() -> None:
    designs = ([0.1, 0.9], [0.9, 0.1])
    warm = tuple(evaluation(i, [0.3 + i / 1e3, 0.3], [-i / 30]) for i in range(30))

    def made(**options: float) -> list[Genome]:
        setting = Setting("successive", 2, designs=designs, warm_start=warm, options=dict(options))
        return setting.make().ask(27)

    mixed, modelled, random = (
        made(random_share=1 / 3),
        made(random_share=0.0),
        made(random_share=1.0),
    )
    assert mixed[:2] == modelled[:2] == random[:2] == list(designs)
    assert 3 <= sum(a == b for a, b in zip(mixed[2:], random[2:], strict=True)) <= 13
    assert not any(a == b for a, b in zip(modelled[2:], random[2:], strict=True))


def test_candidates_are_random_until_enough_have_a_score() -> None:
    random = Setting("successive", 4, options={"random_share": 1.0}).make()
    plain = Setting("successive", 4, options={"random_share": 0.0}).make()
    genomes = plain.ask(27)
    assert random.ask(27) == genomes
    told = [evaluation(i, g, [0.0] if i < 4 else None) for i, g in enumerate(genomes)]
    random.tell(told)
    plain.tell(told)
    genomes = plain.ask(27)
    assert random.ask(27) == genomes  # four scores, and five are needed
    told = [evaluation(27 + i, g, [0.0] if i < 1 else None) for i, g in enumerate(genomes)]
    random.tell(told)
    plain.tell(told)
    assert random.ask(27) != plain.ask(27)
