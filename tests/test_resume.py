"""A run that is extended equals one that was longer from the start."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
import toys
from toys import ESTIMATORS, Toy, forked, outcome_of

from evomerge.experiment import run as runs
from evomerge.pools.inline import InlinePool
from evomerge.records import Outcome


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "write_pictures", lambda *_: None)


EXTENDED = [
    *(Toy(searcher, estimator) for searcher in toys.SEARCHERS for estimator in toys.ESTIMATORS),
    Toy("random", "full", keys={"in_flight": 12, "cohort": 3}),
    Toy("random", "racing", keys={"in_flight": 12, "cohort": 3}),
    Toy("cma_es", "racing", keys={"in_flight": 5}),
    Toy("nsga2", "racing", keys={"in_flight": 20, "cohort": 8}),
]


@pytest.mark.parametrize("toy", EXTENDED, ids=lambda t: f"{t.searcher}-{t.estimator}-{t.keys}")
@pytest.mark.parametrize("first", [pytest.param(16, marks=pytest.mark.slow), 27])
def test_a_run_that_is_extended_equals_a_longer_one(toy, first, tmp_path, uninterrupted):
    toy.run(tmp_path, budget=first)
    short = outcome_of(tmp_path)
    assert len(short["evaluations"]) == first
    toy.run(tmp_path)
    extended, expected = outcome_of(tmp_path), uninterrupted(toy)
    assert extended["digest"] == expected["digest"]
    assert extended["evaluations"] == expected["evaluations"]
    assert extended["final"] == expected["final"]


def test_many_candidates_extended_by_as_many(tmp_path):
    """100 extended to 200 equals 200."""
    toy = Toy("cma_es", "racing")
    toy.run(tmp_path / "whole", budget=200)
    for budget in (100, 200):
        toy.run(tmp_path / "parts", budget=budget)
    whole, parts = outcome_of(tmp_path / "whole"), outcome_of(tmp_path / "parts")
    assert len(whole["evaluations"]) == 200
    assert parts["digest"] == whole["digest"]
    assert parts["final"] == whole["final"]


def test_a_run_is_not_resumed_with_another_space() -> None:
    """Where a whole number counts and a fraction is a share, 1 and 1.0 are not the same."""
    from evomerge.experiment.identity import differences

    stack = {"kind": "layer_stack", "layers": [1.0, 2.0]}
    assert differences({"space": stack}, {"space": dict(stack)}) == []
    changed = {"space": {**stack, "layers": [1, 2]}}
    assert [key for key, _, _ in differences({"space": stack}, changed)] == ["space.layers"]
    # A run that was made before a key was there is one with the key's default.
    old = {"kind": "weights", "operator": "ties", "layers_per_group": 1, "fixed": {}}
    old["search"] = {"weight": {"per": ["expert"], "range": [0.0, 1.0]}}
    new = {"kind": "weights", "operator": "ties", "search": old["search"], "expert_groups": {}}
    assert differences({"space": old, "seed": 0}, {"space": new, "seed": 0}) == []
    assert differences({"space": old, "seed": 0}, {"space": new, "seed": 1}) == [("seed", 0, 1)]


def test_a_budget_of_items_ends_a_search_at_the_same_place_whatever_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cohorts under way share their incumbents, and the items that rotate come back."""
    race = {"kind": "racing", "rungs": [3, 5, 7], "keep": 0.5, "incumbents": 2}
    monkeypatch.setitem(ESTIMATORS, "racing", race)
    toy = Toy(estimator="racing", keys={"in_flight": 32, "cohort": 4})
    budget = {"item_evaluations": 1220}
    collect, rng = InlinePool.collect, random.Random(0)

    def shuffled(pool: InlinePool, timeout_s: float) -> list[Outcome]:
        pool._queue.rotate(-rng.randrange(max(1, len(pool._queue))))
        return collect(pool, timeout_s)

    expected = outcome_of(toy.run(tmp_path / "0", budget))
    monkeypatch.setattr(InlinePool, "collect", shuffled)
    killed = tmp_path / "2"
    assert forked(lambda: toy.run(killed, budget), "tell.after_commit:9") == -signal.SIGKILL
    for out in (tmp_path / "1", killed, tmp_path / "3"):
        found = outcome_of(toy.run(out, budget))
        # What cohorts under way have answered by then is recorded, and counts for nothing.
        assert found.pop("item_evaluations") > 1220
        assert found == {key: expected[key] for key in found}
