"""What the command line prints of what there is: operators, searchers, spaces, models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from evomerge.merging import OPERATORS, POST_STEPS, reference
from evomerge.merging.operator import Operator
from evomerge.search_spaces import SPACES
from evomerge.search_spaces.catalogue import Entry
from evomerge.searchers import SEARCHERS
from evomerge.searchers import reference as searchers

if TYPE_CHECKING:
    from evomerge.checkpoints.anatomy import Anatomy
    from evomerge.checkpoints.relatedness import Relatedness


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
    for name, step in POST_STEPS.items():
        lines = [step.summary, f"after any operator, as in: ties | {name}"]
        lines += [", ".join(map(reference.in_short, step.parameters)), step.paper]
        table.add_row(f"... | {name}", "\n".join(lines))
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
        mean = related.mean_delta_cosine_of(name)
        table.add_row(
            name,
            f"{relation.cosine:.4f}",
            f"{relation.relative_norm:.4f}",
            "-" if mean is None else f"{mean:.3f}",
            f"{relation.survives:.1%}",
        )
    return table
