"""The study of a run; the oracle is the run's ledger, read whole, and optuna's own reading."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna_dashboard")
import optuna

sys.path.insert(0, str(Path(__file__).parent.parent))
from released_runs import ASSETS
from toys import Toy, forked

from evomerge.errors import ConfigurationError
from evomerge.experiment import run as runs
from evomerge.results.account import Account
from evomerge.results.mirror import MIRROR, Mirror
from evomerge.results.serving import Shown, check_installed, served


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "write_pictures", lambda *_: None)


def study_of(folder: Path) -> optuna.Study:
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / MIRROR}")
    (summary,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=summary.study_name, storage=storage)


def rows_of(folder: Path) -> dict[str, list[Any]]:
    """What the mirror says, whatever order it was written in."""
    wanted = {
        "trials": "number, state, datetime_start, datetime_complete",
        "trial_values": "trial_id, objective, value",
        "trial_params": "trial_id, param_name, param_value, distribution_json",
        "trial_user_attributes": "trial_id, key, value_json",
        "study_directions": "objective, direction",
        "study_system_attributes": "key, value_json",
        "evomerge_mirror": "state",
    }
    with sqlite3.connect(folder / MIRROR) as db:
        return {t: sorted(db.execute(f"SELECT {c} FROM {t}")) for t, c in wanted.items()}  # noqa: S608


def check(folder: Path) -> None:
    """That the mirror is the ledger."""
    with Account(folder) as account:
        evaluations = account.evaluations
        candidates = {id_: c for id_, c in account.ledger.candidates.items() if id_ >= 0}
        study = study_of(folder)
        trials = study.trials
        assert [t.number for t in trials] == sorted(candidates)
        top = max((e.score.rung for e in evaluations.values() if e.score), default=0)
        names = [o.name for o in account.objectives]
        assert study.metric_names == names
        jobs = [m for m in account.measured if m.phase == "search"]
        for trial in trials:
            candidate, evaluation = candidates[trial.number], evaluations.get(trial.number)
            assert list(trial.params.values()) == candidate.genome
            assert list(trial.params) == [*(account.genes or trial.params)]
            assert trial.user_attrs["recipe"] == candidate.fingerprint
            items = sum(m.num_items for m in jobs if m.candidate == trial.number)
            assert trial.user_attrs.get("item_evaluations", 0) == items
            if evaluation is None:
                assert trial.state.name == "RUNNING"
            elif evaluation.score is None:
                assert trial.state.name == "FAIL"
                assert evaluation.failure is not None
                assert trial.user_attrs["failure"] == evaluation.failure.reason[:500]
                assert trial.values is None
            else:
                score = evaluation.score
                assert trial.state.name == ("COMPLETE" if score.rung == top else "PRUNED")
                shown = [o.shown(score.objectives[o.name].value) for o in account.objectives]
                assert trial.values == pytest.approx(shown)
                assert trial.user_attrs["rung"] == score.rung
                for name in names:
                    if not score.objectives[name].is_cost:
                        error = trial.user_attrs[f"standard_error {name}"]
                        assert error == score.objectives[name].standard_error


class Follows:
    """Brings a mirror up to the ledger at every tell."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mirror, self.looks = folder, None, 0

    def told(self, evaluations: Any) -> None:
        if self.mirror is None or self.looks % 3 == 2:
            self.mirror = Mirror(self.folder)  # as somebody does who comes back
        self.mirror.update()
        self.looks += 1


@pytest.mark.parametrize(
    ("searcher", "estimator", "keys"),
    [
        ("nsga2", "full", {}),
        ("random", "racing", {"in_flight": 12, "cohort": 3}),
    ],
)
def test_the_mirror_is_the_ledger_however_it_was_read(
    searcher: str, estimator: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    """Followed through a budget that cuts a cohort short and is extended, and made at once."""
    toy, follows = Toy(searcher, estimator, keys=keys), Follows(tmp_path)
    for budget in (27, 44):
        toy.run(tmp_path, budget, watchers=(follows,))
        Mirror(tmp_path).update()
        check(tmp_path)
        assert follows.looks > 2
        followed = rows_of(tmp_path)
        (tmp_path / MIRROR).unlink()
        for path in tmp_path.glob(f"{MIRROR}-*"):
            path.unlink()
        Mirror(tmp_path).update()
        assert rows_of(tmp_path) == followed
    states = {row[1] for row in followed["trials"][:44]}  # the others wait for a longer run
    assert states == {"COMPLETE", "FAIL"} | ({"PRUNED"} if estimator != "full" else set())


def test_what_a_race_compares_is_what_optuna_thinks_best(tmp_path: Path) -> None:
    Toy("cma_es", "racing", budget=48).run(tmp_path)
    Mirror(tmp_path).update()
    with Account(tmp_path) as account:
        incumbent = account.steps[-1].incumbent
    assert incumbent is not None
    assert study_of(tmp_path).best_value == incumbent["mean"]["value"]


def test_who_is_under_way_is_running(tmp_path: Path) -> None:
    assert forked(lambda: Toy().run(tmp_path), "result.before_commit:40") == -signal.SIGKILL
    Mirror(tmp_path).update()
    check(tmp_path)
    assert "RUNNING" in {t.state.name for t in study_of(tmp_path).trials}


def test_costs_are_minimised_as_their_user_counts(tmp_path: Path) -> None:
    from evomerge.ledger import LEDGER, Ledger

    about = {
        "name": "by hand",
        "objectives": [
            {"name": "a", "sign": 1, "cost": None},
            {"name": "p", "sign": -1, "cost": "p"},
        ],
    }
    Ledger.create(tmp_path / LEDGER, {"identity": {}, "about": about}, {"t": 1}).close()
    told = {"id": 0, "score": {"a": [0.5, 0.1, 9], "p": [-7.0, 0.0, 0]}, "rung": 0}
    with sqlite3.connect(tmp_path / LEDGER) as db:
        events = [("asked", 0, {"count": 1}), ("told", 0, [told | {"failure": None}])]
        for number, (kind, cohort, data) in enumerate(events, 1):
            row = (number, kind, cohort, float(number), json.dumps(data))
            db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?)", row)
        candidate = (0, 1, "", '{"parents": [1, 2]}', None, "f", "[]")
        db.execute("INSERT INTO candidates VALUES (?, ?, ?, ?, ?, ?, ?)", candidate)
    assert Mirror(tmp_path).update() == 1
    study = study_of(tmp_path)
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.trials[0].values == [0.5, 7.0]
    assert study.trials[0].params == {}  # a genome that is no vector


