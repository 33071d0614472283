"""Which candidates of a run are taken home, and what is known of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from evomerge.errors import ConfigurationError, EvomergeError, Problem
from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.recorded import Recorded, read_run
from evomerge.fitness.estimators.estimate import Items, estimate
from evomerge.fitness.select import Select
from evomerge.ledger import Ledger
from evomerge.pareto import best_first
from evomerge.records import Candidate, CandidateId
from evomerge.results.exported_rows import knee_of
from evomerge.results.intervals import mean_estimate, mean_of_objectives, paired_gain
from evomerge.results.status import best_candidate, final_rows

Json = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """What to export: `best`, `front`, `knee`, `top` (the first `count`), or `candidates`."""

    kind: Literal["best", "front", "knee", "top", "candidates"] = "best"
    candidates: tuple[CandidateId, ...] = ()
    count: int = 0

    @property
    def is_set(self) -> bool:
        """Whether there is a folder for each, with a table of them."""
        return self.kind in ("front", "top") or len(self.candidates) > 1


def chosen(
    choice: Choice, folder: Path, config: ExperimentConfig, ledger: Ledger
) -> list[CandidateId]:
    """The candidates' ids, in the order of the choice.

    Raises:
        ConfigurationError: there is no such candidate, or the run is not so far.
    """
    if choice.kind == "best":
        return [best_candidate(folder, ledger).id]
    if choice.kind == "candidates":
        return _known(choice.candidates, folder, ledger)
    if choice.kind == "top":
        return top(choice.count, folder, config, ledger)
    final = ledger.final()
    if final is None:
        what = f"not finished; `evomerge resume {folder}` goes on"
        raise ConfigurationError(Problem(str(folder), what))
    if choice.kind == "front":
        return [row["candidate"] for row in final["front"] or [final["best"]]]
    if (knee := knee_of(final["front"])) is None:
        what = "has one objective, so there is no front and no knee"
        raise ConfigurationError(Problem(str(folder), what, "--best is what was chosen"))
    return [knee]


def _known(wanted: tuple[CandidateId, ...], folder: Path, ledger: Ledger) -> list[CandidateId]:
    problems = []
    last = max(ledger.candidates, default=-1)
    for id_ in wanted:
        if id_ not in ledger.candidates:
            problems.append(Problem(str(folder), f"no candidate {id_} to merge (last: {last})"))
        elif not ledger.candidates.fingerprint(id_):
            why = "; ".join(ledger.candidates[id_].violations)
            problems.append(Problem(str(folder), f"no candidate {id_} to merge: {why}"))
    if problems:
        raise ConfigurationError(problems)
    return list(dict.fromkeys(wanted))


def top(count: int, folder: Path, config: ExperimentConfig, ledger: Ledger) -> list[CandidateId]:
    """The first so many, no recipe twice, in the order of the last choice.

    That is `select:` over the fresh items, of those who answered them; whoever did not comes after
    them, in the order of the search. The chosen one is the first.

    Raises:
        ConfigurationError: fewer were measured.
    """
    with _recorded(folder) as run:
        fresh: Items = run.split.fresh if any(run.split.fresh.values()) else run.split.search
        known = run.measurements
        finalists = [
            run.ledger.candidates[id_]
            for id_ in sorted(run.ledger.candidates, key=lambda id_: (id_ < 0, abs(id_)))
            if (id_ >= 0 or run.ledger.candidates[id_].genome is not None)
            and _answered(run, run.ledger.candidates.fingerprint(id_), fresh)
        ]
        estimates = [estimate(run.objectives, known, c, fresh, finalists) for c in finalists]
        told = config.fitness.select
        order = Select(told.kind, told.weights, told.at_least).order(estimates)
        ranked = [finalists[i] for i in order]
        ranked += [run.ledger.candidates[e.id] for e in best_first(list(run.evaluations.values()))]
        first = [best_candidate(folder, ledger)] if ledger.final() is not None else []
    distinct: dict[str, CandidateId] = {}
    for candidate in (*first, *ranked):
        distinct.setdefault(candidate.fingerprint, candidate.id)
    ids = list(distinct.values())
    if len(ids) < count:
        what = f"--top {count}: {len(ids)} different merges were measured"
        raise ConfigurationError(Problem(str(folder), what))
    return ids[:count]


def _answered(run: Recorded, fingerprint: str, items: Items) -> bool:
    return bool(fingerprint) and not any(
        run.measurements.missing(fingerprint, task, ids) for task, ids in items.items()
    )


@contextmanager
def _recorded(folder: Path) -> Iterator[Recorded]:
    run = read_run(folder)
    with closing(run.ledger):
        yield run


@dataclass(frozen=True)
class Known:
    """What a run knows of a candidate: a row as in the final table, and its gain."""

    row: Json
    gain: Json | None


def known_of(
    ids: list[CandidateId], folder: Path, config: ExperimentConfig, ledger: Ledger
) -> dict[CandidateId, Known]:
    """Rows of the final table, and like them of whoever is not in it, as far as it was measured.

    Gains are over the reference that is best on the holdout.
    """
    final, rows = ledger.final(), final_rows(ledger)
    found: dict[CandidateId, Known] = {}
    run: Recorded | None = None
    with suppress(EvomergeError):
        run = read_run(folder)
    for id_ in ids:
        row = rows.get(id_)
        gain = None
        if row is None:
            row = _row(ledger.candidates[id_], run)
        if final is not None and final["best"]["candidate"] == id_:
            gain = final["gain_over_best_reference"]
        elif final is not None and run is not None and "holdout" in row:
            gain = _gain(id_, run, final, config.seed)
        found[id_] = Known(row, gain)
    if run is not None:
        run.ledger.close()
    return found


def _row(candidate: Candidate, run: Recorded | None) -> Json:
    """What was measured of a candidate that is not in the final table."""
    row: Json = {"candidate": candidate.id, "label": candidate.label}
    if run is None:
        return row
    known = run.measurements
    if failed := known.failed_items(candidate.fingerprint):
        row["failed_items"] = {task: len(items) for task, items in failed.items()}
    alone = not any(objective.agreement for objective in run.objectives)  # which needs company
    parts = {"search": run.split.search, "fresh": run.split.fresh, "holdout": run.split.holdout}
    for part, items in parts.items() if alone else ():
        if not any(items.values()) or not _answered(run, candidate.fingerprint, items):
            continue
        with suppress(EvomergeError):  # a cost of a base that was in memory
            estimates = estimate(run.objectives, known, candidate, items)
            row[part] = {name: asdict(e) for name, e in estimates.items()}
            shares = mean_of_objectives(run.objectives, known, candidate.fingerprint, items)
            value, error = mean_estimate(shares)
            row[f"{part}_mean"] = {"value": value, "standard_error": error}
    evaluation = run.evaluations.get(candidate.id)
    if evaluation is not None and evaluation.score is not None:
        row["told"] = {n: asdict(e) for n, e in evaluation.score.objectives.items()}
        row["told_mean"] = {"value": evaluation.score.mean}
    return row


def _gain(id_: CandidateId, run: Recorded, final: Mapping[str, Any], seed: int) -> Json | None:
    """Over the best reference, on the mean of the objectives."""
    if any(objective.agreement for objective in run.objectives):
        return None
    label = final["gain_over_best_reference"]["reference"]
    rival = run.ledger.candidates[final["references"][label]["candidate"]]
    pair = run.ledger.candidates.fingerprint(id_), rival.fingerprint
    if pair[0] == pair[1]:
        return None
    value, low, high = paired_gain(run.objectives, run.measurements, *pair, run.split.holdout, seed)
    return {"reference": label, "value": value, "low": low, "high": high}
