"""What a run's candidates are worth by another reading of the answers that it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from evomerge.errors import ConfigurationError, Problem
from evomerge.experiment.recorded import Json, Recorded, spearman
from evomerge.fitness.estimators import make_estimator
from evomerge.fitness.estimators.kinds import READINGS, make_reading
from evomerge.pareto import best_first
from evomerge.protocols import Progress
from evomerge.records import (
    Candidate,
    CandidateId,
    Cohort,
    Estimate,
    Evaluation,
    Score,
    Told,
)

OF_A_RACE = ("items", "rotate", "incumbents")  # options that no reading has


def reestimate(run: Recorded, config: Mapping[str, Any], progress: Progress | None = None) -> Json:
    """Every candidate's score by another estimator, from the answers that the run has.

    With `items`, only those count that the estimator would ask for; else all that there are. What
    an estimator learns from other candidates, it learns from the whole run.

    Returns:
        `rows` of the candidates by the new score, best first, each with the recorded score too;
        `rank_correlation` of the two (Spearman); `skipped`, the candidates that lack an answer.

    Raises:
        ConfigurationError: the estimator decides what is measured, or its options are wrong.
    """
    kind = str(config.get("kind", "full"))
    if kind == "racing":
        what = "decides what is measured: that needs a replay"
        raise ConfigurationError(Problem("racing", what, f"evomerge replay {run.folder}"))
    items_of = _chosen_items(run, config) if "items" in config else run.answered
    plain = {key: value for key, value in config.items() if key not in OF_A_RACE}
    plain["kind"] = kind if kind in READINGS else "subset"
    reading = make_reading(plain, run.objectives, run.split.search, run.seed)
    told = [
        Told(candidate, items)
        for candidate in _first_of_each(run.cohorts)
        if all((items := items_of(candidate)).values())
    ]
    known = {entry.candidate.fingerprint: entry.items for entry in told}
    rows: list[Json] = []
    skipped: list[CandidateId] = []
    for number, candidates in enumerate(run.cohorts):
        if progress is not None:
            progress("reading the answers", number, len(run.cohorts))
        cohort = Cohort(
            number, candidates, run.measurements, references=run.models, history=tuple(told)
        )
        for candidate in candidates:
            recorded = run.evaluations[candidate.id].score
            if recorded is None:
                continue
            if candidate.fingerprint not in known:
                skipped.append(candidate.id)
                continue
            own = known[candidate.fingerprint]
            estimates = reading.estimates(cohort, [candidate], own)[candidate.id]
            rows.append(_row(candidate, recorded, estimates))
    if not rows:
        what = "no candidate has answered what the estimator asks for"
        raise ConfigurationError(Problem(str(run.folder), what, "ask for fewer items"))
    order = best_first([Evaluation(r["candidate"], None, r["score"]) for r in rows])
    by_id = {row["candidate"]: row for row in rows}
    ranked = [by_id[evaluation.id] for evaluation in order]
    return {
        "estimator": dict(config),
        "rows": [{**row, "score": _plain(row["score"])} for row in ranked],
        "rank_correlation": spearman(
            [row["recorded_mean"] for row in ranked], [row["score"].mean for row in ranked]
        ),
        "skipped": skipped,
    }


def _row(candidate: Candidate, recorded: Score, estimates: Mapping[str, Estimate]) -> Json:
    return {
        "candidate": candidate.id,
        "score": Score(dict(estimates)),
        "recorded": _plain(recorded),
        "recorded_mean": recorded.mean,
    }


def _plain(score: Score) -> dict[str, Any]:
    return {name: asdict(e) for name, e in score.objectives.items()}


def _chosen_items(
    run: Recorded, config: Mapping[str, Any]
) -> Callable[[Candidate], dict[str, tuple[int, ...]]]:
    """What an estimator would ask of a candidate; nothing where the run lacks some of it."""
    race = make_estimator(config, run.objectives, run.split.search, run.seed)
    numbers = {c.fingerprint: n for n, cohort in enumerate(run.cohorts) for c in cohort}
    # What it would have learnt from the whole run may decide what it asks for.
    answered = ((c, run.answered(c)) for c in _first_of_each(run.cohorts))
    history = tuple(Told(c, items) for c, items in answered if all(items.values()))

    def items_of(candidate: Candidate) -> dict[str, tuple[int, ...]]:
        number = numbers[candidate.fingerprint]
        cohort = Cohort(
            number, (candidate,), run.measurements, references=run.models, history=history
        )
        told = [] if race.requests(cohort) else race.told(cohort)
        return {task: tuple(ids) for task, ids in told[0].items.items()} if told else {"": ()}

    return items_of


def _first_of_each(cohorts: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    """Every recipe once."""
    known = {c.fingerprint: c for cohort in reversed(cohorts) for c in reversed(cohort) if c.recipe}
    return sorted(known.values(), key=lambda c: c.id)
