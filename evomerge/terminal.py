"""What the command line shows: progress while something goes on, tables when it is done."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from evomerge.experiment.resumption import Resumed
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
        )

    def resumed(self, found: Resumed) -> None:
        """Say what was found."""
        for line in found.lines():
            self._console.print(line)

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
            self._best = f"generation's best {top.score.mean:.3f}"
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
