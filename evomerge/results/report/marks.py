"""Colours, marks and axes that all charts share, and texts as plotly may have them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from evomerge.records import Estimate
from evomerge.results.account import ObjectiveFacts
from evomerge.results.report.parts import Json, Key
from evomerge.stopping import CONFIDENCE
from evomerge.wording import in_short

# Okabe & Ito's palette, which colour-blind people can tell apart; no two roles share a mark.
BLUE = "var(--blue)"  # #0072B2, and lighter on dark ground
VERMILLION, GREEN = "#D55E00", "#009E73"
ORANGE, SKY, PURPLE = "#E69F00", "#56B4E9", "#CC79A7"
INK, FAINT, GRID, PAPER = "var(--ink)", "var(--faint)", "var(--grid)", "var(--paper)"
FRONT, CHOSEN, KNEE, CANDIDATE = "circle", "star", "diamond-open", "circle-small"
SYMBOLS = (
    "square",
    "triangle-up",
    "triangle-down",
    "cross",
    "x",
    "pentagon",
    "hexagon",
    "hourglass",
)
DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot", "5px,2px,1px,2px,1px,2px")
LINES = (INK, GREEN, ORANGE, PURPLE, SKY, BLUE)

SIZES = {CHOSEN: 15, KNEE: 19, CANDIDATE: 5, FRONT: 8}  # a knee may lie under the chosen one
HEIGHT = 400  # of a chart, in pixels: as wide as the screen, and never higher or lower
LABEL_HEIGHT = 15  # of a line of text in a chart, in pixels
LABEL_LENGTH = 18  # characters of a name in a chart; tables have it in full
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]+")


def plain(text: str) -> str:
    """A text that plotly shows as it is: it would read tags and entities."""
    return escape(_UNPRINTABLE.sub(" ", text), quote=False)


def short(text: str, length: int = LABEL_LENGTH) -> str:
    """A name with its middle left out, where it is long: its end often tells it from others."""
    if len(text) <= length:
        return text
    tail = length // 3
    return f"{text[: length - tail - 1].rstrip()}…{text[-tail:].lstrip()}"


def lines(*texts: str) -> str:
    """Texts below each other, for a box that appears over a point."""
    return "<br>".join(map(plain, texts))


# --- numbers --------------------------------------------------------------------------------------


def number(value: float, *, is_cost: bool = False) -> str:
    """A value as people read it: of scores three decimals."""
    value += 0.0  # no minus before a zero
    if is_cost or abs(value) >= 100:
        return in_short(value)
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.2e}"


def signed(value: float) -> str:
    """A difference, with its sign."""
    return ("+" if value > 0 else "-" if value < 0 else "±") + number(abs(value))


def half_width(estimate: Estimate) -> float:
    """Half of the 95 % interval."""
    return CONFIDENCE * estimate.standard_error


def told(objective: ObjectiveFacts, estimate: Estimate) -> str:
    """A value in the user's sign, with its 95 % interval."""
    value, half = objective.shown(estimate.value), half_width(estimate)
    if estimate.is_cost:
        return number(value, is_cost=True)
    return f"{number(value)} [{number(value - half)}, {number(value + half)}]"


def better(objective: ObjectiveFacts) -> str:
    """Which way is better."""
    return "smaller is better" if objective.sign < 0 else "larger is better"


def unit(objective: ObjectiveFacts) -> str:
    """What an objective is counted in."""
    if objective.cost is None:
        return "mean score per item"
    return objective.cost.replace("_", " ")


def axis_title(objective: ObjectiveFacts) -> str:
    """An axis's name with its unit, in two lines, so that it fits beside a small chart."""
    return two_lines(short(objective.name, 28), f"{unit(objective)}; {better(objective)}")


def two_lines(name: str, more: str) -> str:
    """An axis's name, and what it counts below it."""
    return f'{plain(name)}<br><span style="font-size:11px">{plain(more)}</span>'


# --- plotly ---------------------------------------------------------------------------------------


