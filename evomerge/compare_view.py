"""What the command line prints of a comparison; without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from evomerge.sweep_view import print_table
from evomerge.wording import in_short

Json = Mapping[str, Any]

MAX_DIFFERENCES = 16  # rows; the rest is in the JSON
LONGEST = 40  # characters of a value
CSV_HEADER = (
    "level", "name", "group", "seed", "state", "candidates", "item_evaluations",
    "search_item_evaluations", "seconds", "search", "search_low", "search_high",
    "held_out", "held_out_low", "held_out_high", "hypervolume",
)  # fmt: skip


def print_comparison(console: Console, found: Json) -> None:
    """Results, costs, what differs, and in words what can be told and what cannot."""
    tables = [results_table(found)]
    tables += [differences_table(found)] if found["differs"] else []
    tables += [pairs_table(found)] if len(found["pairs"]) > 1 else []
    for table in tables:
        print_table(console, table)
    for notice in found["notices"]:
        console.print(f"note: {notice}.")
    for line in found["words"]:
        console.print(line)
    console.print(
        "In brackets 95 % intervals: of the items for one run, of the seeds (Student's t) for "
        "several. `search` is the best so far at the smallest run's budget; it is flattered, as "
        "the best of many is."
    )


def results_table(found: Json) -> Table:
    """A row for each group: what it found, and what it cost."""
    budget = "" if found["budget"] is None else f" (at {in_short(found['budget'])} items)"
    title = f"{found['score']['name']}, {found['score']['better']} is better"
    table = _table(title)
    table.add_column("", overflow="fold")
    groups = found["groups"]
    has_fronts = any(g["hypervolume"] for g in groups)
    columns = ["runs", "held out", f"search{budget}"]
    columns += ["hypervolume"] if has_fronts else []
    for column in (*columns, "items in all", "candidates", "seconds"):
        table.add_column(column, justify="right", overflow="fold")
    for group in groups:
        cells = [_count(group), _interval(group["held_out"], "mean"), _interval(group["search"])]
        cells += [_interval(group["hypervolume"], "mean")] if has_fronts else []
        costs = [group["costs"][key]["mean"] for key in ("item_evaluations", "candidates")]
        seconds = group["costs"]["seconds"]["mean"]
        table.add_row(group["name"], *cells, *map(in_short, costs), f"{seconds:.0f}")
    return table


def differences_table(found: Json) -> Table:
    """The experiment's keys that differ; models by their content."""
    table = _table("What differs between the experiments")
    table.add_column("key", overflow="fold")
    names = [group["name"] for group in found["groups"]]
    for name in names:
        table.add_column(name, overflow="fold")
    rows = found["differs"]
    for row in rows[:MAX_DIFFERENCES]:
        table.add_row(row["key"], *(_values(row["values"][name]) for name in names))
    if len(rows) > MAX_DIFFERENCES:
        table.caption = f"and {len(rows) - MAX_DIFFERENCES} more: --json"
    return table


def pairs_table(found: Json) -> Table:
    """Every pair, with its p-value alone and among all pairs (Holm)."""
    table = _table("First less second, on the holdout")
    for column in ("first", "second"):
        table.add_column(column, overflow="fold")
    for column in ("gap", "p", "p (Holm)", "by"):
        table.add_column(column, overflow="fold", justify="left" if column == "by" else "right")
    for pair in found["pairs"]:
        chances = [_chance(pair["p"]), _chance(pair["p_holm"])]
        method = f"{pair['method']} ({pair['count']})"
        table.add_row(pair["first"], pair["second"], _interval(pair, sign="+"), *chances, method)
    return table


def csv_rows(found: Json) -> Iterator[Sequence[Any]]:
    """Header, a row for each run, and one for each group, whose numbers are means."""
    yield CSV_HEADER
    for run in found["runs"]:
        search, held = run["search"] or {}, run["held_out"] or {}
        yield [
            "run", run["name"], run["group"], run["seed"], run["state"], run["candidates"],
            run["item_evaluations"], run["search_item_evaluations"], run["seconds"],
            *(search.get(key) for key in ("value", "low", "high")),
            *(held.get(key) for key in ("value", "low", "high")),
            run["hypervolume"],
        ]  # fmt: skip
    for group in found["groups"]:
        search, held, costs = group["search"] or {}, group["held_out"] or {}, group["costs"]
        yield [
            "group", group["name"], group["name"], " ".join(map(str, group["seeds"])),
            _count(group),
            *(costs[key]["mean"] for key in ("candidates", "item_evaluations")),
            *(costs[key]["mean"] for key in ("search_item_evaluations", "seconds")),
            *(search.get(key) for key in ("value", "low", "high")),
            *(held.get(key) for key in ("mean", "low", "high")),
            (group["hypervolume"] or {}).get("mean"),
        ]  # fmt: skip


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _count(group: Json) -> str:
    return f"{group['finished']}/{len(group['runs'])}"


def _interval(row: Json | None, key: str = "value", sign: str = "") -> str:
    if row is None:
        return ""
    text = f"{row[key]:{sign}.3f}"
    if row["low"] is None:
        return text
    return f"{text}\n[{row['low']:{sign}.3f}, {row['high']:{sign}.3f}]"


def _chance(p: float | None) -> str:
    return "" if p is None else f"{p:.2g}"


def _values(values: Sequence[Any]) -> str:
    texts = [_text(value) for value in values]
    whole = ", ".join(texts)
    return whole if len(whole) <= LONGEST else f"{whole[: LONGEST - 1]}…"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):  # an objective
        parts = [*value.get("tasks", ()), *(k for k in ("minimize",) if value.get(k))]
        return " ".join(parts) or f"cost {value.get('cost')}"
    return "-" if value is None else str(value)
