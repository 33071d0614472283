"""What failed, and why."""

from __future__ import annotations

from collections import Counter

from evomerge.results.report.known import Known
from evomerge.results.report.marks import VERMILLION, axis, layout, lines, plain, short
from evomerge.results.report.parts import Chart, Key, Part, Section, Table, Text

MOST = 12  # reasons in the chart
MAX_REASONS = 100  # in the table
LENGTH = 300  # characters of a reason


def failures(known: Known) -> Section:
    """Candidates without a score by reason; items that could not be answered; jobs that failed."""
    run = known.account
    failed = [e.failure for e in run.evaluations.values() if e.failure is not None]
    reasons = Counter((str(f.kind), _in_line(f.reason)) for f in failed)
    jobs = [m for m in run.measured if m.failure is not None]
    items = run.ledger.num_failed_items
    total = len(run.evaluations)
    share = f" ({100 * len(failed) / total:.1f} %)" if failed else ""
    text = f"{len(failed):,} of {total:,} candidates failed{share}, {len(jobs):,} jobs of workers "
    text += f"did, and {items:,} items could not be answered by models that answered others. What "
    text += "fails ranks worst, is never on the front, and stops nothing."
    parts: list[Part] = [Text(text if failed or jobs or items else "Nothing failed.")]
    if reasons:
        parts.append(_chart(reasons))
    of_jobs = Counter(
        (m.phase, str(m.failure["kind"]), _in_line(m.failure["reason"]))
        for m in jobs
        if m.failure is not None
    )
    if of_jobs:
        rows = [[*what, f"{count:,}"] for what, count in of_jobs.most_common(MAX_REASONS)]
        parts.append(Table("Failed jobs", ["phase", "kind", "reason", "jobs"], rows))
    return Section("failures", "Failures", parts)


def _in_line(reason: object) -> str:
    return " ".join(str(reason).split())[:LENGTH]


def _chart(reasons: Counter[tuple[str, str]]) -> Chart:
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    top = ordered[:MOST]
    key = Key("candidates without a score", VERMILLION, "square")
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [count for _, count in top],
        "y": list(range(len(top))),
        "marker": {"color": VERMILLION},
        "width": 0.6,
        "hoverinfo": "text",
        "hovertext": [lines(f"{kind}: {count:,}", reason) for (kind, reason), count in top],
    }
    names = [f"{place + 1}. {short(kind, 14)}" for place, ((kind, _), _) in enumerate(top)]
    y = axis(
        tickvals=list(range(len(top))),
        ticktext=list(map(plain, names)),
        range=[len(top) - 0.5, -0.5],
        showgrid=False,
    )
    rows = [
        [f"{place + 1}", kind, reason, f"{count:,}"]
        for place, ((kind, reason), count) in enumerate(ordered[:MAX_REASONS])
    ]
    return Chart(
        "failure-reasons",
        "Candidates that failed, by reason",
        f"A bar chart of {len(top)} reasons; the most frequent had {top[0][1]:,} candidates.",
        [trace],
        layout(axis("candidates", rangemode="tozero", tickformat=",d"), y, 90 + 34 * len(top)),
        Table("reasons", ["number", "kind", "reason", "candidates"], rows),
        [key],
        note="The numbers are those of the table below, which has the reasons in full.",
    )
