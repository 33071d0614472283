"""The picture that explains a merge: how much of each expert is in each layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from evomerge.results.report.known import Known
from evomerge.results.report.layers import ribbon, segments
from evomerge.results.report.marks import (
    BLUE,
    INK,
    axis,
    layout,
    lines,
    narrow_rows,
    number,
    plain,
    rows_axis,
    short,
)
from evomerge.results.report.parts import Chart, Json, Key, Part, Scale, Section, Table, Text
from evomerge.results.report.tables_of_recipe import (
    EVERYWHERE,
    Coefficients,
    coefficients,
    is_rearranged,
)

# Vermillion for less than nothing, blue for more: no colour-blind person takes one for the other.
DIVERGING = ("#D55E00", "#F0A878", "#F7F7F7", "#7FB3D5", "#0072B2")
SEQUENTIAL = ("#F4F7FA", "#D3E6F3", "#A3CCE8", "#2F7FB8", "#023E63")
CELL = 36  # the height of a row, in pixels
TALLEST = 620


def recipe_of_best(known: Known) -> Section | None:
    """What the chosen candidate is made of."""
    candidate = known.chosen_candidate
    if candidate is None or candidate.recipe is None:
        return None
    recipe, run = candidate.recipe, known.account
    tables, constant = coefficients(recipe, run.experts, run.num_layers)
    name = known.chosen.name if known.chosen else ""
    parts: list[Part] = []
    for parameter, group in groupby(tables, key=lambda table: table.parameter):
        of_it = list(group)
        ends = _ends([value for table in of_it for value in table.numbers])
        for place, table in enumerate(of_it):
            id_ = f"coefficients-{parameter}-{place}"
            several = len(of_it) > 1
            parts.append(
                _bars(id_, table)
                if table.columns == (EVERYWHERE,)
                else _heat(id_, table, ends, several)
            )
    if is_rearranged(recipe, run.num_layers):
        parts += ribbon(recipe, run.experts, run.num_layers)
    if recipe.segments is not None:
        parts.append(segments(recipe.segments, run.experts))
    text = f"{name[:1].upper()}{name[1:]} is merged by {recipe.default.operator}."
    if constant:
        told = ", ".join(f"{key} {value}" for key, value in constant.items())
        text += f" The same everywhere: {told}."
    if not parts:
        text += " Nothing in it differs from layer to layer, or from expert to expert."
    return Section("recipe", "What the best is made of", [Text(text), *parts])


def _ends(values: list[float]) -> tuple[float, float]:
    """Of the colours: around 0 where there are both signs, from 0 where there is one."""
    low, high = min(values), max(values)
    if low < 0 < high:
        return -max(-low, high), max(-low, high)
    return (0.0, high or 1.0) if low >= 0 else (low, 0.0)


def _heat(id_: str, table: Coefficients, ends: tuple[float, float], several: bool) -> Chart:
    """Experts x layers."""
    colors: Sequence[str] = DIVERGING if ends[0] < 0 < ends[1] else SEQUENTIAL
    if ends[1] == 0:  # all below 0
        colors = DIVERGING[:3]
    texts = [
        [_told(table, r, c) for c in range(len(table.columns))] for r in range(len(table.rows))
    ]
    trace: Json = {
        "type": "heatmap",
        "z": [list(row) for row in table.values],
        "x": list(range(len(table.columns))),
        "y": list(range(len(table.rows))),
        "zmin": ends[0],
        "zmax": ends[1],
        "colorscale": [[i / (len(colors) - 1), color] for i, color in enumerate(colors)],
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "hoverinfo": "text",
        "hovertext": texts,
        "text": [["" if v is None else f"{v:.2f}" for v in row] for row in table.values],
        "texttemplate": "%{text}",
        "hoverongaps": False,
    }
    x = axis(
        "layer of the merged model" if "0" in table.columns else "",
        tickvals=list(range(len(table.columns))),
        ticktext=[plain(short(column, 12)) for column in table.columns],
        showgrid=False,
        range=[-0.5, len(table.columns) - 0.5],
    )
    y = rows_axis(table.rows)
    part = f", {table.part}" if table.part else ""
    middle = [number((ends[0] + ends[1]) / 2)]
    return Chart(
        id_.replace(" ", "-"),
        f"{table.parameter}{part}",
        f"A heat map of {table.parameter}{part}: {len(table.rows)} rows of models and "
        f"{len(table.columns)} columns of layers, from {number(min(table.numbers))} to "
        f"{number(max(table.numbers))}.",
        [trace],
        layout(x, y, min(TALLEST, 84 + CELL * len(table.rows)), margin={"t": 8}),
        Table(
            f"{table.parameter}{part}",
            ["model", *_columns(table)],
            [
                [row, *("-" if v is None else f"{v:g}" for v in values)]
                for row, values in zip(table.rows, table.values, strict=True)
            ],
        ),
        scale=Scale(colors, [number(ends[0]), *middle, number(ends[1])]),
        narrow=narrow_rows(table.rows, "layer" if "0" in table.columns else ""),
        small=several and len(table.columns) <= 12,
    )


def _columns(table: Coefficients) -> list[str]:
    return [f"layer {c}" if c.isdigit() else c for c in table.columns]


def _told(table: Coefficients, row: int, column: int) -> str:
    value = table.values[row][column]
    told = "not part of it" if value is None else f"{table.parameter} {value:g}"
    return lines(table.rows[row], _columns(table)[column], told)


def _bars(id_: str, table: Coefficients) -> Chart:
    """One value for each expert, in all layers."""
    values = [row[0] or 0.0 for row in table.values]
    names = list(range(len(values)))
    key = Key(f"{table.parameter} of the expert, in all layers", BLUE, "square")
    trace: Json = {
        "type": "bar",
        "orientation": "h",
        "x": values,
        "y": names,
        "marker": {"color": BLUE},
        "width": 0.6,
        "text": [f"{value:.3f}" for value in values],
        "textposition": "auto",
        "cliponaxis": False,
        "insidetextfont": {"color": "#ffffff"},
        "outsidetextfont": {"color": INK},
        "hoverinfo": "text",
        "hovertext": [
            lines(row, f"{table.parameter} {value:g}")
            for row, value in zip(table.rows, values, strict=True)
        ],
    }
    y = rows_axis(table.rows)
    x = axis(plain(table.parameter), zeroline=True, zerolinecolor=INK, zerolinewidth=1)
    return Chart(
        id_.replace(" ", "-"),
        f"{table.parameter} of each expert",
        f"A bar chart: {table.parameter} of {len(values)} models, the same in all layers.",
        [trace],
        layout(x, y, 90 + CELL * len(values), margin={"t": 8, "r": 24}),
        Table(
            table.parameter,
            ["model", table.parameter],
            [[row, f"{value:g}"] for row, value in zip(table.rows, values, strict=True)],
        ),
        [key],
        narrow=narrow_rows(table.rows),
    )
