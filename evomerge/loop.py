"""The search: ask, measure, score, tell.

Nothing here depends on the order in which outcomes arrive. A cohort (what one ask returned) is told
as a whole and in the order of asking; the searcher is asked again only after a tell, for as many
candidates as the window `in_flight` has room for. So the sequence of calls, and with it the whole
search, is a function of the experiment alone.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from evomerge.errors import LedgerDamaged
from evomerge.ledger import REFERENCES, Ledger
from evomerge.measurement import Measurer, notify
from evomerge.pareto import best_first
from evomerge.protocols import Estimator, Observer, Searcher, SearchSpace
from evomerge.records import (
    Budget,
    Candidate,
    CandidateId,
    Cohort,
    Evaluation,
    Failure,
    Genome,
    Responses,
    Told,
)
from evomerge.stopping import Progress, Spent

logger = logging.getLogger(__name__)


@dataclass
class Search:
    """A searcher, a space, an estimator and a ledger at one moment of a search."""

    searcher: Searcher
    space: SearchSpace
    estimator: Estimator
    ledger: Ledger
    in_flight: int  # candidates that may be asked for and not yet told
    cohort_size: int  # candidates that are asked for, measured and told together, at most
    references: tuple[Candidate, ...] = ()
    observers: Sequence[Observer] = ()

    open: deque[Cohort] = field(default_factory=deque)  # asked, not yet told
    incumbents: dict[CandidateId, Evaluation] = field(default_factory=dict)  # best first
    history: list[Told] = field(default_factory=list)  # empty where the estimator needs none
    progress: Progress = field(default_factory=Progress)
    spent: Spent | None = None  # None where a search never ends with cohorts under way
    changes: str = ""  # what differs from the sessions that are recorded, in words
    num_asked: int = 0
    num_cohorts: int = 0
    num_told: int = 0


@dataclass(frozen=True)
class Replayed:
    """What a replay has found.

    asked, told: candidates. cohorts: that were asked. drifted: candidates that are asked
    differently now. waiting: candidates that were asked and not told -> answers that they lack and
    are asked for now. is_over: the budget is spent already.
    """

    asked: int
    told: int
    cohorts: int
    drifted: tuple[CandidateId, ...]
    waiting: Mapping[CandidateId, int]
    is_over: bool
    seconds: float


def run_search(
    search: Search,
    measurer: Measurer,
    budget: Budget,
    on_replayed: Callable[[Replayed], None] = lambda _: None,
) -> str:
    """Search until the budget is spent or the searcher has nothing more to ask; says which.

    on_replayed: called once the searcher is where it was.

    Raises:
        NoWorkersLeft: the pool is empty; the search can be resumed.
        LedgerDamaged: the replay contradicts the ledger.
    """
    started = time.monotonic() - search.ledger.seconds_spent()
    on_replayed(replay(search, budget, time.monotonic() - started))
    complete: set[int] = set()  # cohorts that ask for nothing more
    between_cohorts = True  # what is under way is finished and told before a budget ends it
    while True:
        if between_cohorts and (why := why_stop(budget, search, time.monotonic() - started)):
            return why
        between_cohorts = False
        while ask_more(search):  # workers have something to do while the rest is asked for
            submit(search, measurer, within_budget(search, budget)[-1:], complete)
            if room(search) > 0 and measurer.is_busy:
                measurer.collect(search.open[0].index, wait_s=0)
        if not search.open:
            return "the searcher has nothing more to ask"
        paid = within_budget(search, budget)
        if not paid:
            return beyond(budget)  # the next cohort stays asked, for a longer run
        submit(search, measurer, paid, complete)
        head = paid[0]
        if measurer.waiting(head.index):
            measurer.collect(head.index)
        elif len(head.candidates) < len(search.open[0].candidates):
            search.ledger.scored(head.index, evaluate(search, head))
            count_items(search, head)
            return beyond(budget)  # cut short: scored for the report, told to nobody
        else:
            tell(search, evaluate(search, head))
            between_cohorts = True


def beyond(budget: Budget) -> str:
    """Why candidates that were asked for are not measured."""
    return f"the budget is {budget.candidates:,} candidates"


def replay(search: Search, budget: Budget, elapsed_s: float) -> Replayed:
    """Make the recorded calls again, so that the searcher is where it was."""
    begun = time.monotonic()
    if budget.item_evaluations or budget.patience or search.progress.target:
        search.spent = Spent()
        for answered in search.ledger.answered(REFERENCES):
            search.spent.add(*answered)
    asked = search.ledger.asked_ids()
    drifted: list[CandidateId] = []
    for kind, cohort, data in search.ledger.events("asked", "told"):
        if cohort < 0:
            continue
        if kind == "asked":
            recorded = [search.ledger.candidates[id_] for id_ in asked[cohort]]
            genomes = search.searcher.ask(data["count"])
            drifted += check_replay(search, recorded, genomes, first=not drifted)
            open_cohort(search, recorded)
        else:
            evaluations = [search.ledger.evaluation(entry) for entry in data]
            answers = item_scores(search, search.open[0])
            search.searcher.tell([replace(e, responses=answers.get(e.id, {})) for e in evaluations])
            close_cohort(search, evaluations)
    is_over = why_stop(budget, search, elapsed_s) is not None
    return Replayed(
        asked=search.num_asked,
        told=search.num_told,
        cohorts=search.num_cohorts,
        drifted=tuple(drifted),
        waiting={} if is_over else unanswered(search, budget),
        is_over=is_over,
        seconds=time.monotonic() - begun,
    )


def check_replay(
    search: Search, recorded: Sequence[Candidate], genomes: Sequence[Genome], first: bool
) -> list[CandidateId]:
    """Compare re-asked genomes with the recorded ones; the candidates where they differ.

    first: whether nothing has differed before, so that it is said once.

    Raises:
        LedgerDamaged: they differ, and the searcher cannot go on from recorded genomes.
    """
    expected = [candidate.genome for candidate in recorded]
    if list(genomes) == expected:
        return []
    changes = search.changes or "nothing that sessions record differs: was the code changed?"
    message = (
        f"candidates {recorded[0].id} to {recorded[-1].id} are asked differently now than when the "
        f"run was recorded ({changes})"
    )
    if len(genomes) != len(expected) or not search.searcher.resumes_on_drift:
        raise LedgerDamaged(f"{message}; this searcher cannot go on from there: start a new run")
    if first:
        logger.warning("%s; going on from the recorded genomes", message)
    return [c.id for c, genome in zip(recorded, genomes, strict=True) if c.genome != genome]


def unanswered(search: Search, budget: Budget) -> dict[CandidateId, int]:
    """Candidates that were asked and not told -> item evaluations that they wait for."""
    lacking: dict[CandidateId, int] = {}
    known = search.ledger.measurements
    for cohort in within_budget(search, budget):
        for request in search.estimator.requests(cohort):
            fingerprint = search.ledger.candidates.fingerprint(request.candidate)
            missing = len(known.missing(fingerprint, request.task, request.items))
            lacking[request.candidate] = lacking.get(request.candidate, 0) + missing
    return {id_: count for id_, count in lacking.items() if count}


def room(search: Search) -> int:
    """How many more candidates may be in flight."""
    return search.in_flight - sum(len(cohort.candidates) for cohort in search.open)


def ask_more(search: Search) -> bool:
    """Ask for one cohort more, if the window has room for it, and commit it; whether it did."""
    count = min(room(search), search.cohort_size)
    genomes = search.searcher.ask(count) if count > 0 else []
    if not genomes:
        return False
    candidates = [
        make_candidate(search.space, search.num_asked + number, genome)
        for number, genome in enumerate(genomes)
    ]
    search.ledger.asked(search.num_cohorts, count, candidates)
    open_cohort(search, candidates)
    notify(search.observers, "asked", candidates)
    return True


def submit(
    search: Search, measurer: Measurer, cohorts: Sequence[Cohort], complete: set[int]
) -> None:
    """Send what cohorts ask for; those that ask for nothing that is not there are complete."""
    for cohort in cohorts:
        if cohort.index not in complete and not measurer.waiting(cohort.index):
            measurer.submit(cohort.index, search.estimator.requests(cohort))
            if not measurer.waiting(cohort.index):
                complete.add(cohort.index)


def make_candidate(space: SearchSpace, id_: CandidateId, genome: Genome) -> Candidate:
    """Decode a genome, unless it violates its space."""
    violations = tuple(space.violations(genome))
    return Candidate(id_, genome, None if violations else space.decode(genome), violations)


def open_cohort(search: Search, candidates: Sequence[Candidate]) -> None:
    """A cohort is compared with those who were best when it was asked."""
    best = list(search.incumbents)[: search.estimator.num_incumbents]
    search.open.append(
        Cohort(
            index=search.num_cohorts,
            candidates=tuple(candidates),
            measurements=search.ledger.measurements,
            incumbents=tuple(search.ledger.candidates[id_] for id_ in best),
            references=search.references,
            history=tuple(search.history),
        )
    )
    search.num_cohorts += 1
    search.num_asked += len(candidates)


def within_budget(search: Search, budget: Budget) -> list[Cohort]:
    """The open cohorts, less the candidates that the budget does not pay for."""
    limit = search.num_asked if budget.candidates is None else budget.candidates
    paid = []
    for cohort in search.open:
        first, last = cohort.candidates[0].id, cohort.candidates[-1].id
        if last < limit:  # asked in the order of their ids, which have no gaps
            paid.append(cohort)
        elif first < limit:
            paid.append(replace(cohort, candidates=cohort.candidates[: limit - first]))
    return paid


def evaluate(search: Search, cohort: Cohort) -> list[Evaluation]:
    """The cohort's evaluations in candidate order; re-scored incumbents come first."""
    scores = search.estimator.scores(cohort)
    answers = item_scores(search, cohort)
    without = any(candidate.id not in scores for candidate in cohort.candidates)
    failures = search.estimator.failures(cohort) if without else {}
    own = {candidate.id for candidate in cohort.candidates}
    rescored = [c for c in cohort.incumbents if c.id in scores and c.id not in own]
    evaluations = []
    for candidate in (*sorted(rescored, key=lambda c: c.id), *cohort.candidates):
        score = scores.get(candidate.id)
        evaluations.append(
            Evaluation(
                id=candidate.id,
                genome=candidate.genome,
                score=score,
                failure=None
                if score is not None
                else failures.get(candidate.id) or why_none(candidate, cohort),
                violation=float(len(candidate.violations)),
                responses=answers.get(candidate.id, {}),
            )
        )
    return evaluations


