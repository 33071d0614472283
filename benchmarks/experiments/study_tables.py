"""The outcomes as Markdown and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from one import fingerprint
from scipy import stats
from studies import SMOLLM2, STUDIES, Study, run_folder

from evomerge.files import write_text

Json = dict[str, Any]
Found = Mapping[str, Sequence[Json]]  # study -> its outcomes, seed by seed
KEPT = Path(__file__).parents[1] / "results" / "experiments"
FRONT = "smollm2_two_of_five_map"  # the study whose front is drawn
MARGIN = 0.02  # what may be lost where a claim is that little is
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
    """Print the tables; or keep the outcomes, and write tables and pictures into a page."""
    found = {study.name: outcomes(study, out) for study in STUDIES}
    parts = {name: "\n".join(make(found)) for name, make in TABLES.items()}
    if page is None:
        print("\n\n".join(parts.values()))
        return 0
    keep(found)
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        before, begun, rest = text.partition(BEGIN.format(name))
        _, ended, after = rest.partition(END.format(name))
        if not (begun and ended):
            raise SystemExit(f"{page}: expected the marks {BEGIN.format(name)}, {END.format(name)}")
        text = f"{before}{begun}\n{part}\n{ended}{after}"
    write_text(page, text)
    from pictures import draw_front, draw_gains

    draw_gains(page.parent / "experiments_gains.png", found)
    if rows := found.get(FRONT):
        draw_front(page.parent / "experiments_front.png", rows[0])
    return 0


def outcomes(study: Study, out: Path) -> list[Json]:
    """Of the seeds that are finished: of the runs at hand, else as they were kept.

    What was measured before a study's files changed is left out.
    """
    kept = KEPT / f"{study.name}.json"
    rows: dict[int, Json] = {}
    if kept.exists():
        rows = {row["seed"]: row for row in json.loads(kept.read_text(encoding="utf-8"))}
    for seed in study.seeds:
        file = run_folder(out, study.name, seed) / "outcome.json"
        if file.exists():
            rows[seed] = json.loads(file.read_text(encoding="utf-8"))
    return [
        rows[seed]
        for seed in sorted(rows)
        if rows[seed].get("experiment") == fingerprint(study, seed, out)
    ]


def keep(found: Found) -> None:
    """Write the outcomes where they are read without the runs."""
    KEPT.mkdir(parents=True, exist_ok=True)
    for name, rows in found.items():
        if rows:
            short = json.dumps(rounded(rows), separators=(",", ":"))
            write_text(KEPT / f"{name}.json", short.replace('{"scores"', '\n{"scores"') + "\n")


def rounded(value: Any) -> Any:
    """Numbers with five decimals: a hundredth of a standard error."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: rounded(own) for key, own in value.items()}
    return [rounded(own) for own in value] if isinstance(value, list) else value


def shown_name(name: str) -> str:
    """A study's name with where it was measured."""
    return name if name.startswith(SMOLLM2) else f"tiny: {name}"


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of the seeds' values, with a 95 % interval by Student's t."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def gap(rows: Sequence[Json], name: str) -> tuple[float, float, float] | None:
    """What was found minus a rival: over items of one seed, or over seeds."""
    return over_seeds([row["gains"][name]["gain"] for row in rows if name in row["gains"]])


def over_seeds(told: Sequence[Sequence[float]]) -> tuple[float, float, float] | None:
    """The interval of one seed as it is, or that of several seeds' values; None of no seed."""
    if len(told) == 1:
        mean, low, high = told[0]
        return mean, low, high
    return interval([value for value, _, _ in told]) if told else None


def as_text(told: tuple[float, float, float] | None) -> str:
    """A gap with its interval; bold where the interval leaves out zero."""
    if told is None:
        return ""
    text = f"{told[0]:+.3f} [{told[1]:+.3f}, {told[2]:+.3f}]"
    return f"**{text}**" if told[1] > 0 or told[2] < 0 else text


def gains_table(found: Found) -> Iterator[str]:
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
            yield f"| `{study}` | {len(rows)} | {own} | {' | '.join(cells)} |"


def claim_gap(study: Study, found: Found) -> tuple[float, float, float] | None:
    """What was found minus what the study's claim is about."""
    rows = found[study.name]
    kind, _, name = study.against.partition(" ")
    if kind == "front:":
        return over_seeds([row["fronts"]["gains_above_base"][name] for row in rows])
    if kind != "study":
        return gap(rows, study.against)
    pairs = [
        (row["scores"]["found"], other["scores"]["found"])
        for row in rows
        for other in found[name]
        if row["seed"] == other["seed"]
    ]
    gains = [own["mean"] - other["mean"] for own, other in pairs]
    if len(pairs) == 1:  # two runs on the same items, as if they were independent: too wide
        half = 1.96 * math.hypot(*(one["standard_error"] for one in pairs[0]))
        return gains[0], gains[0] - half, gains[0] + half
    return interval(gains) if pairs else None


