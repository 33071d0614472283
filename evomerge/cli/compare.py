"""Runs beside each other: compare."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.options import AsJson
from evomerge.cli.screen import open_console


def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="The folders of runs or sweeps.", show_default=False)
    ],
    by: Annotated[
        str | None,
        typer.Option(
            metavar="ASPECT",
            help="Group runs by searcher, estimator, space or name, whatever else they differ in.",
            show_default="what differs in its seed alone is a group",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw it, as .png, .svg or .html.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Compare runs: at equal budgets, on the holdout, and whether the difference is chance.

    Runs that differ in their seeds alone are one group. Chosen models of single runs are compared
    item by item, groups seed by seed; with several pairs the p-values are Holm's. Runs that go on
    have search curves alone. Runs that were scored by other tasks are refused.
    """
    from evomerge.results.compare import compare as compared
    from evomerge.results.compare_plot import check_form, write_plot

    if plot is not None:
        check_form(plot)
    found = compared(folders, by)
    if plot is not None:
        write_plot(plot, found)
    if as_json:
        print(json.dumps(found, indent=2))
    elif as_csv:
        from evomerge.compare_view import csv_rows

        csv.writer(sys.stdout).writerows(csv_rows(found))
    else:
        from evomerge.compare_view import print_comparison

        console = open_console()
        print_comparison(console, found)
        if plot is not None:
            console.print(f"picture: {plot}")
