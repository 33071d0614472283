"""Warm starts: cmaes's distribution, a shape that is known, and what they save on an ellipsoid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cmaes
import numpy as np
import pytest
from searcher_calls import Setting, evaluation

from evomerge.records import Evaluation, Genome
from evomerge.searchers.cma_warm import PRIOR_STD, best_of, promising

GENES = 6


def test_of_few_points_it_is_the_distribution_of_cmaes() -> None:
    points = np.random.default_rng(0).random((9, 5))
    mean, sigma, covariance = cmaes.get_warm_start_mgd(
        [(point, 0.0) for point in points], gamma=1.0, alpha=PRIOR_STD
    )
    found = promising(points, 1e-9)
    assert np.allclose(found.mean, mean)
    assert np.allclose(found.covariance, sigma**2 * covariance)


def test_of_many_points_it_keeps_their_shape_and_is_at_least_so_wide() -> None:
    generator = np.random.default_rng(1)
    stds = np.array([1e-1, 1e-2, 3e-2])
    points = 0.5 + generator.normal(size=(4000, 3)) * stds
    found = np.sqrt(np.diag(promising(points, 1e-9).covariance))
    assert found == pytest.approx(stds, rel=0.2)
    wide = np.sqrt(np.diag(promising(points, 0.2).covariance))
    assert wide / found == pytest.approx([wide[0] / found[0]] * 3)
    assert np.exp(np.log(wide).mean()) == pytest.approx(0.2, rel=0.05)
    same = promising(np.full((50, 3), 0.4), 0.01)
    assert np.allclose(same.covariance, PRIOR_STD**2 * np.eye(3))


def test_only_who_has_a_score_and_violates_nothing_is_learnt_from() -> None:
    known = [evaluation(i, [0.1 * i], [float(i)]) for i in range(10)]
    known += [evaluation(10, [0.0], None), evaluation(11, [0.0], [99.0], violation=1.0)]
    assert [e.id for e in best_of(known, 0.3)] == [9, 8, 7]
    assert [e.id for e in best_of(known, 0.01)] == [9]
    assert best_of(known[10:], 0.5) == []


def ellipsoid(seed: int, shift: float) -> Callable[[Genome], float]:
    """Turned, with axes of ratio 100; its optimum is moved that far, in a random direction."""
    generator = np.random.default_rng(seed)
    best, direction = generator.uniform(0.35, 0.65, GENES), generator.normal(size=GENES)
    best = best + shift * direction / np.linalg.norm(direction)
    turn, _ = np.linalg.qr(generator.normal(size=(GENES, GENES)))
    weights = 1e4 ** (np.arange(GENES) / (GENES - 1))
    return lambda genome: float(weights @ (turn @ (np.asarray(genome) - best)) ** 2)


def search(
    function: Callable[[Genome], float], seed: int, most: int, warm: tuple[Evaluation, ...] = ()
) -> tuple[int, list[Evaluation]]:
    """Evaluations until a value of 1e-5, at most so many; and what was told."""
    searcher: Any = Setting("cma_es", GENES, seed, warm_start=warm).make()
    told: list[Evaluation] = []
    while len(told) < most:
        values = [(genome, function(genome)) for genome in searcher.ask(1000)]
        for i, (_, value) in enumerate(values):
            if value < 1e-5:
                return len(told) + i + 1, told
        generation = [evaluation(len(told) + i, g, [-v]) for i, (g, v) in enumerate(values)]
        searcher.tell(generation)
        told += generation
    return len(told), told


def test_a_warm_start_on_a_shifted_ellipsoid_needs_much_less() -> None:
    shift = 0.05
    cold, warm = [], []
    for seed in range(3):
        _, known = search(ellipsoid(seed, 0.0), seed, 700)
        cold.append(search(ellipsoid(seed, shift), seed + 10, 4000)[0])
        warm.append(search(ellipsoid(seed, shift), seed + 10, 4000, tuple(known))[0])
    assert np.median(warm) < 0.75 * np.median(cold)


def test_diagonal_and_mixed_searches_start_warm_too() -> None:
    generator = np.random.default_rng(2)
    genomes = np.clip(generator.normal(0.7, [0.01] * 4 + [0.1] * 4, (400, 8)), 0, 1)
    known = tuple(evaluation(i, g, [0.0]) for i, g in enumerate(genomes.tolist()))
    for shape, options in (("reals", {"diagonal": True}), ("mixed", {})):
        setting = Setting(
            "cma_es",
            8,
            options={"population": 200} | options,
            shape=shape,
            warm_start=known,  # type: ignore[arg-type]
        )
        asked = np.array(setting.make().ask(1000))
        reals = [i for i, gene in enumerate(setting.space().genes) if hasattr(gene, "log")]
        assert np.allclose(asked[:, reals].mean(axis=0), 0.7, atol=0.05)
        if shape == "reals":
            assert asked[:, 4:].std(axis=0).min() > 4 * asked[:, :4].std(axis=0).max()
