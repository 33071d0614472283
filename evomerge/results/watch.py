"""A run as its folder shows it, followed while somebody else works on it.

Everything is read from the ledger and the lock's file: the driver may be on another machine that
shares the disk, and is never asked. Each look reads what was added since the last one.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigurationError
from evomerge.ledger_file import LEDGER, REFERENCES, connected, known_format
from evomerge.ledger_rows import damage
from evomerge.lock import holder
from evomerge.results.standing import Standing

Json = dict[str, Any]

SILENT_S = 300.0  # without an event, a driver that nobody can ask may be dead
DEAD_S = 86_400.0  # and by now nobody waits for it


class RunWatch:
    """Follows a run by its folder alone.

    Raises:
        ConfigurationError: there is no run.
        LedgerDamaged: the ledger cannot be read, or is newer than this evomerge.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / LEDGER
        if not path.exists():
            raise ConfigurationError(f"{folder}: no run here (there is no {LEDGER})")
        self._path = path
        with damage(path):
            self._db = connected(path, read_only=True)
            known_format(path, dict(self._db.execute("SELECT key, value FROM meta")))
            (about,) = self._db.execute(
                "SELECT coalesce(max(value), '{}') FROM meta WHERE key = 'about'"
            ).fetchone()
            self._standing = Standing(json.loads(about))
        self._sequence = 0  # of the last event that was read
        self._last_id = -1  # of the last candidate that was read

    def close(self) -> None:
        """Close the ledger."""
        self._db.close()

    def __enter__(self) -> RunWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, now: float | None = None) -> Json:
        """Read what is new, and say how the run is.

        now: seconds since the epoch; the clock's time by default.

        Raises:
            LedgerDamaged: the ledger cannot be read.
        """
        with damage(self._path), self._snapshot():
            asked = self._new_candidates()
            for sequence, kind, cohort, moment, text in self._db.execute(
                "SELECT sequence, kind, cohort, time, data FROM events WHERE sequence > ? "
                "ORDER BY sequence",
                (self._sequence,),
            ).fetchall():
                self._event(sequence, kind, cohort, moment, text, asked)
        return self._facts(time.time() if now is None else now)

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Events and candidates of one moment; the file is free again at the end."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _new_candidates(self) -> dict[int, list[int]]:
        """Event -> the candidates that were asked by it.

        By id, which is the table's order: what else stands in a row is not read.
        """
        asked: dict[int, list[int]] = {}
        for id_, event in self._db.execute(
            "SELECT id, event FROM candidates WHERE id > ? ORDER BY id", (self._last_id,)
        ):
            asked.setdefault(event, []).append(id_)
            self._last_id = id_
        return asked

    def _event(
        self,
        sequence: int,
        kind: str,
        cohort: int,
        moment: float,
        text: str,
        asked: dict[int, list[int]],
    ) -> None:
        self._sequence = sequence
        if kind != "asked":
            self._standing.event(kind, cohort, moment, json.loads(text))
            return
        references: list[str] = []
        ids = asked[sequence] if cohort >= 0 else []
        if cohort == REFERENCES:
            rows = self._db.execute(
                "SELECT fingerprint FROM candidates WHERE id < 0 AND event = ?", (sequence,)
            )
            references = [fingerprint for (fingerprint,) in rows]
        self._standing.asked(cohort, moment, ids, references)

    def _facts(self, now: float) -> Json:
        now = max(now, self._standing.sessions.last)  # the driver's clock may be ahead of this one
        state, driver = self._state(now)
        phase = self._standing.phase if state in ("running", "silent") else None
        return self._standing.facts(now, state, driver, phase)

    def _state(self, now: float) -> tuple[str, Json | None]:
        """`running`, `finished`, `stopped`, or `silent`, and who works on the run.

        Locks of another machine are often not to be seen here. There, a session that has noted no
        end runs for as long as it adds something, and is silent when it no longer does.
        """
        standing, sessions = self._standing, self._standing.sessions
        done = "finished" if standing.final else "stopped"
        if (driver := holder(self.folder)) is not None:
            return "running", driver
        host = sessions.facts.get("host")
        is_over = sessions.ended is not None or (standing.is_over and standing.final is not None)
        if is_over or host in (None, socket.gethostname()):
            return done, None
        driver = {"host": host, "pid": sessions.facts.get("pid"), "since": None}
        age_s, patience_s = now - sessions.last, SILENT_S + 2 * sessions.gap_s
        if age_s <= patience_s:
            return "running", driver
        return (done, None) if standing.final or age_s > DEAD_S + patience_s else ("silent", driver)

    @property
    def standing(self) -> Standing:
        """How the run stands by all that was read, for whoever goes on from there."""
        return self._standing


def status(folder: Path) -> Json:
    """How the run in a folder is, as JSON.

    Raises:
        ConfigurationError: there is no run.
        LedgerDamaged: its ledger cannot be read.
    """
    with closing(RunWatch(folder)) as watch:
        return watch.read()
