"""Restarts against the rules of the papers, and CMA-ES that follows them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from searcher_calls import Setting, bowls, evaluation

from evomerge.errors import ConfigurationError
from evomerge.searchers.cma_restarts import Restarts, Start

FIRST = Start(10, 0.2)


def restarts(kind: Any, count: int, seed: int = 0) -> Restarts:
    return Restarts(kind, count, FIRST, np.random.default_rng(seed))


def test_ipop_doubles_the_population_so_many_times() -> None:
    made = restarts("ipop", 3)
    found = []
    while (start := made.next()) is not None:
        found.append(start)
        assert not made.spend(10**9)
    assert found == [Start(20, 0.2), Start(40, 0.2), Start(80, 0.2)]


def test_bipop_takes_the_regime_that_has_used_less() -> None:
    used = {"large": 0, "small": 0}
    for seed in range(20):
        made, large, last_large = restarts("bipop", 4, seed), 10, 0
        made.spend(777)  # the first run belongs to no regime
        used = {"large": 0, "small": 0}
        starts = []
        while (start := made.next()) is not None:
            starts.append(start)
            regime = "small" if used["small"] < used["large"] else "large"
            if regime == "large":
                large *= 2
                assert start == Start(large, 0.2)
            else:
                assert 10 <= start.population <= max(large / 2, 10)
                assert 0.002 <= start.sigma <= 0.2
            spent = 0
            most = 100 if regime == "large" else 10_000
            while spent < most * start.population:
                spent += start.population
                if made.spend(start.population):
                    assert regime == "small"
                    assert spent >= last_large / 2
                    break
            assert regime == "large" or spent < last_large / 2 + start.population
            used[regime] += spent
            last_large = spent if regime == "large" else last_large
        assert max(start.population for start in starts) == 160
        assert used["small"] >= used["large"]


def run(options: dict[str, Any], num_generations: int, seed: int = 0) -> list[Any]:
    """Population and first genomes of each start, on a flat landscape."""
    designs = ([0.1] * 3, [0.9] * 3)
    searcher: Any = Setting("cma_es", 3, seed, designs=designs, options=options).make()
    ids, seen, last = itertools.count(), [], None
    for _ in range(num_generations):
        genomes = searcher.ask(10_000)
        if searcher._strategy is not last:
            last = searcher._strategy
            seen.append((searcher.population, np.array(genomes)))
        searcher.tell([evaluation(next(ids), g, bowls(g, 1)) for g in genomes])
    return seen


def test_cma_es_follows_bipop() -> None:
    seen = run({"restart": "bipop", "restarts": 1, "population": 8, "sigma0": 0.1}, 260)
    sizes = [population for population, _ in seen]
    assert sizes[:2] == [8, 16]
    assert any(size < 16 for size in sizes[2:])
    spreads = [genomes.std() for _, genomes in seen]
    assert min(spreads) < 0.05


@pytest.mark.parametrize(
    ("where", "means"),
    [("x0", [0.5, 0.5, 0.5, 0.5]), ("designs", [0.5, 0.1, 0.9, 0.1]), ("random", None)],
)
def test_restarts_begin_where_they_are_told_to(where: str, means: list[float] | None) -> None:
    options = {"restart_from": where, "population": 8, "sigma0": 1e-3, "restarts": 3}
    found = [genomes.mean(axis=0) for _, genomes in run(options, 400)]
    assert len(found) == 4
    if means is not None:
        assert np.allclose(found, np.array(means)[:, None], atol=0.01)
    else:
        assert min(np.abs(a - b).max() for a, b in itertools.combinations(found, 2)) > 0.1


def test_restarts_cannot_begin_at_designs_that_are_not() -> None:
    with pytest.raises(ConfigurationError, match="restart_from"):
        Setting("cma_es", 3, options={"restart_from": "designs"}).make()
