"""Start a run, go on with one, finish it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigurationError, EvomergeError, Interrupted, Problem
from evomerge.experiment.calibration import collect, wanted
from evomerge.experiment.config import ExperimentConfig, read_experiment
from evomerge.experiment.identity import differences
from evomerge.experiment.resumption import Context, explained, moved_models
from evomerge.experiment.room import projected_bytes
from evomerge.experiment.sessions import noted_end
from evomerge.experiment.some_recipes import some_recipes
from evomerge.experiment.start import Start, recorded_start
from evomerge.experiment.watching import Watcher, run_log
from evomerge.experiment.wire import InMemory, Parts, wire
from evomerge.files import EXPERIMENT, REPORT, check_room, disk_errors, write_text
from evomerge.ledger import LEDGER, Ledger
from evomerge.lock import RunLock
from evomerge.loop import Search, run_search
from evomerge.measurement import Measurer, notify, wanted_columns
from evomerge.merging.calibration import CALIBRATION, Calibration, read_calibration
from evomerge.pareto import best_first
from evomerge.pools import make_pool, warmed_up
from evomerge.records import Candidate, CandidateId, Cohort, Evaluation
from evomerge.results.final import Finale, choose_and_report, recommendation
from evomerge.results.plots import write_pictures
from evomerge.results.references import grid_cohort, measure_references, models_of, references_told
from evomerge.signals import signals
from evomerge.stopping import Progress
from evomerge.trackers import trackings


def run_experiment(
    config: ExperimentConfig,
    out: Path,
    *,
    in_memory: InMemory | None = None,
    watchers: Sequence[Watcher] = (),
) -> Path:
    """Run an experiment in a folder, or go on with the run that is there.

    Returns the folder. A finished run whose budget is spent stays as it is.

    Raises:
        EvomergeError: of whatever kind; what was measured is in the folder's ledger.
        Interrupted: SIGINT or SIGTERM.
    """
    trackers: list[Any] = trackings(config.trackers)  # they need not be told of everything
    watchers = (*watchers, *trackers)
    if (out / EXPERIMENT).exists() and not (out / "run.lock").exists():
        raise ConfigurationError(
            Problem(str(out), f"has an {EXPERIMENT} that is no run's", "choose another --out")
        )
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with disk_errors(out / "run.lock"):
        lock = RunLock(out)
    warm = warmed_up(config.pool, config.threads_per_worker, in_driver=in_memory is not None)
    with lock, signals(out), run_log(out / "run.log", watchers), warm:

        def progress(what: str, done: int, total: int) -> None:
            notify(watchers, "progress", what, done, total)

        moved = moved_models(config, out / EXPERIMENT)
        start, texts = known_start(config, out), known_calibration(config, out)
        parts = wire(config, in_memory, progress, start, texts)
        for warning in parts.warnings:
            logging.getLogger("evomerge").warning(warning)
        check_room(out, projected_bytes(parts) - written_bytes(out))
        if not (out / LEDGER).exists():
            # Before the ledger: a run that is killed between the two can be resumed by its folder.
            if parts.worker.calibration is not None:
                write_text(out / CALIBRATION, parts.worker.calibration.to_json())
            write_text(out / EXPERIMENT, parts.config.to_yaml())
        began = time.monotonic()
        with closing(open_ledger(out / LEDGER, parts)) as ledger, noted_end(ledger, watchers):
            explain = explained(parts, ledger, moved, began, watchers)
            notify(watchers, "started", parts, ledger)
            collect_beforehand(parts, progress)
            pool = make_pool(config.pool, parts.worker, out / "run.log")
            try:
                # What the next session goes on with: not with a cluster that is not there.
                write_text(out / EXPERIMENT, with_what_was_told(parts.config, ledger).to_yaml())
                measurer = Measurer(pool, ledger, watchers, wanted_columns(parts.objectives))
                search_and_finish(parts, measurer, ledger, out, watchers, explain)
                notify(watchers, "finished", ledger.final())
            finally:
                pool.close()
    return out


def with_what_was_told(config: ExperimentConfig, ledger: Ledger) -> ExperimentConfig:
    """The experiment with a budget of no fewer candidates than the run has, so that it repeats it.

    A run that was given more is driven with less where its first file is run again.
    """
    told = len(ledger.evaluations())
    if config.budget.candidates is None or config.budget.candidates >= told:
        return config
    budget = config.budget.model_copy(update={"candidates": told})
    return config.model_copy(update={"budget": budget})


def known_start(config: ExperimentConfig, out: Path) -> Start | None:
    """What the run in a folder began with; None where it has to be read.

    That is so for a new run, and where the experiment names other files than that of the run: it
    then goes on only if they say the same.
    """
    start = recorded_start(out / LEDGER)
    if start is None or not (out / EXPERIMENT).exists():
        return start
    before = read_experiment(out / EXPERIMENT)
    same = (before.designs, before.warm_start) == (config.designs, config.warm_start)
    return start if same else None


def known_calibration(config: ExperimentConfig, out: Path) -> Calibration | None:
    """The texts of the run in a folder; None where they have to be read (see `known_start`)."""
    if not ((out / CALIBRATION).exists() and (out / EXPERIMENT).exists()):
        return None
    same = read_experiment(out / EXPERIMENT).calibration == config.calibration
    return read_calibration(out / CALIBRATION) if same else None


def collect_beforehand(parts: Parts, progress: Callable[[str, int, int], None]) -> None:
    """What workers will read of models, as far as some recipes of the space tell."""
    if (calibration := parts.worker.calibration) is None:
        return
    checkpoints, anatomy = parts.models.checkpoints, parts.models.anatomy
    recipes = some_recipes(parts.space, parts.config.seed)
    needed = wanted(recipes, checkpoints, anatomy, parts.template.base)
    collect(calibration, needed, checkpoints, parts.template.base, progress)


def search_and_finish(
    parts: Parts,
    measurer: Measurer,
    ledger: Ledger,
    out: Path,
    watchers: Sequence[Watcher],
    context: Context,
) -> None:
    """References, search, finalists, holdout; what is recorded already is not done again."""

    def phase(name: str) -> None:
        notify(watchers, "phase", name)

    phase("references")
    references = measure_references(parts.template, ledger, measurer, parts.estimator, parts.split)
    if not any(ledger.events("references")):
        told = (ledger, parts.estimator, parts.objectives, parts.split)
        ledger.note("references", references_told(references, *told))
    population = parts.searcher.population
    in_flight = parts.config.in_flight or parts.searcher.in_flight
    cohort_size = parts.config.cohort or min(population, in_flight)
    search = Search(
        searcher=parts.searcher,
        space=parts.space,
        estimator=parts.estimator,
        ledger=ledger,
        in_flight=parts.config.in_flight or max(in_flight, cohort_size),
        cohort_size=cohort_size,
        references=models_of(references),
        observers=watchers,
        progress=Progress(parts.config.budget.reached_at(parts.objectives)),
        changes=context.changes,
    )
    phase("search")
    why = run_search(search, measurer, parts.config.budget.budget(), context.replayed)
    logging.getLogger("evomerge").info("the search has ended: %s", why)
    measurer.cancel()  # a budget of items or hours may end with cohorts under way
    if ledger.final() is None:
        finish(parts, search, measurer, references, phase, out, why)
    elif not (out / REPORT).exists():  # the last session was killed before it
        report_if_possible(out)


def finish(
    parts: Parts,
    search: Search,
    measurer: Measurer,
    references: tuple[Candidate, ...],
    phase: Callable[[str], None],
    out: Path,
    why: str,
) -> None:
    """Choose, open the holdout, and record the final table.

    why: the search ended.
    """
    ledger = search.ledger
    evaluations = ledger.evaluations()
    finale = Finale(
        ledger,
        measurer,
        parts.objectives,
        parts.split,
        parts.select,
        parts.config.seed,
        told={id_: e.score for id_, e in evaluations.items() if e.score is not None},
        spent=search.spent,
    )
    table = choose_and_report(
        finale,
        ranked=best_first(told_anew(search, evaluations)),
        num_finalists=parts.config.fitness.finalists,
        references=references,
        grid_scores=parts.estimator.scores(grid_cohort(references, ledger)),
        recommended=recommendation(
            search.searcher.recommend(), parts.space, ledger, search.num_told
        ),
        on_phase=phase,
    )
    if table is None:
        raise ConfigurationError(no_candidate_worked(ledger))
    table["ended"] = why
    draw_if_possible(out, evaluations, table, parts)
    ledger.note("final", table)
    report_if_possible(out)


def draw_if_possible(
    out: Path, evaluations: Mapping[CandidateId, Evaluation], table: Mapping[str, Any], parts: Parts
) -> None:
    """Draw the pictures. A run is finished without them, too; a full disk is for its user."""
    signs = {objective.name: objective.sign for objective in parts.objectives}
    try:
        write_pictures(out, list(evaluations.values()), table, signs)
    except EvomergeError:
        raise
    except Exception as error:
        what = f"{out}: a picture could not be drawn: {type(error).__name__}: {error}"
        logging.getLogger("evomerge").warning(what)


def report_if_possible(out: Path) -> None:
    """Write the report. A run is finished without one, too: what is wrong with it is a warning."""
    try:
        from evomerge.results.report import write_report  # plotly is heavy

        write_report(out)
    except Interrupted:
        raise
    except Exception as error:
        what = f"{out / REPORT} could not be written: {type(error).__name__}: {error}"
        logging.getLogger("evomerge").warning(what)


def told_anew(search: Search, evaluations: Mapping[CandidateId, Evaluation]) -> list[Evaluation]:
    """The evaluations, with what an estimator that learns from history says of them by now."""
    if not search.estimator.needs_history:
        return list(evaluations.values())
    cohort = Cohort(
        search.num_cohorts,
        (),
        search.ledger.measurements,
        references=search.references,
        history=tuple(search.history),
    )
    scores = search.estimator.told_anew(cohort)
    return [
        replace(e, score=scores[id_]) if e.score is not None and id_ in scores else e
        for id_, e in evaluations.items()
    ]


def no_candidate_worked(ledger: Ledger) -> list[Problem]:
    """Why there is nothing to choose from: the reasons, most frequent first."""
    evaluations = ledger.evaluations()
    if not evaluations:
        spent = f"the references took {ledger.item_evaluations:,} item evaluations"
        return [Problem("budget", f"spent before the first candidate: {spent}")]
    reasons: dict[str, int] = {}
    for evaluation in evaluations.values():
        if evaluation.failure is not None:
            reasons[evaluation.failure.reason] = reasons.get(evaluation.failure.reason, 0) + 1
    shown = sorted(reasons.items(), key=lambda item: -item[1])[:3]
    return [Problem("", "no candidate could be measured")] + [
        Problem(f"{count} candidates", reason) for reason, count in shown
    ]


def open_ledger(path: Path, parts: Parts) -> Ledger:
    """A new ledger, or the one that is there if it is of the same experiment.

    Raises:
        ConfigurationError: it belongs to another experiment; says what differs.
    """
    if not path.exists():
        meta = {
            "identity": parts.identity,
            "evomerge": version("evomerge"),
            "start": parts.start.to_json(),
            "about": about(parts),
        }
        return Ledger.create(path, meta, parts.num_items, parts.costs)
    ledger = Ledger(path, costs=parts.costs)
    found = differences(ledger.meta["identity"], parts.identity)
    if found:
        ledger.close()
        hint = Problem("", "choose another --out, or remove that folder")
        raise ConfigurationError([*(_difference(path.parent, parts, *f) for f in found), hint])
    return ledger


def about(parts: Parts) -> dict[str, Any]:
    """What a reader of the ledger cannot know without the models: names, and what is minimised."""
    return {
        "name": parts.config.name,
        "objectives": [
            {
                "name": o.name,
                "sign": o.sign,
                "cost": o.cost,
                "tasks": list(o.weights),
                "weights": dict(o.weights),
                "column": o.column,
                "agreement": o.agreement,
            }
            for o in parts.objectives
        ],
        "experts": list(parts.config.experts),
        "genes": [gene.name for gene in parts.space.genes],
        "num_layers": parts.models.anatomy.num_layers,
        "items": {
            part: {task: len(ids) for task, ids in getattr(parts.split, part).items()}
            for part in ("search", "fresh", "holdout")
        },
    }


def _difference(folder: Path, parts: Parts, key: str, was: Any, is_now: Any) -> Problem:
    """What differs between a run and an experiment, for people; of models, where they are."""
    models = parts.config.models()
    if key.startswith("models.") and was and is_now and (name := key[7:]) in models:
        return Problem(
            f"model {name}",
            f"{models[name]} is another model than the run in {folder} has measured "
            f"(sha256 {str(is_now)[:12]}, there {str(was)[:12]})",
        )
    return Problem(f"{folder} {key}", f"the run there has {was}, this experiment {is_now}")


def read_run_config(folder: Path) -> ExperimentConfig:
    """The experiment of a run folder.

    Raises:
        ConfigurationError: there is no run.
    """
    if not (folder / EXPERIMENT).exists():  # it is there before the ledger is
        raise ConfigurationError(f"{folder}: no run here (there is no {EXPERIMENT})")
    return read_experiment(folder / EXPERIMENT)


def run_calibration(folder: Path) -> Calibration | None:
    """The texts of a run's operators that look at data; None where it has none."""
    path = folder / CALIBRATION
    return read_calibration(path) if path.exists() else None


def written_bytes(out: Path) -> int:
    """What of the run is on the disk already: its ledger, and the log that SQLite writes first."""
    return sum(path.stat().st_size for path in out.glob(f"{LEDGER}*") if path.is_file())
