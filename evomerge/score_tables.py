"""What the command line prints of scores: tables, and a summary in words; without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from evomerge.wording import in_short

Signs = Mapping[str, int]  # objective -> -1 where it is to be small; everything inside is maximised

MAX_FRONT_ROWS = 8
MAX_COLUMN = 18  # characters of an objective's name


def front_table(rows: Sequence[Mapping[str, Any]], signs: Signs | None = None) -> Table:
    """The rows of the front, each objective on the holdout; sorted by the first."""
    signs = signs or {}
    names = list(rows[0]["holdout"])
    title = "On the holdout, ± one standard error"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("candidate")
    for name in names:
        is_cost = rows[0]["holdout"][name]["num_items"] == 0
        head = _head(name, signs.get(name, 1), is_cost=is_cost)
        table.add_column(head, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: -row["holdout"][names[0]]["value"]):
        cells = (_cell(row["holdout"][name], signs.get(name, 1)) for name in names)
        table.add_row(_name(row), *cells)
    return table


def estimates_table(rows: Sequence[Mapping[str, Any]], limit: int = 12) -> Table:
    """The best candidates by another estimator, beside what the run had thought of them."""
    title = "By the estimator, ± one standard error; recorded in brackets"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("candidate")
    for name in rows[0]["score"]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows[:limit]:
        recorded = row["recorded"]
        cells = [f"{_cell(e)} ({brief(recorded[name])})" for name, e in row["score"].items()]
        table.add_row(str(row["candidate"]), *cells)
    if len(rows) > limit:
        table.caption = f"and {len(rows) - limit} more: --json"
    return table


def final_table(final: Mapping[str, Any], signs: Signs | None = None) -> Table:
    """The final table: holdout values with standard errors, and what the search had thought."""
    best, signs = final["best"], signs or {}
    names = list(best["holdout"])
    title = "On the holdout, ± one standard error"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", min_width=14)
    measured = [name for name in names if best["holdout"][name]["num_items"]]
    of_mean = _sign_of_mean(signs, measured)
    heads = [_head(n, signs.get(n, 1), is_cost=n not in measured) for n in names]
    for head in (*heads, *([_head("mean", of_mean)] if len(measured) > 1 else [])):
        table.add_column(head, justify="right", no_wrap=True, max_width=MAX_COLUMN)
    table.add_column("search", justify="right", no_wrap=True)

    def add(label: str, row: Mapping[str, Any], style: str = "") -> None:
        cells = [_cell(row["holdout"][name], signs.get(name, 1)) for name in names]
        if len(measured) > 1:
            cells.append(_cell(row["holdout_mean"], of_mean))
        seen = row.get("told_mean") or row.get("search_mean")
        told = f"{of_mean * seen['value']:.3f}" if seen else ""
        table.add_row(label, *cells, told, style=style)

    for label, row in final["references"].items():
        add(label.replace("task_arithmetic", "arithmetic"), row)
    table.add_section()
    front = [row for row in final["front"] if row["candidate"] != best["candidate"]]
    front.sort(key=lambda row: -row["holdout_mean"]["value"])
    for row in front[:MAX_FRONT_ROWS]:
        add(_name(row), row)
    if len(front) > MAX_FRONT_ROWS:
        table.add_row(f"{len(front) - MAX_FRONT_ROWS} more on the front")
    add(f"best: {_name(best)}", best, style="bold")
    return table


def print_final(console: Console, final: Mapping[str, Any], signs: Signs | None = None) -> None:
    """The final table, the gains, and what they mean in words."""
    console.print(final_table(final, signs))
    if (gains := gains_table(final, signs)) is not None:
        console.print(gains)
    console.print(summary(final, signs), highlight=False)


def gains_table(final: Mapping[str, Any], signs: Signs | None = None) -> Table | None:
    """The best, objective by objective, each beside its own best reference; None for one alone."""
    best, gains = final["best"], final.get("gains", {})  # older runs have none
    if len(gains) < 2 or all(best["holdout"][name]["num_items"] == 1 for name in gains):
        return None
    title = "The best by objective, against the reference that is best there"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("objective", "reference"):
        table.add_column(column)
    for column in ("gain", "95 % interval", "search", "holdout", "curse"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, gain in gains.items():
        holdout, curse = best["holdout"][name]["value"], best.get("winners_curses", {}).get(name)
        sign = (signs or {}).get(name, 1)
        seen = ("", "") if curse is None else (f"{sign * (holdout + curse):.3f}", f"{curse:+.3f}")
        table.add_row(
            _head(name, sign),
            gain["reference"].replace("task_arithmetic", "arithmetic"),
            f"{gain['value']:+.3f}",
            f"[{gain['low']:+.3f}, {gain['high']:+.3f}]",
            seen[0],
            f"{sign * holdout:.3f}",
            seen[1],
        )
    return table


def summary(final: Mapping[str, Any], signs: Signs | None = None) -> str:
    """The gain over the best reference, the winner's curse, and why the search ended, in words."""
    gain, best = final["gain_over_best_reference"], final["best"]
    value, low, high = gain["value"], gain["low"], gain["high"]
    lines = [f"Gain over the best reference ({gain['reference']}): {value:+.3f}"]
    counts = [e["num_items"] for e in best["holdout"].values() if e["num_items"]]
    if len(counts) > 1:
        lines[0] += " on the mean of the objectives"
    if sum(counts) == len(counts):
        lines[0] += ". The fitness is one number: there is no holdout, and no interval."
        return "\n".join([*lines, *_cost_lines(final)])
    lines[0] += f", 95 % paired bootstrap interval [{low:+.3f}, {high:+.3f}]."
    if high < 0:
        lines.append(
            "The search found nothing as good: try a larger budget, another space, or begin with "
            "that reference (`designs`)."
        )
    elif low <= 0:
        lines.append("The interval contains 0: on these items the two cannot be told apart.")
    if "failed_items" in best:
        failed = ", ".join(f"{count} of {task}" for task, count in best["failed_items"].items())
        lines.append(f"Items that the best could not answer, which count as the worst: {failed}.")
    ended = [f"The search ended: {final['ended']}."] if "ended" in final else []
    return "\n".join([*lines, _curse_line(best, signs or {}), *_cost_lines(final), *ended])


