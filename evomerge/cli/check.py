"""Before a search: plan, validate."""

from __future__ import annotations

import json

from evomerge.cli.inputs import read_experiment_file
from evomerge.cli.options import AllowCode, AsJson, ExperimentFile
from evomerge.cli.screen import open_console, progress_view


def plan(
    experiment: ExperimentFile, as_json: AsJson = False, allow_code: AllowCode = False
) -> None:
    """A dry run: genes and what they make, jobs, items, bytes, and hours from a short trial."""
    config = read_experiment_file(experiment, allow_code)  # before anything heavy is imported

    from evomerge.experiment.plan import plan_experiment

    with progress_view() as view:
        figures = plan_experiment(config, view.progress)
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    console = open_console()
    for label, value in figures.items():
        lines = value if isinstance(value, list) else [value]
        for number, line in enumerate(lines):
            told = f"{label if number == 0 else '':<32} {line}"
            console.print(told, highlight=False, soft_wrap=True, markup=False)


def validate(experiment: ExperimentFile, allow_code: AllowCode = False) -> None:
    """Check an experiment and everything that it refers to; show the models' anatomy."""
    config = read_experiment_file(experiment, allow_code)  # before anything heavy is imported

    from evomerge.experiment.wire import wire
    from evomerge.search_spaces.dead import check_genes
    from evomerge.search_spaces.limits import seldom_kept
    from evomerge.tables import anatomy_table, relatedness_table
    from evomerge.wording import in_short

    with progress_view() as view:
        parts = wire(config, progress=view.progress)
    console = open_console()
    console.print(anatomy_table(parts.models.anatomy))
    if parts.models.relatedness.relations:
        console.print(relatedness_table(parts.models.relatedness))
    for warning in parts.warnings:
        console.print(f"warning: {warning}")
    if parts.limits:
        of_base = parts.costs.of_base(parts.template)
        for name, limit in parts.limits.items():
            console.print(
                f"limit of {name}: {in_short(limit)}; the base: {in_short(of_base[name])}"
            )
    if parts.worker.calibration is not None:
        from evomerge.experiment.calibration import told
        from evomerge.experiment.some_recipes import some_recipes

        models, recipes = parts.models, list(some_recipes(parts.space, parts.config.seed))
        about = (recipes, models.checkpoints, models.anatomy, parts.template.base)
        for line in told(parts.worker.calibration, *about):
            console.print(line, highlight=False)
    genes = parts.space.genes
    names = ", ".join(gene.name for gene in genes[:4])
    if genes:
        more = ", ..." if len(genes) > 4 else ""
        console.print(f"{len(genes)} gene{'s' if len(genes) > 1 else ''} ({names}{more})")
    with progress_view() as view:
        check_genes(parts.space, view.progress)
    if warning := seldom_kept(parts.space):
        console.print(f"warning: {warning}")
    console.print("valid")
