"""The front: what can be had at the price of what."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from evomerge.results.account import ObjectiveFacts, share_dominated
from evomerge.results.report.known import Known, Row, score_rows
from evomerge.results.report.marks import (
    BLUE,
    CANDIDATE,
    CHOSEN,
    FAINT,
    FRONT,
    GREEN,
    HEIGHT,
    INK,
    KNEE,
    SYMBOLS,
    VERMILLION,
    axis,
    axis_title,
    better,
    half_width,
    layout,
    line,
    lines,
    padded,
    plain,
    points,
    short,
    told,
    two_lines,
)
from evomerge.results.report.parallel import parallel
from evomerge.results.report.parts import Chart, Json, Key, Part, Section, Table, Text

MAX_PAIRS = 6  # of objectives, that are shown
MAX_ROWS = 200  # of a front, that a table lists
MANY_OBJECTIVES = 4  # more of them: hypervolumes are computed at fewer steps
FEW_STEPS = 24


def front(known: Known) -> Section | None:
    """The front of a run with several objectives; candidates' scores of one with one."""
    if not known.scored:
        return None
    if len(known.objectives) < 2:
        return Section("scores", "Scores of the candidates", [candidate_scores(known)])
    parts: list[Part] = [Text(_intro(known))]
    pairs = list(combinations(known.objectives, 2))
    if len(known.objectives) > 2:
        parts.append(parallel(known))
    for place, pair in enumerate(pairs[:MAX_PAIRS]):
        parts.append(scatter(known, *pair, id_=f"front-{place}", small=len(pairs) > 1))
    if len(pairs) > MAX_PAIRS:
        parts.append(Text(f"Of {len(pairs)} pairs of objectives the first {MAX_PAIRS} are drawn."))
    fills = len(pairs) > 1 and min(len(pairs), MAX_PAIRS) % 2 == 1  # the row of the last pair
    if volume := hypervolume_over_time(known, small=fills):
        parts.append(volume)
    return Section("front", "The front", parts)


def _intro(known: Known) -> str:
    where = (
        "Front, chosen candidate and references are placed by their scores on the holdout"
        if known.final is not None
        else "The run is not finished: all scores are those of the search, which flatter the best"
    )
    text = f"{where}; lines through them are 95 % intervals. Grey dots are all candidates by the "
    text += "estimates that the search had of them. On the front nobody is better in everything."
    if known.knee is not None:
        text += (
            f" The knee, {known.knee.name}, is where the front bulges most by the items that "
            "choices are made on: from there, more of one objective costs most of another."
        )
    return " ".join(filter(None, (text, known.left_out)))


# --- pairs of objectives --------------------------------------------------------------------------


def scatter(known: Known, x: ObjectiveFacts, y: ObjectiveFacts, id_: str, small: bool) -> Chart:
    """Two objectives against each other."""
    data, keys, labels = [], [], []
    cloud = Key("candidates, by search scores", FAINT, CANDIDATE)
    told_of = [f"candidate {e.id} (search)" for e, _ in known.shown_candidates]
    places = known.values(x).tolist(), known.values(y).tolist()
    data.append(points(*places, told_of, cloud, opacity=0.55))
    keys.append(cloud)
    for rows, key in groups(known):
        if rows:
            data.append(_crosses(rows, x, y, key))
            keys.append(key)
        if key.color == INK:
            labels += [
                {"x": r.value(x), "y": r.value(y), "text": plain(short(r.name))} for r in rows
            ]
    table = Table(
        f"{x.name} and {y.name}",
        ["model", f"{x.name} ({better(x)})", f"{y.name} ({better(y)})", "what it is"],
        _table_rows(known, (x, y)),
    )
    return Chart(
        id_,
        f"{y.name} against {x.name}",
        f"A scatter chart. Across: {x.name}, {better(x)}. Upwards: {y.name}, {better(y)}. "
        f"{len(known.front)} candidates are on the front.",
        data,
        layout(axis(axis_title(x)), axis(axis_title(y)), HEIGHT if not small else 340),
        table,
        _in_order(keys),
        labels=labels,
        small=small,
    )


def _in_order(keys: Sequence[Key]) -> list[Key]:
    """What matters most first; references keep their order."""
    ranks = {CHOSEN: 0, KNEE: 1, FRONT: 2, CANDIDATE: 4}
    return sorted(keys, key=lambda key: ranks.get(key.symbol, 3))


def groups(known: Known) -> list[tuple[list[Row], Key]]:
    """Who is shown by name, and by which mark; the last are drawn on top."""
    found = [
        ([row], Key(row.name, INK, f"{symbol}-open"))
        for row, symbol in zip(known.references, SYMBOLS * 2, strict=False)
    ]
    where = "" if known.final is None else ", on the holdout"
    found.append((known.front, Key(f"front{where}", BLUE, FRONT)))
    if known.knee is not None:
        found.append(([known.knee], Key(f"knee: {known.knee.name}", GREEN, KNEE)))
    if known.chosen is not None:
        found.append(([known.chosen], Key(f"chosen: {known.chosen.name}", VERMILLION, CHOSEN)))
    return found


def _crosses(rows: Sequence[Row], x: ObjectiveFacts, y: ObjectiveFacts, key: Key) -> Json:
    texts = [
        lines(row.name, *(f"{o.name}: {told(o, row.scores[o.name])}" for o in (x, y)))
        for row in rows
    ]
    return points(
        [row.value(x) for row in rows],
        [row.value(y) for row in rows],
        texts,
        key,
        x_half=[half_width(row.scores[x.name]) for row in rows],
        y_half=[half_width(row.scores[y.name]) for row in rows],
    )


