"""A run that goes on explains itself, and may go on elsewhere."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from toys import Count, Toy, forked, outcome_of

from evomerge.cli import main
from evomerge.errors import EvomergeError, Interrupted, LedgerDamaged
from evomerge.experiment import run as runs
from evomerge.experiment.resumption import Resumed
from evomerge.experiment.sessions import changes, noted_end, sessions_of
from evomerge.ledger import Ledger
from evomerge.searchers.random import RandomSearch

sys.path.insert(0, str(Path(__file__).parent / "results"))
from small_run import write_experiment

ITEMS_OF_A_JOB = 48  # two tasks of 24 search items


class Listener(Count):
    """Keeps what a session says of those before it."""

    found: Resumed | None = None

    def resumed(self, found: Resumed) -> None:
        self.found = found


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "write_pictures", lambda *_: None)


def resumed(toy: Toy, out: Path, budget: int | None = None) -> tuple[Resumed, str]:
    listener = Listener()
    toy.run(out, budget, watchers=(listener,))
    assert listener.found is not None
    return listener.found, "\n".join(listener.found.lines())


def test_a_new_run_has_nothing_to_explain(tmp_path: Path) -> None:
    listener = Listener()
    Toy().run(tmp_path, 8, watchers=(listener,))
    assert listener.found is None


def test_what_is_repeated_is_what_was_asked_and_has_no_answer(tmp_path: Path) -> None:
    """The oracle is the ledger's rows, counted by hand."""
    toy = Toy()
    assert forked(lambda: toy.run(tmp_path), "result.before_commit:55") == -signal.SIGKILL
    with sqlite3.connect(tmp_path / runs.LEDGER) as db:
        asked = {id_ for (id_,) in db.execute("SELECT id FROM candidates WHERE id >= 0")}
        rows = db.execute("SELECT kind, data FROM events WHERE kind IN ('measured', 'told')")
        events = [(kind, json.loads(data)) for kind, data in rows]
    told = {entry["id"] for kind, data in events if kind == "told" for entry in data}
    measured = {data["candidate"] for kind, data in events if kind == "measured"}
    waiting = asked - told - measured
    assert waiting
    assert told
    found, text = resumed(toy, tmp_path)
    assert found.replayed.waiting == dict.fromkeys(sorted(waiting), ITEMS_OF_A_JOB)
    assert (found.replayed.asked, found.replayed.told) == (len(asked), len(told))
    assert f"{len(waiting)} candidates, {ITEMS_OF_A_JOB * len(waiting):,} item eval" in text
    assert "its end is not recorded: killed" in text
    assert "exact" in text
    assert found.references_left == 0
    again, text = resumed(toy, tmp_path)
    assert again.is_finished
    assert not again.replayed.waiting
    assert "the run is finished, and its budget spent (candidates 40)" in text
    more, text = resumed(toy, tmp_path, 48)
    assert not more.is_finished
    assert "budget: candidates 40 before, candidates 48 now" in text
    assert [len(session.told) for session in more.sessions] == [len(told), 40 - len(told), 0]


def test_a_run_that_ended_by_its_budget_repeats_nothing_until_it_has_more(tmp_path: Path) -> None:
    """Cohorts that were asked for ahead wait for a longer run."""
    toy = Toy(keys={"in_flight": 12, "cohort": 3})
    budget: dict[str, Any] = {"item_evaluations": 2000}
    toy.run(tmp_path, budget)
    listener = Listener()
    toy.run(tmp_path, budget, watchers=(listener,))
    assert listener.found is not None
    assert listener.found.is_finished
    assert listener.found.replayed.asked > listener.found.replayed.told
    assert listener.found.replayed.waiting == {}
    assert listener.jobs == 0
    toy.run(tmp_path, {"item_evaluations": 3000}, watchers=(listener,))
    assert not listener.found.is_finished
    assert listener.found.replayed.waiting
    lines = listener.found.lines()
    assert "budget: item_evaluations 2000 before, item_evaluations 3000 now" in lines


