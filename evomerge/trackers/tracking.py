"""Follows a run for a tracker, in a thread that nobody waits for."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import yaml

from evomerge.files import EXPERIMENT, write_text
from evomerge.ledger import LEDGER, Ledger
from evomerge.ledger_file import connected
from evomerge.results.mirror import run_id
from evomerge.trackers.figures import Figures
from evomerge.trackers.protocol import TrackedRun, Tracker

logger = logging.getLogger("evomerge")

RECORD = "trackers.json"  # in the run's folder: what was logged
EVERY_S = 2.0  # how often the ledger is looked at
FINISH_S = 30.0  # how long a run that is finished waits for what is still to be sent
INTERRUPTED_S = 3.0  # and one that is interrupted, which must end soon

_record = threading.Lock()  # several trackers share the file


class Tracking:
    """Watches a run for a tracker: a watcher of `evomerge.search`, for one.

    What the tracker is told is read from the ledger, so that an event costs the driver nothing.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def started(self, _parts: object, ledger: Ledger) -> None:
        """The ledger is there: follow it."""
        work = threading.Thread(
            target=self._follow, args=(ledger.path.parent,), daemon=True, name="tracker"
        )
        self._thread = work
        work.start()

    def ended(self, why: str) -> None:
        """The session is over: what was told is still logged, if that does not take long."""
        if self._thread is None:
            return
        self._over.set()
        patience_s = FINISH_S if why == "finished" else INTERRUPTED_S
        self._thread.join(patience_s)
        if self._thread.is_alive():
            self._warn(f"has not logged everything within {patience_s:.0f} s")

    # --- in the thread ----------------------------------------------------------------------------

    def _follow(self, folder: Path) -> None:
        try:
            self._log(folder)
        except (Exception, SystemExit) as error:  # of a library that is not ours
            self._warn(f"has failed: {type(error).__name__}: {error}")
            logger.debug("tracker", exc_info=True)
        finally:
            with suppress(Exception, SystemExit):
                self.tracker.close()

    def _log(self, folder: Path) -> None:
        name = self.tracker.name
        known = read_record(folder).get(name, {"last": -1, "final": None})
        figures = Figures(folder)
        last = self.tracker.begin(tracked(folder, known["last"]))
        is_over = False
        while not is_over:
            is_over = self._over.wait(EVERY_S)
            for rows in figures.added():
                if new := [row for row in rows if row.step > last]:
                    self.tracker.log(new)
                    last = new[-1].step
                    write_record(folder, name, {"last": last, "final": known["final"]})
        if figures.final is not None and figures.final[0] != known["final"]:
            number, final = figures.final
            step = max(last, 0)
            self.tracker.finish(figures.of_final(final), figures.table(final), step)
            write_record(folder, name, {"last": last, "final": number})

    def _warn(self, what: str) -> None:
        logger.warning(
            "tracker %s %s; the search does not need it, and the next session catches up",
            self.tracker.name,
            what,
        )


def tracked(folder: Path, last: int) -> TrackedRun:
    """The run in a folder, as its trackers see it."""
    path = folder / EXPERIMENT
    data = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    with closing(connected(folder / LEDGER, read_only=True)) as db:
        id_ = run_id(db)
    name = data.get("name") or folder.resolve().name
    return TrackedRun(id_, name, folder.resolve(), dict(_flat(data)), last)


def _flat(value: Any, place: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        parts = value.items()
        return [p for k, v in parts for p in _flat(v, f"{place}.{k}" if place else str(k))]
    return [(place, value)]


def read_record(folder: Path) -> dict[str, Any]:
    """Tracker -> what was logged; what cannot be read says nothing."""
    with suppress(OSError, ValueError):
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def write_record(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Note what one of them has logged."""
    with _record:
        write_text(folder / RECORD, json.dumps({**read_record(folder), name: entry}, indent=1))