def _table_rows(known: Known, objectives: Sequence[ObjectiveFacts]) -> list[list[str]]:
    rows = [
        [row.name, *(told(o, row.scores[o.name]) for o in objectives), key.text.split(":")[0]]
        for group, key in reversed(groups(known))
        for row in group[:MAX_ROWS]
    ]
    for row in rows:
        row[-1] = "reference" if row[-1] == row[0] else row[-1]
    return rows + [
        [
            f"candidate {evaluation.id}",
            *(told(o, score.objectives[o.name]) for o in objectives),
            "candidate, by search scores",
        ]
        for evaluation, score in known.shown_candidates
    ]


def front_table(known: Known) -> Table:
    """The whole front, in all objectives."""
    columns = ["model", *(f"{o.name} ({better(o)})" for o in known.objectives)]
    return Table("the front", columns, score_rows(known, known.front[:MAX_ROWS]))


# --- over time ------------------------------------------------------------------------------------


def hypervolume_over_time(known: Known, small: bool) -> Chart | None:
    """How much of the box of all candidates the front dominates, step by step."""
    steps = [step for step in known.account.steps if len(step.front)]
    values = np.array([score.values for _, score in known.scored])
    if len(steps) < 2 or not len(values):
        return None
    if len(known.objectives) > MANY_OBJECTIVES:
        kept = np.linspace(0, len(steps) - 1, FEW_STEPS).round().astype(int)
        steps = [steps[place] for place in sorted(set(kept.tolist()))]
    box = values.min(axis=0), values.max(axis=0)
    shares = [100 * share_dominated(step.front, *box) for step in steps]
    items = [step.item_evaluations for step in steps]
    key = Key("hypervolume of the front", BLUE)
    texts = [f"{s.candidates:,} candidates: {v:.1f} %" for s, v in zip(steps, shares, strict=True)]
    data = line(items, shares, key, hoverinfo="text", hovertext=texts)
    data["line"]["shape"] = "hv"
    rows = [
        [f"{s.item_evaluations:,}", f"{s.candidates:,}", f"{v:.2f} %"]
        for s, v in zip(steps, shares, strict=True)
    ]
    return Chart(
        "hypervolume",
        "Hypervolume over time",
        "A line chart: the share of the space of objectives that the front dominates, against item "
        f"evaluations. It ends at {shares[-1]:.1f} %.",
        [data],
        layout(
            axis("item evaluations", rangemode="tozero"),
            axis(two_lines("dominated space", "% of the candidates' box"), range=padded(shares)),
            340 if small else 300,
        ),
        Table("hypervolume", ["item evaluations", "candidates", "hypervolume"], rows),
        [key],
        note="The box reaches from the worst to the best search score of each objective, and a "
        "tenth below, so that the extremes count. A front that grows no more has converged, or "
        "its searcher is stuck.",
        small=small,
    )


# --- one objective --------------------------------------------------------------------------------


def candidate_scores(known: Known) -> Chart:
    """Each candidate's score, as the search knew it."""
    objective = known.objectives[0]
    kept = Key("candidate, measured in full", BLUE, CANDIDATE)
    dropped = Key("dropped early", FAINT, "x-thin-open")
    chosen = Key("chosen", VERMILLION, CHOSEN)
    data, keys = [], []
    for key, is_top in ((dropped, False), (kept, True)):
        pairs = [p for p in known.shown_candidates if (p[1].rung == known.top_rung) == is_top]
        if pairs:
            estimates = [score.objectives[objective.name] for _, score in pairs]
            texts = [
                lines(f"candidate {e.id}", told(objective, estimate))
                for (e, _), estimate in zip(pairs, estimates, strict=True)
            ]
            values = [objective.shown(estimate.value) for estimate in estimates]
            data.append(points([e.id for e, _ in pairs], values, texts, key, opacity=0.8))
            keys.append(key)
    who = known.chosen.candidate if known.chosen else None
    best = next((score for e, score in known.scored if e.id == who), None)
    if known.chosen is not None and best is not None:
        estimate = best.objectives[objective.name]
        text = lines(f"{known.chosen.name}, chosen", told(objective, estimate))
        at = [float(known.chosen.candidate or 0)], [objective.shown(estimate.value)]
        data.append(points(*at, [text], chosen, y_half=[half_width(estimate)]))
        keys.append(Key(f"chosen: {known.chosen.name}, with its 95 % interval", VERMILLION, CHOSEN))
    rows = [
        [
            f"candidate {e.id}",
            told(objective, s.objectives[objective.name]),
            f"{s.objectives[objective.name].num_items:,}",
            str(s.rung),
        ]
        for e, s in known.shown_candidates
    ]
    return Chart(
        "candidate-scores",
        f"{objective.name} of each candidate",
        f"A scatter chart of {len(known.scored)} candidates in the order of asking: "
        f"{objective.name}, {better(objective)}, as the search estimated it.",
        data,
        layout(axis(two_lines("candidate", "in the order of asking")), axis(axis_title(objective))),
        Table("candidates", ["candidate", objective.name, "items", "rung"], rows),
        keys,
        note=" ".join(filter(None, ("Scores are estimates on search items.", known.left_out))),
    )
