"""The ledger: everything that happened in a run, in the order in which it happened.

One SQLite file, written by the driver alone and only ever appended to. Its spine is a sequence of
events; candidates and responses hang on it. A run is resumed by reading it from the start.

    asked      a searcher was asked; its candidates are committed here before any is dispatched
    measured   one outcome: responses, or a failure
    told       a cohort's scores, and that the searcher was told them: one transaction
    scored     a cohort that the budget cut short: scores for the report, told to nobody
    final      the final table
    references how good the references are on the search items, by the first driver that knew
    session    a driver started: versions and machine, its pool and its budget
    ended      it ended, and why; one that was killed could not say so
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigurationError, LedgerDamaged
from evomerge.failpoints import failpoint
from evomerge.files import disk_errors, fsync
from evomerge.filesystems import journal_mode
from evomerge.ledger_rows import (
    PAGE_BYTES,
    Candidates,
    Row,
    damage,
    database_errors,
    evaluation_data,
    item_failures,
    ordered_json,
    pack,
    unpack,
)
from evomerge.recipe import Recipe, canonical_json
from evomerge.records import (
    Candidate,
    CandidateId,
    Estimate,
    Evaluation,
    Failure,
    Measurements,
    Outcome,
    Responses,
    Score,
)

logger = logging.getLogger(__name__)

CostOf = Callable[[Recipe], Mapping[str, float]]

FORMAT = 1
REFERENCES = -1  # the cohort of what is measured before the search
FINAL = -2  # the cohort of what is measured after it
ITEM_BYTES = 4  # an item's id
PATIENCE_S = 60.0  # without a write-ahead log, readers and the driver wait for each other
FAILED_ITEMS = "failed_items"  # in the data of `measured`: task -> [reason, items]

LEDGER = "ledger.sqlite"  # its name in a run folder

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY, kind TEXT NOT NULL, cohort INTEGER, time REAL NOT NULL,
    data TEXT NOT NULL);
CREATE TABLE candidates (
    id INTEGER PRIMARY KEY, event INTEGER NOT NULL REFERENCES events, label TEXT NOT NULL,
    genome TEXT, recipe TEXT, fingerprint TEXT NOT NULL, violations TEXT NOT NULL);
CREATE TABLE responses (
    event INTEGER NOT NULL REFERENCES events, fingerprint TEXT NOT NULL, task TEXT NOT NULL,
    items BLOB NOT NULL, columns TEXT NOT NULL, data BLOB NOT NULL, texts TEXT);
CREATE INDEX events_by_kind ON events (kind, sequence);
"""


def connected(path: Path, read_only: bool) -> sqlite3.Connection:
    """A connection to a file that exists.

    What a driver had written when it was killed is put in order by whoever reads it next, for which
    SQLite has to write: a reader that may not is given a connection that may, and only reads by it.
    """
    db = sqlite3.connect(
        f"{path.resolve().as_uri()}{'?mode=ro' if read_only else ''}",
        uri=True,
        isolation_level=None,
        timeout=PATIENCE_S,
    )
    if read_only:
        try:
            db.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.OperationalError as error:
            db.close()
            if "readonly" not in str(error):
                raise
            return connected(path, read_only=False)
    return db


def keep_journal(db: sqlite3.Connection, path: Path) -> None:
    """Keep SQLite's journal as the disk wants it; a ledger that was moved there changes over."""
    mode = journal_mode(path)
    try:
        db.execute(f"PRAGMA journal_mode = {mode}")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        logger.warning("%s: somebody reads it, so its journal is not changed to %s", path, mode)


def known_format(path: Path, meta: Mapping[str, str]) -> None:
    """That the rows of `meta` are of a format that this version reads.

    Raises:
        LedgerDamaged: they are of a newer one.
    """
    if (number := int(json.loads(meta["format"]))) > FORMAT:
        raise LedgerDamaged(
            f"{path}: format {number} is newer than this evomerge's {FORMAT}; "
            "the file was left untouched"
        )


