"""Evolving vectors in memory, against a plain loop of the paper's steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from evomerge.evolution import Evolution

TOTAL, ITEMS = 40, 31
PROBES = np.random.default_rng(0).standard_normal((ITEMS, TOTAL))
SEEDS = np.random.default_rng(1).standard_normal((2, TOTAL)).astype(np.float32)


def score(vector: np.ndarray) -> np.ndarray:
    return np.clip(PROBES @ vector, 0, 9)  # sums of right and wrong would tie but for rounding


def slerp(one: np.ndarray, other: np.ndarray, mix: float, parts: list[slice]) -> np.ndarray:
    """Left of the split with this share of the other, right of it with the rest."""
    angle = math.acos(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    child = one.copy()
    if math.sin(angle) > 1e-6:
        for part, share in zip(parts, (mix, 1 - mix), strict=True):
            weights = math.sin((1 - share) * angle), math.sin(share * angle)
            child[part] = (weights[0] * one[part] + weights[1] * other[part]) / math.sin(angle)
    return child


def by_hand(
    seen: list[np.ndarray], size: int, switches: dict[str, Any], noise: float
) -> list[np.ndarray]:
    """What each vector should be, given those before; insertion, selection, birth as loops."""
    alpha = switches.get("alpha", 1.0)
    rows = [(np.zeros(ITEMS), np.zeros(TOTAL))] * size
    vectors: list[np.ndarray] = []

    def fitness(of: list[Any]) -> tuple[np.ndarray, list[float]]:
        all_scores = np.array([scores for scores, _ in of])
        z = all_scores.sum(axis=0)
        share = all_scores.max(axis=0) / np.where(z == 0, 1, z) ** alpha
        return share, [float(scores @ share) for scores, _ in of]

    def drawn(weights: list[float], lot: float) -> int:
        return int(np.searchsorted(np.cumsum(weights), lot * sum(weights), "right"))

    for number in range(len(seen)):
        if number < len(SEEDS):
            vector = SEEDS[number].astype(float)
        else:
            lots = np.random.Generator(np.random.SFC64((5, number)))
            (share, worth), (one, two) = fitness(rows), lots.random(2)
            first = drawn(worth, one)
            gains = worth
            if switches.get("attraction", True):
                own = rows[first][0]
                gains = [float(np.maximum(scores - own, 0) @ share) for scores, _ in rows]
                if not any(gains):
                    gains = [w * (i != first) for i, w in enumerate(worth)]
            second = drawn(gains, two) if switches.get("crossover", True) else first
            mix, split = float(lots.random()), int(lots.integers(TOTAL))
            split = split if switches.get("split", True) else TOTAL
            parts = [slice(0, split), slice(split, TOTAL)]
            vector = rows[first][1]
            if second != first:
                vector = slerp(vector, rows[second][1], mix, parts)
            vector = vector + noise * lots.standard_normal(TOTAL, np.float32)
        vectors.append(vector)
        child = score(seen[number]), seen[number].astype(float)
        worst = int(np.argmin(fitness([*rows, child])[1]))
        rows[worst : worst + 1] = [
            child
        ]  # in its row; beyond the last, where it is the worst itself
        rows = rows[:size]
    return vectors


@pytest.mark.parametrize(
    ("switches", "noise"),
    [
        ({}, 0.0),
        ({}, 0.3),
        ({"alpha": 0.0, "attraction": False}, 0.3),
        ({"split": False}, 0.3),
        ({"crossover": False}, 0.3),
    ],
)
def test_it_is_the_papers_loop(switches: dict[str, Any], noise: float) -> None:
    seen: list[np.ndarray] = []

    def watched(vector: np.ndarray) -> np.ndarray:
        seen.append(vector.copy())
        return score(vector)

    evolution = Evolution(list(SEEDS), watched, archive=5, noise_std=noise, seed=5, **switches)
    evolution.run(30)
    evolution.run(80)
    expected = by_hand(seen, 5, switches, noise)
    np.testing.assert_allclose(seen, expected, atol=1e-4)
    assert evolution.num_evaluations == 80
    assert len(evolution.members) == 5
    best = evolution.best()
    np.testing.assert_array_equal(evolution.vector(best), seen[best])
    means = [score(seen[member]).mean() for member in evolution.members]
    assert evolution.scores(best).mean() == max(means)


def test_who_has_no_finite_score_never_enters_and_without_anybody_it_ends() -> None:
    calls = 0

    def breaks(vector: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return np.full(ITEMS, np.nan) if calls % 3 == 1 else score(vector)

    evolution = Evolution(list(SEEDS), breaks, archive=4, noise_std=0.1)
    evolution.run(31)
    assert evolution.num_failed == 11
    assert all(member % 3 for member in evolution.members)
    dead = Evolution(list(SEEDS), lambda _: [np.inf])
    with pytest.raises(RuntimeError, match="no seed could be scored"):
        dead.run(3)


@pytest.mark.parametrize("wrong", [{"archive": 0}, {"alpha": -1.0}, {"seeds": [[1.0], [1.0, 2.0]]}])
def test_what_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Evolution(**{"seeds": list(SEEDS), "score": score, **wrong})