def item_scores(search: Search, cohort: Cohort) -> Mapping[CandidateId, Mapping[str, Responses]]:
    """What each candidate answered to each item, for searchers that compare item by item."""
    if "complete_responses" not in search.searcher.needs:
        return {}
    known = cohort.measurements
    return {
        told.candidate.id: {
            task: Responses(
                task,
                np.asarray(items, dtype=np.int64),
                {"score": known.values(told.candidate.fingerprint, task, items).astype(np.float32)},
            )
            for task, items in told.items.items()
        }
        for told in search.estimator.told(cohort)
    }


def why_none(candidate: Candidate, cohort: Cohort) -> Failure:
    """Why a candidate has no score, where the estimator does not tell."""
    if candidate.violations:
        return Failure("violation", "; ".join(candidate.violations))
    failure = cohort.measurements.failure(candidate.fingerprint, cohort.index)
    return failure or Failure("task", "the estimator gave it no score")


def tell(search: Search, evaluations: Sequence[Evaluation]) -> None:
    """Commit the scores and the tell together, then tell."""
    search.ledger.told(search.open[0].index, evaluations)
    search.searcher.tell(evaluations)
    close_cohort(search, evaluations)
    notify(search.observers, "told", evaluations)


def close_cohort(search: Search, evaluations: Sequence[Evaluation]) -> None:
    """The best of the old incumbents and the new candidates are the new incumbents."""
    cohort = search.open.popleft()
    search.num_told += len(cohort.candidates)
    count_items(search, cohort)
    if search.estimator.needs_history:
        search.history += search.estimator.told(cohort)
    known = search.incumbents | {evaluation.id: evaluation for evaluation in evaluations}
    best = best_first([e for e in known.values() if e.score is not None])
    search.incumbents = {e.id: e for e in best[: max(1, search.estimator.num_incumbents)]}
    search.progress.told(best[0] if best else None, evaluations, search.num_told)


def count_items(search: Search, cohort: Cohort) -> None:
    """Count what a cohort that is done had to answer."""
    if search.spent is not None:
        search.spent.told(search.estimator.needed(cohort), cohort.measurements)


def why_stop(budget: Budget, search: Search, elapsed_s: float) -> str | None:
    """Why nothing more may be started; None if it may.

    Items count that the cohorts which were told had to answer: how many of later ones are answered
    by now depends on the workers.
    """
    if budget.candidates is not None and search.num_told >= budget.candidates:
        return beyond(budget)
    spent = 0 if search.spent is None else search.spent.total
    if budget.item_evaluations is not None and spent >= budget.item_evaluations:
        return f"{spent:,} item evaluations were spent"
    if search.progress.reached is not None:
        return f"candidate {search.progress.reached} has reached the target"
    stalled = search.num_told - search.progress.since
    if budget.patience is not None and stalled >= budget.patience:
        return f"no progress for {stalled:,} candidates"
    if budget.hours is not None and elapsed_s >= 3600 * budget.hours:
        return f"{budget.hours:g} hours are over"
    return None