class Ledger:
    """A run's memory: durable on disk, and as objects in the driver.

    One that is opened to read shows the run as it was at that moment, whatever a driver adds.
    """

    def __init__(self, path: Path, *, read_only: bool = False, costs: CostOf | None = None) -> None:
        """Open a ledger that exists.

        costs: what recipes cost, for objectives that are costs.

        Raises:
            ConfigurationError: there is none.
            LedgerDamaged: it is unreadable, or was written by a newer version.
        """
        if not path.exists():
            raise ConfigurationError(f"{path.parent}: no run here (there is no {path.name})")
        self.path = path
        self._costs = costs
        with damage(path):
            self._db = connected(path, read_only)
        try:
            self._open(read_only)
        except BaseException:
            self._db.close()
            raise

    def _open(self, read_only: bool) -> None:
        with damage(self.path):
            rows = dict(self._db.execute("SELECT key, value FROM meta"))
            known_format(self.path, rows)
            self.meta = {key: json.loads(value) for key, value in rows.items()}
            if not read_only:
                self._db.execute("PRAGMA foreign_keys = ON")
                keep_journal(self._db, self.path)
                self._db.execute("PRAGMA synchronous = FULL")
            (last,) = self._db.execute("SELECT coalesce(max(sequence), 0) FROM events").fetchone()
            self._horizon = last if read_only else 2**62  # later events are not looked at
            self.candidates = Candidates(self.path)
            for id_, *row in self._db.execute(
                "SELECT id, label, genome, recipe, fingerprint, violations FROM candidates "
                "WHERE event <= ? ORDER BY id",
                (self._horizon,),
            ):
                self.candidates.add(id_, Row(*row))
        self._measurements: Measurements | None = None
        self._items_of: Counter[int] = Counter()  # cohort -> item evaluations

    @property
    def measurements(self) -> Measurements:
        """All responses and failures; read when they are first needed.

        Raises:
            LedgerDamaged: they cannot be read.
        """
        if self._measurements is None:
            with damage(self.path):
                self._measurements = Measurements(self.meta["num_items"], self._costs)
                self._load()
        return self._measurements

    def answers_of(self, fingerprint: str) -> Measurements:
        """One recipe's responses, without reading those of all others."""
        found = Measurements(self.meta["num_items"])
        with damage(self.path):
            for packed in self._db.execute(
                "SELECT task, items, columns, data, texts FROM responses "
                "WHERE fingerprint = ? AND event <= ? ORDER BY rowid",
                (fingerprint, self._horizon),
            ):
                found.add(fingerprint, unpack(*packed))
        return found

    @property
    def item_evaluations(self) -> int:
        """The number of all responses; costs no reading of them."""
        if self._measurements is not None:
            return self._measurements.item_evaluations
        size = "SELECT coalesce(sum(length(items)), 0) FROM responses WHERE event <= ?"
        (size_bytes,) = self._db.execute(size, (self._horizon,)).fetchone()
        return int(size_bytes) // ITEM_BYTES

    @property
    def num_failed_items(self) -> int:
        """How many items some candidate could not answer while it answered others."""
        with damage(self.path):
            rows = self._db.execute(
                "SELECT data FROM events WHERE kind = 'measured' AND sequence <= ? "
                "AND instr(data, ?) > 0",
                (self._horizon, f'"{FAILED_ITEMS}":'),
            )
            told = [json.loads(data).get(FAILED_ITEMS, {}) for (data,) in rows]
        return sum(len(items) for tasks in told for part in tasks.values() for _, items in part)

    def answered(self, cohort: int) -> Iterator[tuple[str, str, list[int]]]:
        """(fingerprint, task, items) of the responses to a cohort's jobs."""
        with damage(self.path):
            rows = self._db.execute(
                "SELECT fingerprint, task, items, columns, responses.data, texts "
                "FROM responses JOIN events ON event = sequence "
                "WHERE cohort = ? AND event <= ? ORDER BY responses.rowid",
                (cohort, self._horizon),
            ).fetchall()
            for fingerprint, *packed in rows:
                responses = unpack(*packed)
                yield fingerprint, responses.task, responses.items.tolist()

    def recorded(self, fingerprint: str) -> Iterator[Responses]:
        """What a recipe has answered, job by job, in the order of arrival."""
        with damage(self.path):
            rows = self._db.execute(
                "SELECT task, items, columns, responses.data, texts "
                "FROM responses JOIN events ON event = sequence "
                "WHERE fingerprint = ? AND event <= ? ORDER BY responses.rowid",
                (fingerprint, self._horizon),
            ).fetchall()
            for packed in rows:
                yield unpack(*packed)

    def spent(self, cohort: int) -> int:
        """Item evaluations of the references and of all cohorts up to this one.

        What later cohorts and the last choice cost does not count. An item that several cohorts
        needed is that of whoever's job brought it: see `Spent` for what does not depend on that.
        """
        self.measurements  # noqa: B018 - counted while they are read
        return sum(
            count for number, count in self._items_of.items() if REFERENCES <= number <= cohort
        )

    @classmethod
    def create(
        cls,
        path: Path,
        meta: Mapping[str, Any],
        num_items: Mapping[str, int],
        costs: CostOf | None = None,
    ) -> Ledger:
        """Start a run's ledger; `meta` describes the experiment, `num_items` its tasks.

        The file appears under its name only when it is complete.
        """
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".creating")
        for leftover in (temporary, temporary.with_name(f"{temporary.name}-journal")):
            leftover.unlink(missing_ok=True)
        values = {**meta, "format": FORMAT, "num_items": dict(num_items)}
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        size = sum(len(value) for _, value in rows) + 12 * PAGE_BYTES
        with (
            database_errors(path, size),
            closing(sqlite3.connect(temporary, isolation_level=None)) as db,
        ):
            db.execute("PRAGMA synchronous = FULL")
            db.executescript(SCHEMA)
            db.execute("BEGIN")
            db.executemany("INSERT INTO meta VALUES (?, ?)", rows)
            db.execute("COMMIT")
        temporary.rename(path)
        fsync(path.parent)
        return cls(path, costs=costs)

    def close(self) -> None:
        """Close the file; the objects in memory stay."""
        self._db.close()

    # --- writing ----------------------------------------------------------------------------------

    def asked(self, cohort: int, count: int, candidates: Sequence[Candidate]) -> None:
        """Commit candidates, before any of them is dispatched."""
        rows = {
            candidate.id: Row(
                candidate.label,
                None if candidate.genome is None else canonical_json(candidate.genome),
                None if candidate.recipe is None else candidate.recipe.to_json(),
                candidate.fingerprint,
                json.dumps(candidate.violations),
            )
            for candidate in candidates
        }
        size = sum(len(text or "") for row in rows.values() for text in row)
        with self._transaction("ask", "asked", cohort, {"count": count}, size) as event:
            self._db.executemany(
                "INSERT INTO candidates (id, event, label, genome, recipe, fingerprint, violations)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(id_, event, *row) for id_, row in rows.items()],
            )
        for candidate in candidates:
            self.candidates.add(candidate.id, rows[candidate.id], candidate)

    def measured(self, cohort: int, outcome: Outcome) -> None:
        """Commit one outcome by itself; its responses must be finite."""
        fingerprint = outcome.job.recipe.fingerprint
        failure = outcome.failure
        data = {
            "candidate": outcome.job.candidate,
            "fingerprint": fingerprint,
            "num_items": outcome.job.num_items,
            "worker": outcome.worker,
            "seconds": [outcome.merge_s, outcome.measure_s, outcome.forward_s],
            "failure": None if failure is None else asdict(failure),
        }
        if failure is not None:
            data["items"] = {task: list(items) for task, items in outcome.job.items.items()}
        if failed_items := item_failures(outcome):
            data[FAILED_ITEMS] = failed_items
        packed = [pack(responses) for responses in outcome.responses]
        size = sum(len(part or "") for row in packed for part in row)
        with self._transaction("result", "measured", cohort, data, size) as event:
            self._db.executemany(
                "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(event, fingerprint, *row) for row in packed],
            )
        self._remember(cohort, data, outcome.responses)

    def told(self, cohort: int, evaluations: Sequence[Evaluation]) -> None:
        """Commit a cohort's scores together with the fact that the searcher is told them."""
        data = [evaluation_data(evaluation) for evaluation in evaluations]
        with self._transaction("tell", "told", cohort, data):
            pass

    def scored(self, cohort: int, evaluations: Sequence[Evaluation]) -> None:
        """Commit the scores of a cohort that the budget cut short; once, however often resumed."""
        data = [evaluation_data(evaluation) for evaluation in evaluations]
        newest = self._db.execute(
            "SELECT kind, cohort, data FROM events WHERE kind IN ('told', 'scored') "
            "ORDER BY sequence DESC LIMIT 1"
        ).fetchone()
        if newest == ("scored", cohort, ordered_json(data)):
            return
        with self._transaction("tell", "scored", cohort, data):
            pass

    def note(self, kind: str, data: Any) -> None:
        """Commit an event that nothing hangs on: `session`, `final`."""
        with self._transaction(kind, kind, None, data):
            pass

    @contextmanager
    def together(self) -> Iterator[None]:
        """One commit for all that is recorded inside.

        A commit waits for the disk; what arrived while one did shares the next.
        """
        with self._durably("results"):
            yield

    @contextmanager
    def _transaction(
        self, place: str, kind: str, cohort: int | None, data: Any, rows_bytes: int = 0
    ) -> Iterator[int | None]:
        text = ordered_json(data)
        # Whole pages are written: those of the rows, and the last of each table.
        room = len(text) + rows_bytes + 4 * PAGE_BYTES
        with nullcontext() if self._db.in_transaction else self._durably(place, room):
            yield self._db.execute(
                "INSERT INTO events (kind, cohort, time, data) VALUES (?, ?, ?, ?)",
                (kind, cohort, time.time(), text),
            ).lastrowid

    @contextmanager
    def _durably(self, place: str, room: int = 4 * PAGE_BYTES) -> Iterator[None]:
        """A transaction; room: bytes that it takes, for a message where they are not there."""
        with database_errors(self.path, room):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                failpoint(f"{place}.before_commit")
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        failpoint(f"{place}.after_commit")

    # --- reading ----------------------------------------------------------------------------------

    def events(self, *kinds: str) -> Iterator[tuple[str, int, Any]]:
        """(kind, cohort, data) of the events of these kinds, in order."""
        yield from ((kind, cohort, data) for kind, cohort, _, data in self.timeline(*kinds))

    def timeline(self, *kinds: str) -> Iterator[tuple[str, int, float, Any]]:
        """(kind, cohort, time, data) of the events of these kinds, in order.

        time: the driver's clock, in seconds since the epoch.
        """
        marks = ", ".join("?" * len(kinds))
        with damage(self.path):
            rows = self._db.execute(
                f"SELECT kind, cohort, time, data FROM events WHERE kind IN ({marks}) "  # noqa: S608
                "AND sequence <= ? ORDER BY sequence",
                (*kinds, self._horizon),
            )
            found = [(kind, cohort, at, json.loads(text)) for kind, cohort, at, text in rows]
        yield from found

    def asked_ids(self) -> dict[int, list[CandidateId]]:
        """Cohort -> the ids of its candidates, in the order of asking."""
        asked: dict[int, list[CandidateId]] = {}
        with damage(self.path):
            for cohort, candidate in self._db.execute(
                "SELECT cohort, id FROM candidates JOIN events ON event = sequence "
                "WHERE event <= ? ORDER BY event, candidates.rowid",
                (self._horizon,),
            ):
                asked.setdefault(cohort, []).append(candidate)
        return asked

    def seconds_spent(self) -> float:
        """How long drivers have worked on the run: each session up to its last event."""
        seconds, start, last = 0.0, None, 0.0
        with damage(self.path):
            for kind, moment in self._db.execute(
                "SELECT kind, time FROM events WHERE sequence <= ? ORDER BY sequence",
                (self._horizon,),
            ):
                if kind == "session":
                    seconds += last - start if start is not None else 0.0
                    start = moment
                last = moment
        return seconds + (last - start if start is not None else 0.0)

    def evaluation(self, data: Mapping[str, Any]) -> Evaluation:
        """An evaluation as it was told."""
        score = data["score"]
        return Evaluation(
            id=data["id"],
            genome=self.candidates.genome(data["id"]),
            score=None
            if score is None
            else Score({k: Estimate(*v) for k, v in score.items()}, data["rung"]),
            failure=None if data["failure"] is None else Failure(**data["failure"]),
            violation=data["violation"],
        )

    def evaluations(self) -> dict[CandidateId, Evaluation]:
        """The latest evaluation of every candidate that was told or scored.

        As in the digest, a cohort that a budget cut short counts only until something is told.
        """
        told: dict[CandidateId, Any] = {}
        cut: dict[CandidateId, Any] = {}
        for kind, _, data in self.events("told", "scored"):
            entries = {entry["id"]: entry for entry in data}
            cut = {} if kind == "told" else entries
            if kind == "told":
                told.update(entries)
        return {id_: self.evaluation(entry) for id_, entry in (told | cut).items()}

    def final(self) -> dict[str, Any] | None:
        """The newest final table, if the run has one that nothing was told after."""
        newest: dict[str, Any] | None = None
        for kind, _, data in self.events("final", "told", "scored"):
            newest = data if kind == "final" else None
        return newest

    def digest(self) -> str:
        """sha256 of the trajectory: what was asked and what was told, and nothing of when or where.

        A budget that cut a cohort short counts only while nothing was told after it: a run that is
        extended becomes equal to one that was longer from the start.
        """
        told, cut = [], None
        for kind, cohort, data in self.events("told", "scored"):
            entry = [
                [e, self.candidates.genome(e["id"]), self.candidates.fingerprint(e["id"])]
                for e in data
            ]
            if kind == "told":
                told.append([cohort, entry])
                cut = None
            else:
                cut = [cohort, entry]
        return hashlib.sha256(canonical_json([told, cut]).encode()).hexdigest()

    # --- memory -----------------------------------------------------------------------------------

    def _load(self) -> None:
        for _, cohort, data in self.events("measured"):
            self._remember(cohort, data, ())
        for cohort, fingerprint, *packed in self._db.execute(
            "SELECT cohort, fingerprint, task, items, columns, responses.data, texts "
            "FROM responses JOIN events ON event = sequence WHERE event <= ? "
            "ORDER BY responses.rowid",
            (self._horizon,),
        ):
            told = {"fingerprint": fingerprint, "failure": None}
            self._remember(cohort, told, (unpack(*packed),))

    def _remember(
        self, cohort: int, measured: Mapping[str, Any], responses: Sequence[Responses]
    ) -> None:
        if self._measurements is None:
            return  # they are read from the file when they are needed
        fingerprint = measured["fingerprint"]
        if measured["failure"] is not None:
            failure = Failure(**measured["failure"])
            self._measurements.fail(fingerprint, failure, measured["items"], cohort)
        for task, groups in measured.get(FAILED_ITEMS, {}).items():
            told = {item: reason for reason, items in groups for item in items}
            self._measurements.fail_items(fingerprint, task, told)
        before = self._measurements.item_evaluations
        for response in responses:
            self._measurements.add(fingerprint, response)
        self._items_of[cohort] += self._measurements.item_evaluations - before
