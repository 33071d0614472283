"""What the command line shows of a sweep: how it goes on, and the table at its end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from evomerge.errors import EvomergeError
from evomerge.results.sweep import failure_of
from evomerge.results.watch import RunWatch
from evomerge.status_view import in_line
from evomerge.wording import in_short

DRAW_EVERY_S = 1.0
PLAIN_EVERY_S = 30.0  # how often runs are told of where there is no terminal to draw on
WIDEST = 1000  # a table in a file
SHOWN_REASON = 200  # characters of a failure's reason


class SweepView:
    """Follows the runs of a sweep: drawn anew on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, folder: Path, names: Sequence[str]) -> None:
        self._console = console
        self._folder = folder
        self._names = names
        self._codes: dict[str, int | None] = {}
        self._watches: dict[str, RunWatch] = {}
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._drawn = self._plain = 0.0

    def __enter__(self) -> SweepView:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        for watch in self._watches.values():
            watch.close()
        if self._console.is_terminal:
            self._live.stop()

    def look(self, codes: Mapping[str, int | None]) -> None:
        """Say what has changed, and now and then how far the runs are.

        codes: run -> None while it runs, its exit code once it is over.
        """
        now = time.monotonic()
        for name, code in codes.items():
            if name not in self._codes and code is None:
                self._say(f"{name}: started")
            elif code is not None and self._codes.get(name, 0) is None:
                self._say(f"{name}: {self._over(name, code)}")
        first = not self._codes
        self._codes = dict(codes)
        if self._console.is_terminal and now - self._drawn > DRAW_EVERY_S:
            self._drawn = now
            self._live.update(Group(*map(Text, self._lines())), refresh=True)
        elif not self._console.is_terminal and now - self._plain > PLAIN_EVERY_S:
            self._plain = now
            for line in self._lines() if not first else ():
                self._console.print(line)

    def _say(self, text: str) -> None:
        self._console.print(text)

    def _over(self, name: str, code: int) -> str:
        if code == 0:
            return "finished"
        reason = failure_of(self._folder / name) or f"see {self._folder / name}.log"
        return f"failed with exit code {code}: {reason[:SHOWN_REASON]}"

    def _lines(self) -> list[str]:
        """Who runs, and how many do not."""
        running = [name for name, code in self._codes.items() if code is None]
        over = [code for code in self._codes.values() if code is not None]
        counts = f"{sum(code == 0 for code in over)} of {len(self._names)} runs are finished"
        if failed := sum(code != 0 for code in over):
            counts += f", {failed} failed"
        return [counts, *(f"{name}: {self._progress(name)}" for name in running)]

    def _progress(self, name: str) -> str:
        with suppress(EvomergeError):  # there is no ledger yet
            if name not in self._watches:
                self._watches[name] = RunWatch(self._folder / name)
            return in_line(self._watches[name].read())
        return "begins"


def print_summary(console: Console, found: Mapping[str, Any]) -> None:
    """The table, the runs that failed, and what the columns mean."""
    print_table(console, summary_table(found["searchers"]))
    for run in found["runs"]:
        if run["state"] == "failed":
            reason = " ".join(str(run["reason"]).split())[:SHOWN_REASON]
            console.print(f"failed: {run['searcher']}, seed {run['seed']}: {reason}")
    if missing := sum(run["state"] != "finished" for run in found["runs"]):
        console.print(f"{missing} of {len(found['runs'])} runs are not finished.")
    console.print(
        "Means over seeds ± one standard error, with 95 % intervals (Student's t) in brackets; "
        "differences are seed by seed."
    )


def print_table(console: Console, table: Table) -> None:
    """Print a table; a file's lines may be of any length, a terminal breaks cells."""
    if not console.is_terminal:
        room = console.options.update(max_width=WIDEST)
        console.width = max(console.width, console.measure(table, options=room).maximum)
    console.print(table)


def summary_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each searcher."""
    title = "The best of each run, on the holdout"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    has_fronts = any(row["hypervolume"] for row in rows)
    table.add_column("searcher", overflow="fold")
    names = ["seeds", "held out", "gain", f"less {rows[0]['searcher']}", "search"]
    names += ["hypervolume"] if has_fronts else []
    for name in (*names, "items", "minutes"):
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        cells = [
            f"{row['finished']}/{row['of']}",
            _interval(row["held_out"]),
            _interval(row["gain"], sign="+"),
            _interval(row["against_first"], sign="+"),
            _mean(row["search"], ".3f"),
        ]
        cells += [_interval(row["hypervolume"])] if has_fronts else []
        cells += [_items(row["item_evaluations"]), _mean(row["minutes"], ".1f")]
        table.add_row(row["searcher"], *cells)
    return table


def _interval(found: Mapping[str, Any] | None, sign: str = "") -> str:
    if found is None:
        return ""
    text = f"{found['mean']:{sign}.3f}"
    if found["standard_error"] is None:
        return text
    ends = f"[{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"
    return f"{text} ±{found['standard_error']:.3f}\n{ends}"


def _mean(found: Mapping[str, Any] | None, form: str) -> str:
    return "" if found is None else format(found["mean"], form)


def _items(found: Mapping[str, Any] | None) -> str:
    return "" if found is None else in_short(found["mean"])
