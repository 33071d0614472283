"""CMA-ES against pycma itself, and what the adapter adds: restarts, failures, a first mean."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cma
import numpy as np
import pytest
from searcher_calls import Setting, bowls, evaluation

from evomerge.records import Estimate, Evaluation, Genome, Score
from evomerge.searchers.cells import cells_of, places, snapped
from evomerge.searchers.cma_es import CmaEs, signal_share


def made(num_genes: int = 5, designs: tuple[Genome, ...] = (), **options: Any) -> CmaEs:
    searcher = Setting("cma_es", num_genes, 3, designs=designs, options=options).make()
    assert isinstance(searcher, CmaEs)
    return searcher


def generations(
    searcher: CmaEs, count: int, value: Callable[[Genome], float | None]
) -> list[list[Genome]]:
    """So many whole generations; all that was asked for."""
    seen: list[list[Genome]] = []
    ids = itertools.count()
    for _ in range(count):
        seen.append(genomes := searcher.ask(10_000))
        values = [value(genome) for genome in genomes]
        searcher.tell(
            [
                evaluation(next(ids), g, None if v is None else [v])
                for g, v in zip(genomes, values, strict=True)
            ]
        )
    return seen


def bowl(genome: Genome) -> float:
    return bowls(genome, 1)[0]


def test_the_genomes_are_pycmas_told_the_values_themselves() -> None:
    generator = np.random.default_rng(np.random.SeedSequence(3))
    strategy = cma.CMAEvolutionStrategy(
        [0.5] * 5,
        1 / 6,
        {
            "bounds": [0, 1],
            "randn": lambda *shape: generator.standard_normal(shape),
            "seed": np.nan,
            "verbose": -9,
        },
    )
    for genomes in generations(made(), 25, bowl):
        expected = strategy.ask()
        strategy.tell(expected, [-bowl(x) for x in expected])
        assert np.array_equal(genomes, expected)


def test_only_the_order_of_values_counts() -> None:
    squashed = generations(made(), 15, lambda g: math.exp(10 * bowl(g)))
    assert squashed == generations(made(), 15, bowl)


def test_a_failure_counts_like_the_worst_value() -> None:
    fails = generations(made(), 10, lambda g: None if g[0] > 0.6 else bowl(g))
    worst = generations(made(), 10, lambda g: -1000.0 if g[0] > 0.6 else bowl(g))
    assert fails == worst


def test_it_learns_from_the_told_genomes_not_from_its_own() -> None:
    searcher = made(3, population=12)
    for generation in range(8):
        told = [[0.9, 0.1, 0.5 + 0.01 * i] for i in range(len(searcher.ask(12)))]
        searcher.tell(
            [evaluation(12 * generation + i, genome, [0.0]) for i, genome in enumerate(told)]
        )
    believed = searcher.recommend()
    assert believed is not None
    assert np.allclose(believed[:2], [0.9, 0.1], atol=0.1)


def test_convergence_restarts_with_twice_the_population_and_keeps_the_belief() -> None:
    searcher = made(4, restarts=2)
    sizes = [len(genomes) for genomes in generations(searcher, 500, bowl)]
    assert sorted(set(sizes)) == [0, 8, 16, 32]
    # Once the restarts are spent, nothing more is asked for.
    num_asking = 500 - sizes.count(0)
    assert sizes == sorted(sizes[:num_asking]) + [0] * sizes.count(0)
    assert searcher.recommend() == pytest.approx([1 / 3] * 4, abs=1e-5)


def test_after_a_restart_the_mean_of_the_better_run_is_recommended() -> None:
    searcher = made(4)
    for ids in itertools.count(0, 8):
        genomes = searcher.ask(8)
        searcher.tell([evaluation(ids + i, g, [bowl(g)]) for i, g in enumerate(genomes)])
        if searcher.population > 8:
            break
    generations_later = searcher.ask(16)
    searcher.tell([evaluation(10_000 + i, g, [bowl(g)]) for i, g in enumerate(generations_later)])
    assert searcher.recommend() == pytest.approx([1 / 3] * 4, abs=1e-5)


@pytest.mark.parametrize("value", [0.75, None])
def test_a_flat_landscape_restarts_after_auger_and_hansens_generations(
    value: float | None,
) -> None:
    searcher = made(5, population=10)  # 10 + ceil(30 n / lambda) generations
    generations(searcher, 24, lambda _: value)
    assert searcher.population == 10
    searcher = made(5, population=10)
    generations(searcher, 25, lambda _: value)
    assert searcher.population == 20


def test_noise_alone_does_not_restart() -> None:
    generator = np.random.default_rng(0)
    searcher = made(5, population=8)
    generations(searcher, 120, lambda g: bowl(g) + generator.normal(0, 0.02))
    assert searcher.population == 8


def test_the_first_mean() -> None:
    narrow = {"sigma0": 1e-6}
    assert np.allclose(made(3, **narrow).ask(4), 0.5, atol=1e-4)
    assert np.allclose(made(3, x0=[0.0, 0.2, 1.0], **narrow).ask(4), [0, 0.2, 1], atol=1e-4)
    assert np.allclose(made(1, x0=[0.3], **narrow).ask(4), 0.3, atol=1e-4)
    designs = ([0.0, 0.2, 0.4], [0.0, 0.2, 0.4], [1.0, 0.4, 0.8])  # one of them stands twice
    from_designs = made(3, designs, x0="designs", **narrow).ask(4)
    assert np.allclose(from_designs, [0.5, 0.3, 0.6], atol=1e-4)


@pytest.mark.parametrize(
    ("num_genes", "diagonal", "expected"),
    [(501, "auto", True), (500, "auto", False), (20, True, True), (600, False, False)],
)
def test_variances_alone_above_500_genes(num_genes: int, diagonal: Any, expected: bool) -> None:
    searcher = made(num_genes, diagonal=diagonal)
    assert bool(searcher._strategy.opts["CMA_diagonal"]) is expected


# --- discrete genes -------------------------------------------------------------------------------


def best_of_a_run(seed: int, **options: Any) -> float:
    """The best value of 150 generations; 0 where all 4 discrete genes and 2 reals are right."""
    setting = Setting("cma_es", 6, seed, options=options | {"restarts": 0}, shape="mixed")
    cells = cells_of(setting.space())
    best = places(np.random.default_rng(seed).uniform(0.2, 0.8, 6), cells)

    def value(genome: Genome) -> float:
        away = (places(np.array(genome), cells) - best) ** 2
        return -float((np.where(cells > 0, 0.01, 100.0) * away).sum())

    seen = generations(setting.make(), 150, value)  # type: ignore[arg-type]
    return max(value(genome) for genomes in seen for genome in genomes)


def test_discrete_genes_do_not_freeze_when_real_ones_have_converged() -> None:
    kept = [best_of_a_run(seed) for seed in range(6)]
    frozen = [best_of_a_run(seed, discrete="ignore") for seed in range(6)]
    assert sum(value > -1e-3 for value in kept) >= 5
    assert sum(value > -1e-3 for value in frozen) <= 3


def test_discrete_genes_are_asked_for_in_the_middles_of_their_cells() -> None:
    setting = Setting("cma_es", 6, 3, shape="mixed")
    cells = cells_of(setting.space())
    for genomes in generations(setting.make(), 20, bowl):  # type: ignore[arg-type]
        assert np.allclose(genomes, snapped(np.array(genomes), cells), atol=0)


# --- noise ----------------------------------------------------------------------------------------


def distance_at_the_end(error: float, seed: int, **options: Any) -> float:
    """Squared distance of the recommendation from a bowl's optimum, seen through noise."""
    generator = np.random.default_rng(seed)
    best = generator.uniform(0.2, 0.8, 6)
    searcher = Setting("cma_es", 6, seed, options=options).make()
    ids = itertools.count()
    for _ in range(30):
        told = []
        for genome in searcher.ask(100):
            value = 1 - float(((np.array(genome) - best) ** 2).sum())
            estimate = Estimate(value + error * generator.normal(), error, 30)
            told.append(Evaluation(next(ids), genome, Score({"f": estimate})))
        searcher.tell(told)
    return float(((np.array(searcher.recommend()) - best) ** 2).sum())


