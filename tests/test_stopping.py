"""When a search ends by what it has found; the oracle is the definition, written out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toys import Toy, outcome_of

from evomerge.errors import ConfigurationError
from evomerge.experiment import run as runs
from evomerge.ledger import LEDGER, Ledger
from evomerge.records import Estimate, Evaluation, Score
from evomerge.stopping import Progress, has, lower_bound


def evaluation(id_: int, value: float, error: float = 0.0) -> Evaluation:
    return Evaluation(id_, None, Score({"a": Estimate(value, error, 10)}))


def test_a_bound_is_the_means_and_costs_do_not_count() -> None:
    score = Score(
        {"a": Estimate(0.6, 0.03, 9), "b": Estimate(0.8, 0.04, 9), "size": Estimate(-1e6, 0.0, 0)}
    )
    assert lower_bound(score) == pytest.approx(0.7 - 1.96 * 0.05 / 2)


def test_progress_is_a_new_best_that_is_surely_better_than_the_last() -> None:
    progress = Progress()
    best, doubtful, surely = evaluation(0, 0.5), evaluation(1, 0.55, 0.1), evaluation(2, 0.7, 0.05)
    progress.told(best, [best], 8)
    assert (progress.since, progress.bound) == (8, 0.5)
    progress.told(doubtful, [doubtful], 16)
    assert progress.since == 8
    progress.told(surely, [surely], 24)
    assert progress.since == 24
    anew = evaluation(2, 0.9)  # the same one, on other items
    progress.told(anew, [anew], 32)
    assert (progress.since, progress.bound) == (24, 0.9)
    progress.told(None, [], 40)
    assert progress.since == 24


def test_a_target_is_reached_by_the_first_that_has_all_of_it_surely() -> None:
    progress = Progress({"a": 0.5, "b": -10.0})
    news = [
        Evaluation(i, None, Score({"a": Estimate(a, e, 5), "b": Estimate(b, 0.0, 0)}))
        for i, (a, e, b) in enumerate(
            [(0.9, 0.3, -5.0), (0.6, 0.01, -11.0), (0.6, 0.01, -10.0), (0.9, 0.0, 0.0)]
        )
    ]
    progress.told(None, [Evaluation(9, None, None), *news], 4)
    assert progress.reached == 2
    assert has({"a": 0.5}, news[1].score or Score({}))


def test_who_was_dropped_has_reached_nothing() -> None:
    """Four answers that are all right may look better than any that ran the whole race."""
    progress = Progress({"a": 0.9})
    dropped, best = evaluation(0, 1.0), Evaluation(1, None, Score({"a": Estimate(0.8, 0, 24)}, 2))
    progress.told(best, [dropped, best], 8)
    assert progress.reached is None
    better = Evaluation(2, None, Score({"a": Estimate(0.95, 0, 24)}, 2))
    progress.told(better, [better], 16)
    assert progress.reached == 2


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "write_pictures", lambda *_: None)


def told_of(folder: Path) -> list[list[int]]:
    """The candidates of each tell."""
    ledger = Ledger(folder / LEDGER, read_only=True)
    return [[entry["id"] for entry in data] for _, _, data in ledger.events("told")]


def test_patience_ends_a_run_and_a_longer_one_goes_on_as_if_nothing_had_been(
    tmp_path: Path,
) -> None:
    toy = Toy("cma_es", "full")
    whole = outcome_of(toy.run(tmp_path / "whole", budget=96))["digest"]
    stopped = toy.run(tmp_path / "parts", budget={"candidates": 96, "patience": 16})
    final = toy.open(stopped).status()["final"]
    told = told_of(stopped)
    assert final["ended"].startswith("no progress for ")
    assert len(told) < 12
    # The definition, on what was told: 16 candidates since a new best was surely better.
    evaluations = Ledger(stopped / LEDGER, read_only=True).evaluations()
    best, bound, since, count = None, float("-inf"), 0, 0
    for number, ids in enumerate(told):
        assert count - since < 16, number
        count += len(ids)
        for id_ in ids:
            score = evaluations[id_].score
            if score is not None and (best is None or score.mean > best[0]):
                best = score.mean, lower_bound(score)
        assert best is not None
        if best[1] > bound:
            bound, since = best[1], count
        bound = best[1]
    assert count - since >= 16
    assert outcome_of(toy.run(stopped, budget=96))["digest"] == whole


def test_a_target_ends_a_run(tmp_path: Path) -> None:
    toy = Toy("cma_es", "full")
    run = toy.run(tmp_path, budget={"candidates": 96, "target": 0.3})
    final = toy.open(run).status()["final"]
    evaluations = Ledger(run / LEDGER, read_only=True).evaluations()
    scores = {id_: e.score for id_, e in sorted(evaluations.items()) if e.score is not None}
    first = next(id_ for id_, score in scores.items() if lower_bound(score) >= 0.3)
    assert final["ended"] == f"candidate {first} has reached the target"
    assert first in told_of(run)[-1]
    assert len(told_of(run)) < 12


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ({"target": 0.5}, "one number, and there are several objectives: first, second"),
        ({"target": {"frist": 0.5}}, "did you mean 'first'"),
        ({"patience": 0}, "greater than or equal to 1"),
        ({"target": {}}, "at least one of candidates"),
        ({}, "at least one of candidates, item_evaluations, hours, patience, target"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_measured(
    budget: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Toy("random", "full").run(tmp_path / "run", budget=budget)
    assert told in str(caught.value)


def test_a_target_of_what_is_to_be_small_is_in_its_own_units() -> None:
    config = Toy("random", "full").config({"candidates": 8, "target": {"second": 3.0}})
    objectives = config.fitness.all_objectives()
    flipped = [objectives[0], type(objectives[1])(**{**vars(objectives[1]), "sign": -1})]
    assert config.budget.reached_at(flipped) == {"second": -3.0}
