"""Looking at a run that goes on, from its folder alone: status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evomerge.cli.options import AsJson, RunFolder
from evomerge.cli.screen import open_console

if TYPE_CHECKING:
    from rich.console import Console


def status(
    folder: RunFolder,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on showing it until it ends. Ctrl-C leaves.")
    ] = False,
    every: Annotated[
        float, typer.Option(min=0.2, help="Seconds between two looks of --watch.")
    ] = 2.0,
    as_json: AsJson = False,
) -> None:
    """How far a run is, what it has found, and whether the search was worth it.

    Shows the budget, the best candidate with its 95 % interval beside the best reference, and while
    somebody works on the run: workers, rates, and the time that is left. The folder is enough: the
    driver may run on another machine that shares the disk.
    """
    from evomerge.results.watch import RunWatch
    from evomerge.status_view import watched

    console = open_console()
    with closing(RunWatch(folder)) as run:
        facts = watched(console, run.read, every) if watch and not as_json else run.read()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    _print(console, facts, folder)


def _print(console: Console, facts: Mapping[str, Any], folder: Path) -> None:
    from evomerge.status_view import in_full

    for line in in_full(facts):
        console.print(line)
    if facts["state"] == "finished":
        from evomerge.score_tables import print_final

        print_final(console, facts["final"], facts["objectives"])
    elif facts["state"] == "stopped":
        console.print(f"go on with: evomerge resume {folder}")