def _curse_line(best: Mapping[str, Any], signs: Signs) -> str:
    """How much better the search thought of its choice than the holdout does."""
    if "winners_curse" not in best and "told" in best:
        return "No winner's curse is told of agreement: the holdout compares with other models."
    if "winners_curse" not in best:
        return "The searcher recommended the best without a score of its own: no winner's curse."
    curse, holdout = best["winners_curse"], best["holdout_mean"]["value"]
    measured = [name for name, e in best["holdout"].items() if e["num_items"]]
    sign = _sign_of_mean(signs, measured)
    what = "search minus holdout" if sign > 0 else "how much better the search thought"
    return (
        f"Winner's curse ({what}): {curse:+.3f}; the search had said "
        f"{sign * (holdout + curse):.3f}, the holdout says {sign * holdout:.3f}."
    )


def _cost_lines(final: Mapping[str, Any]) -> list[str]:
    """What the best costs beside the reference that it is compared with."""
    rival = final["gain_over_best_reference"]["reference"]
    lines = []
    for name, found in final["best"]["holdout"].items():
        if not found["num_items"]:
            ours, theirs = -found["value"], -final["references"][rival]["holdout"][name]["value"]
            share = f" ({ours / theirs - 1:+.1%})" if theirs else ""
            lines.append(f"Costs, {name}: {in_short(ours)}; {rival}: {in_short(theirs)}{share}.")
    return lines


def zoo_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """What each expert of a family has learnt: the base and the expert on the expert's holdout."""
    title = "Accuracy on the expert's own holdout, ± one standard error"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("expert")
    for name in ("base", "expert", "items", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for expert, row in rows.items():
        cells = (_cell(row["base"]), _cell(row["expert"]))
        table.add_row(expert, *cells, str(row["expert"]["num_items"]), str(row["seconds"]))
    return table


def brief(estimate: Mapping[str, float]) -> str:
    """An estimate's value alone; a cost as its user counts it, and in short."""
    is_cost = estimate.get("num_items") == 0  # the means of rows have no number
    return in_short(0.0 - estimate["value"]) if is_cost else f"{estimate['value']:.3f}"


def _cell(estimate: Mapping[str, float], sign: int = 1) -> str:
    """sign: -1 for what is measured and is to be small; costs are turned by themselves."""
    if estimate.get("num_items") == 0:
        return brief(estimate)
    return f"{sign * estimate['value']:.3f} ±{estimate['standard_error']:.3f}"


def _head(name: str, sign: int, *, is_cost: bool = False) -> str:
    """An objective's name, with an arrow where less is better."""
    return f"{name} ↓" if sign < 0 or is_cost else name


def _sign_of_mean(signs: Signs, measured: Sequence[str]) -> int:
    """Of the mean of measured objectives: turned where all of them are to be small."""
    return -1 if measured and all(signs.get(name, 1) < 0 for name in measured) else 1


def _name(row: Mapping[str, Any]) -> str:
    return str(row["label"] or f"no. {row['candidate']}")
