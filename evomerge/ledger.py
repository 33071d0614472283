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

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evomerge.failpoints import failpoint
from evomerge.ledger_file import FINAL, LEDGER, REFERENCES, create_file
from evomerge.ledger_reading import FAILED_ITEMS, CostOf, LedgerReader
from evomerge.ledger_rows import (
    PAGE_BYTES,
    Row,
    database_errors,
    evaluation_data,
    item_failures,
    ordered_json,
    pack,
)
from evomerge.recipe import canonical_json
from evomerge.records import Candidate, Evaluation, Outcome

__all__ = ["FINAL", "LEDGER", "REFERENCES", "Ledger"]


class Ledger(LedgerReader):
    """A run's memory: durable on disk, and as objects in the driver (see `LedgerReader`)."""

    @classmethod
    def create(
        cls,
        path: Path,
        meta: Mapping[str, Any],
        num_items: Mapping[str, int],
        costs: CostOf | None = None,
    ) -> Ledger:
        """Start a run's ledger; `meta` describes the experiment, `num_items` its tasks."""
        create_file(path, {**meta, "num_items": dict(num_items)})
        return cls(path, costs=costs)

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
