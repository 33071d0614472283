"""What it costs a driver to be watched, and what a mirror and a tracker cost beside it.

    python benchmarks/watching.py [--candidates 10000] [--per-second 1000]

Candidates come in cohorts of ten at a steady pace, measured once, with two objectives. Told is
CPU time: of the driver's thread for each event, and of the whole process (the thread that draws,
too) as a share of one processor. Then the same candidates are read from a ledger.
"""

from __future__ import annotations

import argparse
import io
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from evomerge.ledger import LEDGER, Ledger
from evomerge.ledger_rows import evaluation_data, ordered_json
from evomerge.recipe import Recipe
from evomerge.records import Candidate, Estimate, Evaluation, Job, Outcome, Score
from evomerge.results.mirror import Mirror
from evomerge.results.standing import Standing
from evomerge.terminal import TerminalView
from evomerge.trackers.figures import Figures

COHORT = 10
RECIPE = Recipe.model_validate(
    {
        "base": "b",
        "models": {"b": "b", "x": "x"},
        "default": {"operator": "linear", "sources": ["x"], "parameters": {"weight": 1.0}},
    }
)


def evaluation(number: int) -> Evaluation:
    """One of a spread of scores, that has a front of some twenty."""
    a, b = (number * 7919 % 997) / 997, (number * 104729 % 991) / 991
    score = Score({"a": Estimate(a * (1 - b), 0.02, 50), "b": Estimate(b * (1 - a), 0.02, 50)})
    return Evaluation(number, [a, b], score)


def watched(view: TerminalView | None, candidates: int, per_second: float) -> tuple[float, float]:
    """Seconds of the driver's thread for an event, and the process' share of a processor."""
    items = {"t": tuple(range(50))}
    began, mine, all_threads = time.monotonic(), 0.0, time.process_time()
    events = 0
    for first in range(0, candidates, COHORT):
        numbers = range(first, first + COHORT)
        asked = [Candidate(number, [0.5, 0.5], RECIPE) for number in numbers]
        outcomes = [Outcome(Job(n, n, RECIPE, items), worker="w", measure_s=0.001) for n in numbers]
        told = [evaluation(number) for number in numbers]
        start = time.thread_time()
        if view is not None:
            view.asked(asked)
            for outcome in outcomes:
                view.measured(outcome)
            view.told(told)
        mine += time.thread_time() - start
        events += COHORT + 2
        time.sleep(max(0.0, began + (first + COHORT) / per_second - time.monotonic()))
    return mine / events, (time.process_time() - all_threads) / (time.monotonic() - began)


def ledger_of(folder: Path, candidates: int) -> None:
    """A ledger with the same candidates."""
    about = {"name": "x", "genes": ["a", "b"], "objectives": []}
    about["objectives"] = [{"name": name, "sign": 1, "cost": None} for name in "ab"]
    Ledger.create(folder / LEDGER, {"identity": {}, "about": about}, {"t": 100}).close()
    events: list[tuple[str, int, Any]] = [("session", 0, {"host": "x"})]
    rows = []
    for first in range(0, candidates, COHORT):
        cohort, numbers = first // COHORT, range(first, first + COHORT)
        events.append(("asked", cohort, {"count": COHORT}))
        rows += [(n, len(events), "", "[0.5,0.5]", "{}", f"{n:064x}", "[]") for n in numbers]
        for number in numbers:
            job = {"candidate": number, "fingerprint": "f", "num_items": 50, "worker": "w"}
            events.append(("measured", cohort, {**job, "seconds": [0, 1, 0], "failure": None}))
        events.append(("told", cohort, [evaluation_data(evaluation(n)) for n in numbers]))
    with sqlite3.connect(folder / LEDGER) as db:
        db.executemany(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?)",
            [(i, kind, c, 0.01 * i, ordered_json(d)) for i, (kind, c, d) in enumerate(events, 1)],
        )
        db.executemany("INSERT INTO candidates VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--per-second", type=float, default=1000.0)
    given = parser.parse_args()
    _, nobody = watched(None, given.candidates, given.per_second)
    print(f"{given.candidates:,} candidates, {given.per_second:g} a second")
    print(f"nobody watches: {nobody:.1%} of a processor")
    for terminal in (True, False):
        console = Console(file=io.StringIO(), width=100, force_terminal=terminal)
        view = TerminalView(console)
        view._standing, view._phase = Standing({"objectives": []}), "search"
        with view:
            each, share = watched(view, given.candidates, given.per_second)
        where = "a terminal" if terminal else "no terminal"
        print(
            f"{where}: {1e6 * each:.1f} us an event in the driver's thread, {share - nobody:+.1%}"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ledger_of(folder, given.candidates)
        begun = time.process_time()
        Mirror(folder).update()
        print(f"the mirror, made at once: {time.process_time() - begun:.2f} s")
        begun = time.process_time()
        rows = sum(len(part) for part in Figures(folder).added())
        used = time.process_time() - begun
        print(f"a tracker's {rows:,} rows: {used:.2f} s, {1e6 * used / rows:.0f} us a candidate")


if __name__ == "__main__":
    main()
