"""The ledger: everything that happened in a run, in the order in which it happened.

One SQLite file, written by the driver alone and only ever appended to. Its spine is a sequence of
events; candidates and responses hang on it. A run is resumed by reading it from the start.

    asked      a searcher was asked; its candidates are committed here before any is dispatched
    measured   one outcome: responses, or a failure
    told       a cohort's scores, and that the searcher was told them: one transaction
    scored     a cohort that the budget cut short: scores for the report, told to nobody
    final      the final table
    session    a driver started: versions and machine
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigurationError, DiskFull, LedgerDamaged
from evomerge.failpoints import failpoint
from evomerge.files import fsync
from evomerge.recipe import Recipe, canonical_json
from evomerge.records import (
    Candidate,
    CandidateId,
    Estimate,
    Evaluation,
    Failure,
    Genome,
    Measurements,
    Outcome,
    Responses,
    Score,
)

FORMAT = 1
REFERENCES = -1  # the cohort of what is measured before the search
FINAL = -2  # the cohort of what is measured after it
ITEM_BYTES = 4  # an item's id

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


class _Row(NamedTuple):
    """A candidate as it stands in the ledger."""

    label: str
    genome: str | None
    recipe: str | None
    fingerprint: str
    violations: str


class Candidates(Mapping[CandidateId, Candidate]):
    """All candidates of a run, in the order of their ids.

    They are kept as text and parsed when they are asked for: a long run asks for few of them again,
    and a parsed recipe is ten times as large.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[CandidateId, _Row] = {}
        self._parsed: WeakValueDictionary[CandidateId, Candidate] = WeakValueDictionary()

    def __getitem__(self, id_: CandidateId) -> Candidate:
        if (known := self._parsed.get(id_)) is not None:
            return known
        row = self._rows[id_]
        with _damage(self._path):
            recipe = None if row.recipe is None else Recipe.from_json(row.recipe)
            violations = tuple(json.loads(row.violations))
        candidate = Candidate(id_, self.genome(id_), recipe, violations, row.label)
        self._parsed[id_] = candidate
        return candidate

    def __iter__(self) -> Iterator[CandidateId]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, id_: object) -> bool:
        return id_ in self._rows

    def genome(self, id_: CandidateId) -> Genome | None:
        """A candidate's genome alone."""
        text = self._rows[id_].genome
        with _damage(self._path):
            return None if text is None else json.loads(text)

    def fingerprint(self, id_: CandidateId) -> str:
        """The fingerprint of a candidate's recipe."""
        return self._rows[id_].fingerprint

    def add(self, id_: CandidateId, row: _Row, parsed: Candidate | None = None) -> None:
        """Take in a candidate that is committed; `parsed` serves for as long as anybody has it."""
        self._rows[id_] = row
        if parsed is not None:
            self._parsed[id_] = parsed


