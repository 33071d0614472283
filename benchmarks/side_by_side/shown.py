"""The results as tables."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from accounting import Account, mean_of, paired

Row = dict[str, Any]
HEADS = (
    "",
    "candidates",
    "a minute",
    "outside the forward, s a candidate",
    "ours = 1",
    "in the search alone",
    "ours = 1",
    "forward, s a candidate",
    "seconds",
    "processor",
    "held-out mean",
    "evomerge's gain",
    "evomerge_full's gain",
)

# What a page shows of them.
SHOWN = (
    "",
    "a minute",
    "outside the forward, s a candidate",
    "ours = 1",
    "forward, s a candidate",
    "held-out mean",
    "evomerge's gain",
    "evomerge_full's gain",
)


def of_way(rows: Sequence[Row], way: str) -> dict[int, Row]:
    """Seed -> its row."""
    return {row["seed"]: row for row in rows if row["way"] == way}


def gain(first: dict[int, Row], second: dict[int, Row]) -> str:
    """Of the first over the second, on the seeds that both have."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return ""
    value, low, high = paired([(first[s]["holdout"], second[s]["holdout"]) for s in seeds])
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def lines_of(rows: Sequence[Row], ways: Sequence[str]) -> list[list[str]]:
    """A line for each way of one case: its searches together."""
    spent = {way: total_of(rows, way, "account") for way in ways if of_way(rows, way)}
    within = {way: total_of(rows, way, "search") for way in spent}
    ours = {way: of_way(rows, way) for way in ("evomerge", "evomerge_full")}
    lines = []
    for way, account in spent.items():
        found = of_way(rows, way)
        mean = float(np.mean([mean_of(row["holdout"]) for row in found.values()]))
        lines.append(
            [
                way,
                str(account.num_candidates),
                f"{account.per_minute:.1f}",
                f"{account.outside_each_s:.3f}",
                ratio(account.outside_each_s, spent.get("evomerge_full")),
                f"{within[way].outside_each_s:.3f}",
                ratio(within[way].outside_each_s, within.get("evomerge_full")),
                f"{account.forward_each_s:.3f}",
                f"{account.seconds:.0f}",
                f"{account.share_of_processor:.2f}",
                f"{mean:.3f}",
                *("" if way == own else gain(ours[own], found) for own in ours),
            ]
        )
    return lines


def total_of(rows: Sequence[Row], way: str, key: str) -> Account:
    """All searches of a way together; other tools have nothing but their search."""
    found = of_way(rows, way).values()
    accounts = [Account.of_json(row[key if key in row else "account"]) for row in found]
    return functools.reduce(operator.add, accounts)


def ratio(seconds: float, ours: Account | None) -> str:
    """To evomerge with the same estimator, as candidates of a race answer fewer items."""
    return "" if ours is None else f"{seconds / ours.outside_each_s:.1f}"


def cases_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["case"] for row in rows))


def plain(rows: Sequence[Row], ways: Sequence[str]) -> str:
    """All figures, and each seed's scores."""
    texts = []
    for case in cases_of(rows):
        chosen = [row for row in rows if row["case"] == case]
        setting = {k: chosen[0][k] for k in ("seconds", "clock", "dtype")}
        texts.append(f"{case}: {setting}, {chosen[0]['versions']}")
        texts += dict.fromkeys(row["machine"] for row in chosen if "machine" in row)
        table = [list(HEADS), *lines_of(chosen, ways)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        texts += [
            "  ".join(t.rjust(w) for t, w in zip(line, widths, strict=True)) for line in table
        ]
        texts.append("held-out means of each seed, and evomerge's gain:")
        ours = of_way(chosen, "evomerge")
        for way in ways:
            for seed, row in sorted(of_way(chosen, way).items()):
                own = {seed: ours[seed]} if seed in ours else {}
                parts = {t: round(float(np.mean(v)), 3) for t, v in row["holdout"].items()}
                told = "" if way == "evomerge" else gain(own, {seed: row})
                texts.append(f"  {way:14} {seed} {mean_of(row['holdout']):.3f} {parts} {told}")
        texts.append("")
    return "\n".join(texts) + "\n"


def markdown(rows: Sequence[Row], ways: Sequence[str]) -> str:
    """The tables for a page."""
    texts = []
    for case in cases_of(rows):
        lines = [list(HEADS), *lines_of([row for row in rows if row["case"] == case], ways)]
        columns = [HEADS.index(head) for head in SHOWN]  # of two alike the first
        shown = ["| " + " | ".join(line[k] for k in columns) + " |" for line in lines]
        shown.insert(1, "|---" * len(SHOWN) + "|")
        texts.append(f"**{case}**\n\n" + "\n".join(shown) + "\n")
    return "\n".join(texts)
