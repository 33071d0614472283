"""Models whose layers were rearranged, and models that are cut into stretches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from evomerge.recipe import Recipe, Segments
from evomerge.results.report.marks import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    axis,
    layout,
    line,
    lines,
    narrow_rows,
    number,
    points,
    rows_axis,
    two_lines,
)
from evomerge.results.report.parts import Chart, Json, Key, Part, Scale, Table, Text
from evomerge.results.report.summary import listed
from evomerge.results.report.tables_of_recipe import Standing, standings

DEPTH = ("#E3F1FA", "#C9E1F1", "#A3CCE8", "#2F7FB8", "#023E63")
CELL = 36
MODELS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)
SCALES = (
    ("input_scale", "input times", BLUE, "circle"),
    ("branch_scale", "branches times", VERMILLION, "square"),
)


def ribbon(recipe: Recipe, experts: Sequence[str], num_layers: int | None) -> list[Part]:
    """Slot by slot, which layer of which model stands there; and the factors of the slots."""
    found = standings(recipe)
    used = {model for standing in found for model in standing.layers}
    models = [m for m in (recipe.base, *experts) if m in used] + sorted(
        used - {recipe.base, *experts}
    )
    parts: list[Part] = [Text(_told(found, models, num_layers)), _ribbon(found, models, num_layers)]
    if recipe.is_scaled:
        parts.append(_scales(found))
    return parts


def _told(found: Sequence[Standing], models: Sequence[str], num_layers: int | None) -> str:
    text = f"The merged model has {len(found)} layers"
    text += "." if num_layers is None else f"; the base has {num_layers}."
    if num_layers is not None:
        there = {layer for standing in found for layer in standing.layers.values()}
        gone = [str(layer) for layer in range(num_layers) if layer not in there]
        text += f" Layers that nobody gives: {', '.join(gone)}." if gone else ""
    shares = [f"{sum(m in s.layers for s in found)} are from {m}" for m in models]
    return f"{text} Of its layers {listed(shares)}."


def _ribbon(found: Sequence[Standing], models: Sequence[str], num_layers: int | None) -> Chart:
    deepest = max(layer for s in found for layer in s.layers.values())
    top = max(deepest, (num_layers or 1) - 1, 1)
    layers = [[s.layers.get(model) for s in found] for model in models]
    trace: Json = {
        "type": "heatmap",
        "z": layers,
        "x": list(range(len(found))),
        "y": list(range(len(models))),
        "zmin": 0,
        "zmax": top,
        "colorscale": [[i / (len(DEPTH) - 1), color] for i, color in enumerate(DEPTH)],
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "hoverongaps": False,
        "hoverinfo": "text",
        "text": [["" if v is None else str(v) for v in row] for row in layers],
        "texttemplate": "%{text}",
        "hovertext": [
            [
                ""
                if v is None
                else lines(f"slot {slot}", f"layer {v} of {model}", found[slot].operator)
                for slot, v in enumerate(row)
            ]
            for model, row in zip(models, layers, strict=True)
        ],
    }
    y = rows_axis(models)
    x = axis("slot: layer of the merged model", range=[-0.5, len(found) - 0.5], showgrid=False)
    x |= {"dtick": max(1, len(found) // 12)}
    return Chart(
        "layers",
        "Which layer stands where",
        f"A ribbon of {len(found)} slots: for each, which layer of which of {len(models)} models "
        "stands there. The table has it slot by slot.",
        [trace],
        layout(x, y, 90 + CELL * len(models), margin={"t": 8}),
        Table(
            "layers of the merged model",
            ["slot", "layers", "operator", "input times", "branches times"],
            [
                [
                    str(slot),
                    ", ".join(f"{model} {layer}" for model, layer in s.layers.items()),
                    s.operator,
                    f"{s.input_scale:g}",
                    f"{s.branch_scale:g}",
                ]
                for slot, s in enumerate(found)
            ],
        ),
        scale=Scale(DEPTH, ["layer 0", f"layer {top}"]),
        narrow=narrow_rows(models, "slot"),
        note="A column is a layer of the merged model, from the first to the last. The number is "
        "that of the model's own layer that stands there; where several models have one, the "
        "operator merges them.",
    )


def _scales(found: Sequence[Standing]) -> Chart:
    slots = list(range(len(found)))
    data, keys = [], []
    for name, text, color, symbol in SCALES:
        values = [getattr(standing, name) for standing in found]
        if all(value == 1 for value in values):
            continue
        key = Key(text, color, symbol)
        texts = [
            lines(f"slot {slot}", f"{text} {v:g}") for slot, v in zip(slots, values, strict=True)
        ]
        data.append(points(slots, values, texts, key, mode="lines+markers"))
        data[-1]["line"] = {"color": color, "width": 1, "dash": "dot"}
        keys.append(key)
    ones = Key("unchanged", INK, dash="dash")
    data.append(line([-0.5, len(found) - 0.5], [1, 1], ones))
    x = axis("slot: layer of the merged model", range=[-0.5, len(found) - 0.5])
    x |= {"dtick": max(1, len(found) // 12)}
    return Chart(
        "scales",
        "Factors of the slots",
        f"A chart of the factors of {len(found)} slots.",
        data,
        layout(x, axis("factor"), 260),
        Table(
            "factors",
            ["slot", "input times", "branches times"],
            [[str(i), f"{s.input_scale:g}", f"{s.branch_scale:g}"] for i, s in enumerate(found)],
        ),
        [*keys, ones],
        narrow={"xaxis": {"title": {"text": "slot", "standoff": 10}}},
    )


def segments(found: Segments, experts: Sequence[str]) -> Chart:
    """What share each model has along the flattened parameters."""
    total = found.stops[-1]
    edges = [100 * stop / total for stop in (0, *found.stops)]
    order = [m for m in experts if m in found.weights]
    models = [*order, *sorted(set(found.weights) - set(order))]
    data: list[Json] = []
    keys = []
    for place, model in enumerate(models):
        color = MODELS[place % len(MODELS)]
        key = Key(model, color, dash=("solid", "dash", "dot", "dashdot", "longdash")[place % 5])
        weights = found.weights[model]
        texts = [
            lines(model, f"{number(w)} from {a:.1f} % to {b:.1f} %")
            for w, a, b in zip(weights, edges, edges[1:], strict=False)
        ]
        trace = line(
            edges, [*weights, weights[-1]], key, hoverinfo="text", hovertext=[*texts, texts[-1]]
        )
        trace["line"] |= {"shape": "hv", "width": 2.5}
        data.append(trace)
        keys.append(key)
    cuts = [
        {"type": "line", "x0": e, "x1": e, "y0": 0, "y1": 1, "yref": "paper", "layer": "below"}
        | {"line": {"color": INK, "width": 0.75, "dash": "dot"}}
        for e in edges[1:-1]
    ]
    rows = [
        [f"{a:.2f} % to {b:.2f} %", *(f"{found.weights[m][i]:g}" for m in models)]
        for i, (a, b) in enumerate(pairwise(edges))
    ]
    return Chart(
        "segments",
        "Coefficients along the parameters",
        f"A line for each of {len(models)} models: its coefficient along the flattened parameters, "
        f"which are cut into {len(found.stops)} stretches.",
        data,
        layout(
            axis(two_lines("place among the parameters", f"% of {total:,}"), range=[0, 100]),
            axis("coefficient", rangemode="tozero"),
            340,
            shapes=cuts,
        ),
        Table("stretches", ["stretch", *models], rows),
        keys,
        note="Dotted lines are where the flattened parameters are cut; within a stretch every "
        "parameter is the same linear combination of the models.",
    )
