"""What a session finds that goes on with a run, and how it says so."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.experiment.config import ExperimentConfig, read_experiment
from evomerge.experiment.sessions import Facts, Session, changes, session_facts, sessions_of
from evomerge.experiment.wire import Parts
from evomerge.ledger import REFERENCES, Ledger
from evomerge.loop import Replayed
from evomerge.measurement import notify
from evomerge.protocols import Observer

NUM_SHOWN = 4  # sessions that are told one by one, the newest


@dataclass(frozen=True)
class Resumed:
    """What a session found that went on with a run.

    changes: see `changes`. moved: model -> its new path. references_left: references that had not
    been measured. seconds: how long it took until the searcher was where it had been.
    """

    sessions: Sequence[Session]
    now: Facts
    changes: Sequence[str]
    moved: Mapping[str, str]
    references_left: int
    item_evaluations: int
    replayed: Replayed
    seconds: float
    is_finished: bool  # and its budget is spent

    def lines(self) -> list[str]:
        """All of it for people, a line each."""
        replayed, waiting = self.replayed, self.replayed.waiting
        shown = ", ".join(str(session) for session in self.sessions[-NUM_SHOWN:])
        more = len(self.sessions) - NUM_SHOWN
        lines = [
            f"going on after {_count(len(self.sessions), 'session')}: "
            + (f"{more} older ones, " if more > 0 else "")
            + shown,
            f"replayed in {self.seconds:.1f} s: {_count(replayed.asked, 'candidate')} asked in "
            f"{_count(replayed.cohorts, 'cohort')}, {replayed.told:,} told, "
            f"{self.item_evaluations:,} item evaluations known; {self._exactness()}",
        ]
        if self.references_left:
            lines.append(f"references: {self.references_left} had no answers yet")
        if waiting:
            lines.append(
                f"under way when the driver ended, and measured now: "
                f"{_count(len(waiting), 'candidate')}, {sum(waiting.values()):,} item evaluations"
            )
        elif not self.is_finished:
            lines.append("nothing was under way when the driver ended: nothing is repeated")
        lines += [f"model {name} is at {path} now" for name, path in self.moved.items()]
        return [*lines, *self._where(), *self._budget()]

    def _exactness(self) -> str:
        drifted = self.replayed.drifted
        if not drifted:
            return "exact"
        return (
            f"DRIFTED: {_count(len(drifted), 'candidate')}, the first is {drifted[0]}, would be "
            "asked differently here, so the run will not equal an uninterrupted one"
        )

    def _where(self) -> list[str]:
        """What is other than it was."""
        before = self.sessions[-1].facts
        lines = []
        for key in ("host", "pool"):
            was, is_now = _apart(before.get(key), self.now[key])
            if was != is_now:
                lines.append(f"{key}: {_brief(was)} before, {_brief(is_now)} now")
        if self.changes:
            lines.append(f"other than in earlier sessions: {'; '.join(self.changes)}")
            if not self.replayed.drifted and not self.is_finished:
                lines.append("new answers may differ in their last bits from those given there")
        return lines

    def _budget(self) -> list[str]:
        before = self.sessions[-1].facts.get("budget", self.now["budget"])
        if self.is_finished:
            return [
                f"the run is finished, and its budget spent ({_brief(self.now['budget'])}); "
                "--budget gives it more"
            ]
        if before == self.now["budget"]:
            return []
        return [f"budget: {_brief(before)} before, {_brief(self.now['budget'])} now"]


def moved_models(config: ExperimentConfig, frozen: Path) -> dict[str, str]:
    """Models that are elsewhere than the run's frozen experiment says: name -> path."""
    if not frozen.exists():
        return {}
    before = read_experiment(frozen).models()
    return {name: path for name, path in config.models().items() if before.get(name, path) != path}


@dataclass(frozen=True)
class Context:
    """What a session knows of those before it.

    changes: what differs from them, in words. replayed: is called once the searcher is where it
    was.
    """

    changes: str = ""
    replayed: Callable[[Replayed], None] = lambda _: None


def explained(
    parts: Parts,
    ledger: Ledger,
    moved: Mapping[str, str],
    began: float,
    watchers: Sequence[Observer],
) -> Context:
    """Note the session; tell those who watch what it found, if the run was begun before."""
    earlier = sessions_of(ledger)
    kept = {"budget": parts.config.budget, "pool": parts.config.pool}
    unsaid = {key: value.model_dump(mode="json", exclude_none=True) for key, value in kept.items()}
    now = {**session_facts(), **unsaid}
    found = changes([session.facts for session in earlier], now)
    left = references_left(ledger)
    known = ledger.item_evaluations
    ledger.measurements  # noqa: B018 - read now, so that the time it takes is told
    reading_s = time.monotonic() - began
    ledger.note("session", now)

    def replayed(told: Replayed) -> None:
        resumed = Resumed(
            sessions=earlier,
            now=now,
            changes=found,
            moved=moved,
            references_left=left,
            item_evaluations=known,
            replayed=told,
            seconds=reading_s + told.seconds,
            is_finished=ledger.final() is not None
            and not told.waiting
            and (told.is_over or earlier[-1].facts.get("budget", now["budget"]) == now["budget"]),
        )
        for line in resumed.lines():
            logging.getLogger("evomerge").info(line)
        notify(watchers, "resumed", resumed)

    return Context("; ".join(found), replayed) if earlier else Context()


def references_left(ledger: Ledger) -> int:
    """References that were asked for and have no answer."""
    asked = ledger.asked_ids().get(REFERENCES, [])
    measured = {data["fingerprint"] for _, _, data in ledger.events("measured")}
    return sum(ledger.candidates.fingerprint(id_) not in measured for id_ in asked)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _apart(before: Any, now: Any) -> tuple[Any, Any]:
    """Of two mappings what differs; what an older session did not note is as it is now."""
    if before is None:
        return now, now
    if not isinstance(before, Mapping):
        return before, now
    keys = [key for key, value in now.items() if before.get(key, value) != value]
    return {key: before[key] for key in keys}, {key: now[key] for key in keys}


def _brief(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    return ", ".join(f"{key} {inner}" for key, inner in value.items() if inner is not None)
