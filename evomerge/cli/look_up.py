"""What there is: operators, spaces, and what this machine has (doctor)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from evomerge.cli.inputs import changed_pool, read_experiment_file
from evomerge.cli.options import Address, AllowCode, AsJson, Pool
from evomerge.cli.screen import open_console, progress_view
from evomerge.errors import ConfigurationError, NoWorkersLeft, Problem

if TYPE_CHECKING:
    from evomerge.experiment.doctor import Examined


def doctor(
    experiment: Annotated[
        str | None,
        typer.Argument(help="Also look for its models, and for room for them.", show_default=False),
    ] = None,
    pool: Pool = None,
    address: Address = None,
    allow_code: AllowCode = False,
) -> None:
    """Say what this machine has, or a cluster (--pool ray), and what a run would use of it."""
    from evomerge.documents import Document, parse
    from evomerge.experiment.doctor import examine, examine_cluster, examine_here
    from evomerge.experiment.wire import wire
    from evomerge.pools import PoolConfig

    config, spec = PoolConfig(), None
    if experiment is not None:
        read = read_experiment_file(experiment, allow_code)
        config = read.pool
    config = parse(PoolConfig, Document(changed_pool(config, pool, None, address)))
    if experiment is not None:
        with progress_view() as view:
            spec = wire(read, progress=view.progress).worker
    if config.kind == "ray":
        _print_cluster(examine_cluster(config, spec))
        return
    findings = examine()
    if spec is not None:
        findings["workers"] = examine_here(config, spec)
    _print_findings(findings)


def _print_findings(findings: Mapping[str, str], indent: str = "") -> None:
    for label, value in findings.items():
        told = f"{indent}{label:<16} {value}"
        open_console().print(told, highlight=False, markup=False, soft_wrap=True)


def _print_cluster(nodes: Sequence[Examined]) -> None:
    """Raises NoWorkersLeft where none could work."""
    console = open_console()
    for node in nodes:
        console.print(node.name, highlight=False, markup=False)
        _print_findings(node.findings, "  ")
        for problem in node.problems:
            console.print(f"  problem: {problem}", highlight=False, markup=False, soft_wrap=True)
    total = sum(node.workers for node in nodes)
    if total == 0:
        raise NoWorkersLeft(Problem("pool", "no node of this cluster could work"))
    console.print(f"{total} workers in all", highlight=False)


def operators(
    name: Annotated[
        str | None, typer.Argument(help="One operator, in full.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/operators.md.")
    ] = False,
) -> None:
    """The merge operators: what they do, which models and parameters they take."""
    from evomerge.merging import OPERATORS, reference, unknown
    from evomerge.tables import operators_table, print_operator

    if as_markdown and (as_json or name):
        raise ConfigurationError("--markdown prints all operators, and stands alone")
    if name is not None and name not in OPERATORS:
        raise ConfigurationError(Problem(name, *unknown(name)))
    chosen = list(OPERATORS.values()) if name is None else [OPERATORS[name]]
    if as_markdown:
        print(reference.markdown(), end="")
    elif as_json:
        described = [reference.facts(operator) for operator in chosen]
        print(json.dumps(described if name is None else described[0], indent=2))
    elif name is None:
        open_console().print(operators_table())
    else:
        print_operator(open_console(), chosen[0])


def searchers(
    name: Annotated[
        str | None, typer.Argument(help="One searcher, in full.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/searcher_options.md.")
    ] = False,
) -> None:
    """The searchers: what they can search, and their options."""
    from evomerge.errors import nearest
    from evomerge.searchers import SEARCHERS, reference
    from evomerge.tables import print_searcher, searchers_table

    if as_markdown and (as_json or name):
        raise ConfigurationError("--markdown prints all searchers, and stands alone")
    if name is not None and name not in SEARCHERS:
        raise ConfigurationError(Problem(name, "no such searcher", nearest(name, SEARCHERS)))
    if as_markdown:
        print(reference.markdown(), end="")
    elif as_json:
        described = [reference.facts(kind) for kind in ([name] if name else SEARCHERS)]
        print(json.dumps(described if name is None else described[0], indent=2))
    elif name is None:
        open_console().print(searchers_table())
    else:
        print_searcher(open_console(), name)


def spaces(
    name: Annotated[
        str | None, typer.Argument(help="One of them: its file, as it is.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The search spaces of the catalogue: what they search, and how many genes that makes."""
    from evomerge.errors import nearest
    from evomerge.search_spaces import catalogue
    from evomerge.tables import kinds_table, spaces_table

    found = {entry.name: entry for entry in catalogue.entries()}
    if name is not None and name not in found:
        raise ConfigurationError(Problem(name, "no such search space", nearest(name, found)))
    if as_json:
        chosen = found.values() if name is None else [found[name]]
        described = [
            {
                "name": e.name,
                "kind": e.kind,
                "text": e.text,
                "shapes": e.shapes,
                "path": str(e.path),
            }
            for e in chosen
        ]
        print(json.dumps(described if name is None else described[0], indent=2))
    elif name is None:
        open_console().print(kinds_table())
        open_console().print(spaces_table(found.values()))
    else:
        print(found[name].path.read_text(encoding="utf-8"), end="")
