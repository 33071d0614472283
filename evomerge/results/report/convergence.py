"""How the best grew with what was spent, beside what needs no search."""

from __future__ import annotations

from collections.abc import Sequence
from html import unescape

from evomerge.results.account import ObjectiveFacts, Step
from evomerge.results.report.known import Known, Row
from evomerge.results.report.marks import (
    BLUE,
    DASHES,
    HEIGHT,
    LABEL_HEIGHT,
    LINES,
    VERMILLION,
    apart,
    axis,
    axis_title,
    half_width,
    layout,
    line,
    lines,
    number,
    plain,
    points,
    short,
    told,
    two_lines,
)
from evomerge.results.report.parts import Chart, Json, Key, Section, Table, Text

BAND = "rgba(0, 114, 178, 0.18)"
TOP, BOTTOM = 12, 56  # margins in pixels
CHARACTER = 7.5  # the width of one in a label, in pixels: few are wider


def convergence(known: Known) -> Section | None:
    """The best so far against item evaluations, with the references as lines."""
    steps = [step for step in known.account.steps if step.incumbent is not None]
    if not steps:
        return None
    intro = (
        "The line is the best candidate so far by its search score, with its 95 % interval; "
        "horizontal lines are the references on the same search items, so that both are equally "
        "lucky. What is above all of them needed the search."
    )
    return Section("convergence", "Convergence", [Text(intro), _chart(known, steps)])


def _chart(known: Known, steps: list[Step]) -> Chart:
    objective = known.mean_objective
    key = Key("best so far, by search score", BLUE)
    items = [float(step.item_evaluations) for step in steps]
    means = [step.incumbent["mean"] for step in steps if step.incumbent]
    values = [objective.shown(mean["value"]) for mean in means]
    bounds = [sorted(objective.shown(mean[end]) for end in ("low", "high")) for mean in means]
    texts = [
        lines(
            f"candidate {s.incumbent['candidate']}",
            f"{number(v)} after {s.candidates:,} candidates",
        )
        for s, v in zip(steps, values, strict=True)
        if s.incumbent
    ]
    data: list[Json] = [
        _edge(items, [low for low, _ in bounds]),
        _edge(items, [high for _, high in bounds], fill="tonexty", fillcolor=BAND),
        line(items, values, key, hoverinfo="text", hovertext=texts),
    ]
    for trace in data:
        trace["line"]["shape"] = "hv"
    data[2]["line"]["width"] = 2.5
    keys = [key, Key("its 95 % interval", BLUE, band=True)]
    references = known.references_searched
    ends = [0.0, max(items) * 1.02 or 1.0]
    for row, dash, color in zip(references, DASHES * 2, LINES * 2, strict=False):
        of_it = Key(f"{row.name} {number(objective.shown(row.mean.value))}", color, dash=dash)
        data.append(line(ends, [objective.shown(row.mean.value)] * 2, of_it))
        keys.append(of_it)
    found = [known.chosen] if known.final is not None and known.chosen is not None else []
    for row in found:
        mark = Key(f"chosen, on the holdout: {told(objective, row.mean)}", VERMILLION, "star")
        at = [items[-1]], [objective.shown(row.mean.value)]
        text = [lines(f"{row.name} on the holdout", told(objective, row.mean))]
        data.append(points(*at, text, mark, y_half=[half_width(row.mean)]))
        keys.append(mark)
    shown = [v for pair in bounds for v in pair]
    shown += [objective.shown(row.mean.value) for row in (*references, *found)]
    low, high = min(shown), max(shown)
    room = 0.05 * ((high - low) or abs(high) or 1.0)
    span = (low - room, high + room)
    labels = _labels(references, objective, span, ends[1])
    drawn = layout(
        axis("item evaluations", range=ends),
        axis(
            axis_title(objective) if objective.name in _names(known) else _mean_title(known),
            range=list(span),
        ),
        annotations=labels,
        margin={"r": _right(labels), "t": TOP, "b": BOTTOM},
    )
    return Chart(
        "convergence-chart",
        "The best so far",
        f"A line chart of {objective.name} against item evaluations. The best candidate ends at "
        f"{number(values[-1])}; the best reference is at {_best_reference(references, objective)}.",
        data,
        drawn,
        _table(known, steps, references, objective),
        keys,
        narrow={"annotations": [], "margin": {**drawn["margin"], "r": 14}},
    )


def _names(known: Known) -> set[str]:
    return {o.name for o in known.objectives}


def _mean_title(known: Known) -> str:
    names = short(", ".join(o.name for o in known.measured_objectives), 40)
    return two_lines("mean of the objectives", names)


def _edge(x: list[float], y: list[float], **more: object) -> Json:
    trace = line(x, y, Key("", BLUE), **more)
    trace["line"] |= {"width": 0}
    return trace


def _best_reference(references: list[Row], objective: ObjectiveFacts) -> str:
    if not references:
        return "not known"
    top = max(references, key=lambda row: row.mean.value)
    return f"{number(objective.shown(top.mean.value))} ({top.name})"


def _labels(
    references: list[Row], objective: ObjectiveFacts, span: tuple[float, float], right: float
) -> list[Json]:
    """Names beside the lines, moved apart where they would overlap, and joined to them."""
    pixels = (HEIGHT - TOP - BOTTOM) / (span[1] - span[0])
    at = {r.name: (objective.shown(r.mean.value) - span[0]) * pixels for r in references}
    moved = apart(at, LABEL_HEIGHT, 0.0, HEIGHT - TOP - BOTTOM)
    return [
        {
            "x": right,
            "y": objective.shown(row.mean.value),
            "text": f"{plain(short(row.name, 16))} {number(objective.shown(row.mean.value))}",
            "xanchor": "left",
            "yanchor": "middle",
            "showarrow": True,
            "arrowhead": 0,
            "arrowwidth": 1,
            "arrowcolor": color,
            "standoff": 0,
            "ax": 18,
            "ay": at[row.name] - moved[row.name],
            "font": {"size": 11},
        }
        for row, color in zip(references, LINES * 2, strict=False)
    ]


def _right(labels: Sequence[Json]) -> int:
    """The margin that the longest label needs; entities count as one character."""
    longest = max((len(unescape(label["text"])) for label in labels), default=0)
    return 30 + round(CHARACTER * longest)


def _table(
    known: Known, steps: list[Step], references: list[Row], objective: ObjectiveFacts
) -> Table:
    rows = [
        [
            f"{step.item_evaluations:,}",
            f"{step.candidates:,}",
            f"{step.seconds:.1f}",
            f"candidate {step.incumbent['candidate']}",
            number(objective.shown(step.incumbent["mean"]["value"])),
            f"± {number(1.96 * step.incumbent['mean']['standard_error'])}",
        ]
        for step in steps
        if step.incumbent
    ]
    rows += [
        [
            "-",
            "-",
            "-",
            r.name,
            number(objective.shown(r.mean.value)),
            f"± {number(half_width(r.mean))}",
        ]
        for r in references
    ]
    if known.final is not None and known.chosen is not None:
        mean = known.chosen.mean
        shown = number(objective.shown(mean.value)), f"± {number(half_width(mean))}"
        rows.append(["-", "-", "-", f"{known.chosen.name}, on the holdout", *shown])
    columns = ["item evaluations", "candidates", "seconds", "model", objective.name, "95 %"]
    return Table("convergence", columns, rows)
