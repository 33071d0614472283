"""A comparison as Python shows it: words, and in a notebook the table and the picture."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from evomerge.results.compare_plot import compare_figure, write_plot
from evomerge.results.inline_html import image, table
from evomerge.results.plots import drawn
from evomerge.wording import in_short

DPI = 72
HEADS = ("", "runs", "held out", "search", "item evaluations")


class Comparison(dict[str, Any]):
    """What `results.compare.compare` has found: a mapping, which shows itself (docs/compare.md)."""

    def __repr__(self) -> str:
        return "\n".join([*self["words"], *(f"note: {notice}." for notice in self["notices"])])

    def plot(self, path: str | Path) -> Path:
        """Draw it as .png, .svg or .html.

        Raises:
            ConfigurationError: the name ends otherwise.
        """
        return write_plot(Path(path), self)

    def _repr_html_(self) -> str:
        rows = []
        for group in self["groups"]:
            cost = in_short(group["costs"]["item_evaluations"]["mean"])
            held, search = _interval(group["held_out"], "mean"), _interval(group["search"], "value")
            count = f"{group['finished']}/{len(group['runs'])}"
            rows.append((group["name"], count, held, search, cost))
        words = "".join(f"<li>{escape(line)}</li>" for line in repr(self).splitlines())
        picture = image(drawn(compare_figure(self), dpi=DPI), "searches at equal budgets")
        return f"<div>{table(HEADS, rows)}<ul>{words}</ul>{picture}</div>"


def _interval(row: dict[str, Any] | None, key: str) -> str:
    if row is None:
        return ""
    ends = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row[key]:.3f}{ends}"
