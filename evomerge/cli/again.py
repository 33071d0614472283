"""Looking at a finished run with other eyes: estimate, replay."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from evomerge.cli.options import AsJson, RunFolder
from evomerge.cli.screen import open_console, progress_view

Estimator = Annotated[
    str,
    typer.Option(
        "--estimator",
        help="A kind, such as `stratified`; a fitness file, for its estimator; or YAML in braces.",
        show_default=False,
    ),
]
NumItems = Annotated[
    int | None, typer.Option("--items", min=2, help="Items of each task, where the kind takes it.")
]


def estimate(
    folder: RunFolder, estimator: Estimator, items: NumItems = None, as_json: AsJson = False
) -> None:
    """Score a run's candidates by another estimator, from the answers that it has.

    Without --items every answer of a candidate counts; with it, those that the estimator would ask
    for. Try: evomerge estimate runs/quickstart --estimator stratified --items 30
    """
    from evomerge.experiment.recorded import read_estimator, read_run
    from evomerge.experiment.reestimate import reestimate
    from evomerge.score_tables import estimates_table

    run = read_run(folder)
    with progress_view() as view:
        found = reestimate(run, read_estimator(estimator, items), view.progress)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    console = open_console()
    console.print(estimates_table(found["rows"]))
    console.print(
        f"rank correlation with the recorded scores: {_figure(found['rank_correlation'])}"
    )
    if found["skipped"]:
        console.print(f"{len(found['skipped'])} candidates lack answers that it asks for")


def replay(
    folder: RunFolder, estimator: Estimator, items: NumItems = None, as_json: AsJson = False
) -> None:
    """Say what another estimator would have spent on a run's candidates, and chosen.

    The run must have the answers that it asks for: one with `estimator: {kind: full}` has them all.
    """
    from evomerge.experiment.recorded import read_estimator, read_run
    from evomerge.experiment.replay import replay as ask_again

    run = read_run(folder)
    with progress_view() as view:
        found = ask_again(run, read_estimator(estimator, items), view.progress)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    console = open_console()
    less = found["recorded_spent"] / found["spent"]
    console.print(
        f"item evaluations, references and {found['candidates']} candidates: {found['spent']:,} "
        f"instead of {found['recorded_spent']:,} ({less:.1f}x)"
    )
    chosen = found["chosen"]
    console.print(
        f"chosen: candidate {chosen['candidate']}, {_figure(chosen['mean'])} on all items"
    )
    if "best" in found:
        best = found["best"]
        console.print(
            f"best:   candidate {best['candidate']}, {_figure(best['mean'])} on all items"
        )
        console.print(f"regret: {found['regret']:.4f}")
        told = _figure(found["rank_correlation"])
        console.print(f"rank correlation of its scores with the means of all items: {told}")


def _figure(value: Any) -> str:
    return "unknown" if value is None else f"{value:.3f}"
