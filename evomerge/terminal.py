"""What the command line shows: progress while something goes on, tables when it is done."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from evomerge.experiment.wire import Parts
from evomerge.ledger import Ledger
from evomerge.pareto import best
from evomerge.records import Candidate, Evaluation, Outcome

PLAIN_EVERY_S = 10.0  # how often a search speaks where there is no terminal to draw on


class TerminalView:
    """A progress bar on a terminal; a plain line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[facts]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._ledger: Ledger | None = None
        self._budget: int | None = None
        self._phase = ""
        self._best = ""
        self._num_told = 0
        self._num_failed = 0
        self._last_plain = time.monotonic()

    def __enter__(self) -> TerminalView:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    # --- what happens -----------------------------------------------------------------------------

    def progress(self, what: str, done: int, total: int) -> None:
        """A bar for it."""
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total, facts="")
            self._plain(f"{what} ...")
        self._bars.update(self._tasks[what], completed=done, total=total)

    def started(self, parts: Parts, ledger: Ledger) -> None:
        """Note what the run is to reach."""
        self._ledger = ledger
        self._budget = parts.config.budget.candidates
        told = ledger.evaluations()
        self._num_told = len(told)
        self._console.print(
            f"{len(parts.config.experts)} experts, {len(parts.space.genes)} genes, "
            f"{parts.config.searcher.kind}, {', '.join(o.name for o in parts.objectives)}; "
            f"{sum(map(len, parts.split.search.values()))} search, "
            f"{sum(map(len, parts.split.fresh.values()))} fresh, "
            f"{sum(map(len, parts.split.holdout.values()))} holdout items"
            + (f"; {len(told)} candidates are recorded already" if told else "")
        )

    def phase(self, name: str) -> None:
        """A bar for each phase."""
        if self._phase in self._tasks:
            bar = self._tasks[self._phase]
            self._bars.update(bar, total=1, completed=1)
        self._phase = name
        total = self._budget if name == "search" else None
        self._tasks[name] = self._bars.add_task(name, total=total, facts="")
        if name == "search":
            self._bars.update(self._tasks[name], completed=self._num_told)
        self._plain(f"{name} ...")

    def warning(self, text: str) -> None:
        """Say it once, above the bars."""
        self._console.print(f"warning: {text}")

    def asked(self, candidates: Sequence[Candidate]) -> None:
        """Nothing to show yet."""

    def measured(self, outcome: Outcome) -> None:
        """Count items; say why a candidate failed."""
        if outcome.failure is not None:
            self._num_failed += 1
            self._console.print(f"candidate {outcome.job.candidate}: {outcome.failure.reason}")
        if self._phase in self._tasks:
            self._bars.update(self._tasks[self._phase], facts=self._facts())

    def told(self, evaluations: Sequence[Evaluation]) -> None:
        """Show the incumbent."""
        if self._ledger is None:
            return
        if (top := best(evaluations)) is not None and top.score is not None:
            self._best = f"generation's best {np.mean(top.score.values):.3f}"
        self._num_told = 1 + max(e.id for e in evaluations)
        self._bars.update(self._tasks["search"], completed=self._num_told, facts=self._facts())
        if time.monotonic() - self._last_plain > PLAIN_EVERY_S:
            self._plain(f"{self._num_told} candidates, {self._facts()}")

    def _facts(self) -> str:
        items = self._ledger.measurements.item_evaluations if self._ledger is not None else 0
        facts = [f"{items:,} items", self._best if self._phase == "search" else ""]
        if self._num_failed:
            facts.append(f"{self._num_failed} failed")
        return ", ".join(filter(None, facts))

    def _plain(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(text)
            self._last_plain = time.monotonic()


MAX_FRONT_ROWS = 8


def front_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of the front, each objective on the holdout; sorted by the first."""
    names = list(rows[0]["holdout"])
    title = "On the holdout, ± one standard error"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("candidate")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: -row["holdout"][names[0]]["value"]):
        table.add_row(_name(row), *(_cell(row["holdout"][name]) for name in names))
    return table


def final_table(final: Mapping[str, Any]) -> Table:
    """The final table: holdout values with standard errors, and what the search had thought."""
    best = final["best"]
    names = list(best["holdout"])
    title = "On the holdout, ± one standard error"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model")
    for name in (*names, *(["mean"] if len(names) > 1 else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("search", justify="right", no_wrap=True)

    def add(label: str, row: Mapping[str, Any], style: str = "") -> None:
        cells = [_cell(row["holdout"][name]) for name in names]
        if len(names) > 1:
            cells.append(_cell(row["holdout_mean"]))
        seen = row.get("search_mean")
        table.add_row(label, *cells, f"{seen['value']:.3f}" if seen else "", style=style)

    for label, row in final["references"].items():
        add(label.replace("task_arithmetic", "arithmetic"), row)
    table.add_section()
    front = [row for row in final["front"] if row["candidate"] != best["candidate"]]
    front.sort(key=lambda row: -row["holdout_mean"]["value"])
    for row in front[:MAX_FRONT_ROWS]:
        add(_name(row), row)
    if len(front) > MAX_FRONT_ROWS:
        table.add_row(f"{len(front) - MAX_FRONT_ROWS} more on the front")
    add(f"best: {_name(best)}", best, style="bold")
    return table


def summary(final: Mapping[str, Any]) -> str:
    """The gain over the best reference and the winner's curse, in words."""
    gain, best = final["gain_over_best_reference"], final["best"]
    value, low, high = gain["value"], gain["low"], gain["high"]
    lines = [f"Gain over the best reference ({gain['reference']}): {value:+.3f}"]
    if len(best["holdout"]) > 1:
        lines[0] += " on the mean of the objectives"
    items = sum(estimate["num_items"] for estimate in best["holdout"].values())
    if items == len(best["holdout"]):
        return f"{lines[0]}. The fitness is one number: there is no holdout, and no interval."
    lines[0] += f", 95 % paired bootstrap interval [{low:+.3f}, {high:+.3f}]."
    if high < 0:
        lines.append("The search found nothing as good: try a larger budget or another space.")
    elif low <= 0:
        lines.append("The interval contains 0: on these items the two cannot be told apart.")
    if "winners_curse" in best:
        lines.append(f"Winner's curse (search minus holdout): {best['winners_curse']:+.3f}.")
    return "\n".join(lines)


def zoo_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """What each expert of a family has learnt: the base and the expert on the expert's holdout."""
    title = "Accuracy on the expert's own holdout, ± one standard error"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("expert")
    for name in ("base", "expert", "items", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for expert, row in rows.items():
        cells = (_cell(row["base"]), _cell(row["expert"]))
        table.add_row(expert, *cells, str(row["expert"]["num_items"]), str(row["seconds"]))
    return table


def _cell(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.3f} ±{estimate['standard_error']:.3f}"


def _name(row: Mapping[str, Any]) -> str:
    return str(row["label"] or f"no. {row['candidate']}")
