"""Searchers that add and average experts: greedy soup, kinship, Frank-Wolfe.

Oracles: the recipes written as loops here, cosines of real vectors, and scipy's optimum.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from searcher_calls import Cube, bowls, evaluation

from evomerge.errors import ConfigurationError
from evomerge.records import Facts, Genome
from evomerge.searchers import SEARCHERS, make_searcher

KINDS = ("greedy_soup", "kinship", "frank_wolfe")


def facts_of(experts: np.ndarray, vectors: np.ndarray | None = None) -> Facts:
    rows = tuple(row.tolist() for row in experts)
    gram = () if vectors is None else tuple(map(tuple, (vectors @ vectors.T).tolist()))
    return Facts(designs=rows, experts=rows, gram=gram)


def made(kind: str, experts: np.ndarray, vectors: np.ndarray | None = None, **options: Any) -> Any:
    return make_searcher(kind, Cube(experts.shape[1]), 0, facts_of(experts, vectors), options)


def run(
    searcher: Any, score: Callable[[Genome], float | None], most: int = 500
) -> list[list[Genome]]:
    """Rounds of genomes until it ends."""
    rounds: list[list[Genome]] = []
    told = 0
    while told < most and (genomes := searcher.ask(100)):
        assert searcher.ask(5) == []  # while they are outstanding
        values = [score(genome) for genome in genomes]
        searcher.tell(
            [
                evaluation(told + i, g, None if v is None else [v])
                for i, (g, v) in enumerate(zip(genomes, values, strict=True))
            ]
        )
        told += len(genomes)
        rounds.append(genomes)
    return rounds


def random_experts(seed: int, count: int = 5, genes: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).random((count, genes))


def bowl(seed: int, genes: int = 4) -> Callable[[Genome], float]:
    best = np.random.default_rng([seed, 1]).random(genes)
    return lambda genome: -float(((np.asarray(genome) - best) ** 2).sum())


# --- greedy soup ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_greedy_soup_is_recipe_1(seed: int) -> None:
    experts, score = random_experts(seed), bowl(seed)
    order = sorted(range(5), key=lambda i: -score(experts[i].tolist()))
    soup, asked = [order[0]], []
    for i in order[1:]:
        trial = experts[[*soup, i]].mean(axis=0).tolist()
        asked.append(trial)
        if score(trial) >= score(experts[soup].mean(axis=0).tolist()):
            soup.append(i)
    searcher = made("greedy_soup", experts)
    rounds = run(searcher, score)
    np.testing.assert_allclose(rounds[0], experts)
    assert all(len(genomes) == 1 for genomes in rounds[1:])
    np.testing.assert_allclose([genomes[0] for genomes in rounds[1:]], asked, atol=1e-12)
    np.testing.assert_allclose(searcher.recommend(), experts[soup].mean(axis=0), atol=1e-12)


def test_greedy_soup_takes_what_does_no_harm_and_tries_it_again_in_a_second_pass() -> None:
    experts = np.array([[0.5, 0.2], [0.9, 0.5], [0.5, 0.8]])
    score = lambda genome: -abs(genome[0] - 0.5)  # noqa: E731
    once = made("greedy_soup", experts)  # the third is as good as the first, and so is their mean
    assert len(run(once, score)) == 3
    np.testing.assert_allclose(once.recommend(), [0.5, 0.5])
    far = np.array([[0.5, 0.0], [0.8, 0.5], [0.2, 1.0], [0.2, 0.0]])
    uneven = lambda g: -((g[0] - 0.5) ** 2) - 0.2 * (g[1] - 0.5) ** 2  # noqa: E731
    one, two = made("greedy_soup", far), made("greedy_soup", far, passes=5)
    assert len(run(one, uneven)) <= len(run(two, uneven))
    assert uneven(two.recommend()) >= uneven(one.recommend())


def test_greedy_soup_by_cosine_takes_the_most_similar_next() -> None:
    experts = np.eye(4) * 0.5
    vectors = np.array([[1.0, 0, 0], [0.9, 0.1, 0], [-1, 0.2, 0], [0.3, 0.9, 0]])
    score = lambda genome: sum(genome) + genome[0]  # noqa: E731
    rounds = run(made("greedy_soup", experts, vectors, order="cosine"), score)
    tried = [set(np.flatnonzero(genomes[0])) for genomes in rounds[1:]]
    # The first is the best alone. Without it and before it, no soup is better: each is tried alone.
    assert tried == [{0, 1}, {0, 3}, {0, 2}]
    with pytest.raises(ConfigurationError, match="order: score"):
        made("greedy_soup", experts, order="cosine")


def test_greedy_soup_compares_with_the_soups_latest_score() -> None:
    experts = np.eye(3)
    searcher = made("greedy_soup", experts)
    for i, genome in enumerate(searcher.ask(9)):
        searcher.tell([evaluation(i, genome, [1.0 - i / 10])])
    trial = searcher.ask(1)[0]
    searcher.tell([evaluation(0, experts[0].tolist(), [0.5])])  # the incumbent, measured again
    searcher.tell([evaluation(3, trial, [0.6])])
    assert searcher.recommend() == [0.5, 0.5, 0.0]


# --- kinship --------------------------------------------------------------------------------------


def test_kinship_merges_the_best_with_the_least_related() -> None:
    """A round, from cosines of vectors that really are merged."""
    generator = np.random.default_rng(3)
    vectors = generator.normal(size=(6, 50))
    experts = np.eye(6)
    score = lambda genome: float(genome @ np.array([6, 5, 4, 3, 2, 1]))  # noqa: E731
    rounds = run(made("kinship", experts, vectors, top_k=2), lambda g: score(np.asarray(g)), 12)
    cosines = [
        vectors[0] @ other / np.linalg.norm(vectors[0]) / np.linalg.norm(other)
        for other in vectors[1:]
    ]
    stranger = 1 + int(np.argmin(cosines))
    expected = [experts[[0, 1]].mean(axis=0), experts[[0, stranger]].mean(axis=0)]
    np.testing.assert_allclose(rounds[1], expected[: 1 if stranger == 1 else 2])
    # Of the merges, too.
    population = [*experts, *map(np.asarray, rounds[1])]
    ranked = sorted(population, key=lambda w: -score(w))
    merged = [w @ vectors for w in ranked]
    seen = {tuple(np.round(w, 9)) for w in population}
    cosines = [
        np.inf
        if tuple(np.round((ranked[0] + w) / 2, 9)) in seen
        else merged[0] @ v / np.linalg.norm(merged[0]) / np.linalg.norm(v)
        for w, v in zip(ranked[1:], merged[1:], strict=True)
    ]
    strange = (ranked[0] + ranked[1 + int(np.argmin(cosines))]) / 2
    assert any(np.allclose(genome, strange) for genome in rounds[2])


def test_kinship_stops_without_progress_and_at_saturation_and_asks_nothing_twice() -> None:
    experts, vectors = random_experts(1), np.eye(5)
    score = lambda genome: round(bowl(1)(genome), 2)  # noqa: E731
    rounds = run(made("kinship", experts, vectors), score)
    asked = [tuple(np.round(genome, 9)) for genomes in rounds for genome in genomes]
    assert len(asked) == len(set(asked))
    best = [max(score(g) for g in genomes) for genomes in rounds]
    assert max(best[-2:]) <= max(best[:-2])  # two rounds in vain
    patient = run(made("kinship", experts, vectors, patience=5), score)
    assert len(patient) >= len(rounds)
    alike = np.ones((5, 1)) @ np.ones((1, 3))
    assert len(run(made("kinship", experts, alike), score)) == 1  # all are one model
    with pytest.raises(ConfigurationError, match="not known here"):
        made("kinship", experts)


def test_exploration_gets_out_where_the_greedy_strategy_is_stuck() -> None:
    """The two best are alike; the partner that helps is the least related one."""
    vectors = np.array([[1, 0.02, 0], [1, 0, 0.02], [1, 0.02, 0.02], [0.0, 1, 0.2]])
    experts = np.eye(4)

    def score(genome: Genome) -> float:
        merged = np.asarray(genome) @ vectors
        return -float(((merged - [0.5, 0.5, 0.1]) ** 2).sum()) - 0.05 * genome[3]

    results = {}
    for strategy in ("greedy", "kinship"):
        rounds = run(made("kinship", experts, vectors, strategy=strategy, top_k=2), score)
        results[strategy] = max(score(g) for genomes in rounds for g in genomes)
    assert results["kinship"] > results["greedy"] + 0.1


# --- Frank-Wolfe ----------------------------------------------------------------------------------


def on_the_simplex(score: Callable[[np.ndarray], float], experts: np.ndarray) -> float:
    """The best value in the experts' hull, by scipy."""
    count = len(experts)
    found = minimize(
        lambda w: -score(w @ experts),
        np.full(count, 1 / count),
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    return -float(found.fun)


@pytest.mark.parametrize("seed", range(6))
def test_frank_wolfe_finds_the_optimum_over_the_simplex(seed: int) -> None:
    experts = random_experts(seed, 4, 6)
    best = np.random.default_rng([seed, 2]).random(6)
    score = lambda x: -float(((np.asarray(x) - best) ** 2).sum())  # noqa: E731
    searcher = made("frank_wolfe", experts, eps=0.001, step_size=1.0, iterations=300)
    rounds = run(searcher, score, 10_000)
    assert len(rounds) == 300
    optimum, start = on_the_simplex(score, experts), score(experts.mean(axis=0))
    assert optimum + 1e-9 >= score(searcher.recommend()) > optimum - 0.01
    # The theory's bound for an exact oracle: 2 C / (t + 2), C the curvature over the hull.
    curvature = max(2 * ((a - b) ** 2).sum() for a, b in itertools.combinations(experts, 2))
    for t in range(1, 300, 30):
        assert optimum - score(rounds[t][0]) <= 2 * curvature / (t + 2) + 0.005
    assert start <= optimum + 1e-9


@pytest.mark.parametrize("start", ["uniform", "base"])
def test_frank_wolfe_stays_in_the_hull(start: str) -> None:
    experts = np.array([[1.0, 0.5, 0.5], [0.5, 1.0, 0.5], [0.5, 0.5, 1.0]])  # base: [.5, .5, .5]
    searcher = made("frank_wolfe", experts, start=start, step_size=1.0 if start == "base" else 0.3)
    rounds = run(searcher, lambda g: bowls(g, 1)[0], 400)
    shares = (np.array([g for genomes in rounds for g in genomes]) - 0.5) * 2
    sums = shares.sum(axis=1)
    assert (shares >= -1e-12).all()
    assert (sums <= 1 + 1e-12).all()
    if start == "uniform":
        np.testing.assert_allclose(sums, 1)
    else:
        assert rounds[0][0] == [0.5, 0.5, 0.5]


def test_frank_wolfe_compares_within_an_iteration_alone() -> None:
    """Noise that all candidates of an iteration share changes nothing."""
    experts = random_experts(4)
    generator = np.random.default_rng(0)
    quiet, noisy = made("frank_wolfe", experts), made("frank_wolfe", experts)
    score = bowl(4)
    for iteration in range(20):
        genomes = quiet.ask(6)
        assert noisy.ask(6) == genomes
        shared = float(generator.normal())
        for searcher, offset in ((quiet, 0.0), (noisy, shared)):
            searcher.tell(
                [
                    evaluation(6 * iteration + i, g, [score(g) + offset])
                    for i, g in enumerate(genomes)
                ]
            )
    assert quiet.recommend() == noisy.recommend()


# --- what the contract says of all others ---------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_rounds_that_fail_or_drift_or_were_not_asked(kind: str) -> None:
    assert set(KINDS) <= set(SEARCHERS)
    experts, vectors = random_experts(2), np.eye(5)
    run(made(kind, experts, vectors), lambda g: None, 100)
    generator = np.random.default_rng(1)
    searcher, told = made(kind, experts, vectors), 0
    with pytest.raises(ValueError, match="asked for"):
        searcher.tell([evaluation(0, [0.5] * 4, [0.0])])
    while told < 60 and (genomes := searcher.ask(100)):
        drifted = [np.clip(np.add(g, generator.normal(0, 0.02, 4)), 0, 1).tolist() for g in genomes]
        searcher.tell([evaluation(-1, None, [9.0])])  # a reference
        searcher.tell([evaluation(told + i, g, bowls(g, 1)) for i, g in enumerate(drifted)])
        told += len(genomes)
    assert told > 5
