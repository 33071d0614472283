"""Which genes mattered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from evomerge.results.account import ObjectiveFacts
from evomerge.results.report.gene_effects import FEWEST, Effects, effects, usable
from evomerge.results.report.known import Known
from evomerge.results.report.marks import (
    BLUE,
    FAINT,
    INK,
    axis,
    layout,
    lines,
    plain,
    short,
    two_lines,
)
from evomerge.results.report.parts import Chart, Json, Key, Part, Section, Table, Text

MOST = 20  # genes in a chart
MAX_OBJECTIVES = 4
ROW = 22  # pixels
HOW = (
    "A gene's importance is how much worse the ranks of candidates are predicted when its values "
    "are shuffled: permutation importance of an additive model (each gene and its square), on "
    "candidates that the model has not seen, with 95 % intervals. It says what went with good "
    "scores in this search, not what causes them: the searcher chose where to look, and what genes "
    "only do together is not seen."
)


def importance(known: Known) -> Section | None:
    """Gene importance, for spaces of vectors."""
    genes = known.account.genes
    genomes = [evaluation.genome for evaluation, _ in known.scored]
    if not usable(genomes, len(genes)):
        return None
    names = genes or tuple(f"gene {number}" for number in range(len(genomes[0])))
    points = np.array(genomes, dtype=np.float64)
    texts, charts = [Text(HOW)], []
    for place, objective in enumerate(known.objectives[:MAX_OBJECTIVES]):
        found = effects(points, _scores(known, objective))
        if found is None:
            text = f"{objective.name}: fewer than {FEWEST} candidates with a score, or all alike."
            texts.append(Text(text))
        elif found.explained <= 0.02:
            text = (
                f"{objective.name}: the model predicts nothing of candidates that it has not seen "
                f"({found.num_candidates:,} candidates, {len(names):,} genes), so no gene can be "
                "told from another."
            )
            texts.append(Text(text))
        else:
            charts.append(_chart(f"genes-{place}", objective, names, found))
    several = len(charts) > 1
    parts: list[Part] = [*texts, *(replace(chart, small=several) for chart in charts)]
    return Section("genes", "Which genes mattered", parts)


def _prefix(names: tuple[str, ...]) -> int:
    """How many characters all names begin with, up to a dot: a chart need not repeat them."""
    first, last = min(names), max(names)  # what these two share, all do
    pairs = zip(first, last, strict=False)
    same = next((place for place, (one, other) in enumerate(pairs) if one != other), 0)
    return first.rfind(".", 0, same) + 1


def _scores(known: Known, objective: ObjectiveFacts) -> list[float]:
    """Scores whose order is the ranking: who was dropped early comes after all who were not."""
    values = [score.objectives[objective.name].value for _, score in known.scored]
    if len(known.objectives) > 1 or known.top_rung == 0:
        return values
    spread = (max(values) - min(values)) + 1.0
    return [v + spread * score.rung for v, (_, score) in zip(values, known.scored, strict=True)]


def _chart(id_: str, objective: ObjectiveFacts, names: tuple[str, ...], found: Effects) -> Chart:
    order = np.argsort(-found.importance, kind="stable")
    top = order[:MOST]
    matters = Key("importance, with its 95 % interval", BLUE, "square")
    unclear = Key("its interval holds 0", FAINT, "square")
    texts = [
        lines(
            names[g],
            f"{100 * found.importance[g]:.1f} %",
            f"trend {objective.sign * found.trend[g]:+.2f}",
        )
        for g in top
    ]
    trace: Json = {
        "type": "bar",
        "orientation": "h",
        "x": [100 * float(max(0.0, found.importance[g])) for g in top],
        "y": list(range(len(top))),
        "marker": {"color": [BLUE if found.low[g] > 0 else FAINT for g in top]},
        "hoverinfo": "text",
        "hovertext": texts,
        "error_x": {
            "type": "data",
            "array": [100 * float(found.high[g] - found.importance[g]) for g in top],
            "thickness": 1,
            "width": 3,
            "color": INK,
        },
    }
    shared = _prefix(names)
    y = axis(
        tickvals=list(range(len(top))),
        ticktext=[plain(short(names[g][shared:], 30)) for g in top],
        range=[len(top) - 0.4, -0.6],
        showgrid=False,
        tickfont={"size": 11},
    )
    x = axis(two_lines("importance", "% of the variance of ranks"), rangemode="tozero")
    columns = ["gene", "importance", "95 % interval", "trend (rank correlation)"]
    rows = [
        [
            names[g],
            f"{100 * found.importance[g]:.2f} %",
            f"[{100 * found.low[g]:.2f} %, {100 * found.high[g]:.2f} %]",
            f"{objective.sign * found.trend[g]:+.3f}",
        ]
        for g in order
    ]
    more = (
        f"The {MOST} most important of {len(names):,}; the table has all. "
        if len(names) > MOST
        else ""
    )
    return Chart(
        id_,
        f"Genes and {objective.name}",
        f"A bar chart of {len(top)} genes; the most important is {names[order[0]]}.",
        [trace],
        layout(x, y, 80 + ROW * max(3, len(top)), margin={"t": 8}),
        Table(f"genes and {objective.name}", columns, rows),
        [matters, unclear],
        note=f"{more}The model explains {100 * found.explained:.0f} % of the variance of ranks of "
        f"{found.num_candidates:,} candidates.",
        narrow={"yaxis": {"ticktext": [plain(short(names[g][shared:], 18)) for g in top]}},
    )
