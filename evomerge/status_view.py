"""How `evomerge status` shows a run that goes on: in full, or in one line."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.live import Live

from evomerge.errors import Interrupted
from evomerge.panel import Panel, estimate
from evomerge.signals import signals

Facts = Mapping[str, Any]

MAX_WORKERS = 16  # that are shown one by one
SHOWN_REASON = 160  # characters of a failure's reason


def watched(console: Console, read: Callable[[], Facts], every_s: float) -> Facts:
    """Show a run until nobody works on it, or somebody presses Ctrl-C; the last facts.

    On a terminal the view is drawn anew; elsewhere there is a line for each look.
    """
    if not console.is_terminal:
        return _watched(read, every_s, lambda facts: console.print(in_line(facts)))
    panel = Panel()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        return _watched(read, every_s, lambda facts: live.update(panel.of(facts), refresh=True))


def _watched(read: Callable[[], Facts], every_s: float, show: Callable[[Facts], None]) -> Facts:
    facts = read()
    try:
        with signals():
            while facts["state"] in ("running", "silent"):
                show(facts)
                time.sleep(every_s)
                facts = read()
    except Interrupted as interrupted:
        if interrupted.exit_code != 128 + signal.SIGINT:
            raise
    return facts


def in_full(facts: Facts) -> list[str]:
    """What is known of a run that is not finished, a line each."""
    lines = [_head(facts)]
    if facts["phase"] == "references" and facts["references"]["asked"]:
        lines.append("references: {measured} of {asked} measured".format(**facts["references"]))
    if facts["under_way"]["candidates"] and facts["state"] != "finished":
        under_way = facts["under_way"]
        lines.append(
            f"under way: {under_way['candidates']} candidates asked and not told, "
            f"{under_way['without_answer']} of them without an answer"
        )
    lines += _budget(facts)
    if facts["incumbent"]:
        best = _scored(facts["incumbent"], facts["objectives"])
        lines.append(f"best by the search: candidate {best}")
    if (told := facts["references"]["told"]) and not facts["final"]:
        label, best = max(told.items(), key=lambda item: item[1]["mean"]["value"])
        lines.append(f"best reference: {label} {_mean(best)}")
    lines += _workers(facts["workers"]) if facts["phase"] else []
    lines += [
        f"failed: candidate {f['candidate']}: {' '.join(f['reason'].split())[:SHOWN_REASON]}"
        for f in facts["failures"]
    ]
    return lines


def in_line(facts: Facts) -> str:
    """The most important in one line."""
    rate = facts["rate"]
    parts = [
        _head(facts),
        f"{rate['candidates_per_min']:.1f} candidates/min, {rate['items_per_s']:.0f} items/s, "
        f"workers: {len(facts['workers'])}",
    ]
    if facts["incumbent"]:
        parts.append(f"best {_mean(facts['incumbent'])}")
    if facts["seconds_left"] is not None:
        parts.append(f"{_duration(facts['seconds_left'])} left")
    return "; ".join(parts)


def _head(facts: Facts) -> str:
    text: str = facts["state"]
    if facts["phase"]:
        text += f" ({facts['phase']})"
    if facts["driver"] and facts["driver"]["host"]:
        text += " on {host}, process {pid}".format(**facts["driver"])
    text += f": {facts['candidates']:,} candidates ({facts['failed']:,} failed), "
    text += f"{facts['item_evaluations']:,} item evaluations"
    if facts["failed_items"]:
        text += f" ({facts['failed_items']:,} of them failed)"
    if facts["last_event_s"] is not None and facts["state"] != "finished":
        text += f", the last event {_duration(facts['last_event_s'])} ago"
    if facts["state"] == "silent":
        text += "; nobody can see from here whether its driver is alive"
    if facts["state"] == "stopped" and facts["ended"]:
        text += f"; it ended: {facts['ended']}"
    return text


def _budget(facts: Facts) -> list[str]:
    parts = [
        f"{name.replace('_', ' ')} {_number(b['used'])} of {_number(b['of'])}"
        for name, b in facts["budget"].items()
    ]
    if not parts:
        return []
    rate = facts["rate"]
    line = f"budget: {', '.join(parts)}"
    if facts["phase"]:
        line += f"; {rate['candidates_per_min']:.1f} candidates/min, "
        line += f"{rate['items_per_s']:,.0f} items/s"
    if facts["seconds_left"] is not None:
        line += f"; about {_duration(facts['seconds_left'])} left, and the last choice"
    return [line]


def _workers(workers: Sequence[Facts]) -> list[str]:
    shown = [
        f"{w['name']}: {w['jobs']:,} jobs, {w['items_per_s']:,.0f} items/s, busy {w['busy']:.0%}, "
        f"last answer {_duration(w['last_s'])} ago"
        for w in workers[:MAX_WORKERS]
    ]
    if len(workers) > MAX_WORKERS:
        shown.append(f"and {len(workers) - MAX_WORKERS} more workers")
    return shown


def _scored(incumbent: Facts, signs: Mapping[str, int]) -> str:
    """In the objectives' own signs; older runs have noted none: there, costs are to be small."""
    values = ", ".join(
        f"{name} {estimate(e, signs.get(name, 1 if e['num_items'] else -1))}"
        for name, e in incumbent["objectives"].items()
    )
    return f"{incumbent['candidate']} ({values})"


def _mean(scored: Facts) -> str:
    return estimate(scored["mean"], 1)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else str(timedelta(seconds=round(seconds)))
