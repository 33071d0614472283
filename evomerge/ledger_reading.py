"""What a ledger says: candidates, responses, scores, and when everything happened."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from evomerge.errors import ConfigurationError
from evomerge.ledger_file import REFERENCES, connected, keep_journal, known_format
from evomerge.ledger_rows import Candidates, Row, damage, unpack
from evomerge.recipe import Recipe, canonical_json
from evomerge.records import (
    CandidateId,
    Estimate,
    Evaluation,
    Failure,
    Measurements,
    Responses,
    Score,
)

CostOf = Callable[[Recipe], Mapping[str, float]]

ITEM_BYTES = 4  # an item's id
FAILED_ITEMS = "failed_items"  # in the data of `measured`: task -> [reason, items]


class LedgerReader:
    """A run's memory as objects, read from the file when they are needed.

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
        for fingerprint, responses in self._job_by_job("cohort", cohort):
            yield fingerprint, responses.task, responses.items.tolist()

    def recorded(self, fingerprint: str) -> Iterator[Responses]:
        """What a recipe has answered, job by job, in the order of arrival."""
        for _, responses in self._job_by_job("fingerprint", fingerprint):
            yield responses

    def _job_by_job(
        self, column: Literal["cohort", "fingerprint"], value: int | str
    ) -> Iterator[tuple[str, Responses]]:
        """Fingerprints and responses of the rows with a value, in the order of arrival."""
        with damage(self.path):
            rows = self._db.execute(
                "SELECT fingerprint, task, items, columns, responses.data, texts "  # noqa: S608
                "FROM responses JOIN events ON event = sequence "
                f"WHERE {column} = ? AND event <= ? ORDER BY responses.rowid",
                (value, self._horizon),
            ).fetchall()
            for fingerprint, *packed in rows:
                yield fingerprint, unpack(*packed)

    def spent(self, cohort: int) -> int:
        """Item evaluations of the references and of all cohorts up to this one.

        What later cohorts and the last choice cost does not count. An item that several cohorts
        needed is that of whoever's job brought it: see `Spent` for what does not depend on that.
        """
        self.measurements  # noqa: B018 - counted while they are read
        return sum(
            count for number, count in self._items_of.items() if REFERENCES <= number <= cohort
        )

    def close(self) -> None:
        """Close the file; the objects in memory stay."""
        self._db.close()

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
