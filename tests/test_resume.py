"""A run that is killed anywhere and resumed equals one that never was."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from toys import Toy, forked, measured_twice, outcome_of

from evomerge.errors import ConfigurationError, LedgerDamaged
from evomerge.experiment import run as runs
from evomerge.failpoints import FAILPOINTS
from evomerge.ledger import Ledger
from evomerge.searchers.random import RandomSearch

KILLED = -9
RUN_FAILPOINTS = [name for name in FAILPOINTS if not name.startswith("export")]
# Occurrences in one session each: the first, one in the middle, a late one. A session that
# resumes counts anew, and does only what is left.
OCCURRENCES = {"ask": (1, 3, 1), "result": (1, 40, 25), "tell": (1, 2, 1)}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "write_pictures", lambda *_: None)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Toy], dict[str, Any]]:
    """What comes of a search that nobody disturbs."""
    known: dict[str, dict[str, Any]] = {}

    def outcome(toy: Toy) -> dict[str, Any]:
        if (key := repr(toy)) not in known:
            known[key] = outcome_of(toy.run(tmp_path_factory.mktemp("uninterrupted")))
        return known[key]

    return outcome


@pytest.mark.parametrize("estimator", toys.ESTIMATORS)
@pytest.mark.parametrize("searcher", toys.SEARCHERS)
@pytest.mark.parametrize("failpoint", RUN_FAILPOINTS)
def test_killed_three_times_at_a_failpoint(failpoint, searcher, estimator, tmp_path, uninterrupted):
    toy = Toy(searcher, estimator)
    for occurrence in OCCURRENCES[failpoint.partition(".")[0]]:
        assert forked(lambda: toy.run(tmp_path), f"{failpoint}:{occurrence}") == KILLED
    assert forked(lambda: toy.run(tmp_path)) == 0
    assert outcome_of(tmp_path) == uninterrupted(toy)
    assert measured_twice(tmp_path) <= 3 * 48  # one job for each kill: two tasks of 24 items


@pytest.mark.parametrize("searcher", toys.SEARCHERS)
def test_killed_at_random_times(searcher, tmp_path, uninterrupted):
    toy = Toy(searcher, "racing")
    expected = uninterrupted(toy)
    generator = np.random.default_rng([len(searcher), 5])
    for _ in range(12):
        forked(lambda: toy.run(tmp_path), kill_after_s=float(generator.uniform(0.005, 0.15)))
    assert forked(lambda: toy.run(tmp_path)) == 0
    assert outcome_of(tmp_path) == expected
