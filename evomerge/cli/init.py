"""Writing experiments: init, schema."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.screen import open_console
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.files import catalogue_folder, write_text

CATALOGUES = ("experiments", "search_spaces", "fitness")


def init(
    models: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of models, the base among them. Default: those found here."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("my_search.yaml"),
    base: Annotated[
        str | None, typer.Option(help="Which of them is the base, if it is not the one found.")
    ] = None,
    tasks: Annotated[
        list[Path] | None, typer.Option(help="Task files of lm-eval; repeat for several.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Texts to predict well: a text a line, or .jsonl, .csv.")
    ] = None,
    copy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Copy this file of the catalogue here, to be changed.",
            show_default=False,
        ),
    ] = None,
    catalogue: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Copy all catalogues into this folder.", show_default=False
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
) -> None:
    """Write a first experiment file for some models, from what they say of themselves.

    Finds the base, differing tokenizers, adapters and models of another training run, and proposes
    a space, a searcher and a budget. Nothing is asked, and nothing is overwritten.
    """
    console = open_console()
    if catalogue is not None:
        for path in _copy_catalogues(catalogue, force=force):
            console.print(f"{path}")
        return
    if copy is not None:
        console.print(f"{_copy_one(copy, Path.cwd(), force=force)}")
        return
    from evomerge.checkpoints.folder import is_model_file
    from evomerge.experiment.init import EXAMPLE, find_out, models_below, write_experiment

    _refuse_existing([out, out.with_name(f"{out.stem}_fitness.yaml")], force=force)
    given = models or models_below(Path.cwd())
    paths = [path for path in given if path.is_dir() or is_model_file(path) or not path.exists()]
    for path in given:
        if path not in paths:
            console.print(f"note: {path} is no model: it is passed by")
    if not paths:
        what = f"no models below {Path.cwd()} (folders with a config.json)"
        raise ConfigurationError(Problem("", what, f"name them: {EXAMPLE}"))
    if not models:
        console.print(f"models found here: {', '.join(map(str, paths))}")
    found = find_out(paths, base)
    console.print(f"base: {found.base}, {found.why}")
    for note in found.notes:
        console.print(f"note: {note}")
    for name in found.matches:
        console.print(f"note: {name} is of another training run: it is matched to the base first")
    if found.tokenizer:
        console.print("note: the models have different tokens: the merge gets them all")
    for path in write_experiment(found, out, tasks=tasks or (), texts=texts):
        console.print(f"written: {path}")
    console.print(f"next: evomerge validate {out}; evomerge plan {out}; evomerge run {out}")


def schema(
    kind: Annotated[
        str, typer.Argument(help="experiment, space, fitness, recipe or sweep.")
    ] = "experiment",
    out: Annotated[
        Path | None, typer.Option(help="A file for it; otherwise it is printed.")
    ] = None,
) -> None:
    """The JSON schema of a kind of file, with which editors complete and check."""
    from evomerge.experiment.schema import SCHEMAS, schema_of

    if kind not in SCHEMAS:
        raise ConfigurationError(Problem(kind, "no such kind of file", nearest(kind, SCHEMAS)))
    text = json.dumps(schema_of(kind), indent=2) + "\n"
    if out is None:
        print(text, end="")
    else:
        write_text(out, text)
        open_console().print(f"written: {out}")


def _copy_one(name: str, folder: Path, *, force: bool) -> Path:
    """A file of any catalogue; references in it are names afterwards where they were paths."""
    known = {
        path.relative_to(catalogue_folder(kind)).with_suffix("").as_posix(): path
        for kind in CATALOGUES
        for path in sorted(catalogue_folder(kind).rglob("*.yaml"))
        if "tasks" not in path.parts
    }
    if (wanted := name.removesuffix(".yaml")) not in known:
        raise ConfigurationError(Problem(name, "not in the catalogue", nearest(wanted, known)))
    source = known[wanted]
    target = folder / source.name
    _refuse_existing([target], force=force)
    text = source.read_text(encoding="utf-8")
    for kind in ("search_spaces", "fitness"):
        text = text.replace(f": ../{kind}/", ": ")
    tasks = catalogue_folder("fitness") / "tasks"
    write_text(target, text.replace("path: tasks/", f"path: {tasks}/"))
    return target


def _copy_catalogues(folder: Path, *, force: bool) -> list[Path]:
    targets = [folder / kind for kind in CATALOGUES]
    _refuse_existing(targets, force=force)
    for kind, target in zip(CATALOGUES, targets, strict=True):
        shutil.copytree(catalogue_folder(kind), target, dirs_exist_ok=force)
    return targets


def _refuse_existing(paths: list[Path], *, force: bool) -> None:
    there = [path for path in paths if path.exists()]
    if there and not force:
        raise ConfigurationError(
            Problem(str(path), "is there already", "--force overwrites it") for path in there
        )