def test_a_kill_among_the_references_is_told(tmp_path: Path) -> None:
    toy = Toy()
    assert forked(lambda: toy.run(tmp_path), "result.before_commit:10") == -signal.SIGKILL
    found, text = resumed(toy, tmp_path)
    assert found.references_left == 24 - 9  # the models, their average, and 20 points of the grid
    assert "references: 15 had no answers yet" in text


def test_a_drift_is_told_with_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    toy = Toy()
    toy.run(tmp_path, 24)
    with sqlite3.connect(tmp_path / runs.LEDGER) as db:
        (text,) = db.execute("SELECT genome FROM candidates WHERE id = 9").fetchone()
        genome = [0.123, *json.loads(text)[1:]]
        db.execute("UPDATE candidates SET genome = ? WHERE id = 9", (json.dumps(genome),))
        (text,) = db.execute("SELECT data FROM events WHERE kind = 'session'").fetchone()
        facts = json.loads(text)
        facts["versions"]["numpy"] = "1.0"
        facts |= {"processor": "Abacus", "host": "elsewhere"}
        db.execute("UPDATE events SET data = ? WHERE kind = 'session'", (json.dumps(facts),))
    found, text = resumed(toy, tmp_path)
    assert found.replayed.drifted == (9,)
    assert "DRIFTED: 1 candidate, the first is 9" in text
    assert "numpy was 1.0, is " in text
    assert "processor was Abacus, is " in text
    assert "host: elsewhere before" in text
    assert "host was" not in "; ".join(found.changes)  # another host alone explains no drift
    assert "candidates 8 to 15 are asked differently" in caplog.text
    assert outcome_of(tmp_path)["genomes"][9] == genome
    # A searcher that cannot go on says the same.
    monkeypatch.setattr(RandomSearch, "resumes_on_drift", False)
    with pytest.raises(LedgerDamaged, match=r"numpy was 1\.0, is .*start a new run"):
        toy.run(tmp_path, 48)


def test_what_older_sessions_did_not_note_has_not_changed() -> None:
    now = {"versions": {"numpy": "2"}, "python": "3.12", "host": "b", "pid": 2, "pool": {}}
    assert changes([{"host": "a", "pid": 1}], now) == []
    assert changes([{"versions": {"numpy": "1"}}, {"versions": {"numpy": "2"}}], now) == [
        "numpy was 1, is 2"
    ]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (None, "finished"),
        (Interrupted(2), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (EvomergeError("no disk"), "no disk"),
        (RuntimeError("odd"), "RuntimeError: odd"),
    ],
)
def test_sessions_say_how_they_ended(error: BaseException | None, why: str, tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "l.sqlite", {}, {})
    ledger.note("session", {"host": "here"})

    def end() -> None:
        with noted_end(ledger):
            if error is not None:
                raise error

    if error is None:
        end()
    else:
        with pytest.raises(type(error)):
            end()
    (session,) = sessions_of(ledger)
    assert session.ended == why
    ledger.close()


# --- elsewhere ------------------------------------------------------------------------------------


