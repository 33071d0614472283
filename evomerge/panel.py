"""A run that goes on, as some lines of a terminal: what `run` and `status --watch` both show.

Every line is cut to the width that there is, and there are never fewer lines than before: what is
drawn anew in place neither wraps nor jumps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from evomerge.wording import in_short

Facts = Mapping[str, Any]

MAX_OBJECTIVES = 8  # that have a line each
MAX_FAILURES = 3
LABEL = 11  # columns of a line's name
CELL = 23  # columns of an estimate with its interval
IN_DRIVER = ("references", "search", "finalists", "holdout")
FROM_FOLDER = ("references", "search", "last choice")


class Panel:
    """Draws facts as `results.watch` tells them; a new one for each run."""

    def __init__(self) -> None:
        self._height = 0

    def of(self, facts: Facts, bars: Sequence[tuple[str, int, int]] = ()) -> Panel.Drawn:
        """What can be printed; bars: (what, done, of how much) of what goes on beside."""
        return self.Drawn(self, facts, bars)

    class Drawn:
        """Facts at one moment, for a console of any width."""

        def __init__(
            self, panel: Panel, facts: Facts, bars: Sequence[tuple[str, int, int]]
        ) -> None:
            self._panel, self._facts, self._bars = panel, facts, bars

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            """The lines, cut to the width."""
            lines = lines_of(self._facts, self._bars, options.max_width, options.ascii_only)
            lines += [Text()] * (self._panel._height - len(lines))
            self._panel._height = len(lines)
            for line in lines:
                yield cut(line, options.max_width)


def cut(line: Text, width: int) -> Text:
    """A line that does not wrap."""
    line.no_wrap, line.overflow = True, "crop"
    if line.cell_len > width:
        line.truncate(max(1, width - 2))
        line.append("..", style="dim")
    return line


def lines_of(
    facts: Facts, bars: Sequence[tuple[str, int, int]], width: int, plain: bool
) -> list[Text]:
    """All of it, a line each; plain: without characters that are not ASCII."""
    lines = [_phases(facts), _advance(facts, width, plain)]
    lines += [bar(what, done, total, width, plain) for what, done, total in bars]
    lines += _scores(facts)
    if front := facts["front"]:
        text = "{points:,} points that nobody dominates, by {candidates:,} candidates"
        lines.append(_line("front", text.format(**front)))
    rate = facts["rate"]
    pace = f"{rate['candidates_per_min']:,.1f} candidates/min, {rate['items_per_s']:,.0f} items/s"
    lines.append(_line("rate", pace))
    lines += [_line("budget", _budget(facts)), _line("workers", _workers(facts))]
    return lines + _failures(facts)


def bar(what: str, done: int, total: int, width: int, plain: bool, rest: str = "") -> Text:
    """How much of something is done, in one line."""
    rest = rest or f"{done:,} of {total:,}"
    room = min(28, max(6, width - len(what) - len(rest) - 4))
    full = min(room, round(room * done / total)) if total else 0
    on, off = ("#", "-") if plain else ("\u2501", "\u2500")
    return Text.assemble(
        (f"{what}  ", ""), (on * full, "green"), (off * (room - full), "dim"), (f"  {rest}", "")
    )


def _phases(facts: Facts) -> Text:
    """Which phase it is in, of which, and since when."""
    names = FROM_FOLDER if facts["phase"] in FROM_FOLDER[2:] else IN_DRIVER
    line = Text()
    for name in names:
        line.append(" > " if line else "", style="dim")
        here = name == facts["phase"]
        line.append(f"[{name}]" if here else name, style="bold" if here else "dim")
    seconds = facts["seconds"] + (facts["last_event_s"] or 0.0)
    line.append(f"  {clock(seconds)}")
    if facts["state"] == "silent":
        line.append(f"  silent for {clock(facts['last_event_s'] or 0.0)}", style="yellow")
    return line


def _advance(facts: Facts, width: int, plain: bool) -> Text:
    """The bar of the phase."""
    if facts["phase"] == "references":
        told = facts["references"]
        return bar("references", told["measured"], told["asked"], width, plain)
    limits = facts["budget"]
    nearest = max(limits.values(), key=lambda b: b["used"] / b["of"], default=None)
    rest = f"{facts['candidates']:,} candidates"
    if nearest is None:
        return Text(f"search  {rest}")
    share = min(1.0, nearest["used"] / nearest["of"])
    return bar("search", round(1000 * share), 1000, width, plain, f"{share:.0%}, {rest}")


def _scores(facts: Facts) -> list[Text]:
    """Objective by objective: the best so far, and the reference that is best by its mean."""
    best, (label, reference) = facts["incumbent"], _best_reference(facts)
    head = "best: " + (f"no. {best['candidate']}" if best else "none yet")
    lines = [Text.assemble(" " * LABEL, (f"{head:{CELL}}", "bold"), label)]
    rows = [row for row in (best, reference) if row]
    signs = dict(facts["objectives"])
    for row in rows:  # older runs have noted no signs: there, only costs are to be small
        for name, e in row["objectives"].items():
            signs.setdefault(name, 1 if e["num_items"] else -1)
    for name in list(signs)[:MAX_OBJECTIVES]:
        cells = [row and row["objectives"].get(name) for row in (best, reference)]
        lines.append(_score_line(name, cells, signs[name]))
    measured = [n for n in signs if all(row["objectives"][n]["num_items"] for row in rows)]
    if len(measured) > 1 and all(signs[name] == 1 for name in measured):
        lines.append(_score_line("mean", [row and row["mean"] for row in (best, reference)], 1))
    return lines


def _score_line(name: str, cells: Sequence[Facts | None], sign: int) -> Text:
    first, second = (estimate(e, sign) if e else "" for e in cells)
    label = clean(name)[: LABEL - 1]
    return Text.assemble((f"{label:{LABEL}}", "cyan"), (f"{first:{CELL}}", "bold"), second)


def _best_reference(facts: Facts) -> tuple[str, Facts | None]:
    told = facts["references"]["told"]
    if not told:
        return "", None
    name, best = max(told.items(), key=lambda item: item[1]["mean"]["value"])
    return f"reference: {clean(name).replace('task_arithmetic', 'arithmetic')}", best


def estimate(e: Facts, sign: int) -> str:
    """A value with its 95 % interval, as its user counts; a cost in short.

    sign: -1 for what is to be small.
    """
    if not e["num_items"]:
        return in_short(sign * e["value"])
    low, high = sorted((sign * e["low"], sign * e["high"]))
    digits = 3 if max(abs(low), abs(high)) < 10 else 1
    return f"{sign * e['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _budget(facts: Facts) -> str:
    parts = [
        f"{number(b['used'])} of {number(b['of'])} {name.replace('_', ' ')}"
        for name, b in facts["budget"].items()
    ]
    text = ", ".join(parts) or "no limit that can be counted"
    left = facts["seconds_left"]
    return text if left is None else f"about {clock(left)} left; {text}"


def _workers(facts: Facts) -> str:
    workers = facts["workers"]
    busy = sum(w["busy"] for w in workers) / len(workers) if workers else 0.0
    under_way = facts["under_way"]["candidates"]
    return f"{len(workers)}, busy {busy:.0%}; {under_way} candidates under way"


def _failures(facts: Facts) -> list[Text]:
    if not facts["failures"]:
        return []
    items = f", and {facts['failed_items']:,} items" if facts["failed_items"] else ""
    text = f"{facts['failed']:,} of {facts['candidates']:,} candidates{items}; the last:"
    lines = [_line("failed", text)]
    lines[0].stylize("yellow")
    for failure in reversed(facts["failures"][-MAX_FAILURES:]):
        lines.append(Text(f"  no. {failure['candidate']}: {clean(failure['reason'])}"))
    return lines


def _line(name: str, text: str) -> Text:
    return Text.assemble((f"{name:{LABEL}}", "cyan"), text)


def clean(text: str) -> str:
    """A text of a model or a task in one line, without what a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def number(value: float) -> str:
    """A count, or hours."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def clock(seconds: float) -> str:
    """A time as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))
