"""Evolution in memory against the published steps as loops, and its random numbers."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from evomerge.evolution import Evolution

TOTAL, NUM_ITEMS = 40, 15
GENERATOR = np.random.default_rng(0)
PROBES = GENERATOR.standard_normal((NUM_ITEMS, TOTAL))
SEEDS = GENERATOR.standard_normal((2, TOTAL)).astype(np.float32)


def right(vector: np.ndarray) -> np.ndarray:
    """Items that a vector gets right: about half of them."""
    return np.einsum("ij,j->i", PROBES, vector.astype(np.float64)) > 0.5


def published(evaluations: int, size: int, alpha: float, attraction: bool, std: float) -> Any:
    """Who is alive in the end, row by row: the steps of the paper, with the same random numbers."""
    rows: list[tuple[list[float], Any, int | None]] = [([0.0] * NUM_ITEMS, None, None)] * size

    def judged(among: list[Any]) -> tuple[list[Fraction], list[Fraction]]:
        z = [sum(row[0][j] for row in among) or 1 for j in range(NUM_ITEMS)]
        share = [Fraction(1, int(z_j)) if alpha else Fraction(1) for z_j in z]
        return share, [sum(int(s) * w for s, w in zip(row[0], share, strict=True)) for row in among]

    def drawn(weights: list[Fraction], lot: float) -> int:
        ends = np.cumsum([float(weight / sum(weights)) for weight in weights])
        return int(np.argmax(ends > lot))

    for number in range(evaluations):
        if number < len(SEEDS):
            child = SEEDS[number]
        else:
            lots = np.random.Generator(np.random.SFC64((5, number)))
            share, fitness = judged(rows)
            one, two = lots.random(2)
            first = drawn(fitness, one)
            weights = fitness
            if attraction:
                mine = rows[first][0]
                weights = [
                    sum(w * int(max(s - m, 0)) for w, s, m in zip(share, row[0], mine, strict=True))
                    for row in rows
                ]
                if not sum(weights):
                    weights = [f * (i != first) for i, f in enumerate(fitness)]
            second = drawn(weights, two) if sum(weights) else first
            mix, split = lots.random(), lots.integers(TOTAL)
            a, b = (rows[i][1].astype(np.float64) for i in (first, second))
            angle = np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))
            w = np.where(np.arange(TOTAL) < split, mix, 1 - mix)
            near = np.sin(angle) <= 1e-6
            x, y = (1 - w, w) if near else np.sin([(1 - w) * angle, w * angle]) / np.sin(angle)
            child = (x * a + y * b).astype(np.float32)
            if std:
                child += np.float32(std) * lots.standard_normal(TOTAL, np.float32)
        extended = [*rows, (right(child).astype(float).tolist(), child, number)]
        _, fitness = judged(extended)
        worst = fitness.index(min(fitness))
        if worst < size:
            rows[worst] = extended[-1]
    return rows


@pytest.mark.parametrize("alpha", [1.0, 0.0])
@pytest.mark.parametrize("attraction", [True, False])
@pytest.mark.parametrize("std", [0.0, 0.1])
def test_it_is_the_published_algorithm(alpha: float, attraction: bool, std: float) -> None:
    evolution = Evolution(
        SEEDS, right, archive=4, alpha=alpha, attraction=attraction, noise_std=std, seed=5
    )
    evolution.run(150)
    expected = [row for row in published(150, 4, alpha, attraction, std) if row[2] is not None]
    assert evolution.members == tuple(row[2] for row in expected)
    for member, (scores, vector, _) in zip(evolution.members, expected, strict=True):
        assert np.allclose(evolution.vector(member), vector, atol=1e-4)
        assert evolution.scores(member).tolist() == scores
    best = max(expected, key=lambda row: sum(row[0]))
    assert evolution.best() == best[2]


def test_a_run_in_pieces_is_the_same_run() -> None:
    whole, parts = (Evolution(SEEDS, right, noise_std=0.1, seed=1) for _ in range(2))
    whole.run(200)
    for stop in (1, 2, 3, 90, 90, 200):
        parts.run(stop)
        assert parts.num_evaluations == stop
    assert whole.members == parts.members
    for member in whole.members:
        assert (whole.vector(member) == parts.vector(member)).all()


def test_what_cannot_be_scored_never_enters_and_stops_nothing() -> None:
    calls = []

    def sometimes(vector: np.ndarray) -> np.ndarray:
        calls.append(len(calls))
        scores = right(vector).astype(float)
        if len(calls) % 3 == 0:
            scores[4] = np.nan
        return scores

    evolution = Evolution(SEEDS, sometimes, archive=5, noise_std=0.1)
    evolution.run(90)
    assert evolution.num_failed == 30
    assert all(member % 3 != 2 for member in evolution.members)
    assert len(evolution._dense) == len(evolution.members) == 5  # the dead are forgotten
    hopeless = Evolution(SEEDS, lambda _: [np.nan])
    with pytest.raises(RuntimeError, match="nobody"):
        hopeless.best()
    with pytest.raises(RuntimeError, match="no seed could be scored"):
        hopeless.run(3)


def test_noise_is_the_childs_own_and_switches_do_what_they_say() -> None:
    plain = Evolution(SEEDS, right, crossover=False, seed=2)
    plain.run(30)
    assert all(any((plain.vector(m) == seed).all() for seed in SEEDS) for m in plain.members)
    noisy = Evolution(SEEDS[:1], right, crossover=False, noise_std=0.1, archive=30, seed=2)
    noisy.run(2)
    expected = np.random.Generator(np.random.SFC64((2, 1)))
    expected.random(3), expected.integers(TOTAL)
    noise = np.float32(0.1) * expected.standard_normal(TOTAL, np.float32)
    assert np.allclose(noisy.vector(1), SEEDS[0] + noise, atol=1e-6)
    # Without split points a child of two vectors of one length is of that length, and no other.
    unit = [seed / np.linalg.norm(seed) for seed in SEEDS]
    whole = Evolution(unit, right, split=False, archive=30)
    whole.run(12)
    assert np.allclose([np.linalg.norm(whole.vector(m)) for m in whole.members], 1, atol=1e-5)
    split = Evolution(unit, right, archive=30)
    split.run(12)
    assert not np.allclose([np.linalg.norm(split.vector(m)) for m in split.members], 1, atol=1e-3)


@pytest.mark.parametrize(
    ("seeds", "more"),
    [
        ([], {}),
        ([[1.0, 2.0], [1.0]], {}),
        ([[1.0, np.inf]], {}),
        ([[1.0]], {"archive": 0}),
        ([[1.0]], {"alpha": -1.0}),
    ],
)
def test_what_makes_no_sense_is_refused(seeds: Any, more: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        Evolution(seeds, right, **more)


def test_another_process_with_other_threads_evolves_the_same() -> None:
    code = (
        "import hashlib, numpy as np; from evomerge.evolution import Evolution; "
        "g = np.random.default_rng(0); p = g.standard_normal((50, 20000)); "
        "right = lambda v: np.einsum('ij,j->i', p, v) > 0; "
        "e = Evolution(g.standard_normal((2, 20000)), right, noise_std=.5, archive=6); e.run(40); "
        "print(e.members, hashlib.sha256(b''.join(e.vector(m) for m in e.members)).hexdigest())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={
                "OPENBLAS_NUM_THREADS": threads,
                "PYTHONHASHSEED": threads,
                "PYTHONPATH": ":".join(sys.path),
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(said) == 1
