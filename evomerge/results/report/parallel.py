"""Three objectives or more: a line for each model, from objective to objective."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.results.account import ObjectiveFacts
from evomerge.results.report.known import Known, Row, score_rows
from evomerge.results.report.marks import (
    BLUE,
    CHOSEN,
    DASHES,
    FAINT,
    FRONT,
    GREEN,
    INK,
    KNEE,
    PAPER,
    VERMILLION,
    better,
    layout,
    lines,
    number,
    plain,
    short,
    told,
)
from evomerge.results.report.parts import Chart, Json, Key, Table

ROW = 92  # pixels between two objectives
MAX_LINES = 200


def parallel(known: Known) -> Chart:
    """Parallel coordinates, each objective a row: its name fits there, on a phone as well."""
    ends = {o.name: _ends(known, o) for o in known.objectives}
    heights = [len(known.objectives) - 1 - k for k in range(len(known.objectives))]
    data: list[Json] = []
    keys: list[Key] = []
    for rows, key, width in _groups(known):
        for row in rows[:MAX_LINES]:
            data.append(_line(known, row, ends, heights, key, width))
        if rows:
            keys.append(key)
    annotations, narrow = (
        [
            text
            for objective, height in zip(known.objectives, heights, strict=True)
            for text in _texts(objective, height, ends[objective.name], length)
        ]
        for length in (40, 18)
    )
    bare = {"showgrid": False, "zeroline": False, "fixedrange": True, "showticklabels": False}
    shapes = [
        {"type": "line", "x0": 0, "x1": 1, "y0": h, "y1": h, "layer": "below"}
        | {"line": {"color": FAINT, "width": 1}}
        for h in heights
    ]
    drawn = layout(
        {**bare, "range": [-0.02, 1.02]},
        {**bare, "range": [-0.45, len(heights) - 0.45]},
        40 + ROW * len(heights),
        annotations=annotations,
        shapes=shapes,
        margin={"l": 12, "r": 12, "t": 8, "b": 8},
    )
    columns = ["model", *(f"{o.name} ({better(o)})" for o in known.objectives)]
    everyone = [row for rows, _, _ in reversed(_groups(known)) for row in rows[:MAX_LINES]]
    return Chart(
        "parallel",
        "All objectives at once",
        f"A line for each of {len(known.front)} candidates of the front, for the chosen one and "
        f"the references, across {len(known.objectives)} objectives; to the right is better.",
        data,
        drawn,
        Table("all objectives", columns, score_rows(known, everyone)),
        sorted(keys, key=lambda key: {CHOSEN: 0, KNEE: 1, FRONT: 2}.get(key.symbol, 3)),
        narrow={"annotations": narrow},
        note="A line is a model, a row an objective, from the worst to the best of those drawn: "
        "to the right is better. Lines that cross are models that trade one objective for another.",
    )


def _groups(known: Known) -> list[tuple[list[Row], Key, float]]:
    where = "search" if known.final is None else "holdout"
    groups = [(known.front, Key(f"front ({where})", BLUE, FRONT), 1.0)]
    groups += [
        ([row], Key(row.name, INK, dash=dash), 1.25)
        for row, dash in zip(known.references, DASHES * 2, strict=False)
    ]
    if known.knee is not None:
        groups.append(([known.knee], Key(f"knee: {known.knee.name}", GREEN, KNEE), 2.5))
    if known.chosen is not None:
        groups.append(
            ([known.chosen], Key(f"chosen: {known.chosen.name}", VERMILLION, CHOSEN), 3.0)
        )
    return groups


def _ends(known: Known, objective: ObjectiveFacts) -> tuple[float, float]:
    """The worst and the best value, everything maximised."""
    rows = [*known.front, *known.references, *([known.chosen] if known.chosen else [])]
    values = [row.scores[objective.name].value for row in rows if objective.name in row.scores]
    return (min(values), max(values)) if values else (0.0, 0.0)


def _line(
    known: Known,
    row: Row,
    ends: dict[str, tuple[float, float]],
    heights: Sequence[int],
    key: Key,
    width: float,
) -> Json:
    x, y, texts = [], [], []
    for objective, height in zip(known.objectives, heights, strict=True):
        if objective.name not in row.scores:
            continue
        low, high = ends[objective.name]
        value = row.scores[objective.name].value
        x.append((value - low) / (high - low) if high > low else 0.5)
        y.append(height)
        texts.append(
            lines(row.name, f"{objective.name}: {told(objective, row.scores[objective.name])}")
        )
    look = {"color": key.color, "width": width, "dash": key.dash or "solid"}
    size = {CHOSEN: 13, KNEE: 15}.get(key.symbol, 5)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": x,
        "y": y,
        "opacity": {FRONT: 0.45, "": 0.7}.get(key.symbol, 1.0),
        "line": look,
        "marker": {"symbol": key.symbol or "circle", "size": size, "color": key.color},
        "hoverinfo": "text",
        "hovertext": texts,
        "cliponaxis": False,
    }


def _texts(
    objective: ObjectiveFacts, height: int, ends: tuple[float, float], length: int
) -> list[Json]:
    """An objective's name above its row, and the values at its ends below it."""
    is_cost = objective.cost is not None
    name = f"<b>{plain(short(objective.name, length))}</b> ({better(objective)})"
    shared = {"y": height, "showarrow": False, "bgcolor": PAPER, "borderpad": 1}
    worst, top = (number(objective.shown(value), is_cost=is_cost) for value in ends)
    return [
        {**shared, "x": 0, "xanchor": "left", "yanchor": "bottom", "yshift": 8, "text": name},
        {**shared, "x": 0, "xanchor": "left", "yanchor": "top", "yshift": -6, "text": worst},
        {**shared, "x": 1, "xanchor": "right", "yanchor": "top", "yshift": -6, "text": top},
    ]