def test_old_runs_are_shown(tmp_path: Path) -> None:
    for folder in sorted(ASSETS.glob("*/*")):
        if (folder / "ledger.sqlite").exists():
            copy = tmp_path / f"{folder.parent.name}-{folder.name}"
            shutil.copytree(folder, copy)
            Mirror(copy).update()
            check(copy)


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Two runs with their mirrors, by seed."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "write_pictures", lambda *_: None)
        for seed in (3, 4):
            found[seed] = Toy("nsga2", budget=16, seed=seed).run(tmp_path_factory.mktemp("run"))
            Mirror(found[seed]).update()
            with closing(sqlite3.connect(found[seed] / MIRROR)) as db:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return found


@pytest.mark.parametrize("how", ["damaged", "cut", "empty", "another run's", "ahead", "no table"])
def test_a_mirror_that_is_not_this_runs_is_made_anew(
    how: str, mirrored: dict[int, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(mirrored[3], tmp_path / "run"))
    right, path = rows_of(folder), folder / MIRROR
    content = path.read_bytes()
    if how == "damaged":
        path.write_bytes(content[:5000] + b"\xff" * (len(content) - 5000))
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "another run's":
        path.write_bytes((mirrored[4] / MIRROR).read_bytes())
    elif how == "ahead":
        with sqlite3.connect(path) as db:
            ((text,),) = db.execute("SELECT state FROM evomerge_mirror")
            state = json.loads(text) | {"sequence": 10**6}
            db.execute("UPDATE evomerge_mirror SET state = ?", (json.dumps(state),))
    else:
        with sqlite3.connect(path) as db:
            db.execute("DROP TABLE trial_values")
        with closing(sqlite3.connect(folder / "ledger.sqlite")) as db:
            db.execute(
                "INSERT INTO events SELECT 10000, kind, cohort, time, data FROM events "
                "WHERE kind = 'told' ORDER BY sequence DESC LIMIT 1"
            )
            db.commit()
    Mirror(folder).update()
    if how != "no table":
        assert rows_of(folder) == right
    check(folder)


def test_ten_thousand_candidates(tmp_path: Path) -> None:
    from test_watch import by_hand, measured

    events: list[Any] = [("session", None, 0.0, {"host": "x"})]
    for cohort in range(1000):
        ids = range(10 * cohort, 10 * cohort + 10)
        score = {"a": [0.5, 0.1, 9], "b": [0.25, 0.1, 9]}
        told = [{"id": i, "score": score, "rung": 0, "failure": None} for i in ids]
        events.append(("asked", cohort, 1.0, {"count": 10}))
        events += [("measured", cohort, 1.0, measured(i, "w")) for i in ids]
        events.append(("told", cohort, 1.0, told))
    by_hand(tmp_path, events).close()
    mirror = Mirror(tmp_path)
    start = time.process_time()
    assert mirror.update() == 10_000
    first = time.process_time() - start
    start = time.process_time()
    assert mirror.update() == 0
    assert (first < 10, time.process_time() - start < 1) == (True, True)


# --- in a browser ---------------------------------------------------------------------------------


def got(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=20) as answer:  # noqa: S310
        return json.load(answer)


def test_the_dashboard_answers_and_only_reads(mirrored: dict[int, Path]) -> None:
    folder = mirrored[4]
    mirror = Mirror(folder)
    with served(Shown(mirror), "127.0.0.1", 0) as port:
        home = f"http://127.0.0.1:{port}"
        (summary,) = got(f"{home}/api/studies")["study_summaries"]
        assert summary["study_name"] == folder.name
        detail = got(f"{home}/api/studies/{summary['study_id']}?after=0")
        assert len(detail["trials"]) == 16
        assert detail["objective_names"] == ["first", "second"]
        trials = {t.number: t for t in study_of(folder).trials}
        for told in detail["trials"]:
            assert told.get("values") == trials[told["number"]].values
        request = urllib.request.Request(f"{home}/api/studies/1", method="DELETE")  # noqa: S310
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(request, timeout=20)  # noqa: S310
        with (
            pytest.raises(ConfigurationError, match=rf"--port {port}: Address already in use"),
            served(Shown(mirror), "127.0.0.1", port),
        ):
            pass


def test_the_command_serves_a_run_that_goes_on_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    Toy("nsga2", budget=8).run(tmp_path)
    command = [sys.executable, "-m", "evomerge", "dashboard", str(tmp_path), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--no-browser", "--every", "0.2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"shown at (http://127\.0\.0\.1:\d+)/", line)
        assert found, line
        Toy("nsga2", budget=16).run(tmp_path)
        deadline = time.monotonic() + 120
        while len(got(f"{found[1]}/api/studies/1")["trials"]) < 16:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    finally:
        process.kill()


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="no run here"):
        Mirror(tmp_path)
    monkeypatch.setattr("evomerge.results.serving.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'evomerge\[dashboard\]'"):
        check_installed()
