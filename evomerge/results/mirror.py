"""A run as a study of optuna's, for tools that show those: `optuna.db` in the run's folder.

Made from the ledger alone, by reading what was added; never read back. It can be removed at any
time, and one that is damaged or another run's is made anew.

A trial is a candidate: its number is the candidate's, its values are the objectives as their user
counts, its parameters the genome's coordinates in [0, 1].

    complete   scored, and of the highest rung: what the search compares
    pruned     dropped by a race at an earlier rung: its values rest on fewer items
    fail       it has no score, and `failure` says why
    running    asked for, and not told

Rows are written as optuna's tables have them, a part of the ledger at a time: its own interface
takes milliseconds a trial, and never changes a trial that is over, as scoring anew does.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigurationError, Problem
from evomerge.files import disk_errors
from evomerge.filesystems import journal_mode
from evomerge.ledger_file import LEDGER, connected, known_format
from evomerge.ledger_rows import damage

Json = dict[str, Any]

MIRROR = "optuna.db"
FORMAT = 1  # of the mirror; one of another format is made anew
SCHEMA = 12  # of optuna's tables, that this writes
MAX_PARAMETERS = 100  # of a trial; more of them no chart shows
SHOWN_REASON = 500  # characters of a failure's reason
UNIT = json.dumps(
    {
        "name": "FloatDistribution",
        "attributes": {"step": None, "low": 0.0, "high": 1.0, "log": False},
    }
)


def run_id(db: sqlite3.Connection) -> str:
    """What tells a run from all others, by its first event: a ledger is only added to."""
    first = db.execute("SELECT time, data FROM events ORDER BY sequence LIMIT 1").fetchone()
    return hashlib.sha256(repr(first).encode()).hexdigest()[:16]


@dataclass
class Objectives:
    """Names and signs, as far as somebody noted them."""

    signs: dict[str, int] = field(default_factory=dict)

    def shown(self, score: Mapping[str, Sequence[float]]) -> list[float]:
        """The values of a score as their user counts."""
        return [self.signs[name] * value for name, (value, *_) in score.items()]


@dataclass
class Told:
    """What is known of a candidate by now."""

    entry: Json | None = None
    moment: float = 0.0


class Mirror:
    """The study of a run; `update` brings it up to the ledger.

    Raises:
        ConfigurationError: there is no run.
        LedgerDamaged: its ledger cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / MIRROR
        self._ledger = folder / LEDGER
        if not self._ledger.exists():
            raise ConfigurationError(f"{folder}: no run here (there is no {LEDGER})")
        with damage(self._ledger), closing(connected(self._ledger, read_only=True)) as db:
            meta = dict(db.execute("SELECT key, value FROM meta"))
            known_format(self._ledger, meta)
            self._run = run_id(db)
            about = json.loads(meta.get("about", "{}"))
        self._name = about.get("name") or folder.resolve().name
        self._genes: list[str] = about.get("genes", [])
        self._objectives = Objectives({o["name"]: o["sign"] for o in about.get("objectives", ())})
        self.rewritten = 0  # trials that were over and were changed, so far
        self.remade = 0  # how often the file was made

    def update(self) -> int:
        """Read what was added to the ledger; the number of trials that are new or changed.

        Raises:
            LedgerDamaged: the ledger cannot be read.
            DiskFull: the mirror cannot be written.
        """
        with disk_errors(self.path):
            if not self._is_ours():
                self._remove()
            try:
                return self._add()
            except sqlite3.DatabaseError:  # damaged, or taken away meanwhile: once more, anew
                self._remove()
                return self._add()

    def _remove(self) -> None:
        for path in self.path.parent.glob(f"{MIRROR}*"):
            path.unlink(missing_ok=True)

    # --- the mirror's file ------------------------------------------------------------------------

    def _is_ours(self) -> bool:
        """Whether the mirror is of this run and format, and what it has read is in the ledger."""
        if not self.path.exists():
            return False
        with suppress(sqlite3.DatabaseError, ValueError, KeyError), closing(self._open()) as db:
            ((text,),) = db.execute("SELECT state FROM evomerge_mirror")
            state = json.loads(text)
            ((schema,),) = db.execute("SELECT schema_version FROM version_info")
            found = (state["run"], state["format"], schema, state["moment"])
            return found == (self._run, FORMAT, SCHEMA, self._moment_of(state["sequence"]))
        return False

    def _moment_of(self, sequence: int) -> float | None:
        with damage(self._ledger), closing(connected(self._ledger, read_only=True)) as db:
            row = db.execute("SELECT time FROM events WHERE sequence = ?", (sequence,)).fetchone()
        return row[0] if row else None

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, isolation_level=None, timeout=60)

    def _create(self, names: Sequence[str]) -> None:
        """The tables and the study, by optuna itself."""
        import optuna

        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            storage = optuna.storages.RDBStorage(f"sqlite:///{self.path.resolve()}")
            signs = [self._objectives.signs[name] for name in names]
            study = optuna.create_study(
                study_name=self._name,
                storage=storage,
                directions=["minimize" if sign < 0 else "maximize" for sign in signs],
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(list(names))
            study.set_user_attr("run", str(self.path.parent.resolve()))
            if len(self._genes) > MAX_PARAMETERS:
                study.set_user_attr("genes_left_out", len(self._genes) - MAX_PARAMETERS)
            storage.engine.dispose()
        finally:
            optuna.logging.set_verbosity(before)
        with closing(self._open()) as db:
            (schema,) = db.execute("SELECT schema_version FROM version_info").fetchone()
            if schema != SCHEMA:
                what = f"its tables have form {schema}, and this evomerge writes form {SCHEMA}"
                raise ConfigurationError(Problem("optuna", what, "install optuna 5"))
            db.execute(f"PRAGMA journal_mode = {journal_mode(self.path)}")
            state = {"run": self._run, "format": FORMAT, "sequence": 0, "last": -1, "rung": 0}
            db.execute("CREATE TABLE evomerge_mirror (state TEXT NOT NULL)")
            db.execute(
                "INSERT INTO evomerge_mirror VALUES (?)", (json.dumps({**state, "cut": []}),)
            )

    # --- what is added ----------------------------------------------------------------------------

    def _add(self) -> int:
        """Read the ledger from where the mirror is, and write what it comes to."""
        if not self.path.exists():
            if not (names := self._names()):
                return 0  # nothing was told, and nobody noted the objectives' names
            self._create(names)
        with closing(self._open()) as db:
            db.execute("PRAGMA synchronous = OFF")  # what is lost is made anew
            ((text,),) = db.execute("SELECT state FROM evomerge_mirror")
            state = json.loads(text)
            asked, events = self._news(state)
            if not events:
                return 0
            db.execute("BEGIN IMMEDIATE")
            try:
                changed = self._write(db, state, asked, events)
                db.execute("UPDATE evomerge_mirror SET state = ?", (json.dumps(state),))
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        return changed

    def _names(self) -> list[str]:
        """The objectives' names; of older runs, by the first score, where costs are to be small."""
        if not self._objectives.signs:
            with damage(self._ledger), closing(connected(self._ledger, read_only=True)) as db:
                rows = db.execute("SELECT data FROM events WHERE kind IN ('told', 'scored')")
                entries = (entry for (text,) in rows for entry in json.loads(text))
                score: Json = next((e["score"] for e in entries if e["score"]), {})
            self._objectives.signs = {n: 1 if count else -1 for n, (_, _, count) in score.items()}
        return list(self._objectives.signs)

    def _news(self, state: Json) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """Candidates and events that the mirror lacks, of one moment."""
        with damage(self._ledger), closing(connected(self._ledger, read_only=True)) as db:
            db.execute("BEGIN")
            asked = db.execute(
                "SELECT id, genome, fingerprint, violations, time FROM candidates "
                "JOIN events ON event = sequence WHERE id > ? AND id >= 0 ORDER BY id",
                (state["last"],),
            ).fetchall()
            events = db.execute(
                "SELECT sequence, kind, cohort, time, data FROM events WHERE sequence > ? "
                "ORDER BY sequence",
                (state["sequence"],),
            ).fetchall()
            db.execute("ROLLBACK")
        return asked, events

    def _write(
        self,
        db: sqlite3.Connection,
        state: Json,
        asked: list[tuple[Any, ...]],
        events: list[tuple[Any, ...]],
    ) -> int:
        self._write_asked(db, asked)
        items: dict[int, int] = {}
        told: dict[int, Told] = {}
        for sequence, kind, cohort, moment, text in events:
            state["sequence"], state["moment"] = sequence, moment
            if kind == "measured" and cohort >= 0:
                data = json.loads(text)
                count = 0 if data["failure"] else data["num_items"]
                items[data["candidate"]] = items.get(data["candidate"], 0) + count
            elif kind in ("told", "scored"):
                if state["cut"]:
                    told |= self._before(state["cut"], sequence)  # that does not count any more
                entries = json.loads(text)
                told |= {entry["id"]: Told(entry, moment) for entry in entries}
                state["cut"] = [e["id"] for e in entries] if kind == "scored" else []
        if asked:
            state["last"] = asked[-1][0]
        scored = [t.entry for t in told.values() if t.entry and t.entry["score"]]
        rung = max([state["rung"], *(entry["rung"] for entry in scored)])
        if rung > state["rung"]:
            self._drop_below(db, rung)
            state["rung"] = rung
        self._write_items(db, items)
        self._write_told(db, told, rung)
        return len({id_ for id_, *_ in asked} | told.keys())

    def _before(self, ids: Sequence[int], sequence: int) -> dict[int, Told]:
        """What candidates had been told before an event; nothing of most that a budget cut off."""
        found = {id_: Told() for id_ in ids}
        with damage(self._ledger), closing(connected(self._ledger, read_only=True)) as db:
            for moment, text in db.execute(
                "SELECT time, data FROM events WHERE kind = 'told' AND sequence < ? "
                "ORDER BY sequence",
                (sequence,),
            ):
                entries = {entry["id"]: entry for entry in json.loads(text)}
                found |= {id_: Told(entries[id_], moment) for id_ in ids if id_ in entries}
        return found

    def _write_asked(self, db: sqlite3.Connection, asked: list[tuple[Any, ...]]) -> None:
        trials, parameters, attributes = [], [], []
        for id_, genome, fingerprint, violations, moment in asked:
            trials.append((id_ + 1, id_, "RUNNING", _stamp(moment)))
            parameters += [(id_ + 1, name, value, UNIT) for name, value in self._parameters(genome)]
            attributes.append((id_ + 1, "recipe", json.dumps(fingerprint)))
            if violated := json.loads(violations):
                attributes.append((id_ + 1, "violations", json.dumps(violated)))
        db.executemany(
            "INSERT INTO trials (trial_id, number, study_id, state, datetime_start) "
            "VALUES (?, ?, 1, ?, ?)",
            trials,
        )
        db.executemany(
            "INSERT OR IGNORE INTO trial_params "
            "(trial_id, param_name, param_value, distribution_json) VALUES (?, ?, ?, ?)",
            parameters,
        )
        _write_attributes(db, attributes)

    def _parameters(self, genome: str | None) -> Iterable[tuple[str, float]]:
        """Coordinates by the genes' names; none of a genome that is no vector of them."""
        values = json.loads(genome) if genome else None
        if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
            return []
        names = self._genes or [f"gene {number}" for number in range(len(values))]
        pairs = zip(names, values, strict=True) if len(names) == len(values) else ()
        return list(pairs)[:MAX_PARAMETERS]

    def _write_items(self, db: sqlite3.Connection, items: Mapping[int, int]) -> None:
        rows = [
            (id_ + 1, "item_evaluations", json.dumps(count))
            for id_, count in items.items()
            if id_ >= 0
        ]
        db.executemany(
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?) "
            "ON CONFLICT (trial_id, key) DO UPDATE SET "
            "value_json = CAST(value_json AS INTEGER) + CAST(excluded.value_json AS INTEGER)",
            rows,
        )

    def _write_told(self, db: sqlite3.Connection, told: Mapping[int, Told], rung: int) -> None:
        """The newest word on each: its state, its values, and what they rest on."""
        trials, values, attributes = [], [], []
        for id_, news in told.items():
            entry = news.entry
            state = "RUNNING" if entry is None else _state(entry, rung)
            trials.append((state, _stamp(news.moment) if entry else None, id_ + 1))
            if entry is None:
                continue
            score: Json = entry["score"] or {}
            values += [(id_ + 1, i, v) for i, v in enumerate(self._objectives.shown(score))]
            attributes += _attributes(id_ + 1, entry)
        marks = [(id_ + 1,) for id_ in told]
        over = "SELECT count(*) FROM trials WHERE trial_id = ? AND state != 'RUNNING'"
        self.rewritten += sum(db.execute(over, mark).fetchone()[0] for mark in marks)
        db.executemany("DELETE FROM trial_values WHERE trial_id = ?", marks)
        db.executemany(
            "DELETE FROM trial_user_attributes WHERE trial_id = ? AND key NOT IN "
            "('recipe', 'violations', 'item_evaluations')",
            marks,
        )
        db.executemany(
            "UPDATE trials SET state = ?, datetime_complete = ? WHERE trial_id = ?", trials
        )
        db.executemany(
            "INSERT INTO trial_values (trial_id, objective, value, value_type) "
            "VALUES (?, ?, ?, 'FINITE')",
            values,
        )
        _write_attributes(db, attributes)

    def _drop_below(self, db: sqlite3.Connection, rung: int) -> None:
        """A race has gone further than ever: who did not come as far is no longer comparable."""
        changed = db.execute(
            "UPDATE trials SET state = 'PRUNED' WHERE state = 'COMPLETE' AND trial_id IN "
            "(SELECT trial_id FROM trial_user_attributes WHERE key = 'rung' AND "
            "CAST(value_json AS INTEGER) < ?)",
            (rung,),
        )
        self.rewritten += changed.rowcount


def _state(entry: Json, rung: int) -> str:
    if entry["score"] is None:
        return "FAIL"
    return "COMPLETE" if entry["rung"] == rung else "PRUNED"


def _attributes(trial: int, entry: Json) -> list[tuple[int, str, str]]:
    """What a trial's values rest on, or why it has none."""
    found: Json = {}
    if entry["score"] is not None:
        found["rung"] = entry["rung"]
        for name, (_, error, num_items) in entry["score"].items():
            if num_items:
                found[f"standard_error {name}"] = error
    if entry["failure"] is not None:
        found["failure"] = entry["failure"]["reason"][:SHOWN_REASON]
    return [(trial, key, json.dumps(value)) for key, value in found.items()]


def _write_attributes(db: sqlite3.Connection, rows: list[tuple[int, str, str]]) -> None:
    db.executemany(
        "INSERT OR REPLACE INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?)",
        rows,
    )


def _stamp(moment: float) -> str:
    """A time as SQLAlchemy writes it: UTC, without saying so."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
