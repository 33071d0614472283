"""Runs read again: against the runs that the other estimators really make.

Random search asks for the same candidates whatever it is told. So what a replay says of racing on
the answers of a full run must be what a run with racing spends and scores.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from toys import ESTIMATORS, Toy, fitness

from evomerge.errors import ConfigurationError
from evomerge.experiment import run as runs
from evomerge.experiment.recorded import Recorded, read_estimator, read_run
from evomerge.experiment.reestimate import reestimate
from evomerge.experiment.replay import replay
from evomerge.ledger import Ledger
from evomerge.pareto import best_first
from evomerge.records import Evaluation


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Toy("random", "full").run(tmp_path_factory.mktemp("full"))


def means(run: Recorded) -> dict[int, float]:
    """Every candidate's mean over all search items and objectives."""
    found = {}
    for cohort in run.cohorts:
        for c in cohort:
            rows = [
                run.measurements.values(c.fingerprint, task, ids)
                for task, ids in run.split.search.items()
            ]
            if not any(np.isnan(row).any() for row in rows):
                found[c.id] = float(np.mean([row.mean() for row in rows]))
    return found


@pytest.mark.parametrize("estimator", ["racing", "shrinkage"])
def test_a_replay_spends_and_chooses_as_the_run_would_have(
    estimator: str, full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last: list[Evaluation] = []  # what the run chose from

    def told_anew(*arguments: Any) -> list[Evaluation]:
        last[:] = in_the_end(*arguments)
        return last

    in_the_end = runs.told_anew
    monkeypatch.setattr(runs, "told_anew", told_anew)
    really = Toy("random", estimator).run(tmp_path / "really")
    with_answers = read_run(full)
    found = replay(with_answers, ESTIMATORS[estimator])
    ledger = Ledger(really / "ledger.sqlite", read_only=True)
    assert found["spent"] == ledger.spent(max(ledger.asked_ids()))
    assert found["recorded_spent"] == with_answers.ledger.spent(max(ledger.asked_ids()))
    assert found["spent"] < found["recorded_spent"]
    chosen = best_first(last)[0]
    truth = means(with_answers)
    assert found["chosen"]["candidate"] == chosen.id
    assert found["chosen"]["mean"] == pytest.approx(truth[chosen.id])
    assert found["best"]["mean"] == max(truth.values())
    assert found["regret"] == pytest.approx(max(truth.values()) - truth[chosen.id])


def test_full_replayed_is_the_run_itself(full: Path) -> None:
    run = read_run(full)
    found = replay(run, {"kind": "full"})
    assert found["spent"] == found["recorded_spent"]
    again = reestimate(run, {"kind": "full"})
    for row in again["rows"]:
        recorded = run.evaluations[row["candidate"]].score
        assert recorded is not None
        for name, estimate in recorded.objectives.items():
            assert row["score"][name]["value"] == pytest.approx(estimate.value)
            assert row["score"][name]["standard_error"] == pytest.approx(estimate.standard_error)
    assert again["rank_correlation"] == pytest.approx(1.0)
    assert len(again["rows"]) == sum(e.score is not None for e in run.evaluations.values())
    assert again["skipped"] == []


@pytest.mark.parametrize("kind", ["subset", "stratified", "anchors", "irt", "aipw", "shrinkage"])
def test_every_reading_scores_a_finished_run(kind: str, full: Path) -> None:
    run = read_run(full)
    found = reestimate(run, {"kind": kind, "items": 12})
    truth = means(run)
    assert {row["candidate"] for row in found["rows"]} == set(truth)
    values = {
        row["candidate"]: np.mean([e["value"] for e in row["score"].values()])
        for row in found["rows"]
    }
    for row in found["rows"]:
        assert all(e["num_items"] == 12 for e in row["score"].values())
        assert all(e["standard_error"] > 0 for e in row["score"].values())
    ids = sorted(truth)
    rank = stats.spearmanr([values[i] for i in ids], [truth[i] for i in ids]).statistic
    assert rank > 0.3  # half of the items were read
    json.dumps(found)


def test_answers_that_a_run_lacks_are_named(tmp_path: Path) -> None:
    run = read_run(Toy("random", "racing").run(tmp_path))
    with pytest.raises(ConfigurationError, match=r"was not asked \d+ of the 24 items.*`full`"):
        replay(run, {"kind": "full"})
    found = reestimate(run, {"kind": "subset", "items": 24})
    assert found["skipped"]
    assert len(found["skipped"]) + len(found["rows"]) == sum(
        e.score is not None for e in run.evaluations.values()
    )


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"kind": "racing"}, "decides what is measured.*evomerge replay"),
        ({"kind": "subset", "items": 400}, "400 items of each task were asked for"),
        ({"kind": "anchors", "itmes": 3}, "itmes: unknown key"),
    ],
)
def test_what_cannot_be_read_again_is_refused(
    config: dict[str, Any], told: str, full: Path
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        reestimate(read_run(full), config)


def test_an_estimator_is_named_in_three_ways(tmp_path: Path) -> None:
    assert read_estimator("irt") == {"kind": "irt"}
    assert read_estimator("subset", 12) == {"kind": "subset", "items": 12}
    assert read_estimator("{kind: racing, rungs: [3, 9]}") == {"kind": "racing", "rungs": [3, 9]}
    with pytest.raises(ConfigurationError, match="did you mean 'stratified'"):
        read_estimator("stratifed")
    with pytest.raises(ConfigurationError, match="nowhere"):
        read_estimator(str(tmp_path / "nowhere.yaml"))
    with pytest.raises(ConfigurationError, match="YAML"):
        read_estimator("{kind: [")
    with pytest.raises(ConfigurationError, match="no run here"):
        read_run(tmp_path)


def test_a_replay_asks_when_the_run_did(tmp_path: Path) -> None:
    """With two cohorts in flight, a cohort meets the incumbents of two cohorts ago."""
    keys = {"in_flight": 16, "cohort": 8}
    whole = read_run(Toy("random", "full", keys=keys).run(tmp_path / "full"))
    really = Toy("random", "racing", keys=keys).run(tmp_path / "racing")
    assert whole.lags == (0, 0, 1, 2, 3)
    ledger = Ledger(really / "ledger.sqlite", read_only=True)
    found = replay(whole, ESTIMATORS["racing"])
    assert found["spent"] == ledger.spent(max(ledger.asked_ids()))
    assert found["chosen"]["candidate"] == best_first(list(ledger.evaluations().values()))[0].id


def fails_late(state: dict[str, Any], items: dict[str, Any]) -> dict[str, Any]:
    """Some models answer the first rung's six items, and no more than that at once."""
    ((task, ids),) = items.items()
    answers = fitness({k: v * 1.0 for k, v in state.items()}, fail=False)[task]
    shift = float(sum(v.sum() for v in state.values()))
    if len(ids) != 6 and len(ids) < 24 and int(shift * 1e6) % 3 == 0:
        raise ValueError("a toy that breaks when it has come far")
    return {task: answers[list(ids)]}


def test_who_failed_late_fails_late_again(tmp_path: Path) -> None:
    toy = Toy("random", "racing", fitness=fails_late)
    run = read_run(toy.run(tmp_path))
    failed = [e for e in run.evaluations.values() if e.failure is not None]
    assert any(any(run.answered(run.ledger.candidates[e.id]).values()) for e in failed)
    found = replay(run, ESTIMATORS["racing"])
    assert found["spent"] == found["recorded_spent"]


def test_a_cohort_that_the_budget_cut_is_read_too(tmp_path: Path) -> None:
    run = read_run(Toy("random", "full").run(tmp_path, 44))
    assert [len(cohort) for cohort in run.cohorts] == [8, 8, 8, 8, 8, 4]
