"""Several searchers and several seeds from one file: sweep."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.inputs import changed, with_code
from evomerge.cli.options import Address, AllowCode, Pool, Workers
from evomerge.cli.screen import open_console
from evomerge.errors import Interrupted


def sweep(
    file: Annotated[
        str,
        typer.Argument(
            help="A sweep's file, or a name in the catalogue, such as quickstart.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The folder of all its runs. Default: runs/NAME.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Runs that go on at once; they share the workers evenly.")
    ] = 1,
    workers: Workers = None,
    pool: Pool = None,
    address: Address = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Run nothing: print the table of what is there.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Run nothing: print table and runs as JSON.")
    ] = False,
    allow_code: AllowCode = False,
) -> None:
    """Run an experiment with several searchers and seeds, and compare them.

    The file names an experiment, searchers and seeds (docs/runs.md). Each run is in a folder of its
    own, runs/NAME/SEARCHER-SEED, for status, export and resume. The same command goes on with what
    was stopped: finished runs cost nothing. One that fails stops no other; the exit code is then 1.
    At the end: what was held out, over seeds, with intervals, and each searcher beside the first.
    """
    from evomerge.experiment.paths import find_in_catalogue
    from evomerge.experiment.sweep import fair_share, folders, read_sweep
    from evomerge.experiment.sweep_runs import is_of, run_sweep
    from evomerge.results.sweep import summary as summarised
    from evomerge.sweep_view import SweepView, print_summary

    path = Path(file)
    if not path.is_file():
        path = find_in_catalogue(file, "experiments/sweeps", Path.cwd())
    runs = read_sweep(path)
    folder = out or Path("runs") / path.stem
    console = open_console()
    codes: dict[str, int] = {}
    if not summary and not as_json:
        prepared = []
        for run in runs:
            config = changed(run.config, budget={}, pool=(pool, workers, address))
            config = with_code(config, path, allow_code)
            prepared.append(replace(run, config=fair_share(config, jobs)))
        arguments = ["--allow-code"] if allow_code else []
        try:
            with SweepView(console, folder, [run.name for run in runs]) as view:
                codes = run_sweep(prepared, folder, jobs=jobs, arguments=arguments, look=view.look)
        except Interrupted:
            console.print("\ninterrupted; nothing is lost. The same command goes on.")
            raise
    others = [
        folder / run.name
        for run in runs
        if codes.get(run.name) or not is_of(run, folder / run.name)
    ]
    found = summarised(folders(runs, folder), others)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print_summary(console, found)
    if not summary and any(run["state"] != "finished" for run in found["runs"]):
        raise typer.Exit(1)
