"""A run as its folder shows it; the oracle is the ledger, read whole."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent))
from toys import Count, Toy, forked

from evomerge.errors import LedgerDamaged
from evomerge.experiment import run as runs
from evomerge.ledger import LEDGER, Ledger
from evomerge.lock import RunLock
from evomerge.pareto import best
from evomerge.records import Estimate, Score
from evomerge.results.progress import WINDOW_S, mean_of
from evomerge.results.watch import DEAD_S, SILENT_S, RunWatch, status
from evomerge.status_view import in_full, in_line, watched
from evomerge.stopping import lower_bound

KEYS = {"item_evaluations", "candidates", "failed", "incumbent", "asked", "under_way", "references"}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "write_pictures", lambda *_: None)


class Looker(Count):
    """Looks at the run at every tell, with one watch and with a new one."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.watch: RunWatch | None = None
        self.seen: list[dict[str, Any]] = []

    def told(self, evaluations: Any) -> None:
        self.watch = self.watch or RunWatch(self.folder)
        now = time.time()
        one, other = self.watch.read(now), status(self.folder)
        assert {k: one[k] for k in KEYS} == {k: other[k] for k in KEYS}
        assert (one["state"], one["phase"]) == ("running", "search")
        self.seen.append(one)


@pytest.mark.parametrize(
    ("searcher", "estimator", "keys"),
    [
        ("random", "full", {}),
        ("nsga2", "racing", {}),
        ("random", "racing", {"in_flight": 12, "cohort": 3}),
    ],
)
def test_what_is_followed_is_what_the_ledger_says(
    searcher: str, estimator: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    looker = Looker(tmp_path)
    Toy(searcher, estimator, 27, keys=keys).run(tmp_path, watchers=(looker,))
    assert looker.watch is not None
    assert len(looker.seen) >= 3
    facts = looker.watch.read()
    assert facts["state"] == "finished"
    assert facts["ended"] == "finished"
    assert looker.watch.read() | {"last_event_s": 0, "rate": 0, "workers": 0} == facts | {
        "last_event_s": 0,
        "rate": 0,
        "workers": 0,
    }
    ledger = Ledger(tmp_path / LEDGER, read_only=True)
    evaluations = ledger.evaluations()
    assert facts["candidates"] == len(evaluations) == 27
    assert facts["failed"] == sum(e.failure is not None for e in evaluations.values()) > 0
    assert facts["item_evaluations"] == ledger.measurements.item_evaluations
    top = best(list(evaluations.values()))
    assert top is not None
    assert top.score is not None
    assert facts["incumbent"]["candidate"] == top.id
    assert facts["incumbent"]["mean"]["value"] == pytest.approx(top.score.mean)
    assert facts["incumbent"]["mean"]["low"] == pytest.approx(lower_bound(top.score))
    assert facts["final"] == ledger.final()
    assert facts["references"]["asked"] == facts["references"]["measured"] == 24
    assert facts["budget"]["candidates"] == {"of": 27, "used": 27, "left": 0}
    assert facts["failures"]
    assert {f["reason"] for f in facts["failures"]} <= {
        e.failure.reason for e in evaluations.values() if e.failure
    }
    told, final = facts["references"]["told"], facts["final"]["references"]
    for label in ("base", "left", "right", "uniform"):
        for name, of in told[label]["objectives"].items():
            assert of["value"] == pytest.approx(final[label]["search"][name]["value"])
    ledger.close()


def test_a_budget_of_items_counts_as_the_search_counts(tmp_path: Path) -> None:
    """Up to the cohort that was told last: how far later ones are depends on the workers."""
    Toy().run(tmp_path, {"item_evaluations": 2000, "hours": 1.0})
    facts = status(tmp_path)
    ledger = Ledger(tmp_path / LEDGER, read_only=True)
    last = max(cohort for _, cohort, _ in ledger.events("told"))
    assert facts["budget"]["item_evaluations"]["used"] == ledger.spent(last) >= 2000
    assert facts["budget"]["hours"]["used"] == pytest.approx(ledger.seconds_spent() / 3600)
    ledger.close()


def killed(folder: Path, failpoint: str = "result.before_commit:60") -> Path:
    assert forked(lambda: Toy().run(folder), failpoint) == -signal.SIGKILL
    return folder


def test_what_is_under_way_is_what_was_asked_and_has_no_answer(tmp_path: Path) -> None:
    facts = status(killed(tmp_path))
    assert (facts["state"], facts["driver"], facts["ended"]) == ("stopped", None, None)
    with sqlite3.connect(tmp_path / LEDGER) as db:
        asked = {id_ for (id_,) in db.execute("SELECT id FROM candidates WHERE id >= 0")}
        rows = db.execute("SELECT kind, data FROM events WHERE kind IN ('measured', 'told')")
        events = [(kind, json.loads(data)) for kind, data in rows]
    told = {entry["id"] for kind, data in events if kind == "told" for entry in data}
    measured = {data["candidate"] for kind, data in events if kind == "measured"}
    assert facts["under_way"] == {
        "candidates": len(asked - told),
        "without_answer": len(asked - told - measured),
    }
    assert facts["under_way"]["without_answer"] > 0
    assert any("without an answer" in line for line in in_full(facts))


def test_references_come_first(tmp_path: Path) -> None:
    killed(tmp_path, "result.before_commit:10")
    with RunLock(tmp_path):
        facts = status(tmp_path)
    assert (facts["state"], facts["phase"]) == ("running", "references")
    assert facts["references"] == {"asked": 24, "measured": 9, "told": None}
    assert "references: 9 of 24 measured" in in_full(facts)


def elsewhere(folder: Path) -> float:
    """Make the last session one of another machine; the time of the last event."""
    with sqlite3.connect(folder / LEDGER) as db:
        ((sequence, text),) = db.execute(
            "SELECT max(sequence), data FROM events WHERE kind = 'session'"
        )
        facts = json.dumps({**json.loads(text), "host": "elsewhere", "pid": 7})
        db.execute("UPDATE events SET data = ? WHERE sequence = ?", (facts, sequence))
        ((last,),) = db.execute("SELECT max(time) FROM events")
    return float(last)


def test_a_driver_on_another_machine_is_judged_by_its_events(tmp_path: Path) -> None:
    """No lock of another machine is seen here."""
    last = elsewhere(killed(tmp_path))
    with RunWatch(tmp_path) as watch:
        facts = watch.read(last + 100)
        assert (facts["state"], facts["phase"]) == ("running", "search")
        assert facts["driver"] == {"host": "elsewhere", "pid": 7, "since": None}
        assert facts["last_event_s"] == pytest.approx(100)
        assert watch.read(last - 1000)["last_event_s"] == 0  # its clock may be ahead
        silent = watch.read(last + 2 * SILENT_S)
        assert watch.read(last + 2 * DEAD_S)["state"] == "stopped"
    assert silent["state"] == "silent"
    assert "nobody can see from here whether its driver is alive" in in_full(silent)[0]
    Toy().run(tmp_path)
    with RunWatch(tmp_path) as watch:
        assert watch.read()["state"] == "finished"
        elsewhere(tmp_path)
    assert status(tmp_path)["state"] == "finished"  # it has said how it ended
    # A finished run that another machine has begun to extend is not finished.
    assert forked(lambda: Toy().run(tmp_path, 56), "ask.after_commit:1") == -signal.SIGKILL
    elsewhere(tmp_path)
    assert status(tmp_path)["state"] == "running"


def test_a_newer_ledger_is_refused(tmp_path: Path) -> None:
    killed(tmp_path)
    with sqlite3.connect(tmp_path / LEDGER) as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'format'")
    with pytest.raises(LedgerDamaged, match="newer"):
        RunWatch(tmp_path)


# --- rates ----------------------------------------------------------------------------------------


def by_hand(folder: Path, events: list[tuple[str, int | None, float, Any]]) -> RunWatch:
    """A ledger with these events: kind, cohort, time, data; a cohort is of 10 candidates."""
    Ledger.create(folder / LEDGER, {"identity": {}}, {"t": 100}).close()
    with sqlite3.connect(folder / LEDGER) as db:
        rows = [
            (number, kind, cohort, moment, json.dumps(data))
            for number, (kind, cohort, moment, data) in enumerate(events, 1)
        ]
        db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", rows)
        candidates = [
            (10 * cohort + i, number, "", "[0.5]", "{}", "f", "[]")
            for number, kind, cohort, _, _ in rows
            if kind == "asked" and cohort is not None
            for i in range(10)
        ]
        db.executemany("INSERT INTO candidates VALUES (?, ?, ?, ?, ?, ?, ?)", candidates)
    return RunWatch(folder)


def measured(candidate: int, worker: str, items: int = 100) -> dict[str, Any]:
    of = {"candidate": candidate, "fingerprint": "f", "num_items": items, "worker": worker}
    return {**of, "seconds": [1.0, 9.0, 5.0], "failure": None}


def told(first: int) -> list[dict[str, Any]]:
    score = {"a": [0.5, 0.1, 100]}
    rest = {"rung": 0, "failure": None, "violation": 0.0}
    return [{"id": first + i, "score": score, **rest} for i in range(10)]


def test_rates_workers_and_the_time_left(tmp_path: Path) -> None:
    """Ten candidates of 100 items in 50 s each cohort, by two workers: all by hand."""
    events: list[tuple[str, int | None, float, Any]] = [
        ("session", None, 1000.0, {"host": "elsewhere", "budget": {"candidates": 200}})
    ]
    for cohort in range(10):
        begin = 1000.0 + 50 * cohort
        events.append(("asked", cohort, begin, {"count": 10}))
        for i in range(10):
            moment = begin + 10 * (i // 2 + 1) - 0.1 * (i % 2)
            name = f"worker {i % 2}" if cohort < 9 or i % 2 else "worker 2"
            events.append(("measured", cohort, moment, measured(10 * cohort + i, name)))
        events.append(("told", cohort, begin + 50, told(10 * cohort)))
    with by_hand(tmp_path, sorted(events, key=lambda e: e[2])) as watch:
        facts = watch.read(1500.0)
        assert facts["state"] == "running"
        assert facts["rate"]["candidates_per_min"] == pytest.approx(12)
        assert facts["rate"]["items_per_s"] == pytest.approx(20, rel=0.05)
        assert facts["budget"] == {"candidates": {"of": 200, "used": 100, "left": 100}}
        assert facts["seconds_left"] == pytest.approx(500)
        names = {w["name"]: w for w in facts["workers"]}
        assert {n: w["jobs"] for n, w in names.items()} == {
            "worker 0": 45,
            "worker 1": 50,
            "worker 2": 5,
        }
        assert names["worker 1"]["items_per_s"] == pytest.approx(10)
        assert names["worker 1"]["busy"] == pytest.approx(1.0, abs=0.02)
        assert names["worker 2"]["busy"] == pytest.approx(50 / WINDOW_S)
        assert names["worker 0"]["last_s"] == pytest.approx(50, abs=0.2)
        assert "about 0:08:20 left" in "\n".join(in_full(facts))
        # Who stops answering is no worker any more, and nothing goes on.
        later = watch.read(1501.0 + WINDOW_S)
        assert later["workers"] == []
        assert later["rate"]["items_per_s"] == 0
        assert later["rate"]["candidates_per_min"] < 12


def test_an_interval_is_the_means() -> None:
    score = Score({"a": Estimate(0.6, 0.03, 9), "b": Estimate(0.8, 0.04, 9)})
    mean = mean_of(score)
    assert (mean["value"], mean["low"]) == (pytest.approx(0.7), pytest.approx(lower_bound(score)))
    assert mean["high"] == pytest.approx(0.7 + 1.96 * 0.05 / 2)


def test_ten_thousand_candidates_take_less_than_a_second_and_another_look_far_less(
    tmp_path: Path,
) -> None:
    events: list[tuple[str, int | None, float, Any]] = [("session", None, 0.0, {"host": "x"})]
    for cohort in range(1000):
        events.append(("asked", cohort, 1.0 * cohort, {"count": 10}))
        events += [
            ("measured", cohort, 1.0 * cohort, measured(10 * cohort + i, f"worker {i}"))
            for i in range(10)
        ]
        events.append(("told", cohort, 1.0 * cohort, told(10 * cohort)))
    by_hand(tmp_path, events).close()
    first, again = [], []
    for _ in range(3):  # other processes may be busy
        start = time.perf_counter()
        with RunWatch(tmp_path) as watch:
            assert watch.read(1000.0)["candidates"] == 10_000
            first.append(time.perf_counter() - start)
            start = time.perf_counter()
            watch.read(1002.0)
            again.append(time.perf_counter() - start)
    assert min(first) < 1
    assert min(again) < 0.05


# --- the command line -----------------------------------------------------------------------------


def test_watching_ends_with_the_run_and_ctrl_c_leaves(tmp_path: Path) -> None:
    killed(tmp_path)
    facts = status(tmp_path)
    text = io.StringIO()
    looks = iter([*[facts | {"state": "running", "phase": "search"}] * 3, facts])
    last = watched(Console(file=text, width=500), lambda: next(looks), 0.0)
    assert last["state"] == "stopped"
    assert text.getvalue().count("running (search)") == 3

    def interrupted() -> Any:
        if text.getvalue():
            os.kill(os.getpid(), signal.SIGINT)
        return facts | {"state": "running", "phase": "search"}

    text = io.StringIO()
    assert watched(Console(file=text, width=500), interrupted, 0.0)["state"] == "running"
    terminal = io.StringIO()
    looks = iter([facts | {"state": "running", "phase": "search"}, facts])
    watched(Console(file=terminal, width=100, force_terminal=True), lambda: next(looks), 0.0)
    assert "under way" in terminal.getvalue()
    assert "candidates/min" in in_line(facts)


def test_costs_are_told_as_their_user_counts_and_the_end_leaves_nothing_under_way(
    tmp_path: Path,
) -> None:
    facts = status(killed(tmp_path))
    size = {"value": -248_800.0, "low": -248_800.0, "high": -248_800.0, "num_items": 0}
    assert facts["incumbent"] is not None
    facts["incumbent"]["objectives"]["size"] = size
    assert any("size 248.8k" in line for line in in_full(facts))  # an older run has no signs
    facts["objectives"] = {"size": -1}
    assert any("size 248.8k" in line for line in in_full(facts))
    assert any(line.startswith("under way") for line in in_full(facts))
    assert not any(line.startswith("under way") for line in in_full(facts | {"state": "finished"}))


def test_ctrl_c_leaves_the_last_facts_on_the_screen(tmp_path: Path) -> None:
    """As on a terminal: the command line handles the signal, not Python."""
    killed(tmp_path)
    command = [sys.executable, "-m", "evomerge", "status", str(tmp_path), "--watch"]
    with RunLock(tmp_path):
        watching = subprocess.Popen(
            [*command, "--every", "0.2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("running")
        watching.send_signal(signal.SIGINT)
        said, complaints = watching.communicate(timeout=30)
    assert (watching.returncode, complaints) == (0, "")
    assert "\nunder way: " in said  # which no line for a single look has


def test_a_look_from_the_command_line_needs_no_heavy_library(tmp_path: Path) -> None:
    killed(tmp_path)
    code = (
        "import sys; sys.argv = ['evomerge', 'status', sys.argv[1], '--watch']\n"
        "import evomerge.cli\n"
        "try: evomerge.cli.main()\n"
        "except SystemExit as end: print('LOADED', end.code, *sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    _, exit_code, *modules = done.stdout[done.stdout.index("LOADED") :].split()
    assert exit_code in ("0", "None")
    assert f"go on with: evomerge resume {tmp_path}" in done.stdout
    assert set(modules).isdisjoint({"torch", "lm_eval", "transformers", "matplotlib", "scipy"})
