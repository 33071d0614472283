"""A run read for people; the oracle is the ledger, event by event."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from small_run import write_experiment

from evomerge.experiment.config import read_experiment
from evomerge.experiment.run import run_experiment
from evomerge.ledger import LEDGER, Ledger
from evomerge.pareto import best, non_dominated
from evomerge.results.account import Account, share_dominated
from evomerge.results.status import best_candidate


@pytest.fixture(scope="module")
def folder(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    objectives: Any = {"sort": "sort", "back": "back", "size": {"cost": "parameters"}}
    place = tmp_path_factory.mktemp("account")
    changes: dict[str, Any] = {
        "name": "a small search",
        "objectives": objectives,
        "searcher": {"kind": "nsga2", "population": 4},
    }
    experiment = write_experiment(place, tiny_zoo, **changes)
    return run_experiment(read_experiment(experiment), place / "run")


def test_it_knows_what_was_searched_without_a_model(folder: Path) -> None:
    with Account(folder) as run:
        assert run.name == "a small search"
        assert [o.name for o in run.objectives] == ["sort", "back", "size"]
        assert [o.sign for o in run.objectives] == [1, 1, -1]
        assert run.objectives[2].cost == "parameters"
        assert run.objectives[2].shown(-3.0) == 3.0
        assert run.experts == ("sort", "back")
        assert len(run.genes) == len(run.evaluations[0].genome)
        assert run.num_items["holdout"] == {"sort": 30, "back": 30}
        assert run.experiment["searcher"]["kind"] == "nsga2"


def test_the_last_step_is_where_the_search_ended(folder: Path) -> None:
    with Account(folder) as run, closing(Ledger(folder / LEDGER, read_only=True)) as ledger:
        last = run.steps[-1]
        evaluations = list(ledger.evaluations().values())
        top = best(evaluations)
        assert top is not None
        assert last.incumbent is not None
        assert last.incumbent["candidate"] == top.id
        assert last.candidates == len(evaluations) == 12
        values = np.array([e.score.values for e in evaluations if e.score])
        expected = np.unique(values[non_dominated(values)], axis=0)
        np.testing.assert_array_equal(last.front, expected)
        num_final = sum(m.num_items for m in run.measured if m.phase == "last choice")
        assert last.item_evaluations + num_final == ledger.item_evaluations
        assert {m.phase for m in run.measured} == {"references", "search", "last choice"}
        assert run.final is not None
        assert run.final["best"]["candidate"] == best_candidate(folder, ledger).id
        seconds = [m.seconds for m in run.measured]
        assert seconds == sorted(seconds)
        assert 0 < last.seconds <= run.seconds == seconds[-1] <= ledger.seconds_spent()


def test_a_run_of_an_older_version_has_less_to_tell(folder: Path) -> None:
    with Account(folder) as run:
        run._about = {}
        assert [(o.name, o.sign) for o in run.objectives] == [
            ("sort", 1),
            ("back", 1),
            ("size", -1),
        ]
        assert run.experts == ("sort", "back")
        assert run.genes == ()
        assert run.num_layers is None
        assert run.num_items == {}


def test_the_share_of_a_box_that_a_front_dominates() -> None:
    worst, top = [0.0, 0.0], [1.0, 1.0]
    assert share_dominated([[1.0, 1.0]], worst, top) == pytest.approx(1.0)
    assert share_dominated([[0.0, 0.0]], worst, top) == pytest.approx(0.01 / 1.21)
    assert share_dominated([[0.4, 0.9], [0.9, 0.4]], worst, top) == pytest.approx(0.75 / 1.21)
    assert share_dominated(np.empty((0, 2)), worst, top) == 0.0


def entry(id_: int, rung: int, *values: float) -> dict[str, Any]:
    score = {name: [value, 0.1, 9] for name, value in zip("ab", values, strict=True)}
    return {"id": id_, "score": score, "rung": rung, "failure": None}


def test_a_cohort_that_was_cut_short_counts_until_something_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [
        ("told", [entry(0, 0, 0.9, 0.9), entry(1, 1, 0.5, 0.2), entry(2, 1, 0.2, 0.5)]),
        ("scored", [entry(3, 0, 1.0, 1.0), entry(4, 1, 0.6, 0.6)]),  # not all rungs were run
        ("told", [entry(3, 1, 0.3, 0.3), entry(4, 0, 0.7, 0.7)]),  # and the next session ran them
        ("scored", [entry(5, 0, 1.0, 1.0)]),
    ]

    def timeline(_: Ledger, *kinds: str) -> Any:
        moments = enumerate(told)
        yield from ((kind, n, float(n), data) for n, (kind, data) in moments if kind in kinds)

    monkeypatch.setattr(Ledger, "timeline", timeline)
    with Account(folder) as run:
        run.objectives = run.objectives[:2]
        fronts = [step.front.tolist() for step in run.steps]
        best = [step.incumbent["candidate"] for step in run.steps if step.incumbent]
    first = [[0.2, 0.5], [0.5, 0.2]]
    assert fronts[0] == first
    assert fronts[1] == [[0.6, 0.6]]
    assert fronts[2] == [*first[:1], [0.3, 0.3], first[1]]
    assert fronts[3] == fronts[2]
    assert best == [1, 4, 1, 1]
