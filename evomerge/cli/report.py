"""What a run found, as a page: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.options import RunFolder
from evomerge.cli.screen import open_console


def report(
    folder: RunFolder,
    out: Annotated[
        Path | None, typer.Option(help="The file to write.", show_default="FOLDER/report.html")
    ] = None,
) -> None:
    """Write one HTML file that shows and explains a run; it needs nothing else, and no network.

    It is made from the run's folder alone: no model is opened, and a run that is not finished, or
    goes on, has a report of what there is. `evomerge run` writes it when it has finished.
    """
    from evomerge.results.report import write_report

    open_console().print(f"Report, for a browser: {write_report(folder, out)}")