def call(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["evomerge", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def begun(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with models and a run of them that was killed; what comes of an undisturbed one."""
    folder = tmp_path_factory.mktemp("first") / "machine"
    shutil.copytree(tiny_zoo, folder / "models")
    searcher = {"kind": "cma_es", "population": 6}
    fitness = {"estimator": {"kind": "racing", "rungs": [8, 24]}}
    path = write_experiment(folder, folder / "models", searcher=searcher, **fitness)
    config = runs.read_experiment(path)
    undisturbed = outcome_of(runs.run_experiment(config, folder / "undisturbed"))

    def run() -> None:
        runs.run_experiment(config, folder / "run")

    assert forked(run, "tell.before_commit:2") == -signal.SIGKILL
    return folder, undisturbed


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_on_another_machine_as_if_nothing_had_been(
    workers: int,
    begun: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, undisturbed = begun
    shutil.copytree(first / "run", tmp_path / "run")
    shutil.copytree(first / "models", tmp_path / "here")
    away = first.with_name("away")
    first.rename(away)  # the other machine's folders are nowhere to be found here
    try:
        assert call(monkeypatch, "resume", tmp_path / "run") == 2
        told = capsys.readouterr().err
        assert f"model sort: there is no {first / 'models' / 'sort'} (where is it now? " in told
        assert "--model sort=PATH" in told
        assert told.count("there is no") == 3
        folders = f"{first / 'models'}={tmp_path / 'here'}"
        arguments = ["--workers", workers, "--moved", folders]
        assert call(monkeypatch, "resume", tmp_path / "run", *arguments) == 0
        told = capsys.readouterr().out
        assert f"model sort is at {tmp_path / 'here' / 'sort'} now" in told
        assert outcome_of(tmp_path / "run") == undisturbed
        # It is kept, and the run's models can be found for an export.
        frozen = yaml.safe_load((tmp_path / "run" / "experiment.yaml").read_text())
        assert frozen["experts"]["sort"] == str(tmp_path / "here" / "sort")
        assert call(monkeypatch, "resume", tmp_path / "run", "--workers", 0) == 0
        assert "is at" not in capsys.readouterr().out
    finally:
        away.rename(first)


def test_another_model_in_a_models_place_is_refused_by_name(
    begun: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, _ = begun
    shutil.copytree(first / "run", tmp_path / "run")
    before = outcome_of(tmp_path / "run")
    rot = first / "models" / "rot"
    assert call(monkeypatch, "resume", tmp_path / "run", "--model", f"sort={rot}") == 2
    assert f"model sort: {rot} is another model than the run in " in capsys.readouterr().err
    assert outcome_of(tmp_path / "run") == before
    frozen = yaml.safe_load((tmp_path / "run" / "experiment.yaml").read_text())
    assert frozen["experts"]["sort"] != str(rot)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "srot=x"], "--model srot: no such model in this run (did you mean 'sort'"),
        (["--model", "sort"], "--model sort: expected two names with a ="),
        (["--moved", "/nowhere=/x"], "--moved /nowhere: no path of this run is in that folder"),
        (["--pool", "locla"], "pool.kind: should be 'local'"),
        (["--address", "head:6379"], "--address head:6379: the local pool has no address"),
    ],
)
def test_wrong_moves_are_told(
    arguments: list[str],
    told: str,
    begun: tuple[Path, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, "resume", begun[0] / "run", *arguments) == 2
    assert told in capsys.readouterr().err


def test_a_pool_that_there_is_not_is_not_kept(
    begun: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A wrong address: the next resume needs no `--pool local` to be rid of it."""
    first, _ = begun
    shutil.copytree(first / "run", tmp_path / "run")
    frozen = (tmp_path / "run" / "experiment.yaml").read_text()
    pool = ["--pool", "ray", "--address", "127.0.0.1:1"]
    # Other tests may have joined a cluster in this process, which would be kept.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    assert call(monkeypatch, "resume", tmp_path / "run", *pool) == 2
    assert "no Ray cluster can be joined" in capsys.readouterr().err
    assert (tmp_path / "run" / "experiment.yaml").read_text() == frozen


def test_paths_of_tasks_move_with_their_folder(tiny_zoo: Path, tmp_path: Path) -> None:
    from evomerge.experiment.moves import moved

    path = write_experiment(tmp_path, tiny_zoo)
    config = runs.read_experiment(path)
    old = Path(config.fitness.tasks["sort"]["path"]).parent
    other = moved(config, {}, {str(old): str(tmp_path / "tasks")})
    assert other.fitness.tasks["sort"]["path"] == str(tmp_path / "tasks" / "sort.yaml")
    assert other.models() == config.models()
    assert other.identity() == config.identity()


def test_a_folder_inside_another_may_have_moved_elsewhere(tiny_zoo: Path, tmp_path: Path) -> None:
    from evomerge.experiment.moves import moved

    config = runs.read_experiment(write_experiment(tmp_path, tiny_zoo))
    base = config.models()["base"]
    folders = {str(Path(base).parent): "/most", base: "/apart"}
    for said in (folders, dict(reversed(folders.items()))):
        models = moved(config, {}, said).models()
        assert models == {"base": "/apart", "sort": "/most/sort", "back": "/most/back"}