def test_standard_errors_shorten_the_steps_where_noise_rules() -> None:
    noisy = {
        noise: np.mean([distance_at_the_end(0.1, seed, noise=noise) for seed in range(12)])
        for noise in ("ignore", "adapt")
    }
    assert noisy["adapt"] < 0.75 * noisy["ignore"]
    exact = [distance_at_the_end(0.0, 0, noise=noise) for noise in ("ignore", "adapt")]
    assert exact[0] == exact[1] < 1e-3


def test_the_signals_share_is_what_the_errors_leave_of_the_variance() -> None:
    generator = np.random.default_rng(0)
    truth, error = generator.normal(size=4000), 0.5
    values = truth + error * generator.normal(size=4000)
    told = [
        Evaluation(i, [0.5], Score({"f": Estimate(v, error, 9)}, rung=i % 2))
        for i, v in enumerate(values.tolist())
    ]
    shifted = [
        e
        if e.score is None or e.score.rung
        else replace(e, score=Score({"f": Estimate(e.score.values[0] + 9, error, 9)}))
        for e in told
    ]
    for generation in (told, shifted):  # rungs are not compared with each other
        assert signal_share(generation) == pytest.approx(1 / (1 + error**2), abs=0.03)
    assert signal_share([evaluation(0, [0.5], [1.0])]) == 1.0
    assert signal_share([]) == 1.0
    nobody_better = [Evaluation(i, [0.5], Score({"f": Estimate(0.0, 0.1, 9)})) for i in range(4)]
    assert signal_share(nobody_better) == 1.0  # nothing can be told
