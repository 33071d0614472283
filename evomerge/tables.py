"""What the command line prints when something is done: tables, and a summary in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from evomerge.merging import OPERATORS, reference
from evomerge.merging.costs import in_short
from evomerge.merging.operator import Operator
from evomerge.search_spaces import SPACES
from evomerge.search_spaces.catalogue import Entry
from evomerge.searchers import SEARCHERS
from evomerge.searchers import reference as searchers

if TYPE_CHECKING:
    from evomerge.checkpoints.anatomy import Anatomy
    from evomerge.checkpoints.relatedness import Relatedness

MAX_FRONT_ROWS = 8


def front_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of the front, each objective on the holdout; sorted by the first."""
    names = list(rows[0]["holdout"])
    title = "On the holdout, ± one standard error"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("candidate")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: -row["holdout"][names[0]]["value"]):
        table.add_row(_name(row), *(_cell(row["holdout"][name]) for name in names))
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


def final_table(final: Mapping[str, Any]) -> Table:
    """The final table: holdout values with standard errors, and what the search had thought."""
    best = final["best"]
    names = list(best["holdout"])
    title = "On the holdout, ± one standard error"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model")
    measured = [name for name in names if best["holdout"][name]["num_items"]]
    for name in (*names, *(["mean"] if len(measured) > 1 else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("search", justify="right", no_wrap=True)

    def add(label: str, row: Mapping[str, Any], style: str = "") -> None:
        cells = [_cell(row["holdout"][name]) for name in names]
        if len(measured) > 1:
            cells.append(_cell(row["holdout_mean"]))
        seen = row.get("told_mean") or row.get("search_mean")
        table.add_row(label, *cells, f"{seen['value']:.3f}" if seen else "", style=style)

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


def print_final(console: Console, final: Mapping[str, Any]) -> None:
    """The final table, the gains, and what they mean in words."""
    console.print(final_table(final))
    if (gains := gains_table(final)) is not None:
        console.print(gains)
    console.print(summary(final), highlight=False)


def gains_table(final: Mapping[str, Any]) -> Table | None:
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
        seen = ("", "") if curse is None else (f"{holdout + curse:.3f}", f"{curse:+.3f}")
        table.add_row(
            name,
            gain["reference"].replace("task_arithmetic", "arithmetic"),
            f"{gain['value']:+.3f}",
            f"[{gain['low']:+.3f}, {gain['high']:+.3f}]",
            seen[0],
            f"{holdout:.3f}",
            seen[1],
        )
    return table


def summary(final: Mapping[str, Any]) -> str:
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
        lines.append("The search found nothing as good: try a larger budget or another space.")
    elif low <= 0:
        lines.append("The interval contains 0: on these items the two cannot be told apart.")
    if "failed_items" in best:
        failed = ", ".join(f"{count} of {task}" for task, count in best["failed_items"].items())
        lines.append(f"Items that the best could not answer, which count as the worst: {failed}.")
    ended = [f"The search ended: {final['ended']}."] if "ended" in final else []
    return "\n".join([*lines, _curse_line(best), *_cost_lines(final), *ended])


def _curse_line(best: Mapping[str, Any]) -> str:
    """How much better the search thought of its choice than the holdout does."""
    if "winners_curse" not in best and "told" in best:
        return "No winner's curse is told of agreement: the holdout compares with other models."
    if "winners_curse" not in best:
        return "The searcher recommended the best without a score of its own: no winner's curse."
    curse, holdout = best["winners_curse"], best["holdout_mean"]["value"]
    return (
        f"Winner's curse (search minus holdout): {curse:+.3f}; the search had said "
        f"{holdout + curse:.3f}, the holdout says {holdout:.3f}."
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
    """An estimate's value alone; a cost as a large number in short."""
    is_cost = estimate.get("num_items") == 0  # the means of rows have no number
    return in_short(estimate["value"]) if is_cost else f"{estimate['value']:.3f}"


def _cell(estimate: Mapping[str, float]) -> str:
    if estimate.get("num_items") == 0:
        return brief(estimate)
    return f"{estimate['value']:.3f} ±{estimate['standard_error']:.3f}"


def _name(row: Mapping[str, Any]) -> str:
    return str(row["label"] or f"no. {row['candidate']}")


def operators_table() -> Table:
    """All merge operators, from their declarations."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), leading=1)
    table.add_column("operator", no_wrap=True)
    table.add_column("what it does, models, parameters, source", overflow="fold")
    for name, operator in OPERATORS.items():
        lines = [operator.summary, f"models: {reference.models_of(operator)}"]
        if operator.needs != "nothing":
            lines[-1] += f", and {operator.needs}"
        lines += [", ".join(map(reference.in_short, operator.parameters)), operator.paper]
        table.add_row(name, "\n".join(filter(None, lines)))
    return table


def print_operator(console: Console, operator: Operator) -> None:
    """One operator in full."""
    console.print(f"{operator.name}: {operator.summary}")
    console.print(f"models: {reference.models_of(operator)}")
    console.print(f"needs:  {operator.needs} beside the weights")
    console.print(f"source: {operator.paper}")
    if operator.parameters:
        table = Table("parameter", "default", "values", "meaning", box=box.SIMPLE_HEAD)
        for row in reference.parameter_rows(operator):
            table.add_row(*row)
        console.print(table)
    if operator.notes:
        console.print(operator.notes)


def searchers_table() -> Table:
    """All searchers, from their declarations."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("searcher", no_wrap=True)
    for column in ("what it is", "spaces", "objectives"):
        table.add_column(column, overflow="fold")
    for kind, searcher in SEARCHERS.items():
        told = searchers.space_of(kind), searchers.objectives_of(kind)
        table.add_row(kind, searcher.summary, *told)
    return table


def print_searcher(console: Console, kind: str) -> None:
    """One searcher in full."""
    console.print(f"{kind}: {SEARCHERS[kind].summary}", highlight=False)
    console.print(f"spaces: {searchers.space_of(kind)}", highlight=False)
    console.print(f"objectives: {searchers.objectives_of(kind)}\n", highlight=False)
    console.print(searchers.about(kind), highlight=False, markup=False)
    rows = list(searchers.option_rows(kind))
    if rows:
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("option", no_wrap=True)
        for column in ("default", "values", "meaning"):
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def kinds_table() -> Table:
    """The kinds of search spaces."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("kind", no_wrap=True)
    table.add_column("what it searches")
    for name, kind in SPACES.items():
        table.add_row(name, kind.summary)
    return table


def spaces_table(entries: Iterable[Entry]) -> Table:
    """The catalogue of search spaces, each with the genes that it has for some shape."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("file", "kind"):
        table.add_column(column, no_wrap=True)
    table.add_column("genes (experts x layers)", justify="right")
    table.add_column("what")
    for entry in entries:
        shapes = [f"{genes:,} ({experts} x {layers})" for experts, layers, genes in entry.shapes]
        table.add_row(entry.name, entry.kind, "\n".join(shapes) or "any", entry.summary)
    return table


def anatomy_table(anatomy: Anatomy) -> Table:
    """Tensors and parameters by layer and component."""
    table = Table("layers", "component", "tensors", "parameters")
    for layers, component, tensors, parameters in anatomy.table():
        table.add_row(layers, component, str(tensors), f"{parameters:,}")
    return table


def relatedness_table(related: Relatedness) -> Table:
    """How near each expert is to the base, and its task vector to the other experts' ones."""
    dtype = str(related.dtype).removeprefix("torch.")
    table = Table("expert", "cosine with base", "task vector / base")
    table.add_column("mean cosine of task vectors", justify="right")
    table.add_column(f"survives {dtype} at weight {related.weight:.2g}", justify="right")
    for name, relation in related.relations.items():
        others = [cosine for pair, cosine in related.delta_cosines.items() if name in pair]
        table.add_row(
            name,
            f"{relation.cosine:.4f}",
            f"{relation.relative_norm:.4f}",
            f"{sum(others) / len(others):.3f}" if others else "-",
            f"{relation.survives:.1%}",
        )
    return table
