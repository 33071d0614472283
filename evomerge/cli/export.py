"""Taking found models home: export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from evomerge.cli.inputs import check_rank
from evomerge.cli.options import AllowCode, AsAdapter, OutFolder, Rank, RunFolder, Scales
from evomerge.cli.screen import open_console, print_adapter, progress_view
from evomerge.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from evomerge.experiment.exports import Exported


def export(
    folder: RunFolder,
    out: OutFolder,
    best: Annotated[bool, typer.Option("--best", help="The chosen candidate (default).")] = False,
    front: Annotated[
        bool, typer.Option("--front", help="The whole front, a folder each, and front.json.")
    ] = False,
    knee: Annotated[
        bool,
        typer.Option(
            "--knee", help="Where the front bulges most on the fresh items: a good compromise."
        ),
    ] = False,
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The first K, a folder each: in the order of the last choice (`select:` over the "
            "fresh items); who was no finalist comes after them, by its search score.",
            show_default=False,
        ),
    ] = None,
    candidate: Annotated[
        list[int] | None,
        typer.Option(help="The candidate with this number; may be said again.", show_default=False),
    ] = None,
    adapter: AsAdapter = False,
    rank: Rank = None,
    scales: Scales = None,
    verify: Annotated[
        str,
        typer.Option(
            metavar="N|all|none",
            help="Load each model with transformers, ask it N held-out items of each task again, "
            "and compare with the recorded responses.",
        ),
    ] = "32",
    push: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME",
            help="Upload to a hub as well, privately; of several models each to "
            "ORG/NAME-candidate-N.",
            show_default=False,
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Upload publicly.")] = False,
    allow_code: AllowCode = False,
) -> None:
    """Write found models as Hugging Face folders, with cards and recipes, and verify them.

    Interrupted, the same command goes on with --front and --top. Nothing is uploaded without
    --push, which takes its token from HF_TOKEN or `hf auth login`.
    """
    numbers = tuple(candidate or ())
    if best + front + knee + (top is not None) + bool(numbers) > 1:
        what = "choose one of --best, --front, --knee, --top and --candidate"
        raise ConfigurationError(what)
    if public and push is None:
        raise ConfigurationError(Problem("--public", "nothing is uploaded", "add --push ORG/NAME"))
    check_rank(rank, adapter)
    num_items = _number(verify)

    from evomerge.checkpoints.write import MARK
    from evomerge.experiment.chosen import Choice
    from evomerge.experiment.exports import ExportOptions, export_chosen
    from evomerge.results.hub import Push

    choice = Choice("candidates", numbers) if numbers else Choice(_kind(front, knee))
    if top is not None:
        choice = Choice("top", count=top)
    options = ExportOptions(
        form="adapter" if adapter else "model",
        rank=rank,
        scales=scales,
        verify=num_items,
        allow_code=allow_code,
        push=None if push is None else Push(push, public),
    )
    done: list[Exported] = []
    is_there = (out / MARK).is_file()
    try:
        with progress_view() as view:
            report = view.progress
            export_chosen(folder, out, choice, options, progress=report, on_done=done.append)
    finally:  # what is there already is said, whatever came then
        for exported in done:
            _tell(exported, is_there=is_there and not choice.is_set)
    if choice.is_set:
        text = f"{out}: {len(done)} models; front.json, front.csv and README.md tell of them"
        open_console().print(text)


def _number(verify: str) -> int | None:
    """Items of each task; None for all."""
    if verify in ("all", "none"):
        return None if verify == "all" else 0
    if not verify.isdecimal():
        what = f"expected a number of items, all or none, got {verify!r}"
        raise ConfigurationError(Problem("--verify", what))
    return int(verify)


def _kind(front: bool, knee: bool) -> Literal["best", "front", "knee"]:
    if front:
        return "front"
    return "knee" if knee else "best"


def _tell(exported: Exported, *, is_there: bool) -> None:
    """What became of one model."""
    console = open_console()
    if exported.kept:
        console.print(f"kept {exported.folder}: it is there already, whole and of the same recipe")
    elif exported.adapter is not None:
        print_adapter(exported.adapter)
    else:
        over = ", over what was there" if is_there else ""
        console.print(f"wrote {exported.folder.resolve()}{over}")
    console.print(f"  {in_words(exported.verification)}")
    if exported.url is not None:
        console.print(f"  uploaded to {exported.url}")


def in_words(told: Mapping[str, Any]) -> str:
    """What was verified, or why nothing was."""
    if not told.get("verified"):
        return f"not verified: {told.get('why', 'nothing is known of it')}"
    tasks, asked, different = [], 0, 0
    for name, task in told["tasks"].items():
        if "items" not in task:
            tasks.append(f"{name} not: {task['why']}")
            continue
        asked, different = asked + task["items"], different + task["different"]
        tasks.append(f"{name} {task['items']} of {task['of']} {task['part']}")
    text = f"verified: loaded by transformers, {asked - different:,} of {asked:,} answers are the "
    text += f"recorded ones ({'; '.join(tasks)})"
    if told["otherwise"]:
        text += f"; other than in the run: {'; '.join(told['otherwise'])}"
    return text
