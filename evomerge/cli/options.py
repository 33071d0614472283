"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunFolder = Annotated[Path, typer.Argument(help="A run's folder.", show_default=False)]
ExperimentFile = Annotated[
    str,
    typer.Argument(
        help="An experiment file, mergekit-evolve's, or a name in the catalogue.",
        show_default=False,
    ),
]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Let task files run the code that they name.")
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle-weights", help="Read .pt and .bin files, weights only.")
]
Budget = Annotated[
    int | None,
    typer.Option(min=1, help="Candidates in all; replaces the file's whole budget."),
]
ItemEvaluations = Annotated[
    int | None,
    typer.Option(min=1, help="Item evaluations in all; replaces the file's whole budget."),
]
Hours = Annotated[
    float | None,
    typer.Option(min=0.0, help="Hours of all sessions together; replaces the file's whole budget."),
]
Pool = Annotated[
    str | None,
    typer.Option(
        "--pool",
        help="Who measures, with that pool's defaults: local (processes on this machine), ray.",
        show_default="the file's",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(help="Where the pool's cluster is, such as auto or ray://HOST:10001."),
]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Processes that measure; 0 measures in the driver itself."),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="KIND",
        help="Log figures to tensorboard, wandb or mlflow as well; none: to nobody.",
        show_default="the file's",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AsAdapter = Annotated[
    bool, typer.Option("--adapter", help="Write a LoRA adapter of the base, not a full model.")
]
Rank = Annotated[
    int | None,
    typer.Option(min=1, help="Largest rank of the adapter. Default: exact where it can be."),
]
Scales = Annotated[
    str | None,
    typer.Option(
        metavar="attribute",
        help="Write scales of layers' inputs into config.json, where stock loaders ignore them.",
        show_default="refused",
    ),
]
Texts = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        help="Texts for operators that look at data: a text a line, or a calibration.json; "
        "by default the calibration.json beside the recipe.",
        show_default=False,
    ),
]
OutFolder = Annotated[Path, typer.Option("--out", help="The folder to write.", show_default=False)]
