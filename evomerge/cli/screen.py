"""Where verbs print: results on standard output, progress beside them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from evomerge.results.adapter_export import AdapterReport
    from evomerge.terminal import TerminalView


def open_console() -> Console:
    """Standard output; lines are wrapped for people only."""
    from rich.console import Console

    # No markup: names and reasons come from models and tasks, and may hold brackets.
    return Console(soft_wrap=not sys.stdout.isatty(), highlight=False, markup=False)


def progress_view() -> TerminalView:
    """Progress on standard error, so that what is printed can be piped."""
    from rich.console import Console

    from evomerge.terminal import TerminalView

    return TerminalView(Console(stderr=True, soft_wrap=not sys.stderr.isatty(), highlight=False))


def print_adapter(report: AdapterReport) -> None:
    """Where an adapter was written, and what it lost."""
    console = open_console()
    console.print(f"wrote {report.folder}")
    for line in report.lines:
        console.print(line)
