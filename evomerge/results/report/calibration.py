"""Whether what the search was told of models is what the holdout says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import hypot
from typing import Any

from evomerge.records import Estimate
from evomerge.results.account import ObjectiveFacts
from evomerge.results.report.known import Known, named
from evomerge.results.report.marks import (
    BLUE,
    CHOSEN,
    FRONT,
    INK,
    VERMILLION,
    axis,
    half_width,
    layout,
    line,
    lines,
    padded,
    points,
    signed,
    told,
    two_lines,
)
from evomerge.results.report.parts import Chart, Key, Part, Section, Table, Text
from evomerge.stopping import CONFIDENCE

MAX_OBJECTIVES = 6


@dataclass(frozen=True)
class Pair:
    """A model's estimate in the search, and what the holdout says."""

    name: str
    group: str  # `chosen`, `front`, `references`
    told: Estimate
    holdout: Estimate


def calibration(known: Known) -> Section | None:
    """Told estimates against the holdout, objective by objective."""
    if known.final is None:
        return None
    parts: list[Part] = []
    measured = known.measured_objectives[:MAX_OBJECTIVES]
    for place, objective in enumerate(measured):
        if found := pairs(known.final, objective.name):
            parts.append(_chart(f"calibration-{place}", objective, found, len(measured) > 1))
    if not parts:
        return None
    text = (
        "What the search was told of a model, against what the holdout says of it. On the dashed "
        "line both are equal; below it the search was too hopeful. Lines are 95 % intervals. "
        "Candidates are a selection of the best, so some of them lie on the hopeful side by luck; "
        "references were not selected."
    )
    return Section("calibration", "Were the estimates right?", [Text(text), *parts])


def pairs(final: Mapping[str, Any], objective: str) -> list[Pair]:
    """Every model of the final table that has both."""
    groups = {
        "chosen": [final["best"]],
        "front": final["front"],
        "references": list(final["references"].values()),
    }
    found: dict[str, Pair] = {}
    for group, rows in groups.items():
        for row in rows:
            of_search = row.get("told") or row.get("search")
            if not of_search or "holdout" not in row or objective not in of_search:
                continue
            name = named(row["label"], row["candidate"])
            both = Estimate(**of_search[objective]), Estimate(**row["holdout"][objective])
            found.setdefault(name, Pair(name, group, *both))
    return list(found.values())


def _chart(id_: str, objective: ObjectiveFacts, found: list[Pair], small: bool) -> Chart:
    keys = {
        "references": Key("references", INK, "square-open"),
        "front": Key("front", BLUE, FRONT),
        "chosen": Key("chosen", VERMILLION, CHOSEN),
    }
    values = [objective.shown(e.value) for pair in found for e in (pair.told, pair.holdout)]
    ends = padded(values, 0.1)
    identity = Key("equal", INK, dash="dash")
    data = [line(ends, ends, identity)]
    shown = [identity]
    for group, key in keys.items():
        if rows := [pair for pair in found if pair.group == group]:
            texts = [
                lines(
                    p.name,
                    f"told {told(objective, p.told)}",
                    f"holdout {told(objective, p.holdout)}",
                )
                for p in rows
            ]
            data.append(
                points(
                    [objective.shown(p.told.value) for p in rows],
                    [objective.shown(p.holdout.value) for p in rows],
                    texts,
                    key,
                    x_half=[half_width(p.told) for p in rows],
                    y_half=[half_width(p.holdout) for p in rows],
                )
            )
            shown.append(key)
    columns = ["model", "told in the search", "holdout", "told minus holdout"]
    rows_of = [
        [
            p.name,
            told(objective, p.told),
            told(objective, p.holdout),
            signed(objective.shown(p.told.value - p.holdout.value)),
        ]
        for p in found
    ]
    return Chart(
        id_,
        f"{objective.name}: told and holdout",
        f"A scatter chart of {len(found)} models: across what the search was told of "
        f"{objective.name}, upwards what the holdout says.",
        data,
        layout(
            axis(two_lines("told in the search", "mean score per item"), range=ends),
            axis(two_lines("on the holdout", "mean score per item"), range=ends),
            360,
        ),
        Table(f"{objective.name}: told and holdout", columns, rows_of),
        shown,
        note=_agreement(objective, found),
        small=small,
    )


def _agreement(objective: ObjectiveFacts, found: list[Pair]) -> str:
    """How many agree within the interval of their difference, and the mean difference."""
    gaps = [pair.told.value - pair.holdout.value for pair in found]
    halves = [
        CONFIDENCE * hypot(pair.told.standard_error, pair.holdout.standard_error) for pair in found
    ]
    agree = sum(abs(gap) <= half for gap, half in zip(gaps, halves, strict=True))
    mean = objective.shown(sum(gaps) / len(gaps))
    return (
        f"{agree} of {len(found)} differ by no more than the 95 % interval of a difference; "
        f"on average the search said {signed(mean)} of what the holdout says."
    )
