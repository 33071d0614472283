"""Looking at a run in a browser: dashboard."""

from __future__ import annotations

import os
import signal
import sys
import time
import webbrowser
from typing import Annotated

import typer

from evomerge.cli.options import RunFolder
from evomerge.cli.screen import open_console
from evomerge.errors import Interrupted
from evomerge.signals import signals

LOCAL = ("127.0.0.1", "localhost", "::1")


def dashboard(
    folder: RunFolder,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    host: Annotated[
        str, typer.Option(help="Whose requests are answered; by default this machine's alone.")
    ] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="Open it in a browser.")] = True,
    every: Annotated[
        float, typer.Option(min=0.2, help="Seconds between two looks at the run.")
    ] = 3.0,
) -> None:
    """Show a run in optuna-dashboard, and go on with it while the run goes. Ctrl-C leaves.

    It reads the run's ledger and keeps a study of it, optuna.db in the run's folder, up to date;
    the run itself has no part in that.
    """
    from evomerge.results.mirror import Mirror
    from evomerge.results.serving import Shown, check_installed, served

    check_installed()
    console = open_console()
    mirror = Mirror(folder)
    try:
        with signals():
            mirror.update()
            while not mirror.path.exists():  # nothing was told so far
                time.sleep(every)
                mirror.update()
            shown = Shown(mirror)
            with served(shown, host, port) as bound:
                address = f"http://{f'[{host}]' if ':' in host else host}:{bound}/"
                console.print(f"{folder} is shown at {address} (Ctrl-C leaves)")
                if host not in LOCAL:
                    console.print("whoever can reach this machine can read the run there")
                sys.stdout.flush()
                if browser and _has_browser():
                    webbrowser.open(address)
                while True:
                    time.sleep(every)
                    mirror.update()
                    shown.refresh()
    except Interrupted as interrupted:
        if interrupted.exit_code != 128 + signal.SIGINT:
            raise


def _has_browser() -> bool:
    """Whether somebody sits there: a browser in a terminal would take it away from us."""
    has_screen = sys.platform == "darwin" or bool(
        {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    )
    return has_screen and sys.stdout.isatty()
