"""Where the time went."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.results.account import Measured
from evomerge.results.report.known import Known
from evomerge.results.report.marks import (
    BLUE,
    FAINT,
    GREEN,
    ORANGE,
    axis,
    layout,
    lines,
    narrow_rows,
    rows_axis,
    two_lines,
)
from evomerge.results.report.parts import Chart, Json, Key, Part, Section, Table, Text
from evomerge.results.report.summary import count, duration

PHASES = ("references", "search", "last choice")
MAX_WORKERS = 16
ROW = 40
KINDS = (
    Key("merging", ORANGE, "square"),
    Key("forward passes", BLUE, "square"),
    Key("rest of measuring", GREEN, "square"),
    Key("waiting", FAINT, "square"),
)
Split = tuple[float, float, float]  # merging, forward passes, the rest of measuring


def time_spent(known: Known) -> Section | None:
    """Seconds of workers by phase, and of each worker."""
    outcomes = known.account.measured
    if not outcomes:
        return None
    phases = {phase: [o for o in outcomes if o.phase == phase] for phase in PHASES}
    by_phase = {phase: _split(of_it) for phase, of_it in phases.items() if of_it}
    workers = sorted({outcome.worker for outcome in outcomes})
    by_worker = {w: _split([o for o in outcomes if o.worker == w]) for w in workers}
    wall = known.account.seconds
    busy = sum(map(sum, by_worker.values()))
    items = sum(outcome.num_items for outcome in outcomes)
    merge, forward, rest = (sum(part) for part in zip(*by_phase.values(), strict=True))
    text = (
        f"Drivers worked for {duration(wall)} with {count(len(workers), 'worker')}, busy for "
        f"{_percent(busy, wall * len(workers))} of it; in the rest they started, loaded models, or "
        f"waited for the driver, which asks, estimates and records. Of {duration(busy)} of work, "
        f"merging took {_percent(merge, busy)}, forward passes {_percent(forward, busy)}, and the "
        f"rest of measuring (texts, tokens, scores) {_percent(rest, busy)}."
    )
    if busy:
        text += f" A worker answered {items / busy:,.0f} items a second of work."
    parts: list[Part] = [Text(text), _chart("time-phases", "Work by phase", by_phase, None)]
    shown = dict(sorted(by_worker.items(), key=lambda pair: (-sum(pair[1]), pair[0]))[:MAX_WORKERS])
    title = (
        "Work by worker"
        if len(shown) == len(by_worker)
        else f"Work of the {len(shown)} busiest workers"
    )
    parts.append(_chart("time-workers", title, shown, wall))
    return Section("time", "Where the time went", parts)


def _split(outcomes: list[Measured]) -> Split:
    merge, measure, forward = (
        sum(getattr(o, name) for o in outcomes) for name in ("merge_s", "measure_s", "forward_s")
    )
    return merge, forward, max(0.0, measure - forward)


def _percent(part: float, whole: float) -> str:
    return f"{min(100.0, 100 * part / whole):.0f} %" if whole > 0 else "0 %"


def _chart(id_: str, title: str, rows: Mapping[str, Split], wall: float | None) -> Chart:
    """Stacked bars; with `wall`, what of it nobody worked."""
    names = list(rows)
    waiting = [] if wall is None else [max(0.0, wall - sum(split)) for split in rows.values()]
    columns = [
        *(list(part) for part in zip(*rows.values(), strict=True)),
        *([waiting] if waiting else []),
    ]
    data: list[Json] = [
        {
            "type": "bar",
            "orientation": "h",
            "x": values,
            "y": list(range(len(names))),
            "marker": {"color": key.color},
            "width": 0.6,
            "hoverinfo": "text",
            "hovertext": [
                lines(name, f"{key.text}: {duration(v)}")
                for name, v in zip(names, values, strict=True)
            ],
        }
        for key, values in zip(KINDS, columns, strict=False)
    ]
    shown = [name or "(unnamed)" for name in names]
    heads = [name for name in ("phase",) if wall is None] or ["worker"]
    return Chart(
        id_,
        title,
        f"Stacked bars of seconds: {', '.join(key.text for key in KINDS[: len(columns)])}, for "
        f"{len(names)} of {heads[0]}.",
        data,
        layout(
            axis(two_lines("time", "seconds of workers")),
            rows_axis(shown),
            90 + ROW * len(names),
            barmode="stack",
        ),
        Table(
            title,
            [*heads, *(f"{key.text} (s)" for key in KINDS[: len(columns)])],
            [
                [name, *(f"{values[place]:.2f}" for values in columns)]
                for place, name in enumerate(names)
            ],
        ),
        KINDS[: len(columns)],
        narrow=narrow_rows(shown),
        small=True,
    )
