"""The picture of a comparison: searches at equal budgets, and what was held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.files import write_bytes
from evomerge.results.plots import BLACK, BLUE, GREEN, GREY, ORANGE, drawn, new_figure, plain
from evomerge.wording import in_short

Json = Mapping[str, Any]

FORMS = (".png", ".svg", ".html")
# Okabe & Ito's palette, whose yellow is too light for a line on white.
COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", BLACK)
DASHES = ("-", "--", ":", "-.")  # of colours that come again

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:1rem auto;padding:0 1rem;
color:#222;background:#fff}}svg{{width:100%;height:auto}}</style></head>
<body><h1>{title}</h1>
{picture}
<ul>
{words}
</ul></body></html>
"""


def write_plot(path: Path, found: Json) -> Path:
    """Draw a comparison as .png, .svg, or a page in one file.

    Raises:
        ConfigurationError: the file's name ends otherwise.
    """
    check_form(path)
    form = path.suffix.lower()
    figure = compare_figure(found)
    if form != ".html":
        write_bytes(path, drawn(figure, form[1:]))
        return path
    svg = drawn(figure, "svg").decode()
    lines = [*found["words"], *(f"Note: {notice}." for notice in found["notices"])]
    page = PAGE.format(
        title=escape(" and ".join(run["name"] for run in found["runs"][:3])),
        picture=svg[svg.index("<svg") :],
        words="\n".join(f"<li>{escape(line)}</li>" for line in lines),
    )
    write_bytes(path, page.encode())
    return path


def check_form(path: Path) -> None:
    """That a picture can be written under that name.

    Raises:
        ConfigurationError: it ends otherwise.
    """
    if path.suffix.lower() not in FORMS:
        hint = f"{nearest(path.suffix, FORMS)}; it may end in {', '.join(FORMS)}"
        raise ConfigurationError(Problem(str(path), "is no name for a picture", hint))


def compare_figure(found: Json) -> Any:
    """Search scores over item evaluations; hypervolumes if there are any; scores on the holdout."""
    groups = found["groups"]
    has_areas = any(v is not None for g in groups for v in g["curve"]["hypervolume"])
    figure, axes = new_figure(3 if has_areas else 2)
    better = "" if found["score"]["better"] == "higher" else ", lower is better"
    score = plain(found["score"]["name"]) + better
    _curves(axes[0], found, ("value", "low", "high"), score)
    axes[0].set_title("Best so far, on the search's items (95 %)", loc="left", fontsize=10)
    if has_areas:
        keys = ("hypervolume", "hypervolume_low", "hypervolume_high")
        _curves(axes[1], found, keys, "share of the box that the front dominates")
        axes[1].set_title("Hypervolume, on the search's items", loc="left", fontsize=10)
    _held_out(axes[-1], found, score)
    handles, labels = axes[0].get_legend_handles_labels()
    columns = max(1, min(len(labels), 3))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _style(number: int) -> dict[str, Any]:
    dash = DASHES[number // len(COLORS) % len(DASHES)]
    return {"color": COLORS[number % len(COLORS)], "linestyle": dash}


def _numbers(row: Sequence[float | None]) -> Any:
    return np.array([np.nan if value is None else value for value in row])


def _curves(axis: Any, found: Json, keys: tuple[str, str, str], label: str) -> None:
    """Each group's curve with its 95 % interval."""
    grid = np.array(found["grid"])
    for number, group in enumerate(found["groups"]):
        value, low, high = (_numbers(group["curve"].get(key) or [None] * len(grid)) for key in keys)
        name = plain(group["name"])
        axis.plot(grid, value, linewidth=1.6, label=name, drawstyle="steps-post", **_style(number))
        color = _style(number)["color"]
        axis.fill_between(grid, low, high, step="post", color=color, alpha=0.15, linewidth=0)
    axis.set_xlabel("item evaluations, references included")
    axis.set_ylabel(label)
    axis.xaxis.set_major_formatter(lambda value, _: in_short(value))
    axis.xaxis.set_major_locator(_few_ticks())


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5)


def _held_out(axis: Any, found: Json, label: str) -> None:
    """Each group's chosen models: every seed, and the mean with its 95 % interval."""
    for number, group in enumerate(found["groups"]):
        own = [run for run in found["runs"] if run["group"] == group["name"] and run["held_out"]]
        values = [run["held_out"]["value"] for run in own]
        if len(values) > 1:
            axis.plot(values, [number + 0.1] * len(values), ".", color=GREY)  # below the mean
        if (held := group["held_out"]) is None:
            continue
        ends = [held["low"], held["high"]]
        if None not in ends:
            axis.plot(ends, [number, number], color=_style(number)["color"], linewidth=2)
        axis.plot(held["mean"], number, "o", color=_style(number)["color"])
    axis.set_yticks(range(len(found["groups"])), [plain(g["name"]) for g in found["groups"]])
    axis.tick_params(axis="y", labelsize=8)
    axis.set_ylim(len(found["groups"]) - 0.5, -0.5)
    axis.xaxis.set_major_locator(_few_ticks())
    axis.set_xlabel(label)
    axis.set_title("Chosen models, on the holdout (95 %)", loc="left", fontsize=10)
