"""The figures of a run, read from its ledger as they are added.

They are a function of the ledger alone, whenever it is read and by whom: a session that goes on
with a run makes the same rows again, and knows by their steps which were logged before.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.ledger_file import LEDGER, REFERENCES, connected
from evomerge.ledger_rows import damage
from evomerge.results.account import share_dominated
from evomerge.results.progress import Found, Tempo

Json = dict[str, Any]

SHARE = 0.05  # of the time that hypervolumes may take
PART = 2000  # events that are read at once


@dataclass(frozen=True)
class Row:
    """Figures of one candidate; of a cohort's last one, also those of the search.

    step: the candidate's number. moment: when it was told, in seconds since the epoch.
    """

    step: int
    moment: float
    figures: Mapping[str, float]


class Figures:
    """Follows a run's ledger."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LEDGER
        self._sequence = 0
        self._found = Found()
        self._tempo = Tempo()
        self._items = 0
        self._signs: dict[str, int] = {}
        self._box: tuple[list[float], list[float]] | None = None  # worst and best of references
        self._next_volume = 0.0  # not to be computed before that
        self.final: tuple[int, Json] | None = None  # its event's number, and the table
        with closing(connected(self._path, read_only=True)) as db:
            found = db.execute("SELECT value FROM meta WHERE key = 'about'").fetchone()
        about = json.loads(found[0]) if found else {}
        self._signs = {o["name"]: o["sign"] for o in about.get("objectives", ())}

    def added(self) -> Iterator[list[Row]]:
        """The rows of what was added, in parts.

        Raises:
            LedgerDamaged: the ledger cannot be read.
        """
        count = PART
        while count == PART:
            with damage(self._path), closing(connected(self._path, read_only=True)) as db:
                events = db.execute(
                    "SELECT sequence, kind, cohort, time, data FROM events WHERE sequence > ? AND "
                    "kind IN ('session', 'asked', 'measured', 'told', 'references', 'final') "
                    "ORDER BY sequence LIMIT ?",
                    (self._sequence, PART),
                ).fetchall()
            count, rows = len(events), []
            with damage(self._path):
                for sequence, kind, cohort, moment, text in events:
                    self._sequence = sequence
                    rows += self._event(sequence, kind, cohort, moment, json.loads(text))
            yield rows

    def _event(self, sequence: int, kind: str, cohort: int, moment: float, data: Any) -> list[Row]:
        if kind == "session":
            self._tempo = Tempo(moment)
        elif kind == "asked" and cohort >= 0:
            self._tempo.asked(moment)
        elif kind == "measured":
            items = 0 if data["failure"] else data["num_items"]
            self._items += items if cohort >= REFERENCES else 0
            self._tempo.measured(moment, data["worker"], items, sum(data["seconds"][:2]))
        elif kind == "references" and data:
            told = [[e["value"] for e in r["objectives"].values()] for r in data.values()]
            columns = list(zip(*told, strict=True))
            self._box = [min(column) for column in columns], [max(column) for column in columns]
        elif kind == "final":
            self.final = sequence, data
        elif kind == "told":
            self.final = None
            return self._told(moment, data)
        return []

    def _told(self, moment: float, data: list[Json]) -> list[Row]:
        new = [entry for entry in data if entry["id"] not in self._found.entries]
        self._found.told(data, cut_short=False)
        self._tempo.told(moment, len(data))
        rows = [Row(entry["id"], moment, self._of_candidate(entry)) for entry in new]
        if rows:
            last = rows[-1]
            rows[-1] = Row(last.step, moment, {**last.figures, **self._of_search(moment)})
        return rows

    def _of_candidate(self, entry: Json) -> dict[str, float]:
        """Objectives as their user counts, with their standard errors; a failed one has none."""
        figures = {"candidate/failed": float(entry["failure"] is not None)}
        for name, (value, error, num_items) in (entry["score"] or {}).items():
            sign = self._sign(name, num_items)
            figures[f"candidate/{_plain(name)}"] = sign * value
            if num_items:
                figures[f"candidate/{_plain(name)}_se"] = error
        if entry["score"] is not None:
            figures["candidate/rung"] = float(entry["rung"])
        return figures

    def _of_search(self, moment: float) -> dict[str, float]:
        """What the search has come to."""
        rate = self._tempo.rates(moment)
        figures = {
            "search/item_evaluations": float(self._items),
            "search/failed": float(self._found.num_failed),
            "search/candidates_per_min": rate["candidates_per_min"],
            "search/items_per_s": rate["items_per_s"],
        }
        if (best := self._found.incumbent()) is None:
            return figures
        for name, e in best["objectives"].items():
            figures[f"best/{_plain(name)}"] = self._sign(name, e["num_items"]) * e["value"]
            if e["num_items"]:
                figures[f"best/{_plain(name)}_se"] = e["standard_error"]
        figures["best/candidate"] = float(best["candidate"])
        if len(best["objectives"]) > 1:
            figures["best/mean"] = best["mean"]["value"]
            figures |= self._of_front()
        return figures

    def _of_front(self) -> dict[str, float]:
        """Its size, and what it dominates of the references' box, where there is time for that."""
        points = np.unique([self._found.values(id_) for id_ in self._found.front()], axis=0)
        figures = {"front/points": float(len(points))}
        began = time.monotonic()
        if self._box is not None and began >= self._next_volume:
            figures["front/hypervolume"] = share_dominated(points, *self._box)
            now = time.monotonic()
            self._next_volume = now + (now - began) / SHARE
        return figures

    def _sign(self, name: str, num_items: int) -> int:
        """-1 for what is to be small; of older runs that is known of costs alone."""
        return self._signs.get(name, 1 if num_items else -1)

    def of_final(self, final: Json) -> dict[str, float]:
        """The final table's holdout values: of the best, and of each reference."""
        models = {"best": final["best"], **final["references"]}
        figures = {}
        for label, row in models.items():
            for name, e in row["holdout"].items():
                place = f"holdout/{_plain(label)}/{_plain(name)}"
                figures[place] = self._sign(name, e["num_items"]) * e["value"]
                if e["num_items"]:
                    figures[f"{place}_se"] = e["standard_error"]
        return figures

    def table(self, final: Json) -> str:
        """The final table as Markdown."""
        names = list(final["best"]["holdout"])
        front = {f"no. {row['candidate']}": row for row in final["front"]}
        rows = {**final["references"], **front, "best": final["best"]}
        lines = ["| model |" + "".join(f" {_plain(name)} |" for name in names)]
        lines.append("|---|" + "---:|" * len(names))
        for label, row in rows.items():
            cells = []
            for name in names:
                e = row["holdout"][name]
                value = f"{self._sign(name, e['num_items']) * e['value']:.4g}"
                cells.append(f"{value} ±{e['standard_error']:.3f}" if e["num_items"] else value)
            lines.append(f"| {_plain(label)} |" + "".join(f" {cell} |" for cell in cells))
        return "\n".join(lines)


def _plain(name: str) -> str:
    """A name with what every tracker takes in one."""
    return re.sub(r"[^\w. -]", "_", name, flags=re.ASCII)
