"""Searching, and looking at a search: run, resume, front, digest."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from evomerge.cli.inputs import (
    changed,
    open_run,
    pairs,
    read_experiment_file,
    run_name,
    with_code,
)
from evomerge.cli.options import (
    Address,
    AllowCode,
    AsJson,
    Budget,
    ExperimentFile,
    Hours,
    ItemEvaluations,
    Pool,
    RunFolder,
    Track,
    Workers,
)
from evomerge.cli.screen import open_console
from evomerge.errors import ConfigurationError, Interrupted, Problem
from evomerge.lock import refuse_locked
from evomerge.signals import go_on, signals


def run(
    experiment: ExperimentFile,
    out: Annotated[Path | None, typer.Option(help="The run folder. Default: runs/NAME.")] = None,
    budget: Budget = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Decides every random choice, instead of the file's.")
    ] = None,
    workers: Workers = None,
    pool: Pool = None,
    address: Address = None,
    track: Track = None,
    allow_code: AllowCode = False,
) -> None:
    """Search for a merge. A run of the same experiment that is there goes on."""
    folder = out or Path("runs") / run_name(experiment)
    refuse_locked(folder)
    config = changed(
        read_experiment_file(experiment, allow_code, folder),
        budget={"candidates": budget},
        pool=(pool, workers, address),
        seed=seed,
        track=track,
    )
    _drive(config, out or Path("runs") / (config.name or Path(experiment).stem))


def resume(
    folder: RunFolder,
    budget: Budget = None,
    item_evaluations: ItemEvaluations = None,
    hours: Hours = None,
    workers: Workers = None,
    pool: Pool = None,
    address: Address = None,
    track: Track = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="Where a model is now; it must be the same by content. For each that has moved.",
        ),
    ] = None,
    moved: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OLD=NEW",
            help="Whatever was in folder OLD (models, tasks' files) is in NEW now.",
        ),
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Go on with a run that was stopped, or give a finished one more to do.

    Says what was replayed, what is measured again, and what differs from earlier sessions. A run
    may go on with other workers, another pool, or on another machine, where its folder was copied:
    the same candidates follow as if nothing had been. `--budget 400` gives a run of 200 as many
    again. Where models lie elsewhere now, say so once: --model sort=/mnt/sort.
    """
    refuse_locked(folder)
    from evomerge.experiment.moves import check_models_are_there
    from evomerge.experiment.moves import moved as moved_to
    from evomerge.experiment.run import read_run_config

    config = read_run_config(folder)
    if any(path.startswith("memory:") for path in config.models().values()) or any(
        task.get("kind") == "python" for task in config.fitness.tasks.values()
    ):
        raise ConfigurationError(
            f"{folder}: this run was started from Python with models or a fitness that live in "
            "memory; call evomerge.search again with the same arguments and the same out="
        )
    config = moved_to(config, pairs(model, "--model"), pairs(moved, "--moved"))
    check_models_are_there(config)
    config = with_code(config, folder, allow_code)
    _refuse_less(folder, budget)
    limits = {"candidates": budget, "item_evaluations": item_evaluations, "hours": hours}
    _drive(changed(config, budget=limits, pool=(pool, workers, address), track=track), folder)


def _refuse_less(folder: Path, budget: int | None) -> None:
    """Refuse a budget that has been spent already: the run's files would tell of another search."""
    from evomerge.ledger import LEDGER, Ledger

    if budget is not None and (folder / LEDGER).exists():
        with closing(Ledger(folder / LEDGER, read_only=True)) as ledger:
            told = len(ledger.evaluations())
        if budget < told:
            what = f"{told:,} candidates are told already"
            hint = f"{told} ends the search with what is there, and more goes on with it"
            raise ConfigurationError(Problem(f"--budget {budget}", what, hint))


def front(
    folder: RunFolder,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """The Pareto front on the holdout; with one objective, the best alone.

    As CSV, and in `objectives` of the JSON, values are in the units of the experiment's file; the
    other numbers of the JSON are all maximised, so that costs are negative there.
    """
    rows = open_run(folder).front()
    if as_json or as_csv:
        from evomerge.results.account import Account
        from evomerge.results.exported_rows import front_rows, rows_csv

        with Account(folder) as account:
            known, objectives = front_rows(account), account.objectives
        if as_csv:
            print(rows_csv(known, objectives), end="")
            return
        added = ("best", "knee", "fingerprint", "objectives")
        both = zip(rows, known, strict=True)
        print(json.dumps([{**row, **{key: k[key] for key in added}} for row, k in both], indent=2))
        return
    from evomerge.score_tables import front_table

    open_console().print(front_table(rows, open_run(folder).status()["objectives"]))


def digest(folder: RunFolder) -> None:
    """The sha256 of a run's trajectory: equal runs have equal digests."""
    print(open_run(folder).ledger.digest())


def _drive(config: Any, out: Path) -> None:
    """Run with a view, then print the final table and what to do next."""
    console = open_console()
    try:
        with signals(out):
            from evomerge.experiment.run import run_experiment
            from evomerge.terminal import TerminalView

            with TerminalView(console) as view:
                run_experiment(config, out, watchers=[view])
    except Interrupted:
        console.print(f"\n{go_on(out)}")
        raise
    from evomerge.score_tables import print_final

    facts = open_run(out).status()
    print_final(console, facts["final"], facts["objectives"])
    pictures = ", ".join(str(path) for path in sorted(out.glob("*.png")))
    console.print(f"Run folder: {out} (pictures: {pictures})")
    if (report := out / "report.html").exists():
        console.print(f"Report, for a browser: {report}")
    console.print(f"Take the model home: evomerge export {out} --best --out models/{out.name}")