def axis(title: str = "", **more: Any) -> Json:
    """An axis. It cannot be dragged: on a phone that would keep the page from being scrolled."""
    return {
        "title": {"text": title, "standoff": 10},
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "automargin": True,
        "fixedrange": True,
        "ticks": "outside",
        "tickcolor": GRID,
        **more,
    }


def rows_axis(names: Sequence[str], length: int = LABEL_LENGTH) -> Json:
    """The upward axis of rows with names, the first on top."""
    return axis(
        tickvals=list(range(len(names))),
        ticktext=[plain(short(name, length)) for name in names],
        range=[len(names) - 0.5, -0.5],
        showgrid=False,
    )


def narrow_rows(names: Sequence[str], x_title: str = "") -> Json:
    """What of such a layout is otherwise on a narrow screen: shorter names."""
    texts = [plain(short(name, 11)) for name in names]
    title = {"xaxis": {"title": {"text": x_title, "standoff": 10}}} if x_title else {}
    return {"yaxis": {"ticktext": texts}, **title}


def layout(x: Json, y: Json, height: int = HEIGHT, **more: Any) -> Json:
    """What all charts look like."""
    return {
        "xaxis": x,
        "yaxis": y,
        "height": height,
        "margin": {"l": 56, "r": 16, "t": 12, "b": 56, **more.pop("margin", {})},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": False,
        "hoverlabel": {"align": "left", "bgcolor": PAPER, "font": {"color": INK}},
        **more,
    }


def points(
    x: Sequence[float],
    y: Sequence[float],
    texts: Sequence[str],
    key: Key,
    *,
    x_half: Sequence[float] | None = None,
    y_half: Sequence[float] | None = None,
    **more: Any,
) -> Json:
    """Marks; texts: what is told of each, through `lines`. x_half, y_half: of their intervals."""
    symbol = key.symbol
    trace: Json = {
        "type": "scatter",
        "mode": "markers",
        "x": list(x),
        "y": list(y),
        "marker": {
            "symbol": "circle" if symbol == CANDIDATE else symbol,
            "size": SIZES.get(symbol, 9),
            "color": key.color,
            "line": {"width": _edge_width(symbol), "color": _edge(key)},
        },
        "hoverinfo": "text",
        "hovertext": list(texts),
        "cliponaxis": False,
    }
    for name, halves in (("error_x", x_half), ("error_y", y_half)):
        if halves is not None and any(halves):
            look = {"thickness": 1, "width": 0, "color": key.color}
            trace[name] = {"type": "data", "array": list(halves), **look}
    return trace | more


def _edge_width(symbol: str) -> float:
    if symbol == KNEE:
        return 2.5
    return 1.5 if symbol.endswith("-open") else 0.75


def _edge(key: Key) -> str:
    return key.color if key.symbol.endswith("-open") or key.symbol == CANDIDATE else PAPER


def line(x: Sequence[float], y: Sequence[float], key: Key, **more: Any) -> Json:
    """A line without marks."""
    look = {"color": key.color, "width": 1.75, "dash": key.dash or "solid"}
    return {
        "type": "scatter",
        "mode": "lines",
        "x": list(x),
        "y": list(y),
        "line": look,
        "hoverinfo": "skip",
        **more,
    }


def padded(values: Sequence[float], share: float = 0.06) -> list[float]:
    """A range around values, and something on either side."""
    low, high = min(values), max(values)
    room = share * ((high - low) or abs(high) or 1.0)
    return [low - room, high + room]


def apart(places: Mapping[str, float], gap: float, low: float, high: float) -> dict[str, float]:
    """Places near the given ones, at least `gap` from each other, between two ends (in pixels)."""
    order = sorted(places, key=lambda name: (places[name], name))
    moved = {name: min(max(places[name], low), high) for name in order}
    for below, above in pairwise(order):
        moved[above] = max(moved[above], moved[below] + gap)
    ceiling = high
    for name in reversed(order):
        moved[name] = min(moved[name], ceiling)
        ceiling = moved[name] - gap
    return moved
