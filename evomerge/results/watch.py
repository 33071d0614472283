"""A run as its folder shows it, followed while somebody else works on it.

Everything is read from the ledger and the lock's file: the driver may be on another machine that
shares the disk, and is never asked. Each look reads what was added since the last one.
"""

from __future__ import annotations

import json
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigurationError
from evomerge.ledger import FINAL, LEDGER, REFERENCES, connected, known_format
from evomerge.ledger_rows import damage
from evomerge.lock import holder
from evomerge.results.progress import Found, Tempo

Json = dict[str, Any]

SILENT_S = 300.0  # without an event, a driver that nobody can ask may be dead
DEAD_S = 86_400.0  # and by now nobody waits for it
NUM_FAILURES = 5  # the last ones, that are told with their reasons


@dataclass
class Sessions:
    """Who has worked on the run, and for how long."""

    count: int = 0
    facts: Json = field(default_factory=dict)  # of the last one
    began: float = 0.0
    ended: str | None = None
    before_s: float = 0.0  # what earlier ones have worked
    last: float = 0.0  # the last event's time
    gap_s: float = 0.0  # the longest time between two events of the last session

    def event(self, kind: str, moment: float, data: Json | None) -> None:
        """Take in an event."""
        if kind == "session":
            self.before_s += self.last - self.began if self.count else 0.0
            self.count += 1
            self.facts, self.began, self.ended, self.gap_s = data or {}, moment, None, 0.0
        else:
            self.gap_s = max(self.gap_s, moment - self.last)
            if kind == "ended":
                self.ended = (data or {})["why"]
        self.last = moment

    @property
    def seconds(self) -> float:
        """What all sessions have worked, up to their last events."""
        return self.before_s + (self.last - self.began if self.count else 0.0)


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
        self._sequence = 0  # of the last event that was read
        self._last_id = -1  # of the last candidate that was read
        self._sessions = Sessions()
        self._session = 0  # the event that the last one began with
        self._found = Found()
        self._tempo = Tempo()
        self._asked = 0
        self._references: set[str] = set()  # fingerprints
        self._references_told: Json | None = None
        self._open: dict[int, list[int]] = {}  # cohort that is not told -> its candidates
        self._answered: set[int] = set()  # candidates of open cohorts with any outcome
        self._measured_references: set[str] = set()
        self._items_of: dict[int, int] = {}  # cohort -> item evaluations
        self._failed_items = 0
        self._failures: deque[Json] = deque(maxlen=NUM_FAILURES)
        self._final: tuple[int, Json] | None = None
        self._in_last_choice = False

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

    # --- events -----------------------------------------------------------------------------------

    def _event(
        self,
        sequence: int,
        kind: str,
        cohort: int,
        moment: float,
        text: str,
        asked: dict[int, list[int]],
    ) -> None:
        data: Any = None if kind == "asked" else json.loads(text)
        self._sequence = sequence
        self._sessions.event(kind, moment, data if isinstance(data, dict) else None)
        if kind == "session":
            self._tempo, self._session = Tempo(moment), sequence
        elif kind == "asked" and cohort == REFERENCES:
            rows = self._db.execute(
                "SELECT fingerprint FROM candidates WHERE id < 0 AND event = ?", (sequence,)
            )
            self._references = {fingerprint for (fingerprint,) in rows}
        elif kind == "asked" and cohort >= 0:
            self._tempo.asked(moment)
            self._open[cohort] = asked[sequence]
            self._asked += len(asked[sequence])
        elif kind == "measured":
            self._take_measured(cohort, moment, data)
        elif kind in ("told", "scored"):
            self._final, self._in_last_choice = None, False
            if kind == "told":
                self._answered.difference_update(self._open.pop(cohort, ()))
                self._tempo.told(moment, len(data))
            self._found.told(data, cut_short=kind == "scored")
        elif kind == "references":
            self._references_told = data
        elif kind == "final":
            self._final = sequence, data

    def _take_measured(self, cohort: int, moment: float, data: Json) -> None:
        failure, items = data["failure"], 0 if data["failure"] else data["num_items"]
        self._items_of[cohort] = self._items_of.get(cohort, 0) + items
        self._tempo.measured(moment, data["worker"], items, sum(data["seconds"][:2]))
        if cohort == REFERENCES:
            self._measured_references.add(data["fingerprint"])
        elif cohort >= 0:
            self._answered.add(data["candidate"])
        self._in_last_choice = cohort == FINAL
        if failure is not None:
            told = {"candidate": data["candidate"], "reason": failure["reason"], "time": moment}
            self._failures.append(told)
        for groups in data.get("failed_items", {}).values():
            self._failed_items += sum(len(ids) for _, ids in groups)

    # --- what it comes to -------------------------------------------------------------------------

    def _facts(self, now: float) -> Json:
        sessions, final = self._sessions, self._final[1] if self._final else None
        now = max(now, sessions.last)  # the driver's clock may be ahead of this machine's
        state, driver = self._state(now)
        phase = self._phase() if state in ("running", "silent") else None
        budget = self._budget()
        rate = self._tempo.rates(now)
        waiting = [id_ for ids in self._open.values() for id_ in ids]
        return {
            "state": state,
            "driver": driver,
            "phase": phase,
            "candidates": self._found.count,
            "failed": self._found.num_failed,
            "failed_items": self._failed_items,
            "item_evaluations": sum(self._items_of.values()),
            "asked": self._asked,
            "under_way": {
                "candidates": len(waiting),
                "without_answer": sum(id_ not in self._answered for id_ in waiting),
            },
            "references": {
                "asked": len(self._references),
                "measured": len(self._references & self._measured_references),
                "told": self._references_told,
            },
            "sessions": sessions.count,
            "session": sessions.facts,
            "ended": sessions.ended,
            "seconds": sessions.seconds,
            "last_event_s": now - sessions.last if sessions.last else None,
            "workers": self._tempo.workers(now),
            "rate": rate,
            "budget": budget,
            "seconds_left": _seconds_left(budget, rate) if phase == "search" else None,
            "incumbent": self._found.incumbent(),
            "failures": list(self._failures),
            "final": final,
        }

    def _state(self, now: float) -> tuple[str, Json | None]:
        """`running`, `finished`, `stopped`, or `silent`, and who works on the run.

        Locks of another machine are often not to be seen here. There, a session that has noted no
        end runs for as long as it adds something, and is silent when it no longer does.
        """
        done = "finished" if self._final else "stopped"
        if (driver := holder(self.folder)) is not None:
            return "running", driver
        sessions = self._sessions
        host = sessions.facts.get("host")
        is_over = sessions.ended is not None or (self._final or (0,))[0] > self._session
        if is_over or host in (None, socket.gethostname()):
            return done, None
        driver = {"host": host, "pid": sessions.facts.get("pid"), "since": None}
        age_s, patience_s = now - sessions.last, SILENT_S + 2 * sessions.gap_s
        if age_s <= patience_s:
            return "running", driver
        return (done, None) if self._final or age_s > DEAD_S + patience_s else ("silent", driver)

    def _phase(self) -> str:
        if self._in_last_choice or self._final:
            return "last choice"
        return "search" if self._asked or self._references_told else "references"

    def _budget(self) -> Json:
        """Limit -> what it is, and how much of it is used and left."""
        limits = self._sessions.facts.get("budget", {})
        told_last = min(self._open, default=2**62)
        items = sum(n for c, n in self._items_of.items() if REFERENCES <= c < told_last)
        used: dict[str, float] = {
            "candidates": self._found.count,
            "item_evaluations": items,
            "hours": self._sessions.seconds / 3600,
        }
        return {
            name: {"of": limits[name], "used": spent, "left": max(0, limits[name] - spent)}
            for name, spent in used.items()
            if limits.get(name) is not None
        }


def status(folder: Path) -> Json:
    """How the run in a folder is, as JSON.

    Raises:
        ConfigurationError: there is no run.
        LedgerDamaged: its ledger cannot be read.
    """
    with closing(RunWatch(folder)) as watch:
        return watch.read()


def _seconds_left(budget: Json, rate: Json) -> float | None:
    """Until the first limit is reached at the rate of late; None where nobody can tell."""
    per_s = {
        "candidates": rate["candidates_per_min"] / 60,
        "item_evaluations": rate["items_per_s"],
        "hours": 1 / 3600,
    }
    times = [limit["left"] / per_s[name] for name, limit in budget.items() if per_s[name] > 0]
    return min(times, default=None)