def verdict(study: Study, told: tuple[float, float, float]) -> str:
    """In words; the margin of what is to be kept is .02."""
    if not any(told):
        return "the same model"
    least = -MARGIN if study.keeps else 0.0
    if told[1] > least:
        return "holds" + (f", within {MARGIN:.2f}" if study.keeps else "")
    if told[2] < least:
        return "does not hold" + ("" if study.keeps else ": the reverse")
    return "not told apart"


def claims_table(found: Found) -> Iterator[str]:
    """What the papers claim, and what was found here."""
    yield "| experiment | claim | seeds | minus | difference | here |"
    yield "|---" * 6 + "|"
    for study in STUDIES:
        if found[study.name] and (told := claim_gap(study, found)) is not None:
            seeds, rival = len(found[study.name]), study.against.replace("study ", "found by ")
            text = as_text(told)
            yield (
                f"| `{study.name}` | {study.claim} | {seeds} | {rival} | {text} | "
                f"{verdict(study, told)} |"
            )


def scores_table(found: Found) -> Iterator[str]:
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
        yield f"| `{study}` | {' | '.join(cells)} | {own:.3f} |"


def fronts_table(found: Found) -> Iterator[str]:
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
        above = [t["gains_above_base"] for t in told]
        cells = [
            f"{np.mean([t[name]['above_base'] for t in told if name in t]):.4f}"
            if any(name in t for t in told)
            else ""
            for name in names
        ]
        gaps = [
            as_text(over_seeds([gains[name] for gains in above if name in gains]))
            for name in names[1:]
        ]
        yield f"| `{study}` | {len(told)} | {' | '.join(cells)} | {' | '.join(gaps)} |"


def costs_table(found: Found) -> Iterator[str]:
    """Item evaluations and minutes of workers, of one seed."""
    yield (
        "| experiment | candidates | items: references | search | finalists and holdout "
        "| worker minutes of the search | random search: candidates | items |"
    )
    yield "|---" * 8 + "|"
    for study, rows in found.items():
        if rows:
            costs = [row["costs"] for row in rows]
            items = {n: np.mean([c["items"][n] for c in costs]) for n in costs[0]["items"]}
            minutes = np.mean([c["worker_seconds"]["search"] for c in costs]) / 60
            twins = [row["random search"]["costs"] for row in rows if "random search" in row]
            cells = [
                f"{np.mean([c['candidates'] for c in costs]):.0f}",
                *(f"{items[name]:,.0f}" for name in ("references", "search", "final")),
                f"{minutes:.1f}",
                f"{np.mean([c['candidates'] for c in twins]):.0f}" if twins else "",
                f"{np.mean([c['items']['search'] for c in twins]):,.0f}" if twins else "",
            ]
            yield f"| `{study}` | {' | '.join(cells)} |"


def pruned_table(found: Found) -> Iterator[str]:
    """What is left with fewer layers, beside the whole merge and cuts by rule."""
    names = ("cut in the middle", "cut before the last layer", "random search")
    if not any(rows and names[0] in rows[0]["gains"] for rows in found.values()):
        return
    yield (
        "| experiment | the best of the grid, whole | found | kept | "
        + " | ".join(f"minus {name}" for name in names)
        + " |"
    )
    yield "|---" * 7 + "|"
    for study, rows in found.items():
        if not rows or names[0] not in rows[0]["gains"]:
            continue
        own = np.mean([row["scores"]["found"]["mean"] for row in rows])
        grid = "best of the grid, in hindsight"
        whole = np.mean([r["scores"][r["gains"][grid]["rival"]]["mean"] for r in rows])
        cells = " | ".join(as_text(gap(rows, name)) for name in names)
        yield f"| `{study}` | {whole:.3f} | {own:.3f} | {own / whole:.0%} | {cells} |"


def missing(found: Found) -> Iterator[str]:
    """What has no outcome yet."""
    names = [f"`{study}`" for study, rows in found.items() if not rows]
    if names:
        count = f"{len(names)} of {len(found)}"
        yield f"Ready to run, and not measured yet, {count}: {', '.join(names)}."


TABLES: dict[str, Callable[[Found], Iterator[str]]] = {
    "claims": claims_table,
    "gains": gains_table,
    "scores": scores_table,
    "fronts": fronts_table,
    "pruned": pruned_table,
    "costs": costs_table,
    "missing": missing,
}
