"""What the events of a run come to, one after the other: how it stands, as facts.

Whoever reads a ledger and whoever sits in the driver take the same events, and tell the same facts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge.ledger import FINAL, REFERENCES
from evomerge.results.progress import Found, Tempo

Json = dict[str, Any]

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


class Standing:
    """How a run stands, by its events in their order.

    about: what the ledger's `meta` says of the experiment; older runs say nothing.
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        self.sessions = Sessions()
        self.found = Found()
        self.final: Json | None = None  # unless something was told after it
        self.is_over = False  # the last session has brought the run to its end
        self._about = about
        self._tempo = Tempo()
        self._asked = 0
        self._references: set[str] = set()  # fingerprints
        self._references_told: Json | None = None
        self._open: dict[int, Sequence[int]] = {}  # cohort that is not told -> its candidates
        self._answered: set[int] = set()  # candidates of open cohorts with any outcome
        self._measured_references: set[str] = set()
        self._items_of: dict[int, int] = {}  # cohort -> item evaluations
        self._failed_items = 0
        self._failures: deque[Json] = deque(maxlen=NUM_FAILURES)
        self._in_last_choice = False

    # --- events -----------------------------------------------------------------------------------

    def asked(
        self, cohort: int, moment: float, ids: Sequence[int], fingerprints: Sequence[str] = ()
    ) -> None:
        """Candidates were asked for.

        fingerprints: of the references; of others nobody needs them.
        """
        self.sessions.event("asked", moment, None)
        if cohort == REFERENCES:
            self._references = set(fingerprints)
        elif cohort >= 0:
            self._tempo.asked(moment)
            self._open[cohort] = ids
            self._asked += len(ids)

    def event(self, kind: str, cohort: int, moment: float, data: Any) -> None:
        """Anything else happened; data: as it stands in the ledger."""
        self.sessions.event(kind, moment, data if isinstance(data, dict) else None)
        if kind == "session":
            self._tempo, self.is_over = Tempo(moment), False
        elif kind == "measured":
            self._take_measured(cohort, moment, data)
        elif kind in ("told", "scored"):
            self.final, self._in_last_choice = None, False
            if kind == "told":
                self._answered.difference_update(self._open.pop(cohort, ()))
                self._tempo.told(moment, len(data))
            self.found.told(data, cut_short=kind == "scored")
        elif kind == "references":
            self._references_told = data
        elif kind == "final":
            self.final, self.is_over = data, True

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

    @property
    def oldest_open(self) -> int:
        """The cohort that is told next."""
        return min(self._open, default=REFERENCES)

    @property
    def phase(self) -> str:
        """`references`, `search` or `last choice`."""
        if self._in_last_choice or self.final:
            return "last choice"
        return "search" if self._asked or self._references_told else "references"

    def facts(self, now: float, state: str, driver: Json | None, phase: str | None) -> Json:
        """How the run stands, as JSON.

        now: seconds since the epoch, no less than the last event's.
        state, driver, phase: what events alone do not tell.
        """
        sessions, rate, budget = self.sessions, self._tempo.rates(now), self._budget()
        waiting = [id_ for ids in self._open.values() for id_ in ids]
        return {
            "state": state,
            "driver": driver,
            "phase": phase,
            "candidates": self.found.count,
            "failed": self.found.num_failed,
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
            "incumbent": (incumbent := self.found.incumbent()),
            "front": self._front() if incumbent and len(incumbent["objectives"]) > 1 else None,
            "objectives": {o["name"]: o["sign"] for o in self._about.get("objectives", ())},
            "failures": list(self._failures),
            "final": self.final,
        }

    def _front(self) -> Json:
        """How many nobody dominates, and how many of them differ in their scores."""
        front = self.found.front()
        points = {tuple(self.found.values(id_)) for id_ in front}
        return {"candidates": len(front), "points": len(points)}

    def _budget(self) -> Json:
        """Limit -> what it is, and how much of it is used and left."""
        limits = self.sessions.facts.get("budget", {})
        told_last = min(self._open, default=2**62)
        items = sum(n for c, n in self._items_of.items() if REFERENCES <= c < told_last)
        used: dict[str, float] = {
            "candidates": self.found.count,
            "item_evaluations": items,
            "hours": self.sessions.seconds / 3600,
        }
        return {
            name: {"of": limits[name], "used": spent, "left": max(0, limits[name] - spent)}
            for name, spent in used.items()
            if limits.get(name) is not None
        }


def _seconds_left(budget: Json, rate: Json) -> float | None:
    """Until the first limit is reached at the rate of late; None where nobody can tell."""
    per_s = {
        "candidates": rate["candidates_per_min"] / 60,
        "item_evaluations": rate["items_per_s"],
        "hours": 1 / 3600,
    }
    times = [limit["left"] / per_s[name] for name, limit in budget.items() if per_s[name] > 0]
    return min(times, default=None)
