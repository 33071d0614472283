"""The outcomes as Markdown and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from studies import STUDIES, Study, run_folder

from evomerge.files import write_text

Json = dict[str, Any]
BEGIN, END = "<!-- made: {} -->", "<!-- end: {} -->"
RIVALS = (
    "best expert",
    "uniform",
    "grid, chosen",
    "best of the grid, in hindsight",
    "TIES as it comes",
    "DARE-TIES as it comes",
    "random search",
)


def show(out: Path, page: Path | None) -> int:
    """Print the tables, or write them into a page between its marks."""
    found = {study: outcomes(study, out) for study in STUDIES}
    parts = {
        "gains": "\n".join(gains_table(found)),
        "scores": "\n".join(scores_table(found)),
        "fronts": "\n".join(fronts_table(found)),
        "costs": "\n".join(costs_table(found)),
    }
    if page is None:
        print("\n\n".join(parts.values()))
        return 0
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        before, _, rest = text.partition(BEGIN.format(name))
        _, _, after = rest.partition(END.format(name))
        text = f"{before}{BEGIN.format(name)}\n{part}\n{END.format(name)}{after}"
    write_text(page, text)
    return 0


def outcomes(study: Study, out: Path) -> list[Json]:
    """Of the seeds that are finished."""
    files = [run_folder(out, study.name, seed) / "outcome.json" for seed in study.seeds]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of the seeds' values, with a 95 % interval by Student's t."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def gap(rows: Sequence[Json], name: str) -> tuple[float, float, float] | None:
    """What was found minus a rival: over items of one seed, or over seeds."""
    told = [row["gains"][name]["gain"] for row in rows if name in row["gains"]]
    if not told:
        return None
    return tuple(told[0]) if len(told) == 1 else interval([value for value, _, _ in told])


def as_text(told: tuple[float, float, float] | None) -> str:
    """A gap with its interval; bold where the interval leaves out zero."""
    if told is None:
        return ""
    text = f"{told[0]:+.3f} [{told[1]:+.3f}, {told[2]:+.3f}]"
    return f"**{text}**" if told[1] > 0 or told[2] < 0 else text


def gains_table(found: dict[Study, list[Json]]) -> Iterator[str]:
    """What each search found, minus everything that it is compared with."""
    yield f"| experiment | seeds | found | {' | '.join(f'minus {r}' for r in RIVALS)} |"
    yield "|---" * (len(RIVALS) + 3) + "|"
    for study, rows in found.items():
        if rows:
            mean, low, high = interval([row["scores"]["found"]["mean"] for row in rows])
            own = f"{mean:.3f}" + (f" ± {(high - low) / 2:.3f}" if len(rows) > 1 else "")
            if len(rows) == 1:
                own += f" ± {1.96 * rows[0]['scores']['found']['standard_error']:.3f}"
            cells = [as_text(gap(rows, name)) for name in RIVALS]
            yield f"| `{study.name}` | {len(rows)} | {own} | {' | '.join(cells)} |"


def scores_table(found: dict[Study, list[Json]]) -> Iterator[str]:
    """The held-out means themselves."""
    names = "base | best expert | uniform | grid, hindsight | TIES | DARE | random | found"
    yield f"| experiment | {names} |"
    yield "|---" * 9 + "|"
    for study, rows in found.items():
        if not rows:
            continue
        cells = []
        for name in ("base", *RIVALS[:2], *RIVALS[3:]):
            labels = [row["gains"].get(name, {}).get("rival") for row in rows]
            values = [
                row["scores"][label]["mean"]
                for row, label in zip(rows, labels, strict=True)
                if label is not None
            ]
            cells.append(f"{np.mean(values):.3f}" if values else "")
        own = np.mean([row["scores"]["found"]["mean"] for row in rows])
        yield f"| `{study.name}` | {' | '.join(cells)} | {own:.3f} |"


def fronts_table(found: dict[Study, list[Json]]) -> Iterator[str]:
    """Hypervolumes on the holdout, above the base's scores."""
    yield (
        "| experiment | seeds | front | references and grid | random search "
        "| front minus references and grid | minus random search |"
    )
    yield "|---" * 7 + "|"
    for study, rows in found.items():
        told = [row["fronts"] for row in rows if row["fronts"]]
        if not told:
            continue
        names = ("found", "references and grid", "random search")
        cells = [
            f"{np.mean([t[name]['above_base'] for t in told if name in t]):.4f}"
            if any(name in t for t in told)
            else ""
            for name in names
        ]
        gaps = []
        for name in names[1:]:
            own = [t["gains_above_base"][name] for t in told if name in t["gains_above_base"]]
            if not own:
                gaps.append("")
            else:
                gaps.append(
                    as_text(tuple(own[0]) if len(own) == 1 else interval([g[0] for g in own]))
                )
        yield f"| `{study.name}` | {len(told)} | {' | '.join(cells)} | {' | '.join(gaps)} |"


def costs_table(found: dict[Study, list[Json]]) -> Iterator[str]:
    """Item evaluations and minutes of workers, of one seed."""
    yield (
        "| experiment | candidates | items: references | search | finalists and holdout "
        "| worker minutes of the search |"
    )
    yield "|---" * 6 + "|"
    for study, rows in found.items():
        if rows:
            costs = [row["costs"] for row in rows]
            items = {n: np.mean([c["items"][n] for c in costs]) for n in costs[0]["items"]}
            minutes = np.mean([c["worker_seconds"]["search"] for c in costs]) / 60
            candidates = np.mean([c["candidates"] for c in costs])
            yield (
                f"| `{study.name}` | {candidates:.0f} | {items['references']:,.0f} | "
                f"{items['search']:,.0f} | {items['final']:,.0f} | {minutes:.1f} |"
            )
