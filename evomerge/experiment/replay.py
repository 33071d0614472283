"""What another estimator would have asked of a run's candidates, and chosen.

The candidates stay those of the run, in their order. What its searcher would have asked for, had it
been told other scores, nobody knows without a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evomerge.errors import ConfigurationError, Problem
from evomerge.experiment.recorded import Json, Recorded, spearman
from evomerge.fitness.estimators import make_estimator
from evomerge.fitness.estimators.estimate import estimate as estimate_all
from evomerge.pareto import best_first
from evomerge.protocols import Estimator, Progress
from evomerge.records import (
    Candidate,
    CandidateId,
    Cohort,
    Evaluation,
    Measurements,
    Responses,
    Score,
    Told,
)
from evomerge.results.references import grid_cohort

RANKED = 12  # candidates that are named in order


def replay(run: Recorded, config: Mapping[str, Any], progress: Progress | None = None) -> Json:
    """What another estimator would have spent on the run's candidates, and chosen.

    Returns:
        `spent` and `recorded_spent`, item evaluations of references and candidates; `ranked`, the
        candidates that its scores put first; `chosen`, the first of them, beside `best`, the one
        that all recorded answers put first, each with its mean over all of them; `regret`, the
        difference; `rank_correlation` of its scores with the means (Spearman).

    Raises:
        ConfigurationError: it asks for answers that the run does not have.
    """
    estimator: Estimator = make_estimator(config, run.objectives, run.split.search, run.seed)
    asked = _Answers(run)
    asked.everything(run.models)
    grid = grid_cohort(run.references, run.ledger)
    asked.all_of(estimator, replace(grid, measurements=asked.given))
    told: dict[CandidateId, Evaluation] = {}
    history: list[Told] = []
    incumbents: list[list[CandidateId]] = [[]]  # after so many tells
    lengths = [0]  # of the history then
    for number, candidates in enumerate(run.cohorts):
        if progress is not None:
            progress("asking again", number, len(run.cohorts))
        # Who was best when the cohort was asked for: others may have been under way.
        then = run.lags[number] if run.lags else number
        cohort = Cohort(
            number,
            candidates,
            asked.given,
            tuple(run.ledger.candidates[id_] for id_ in incumbents[then]),
            run.models,
            tuple(history[: lengths[then]]),
        )
        asked.all_of(estimator, cohort)
        scores = estimator.scores(cohort)
        newest = {id_: Evaluation(id_, None, score) for id_, score in scores.items()}
        known = {id_: told[id_] for id_ in incumbents[-1]} | newest
        told |= newest
        history += estimator.told(cohort) if estimator.needs_history else []
        # As in a search: whoever is no longer among them does not come back.
        incumbents.append([e.id for e in best_first([*known.values()])][: estimator.num_incumbents])
        lengths.append(len(history))
    if estimator.needs_history:
        end = Cohort(len(run.cohorts), (), asked.given, (), run.models, tuple(history))
        anew = estimator.told_anew(end)
        told |= {id_: Evaluation(id_, None, score) for id_, score in anew.items()}
    return {
        "estimator": dict(config),
        "candidates": sum(map(len, run.cohorts)),
        "spent": asked.given.item_evaluations,
        "recorded_spent": run.ledger.spent(len(run.cohorts) - 1),
        **_choice(run, told),
    }


def _choice(run: Recorded, told: Mapping[CandidateId, Evaluation]) -> Json:
    """Whom the replayed scores put first, and what all recorded answers say of that."""
    means: dict[CandidateId, float] = {}
    peers = [run.ledger.candidates[id_] for id_ in told]
    for candidate in peers:
        items = run.answered(candidate)
        if all(len(ids) == len(run.split.search[task]) for task, ids in items.items()):
            found = estimate_all(run.objectives, run.measurements, candidate, items, peers)
            mean = Score(found).mean
            if np.isfinite(mean):
                means[candidate.id] = mean
    ranked = [e.id for e in best_first([*told.values()])]
    if not ranked:
        raise ConfigurationError(Problem(str(run.folder), "no candidate has a score"))
    chosen: Json = {
        "ranked": ranked[:RANKED],
        "chosen": {"candidate": ranked[0], "mean": means.get(ranked[0])},
    }
    if means and ranked[0] in means:
        best = max(means, key=lambda id_: (means[id_], -id_))
        both = [id_ for id_ in ranked if id_ in means]
        chosen |= {
            "best": {"candidate": best, "mean": means[best]},
            "regret": means[best] - means[ranked[0]],
            "rank_correlation": spearman(
                [-float(place) for place in range(len(both))], [means[id_] for id_ in both]
            ),
        }
    return chosen


class _Answers:
    """Answers requests from a run's ledger, and counts what is asked."""

    def __init__(self, run: Recorded) -> None:
        self._run = run
        self.given = Measurements(run.measurements.num_items, run.costs)

    def everything(self, candidates: Sequence[Candidate]) -> None:
        """All search items, as references answer them."""
        for candidate in candidates:
            for task, ids in self._run.split.search.items():
                self._give(candidate, task, ids)

    def all_of(self, estimator: Estimator, cohort: Cohort) -> None:
        """Whatever the estimator asks for, until it asks for no more."""
        for candidate in cohort.candidates:
            for job in self._run.measurements.failed_jobs(candidate.fingerprint):
                self.given.fail(candidate.fingerprint, job.failure, job.items, job.cohort)
        while requests := estimator.requests(cohort):
            for request in requests:
                candidate = self._run.ledger.candidates[request.candidate]
                self._give(candidate, request.task, request.items)

    def _give(self, candidate: Candidate, task: str, items: Sequence[int]) -> None:
        known, fingerprint = self._run.measurements, candidate.fingerprint
        if lacking := known.missing(fingerprint, task, items):
            what = (
                f"was not asked {len(lacking)} of the {len(items)} items of {task} that this "
                "estimator wants"
            )
            hint = "replay a run whose estimator is `full`"
            raise ConfigurationError(Problem(f"candidate {candidate.id}", what, hint))
        columns = {
            name: known.values(fingerprint, task, items, name).astype(np.float32)
            for name in known.columns(fingerprint, task)
        }
        told = known.failed_items(fingerprint).get(task, {})
        failures = {item: told[item] for item in items if item in told}
        answers = Responses(task, np.array(items, np.int64), columns, failures=failures)
        self.given.add(fingerprint, answers)