class Ledger:
    """A run's memory: durable on disk, and as objects in the driver.

    One that is opened to read shows the run as it was at that moment, whatever a driver adds.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open a ledger that exists.

        Raises:
            ConfigurationError: there is none.
            LedgerDamaged: it is unreadable, or was written by a newer version.
        """
        if not path.exists():
            raise ConfigurationError(f"{path.parent}: no run here (there is no {path.name})")
        self.path = path
        uri = f"{path.resolve().as_uri()}{'?mode=ro' if read_only else ''}"
        with _damage(path):
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None)
        try:
            self._open(read_only)
        except BaseException:
            self._db.close()
            raise

    def _open(self, read_only: bool) -> None:
        with _damage(self.path):
            self.meta = {k: json.loads(v) for k, v in self._db.execute("SELECT * FROM meta")}
            if (number := int(self.meta["format"])) > FORMAT:
                raise LedgerDamaged(
                    f"{self.path}: format {number} is newer than this evomerge's {FORMAT}; "
                    "the file was left untouched"
                )
            if not read_only:
                self._db.execute("PRAGMA foreign_keys = ON")
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
            (last,) = self._db.execute("SELECT coalesce(max(sequence), 0) FROM events").fetchone()
            self._horizon = last if read_only else 2**62  # later events are not looked at
            self.candidates = Candidates(self.path)
            for id_, *row in self._db.execute(
                "SELECT id, label, genome, recipe, fingerprint, violations FROM candidates "
                "WHERE event <= ? ORDER BY id",
                (self._horizon,),
            ):
                self.candidates.add(id_, _Row(*row))
        self._measurements: Measurements | None = None
        self._items_of: Counter[int] = Counter()  # cohort -> item evaluations

    @property
    def measurements(self) -> Measurements:
        """All responses and failures; read when they are first needed.

        Raises:
            LedgerDamaged: they cannot be read.
        """
        if self._measurements is None:
            with _damage(self.path):
                self._measurements = Measurements(self.meta["num_items"])
                self._load()
        return self._measurements

    @property
    def item_evaluations(self) -> int:
        """The number of all responses; costs no reading of them."""
        if self._measurements is not None:
            return self._measurements.item_evaluations
        size = "SELECT coalesce(sum(length(items)), 0) FROM responses WHERE event <= ?"
        (size_bytes,) = self._db.execute(size, (self._horizon,)).fetchone()
        return int(size_bytes) // ITEM_BYTES

    def spent(self, cohort: int) -> int:
        """Item evaluations of the references and of all cohorts up to this one.

        What later cohorts and the last choice cost does not count: how much of it is there depends
        on what arrived first, and on where the run was stopped before.
        """
        self.measurements  # noqa: B018 - counted while they are read
        return sum(
            count for number, count in self._items_of.items() if REFERENCES <= number <= cohort
        )

    @classmethod
    def create(cls, path: Path, meta: Mapping[str, Any], num_items: Mapping[str, int]) -> Ledger:
        """Start a run's ledger; `meta` describes the experiment, `num_items` its tasks.

        The file appears under its name only when it is complete.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".creating")
        for leftover in (temporary, temporary.with_name(f"{temporary.name}-journal")):
            leftover.unlink(missing_ok=True)
        with _database_errors(path):
            db = sqlite3.connect(temporary, isolation_level=None)
            db.execute("PRAGMA synchronous = FULL")
            db.executescript(SCHEMA)
            values = {**meta, "format": FORMAT, "num_items": dict(num_items)}
            db.execute("BEGIN")
            db.executemany(
                "INSERT INTO meta VALUES (?, ?)", [(k, json.dumps(v)) for k, v in values.items()]
            )
            db.execute("COMMIT")
            db.close()
        temporary.rename(path)
        fsync(path.parent)
        return cls(path)

    def close(self) -> None:
        """Close the file; the objects in memory stay."""
        self._db.close()

    # --- writing ----------------------------------------------------------------------------------

    def asked(self, cohort: int, count: int, candidates: Sequence[Candidate]) -> None:
        """Commit candidates, before any of them is dispatched."""
        rows = {
            candidate.id: _Row(
                candidate.label,
                None if candidate.genome is None else canonical_json(candidate.genome),
                None if candidate.recipe is None else candidate.recipe.to_json(),
                candidate.fingerprint,
                json.dumps(candidate.violations),
            )
            for candidate in candidates
        }
        with self._transaction("ask", "asked", cohort, {"count": count}) as event:
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
        with self._transaction("result", "measured", cohort, data) as event:
            self._db.executemany(
                "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(event, fingerprint, *_pack(responses)) for responses in outcome.responses],
            )
        self._remember(cohort, data, outcome.responses)

    def told(self, cohort: int, evaluations: Sequence[Evaluation]) -> None:
        """Commit a cohort's scores together with the fact that the searcher is told them."""
        data = [_evaluation_data(evaluation) for evaluation in evaluations]
        with self._transaction("tell", "told", cohort, data):
            pass

    def scored(self, cohort: int, evaluations: Sequence[Evaluation]) -> None:
        """Commit the scores of a cohort that the budget cut short; once, however often resumed."""
        data = [_evaluation_data(evaluation) for evaluation in evaluations]
        newest = self._db.execute(
            "SELECT kind, cohort, data FROM events WHERE kind IN ('told', 'scored') "
            "ORDER BY sequence DESC LIMIT 1"
        ).fetchone()
        if newest == ("scored", cohort, _ordered_json(data)):
            return
        with self._transaction("tell", "scored", cohort, data):
            pass

    def note(self, kind: str, data: Any) -> None:
        """Commit an event that nothing hangs on: `session`, `final`."""
        with self._transaction(kind, kind, None, data):
            pass

    @contextmanager
    def _transaction(
        self, place: str, kind: str, cohort: int | None, data: Any
    ) -> Iterator[int | None]:
        with _database_errors(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                event = self._db.execute(
                    "INSERT INTO events (kind, cohort, time, data) VALUES (?, ?, ?, ?)",
                    (kind, cohort, time.time(), _ordered_json(data)),
                ).lastrowid
                yield event
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
        marks = ", ".join("?" * len(kinds))
        with _damage(self.path):
            rows = self._db.execute(
                f"SELECT kind, cohort, data FROM events WHERE kind IN ({marks}) "  # noqa: S608
                "AND sequence <= ? ORDER BY sequence",
                (*kinds, self._horizon),
            )
            found = [(kind, cohort, json.loads(text)) for kind, cohort, text in rows.fetchall()]
        yield from found

    def asked_ids(self) -> dict[int, list[CandidateId]]:
        """Cohort -> the ids of its candidates, in the order of asking."""
        asked: dict[int, list[CandidateId]] = {}
        with _damage(self.path):
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
        with _damage(self.path):
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
            self._remember(cohort, told, (_unpack(*packed),))

    def _remember(
        self, cohort: int, measured: Mapping[str, Any], responses: Sequence[Responses]
    ) -> None:
        if self._measurements is None:
            return  # they are read from the file when they are needed
        fingerprint = measured["fingerprint"]
        if measured["failure"] is not None:
            failure = Failure(**measured["failure"])
            self._measurements.fail(fingerprint, failure, measured["items"], cohort)
        before = self._measurements.item_evaluations
        for response in responses:
            self._measurements.add(fingerprint, response)
        self._items_of[cohort] += self._measurements.item_evaluations - before


def _ordered_json(value: Any) -> str:
    """JSON that keeps the order of keys: objectives are told in the order of their declaration."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _evaluation_data(evaluation: Evaluation) -> dict[str, Any]:
    score = evaluation.score
    return {
        "id": evaluation.id,
        "score": None
        if score is None
        else {
            name: [estimate.value, estimate.standard_error, estimate.num_items]
            for name, estimate in score.objectives.items()
        },
        "rung": 0 if score is None else score.rung,
        "failure": None if evaluation.failure is None else asdict(evaluation.failure),
        "violation": evaluation.violation,
    }


def _pack(responses: Responses) -> tuple[str, bytes, str, bytes, str | None]:
    """A row: item ids as uint32; each column as float32, or as bits where it holds only 0 and 1."""
    columns, data = [], b""
    for name, values in responses.columns.items():
        if not np.isfinite(values).all():
            raise ValueError(f"task {responses.task}: column {name} is not finite")
        is_binary = bool(np.isin(values, (0, 1)).all())
        block = np.packbits(values.astype(bool)) if is_binary else values.astype("<f4")
        columns.append([name, "bit" if is_binary else "f4"])
        data += block.tobytes()
    texts = None if responses.texts is None else json.dumps(responses.texts)
    items = responses.items.astype("<u4").tobytes()
    return responses.task, items, json.dumps(columns), data, texts


def _unpack(task: str, items: bytes, columns: str, data: bytes, texts: str | None) -> Responses:
    ids = np.frombuffer(items, "<u4").astype(np.int64)
    values: dict[str, NDArray[np.float32]] = {}
    start = 0
    for name, kind in json.loads(columns):
        size = (len(ids) + 7) // 8 if kind == "bit" else 4 * len(ids)
        block = data[start : start + size]
        start += size
        if kind == "bit":
            bits = np.unpackbits(np.frombuffer(block, np.uint8), count=len(ids))
            values[name] = bits.astype(np.float32)
        else:
            values[name] = np.frombuffer(block, "<f4").astype(np.float32)
    return Responses(task, ids, values, None if texts is None else tuple(json.loads(texts)))


@contextmanager
def _database_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if "full" in str(error):
            raise DiskFull(
                f"{path}: no space left on the disk; what was committed is intact"
            ) from None
        raise LedgerDamaged(f"{path}: {error}") from None


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a ledger is read is a damage of the file."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise LedgerDamaged(f"{path}: cannot be read as a ledger: {error}") from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        what = f"{type(error).__name__}: {error}"
        raise LedgerDamaged(f"{path}: damaged: {what}") from None
